"""Pieces that kernels are written with: products, and the rows of a tile."""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202 (Triton gives arguments their types at launch)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, WIDEN: tl.constexpr, PRECISION: tl.constexpr):
    """Adds a b to acc, with float32 accumulation."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def tile_rows(t, starts, ends, bags, rows, SIZE: tl.constexpr, RAGGED: tl.constexpr):
    """Row numbers (64 bit) of tile t, which of them belong to its bag, and the bag."""
    if RAGGED:
        first = tl.load(starts + t)
        end = tl.load(ends + t)
        bag = tl.load(bags + t)
    else:
        first = t.to(tl.int64) * SIZE
        end = rows.to(tl.int64)
        bag = (t * 0).to(tl.int64)
    index = first + tl.arange(0, SIZE)
    return index, index < end, bag
