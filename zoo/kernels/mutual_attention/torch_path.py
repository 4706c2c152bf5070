"""Moment-normalised mutual attention over chunks of columns: no N x N tensor ever exists.

There is no softmax, so chunks need no running statistics. With A = P^T R and S = m(A), and the
same for D, the gradients g of the three products give, by recomputation of A chunk by chunk,

    dA = m'(A) * (R^T g_R + P^T g_P)           (alike dB with D)
    dP = R dA^T + D dB^T + g_P (m(A) + m(B))^T
    dR = P dA + g_R m(A)^T                     (alike dD)

Buffers are transposed, (columns of R) x N, so that every row of them is contiguous. This form is
that of devices, for a whole batch at once; `cpu_path` is that of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.kernels._moment import by_moment_, moment_

_CHUNK = 1024


def _chunks(positions: int) -> Iterator[slice]:
    for first in range(0, positions, _CHUNK):
        yield slice(first, min(positions, first + _CHUNK))


def forward(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, out: tuple[Tensor, ...]) -> None:
    """Writes the three products of (B, C, N) maps to `out`, in their dtype."""
    if not fused.numel():
        return
    for chunk in _chunks(fused.shape[2]):
        total = None
        for stream, to in ((rgb, out[0]), (depth, out[1])):
            like = moment_(stream[:, :, chunk].mT @ fused, eps)
            to[:, :, chunk] = stream @ like.mT
            total = like if total is None else total.add_(like)
        assert total is not None  # there are two streams
        out[2][:, :, chunk] = fused @ total.mT


def backward(
    grads: tuple[Tensor, Tensor, Tensor],
    maps: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of rgb, depth and fused, all (B, C, N) in one dtype, to `out`."""
    if not out[0].numel():
        return
    fused, g_fused = maps[2], grads[2]
    for x in out:
        x.zero_()
    for chunk in _chunks(fused.shape[2]):
        shared = g_fused[:, :, chunk].mT @ fused
        total = torch.zeros_like(shared)
        for stream, g_stream, d_stream in zip(maps[:2], grads[:2], out[:2], strict=True):
            own = stream[:, :, chunk]
            like = moment_(own.mT @ fused, eps)
            total.add_(like)
            d_stream.baddbmm_(g_stream[:, :, chunk], like)
            grad = torch.baddbmm(shared, g_stream[:, :, chunk].mT, stream)
            by_moment_(grad, like)
            # A moment has half of one over itself as its slope.
            out[2].baddbmm_(own, grad, alpha=0.5)
            d_stream[:, :, chunk].add_(fused @ grad.mT, alpha=0.5)
        out[2].baddbmm_(g_fused[:, :, chunk], total)
