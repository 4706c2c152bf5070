"""Operations that keep less for the backward pass and give the same numbers.

Autograd keeps both sides of every batch normalisation and rectifier, although one follows from the
other by a multiplication and an addition a value. The operations here keep one side and make the
other again when a gradient asks for it. Nothing is approximated, and no parameter lives here, so
a state dict does not depend on which form ran.

While a graph is traced (`torch.export`, `torch.compile`) or `ZOO_KERNELS=reference` asks for plain
operators, the same functions are written out in them.

Letters: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.batch_norm import Normalised, normalise
from zoo.domains.medical.recomputing import Gradients, convolution_backward, may_recompute

aten: Any = torch.ops.aten


def dilation(x: Tensor, weight: Tensor) -> int:
    """The dilation to name: of a 1 x 1 kernel it means nothing, but it chooses the library.

    On one CPU thread PyTorch sends undilated 1 x 1 convolutions to a general matrix product and
    all others to oneDNN, which is up to twice as fast here.

    The rule of `zoo.kernels.products` asks for 192 rows and an AMD processor. This one does not:
    maps of 12 x 12 gain as well (1.75 times on a thread of an EPYC), and the library decides the
    last bits, which a training that is resumed should find again.
    """
    return 2 if x.device.type == "cpu" and weight.shape[2:].numel() == 1 else 1


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Convolution of stride 1, differentiable.

    Args:
        x: (B, C, H, W).
        weight: (C', C, h, w).
        bias: (C') or None.
        padding: Zeros on both sides of each axis.
    """
    step = dilation(x, weight) if may_recompute(x) else 1
    return functional.conv2d(x, weight, bias, 1, padding, step)


def convolve_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    padding: tuple[int, int] = (0, 0),
    stride: int = 1,
) -> Gradients:
    """Gradients of input, weight and bias of a convolution, those that are wanted."""
    return convolution_backward(
        grad, x, weight, wanted, padding=padding, stride=stride, dilation=dilation(x, weight)
    )


# -- batch normalisation ------------------------------------------------------------------------


def _rectified(grad: Tensor, out: Tensor) -> Tensor:
    """The gradient in front of a rectifier, written over that behind it."""
    made: Tensor = aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)
    return made


