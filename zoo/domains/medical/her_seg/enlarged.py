"""The loss of enlarged logits, from the small ones: nothing of the image's size is kept.

Enlarging the logits four times, their sigmoid, the products with the mask and the cross-entropy
keep some 12 MB an image of 1024 x 1024 pixels for sums that are four numbers. Here they are made
image by image, and again in the backward pass. The numbers are those of `losses.mask_loss` on
`functional.interpolate(low, size)`.

Letters: B images of H x W pixels, K maps of logits, C = 1 or K - 1 classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.her_seg.losses import MaskLoss, focal


class Sums(NamedTuple):
    """Sums over the pixels of each image, in float32 or better.

    Attributes:
        both: (B, C) of probability times truth.
        predicted: (B, C) of probabilities.
        true: (B, C) of truth.
        entropy: (B) of cross-entropies.
        pixels: (B) number of pixels that count.
    """

    both: Tensor
    predicted: Tensor
    true: Tensor
    entropy: Tensor
    pixels: Tensor


def _image(low: Tensor, target: Tensor, valid: Tensor | None, probabilities: bool) -> Tensor:
    """(3 C + 1) sums of one image: (1, K, h, w) and (1, H, W)."""
    size = (target.shape[1], target.shape[2])
    logits = functional.interpolate(low, size, mode="bilinear", align_corners=False)
    kept = None if valid is None else valid.to(logits)
    if logits.shape[1] == 1:
        chances, truth = logits[:, 0].sigmoid(), (target > 0).to(logits)
        if probabilities:
            entropies = functional.binary_cross_entropy(chances, truth, reduction="none")
        else:
            entropies = functional.binary_cross_entropy_with_logits(
                logits[:, 0], truth, reduction="none"
            )
    else:
        chances = logits.softmax(dim=1)[0, 1:]
        classes = torch.arange(1, logits.shape[1], device=target.device).view(-1, 1, 1)
        truth = (target == classes).to(logits)
        entropies = functional.cross_entropy(logits, target, reduction="none")
    if kept is not None:
        chances, truth, entropies = chances * kept, truth * kept, entropies * kept
    parts = [(chances * truth).sum((1, 2)), chances.sum((1, 2)), truth.sum((1, 2))]
    return torch.cat([*parts, entropies.sum().view(1)])


class _Sums(torch.autograd.Function):
    """The sums of each image, keeping what came in."""

    @staticmethod
    def forward(
        ctx: Any, low: Tensor, target: Tensor, valid: Tensor | None, probabilities: bool
    ) -> Tensor:
        ctx.save_for_backward(low, target, valid)
        ctx.probabilities = probabilities
        return torch.stack([_image(*parts, probabilities) for parts in _each(low, target, valid)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        made: list[Tensor] = []
        for own, parts in zip(grad, _each(*ctx.saved_tensors), strict=True):
            low = parts[0].detach().requires_grad_()
            with torch.enable_grad():
                sums = _image(low, *parts[1:], ctx.probabilities)
            made += torch.autograd.grad(sums, low, own)
        return torch.cat(made), None, None, None


def _each(
    low: Tensor, target: Tensor, valid: Tensor | None
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    masks = [None] * len(low) if valid is None else list(torch.split(valid, 1))
    return list(zip(torch.split(low, 1), torch.split(target, 1), masks, strict=True))


def enlarged_sums(
    low: Tensor, target: Tensor, *, probability_form: bool = False, valid: Tensor | None = None
) -> Sums:
    """Sums over the pixels of the enlarged logits, without keeping anything of that size.

    Args:
        low: (B, K, h, w) logits; K = 1 for a sigmoid, else background and classes for a softmax.
        target: (B, H, W) int64 class indices; with K = 1 anything above 0 is foreground.
        probability_form: Cross-entropy from probabilities (K = 1 only).
        valid: (B, H, W) bool; other pixels count for nothing. None: all count.
    """
    low = low.float() if low.dtype in (torch.float16, torch.bfloat16) else low
    sums: Tensor = _Sums.apply(low, target, valid, probability_form)
    classes = max(1, low.shape[1] - 1)
    size = target.shape[1] * target.shape[2]
    pixels = low.new_full((len(low),), size) if valid is None else valid.sum((1, 2)).to(low)
    both, predicted, true, entropy = torch.split(sums, [classes, classes, classes, 1], dim=1)
    return Sums(both, predicted, true, entropy[:, 0], pixels)


def low_resolution_loss(
    low: Tensor,
    target: Tensor,
    *,
    weight: float = 0.8,
    per_image: bool = False,
    probability_form: bool = False,
    valid: Tensor | None = None,
) -> MaskLoss:
    """`losses.mask_loss` of the enlarged logits, from `HerSegModel.low_resolution`.

    Args:
        low: (B, K, h, w) logits.
        target: (B, H, W) int64 class indices.
        weight: w in w Dice + (1 - w) focal cross-entropy.
        per_image: Dice of each image and then the mean, not one over the batch.
        probability_form: Cross-entropy from probabilities (K = 1 only).
        valid: (B, H, W) bool; pixels outside count for nothing.

    Returns:
        Scalars in float32 or better.
    """
    sums = enlarged_sums(low, target, probability_form=probability_form, valid=valid)
    entropy = sums.entropy.sum() / sums.pixels.sum().clamp_min(1)
    parts = sums[:3] if per_image else [part.sum(dim=0) for part in sums[:3]]
    both, predicted, true = parts
    total = predicted + true
    dice = (1 - (2 * both + 1) / (total + 1)).mean()
    overlap = ((both + 1) / (total - both + 1)).mean().detach()
    slow = focal(entropy)
    return MaskLoss(weight * dice + (1 - weight) * slow, dice, slow, overlap)
