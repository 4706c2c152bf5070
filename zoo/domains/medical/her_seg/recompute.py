"""Operations that keep less for the backward pass and give the same numbers.

Autograd keeps both sides of every batch normalisation and GELU, although one follows from the
other at the price of a pass over memory. The operations here keep one side and make the other
again when a gradient asks for it. Nothing is approximated, and no parameter lives here, so a state
dict does not depend on which form ran.

While a graph is traced (`torch.export`, `torch.compile`) or `ZOO_KERNELS=reference` asks for plain
operators, the same functions are written out in them.

Letters: B images, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.batch_norm import Normalised, normalise
from zoo.domains.medical.recomputing import convolution_backward, may_recompute
from zoo.kernels.products import dilation, gram, product

aten: Any = torch.ops.aten


LARGE = 2**16
"""Numbers in a tensor from which on keeping less pays; below, its steps cost more than the work."""


def is_small(x: Tensor) -> bool:
    """Whether a tensor is so small that plain operators are fastest.

    A traced graph serves tensors of any size, so there none is.
    """
    return not torch.compiler.is_compiling() and x.numel() < LARGE


def recomputes(x: Tensor) -> bool:
    """Whether the operations here run in their own form on this tensor."""
    return may_recompute(x) and not is_small(x)


def as_given(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast changes no dtype."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


# -- batch normalisation ------------------------------------------------------------------------


def _convolve(x: Tensor, weight: Tensor, padding: int, groups: int) -> Tensor:
    """Convolution of stride 1 without bias; one of 1 x 1 is a product over the channels."""
    step = dilation(x, weight.shape[2:].numel())
    return functional.conv2d(x, weight.to(x.dtype), None, 1, padding, step, groups)


def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight."""
    step = dilation(x, weight.shape[2:].numel())
    dx, dw, _ = convolution_backward(
        grad,
        x,
        weight.to(x.dtype),
        (*wanted, False),
        padding=(padding, padding),
        dilation=step,
        groups=groups,
    )
    return dx, _like(dw, weight)


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution of stride 1 without bias, by the faster library.

    Args:
        x: (B, C, h, w).
        conv: C -> C'.
    """
    if not recomputes(x):
        made: Tensor = conv(x)
        return made
    step = dilation(x, conv.weight.shape[2:].numel())
    return functional.conv2d(x, conv.weight, None, 1, conv.padding, step, conv.groups)


class _NormGeluConv(torch.autograd.Function):
    """conv(gelu(norm(z))), keeping z alone."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        norm: nn.BatchNorm2d,
        padding: int,
        groups: int,
    ) -> Tensor:
        with as_given(z):
            y, mean, spread = normalise(z, norm)
            ctx.save_for_backward(z, gamma, beta, weight, mean, spread)
            ctx.norm, ctx.padding, ctx.groups = Normalised(norm), padding, groups
            return _convolve(functional.gelu(y), weight, padding, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, gamma, beta, weight, mean, spread = ctx.saved_tensors
        need = ctx.needs_input_grad
        with as_given(z):
            y = ctx.norm.again(z, gamma, beta, mean, spread)
            x = functional.gelu(y)
            before = any(need[:3])
            dx, dw = _convolve_backward(grad, x, weight, ctx.padding, ctx.groups, (before, need[3]))
            dz = dgamma = dbeta = None
            if dx is not None:
                dy = aten.gelu_backward(dx, y)
                dz, dgamma, dbeta = ctx.norm.backward(dy, z, gamma, mean, spread, need[:3])
        return dz, dgamma, dbeta, dw, None, None, None


def norm_gelu_conv(z: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    """conv(gelu(norm(z))), keeping z alone for the backward pass.

    Args:
        z: (B, C, h, w).
        norm: Of C channels; its statistics move as in a call of it.
        conv: Of stride 1, without bias.

    Returns:
        (B, C', h, w).

    Raises:
        ValueError: Batch statistics of a single value are asked for.
    """
    if not recomputes(z):
        made: Tensor = conv(functional.gelu(norm(z)))
        return made
    padding, groups = int(conv.padding[0]), conv.groups
    made = _NormGeluConv.apply(z, norm.weight, norm.bias, conv.weight, norm, padding, groups)
    return made


class _NormAddGelu(torch.autograd.Function):
    """gelu(norm(z) + shortcut), keeping z and the shortcut, which its own makers keep too."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor, shortcut: Tensor, norm: nn.BatchNorm2d
    ) -> Tensor:
        with as_given(z):
            y, mean, spread = normalise(z, norm)
            ctx.save_for_backward(z, gamma, beta, shortcut, mean, spread)
            ctx.norm = Normalised(norm)
            return functional.gelu(y + shortcut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, gamma, beta, shortcut, mean, spread = ctx.saved_tensors
        need = ctx.needs_input_grad
        with as_given(z):
            y = ctx.norm.again(z, gamma, beta, mean, spread) + shortcut
            dy = aten.gelu_backward(grad, y)
            inner = dy.to(z.dtype)
            dz, dgamma, dbeta = ctx.norm.backward(inner, z, gamma, mean, spread, need[:3])
        return dz, dgamma, dbeta, dy.to(shortcut.dtype) if need[3] else None, None


def norm_add_gelu(z: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor) -> Tensor:
    """gelu(norm(z) + shortcut), keeping z and the shortcut for the backward pass.

    Args:
        z: (B, C, h, w).
        norm: Of C channels; its statistics move as in a call of it.
        shortcut: (B, C, h, w).

    Raises:
        ValueError: Batch statistics of a single value are asked for.
    """
    if not recomputes(z):
        return functional.gelu(norm(z) + shortcut)
    made: Tensor = _NormAddGelu.apply(z, norm.weight, norm.bias, shortcut, norm)
    return made


# -- token blocks -------------------------------------------------------------------------------


class Activation(NamedTuple):
    """An activation and its gradient, (gradient of the result, input) -> gradient of the input."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


class _ActLinear(torch.autograd.Function):
    """linear(act(x)), keeping x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, act: Activation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.act, ctx.dtype = act, bias.dtype
        with as_given(x):
            return product(act.forward(x), weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = dw = db = None
        with as_given(x):
            if need_weight:
                dw = _like(gram(grad, ctx.act.forward(x)), weight)
            if need_bias:
                db = grad.flatten(0, -2).sum(dim=0).to(ctx.dtype)
            if need_x:
                dx = ctx.act.backward(product(grad, weight.to(x.dtype).mT), x)
        return dx, dw, db, None


GELU = Activation(functional.gelu, aten.gelu_backward)
SILU = Activation(functional.silu, aten.silu_backward)


def act_linear(x: Tensor, linear: nn.Linear, act: Activation) -> Tensor:
    """linear(act(x)), keeping x alone for the backward pass.

    Args:
        x: (..., I).
        linear: I -> O, with a bias.
        act: `GELU` (exact) or `SILU`.

    Returns:
        (..., O).
    """
    if not recomputes(x):
        made: Tensor = linear(act.forward(x))
        return made
    made = _ActLinear.apply(x, linear.weight, linear.bias, act)
    return made


class _NormLinears(torch.autograd.Function):
    """Several linear layers of one LayerNorm(x), keeping x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        dtype: torch.dtype,
        *layers: Tensor,
    ) -> tuple[Tensor, ...]:
        with as_given(x):
            u, mean, inverse = aten.native_layer_norm(x, list(gamma.shape), gamma, beta, eps)
            u = u.to(dtype)
            ctx.save_for_backward(x, gamma, beta, mean, inverse, *layers)
            ctx.dtype = dtype
            pairs = zip(layers[::2], layers[1::2], strict=True)
            return tuple(product(u, w.to(dtype), b.to(dtype)) for w, b in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, gamma, beta, mean, inverse, *layers = ctx.saved_tensors
        need = ctx.needs_input_grad
        with as_given(x):
            u = ((x - mean) * inverse).mul_(gamma).add_(beta).to(ctx.dtype)
            found: list[Tensor | None] = []
            du = torch.zeros_like(u)
            for i, (grad, weight) in enumerate(zip(grads, layers[::2], strict=True)):
                du += product(grad, weight.to(ctx.dtype).mT)
                found.append(_like(gram(grad, u), weight) if need[5 + 2 * i] else None)
                found.append(_like(grad.flatten(0, -2).sum(dim=0), layers[2 * i + 1]))
            shape = list(gamma.shape)
            dx, dgamma, dbeta = aten.native_layer_norm_backward(
                du.to(x.dtype), x, shape, mean, inverse, gamma, beta, [True, True, True]
            )
        return dx, dgamma, dbeta, None, None, *found


def norm_linears(x: Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Each layer of norm(x), keeping x alone for the backward pass.

    Args:
        x: (..., I).
        norm: Over I.
        layers: I -> O each, with biases.

    Returns:
        One (..., O) a layer.
    """
    if not recomputes(x):
        u = norm(x)
        return tuple(layer(u) for layer in layers)
    kind = x.device.type
    low = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if low else x.dtype
    given = [part for layer in layers for part in (layer.weight, layer.bias)]
    made: tuple[Tensor, ...] = _NormLinears.apply(
        x, norm.weight, norm.bias, norm.eps, dtype, *given
    )
    return made
