"""Losses: Dice and focal cross-entropy as the official training has them, and for several classes.

Source: `loss.BinaryMaskLoss` of the HER-Seg code. Two things are unusual there and kept: Dice is
one number for the whole batch, and the focal factor acts on the mean cross-entropy, not on pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1.0
_FOCAL_SCALE, _FOCAL_POWER = 0.8, 2


class MaskLoss(NamedTuple):
    """Loss and its parts, scalars; `iou` is the soft overlap that training watches, no gradient."""

    total: Tensor
    dice: Tensor
    focal: Tensor
    iou: Tensor


class _Sums(NamedTuple):
    """Sums over pixels: (C,) for a batch, (B, C) for each image."""

    both: Tensor
    predicted: Tensor
    true: Tensor

    def dice(self) -> Tensor:
        return 1 - (2 * self.both + _SMOOTH) / (self.predicted + self.true + _SMOOTH)

    def iou(self) -> Tensor:
        union = self.predicted + self.true - self.both
        return (self.both + _SMOOTH) / (union + _SMOOTH)


def focal(mean_cross_entropy: Tensor) -> Tensor:
    """0.8 (1 - exp(-b))^2 b of the mean cross-entropy b, a scalar."""
    b = mean_cross_entropy
    return _FOCAL_SCALE * (1 - torch.exp(-b)) ** _FOCAL_POWER * b


def probability_loss(
    probabilities: Tensor, target: Tensor, *, weight: float = 0.8, per_image: bool = False
) -> MaskLoss:
    """The official loss on probabilities.

    Args:
        probabilities: (B, 1, H, W) in [0, 1].
        target: (B, 1, H, W), 0 or 1.
        weight: w in w Dice + (1 - w) focal cross-entropy.
        per_image: Dice of each image and then the mean (ours), not one over the batch.

    Returns:
        Scalars; logarithms are cut at -100, so that the loss of a wrong 0 or 1 is finite.
    """
    target = target.to(probabilities)
    entropy = functional.binary_cross_entropy(probabilities, target)
    return _joined(_sums(probabilities, target, per_image), entropy, weight)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight: float = 0.8,
    per_image: bool = False,
    probability_form: bool = False,
    valid: Tensor | None = None,
) -> MaskLoss:
    """Loss of logits against class indices.

    One channel is one class against background, as published. With C > 1 channels (ours) they are
    background and C - 1 classes: softmax, cross-entropy over all of them, and the mean over the
    classes of Dice; background, the easy one, has no Dice.

    Args:
        logits: (B, 1, H, W) or (B, C, H, W).
        target: (B, H, W) int64; with one channel anything above 0 is foreground.
        weight: w in w Dice + (1 - w) focal cross-entropy.
        per_image: Dice of each image and then the mean, not one over the batch.
        probability_form: Cross-entropy of probabilities as published; the same value where it is
            finite, but without gradient once a probability rounds to 0 or 1. One channel only.
        valid: (B, H, W) bool; pixels outside (padding) count for nothing.

    Returns:
        Scalars in float32 or better.
    """
    # In half precision the sums over a million pixels would be lost.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if logits.shape[1] == 1:
        truth = (target > 0).unsqueeze(1).to(logits)
        chances = logits.sigmoid()
        if probability_form:
            entropies = functional.binary_cross_entropy(chances, truth, reduction="none")
        else:
            entropies = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        entropies = entropies[:, 0]
    else:
        chances = logits.softmax(dim=1)[:, 1:]
        classes = torch.arange(1, logits.shape[1], device=target.device).view(1, -1, 1, 1)
        truth = (target.unsqueeze(1) == classes).to(logits)
        entropies = functional.cross_entropy(logits, target, reduction="none")
    if valid is None:
        entropy = entropies.mean()
    else:
        kept = valid.to(logits)
        chances, truth = chances * kept.unsqueeze(1), truth * kept.unsqueeze(1)
        entropy = (entropies * kept).sum() / kept.sum().clamp_min(1)
    return _joined(_sums(chances, truth, per_image), entropy, weight)


def _sums(chances: Tensor, truth: Tensor, per_image: bool) -> _Sums:
    over = (2, 3) if per_image else (0, 2, 3)
    both = (chances * truth).sum(dim=over)
    return _Sums(both, chances.sum(dim=over), truth.sum(dim=over))


def _joined(sums: _Sums, entropy: Tensor, weight: float) -> MaskLoss:
    dice, slow = sums.dice().mean(), focal(entropy)
    total = weight * dice + (1 - weight) * slow
    return MaskLoss(total, dice, slow, sums.iou().mean().detach())
