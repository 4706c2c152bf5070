"""A 3 x 3 convolution of an image enlarged twofold, without enlarging the image.

With K the kernel and u the nearest-neighbour enlargement of x, an output row reads three rows of
u, two of which are the same row of x. Written for one axis, output rows 2p - 1 and 2p share

    m[p] = k0 x[p - 1] + k2 x[p]        (p = 0 .. n, x[-1] = x[n] = 0)

and differ in the middle tap s[i] = k1 x[i] alone: y[2i + e] = m[i + e] + s[i]. Over two axes that
makes four small convolutions of x, one for each choice of corner, side and middle taps: 9
multiplications a channel pair for four outputs. The definition has 36, and four separate kernels
of summed taps, one a phase, have 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.medusa.recompute import convolve, convolve_backward
from zoo.domains.medical.recomputing import may_recompute

PARTS = (
    (slice(None, None, 2), slice(None, None, 2), (1, 1)),
    (slice(None, None, 2), slice(1, 2), (1, 0)),
    (slice(1, 2), slice(None, None, 2), (0, 1)),
    (slice(1, 2), slice(1, 2), (0, 0)),
)
"""Rows and columns of the kernel in each of the four convolutions, and their padding."""


def _parts(weight: Tensor) -> list[Tensor]:
    layout = torch.channels_last
    return [
        weight[:, :, rows, columns].contiguous(memory_format=layout) for rows, columns, _ in PARTS
    ]


def _interleave(outer: Tensor, inner: Tensor, axis: int) -> Tensor:
    """y[2i + e] = outer[i + e] + inner[i] along an axis.

    Args:
        outer: n + 1 entries along the axis.
        inner: n entries along it.
        axis: 2 or 3.

    Returns:
        2n entries along the axis, in the channels-last layout.
    """
    size = list(inner.shape)
    count, size[axis] = size[axis], 2 * size[axis]
    y = torch.empty(size, dtype=inner.dtype, device=inner.device, memory_format=torch.channels_last)
    for e in (0, 1):
        place = y[:, :, e::2] if axis == 2 else y[:, :, :, e::2]
        torch.add(outer.narrow(axis, e, count), inner, out=place)
    return y


def _collect(grad: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Gradients of `outer` and `inner` of `_interleave`."""
    size = list(grad.shape)
    count = size[axis] // 2
    even, odd = (grad[:, :, e::2] if axis == 2 else grad[:, :, :, e::2] for e in (0, 1))
    size[axis] = count + 1
    outer = torch.empty(
        size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )
    outer.narrow(axis, 0, 1).copy_(even.narrow(axis, 0, 1))
    outer.narrow(axis, count, 1).copy_(odd.narrow(axis, count - 1, 1))
    torch.add(
        even.narrow(axis, 1, count - 1),
        odd.narrow(axis, 0, count - 1),
        out=outer.narrow(axis, 1, count - 1),
    )
    return outer, even + odd


class _UpsampledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        corner, upright, level, middle = (
            convolve(x, part, bias if pads == (0, 0) else None, pads)
            for part, (_, _, pads) in zip(_parts(weight), PARTS, strict=True)
        )
        return _interleave(_interleave(corner, upright, 3), _interleave(level, middle, 3), 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grads = [part for rows in _collect(grad, 2) for part in _collect(rows, 3)]
        dx = None
        dweight = torch.empty_like(weight) if need_weight else None
        for part, own, (rows, columns, pads) in zip(
            _parts(weight.to(x.dtype)), grads, PARTS, strict=True
        ):
            wanted = (need_x, need_weight, False)
            more, dpart, _ = convolve_backward(own, x, part, wanted, pads)
            if more is not None:
                dx = more if dx is None else dx.add_(more)
            if dweight is not None and dpart is not None:
                dweight[:, :, rows, columns] = dpart
        return dx, dweight, grads[3].sum((0, 2, 3)).to(weight.dtype) if need_bias else None


def upsampled_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3 x 3 convolution with padding 1 of x enlarged twofold by its nearest neighbours.

    Args:
        x: (B, C, H, W).
        weight: (C', C, 3, 3).
        bias: (C').

    Returns:
        (B, C', 2H, 2W).

    Raises:
        ValueError: The kernel is not 3 x 3.
    """
    if tuple(weight.shape[2:]) != (3, 3):
        msg = f"upsampled convolution: the kernel should be 3 x 3, got {tuple(weight.shape)}"
        raise ValueError(msg)
    if not may_recompute(x):
        large = functional.interpolate(x, scale_factor=2, mode="nearest")
        return functional.conv2d(large, weight, bias, padding=1)
    made: Tensor = _UpsampledConv.apply(x, weight, bias)
    return made
