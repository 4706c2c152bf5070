"""Batch normalisation whose backward pass makes the normalised values again.

Autograd keeps both sides of a batch normalisation, although one follows from the other by a
multiplication and an addition a value. What is here is for autograd functions that keep the input
alone; nothing is approximated, and the module's statistics move as in a call of it.

Letters: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

aten: Any = torch.ops.aten


def normalise(z: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised values, and what the backward pass needs of the statistics.

    Returns:
        (B, C, H, W), mean (C), and 1 / standard deviation (C) in training, variance (C) else.

    Raises:
        ValueError: Statistics of a single value are asked for.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    if norm.training:
        if z.numel() == z.shape[1]:
            msg = f"batch statistics need more than one value a channel, got {tuple(z.shape)}"
            raise ValueError(msg)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    y, batch_mean, inverse = aten.native_batch_norm(
        z, norm.weight, norm.bias, mean, variance, norm.training, norm.momentum, norm.eps
    )
    return (y, batch_mean, inverse) if norm.training else (y, mean.clone(), variance.clone())


class Normalised:
    """A batch normalisation as the backward pass sees it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.batch, self.eps = norm.training, norm.eps

    def again(self, z: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """The normalised values once more, (B, C, H, W) in the dtype of z."""
        inverse = spread if self.batch else (spread + self.eps).rsqrt()
        scale = gamma * inverse
        shift = torch.addcmul(beta, mean, scale, value=-1)
        return torch.addcmul(shift.view(-1, 1, 1), z, scale.view(-1, 1, 1)).to(z.dtype)

    def backward(
        self,
        grad: Tensor,
        z: Tensor,
        gamma: Tensor,
        mean: Tensor,
        spread: Tensor,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of z, gamma and beta."""
        made: tuple[Tensor | None, Tensor | None, Tensor | None] = aten.native_batch_norm_backward(
            grad, z, gamma, mean, spread, mean, spread, self.batch, self.eps, list(wanted)
        )
        return made
