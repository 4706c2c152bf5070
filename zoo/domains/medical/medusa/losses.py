"""Losses: weighted cross-entropy of the official recipe, and masks for the body."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean over the batch of weight times cross-entropy; not divided by the sum of weights.

    That is the official form (COVID-Net, branch `tf_dataset`): a batch of a heavy class has a
    larger loss, where PyTorch's own weighting would scale it away.

    Args:
        logits: (B, K).
        labels: (B,) int64.
        class_weights: (K,) weight of each class.
        sample_weights: (B,) further weight of each radiograph.
        smoothing: Share of the target spread evenly over the classes.

    Returns:
        A scalar, in float32 or better.
    """
    # In half precision the logarithm of a small probability would be lost.
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    each = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if class_weights is not None:
        each = each * class_weights.to(each)[labels]
    if sample_weights is not None:
        each = each * sample_weights.to(each)
    return each.mean()


class MaskLoss(NamedTuple):
    """Loss of the body against lung masks and its parts, scalars."""

    total: Tensor
    bce: Tensor
    dice: Tensor


def mask_loss(logits: Tensor, masks: Tensor) -> MaskLoss:
    """Binary cross-entropy plus 1 - soft Dice, each a mean over the images.

    Args:
        logits: (B, 1, T, T) of the body, before the sigmoid: behind it a map that is wrong
            everywhere has no gradient left, and a body without normalisation gets there soon.
        masks: (B, 1, T, T), 1 inside the lungs.

    Returns:
        The sum and both parts; Dice is that of Milletari et al. 2016 without squares, with 1
        added above and below, so that an empty mask has a gradient too.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chance, masks = logits.sigmoid(), masks.to(logits)
    bce = functional.binary_cross_entropy_with_logits(logits, masks)
    both = (chance * masks).sum(dim=(1, 2, 3))
    sizes = chance.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    dice = (1 - (2 * both + 1) / (sizes + 1)).mean()
    return MaskLoss(bce + dice, bce, dice)