class _NormReluConv(torch.autograd.Function):
    """conv(relu(norm(z))), keeping z alone."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        padding: tuple[int, int],
    ) -> Tensor:
        y, mean, spread = normalise(z, norm)
        ctx.save_for_backward(z, gamma, beta, weight, mean, spread)
        ctx.norm, ctx.padding = Normalised(norm), padding
        return convolve(y.relu_(), weight.to(z.dtype), bias.to(z.dtype), padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, gamma, beta, weight, mean, spread = ctx.saved_tensors
        need_z, need_gamma, need_beta, need_weight, need_bias = ctx.needs_input_grad[:5]
        before = need_z or need_gamma or need_beta
        y = ctx.norm.again(z, gamma, beta, mean, spread).relu_()
        dy, dw, db = convolve_backward(
            grad, y, weight.to(z.dtype), (before, need_weight, need_bias), ctx.padding
        )
        dz = dgamma = dbeta = None
        if dy is not None:
            dy = _rectified(dy, y)
            wanted = (need_z, need_gamma, need_beta)
            dz, dgamma, dbeta = ctx.norm.backward(dy, z, gamma, mean, spread, wanted)
        dw = None if dw is None else dw.to(weight.dtype)
        return dz, dgamma, dbeta, dw, None if db is None else db.to(weight.dtype), None, None


def norm_relu_conv(z: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    """conv(relu(norm(z))), keeping z alone for the backward pass.

    Args:
        z: (B, C, H, W).
        norm: Of C channels; its statistics move as in a call of it.
        conv: Of stride 1, with a bias.

    Returns:
        (B, C', H, W).

    Raises:
        ValueError: Batch statistics of a single value are asked for.
    """
    padding = (int(conv.padding[0]), int(conv.padding[1]))
    if not may_recompute(z):
        y = functional.relu(norm(z))
        return convolve(y, conv.weight, conv.bias, padding)
    made: Tensor = _NormReluConv.apply(
        z, norm.weight, norm.bias, conv.weight, conv.bias, norm, padding
    )
    return made


class _NormAddRelu(torch.autograd.Function):
    """relu(norm(z) + shortcut), keeping z and the result."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d
    ) -> Tensor:
        y, mean, spread = normalise(z, norm)
        y.add_(shortcut).relu_()
        ctx.save_for_backward(z, y, gamma, mean, spread)
        ctx.norm = Normalised(norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, y, gamma, mean, spread = ctx.saved_tensors
        grad = aten.threshold_backward(grad, y, 0)
        wanted = ctx.needs_input_grad[:3]
        dz, dgamma, dbeta = ctx.norm.backward(grad, z, gamma, mean, spread, wanted)
        return dz, dgamma, dbeta, grad if ctx.needs_input_grad[3] else None, None


def norm_add_relu(z: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor) -> Tensor:
    """relu(norm(z) + shortcut), keeping z and the result for the backward pass.

    Args:
        z: (B, C, H, W).
        norm: Of C channels; its statistics move as in a call of it.
        shortcut: (B, C, H, W).

    Raises:
        ValueError: Batch statistics of a single value are asked for.
    """
    if not may_recompute(z):
        return functional.relu(norm(z) + shortcut)
    made: Tensor = _NormAddRelu.apply(z, norm.weight, norm.bias, shortcut, norm)
    return made


# -- pooling ------------------------------------------------------------------------------------


def _pool(x: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = aten.max_pool2d_with_indices(x, [size, size], [stride, stride])
    return made


def _pool_backward(grad: Tensor, x: Tensor, size: int, stride: int) -> Tensor:
    """Gradient of x; where the largest values lie is found again."""
    _, index = _pool(x, size, stride)
    made: Tensor = aten.max_pool2d_with_indices_backward(
        grad, x, [size, size], [stride, stride], [0, 0], [1, 1], False, index
    )
    return made


class _MaxPool(torch.autograd.Function):
    """Max-pool that keeps its input and no 64-bit index a result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = size, stride
        return _pool(x, size, stride)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _pool_backward(grad, x, *ctx.window), None, None


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Max-pool without padding that keeps its input alone for the backward pass.

    Args:
        x: (B, C, H, W).
        size: Side of the window.
        stride: Between windows.
    """
    if not may_recompute(x):
        return functional.max_pool2d(x, size, stride)
    made: Tensor = _MaxPool.apply(x, size, stride)
    return made


class _NormReluPool(torch.autograd.Function):
    """pool(relu(norm(z))), keeping z alone."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        size: int,
        stride: int,
    ) -> Tensor:
        y, mean, spread = normalise(z, norm)
        ctx.save_for_backward(z, gamma, beta, mean, spread)
        ctx.norm, ctx.window = Normalised(norm), (size, stride)
        return _pool(y.relu_(), size, stride)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, gamma, beta, mean, spread = ctx.saved_tensors
        y = ctx.norm.again(z, gamma, beta, mean, spread).relu_()
        dy = _rectified(_pool_backward(grad, y, *ctx.window), y)
        wanted = ctx.needs_input_grad[:3]
        return *ctx.norm.backward(dy, z, gamma, mean, spread, wanted), None, None, None


def norm_relu_pool(z: Tensor, norm: nn.BatchNorm2d, size: int, stride: int) -> Tensor:
    """Max-pool of relu(norm(z)) without padding, keeping z alone for the backward pass.

    Args:
        z: (B, C, H, W).
        norm: Of C channels; its statistics move as in a call of it.
        size: Side of the window.
        stride: Between windows.

    Raises:
        ValueError: Batch statistics of a single value are asked for.
    """
    if not may_recompute(z):
        return functional.max_pool2d(functional.relu(norm(z)), size, stride)
    made: Tensor = _NormReluPool.apply(z, norm.weight, norm.bias, norm, size, stride)
    return made
