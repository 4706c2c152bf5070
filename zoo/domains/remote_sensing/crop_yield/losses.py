"""The loss of both networks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def yield_loss(prediction: Tensor, target: Tensor, l1: bool = False) -> Tensor:
    """Mean squared error, plus the mean absolute error if asked for.

    The released code reads a weight of the second part and adds it with weight 1 whatever the
    number is; hence a switch here.

    Args:
        prediction: (B,) bushels/acre, or (B, 2) natural logs of production and yield.
        target: The same shape and units.
        l1: Whether the absolute error is added.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes differ, which would compare every sample with every other.
    """
    if prediction.shape != target.shape:
        msg = f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ"
        raise ValueError(msg)
    squared = functional.mse_loss(prediction, target)
    return squared + functional.l1_loss(prediction, target) if l1 else squared
