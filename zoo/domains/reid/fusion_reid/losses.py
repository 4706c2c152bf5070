"""Losses: identity with smoothed labels, batch-hard triplets, centres.

FusionReID takes the losses of reid-strong-baseline and TransReID (both MIT); the formulas are in
Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification" (arXiv
1903.07071, section 3) and Hermans et al., "In Defense of the Triplet Loss" (arXiv 1703.07737).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Below this a squared distance is rounding; its root would have an endless slope.
_LEAST = 1e-12


class Triplets(NamedTuple):
    """A triplet loss and what it was made of.

    Attributes:
        loss: Scalar.
        positive: (B,) distance of each image to the farthest one of its identity.
        negative: (B,) distance to the nearest one of another identity; infinite without one.
    """

    loss: Tensor
    positive: Tensor
    negative: Tensor


def identity_loss(scores: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of class scores (B, C) against labels (B,), averaged over the batch.

    The target is `1 - smoothing` on the label plus `smoothing / C` on every class, which is what
    the official code builds by hand and what torch calls label smoothing.
    """
    return functional.cross_entropy(scores.float(), labels, label_smoothing=smoothing)


def distances(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) between the rows of (B, D), in float32, at least 1e-6."""
    rows = features.float()
    with torch.autocast(rows.device.type, enabled=False):
        squares = rows.square().sum(dim=1)
        apart = squares[:, None] + squares[None, :] - 2.0 * (rows @ rows.T)
    return apart.clamp(min=_LEAST).sqrt()


def triplet_loss(
    features: Tensor,
    labels: Tensor,
    *,
    margin: float | None = None,
    hard_factor: float = 0.0,
    normalise: bool = False,
) -> Triplets:
    """Batch-hard triplets: for each image its farthest positive and its nearest negative.

    An image is among its own positives, so one that is alone has a positive distance of almost
    zero. Identities may have any number of images; images without a negative are left out.

    Args:
        features: (B, D), before the neck.
        labels: (B,) class indices.
        margin: `max(0, positive - negative + margin)`; none: `log(1 + exp(positive - negative))`.
        hard_factor: Positives count `1 + hard_factor` times as far, negatives `1 - hard_factor`.
        normalise: Bring the features to unit length first.
    """
    if normalise:
        features = features / (features.norm(dim=-1, keepdim=True) + _LEAST)
    apart = distances(features)
    same = labels[:, None] == labels[None, :]
    # max and min rather than amax and amin: these would spread the gradient over ties.
    positive = apart.masked_fill(~same, -torch.inf).max(dim=1).values
    negative = apart.masked_fill(same, torch.inf).min(dim=1).values
    alone = same.all(dim=1)
    gap = positive * (1.0 + hard_factor) - negative.masked_fill(alone, 0.0) * (1.0 - hard_factor)
    each = functional.softplus(gap) if margin is None else functional.relu(gap + margin)
    loss = each.masked_fill(alone, 0.0).sum() / (~alone).sum().clamp(min=1)
    return Triplets(loss, positive, negative)


class CentreLoss(nn.Module):
    """Squared distance of features to the learnt centre of their identity.

    Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition" (ECCV 2016),
    equation 2 without the half, averaged over the batch.

    Args:
        classes: Number of identities.
        width: Length of a feature.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, width))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar of features (B, D) and labels (B,)."""
        apart = (features.float() - self.centres[labels]).square().sum(dim=1)
        # The limits of the official code.
        return apart.clamp(_LEAST, 1.0 / _LEAST).mean()


def joined(parts: Sequence[Tensor], weights: Literal["equal", "halves"] = "equal") -> Tensor:
    """One loss of those of several heads.

    Args:
        parts: A scalar a head.
        weights: `equal`: their sum, as FusionReID; `halves`: half the first and half the mean of
            the others, as TransReID.
    """
    if weights == "equal" or len(parts) == 1:
        return torch.stack(list(parts)).sum()
    return 0.5 * parts[0] + 0.5 * torch.stack(list(parts[1:])).mean()
