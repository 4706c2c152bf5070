"""Floating point work of the operators here, for `torch.utils.flop_counter`.

Import this module, and `FlopCounterMode` counts them. It is not imported by `zoo.kernels`, because
the counter of PyTorch imports Triton.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import zoo.kernels  # noqa: F401 (registers the operators)


def _row_flops(x: Any, value: Any, score: Any, logits: Any, reduction: Any) -> tuple[int, int, int]:
    """Multiply-add work, counted twice: reduction, wide products, products with K."""
    rows, width = x if reduction is None else (x[0], reduction[0])
    branches = logits[1] if score is None else score[0]
    attention = 0 if value is None else value[0]
    reduced = 0 if reduction is None else 2 * rows * x[1] * width
    return reduced, 4 * rows * width * attention, 2 * rows * branches * (attention + width)


@register_flop_formula(torch.ops.zoo.scored_pool)
def _flops(
    x: Any,
    value: Any,
    value_bias: Any,
    gate: Any,
    gate_bias: Any,
    score: Any,
    score_bias: Any,
    logits: Any,
    reduction: Any,
    *rest: Any,
    **more: Any,
) -> int:
    """Work of the forward operator, from shapes."""
    return sum(_row_flops(x, value, score, logits, reduction))


@register_flop_formula(torch.ops.zoo.scored_pool_backward)
def _backward_flops(
    d_pooled: Any,
    d_logits: Any,
    x: Any,
    value: Any,
    value_bias: Any,
    gate: Any,
    gate_bias: Any,
    score: Any,
    score_bias: Any,
    logits: Any,
    reduction: Any,
    *rest: Any,
    **more: Any,
) -> int:
    """Work of the backward operator with all gradients: gates again, then two products each."""
    reduced, wide, small = _row_flops(x, value, score, logits, reduction)
    return reduced + 3 * wide + 3 * small


@register_flop_formula(torch.ops.zoo.moment_products)
def _moment_flops(rgb: Any, depth: Any, fused: Any, *rest: Any, **more: Any) -> int:
    """Two products of channels (N x C x N) and three of positions (C x N x N)."""
    batch, channels, positions = fused
    return int(5 * 2 * batch * channels * positions**2)


@register_flop_formula(torch.ops.zoo.moment_products_backward)
def _moment_backward_flops(
    g_rgb: Any,
    g_depth: Any,
    g_fused: Any,
    rgb: Any,
    depth: Any,
    fused: Any,
    *rest: Any,
    **more: Any,
) -> int:
    """The two products of channels again, three of gradients, seven of positions."""
    batch, channels, positions = fused
    return int(12 * 2 * batch * channels * positions**2)


def _attention_flops(v: Any, lepe: Any, heads: int) -> tuple[int, int]:
    """One product of tokens with the state of their head, and the convolution 3 x 3."""
    batch, tokens, channels = v
    return 2 * batch * tokens * channels * (channels // heads), 2 * batch * tokens * math.prod(lepe)


@register_flop_formula(torch.ops.zoo.gated_linear_attention)
def _gated_linear_flops(
    q: Any,
    k: Any,
    v: Any,
    gate: Any,
    lepe: Any,
    lepe_bias: Any,
    height: int,
    width: int,
    heads: int,
    *rest: Any,
    **more: Any,
) -> int:
    """Two products, the state and what queries read of it, and the convolution."""
    product, local = _attention_flops(v, lepe, heads)
    return 2 * product + local


@register_flop_formula(torch.ops.zoo.gated_linear_attention_backward)
def _gated_linear_backward_flops(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    gate: Any,
    lepe: Any,
    lepe_bias: Any,
    height: int,
    width: int,
    heads: int,
    *rest: Any,
    **more: Any,
) -> int:
    """Five products, both gradients of the convolution, and with a gate the convolution again."""
    product, local = _attention_flops(v, lepe, heads)
    return 5 * product + (2 if gate is None else 3) * local


def _linear_flops(x: Any, weight: Any, *rest: Any, **more: Any) -> int:
    """A linear layer by oneDNN, an operator of PyTorch's that its counter does not know."""
    return int(2 * math.prod(x) * weight[0])


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # not in every build
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_flops)


@register_flop_formula(torch.ops.zoo.query_pool)
def _query_flops(x: Any, vectors: Any, *rest: Any, **more: Any) -> int:
    """Two products of tokens with absorbed queries: scores and sums."""
    return int(4 * x[0] * x[1] * vectors[1])


@register_flop_formula(torch.ops.zoo.query_pool_backward)
def _query_backward_flops(
    d_pooled: Any, d_logits: Any, x: Any, vectors: Any, *rest: Any, **more: Any
) -> int:
    """Five such products with all gradients: scores again, through the sums, queries, tokens."""
    return int(10 * x[0] * x[1] * vectors[1])
