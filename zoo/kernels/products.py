"""Products of many float32 rows with a matrix, by the library that is fastest on the processor.

On a CPU PyTorch sends matrix products, linear layers and undilated 1 x 1 convolutions to MKL, and
all other convolutions to oneDNN. Intel's MKL leaves an AMD processor's AVX-512 half unused: one
thread of an EPYC did 107 GFLOP/s by it and 235 by oneDNN (2,704 x 768 x 2,304). A 1 x 1 kernel has
nothing to dilate, so naming a dilation chooses the library and changes nothing else. Both are
products in float32; they differ in the order of their sums.

Elsewhere, for few rows, and with `ZOO_KERNELS=torch` or `reference` the choice is PyTorch's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MANY = 192
"""Rows from which on oneDNN is faster; sums over rows need twice as many."""
LEAST = 1 << 22
"""Multiply-adds from which on it is; below, a call costs more than the product."""

_PROCESSOR = Path("/proc/cpuinfo")
_onednn_there: Callable[[], bool] = torch.backends.mkldnn.is_available
aten: Any = torch.ops.aten


def _said(*keys: str) -> set[str]:
    """Words after the first of the keys that the system's page on the processor has."""
    try:
        with _PROCESSOR.open() as lines:
            line = next((line for line in lines if line.startswith(keys)), "")
    except OSError:
        return set()
    return set(line.split()[1:])


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and PyTorch was built with oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return "AuthenticAMD" in _said("vendor_id") and _onednn_there()


@cache
def bfloat16_is_native() -> bool:
    """Whether the processor multiplies matrices of bfloat16 itself, through oneDNN.

    One thread of an EPYC with AVX512_BF16 trains gated pooling 2 to 3 times as fast as in float32.
    In float16, for which it has no instructions, it took 20 times as long.
    """
    known = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
    return bool(known & _said("flags", "Features")) and _onednn_there()


def by_convolution(x: Tensor, rows: int, work: int | None = None) -> bool:
    """Whether a product of so many rows like `x` should go to oneDNN.

    Args:
        x: Any of the rows' tensors.
        rows: Their number.
        work: Multiply-adds of the product; None: so many rows are enough.
    """
    # A traced graph serves any processor and any number of rows: nothing may be asked about them.
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if rows < MANY or (work is not None and work < LEAST):
        return False
    chosen = os.environ.get("ZOO_KERNELS", "auto") in ("", "auto") and onednn_is_faster()
    # Autocast would lower a convolution's precision.
    cast = torch.is_autocast_enabled("cpu")
    return chosen and not cast and bool(torch.backends.mkldnn.enabled)


def dilation(x: Tensor, kernel: int) -> int:
    """The dilation of a convolution of (B, C, h, w) whose square kernel has `kernel` cells."""
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    return 2 if kernel == 1 and by_convolution(x, rows) else 1


def _line(rows: Tensor) -> Tensor:
    """(..., C) as the maps of one image of one row, channels last."""
    return rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b of (..., I) and (O, I)."""
    kernel = weight.contiguous().view(*weight.shape, 1, 1)
    made = functional.conv2d(_line(x), kernel, bias, dilation=2)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b.

    Args:
        x: (..., I).
        weight: (O, I), of the same dtype.
        bias: (O) or None.

    Returns:
        (..., O). Its gradients are those that PyTorch gives; `linear` has faster ones.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if by_convolution(x, rows, x.numel() * weight.shape[0]):
        return _by_onednn(x, weight, bias)
    return functional.linear(x, weight, bias)


def gram(g: Tensor, x: Tensor) -> Tensor:
    """g^T x, summed over all rows: the gradient of a weight.

    Args:
        g: (..., O).
        x: (..., I), the same rows.

    Returns:
        (O, I).
    """
    outputs, inputs = g.shape[-1], x.shape[-1]
    g, x = g.flatten(0, -2), x.flatten(0, -2)
    if not by_convolution(x, x.shape[0] // 2, x.numel() * outputs):
        return g.mT @ x
    if inputs > outputs:
        return _sum_by_onednn(x, g).mT  # it is faster with the longer rows as its outputs
    return _sum_by_onednn(g, x)


def _sum_by_onednn(g: Tensor, x: Tensor) -> Tensor:
    """g^T x of (N, O) and (N, I): the gradient of a convolution's weight."""
    shape = x.new_empty(g.shape[1], x.shape[1], 1, 1)  # of which nothing else is looked at
    none, step, edge = [0, 0], [1, 1], [2, 2]
    _, made, _ = aten.convolution_backward(
        _line(g), _line(x), shape, None, step, none, edge, False, none, 1, [False, True, False]
    )
    weight: Tensor = made.view(shape.shape[:2])
    return weight


class _Linear(torch.autograd.Function):
    """A linear layer whose three products are those of this module, twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad = grad.contiguous()  # the gradient of a sum is one number with strides of 0
        return (
            product(grad, weight.mT) if need_x else None,
            gram(grad, x) if need_weight else None,
            grad.flatten(0, -2).sum(dim=0) if need_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, forward and backward by the faster library.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O) or None.

    Returns:
        (..., O).
    """
    rows = x.numel() // max(1, x.shape[-1])
    if weight.dtype != x.dtype or not by_convolution(x, rows, x.numel() * weight.shape[0]):
        return functional.linear(x, weight, bias)
    made: Tensor = _Linear.apply(x, weight, bias)
    return made


class Dense(nn.Linear):
    """PyTorch's linear layer, whose products go to the faster library."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias)
