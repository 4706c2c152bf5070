"""Moment-normalised mutual attention in Triton: similarities live in registers only.

Without a softmax there are no running statistics, so the forward pass is one kernel that streams
over rows i of the similarities for a tile of columns j. The backward pass recomputes them twice:
`by_column` sums over i what belongs to j, `by_row` sums over j what belongs to i, and adds both.
No atomics: every output is summed by one program in a fixed order.

A padded position is all zeros, so its similarities are 0, and m(0) = m'(0) = 0: the loops need no
masks beside those of their loads. Maps are (B, C, N); letters as in the torch path.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, ANN202 (Triton gives arguments their types at launch)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels import _launch
from zoo.kernels._jit import dot
from zoo.kernels._launch import Tile

MAX_CHANNELS = 128
# The first of two spills little on compute capability 9.0, the second of HALF little below it.
HALF = (Tile(64, 32, 8, 2), Tile(32, 32, 8, 2))
HALF_WIDE = (Tile(32, 32, 8, 2), Tile(16, 32, 8, 2))
FULL = (Tile(32, 32, 8, 2), Tile(32, 32, 4, 2))
FULL_WIDE = (Tile(16, 32, 8, 1),)
# Exact float32 products do not use matrix instructions: larger tiles spill 1 to 7 kB a thread.
EXACT, EXACT_WIDE = (Tile(16, 32, 8, 1),), (Tile(16, 16, 8, 1),)


@triton.jit
def _moment(x, eps):
    """Signed square root; NaN stays NaN."""
    root = tl.sqrt(tl.abs(x) + eps)
    return tl.where(x == 0, 0.0, tl.where(x < 0, -root, root))


@triton.jit
def _slope(x, eps):
    """Derivative of the signed square root, 0 at 0."""
    root = tl.sqrt(tl.abs(x) + eps)
    return tl.where(x == 0, 0.0, 0.5 / tl.where(x == 0, 1.0, root))


@triton.jit
def _tile(x, first, N, C: tl.constexpr, CP: tl.constexpr, SIZE: tl.constexpr):
    """(CP, SIZE) columns of a map that start at `first`, zeros outside."""
    c = tl.arange(0, CP)
    n = first + tl.arange(0, SIZE)
    there = (c < C)[:, None] & (n < N)[None, :]
    return tl.load(x + c[:, None] * N + n[None, :], mask=there, other=0.0)


@triton.jit
def _put(x, first, value, N, C: tl.constexpr, CP: tl.constexpr, SIZE: tl.constexpr):
    c = tl.arange(0, CP)
    n = first + tl.arange(0, SIZE)
    there = (c < C)[:, None] & (n < N)[None, :]
    tl.store(x + c[:, None] * N + n[None, :], value.to(x.dtype.element_ty), mask=there)


@triton.jit
def _against(left, right, WIDEN: tl.constexpr, PRECISION: tl.constexpr):
    """Products left^T right of two tiles of columns."""
    acc = tl.zeros((left.shape[1], right.shape[1]), dtype=tl.float32)
    return dot(tl.trans(left), right, acc, WIDEN, PRECISION)


@triton.jit
def products(
    r, d, p, out_r, out_d, out_p, N, eps,
    C: tl.constexpr, CP: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """R m(A), D m(B) and P (m(A) + m(B)) for BJ columns of one item."""
    j0 = tl.program_id(0) * BJ
    item = tl.program_id(1).to(tl.int64) * C * N
    r_j = _tile(r + item, j0, N, C, CP, BJ)
    d_j = _tile(d + item, j0, N, C, CP, BJ)
    acc_r = tl.zeros((CP, BJ), dtype=tl.float32)
    acc_d = tl.zeros((CP, BJ), dtype=tl.float32)
    acc_p = tl.zeros((CP, BJ), dtype=tl.float32)
    for i0 in range(0, N, BI):
        p_i = _tile(p + item, i0, N, C, CP, BI)
        r_i = _tile(r + item, i0, N, C, CP, BI)
        d_i = _tile(d + item, i0, N, C, CP, BI)
        like_r = _moment(_against(p_i, r_j, WIDEN, PRECISION), eps)
        like_d = _moment(_against(p_i, d_j, WIDEN, PRECISION), eps)
        acc_r = dot(r_i, like_r.to(r_i.dtype), acc_r, WIDEN, PRECISION)
        acc_d = dot(d_i, like_d.to(d_i.dtype), acc_d, WIDEN, PRECISION)
        acc_p = dot(p_i, (like_r + like_d).to(p_i.dtype), acc_p, WIDEN, PRECISION)
    _put(out_r + item, j0, acc_r, N, C, CP, BJ)
    _put(out_d + item, j0, acc_d, N, C, CP, BJ)
    _put(out_p + item, j0, acc_p, N, C, CP, BJ)


@triton.jit
def by_column(
    r, d, p, g_r, g_d, g_p, out_r, out_d, N, eps,
    C: tl.constexpr, CP: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The parts P dA and P dB of dR and dD for BJ columns of one item."""
    j0 = tl.program_id(0) * BJ
    item = tl.program_id(1).to(tl.int64) * C * N
    r_j = _tile(r + item, j0, N, C, CP, BJ)
    d_j = _tile(d + item, j0, N, C, CP, BJ)
    g_rj = _tile(g_r + item, j0, N, C, CP, BJ)
    g_dj = _tile(g_d + item, j0, N, C, CP, BJ)
    g_pj = _tile(g_p + item, j0, N, C, CP, BJ)
    acc_r = tl.zeros((CP, BJ), dtype=tl.float32)
    acc_d = tl.zeros((CP, BJ), dtype=tl.float32)
    for i0 in range(0, N, BI):
        p_i = _tile(p + item, i0, N, C, CP, BI)
        shared = _against(p_i, g_pj, WIDEN, PRECISION)
        r_i = _tile(r + item, i0, N, C, CP, BI)
        grad = _against(r_i, g_rj, WIDEN, PRECISION) + shared
        grad *= _slope(_against(p_i, r_j, WIDEN, PRECISION), eps)
        acc_r = dot(p_i, grad.to(p_i.dtype), acc_r, WIDEN, PRECISION)
        d_i = _tile(d + item, i0, N, C, CP, BI)
        grad = _against(d_i, g_dj, WIDEN, PRECISION) + shared
        grad *= _slope(_against(p_i, d_j, WIDEN, PRECISION), eps)
        acc_d = dot(p_i, grad.to(p_i.dtype), acc_d, WIDEN, PRECISION)
    _put(out_r + item, j0, acc_r, N, C, CP, BJ)
    _put(out_d + item, j0, acc_d, N, C, CP, BJ)


