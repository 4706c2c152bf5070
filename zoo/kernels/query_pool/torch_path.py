"""Attention of few absorbed queries in one walk over the tokens, for the CPU.

Scores are S = rho (x a^T) + o with absorbed queries a (R, C), offsets o (R,) and, where keys see
LayerNorm(x), rho = 1 / sqrt(var(x) + eps) of each token: for vectors a whose mean over the channels
is zero, LayerNorm(x) . a = rho x . a without the normalised tokens ever being formed. With dS the
whole gradient of the scores, the backward pass is

    da = (rho dS)^T x,  do = sum dS,  dx = (rho dS) a + P dZ - rho^3 / C (sum_r dS x a^T) (x - mean)

Every chunk of tokens stays in the cache from its first use to its last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels._ragged import bag_bounds
from zoo.kernels.gated_attention_pool.torch_path import Rows

_CHUNK = 512  # tokens; short, since queries have no products wide enough to hide a cache miss


class Scorer(NamedTuple):
    """What scores the tokens.

    Attributes:
        vectors: (B, R, C) absorbed queries, or (1, R, C) shared by all bags.
        offsets: (B, R) or (1, R).
        eps: Epsilon of the LayerNorm over the tokens; None: no normalisation.
    """

    vectors: Tensor
    offsets: Tensor
    eps: float | None

    def of(self, bag: int) -> tuple[Tensor, Tensor]:
        """Vectors (R, C) and offsets (R,) of a bag."""
        own = bag if self.vectors.shape[0] > 1 else 0
        return self.vectors[own], self.offsets[own]


def chunks(
    cu_seqlens: Tensor | None, bags: int, rows: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Each bag and its chunks; without bounds there are `bags` bags of equal length."""
    if cu_seqlens is None:
        bounds = list(pairwise(range(0, rows + 1, rows // bags))) if rows else [(0, 0)] * bags
    else:
        bounds = bag_bounds(cu_seqlens, rows)
    for bag, (start, end) in enumerate(bounds):
        yield bag, [(cut, min(end, cut + _CHUNK)) for cut in range(start, end, _CHUNK)]


def _centred(rows: Rows, x: Tensor, moments: Tensor, start: int, end: int) -> Tensor:
    """Tokens minus their mean over the channels, in scratch memory."""
    buffer = rows.buffer("centred", end - start, x.shape[1])
    return torch.sub(x, moments[0, start:end].unsqueeze(1), out=buffer)


def forward(
    rows: Rows,
    cu_seqlens: Tensor | None,
    bags: int,
    scorer: Scorer,
    pooled: Tensor,
    logits: Tensor,
    stats: Tensor,
    moments: Tensor,
) -> None:
    """Scores and pools tokens; writes into the tensors given.

    Args:
        rows: The tokens (N, C).
        cu_seqlens: (B + 1,) bounds, or None: `bags` bags of equal length.
        bags: Number of bags B.
        scorer: Absorbed queries.
        pooled: (B, R, C).
        logits: (N, R).
        stats: (2, B, R) largest logit and sum of exp(logit - largest); -inf and 0 if empty.
        moments: (2, N) mean and rho of each token; untouched without normalisation.
    """
    for bag, cuts in chunks(cu_seqlens, bags, logits.shape[0]):
        vectors, offsets = scorer.of(bag)
        top = torch.full_like(offsets, float("-inf"))
        mass, total = torch.zeros_like(offsets), torch.zeros_like(vectors)
        for start, end in cuts:
            x, scores = rows.get(start, end), logits[start:end]
            if scorer.eps is None:
                torch.addmm(offsets, x, vectors.mT, out=scores)
            else:
                torch.mean(x, dim=1, out=moments[0, start:end])
                spread = torch.linalg.vector_norm(_centred(rows, x, moments, start, end), dim=1)
                rho = moments[1, start:end]
                torch.rsqrt(spread.square_().div_(x.shape[1]).add_(scorer.eps), out=rho)
                torch.mm(x, vectors.mT, out=scores)
                scores.mul_(rho.unsqueeze(1)).add_(offsets)
            higher = torch.maximum(top, scores.amax(dim=0))
            shrink, weights = (top - higher).exp_(), (scores - higher).exp_()
            mass.mul_(shrink).add_(weights.sum(dim=0))
            total.mul_(shrink.unsqueeze(1)).addmm_(weights.mT, x)
            top = higher
        stats[0, bag], stats[1, bag] = top, mass
        if cuts:
            torch.div(total, mass.unsqueeze(1), out=pooled[bag])
        else:
            pooled[bag].zero_()


class Saved(NamedTuple):
    """Outputs of the forward pass; shapes as there."""

    pooled: Tensor
    logits: Tensor
    stats: Tensor
    moments: Tensor


def backward(
    rows: Rows,
    cu_seqlens: Tensor | None,
    bags: int,
    scorer: Scorer,
    saved: Saved,
    d_pooled: Tensor | None,
    d_logits: Tensor | None,
    need_rows: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of tokens (None if not needed), absorbed queries and offsets.

    Args:
        rows: The tokens (N, C).
        cu_seqlens: As in `forward`.
        bags: Number of bags B.
        scorer: Absorbed queries.
        saved: What the forward pass left.
        d_pooled: (B, R, C) or None.
        d_logits: (N, R) or None.
        need_rows: Whether the tokens want a gradient.
    """
    source = rows.source
    d_rows = torch.empty_like(source, memory_format=torch.contiguous_format) if need_rows else None
    d_vectors, d_offsets = torch.zeros_like(scorer.vectors), torch.zeros_like(scorer.offsets)
    for bag, cuts in chunks(cu_seqlens, bags, source.shape[0]):
        vectors, _ = scorer.of(bag)
        own = bag if scorer.vectors.shape[0] > 1 else 0
        d_z = None if d_pooled is None else d_pooled[bag].to(vectors.dtype)
        d_z = torch.zeros_like(vectors) if d_z is None else d_z
        delta = (d_z * saved.pooled[bag]).sum(dim=1)
        both = torch.cat([vectors, d_z])
        top, mass = saved.stats[:, bag]
        for start, end in cuts:
            x = rows.get(start, end)
            dots, through = (x @ both.mT).chunk(2, dim=1)
            weights = (saved.logits[start:end] - top).exp_().div_(mass)
            d_scores = through.sub_(delta).mul_(weights)
            if d_logits is not None:
                d_scores = d_scores.add_(d_logits[start:end])
            d_offsets[own].add_(d_scores.sum(dim=0))
            pull = None
            if scorer.eps is not None:
                rho = saved.moments[1, start:end].unsqueeze(1)
                pull = (d_scores * dots).sum(dim=1, keepdim=True)
                pull.mul_(rho.pow(3)).div_(-x.shape[1])
                d_scores = d_scores * rho
            d_vectors[own].addmm_(d_scores.mT, x)
            if d_rows is not None:
                _write(
                    rows, x, torch.cat([d_scores, weights], 1) @ both, pull, saved, d_rows, start
                )
    return d_rows, d_vectors, d_offsets


def _write(
    rows: Rows,
    x: Tensor,
    d_x: Tensor,
    pull: Tensor | None,
    saved: Saved,
    d_rows: Tensor,
    start: int,
) -> None:
    """Stores the gradient of a chunk of tokens, with the part that goes through rho."""
    end = start + x.shape[0]
    if pull is None:
        d_rows[start:end] = d_x
        return
    centred = _centred(rows, x, saved.moments, start, end)
    if d_rows.dtype == d_x.dtype:
        torch.addcmul(d_x, centred, pull, out=d_rows[start:end])
    else:
        d_rows[start:end] = d_x.addcmul_(centred, pull)
