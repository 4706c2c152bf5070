"""Multi-head attention of many tokens to few keys: folded form and definition.

Scores are bilinear and outputs linear, so the projections of the many tokens can be applied to the
few keys and values instead: (W_q x + b_q) . k = x . (W_q^T k) + b_q . k, and the output projection
W_o of the merged heads is the sum over heads of P_h (v_h W_o,h^T). With T keys and H heads this
costs N x TH products of the token width where the plain form costs N x I of it, and is exact up to
rounding. It is what the image-to-token direction of a two-way transformer (Segment Anything,
arXiv 2304.02643, mask decoder) needs.

Head h owns channels h * d to (h + 1) * d of the projections, d = I / H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels._ragged import full_precision, statistics_dtype

Projection = tuple[Tensor, Tensor | None]
"""Weight (out, in) and bias (out,) or None of a Linear layer."""


def explicit_attention(
    tokens: Tensor, projected_keys: Tensor, projected_values: Tensor, query: Projection, heads: int
) -> Tensor:
    """The definition: projects every token to a query and attends.

    Args:
        tokens: (..., N, C).
        projected_keys: (..., T, I).
        projected_values: (..., T, I).
        query: Query projection C -> I.
        heads: Number H of heads.

    Returns:
        (..., N, I) merged heads, before the output projection.
    """
    parts = (functional.linear(tokens, *query), projected_keys, projected_values)
    q, k, v = (torch.unflatten(z, -1, (heads, -1)).transpose(-3, -2) for z in parts)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    weights = scores.to(statistics_dtype(scores)).softmax(dim=-1).to(v.dtype)
    merged: Tensor = (weights @ v).transpose(-3, -2).flatten(-2)
    return merged


def fold_keys(projected_keys: Tensor, query: Projection, heads: int) -> tuple[Tensor, Tensor]:
    """Moves the query projection to the keys.

    Args:
        projected_keys: (..., T, I).
        query: Query projection C -> I.
        heads: Number H of heads; divides I.

    Returns:
        vectors (..., H * T, C) and offsets (..., H * T), both scaled by 1 / sqrt(I / H).
    """
    weight, bias = query
    split = torch.unflatten(projected_keys, -1, (heads, -1)).transpose(-3, -2)  # (..., H, T, d)
    split = split * split.shape[-1] ** -0.5
    per_head = torch.unflatten(weight.to(split.dtype), 0, (heads, -1))
    vectors = torch.einsum("...htd,hdc->...htc", split, per_head).flatten(-3, -2)
    if bias is None:
        return vectors, vectors.new_zeros(vectors.shape[:-1])
    shift = torch.unflatten(bias.to(split.dtype), 0, (heads, 1, -1))
    return vectors, (split * shift).sum(dim=-1).flatten(-2)


def fold_values(projected_values: Tensor, out_weight: Tensor, heads: int) -> Tensor:
    """Moves the output projection to the values: (..., T, I) -> (..., H * T, O)."""
    split = torch.unflatten(projected_values, -1, (heads, -1)).transpose(-3, -2)
    per_head = torch.unflatten(out_weight.to(split.dtype), 1, (heads, -1))  # (O, H, d)
    return torch.einsum("...htd,ohd->...hto", split, per_head).flatten(-3, -2)


def folded_attention(
    tokens: Tensor, vectors: Tensor, offsets: Tensor, values: Tensor, heads: int
) -> Tensor:
    """Attention of tokens to folded keys and values.

    Args:
        tokens: (..., N, C).
        vectors: (..., H * T, C) from `fold_keys`.
        offsets: (..., H * T) from `fold_keys`.
        values: (..., H * T, O) from `fold_values`.
        heads: Number H of heads.

    Returns:
        (..., N, O), without the output bias, in the dtype of the tokens.
    """
    precise = statistics_dtype(tokens)
    with full_precision(tokens):
        scores = tokens @ vectors.to(tokens.dtype).mT
        scores = scores.to(precise) + offsets.to(precise).unsqueeze(-2)
        weights = torch.unflatten(scores, -1, (heads, -1)).softmax(dim=-1).flatten(-2)
        return weights.to(tokens.dtype) @ values.to(tokens.dtype)
