"""Convolution, ReLU, dropout and pooling that keep almost nothing for the backward pass.

A rectifier and the maximum of four commute, so the rectifier runs on a quarter of the values. What
is positive after the maximum was neither rectified nor dropped; hence the place of the maximum,
one byte a result, is all that is kept besides the convolution's input and the result itself. The
convolution's output, by far the largest tensor of the Sentinel-2 network, is never stored.

Letters: B pictures, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield.chance import dropout, fuses, keep_mask

aten: Any = torch.ops.aten


def _convolution_backward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> Any:
    """Gradients of input, weight and bias of a 3 x 3 convolution with one zero around."""
    wanted = list(ctx.needs_input_grad[:3])
    return aten.convolution_backward(
        grad, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
    )


def _corners(y: Tensor) -> list[Tensor]:
    """The four values of every 2 x 2 window as planes (B, C, H // 2, W // 2)."""
    y = y[..., : y.shape[2] // 2 * 2, : y.shape[3] // 2 * 2]
    return [y[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]


class _ConvPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
        y = functional.conv2d(x, weight, bias, padding=1)
        scale = 1.0
        if p > 0:
            mask, scale = keep_mask(y, p)
            y.mul_(mask)
        a, b, c, d = _corners(y)
        upper, lower = torch.maximum(a, b), torch.maximum(c, d)
        beneath = lower > upper
        # Column where the larger row has it; then two bits tell which of the four it was.
        right = b > a
        right.logical_xor_(right.logical_xor(d > c).logical_and_(beneath))
        place = beneath.to(torch.uint8).mul_(2).add_(right)
        out = torch.maximum(upper, lower, out=upper).clamp_(min=0).mul_(scale)
        ctx.save_for_backward(x, weight, out, place)
        ctx.scale, ctx.shape = scale, y.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, out, place = ctx.saved_tensors
        grad = aten.threshold_backward(grad, out, 0)
        if ctx.scale != 1:
            grad = grad.mul_(ctx.scale)
        full = x.new_empty(ctx.shape).contiguous(memory_format=_layout(out))
        if ctx.shape[2] % 2:
            full[..., -1:, :] = 0
        if ctx.shape[3] % 2:
            full[..., -1:] = 0
        for number, corner in enumerate(_corners(full)):
            torch.mul(grad, place == number, out=corner)
        return *_convolution_backward(ctx, full, x, weight), None


def _layout(x: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def conv_relu_pool(x: Tensor, conv: nn.Conv2d, p: float, training: bool) -> Tensor:
    """max_pool(dropout(relu(conv(x))), 2).

    Args:
        x: (B, C, H, W).
        conv: 3 x 3, with one zero around and a bias.
        p: Share that is dropped before pooling, in training.
        training: Whether anything is dropped.

    Returns:
        (B, C', H // 2, W // 2).
    """
    p = p if training else 0.0
    if fuses(x) and conv.bias is not None:
        made: Tensor = _ConvPool.apply(x, conv.weight, conv.bias, p)
        return made
    return functional.max_pool2d(dropout(functional.relu(conv(x)), p, training), 2)


class _ConvMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
        y = functional.conv2d(x, weight, bias, padding=1).relu_()
        positive, scale = y > 0, 1.0
        if p > 0:
            mask, scale = keep_mask(y, p)
            y.mul_(mask)
            positive.logical_and_(mask)
        ctx.save_for_backward(x, weight, positive)
        ctx.scale = scale / (y.shape[2] * y.shape[3])
        return y.sum(dim=(2, 3)).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, positive = ctx.saved_tensors
        full = (grad * ctx.scale)[:, :, None, None] * positive
        return *_convolution_backward(ctx, full, x, weight), None


def conv_relu_mean(x: Tensor, conv: nn.Conv2d, p: float, training: bool) -> Tensor:
    """dropout(relu(conv(x))) averaged over the plane; see `conv_relu_pool`.

    Returns:
        (B, C').
    """
    p = p if training else 0.0
    if fuses(x) and conv.bias is not None:
        made: Tensor = _ConvMean.apply(x, conv.weight, conv.bias, p)
        return made
    return dropout(functional.relu(conv(x)), p, training).mean(dim=(2, 3))
