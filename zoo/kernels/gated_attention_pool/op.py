"""Gated attention pooling as functions: autocast, the choice of the definition, checks.

Within autocast rows and features are lowered to its dtype, and so are the wide weights they meet;
logits, statistics and sums stay in float32, as do the gradients of float32 parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.kernels import _ragged
from zoo.kernels._dispatch import choice
from zoo.kernels._ragged import (
    Pooled,
    autocast_dtype,
    check_bounds,
    full_precision,
    lowered,
    mask_logits,
)
from zoo.kernels.gated_attention_pool import reference, torch_path
from zoo.kernels.gated_attention_pool.operators import reduced, scored_pool
from zoo.kernels.products import bfloat16_is_native

Keep = Literal["rows", "bfloat16", "nothing"] | float
"""What `pool_from_features` keeps of the reduced rows for the backward pass, or their share."""

Weights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Weight and bias of value, gate and score."""

SMALL_ROWS = 16384
"""Below so many rows on the CPU the definition is chosen, unless `ZOO_KERNELS` forces a path."""

_KEEP = ("rows", "bfloat16", "nothing")


def _plain(x: Tensor) -> bool:
    """Whether the definition runs: as asked for, or because it is quicker.

    On the CPU the operators save memory by computing the gates twice. Bags of few rows need no
    saving, and there keeping the gates is 1.2 to 1.5 times faster. A traced graph serves any
    number of rows, so there the number does not choose.
    """
    chosen = choice()
    if chosen != "auto" or x.device.type != "cpu" or torch.compiler.is_compiling():
        return chosen == "reference"
    return x.shape[0] < SMALL_ROWS


def _for_definition(x: Tensor) -> Tensor:
    """Rows as the definition gets them: widened where their products are slow, if not forced."""
    fast = x.dtype == torch.bfloat16 and bfloat16_is_native()
    return x if fast or choice() == "reference" else x.to(torch_path.compute_dtype(x))


def gated_logits(x: Tensor, *weights: Tensor) -> Tensor:
    """Attention logits (N, K) of rows x (N, D); arguments as in the definition."""
    x = lowered(x)
    if _plain(x):
        return reference.gated_logits(_for_definition(x), *weights)
    _check(x, weights[0].shape[1])
    out: tuple[Tensor, ...] = scored_pool(x, *weights, None, None, None, None, False, "nothing", 0)
    return out[1]


def gated_pool(x: Tensor, weights: Weights, cu_seqlens: Tensor | None = None) -> Pooled:
    """Scores and pools packed bags in one operator.

    Args:
        x: (N, D) rows.
        weights: Weight and bias of value, gate and score.
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.

    Returns:
        pooled (B, K, D) in the dtype of `x` (of autocast within it), logits (N, K), lse (B, K).

    Raises:
        ValueError: Shapes do not fit, or the bounds are wrong.
    """
    x = lowered(x)
    if _plain(x):
        found = reference.gated_attention_pool(_for_definition(x), *weights, cu_seqlens)
        return found._replace(pooled=found.pooled.to(x.dtype))
    _check(x, weights[0].shape[1])
    check_bounds(cu_seqlens)
    pooled, logits, stats, _ = scored_pool(
        x, *weights, None, None, None, cu_seqlens, True, "nothing", 0
    )
    return Pooled(pooled.to(x.dtype), logits, _lse(stats))


def pool_from_features(
    features: Tensor,
    reduction: Tensor,
    reduction_bias: Tensor | None,
    weights: Weights,
    cu_seqlens: Tensor | None = None,
    keep: Keep = "rows",
) -> Pooled:
    """Reduces features to rows relu(W f + b), scores and pools them, chunk by chunk.

    Args:
        features: (N, F).
        reduction: (D, F) weight W.
        reduction_bias: (D,) bias b or None.
        weights: Weight and bias of value, gate and score.
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
        keep: What the backward pass finds: the `rows`, the rows rounded to `bfloat16` (gradients
            then have its relative error of 2^-9), `nothing`, so that it makes them again, or the
            share of rows it finds, between 0 and 1, so that it makes the others again.

    Returns:
        pooled (B, K, D) in the dtype of the features (of autocast within it), logits (N, K),
        lse (B, K).

    Raises:
        ValueError: Shapes do not fit, the bounds are wrong, or `keep` is none of these.
    """
    policy, thousandths = _kept(keep)
    features = lowered(features)
    _check(features, reduction.shape[1])
    if weights[0].shape[1] != reduction.shape[0]:
        msg = f"the reduction makes rows of {reduction.shape[0]}, not {weights[0].shape[1]}"
        raise ValueError(msg)
    if choice() == "reference":
        with full_precision(features):
            rows = reduced(features, reduction, reduction_bias)
        return reference.gated_attention_pool(rows, *weights, cu_seqlens)
    check_bounds(cu_seqlens)
    wanted = (features, reduction, reduction_bias, *weights)
    trains = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in wanted)
    pooled, logits, stats, _ = scored_pool(
        features,
        *weights,
        None,
        reduction,
        reduction_bias,
        cu_seqlens,
        True,
        policy if trains else "nothing",
        thousandths,
    )
    return Pooled(pooled.to(features.dtype), logits, _lse(stats))


def _kept(keep: Keep) -> tuple[str, int]:
    """The policy in words, and how many thousandths of the rows it keeps."""
    if isinstance(keep, str) and keep in _KEEP:
        return keep, 0 if keep == "nothing" else 1000
    if isinstance(keep, str) or not 0 <= keep <= 1:
        msg = f"keep must be one of {', '.join(_KEEP)}, or a share from 0 to 1, got {keep!r}"
        raise ValueError(msg)
    return "rows", round(1000 * keep)


def softmax_pool(
    logits: Tensor,
    x: Tensor,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Means of the rows of each bag, weighted by the softmax of the logits over the bag.

    With P = softmax(logits) over the rows n of a bag: pooled_r = sum_n P_nr x_n.

    Args:
        logits: (N, R) attention logits of packed bags, or (B, N, R) of bags of equal length.
        x: (N, D) packed rows, or (B, N, D).
        cu_seqlens: (B + 1,) integer bounds of packed bags; None: the N rows are one bag.
        mask: bool, shaped like the logits; True entries count as logits of -1e9.

    Returns:
        pooled (B, R, D) in the dtype of `x` (of autocast within it) and lse (B, R), which carries
        no gradient. An empty bag gives zeros and -inf.

    Raises:
        ValueError: Shapes do not fit, or the bounds are wrong.
    """
    if _plain(x) or x.dim() != 2 or logits.shape[:-1] != x.shape[:-1]:
        # The sum is done in float32 here whatever the rows are: lowering them would buy nothing.
        pooled, lse = _ragged.softmax_pool(logits, x, cu_seqlens, mask)
        return pooled.to(autocast_dtype(x)), lse
    x = lowered(x)
    check_bounds(cu_seqlens)
    if mask is not None:
        logits = mask_logits(logits, mask)
    none = (None,) * 6
    pooled, _, stats, _ = scored_pool(x, *none, logits, None, None, cu_seqlens, True, "nothing", 0)
    return pooled.to(x.dtype), _lse(stats)


def _lse(stats: Tensor) -> Tensor:
    """Log of the sum of exp(logits) from largest logits and masses (2, B, K)."""
    return stats[0] + stats[1].log()


def _check(x: Tensor, width: int) -> None:
    if x.dim() != 2 or x.shape[1] != width:
        msg = f"instances must be (N, {width}), got {tuple(x.shape)}"
        raise ValueError(msg)
