"""Definition of gated attention pooling in plain PyTorch.

Source: Ilse, Tomczak, Welling, "Attention-based deep multiple instance learning", equation 9,
with K score vectors instead of one (the branches of ACMIL, arXiv 2311.07125).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from zoo.kernels._ragged import Pooled, full_precision, mask_logits, softmax_pool, statistics_dtype


def gated_logits(
    x: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
) -> Tensor:
    """Attention logits of every instance: score(tanh(value(x)) * sigmoid(gate(x))).

    Args:
        x: (N, D) instances, floating point.
        value_weight: (A, D), followed by tanh.
        value_bias: (A,).
        gate_weight: (A, D), followed by the sigmoid.
        gate_bias: (A,).
        score_weight: (K, A), one row a branch.
        score_bias: (K,).

    Returns:
        (N, K) logits, float32 (float64 for float64 instances).

    Raises:
        ValueError: `x` is not a matrix of the width the weights expect.
    """
    if x.dim() != 2 or x.shape[1] != value_weight.shape[1]:
        msg = f"instances must be (N, {value_weight.shape[1]}), got {tuple(x.shape)}"
        raise ValueError(msg)
    precise = statistics_dtype(x)
    with full_precision(x):
        # The two wide products run in the dtype of the instances, all that follows in float32.
        value = functional.linear(x, value_weight.to(x.dtype), value_bias.to(x.dtype))
        gate = functional.linear(x, gate_weight.to(x.dtype), gate_bias.to(x.dtype))
        gated = value.to(precise).tanh() * gate.to(precise).sigmoid()
        return functional.linear(gated, score_weight.to(precise), score_bias.to(precise))


def gated_attention_pool(
    x: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
) -> Pooled:
    """`gated_logits` followed by `softmax_pool` of the instances themselves.

    Args:
        x: (N, D) instances of packed bags.
        value_weight: (A, D).
        value_bias: (A,).
        gate_weight: (A, D).
        gate_bias: (A,).
        score_weight: (K, A).
        score_bias: (K,).
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
        mask: (N, K) bool, True where a branch must not look at an instance.

    Returns:
        pooled (B, K, D), logits (N, K) after masking, lse (B, K).

    Raises:
        ValueError: Shapes do not fit, or the bounds are wrong.
    """
    logits = gated_logits(
        x, value_weight, value_bias, gate_weight, gate_bias, score_weight, score_bias
    )
    if mask is not None:
        logits = mask_logits(logits, mask)
    pooled, lse = softmax_pool(logits, x, cu_seqlens)
    return Pooled(pooled, logits, lse)
