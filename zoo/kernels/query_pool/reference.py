"""Multi-head attention of few queries to many tokens: absorbed form and definition.

Keys and values are linear in the tokens, so the projections can be moved to the other side:
q . (W_k x + b_k) = (W_k^T q) . x + q . b_k, and sum_n P_n (W_v x_n + b_v) = W_v (sum_n P_n x_n)
+ b_v sum_n P_n. With Q queries and H heads this needs N x QH numbers instead of N x C keys and
values, and is exact up to rounding.

Columns of logits are ordered head by head: column h * Q + q is head h of query q. Head h owns
channels h * d to (h + 1) * d of the projections, d = inner width / H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels._ragged import bag_bounds, check_bounds, full_precision, statistics_dtype


def absorb_queries(
    projected: Tensor, key_weight: Tensor, key_bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    """Moves the key projection to the queries: the vectors tokens are compared with.

    Args:
        projected: (..., Q, I) queries after their projection.
        key_weight: (I, C).
        key_bias: (I,) or None. It shifts all logits of a column alike, so the softmax does not
            see it; it is kept because the logits themselves are an output.
        heads: Number H of heads; divides I.

    Returns:
        vectors (..., H * Q, C) and offsets (..., H * Q), both scaled by 1 / sqrt(I / H).
    """
    width = projected.shape[-1] // heads
    with full_precision(projected):
        split = torch.unflatten(projected, -1, (heads, width)).transpose(-3, -2) * width**-0.5
        keys = torch.unflatten(key_weight.to(projected.dtype), 0, (heads, width))
        # One product a head for all queries: broadcasting would copy the weights for each bag.
        vectors = torch.einsum("...hqd,hdc->...hqc", split, keys).flatten(-3, -2)
        if key_bias is None:
            return vectors, vectors.new_zeros(vectors.shape[:-1])
        shift = torch.unflatten(key_bias.to(projected.dtype), 0, (heads, 1, width))
        return vectors, (split * shift).sum(-1).flatten(-2)


def check_tokens(vectors: Tensor, tokens: Tensor, cu_seqlens: Tensor | None = None) -> None:
    """Refuses tokens that absorbed queries cannot score.

    Args:
        vectors: (R, C) or (B, R, C).
        tokens: (N, C) or (B, N, C).
        cu_seqlens: (B + 1,) bounds of packed tokens, or None.

    Raises:
        ValueError: Batch axes or widths do not fit.
    """
    wrong = tokens.dim() not in (2, 3) or tokens.shape[-1] != vectors.shape[-1]
    if tokens.dim() == 2:
        wrong = wrong or vectors.dim() != 2
    elif vectors.dim() == 3:
        wrong = wrong or vectors.shape[0] != tokens.shape[0]
    if wrong:
        msg = (
            "tokens (N, C) go with queries (Q, C) shared by all bags, tokens (B, N, C) with "
            f"(Q, C) or (B, Q, C); got tokens {tuple(tokens.shape)} and absorbed queries "
            f"{tuple(vectors.shape)}"
        )
        raise ValueError(msg)
    if tokens.dim() == 3 and cu_seqlens is not None:
        msg = "cu_seqlens belongs to packed rows (N, D); x has a batch axis already"
        raise ValueError(msg)
    check_bounds(cu_seqlens)


def query_logits(vectors: Tensor, offsets: Tensor, tokens: Tensor) -> Tensor:
    """Attention logits of absorbed queries: tokens . vectors + offsets.

    Args:
        vectors: (R, C) shared by all packed bags, or (B, R, C), from `absorb_queries`.
        offsets: (R,) or (B, R).
        tokens: (N, C) packed tokens, or (B, N, C); what the keys would have been made of.

    Returns:
        (N, R) or (B, N, R) logits, float32 (float64 for float64 tokens).

    Raises:
        ValueError: Batch axes or widths do not fit.
    """
    check_tokens(vectors, tokens)
    precise = statistics_dtype(tokens)
    with full_precision(tokens):
        return tokens.to(precise) @ vectors.to(precise).mT + offsets.to(precise).unsqueeze(-2)


def project_values(
    pooled: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    heads: int,
    mass: Tensor | None = None,
) -> Tensor:
    """Applies the value projection to pooled tokens and merges the heads.

    Args:
        pooled: (..., H * Q, C) weighted sums of tokens, as from `softmax_pool`.
        value_weight: (I, C).
        value_bias: (I,) or None.
        heads: Number H of heads; divides I.
        mass: (..., H * Q) sums of the attention weights; None: 1, as after a softmax.

    Returns:
        (..., Q, I).
    """
    weight = torch.unflatten(value_weight, 0, (heads, -1))
    split = torch.unflatten(pooled, -2, (heads, -1)).to(weight.dtype)
    values = torch.einsum("...hqc,hdc->...hqd", split, weight)
    if value_bias is not None:
        bias = torch.unflatten(value_bias, 0, (heads, 1, -1))
        if mass is not None:
            bias = bias * torch.unflatten(mass.to(bias.dtype), -1, (heads, -1)).unsqueeze(-1)
        values = values + bias
    return values.transpose(-3, -2).flatten(-2)


def explicit_attention(
    projected: Tensor,
    tokens: Tensor,
    raw: Tensor,
    key: tuple[Tensor, Tensor | None],
    value: tuple[Tensor, Tensor | None],
    heads: int,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition: forms keys and values, bag by bag. For tests and small inputs.

    Args:
        projected: (Q, I) queries after their projection.
        tokens: (N, C) packed tokens that make the keys.
        raw: (N, C) packed tokens that make the values.
        key: Weight (I, C) and bias (I,) or None of the keys.
        value: Weight (I, C) and bias (I,) or None of the values.
        heads: Number H of heads.
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.

    Returns:
        Merged heads (B, Q, I) and logits (N, H * Q).

    Raises:
        ValueError: The bounds are wrong.
    """
    width = projected.shape[-1] // heads
    queries = torch.unflatten(projected, -1, (heads, width)).transpose(0, 1)  # (H, Q, d)
    outputs, logits = [], []
    for start, end in bag_bounds(cu_seqlens, tokens.shape[0]):
        keys = functional.linear(tokens[start:end], *key)
        values = functional.linear(raw[start:end], *value)
        keys, values = (torch.unflatten(z, -1, (heads, width)) for z in (keys, values))
        scores = queries @ keys.permute(1, 2, 0) / width**0.5  # (H, Q, n)
        merged = scores.softmax(-1) @ values.transpose(0, 1)  # (H, Q, d)
        outputs.append(merged.transpose(0, 1).flatten(1))
        logits.append(scores.permute(2, 0, 1).flatten(1))
    return torch.stack(outputs), torch.cat(logits)
