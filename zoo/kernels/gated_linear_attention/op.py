"""The operators behind gated linear attention: registration, gradients and the choice of path.

Within autocast the tokens are lowered to its dtype; the feature map, the sums over tokens, the
quotient and the convolution with its few weights stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.kernels._dispatch import choice, path_for
from zoo.kernels._ragged import full_precision, lowered, statistics_dtype
from zoo.kernels.gated_linear_attention import reference, torch_path
from zoo.kernels.gated_linear_attention.torch_path import Tokens

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor lepe, Tensor? lepe_bias, "
    "SymInt height, SymInt width, SymInt heads"
)


def _tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    lepe: Tensor,
    lepe_bias: Tensor | None,
    height: int,
    width: int,
    heads: int,
) -> Tokens:
    """The inputs in the dtype that the torch path computes with."""
    precise = statistics_dtype(v)

    def wide(x: Tensor | None) -> Any:
        return None if x is None else x.to(precise)

    tokens = _given(
        wide(q), wide(k), wide(v), wide(gate), wide(lepe), wide(lepe_bias), height, width, heads
    )
    return tokens._replace(v=tokens.v.contiguous())


def _given(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    lepe: Tensor,
    lepe_bias: Tensor | None,
    height: int,
    width: int,
    heads: int,
) -> Tokens:
    """The inputs as they came; the kernels widen what they load."""
    return Tokens(q, k, v, gate, lepe, lepe_bias, (height, width), heads)


def _on_triton(v: Tensor, heads: int) -> bool:
    """Whether the kernels run on such tokens; they are asked only where they may run."""
    if not v.is_cuda and choice() != "triton":
        return False
    try:
        from zoo.kernels.gated_linear_attention import triton_path
    except ImportError:
        return path_for(v, False, "Triton cannot be imported") == "triton"
    why_not = triton_path.supports(v, heads)
    return path_for(v, not why_not, why_not) == "triton"


def _outputs(v: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised result, state and mean; the kernels keep both of these in one tensor."""
    batch, _, channels = v.shape
    precise, size = statistics_dtype(v), channels // heads
    kept: tuple[int, ...] = (batch, heads, size, size)
    if _on_triton(v, heads):
        from zoo.kernels.gated_linear_attention import triton_path

        kept = (batch, -(-channels // triton_path.BLOCK), triton_path.ROWS, triton_path.BLOCK)
        return v.new_empty(v.shape), v.new_empty(kept, dtype=precise), v.new_empty((0, 0))
    return (
        v.new_empty(v.shape),
        v.new_empty(kept, dtype=precise),
        v.new_empty((batch, channels), dtype=precise),
    )


@torch.library.custom_op(
    "zoo::gated_linear_attention",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _attend(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, N, C), state (B, H, d, d) and mean (B, C) for the backward pass."""
    v = inputs[2]
    if _on_triton(v, inputs[8]):
        from zoo.kernels.gated_linear_attention import triton_path

        out, sums = triton_path.forward(_given(*inputs))
        return out, sums, v.new_empty((0, 0))
    with full_precision(v):
        out, state, mean = torch_path.forward(_tokens(*inputs))
    return out.to(v.dtype).contiguous(), state, mean


@_attend.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(inputs[2], inputs[8])


@torch.library.custom_op(
    "zoo::gated_linear_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor state, Tensor mean) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attend_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of the six tensor inputs; empty for those that are None."""
    inputs, (state, mean) = rest[:9], rest[9:]
    if _on_triton(inputs[2], inputs[8]):
        from zoo.kernels.gated_linear_attention import triton_path

        found = triton_path.backward(grad, _given(*inputs), state)
    else:
        with full_precision(inputs[2]):
            tokens = _tokens(*inputs)
            found = torch_path.backward(grad.to(state.dtype).contiguous(), tokens, state, mean)
    return tuple(
        grad.new_empty(0) if g is None or of is None else _own(g, of)
        for g, of in zip(found, inputs[:6], strict=True)
    )


def _own(grad: Tensor, of: Tensor) -> Tensor:
    """The gradient in the dtype of its input, contiguous, sharing no memory with another one."""
    if grad.untyped_storage().nbytes() > grad.nbytes:
        return of.new_empty(of.shape).copy_(grad)
    return grad.to(of.dtype).contiguous()


@_attend_backward.register_fake
def _(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(
        grad.new_empty(0)
        if of is None
        else torch.empty_like(of, memory_format=torch.contiguous_format)
        for of in rest[:6]
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, state, mean = output
    ctx.mark_non_differentiable(state, mean)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], state, mean)
    ctx.sizes = inputs[6:]


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
    if grad is None:
        return (None,) * 9
    saved = ctx.saved_tensors
    found = _attend_backward(grad, *saved[:6], *ctx.sizes, *saved[6:])
    wanted = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:6], strict=True)]
    return *wanted, None, None, None


def _no_second(ctx: Any, *_: Any) -> Any:
    msg = (
        "gated linear attention has no second derivative; set ZOO_KERNELS=reference to "
        "differentiate twice"
    )
    raise RuntimeError(msg)


_attend.register_autograd(_gradient, setup_context=_setup)
_attend_backward.register_autograd(_no_second)


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    lepe_weight: Tensor,
    lepe_bias: Tensor | None,
    grid: tuple[int, int],
    heads: int,
) -> Tensor:
    """Linear attention with rotary embedding, local convolution and gate; see the definition.

    Args:
        q: (B, N, C) queries before the feature map.
        k: (B, N, C) keys before it.
        v: (B, N, C) values.
        gate: (B, N, C) before SiLU, or None: no gate.
        lepe_weight: (C, 1, 3, 3).
        lepe_bias: (C,) or None.
        grid: Rows and columns; their product is N.
        heads: H.

    Returns:
        (B, N, C) in the dtype of the values (of autocast within it).

    Raises:
        ValueError: Shapes do not fit.
    """
    reference.check(q, k, v, gate, grid, heads)
    q, k, v = lowered(q), lowered(k), lowered(v)
    gate = None if gate is None else lowered(gate)
    if choice() == "reference":
        return reference.gated_linear_attention(q, k, v, gate, lepe_weight, lepe_bias, grid, heads)
    out: Tensor = _attend(q, k, v, gate, lepe_weight, lepe_bias, *grid, heads)[0]
    return out
