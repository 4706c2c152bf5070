"""Where a training is: counters and running sums, all of it stored in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Position:
    """Where a training is; all of it is stored in checkpoints.

    Attributes:
        step: Optimiser steps done.
        epoch: Epoch under way, from 0.
        within: Optimiser steps done in it.
        batches: Batches done in it, over all processes.
        best: Best monitored value so far.
        best_name: Checkpoint that had it.
        sums: Running sums of the losses of the epoch and since the last log line.
        skipped: Broken items left out so far.
    """

    step: int = 0
    epoch: int = 0
    within: int = 0
    batches: int = 0
    best: float | None = None
    best_name: str | None = None
    sums: dict[str, dict[str, float]] = field(default_factory=lambda: {"epoch": {}, "log": {}})
    skipped: int = 0

    def add(self, losses: Mapping[str, float]) -> None:
        """Count the losses of one step."""
        for sums in self.sums.values():
            sums[""] = sums.get("", 0.0) + 1.0
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value

    def take(self, which: str) -> dict[str, float]:
        """Means since the last time, and start again."""
        sums = self.sums[which]
        count = sums.pop("", 0.0)
        means = {k: v / count for k, v in sums.items()} if count else {}
        self.sums[which] = {}
        return means