@triton.jit
def by_row(
    r, d, p, g_r, g_d, g_p, part_r, part_d, out_r, out_d, out_p, N, eps,
    C: tl.constexpr, CP: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All of dP for BI rows of one item, and the rest of dR and dD added to their first parts."""
    i0 = tl.program_id(0) * BI
    item = tl.program_id(1).to(tl.int64) * C * N
    r_i = _tile(r + item, i0, N, C, CP, BI)
    d_i = _tile(d + item, i0, N, C, CP, BI)
    p_i = _tile(p + item, i0, N, C, CP, BI)
    acc_r = _tile(part_r + item, i0, N, C, CP, BI)
    acc_d = _tile(part_d + item, i0, N, C, CP, BI)
    acc_p = tl.zeros((CP, BI), dtype=tl.float32)
    for j0 in range(0, N, BJ):
        g_pj = _tile(g_p + item, j0, N, C, CP, BJ)
        # Transposed, columns by rows, so that every product below takes them as they are.
        shared = _against(g_pj, p_i, WIDEN, PRECISION)
        r_j = _tile(r + item, j0, N, C, CP, BJ)
        g_j = _tile(g_r + item, j0, N, C, CP, BJ)
        like = _against(r_j, p_i, WIDEN, PRECISION)
        grad = (_against(g_j, r_i, WIDEN, PRECISION) + shared) * _slope(like, eps)
        total = _moment(like, eps)
        acc_r = dot(g_j, total.to(g_j.dtype), acc_r, WIDEN, PRECISION)
        acc_p = dot(r_j, grad.to(r_j.dtype), acc_p, WIDEN, PRECISION)
        d_j = _tile(d + item, j0, N, C, CP, BJ)
        g_j = _tile(g_d + item, j0, N, C, CP, BJ)
        like = _against(d_j, p_i, WIDEN, PRECISION)
        grad = (_against(g_j, d_i, WIDEN, PRECISION) + shared) * _slope(like, eps)
        like = _moment(like, eps)
        acc_d = dot(g_j, like.to(g_j.dtype), acc_d, WIDEN, PRECISION)
        acc_p = dot(d_j, grad.to(d_j.dtype), acc_p, WIDEN, PRECISION)
        acc_p = dot(g_pj, (total + like).to(g_pj.dtype), acc_p, WIDEN, PRECISION)
    _put(out_r + item, i0, acc_r, N, C, CP, BI)
    _put(out_d + item, i0, acc_d, N, C, CP, BI)
    _put(out_p + item, i0, acc_p, N, C, CP, BI)


def supports(x: Tensor) -> str:
    """Why the kernels do not take maps like `x`; empty if they do."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels of mutual attention take no maps of {x.dtype}"
    if x.shape[1] > MAX_CHANNELS:
        return f"the kernels of mutual attention go up to {MAX_CHANNELS} channels, got {x.shape[1]}"
    return ""


def tiles(
    dtype: torch.dtype, channels: int, capability: int, precision: str = "tf32"
) -> tuple[Tile, ...]:
    """Tiles shipped for maps of a dtype and width on such a device, the default first.

    Args:
        dtype: Of the operands.
        channels: C.
        capability: Of the device, such as 90.
        precision: Of products of float32 operands, `ieee` or `tf32`.
    """
    wide = channels > 64
    if dtype == torch.bfloat16:
        half = HALF_WIDE if wide else HALF
        return half if capability >= 90 else half[1:]
    if precision == "ieee":
        return EXACT_WIDE if wide else EXACT
    return FULL_WIDE if wide else FULL


def _operands(xs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Contiguous maps in the dtype of the products.

    Gradients behind a norm are too small for float16, and tf32 has its mantissa: float16 maps are
    widened.
    """
    return tuple(_launch.whole(x.to(dtype)) for x in xs)


def _sizes(x: Tensor, given: torch.dtype) -> dict[str, Any]:
    channels = x.shape[1]
    return {
        "C": channels,
        "CP": _launch.padded(channels),
        "WIDEN": _launch.INTERPRETED,
        "PRECISION": _precision(x, given),
    }


def _precision(x: Tensor, given: torch.dtype) -> str:
    """How float32 operands are multiplied; those that were float16 need no more than tf32."""
    return "tf32" if given == torch.float16 else _launch.precision(x)


def _shipped(x: Tensor, given: torch.dtype) -> tuple[Tile, ...]:
    capability = _launch.capability(x.device)
    return tiles(x.dtype, x.shape[1], capability, _precision(x, given))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _key(name: str, x: Tensor, given: torch.dtype) -> tuple[object, ...]:
    where = _launch.capability(x.device), _precision(x, given)
    return (name, *where, x.shape[1], x.dtype, _launch.bucket(x.shape[2]))


def forward(maps: tuple[Tensor, Tensor, Tensor], eps: float, out: tuple[Tensor, ...]) -> None:
    """Writes the three products of (B, C, N) maps to `out`, float32 and contiguous."""
    given = maps[0].dtype
    x = _operands(maps, _wide(given))
    batch, _, count = x[0].shape
    if not x[0].numel():
        return

    def run(tile: Tile) -> None:
        products[(triton.cdiv(count, tile.columns), batch)](
            *x, *out, count, eps, BI=tile.rows, BJ=tile.columns,
            **_sizes(x[0], given), **_launch.keywords(tile),
        )  # fmt: skip

    key = _key("mutual forward", x[0], given)
    run(_launch.choose(key, _shipped(x[0], given), run))


def backward(
    grads: tuple[Tensor, Tensor, Tensor],
    maps: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of the three maps to `out`, float32 and contiguous."""
    given = maps[0].dtype
    x = _operands((*maps, *grads), _wide(given))
    batch, _, count = x[0].shape
    if not x[0].numel():
        return
    parts = out[0].new_empty(out[0].shape), out[1].new_empty(out[1].shape)

    def run(tile: Tile) -> None:
        common = {
            "BI": tile.rows,
            "BJ": tile.columns,
            **_sizes(x[0], given),
            **_launch.keywords(tile),
        }
        by_column[(triton.cdiv(count, tile.columns), batch)](*x, *parts, count, eps, **common)
        by_row[(triton.cdiv(count, tile.rows), batch)](*x, *parts, *out, count, eps, **common)

    key = _key("mutual backward", x[0], given)
    run(_launch.choose(key, _shipped(x[0], given), run))
