"""The learning-rate schedule of the official training script."""

from __future__ import annotations

import math


def lr_factor(
    position: float, *, epochs: float, warmup_epochs: float = 0.0, minimum: float = 0.0
) -> float:
    """What the base learning rate is multiplied with: linear warm-up, then half a cosine.

    Args:
        position: Epochs done, with fraction: epoch + step / steps per epoch, before each step.
        epochs: Length E of the training in epochs.
        warmup_epochs: Length w of the warm-up in epochs; the factor rises from 0 to 1 in it.
        minimum: Factor at the end of the cosine, the last learning rate over the base one.

    Raises:
        ValueError: The warm-up does not end before the training.
    """
    if not 0 <= warmup_epochs < epochs:
        msg = f"warm-up must end before the training: {warmup_epochs=}, {epochs=}"
        raise ValueError(msg)
    if position < warmup_epochs:
        return position / warmup_epochs
    progress = (position - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
