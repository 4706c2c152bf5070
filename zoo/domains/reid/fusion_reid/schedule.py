"""Learning rate over the epochs: linear warm-up, then a cosine that does not wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOOR = 0.002  # of the base rate, at the end
START = 0.01  # of the base rate, before the warm-up


@dataclass(frozen=True)
class WarmupCosine:
    """The official schedule of one group of parameters.

    Both ends are shares of the base rate for every group, so that a group with a rate of its own
    (biases) is not simply a multiple of the others.

    Attributes:
        base: Base learning rate (that of weights).
        own: Learning rate of this group.
        epochs: Length of the cosine in epochs, counted from the very beginning.
        warmup: Epochs of warm-up.
    """

    base: float
    own: float
    epochs: int
    warmup: int

    def rate(self, epoch: float) -> float:
        """Learning rate in force at `epoch`; the first epoch of a training is number 1."""
        if epoch < self.warmup:
            start = START * self.base
            return start + epoch * (self.own - start) / self.warmup
        floor = FLOOR * self.base
        if epoch >= self.epochs:
            return floor
        return floor + 0.5 * (self.own - floor) * (1.0 + math.cos(math.pi * epoch / self.epochs))

    def factor(self, epoch: int, step: int, steps: int, *, by_step: bool = False) -> float:
        """The rate as a share of the group's own.

        Args:
            epoch: Epochs done.
            step: Steps done in this one.
            steps: Steps of an epoch.
            by_step: Move on at every step, so that the last step of an epoch has its rate;
                otherwise the whole epoch has one rate, as published.
        """
        return self.rate(epoch + (step + 1) / steps if by_step else epoch + 1) / self.own
