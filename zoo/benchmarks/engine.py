"""What the engine costs a step: its loop against a bare one over the same items and the same model.

The model is small enough to leave the loop alone to be seen. The bare loop reads the items, joins
them, and does forward, backward and step. The engine's also seeds each item and step, looks for
broken items and numbers that are not finite, sets the rate, logs, and saves once at the end.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import runs
from zoo.benchmarks.harness import Row, device_name, interleaved, quantile, ratios, versions
from zoo.config import BaseConfig
from zoo.data import ListSplit, item_rng
from zoo.engine import Trainer
from zoo.machine import launch
from zoo.progress import Reporter
from zoo.task import Batch, Facts, Finding, Metrics, Optim, Record, Split, Task
from zoo.tracking import Metrics as MetricsFile

_WIDTH, _HIDDEN, _BATCH = 16, 32, 4


class _Points(ListSplit):
    def __init__(self, steps: int) -> None:
        names = [str(i) for i in range(steps * _BATCH)]
        super().__init__(names, names, "bench", batch_size=_BATCH, shuffle=True)
        self.x = np.random.default_rng(0).normal(size=(len(names), _WIDTH)).astype(np.float32)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        return {"x": self.x[index] + rng.normal(scale=0.01)}

    def collate(self, items: list[Batch]) -> Batch:
        return {"x": torch.from_numpy(np.stack([i["x"] for i in items]).astype(np.float32))}


class _Probe(Task[BaseConfig]):
    """The least a task can be."""

    monitor = None

    def __init__(self, config: BaseConfig, steps: int) -> None:
        super().__init__(config)
        self.points = _Points(steps)

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Nothing is read from files."""

    def check(self, deep: bool = False) -> list[Finding]:
        """Nothing can be wrong."""
        return []

    def splits(self) -> dict[str, Split]:
        """Training alone."""
        return {"train": self.points}

    def model(self, facts: Facts) -> nn.Module:
        """Two small layers."""
        return nn.Sequential(nn.Linear(_WIDTH, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """Plain gradient descent."""
        return {"sgd": Optim(torch.optim.SGD(model.parameters(), lr=1e-3))}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean square."""
        return {"loss": model(batch["x"]).square().mean()}

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Not evaluated."""
        return []

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """Not evaluated."""
        return {}

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Not used for prediction."""
        return self.points


def _task(out: Path, steps: int, device: torch.device) -> _Probe:
    values: dict[str, Any] = {
        "task": "engine",
        "preset": "none",
        "out": out,
        "trainer": {"epochs": 1, "accelerator": device.type, "workers": 0},
        "tracking": {"enabled": False},
    }
    return _Probe(BaseConfig.model_validate(values), steps)


def _bare(task: _Probe, model: nn.Module, device: torch.device) -> None:
    optimiser = task.optimisers(model)["sgd"].optimiser
    points = task.points
    for indices in points.batches(0, np.random.default_rng(0)):
        batch = points.collate([points.item(i, item_rng(0, 0, i)) for i in indices])
        loss = task.loss(model, {"x": batch["x"].to(device)}, torch.Generator())["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()


def _trainer(task: _Probe) -> Trainer:
    trainer = Trainer(task, launch(task.config), task.splits(), {}, Reporter(quiet=True))
    run = runs.create(task.config, {})
    trainer.attach(run, MetricsFile(run), None)
    return trainer


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Milliseconds a step of both loops; the case says what the engine adds.

    Args:
        device: Where the steps are made.
        quick: Few steps, few rounds.
    """
    steps, rounds = (50, 3) if quick else (1000, 9)
    with tempfile.TemporaryDirectory() as folder:
        task = _task(Path(folder), steps, device)
        ready = [_trainer(task) for _ in range(rounds + 1)]
        model = task.model({}).to(device)
        forms = {
            "bare loop": lambda: _bare(task, model, device),
            "zoo": lambda: ready.pop().fit(),
        }
        # Wall clock everywhere: what is asked for is the host's work.
        times = interleaved(forms, torch.device("cpu"), rounds, warmups=1)
    speed = ratios(times)
    a_step = {name: [t / steps for t in own] for name, own in times.items()}
    pairs = zip(a_step["zoo"], a_step["bare loop"], strict=True)
    added = statistics.median(ours - bare for ours, bare in pairs)
    case = f"a step of batch {_BATCH}; the engine adds {added:.3f} ms"
    return [
        Row(
            "engine",
            case,
            name,
            "fwd+bwd",
            device_name(device),
            statistics.median(own),
            quantile(own, 0.1),
            quantile(own, 0.9),
            speed[name],
            versions=versions(),
        )
        for name, own in a_step.items()
    ]
