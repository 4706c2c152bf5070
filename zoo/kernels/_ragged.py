"""Packed bags of different lengths, and the softmax pooling all attention pools end in.

A packed batch is the rows of all bags one after the other, `x: (N, D)`, with their bounds
`cu_seqlens: (B + 1,)`: bag b is `x[cu_seqlens[b]:cu_seqlens[b + 1]]`. Bags may be empty.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

MASKED = -1e9
"""Logit of a masked row. Finite, so that a bag with nothing left pools uniformly, not to NaN."""


class Pooled(NamedTuple):
    """What attention pooling returns.

    Attributes:
        pooled: (B, R, D) weighted means of the rows of each bag, in the dtype of the rows.
        logits: (N, R) attention logits after masking, float32 (float64 for float64 rows).
        lse: (B, R) log of the sum of exp(logits) of each bag, without gradient; -inf if empty.
    """

    pooled: Tensor
    logits: Tensor
    lse: Tensor


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not lower the precision of what is computed from `x`."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()  # entering autocast would leave a trace in exported graphs


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype to which autocast lowers `x`; that of `x` outside of it and for float64.

    `torch.library.register_autocast` would fix one dtype for good and lower every argument,
    given logits and biases too. So the functions in front of the operators lower their rows by
    this rule, which then holds for definitions and exported graphs as well.
    """
    device = x.device.type
    lowers = torch.is_autocast_enabled(device) and x.is_floating_point()
    return torch.get_autocast_dtype(device) if lowers and x.dtype != torch.float64 else x.dtype


def lowered(x: Tensor) -> Tensor:
    """`x` in its `autocast_dtype`."""
    return x.to(autocast_dtype(x))


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of logits and softmax statistics: float32, or float64 for float64 rows."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_bounds(cu_seqlens: Tensor | None) -> None:
    """Checks of packed bounds that need not read them, which would stall a GPU.

    Raises:
        ValueError: They are not an integer vector of at least two numbers.
    """
    if cu_seqlens is None:
        return
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        msg = f"cu_seqlens must have the shape (bags + 1,), got {tuple(cu_seqlens.shape)}"
        raise ValueError(msg)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        msg = f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}"
        raise ValueError(msg)


def bag_bounds(cu_seqlens: Tensor | None, rows: int) -> list[tuple[int, int]]:
    """First and last-plus-one row of each bag.

    Args:
        cu_seqlens: (B + 1,) integer bounds of packed bags; None means all rows are one bag.
        rows: Number of rows N that the bounds must cover.

    Raises:
        ValueError: The bounds are not a rising integer vector from 0 to `rows`.
    """
    if cu_seqlens is None:
        return [(0, rows)]
    check_bounds(cu_seqlens)
    ends: list[int] = cu_seqlens.tolist()
    bounds = list(pairwise(ends))
    if ends[0] != 0 or ends[-1] != rows or any(start > end for start, end in bounds):
        msg = f"cu_seqlens must rise from 0 to the {rows} rows given, got {ends}"
        raise ValueError(msg)
    return bounds


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits with the masked entries set to -1e9; no gradient passes through those.

    Args:
        logits: (..., N, R) attention logits, float32 or float64.
        mask: The same shape, bool, True where a row must get no attention.

    Raises:
        ValueError: The mask is not bool or its shape differs.
    """
    if mask.dtype != torch.bool or mask.shape != logits.shape:
        msg = (
            f"mask must be bool and shaped like the logits {tuple(logits.shape)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
        raise ValueError(msg)
    return logits.masked_fill(mask, MASKED)


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
        pooled (B, R, D) in the dtype of `x` and lse (B, R), which carries no gradient. An empty
        bag gives zeros and -inf.

    Raises:
        ValueError: Shapes do not fit, or the bounds are wrong.
    """
    if x.dim() not in (2, 3) or logits.shape[:-1] != x.shape[:-1]:
        msg = (
            "logits (N, R) and x (N, D), or (B, N, R) and (B, N, D), expected; "
            f"got {tuple(logits.shape)} and {tuple(x.shape)}"
        )
        raise ValueError(msg)
    if mask is not None:
        logits = mask_logits(logits, mask)
    if x.dim() == 3:
        if cu_seqlens is not None:
            msg = "cu_seqlens belongs to packed rows (N, D); x has a batch axis already"
            raise ValueError(msg)
        return _pool(logits, x)
    if cu_seqlens is None:
        pooled, lse = _pool(logits, x)
        return pooled.unsqueeze(0), lse.unsqueeze(0)
    # Bag by bag on views: nothing is padded or copied, and a NaN cannot leave its bag.
    bags = [_pool(logits[a:b], x[a:b]) for a, b in bag_bounds(cu_seqlens, x.shape[0])]
    return torch.stack([bag[0] for bag in bags]), torch.stack([bag[1] for bag in bags])


def _pool(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`softmax_pool` over the last axis but one: (..., N, R), (..., N, D) -> (..., R, D)."""
    with full_precision(x):
        logits = logits.to(statistics_dtype(x))
        weights = logits.softmax(dim=-2)
        # Weights of a large bag are too small for 16-bit numbers, so the sum is not done in them.
        pooled = weights.mT @ x.to(weights.dtype)
        return pooled.to(x.dtype), logits.detach().logsumexp(dim=-2)
