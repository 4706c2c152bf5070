"""`trainer.batch_size=auto`: the largest power of two that memory holds, found by trial steps.

A trial is two whole steps (the second one has the optimiser's state in memory) on a model that is
thrown away, so that what is trained afterwards is what the found number would have given.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from zoo.config import AUTO, BaseConfig
from zoo.data import ListSplit, item_rng, order_rng
from zoo.engine import Trainer
from zoo.errors import ConfigError
from zoo.faults import out_of_memory
from zoo.progress import Reporter
from zoo.task import Batch, Split

_SHARE = 0.9
"""Of a device's memory: the rest is for items larger than those tried, and for fragmentation."""
_STEPS = 4  # an epoch keeps at least so many: a batch of everything trains nothing well


def why_not(split: Split) -> str:
    """Why no batch size can be looked for; empty if one can."""
    told = getattr(split, "composed", None)
    if told is None and getattr(type(split), "batches", None) is not ListSplit.batches:
        return "the task makes batches by a rule of its own; set a number"
    return f"{told}; set a number" if told else ""


def one_process(config: BaseConfig) -> None:
    """Refuse `trainer.batch_size=auto` where several processes are about to be started.

    Raises:
        ConfigError: They are.
    """
    outside = max(int(os.environ.get(n) or 1) for n in ("WORLD_SIZE", "SLURM_NTASKS"))
    several = max(config.trainer.devices, outside) > 1
    if config.trainer.batch_size == AUTO and several:
        msg = (
            "trainer.batch_size=auto is tried in one process; find it with trainer.devices=1 and "
            "set it"
        )
        raise ConfigError(msg)


def find(trainer: Trainer, split: Split, reporter: Reporter) -> int:
    """The largest power of two with which a training step fits and an epoch has four steps.

    Args:
        trainer: Of the task, thrown away afterwards.
        split: The training split.
        reporter: Told what was tried.

    Raises:
        ConfigError: The size is the task's own affair, or not even one item fits.
    """
    reason = why_not(split)
    if reason:
        msg = f"trainer.batch_size=auto: {reason}"
        raise ConfigError(msg)
    most = max(1, len(split.ids) // _STEPS)
    trial = _Trial(trainer, split)
    found = largest(trial.fits, most)
    if found == AUTO:
        msg = (
            "trainer.batch_size=auto: not even one item fits into memory; use "
            "trainer.precision=bf16-mixed or a smaller model or image"
        )
        raise ConfigError(msg)
    limit = trial.stopped or f"more would leave less than {_STEPS} steps an epoch"
    reporter.say(f"trainer.batch_size=auto: {found} ({limit}); the learning rate is left as it is")
    return found


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1, 2, 4, … up to `most` for which `fits`; 0 if none."""
    found, size = 0, 1
    while size <= most and fits(size):
        found, size = size, 2 * size
    return found


class _Trial:
    """Training steps of any size, on items in the order of the first epoch."""

    def __init__(self, trainer: Trainer, split: Split) -> None:
        self.trainer, self.split = trainer, split
        self.seed = trainer.config.seed
        self.stopped = ""
        batches = split.batches(0, order_rng(self.seed, 0))
        self.order = [index for batch in batches for index in batch]
        self._base = _resident()

    def fits(self, size: int) -> bool:
        """Whether two steps with `size` items fit; `stopped` says why not."""
        if self.trainer.fabric.device.type == "cpu" and not self._room(size):
            self.stopped = f"{size} would take more memory than is free"
            return False
        try:
            self._steps(size)
        except (RuntimeError, MemoryError, OSError) as error:
            if not out_of_memory(error):
                raise
            self.stopped = f"{size} does not fit into memory"
        finally:
            self._tidy()
        if not self.stopped and self._peak_share() > _SHARE:
            self.stopped = f"{size} takes more than {_SHARE:.0%} of the device's memory"
        return not self.stopped

    def _steps(self, size: int) -> None:
        trainer = self.trainer
        trainer.model.train()
        for _ in range(2):
            parts = trainer.task.loss(trainer.model, self._batch(size), self._rng())
            if parts["loss"].requires_grad:
                trainer.fabric.backward(parts["loss"])
            for optim in trainer.optims.values():
                optim.optimiser.step()

    def _batch(self, size: int) -> Batch:
        # Where the order repeats items or leaves some out it may be shorter than the split.
        chosen = [self.order[n % len(self.order)] for n in range(size)]
        items = [self.split.item(i, item_rng(self.seed, 0, i)) for i in chosen]
        batch: Batch = self.trainer.fabric.to_device(self.split.collate(items))
        return batch

    def _rng(self) -> torch.Generator:
        return torch.Generator(device=self.trainer.fabric.device).manual_seed(self.seed)

    def _tidy(self) -> None:
        for optim in self.trainer.optims.values():
            optim.optimiser.zero_grad(set_to_none=True)
        gc.collect()
        if self.trainer.fabric.device.type == "cuda":
            torch.cuda.empty_cache()

    def _room(self, size: int) -> bool:
        """Whether the machine has room, judged by what half as much took.

        On a CPU nothing raises: the system would end the process.
        """
        import psutil

        taken = max(0, _resident() - self._base)
        return bool(2 * taken < _SHARE * psutil.virtual_memory().available)

    def _peak_share(self) -> float:
        device: Any = self.trainer.fabric.device
        if device.type != "cuda":
            return 0.0
        _, total = torch.cuda.mem_get_info(device)
        return float(torch.cuda.max_memory_allocated(device) / total)


def _resident() -> int:
    """The most memory this process has had, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
