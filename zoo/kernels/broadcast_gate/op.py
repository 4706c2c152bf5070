"""The operators of the resample, and the choice of its form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.kernels._dispatch import choice
from zoo.kernels._ragged import full_precision, statistics_dtype
from zoo.kernels.broadcast_gate import reference, torch_path


@torch.library.custom_op("zoo::legacy_resize", mutates_args=())
def _resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize (B, C, height, width) of x on the grid of TensorFlow 1."""
    return reference.legacy_resize(x, (height, width)).contiguous()


@_resize.register_fake
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], height, width)


@torch.library.custom_op("zoo::legacy_resize_backward", mutates_args=())
def _resize_backward(grad: Tensor, height: int, width: int) -> Tensor:
    """Gradient (B, C, height, width) of the resized tensor."""
    return torch_path.resize_backward(grad, height, width).contiguous()


@_resize_backward.register_fake
def _(grad: Tensor, height: int, width: int) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[1], height, width)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _gradient(ctx: Any, grad: Tensor) -> Any:
    return _resize_backward(grad, *ctx.size), None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


def _gradient_backward(ctx: Any, grad: Tensor) -> Any:
    # The resize is linear, so the gradient of its transpose is the resize again.
    return _resize(grad, *ctx.size), None, None


_resize.register_autograd(_gradient, setup_context=_setup)
_resize_backward.register_autograd(_gradient_backward, setup_context=_setup_backward)


def legacy_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize on the grid of TensorFlow 1; forward and backward add in a fixed order.

    Args:
        x: (B, C, H, W), floating point; resized in float32 (float64 for float64).
        size: Output (height, width).

    Returns:
        (B, C, *size) in the dtype of `x`.

    Raises:
        ValueError: `x` is no map, or a size is below 1.
    """
    if x.dim() != 4 or min(*size, *x.shape[2:]) < 1:
        msg = (
            f"legacy resize: (B, C, H, W) and a size above 0 expected, got {tuple(x.shape)}, {size}"
        )
        raise ValueError(msg)
    with full_precision(x):
        wide = x.to(statistics_dtype(x))
        if tuple(x.shape[2:]) == tuple(size):
            return x
        if choice() == "reference":
            return reference.legacy_resize(wide, size).to(x.dtype)
        found: Tensor = _resize(wide, *size)
        return found.to(x.dtype)
