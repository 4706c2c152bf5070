"""Dropout that is quick on a CPU, and the question whether fused forms may run.

PyTorch draws one uniform number for each element it may drop, on one thread; in both networks that
is a fifth to a tenth of a training step. Here eight random bits (sixteen where the rate needs
them) decide an element. They come from PyTorch's global generator, which the engine seeds before
each step and activation checkpointing restores.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def fuses(x: Tensor) -> bool:
    """Whether hand-written forms run on this tensor.

    Not while a graph is traced (`torch.export`, `torch.compile`), under autocast, or where
    `ZOO_KERNELS=reference` asks for plain operators.
    """
    plain = os.environ.get("ZOO_KERNELS") == "reference" or torch.compiler.is_compiling()
    device = x.device.type
    return device in ("cpu", "cuda") and not plain and not torch.is_autocast_enabled(device)


def keep_mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """Which elements stay, and what they are multiplied by.

    Args:
        like: Gives shape, device and memory layout.
        p: Share that is dropped, in (0, 1); rounded to a multiple of 1/256 where it is one
            already, else of 1/65536.

    Returns:
        Booleans like `like`, and 1 / (share that stays).
    """
    mask = torch.empty_like(like, dtype=torch.bool)
    if like.device.type != "cpu":
        return mask.bernoulli_(1 - p), 1 / (1 - p)
    bits = 8 if (p * 256).is_integer() else 16
    levels = 1 << bits
    dropped = min(max(round(p * levels), 1), levels - 1)
    words = -(-like.numel() * bits // 64)
    # From the lowest number on, all 64 bits are random; the default range has 63.
    drawn = torch.empty(words, dtype=torch.int64).random_(-(2**63), None)
    # Signed numbers of all values: PyTorch compares few unsigned types.
    small = drawn.view(torch.uint8 if bits == 8 else torch.int16)[: like.numel()]
    least = dropped if bits == 8 else dropped - levels // 2
    flat = mask.permute(_memory_order(mask)).view(-1)
    torch.ge(small, least, out=flat)
    return mask, levels / (levels - dropped)


def _memory_order(x: Tensor) -> list[int]:
    """Axes from the widest stride to the narrowest; those of one element first."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda axis: (x.shape[axis] != 1, -strides[axis]))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = keep_mask(x, p)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Sets a share of elements to 0 and scales the others by 1 / (1 - p), in training only.

    Args:
        x: Any shape, float.
        p: Share that is dropped, in [0, 1).
        training: False returns `x`.
    """
    if not training or p == 0:
        return x
    if not fuses(x) or x.device.type != "cpu":
        return functional.dropout(x, p)
    made: Tensor = _Dropout.apply(x, p)
    return made


class _ReluDropout(torch.autograd.Function):
    """Keeps the result alone: what is positive there was rectified and dropped by neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = keep_mask(x, p)
        y = x.relu().mul_(mask).mul_(ctx.scale)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """dropout(relu(x)), keeping the result alone for the backward pass."""
    if not training or p == 0:
        return functional.relu(x)
    if not fuses(x):
        return functional.dropout(functional.relu(x), p)
    made: Tensor = _ReluDropout.apply(x, p)
    return made
