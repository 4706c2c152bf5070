"""Moment-normalised mutual attention on the CPU, where products of many rows are the fastest.

The formulas are those of `torch_path`. Here A is held in tiles of some positions m of a stream by
some positions n of the fused map,

    A[m, n] = R_m . P_n,    dR_m = sum_n P_n dA[m, n] + ...,    dP_n = sum_m R_m dA[m, n] + ...,

and what tiles give is added up position by position, in (N, C).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.kernels._moment import by_moment_, moment_
from zoo.kernels.products import gram, product

Three = tuple[Tensor, Tensor, Tensor]

_HIGH, _WIDE = 2048, 256
"""Positions of a stream and of the fused map in a tile; smaller ones lose to the calls."""


def _tiles(positions: int) -> Iterator[tuple[slice, slice]]:
    """Positions of the stream and of the fused map of every tile."""
    for high in range(0, positions, _HIGH):
        for wide in range(0, positions, _WIDE):
            yield slice(high, high + _HIGH), slice(wide, wide + _WIDE)


def _keep_freed_memory(like: Tensor, positions: int, tiles: int) -> None:
    """Lets the C library keep the memory of a few tiles when they are freed.

    By default it gives back whatever is more than twice the largest block freed before, and would
    take the pages of every tile anew from the system. This block's pages are never touched.
    """
    like.new_empty(tiles, min(positions, _HIGH), min(positions, _WIDE))


def _rows(*maps: Tensor) -> list[Tensor]:
    """Maps (C, N) as rows (N, C)."""
    return [x.mT.contiguous() for x in maps]


def _no_negative(maps: Three) -> bool:
    """Whether similarities cannot be negative."""
    return all(bool(x.amin() >= 0) for x in maps)


def forward(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, out: Three) -> None:
    """Writes the three products of (B, C, N) maps to `out`, in their dtype."""
    for item in range(fused.shape[0] if fused.numel() else 0):
        maps = rgb[item], depth[item], fused[item]
        for x, to in zip(_forward(maps, eps), out, strict=True):
            to[item] = x.mT


def _forward(maps: Three, eps: float) -> list[Tensor]:
    """The three products (N, C) of the maps (C, N) of one item."""
    streams, fused = _rows(*maps[:2]), maps[2]
    sums = [torch.zeros_like(streams[0]) for _ in maps]
    positive = _no_negative(maps)
    _keep_freed_memory(fused, fused.shape[1], 3)
    for own, other in _tiles(fused.shape[1]):
        keys, total = fused[:, other].mT, None
        for x, rows, to in zip(maps[:2], streams, sums[:2], strict=True):
            like = moment_(product(rows[own], keys), eps, positive)
            to[own] += product(like, x[:, other])
            total = like if total is None else total.add_(like)
        assert total is not None  # there are two streams
        sums[2][own] += product(total, keys.mT)
    return sums


def backward(grads: Three, maps: Three, eps: float, out: Three) -> None:
    """Writes the gradients of rgb, depth and fused, all (B, C, N) in one dtype, to `out`."""
    for item in range(out[0].shape[0] if out[0].numel() else 0):
        own = maps[0][item], maps[1][item], maps[2][item]
        found = _backward([g[item] for g in grads], own, eps)
        for x, to in zip(found, out, strict=True):
            to[item] = x.mT


def _backward(grads: list[Tensor], maps: Three, eps: float) -> list[Tensor]:
    """Gradients (N, C) of the maps (C, N) of one item."""
    streams, fused = _rows(*maps[:2]), maps[2]
    *g_streams, g_fused = _rows(*grads)
    sums = [torch.zeros_like(g_fused) for _ in maps]
    positive = _no_negative(maps)
    _keep_freed_memory(fused, fused.shape[1], 6)
    for own, other in _tiles(fused.shape[1]):
        keys, total = fused[:, other].mT, None
        shared = product(g_fused[own], keys)
        for rows, g_rows, to in zip(streams, g_streams, sums[:2], strict=True):
            like = moment_(product(rows[own], keys), eps, positive)
            grad = product(g_rows[own], rows[other]).add_(shared)
            by_moment_(grad, like, positive)
            # A moment has half of one over itself as its slope.
            to[own].add_(product(grad, keys.mT), alpha=0.5)
            sums[2][other].add_(gram(grad, rows[own]), alpha=0.5)
            to[other] += gram(like, g_rows[own])
            total = like if total is None else total.add_(like)
        assert total is not None  # there are two streams
        sums[2][other] += gram(total, g_fused[own])
    return sums
