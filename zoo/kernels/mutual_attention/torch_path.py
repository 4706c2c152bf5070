"""Moment-normalised mutual attention over chunks of columns: no N x N tensor ever exists.

There is no softmax, so chunks need no running statistics. With A = P^T R and S = m(A), and the
same for D, the gradients g of the three products give, by recomputation of A chunk by chunk,

    dA = m'(A) * (R^T g_R + P^T g_P)           (alike dB with D)
    dP = R dA^T + D dB^T + g_P (m(A) + m(B))^T
    dR = P dA + g_R m(A)^T                     (alike dD)

Buffers are transposed, (columns of R) x N, so that every row of them is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_CPU = 128  # a buffer of 128 rows of 4096 floats stays in the cache between the steps
_CHUNK_DEVICE = 1024


def _chunks(positions: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, positions, size):
        yield first, min(positions, first + size)


class _Scratch:
    """Buffers (B, chunk, N) that are used again in every chunk."""

    def __init__(self, like: Tensor, size: int, count: int) -> None:
        batch, _, positions = like.shape
        self.size = min(size, positions)
        self.buffers = [like.new_empty(batch, self.size, positions) for _ in range(count)]

    def take(self, rows: int) -> list[Tensor]:
        return [buffer[:, :rows] for buffer in self.buffers]


def _moment_(x: Tensor, spare: Tensor, eps: float, positive: bool) -> None:
    """Signed square root in place; `positive` promises that no entry is negative."""
    if positive and bool(x.amin() > 0):
        x.add_(eps).sqrt_()
        return
    torch.abs(x, out=spare)
    spare.add_(eps).sqrt_()
    x.sign_().mul_(spare)


def _through_moment_(grad: Tensor, moment: Tensor, spare: Tensor) -> None:
    """Multiplies by m'(x) = 0.5 / |m(x)|, or 0 where m(x) is 0."""
    torch.abs(moment, out=spare)
    if grad.device.type == "cpu" and bool(spare.amin() > 0):
        grad.div_(spare)
    else:
        grad.div_(spare).masked_fill_(spare == 0, 0.0)
    grad.mul_(0.5)


def _no_negative(*maps: Tensor) -> bool:
    """Whether similarities cannot be negative; on a GPU that is not asked, it would stall."""
    return all(x.device.type == "cpu" and bool(x.amin() >= 0) for x in maps)


def forward(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, out: tuple[Tensor, ...]) -> None:
    """Writes the three products of (B, C, N) maps to `out`, in their dtype."""
    if not fused.numel():
        return
    if fused.device.type != "cpu":
        _forward(rgb, depth, fused, eps, out, _CHUNK_DEVICE)
        return
    for b in range(fused.shape[0]):
        item = slice(b, b + 1)
        own = tuple(x[item] for x in out)
        _forward(rgb[item], depth[item], fused[item], eps, own, _CHUNK_CPU)


def _forward(
    rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, out: tuple[Tensor, ...], size: int
) -> None:
    scratch = _Scratch(fused, size, 3)
    positive = _no_negative(rgb, depth, fused)
    for first, last in _chunks(fused.shape[2], scratch.size):
        like_rgb, like_depth, spare = scratch.take(last - first)
        columns = slice(first, last)
        for stream, like, to in ((rgb, like_rgb, out[0]), (depth, like_depth, out[1])):
            torch.bmm(stream[:, :, columns].mT, fused, out=like)
            _moment_(like, spare, eps, positive)
            to[:, :, columns] = torch.bmm(stream, like.mT)
        out[2][:, :, columns] = torch.bmm(fused, like_rgb.add_(like_depth).mT)


def backward(
    grads: tuple[Tensor, Tensor, Tensor],
    maps: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of rgb, depth and fused, all (B, C, N) in one dtype, to `out`."""
    if not out[0].numel():
        return
    if out[0].device.type != "cpu":
        _backward(grads, maps, eps, out, _CHUNK_DEVICE)
        return
    for b in range(out[0].shape[0]):

        def own(xs: tuple[Tensor, Tensor, Tensor], b: int = b) -> tuple[Tensor, Tensor, Tensor]:
            return xs[0][b : b + 1], xs[1][b : b + 1], xs[2][b : b + 1]

        _backward(own(grads), own(maps), eps, own(out), _CHUNK_CPU)


def _backward(
    grads: tuple[Tensor, Tensor, Tensor],
    maps: tuple[Tensor, Tensor, Tensor],
    eps: float,
    out: tuple[Tensor, Tensor, Tensor],
    size: int,
) -> None:
    fused, g_fused = maps[2], grads[2]
    for x in out:
        x.zero_()
    scratch = _Scratch(fused, size, 5)
    positive = _no_negative(*maps)
    for first, last in _chunks(fused.shape[2], scratch.size):
        shared, total, like, grad, spare = scratch.take(last - first)
        columns = slice(first, last)
        torch.bmm(g_fused[:, :, columns].mT, fused, out=shared)
        total.zero_()
        for stream, g_stream, d_stream in zip(maps[:2], grads[:2], out[:2], strict=True):
            own = stream[:, :, columns]
            torch.bmm(own.mT, fused, out=like)
            _moment_(like, spare, eps, positive)
            total.add_(like)
            d_stream.baddbmm_(g_stream[:, :, columns], like)
            torch.baddbmm(shared, g_stream[:, :, columns].mT, stream, out=grad)
            _through_moment_(grad, like, spare)
            out[2].baddbmm_(own, grad)
            d_stream[:, :, columns] += torch.bmm(fused, grad.mT)
        out[2].baddbmm_(g_fused[:, :, columns], total)
