"""A task of a few numbers whose every part a test can set; trained through the real engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo import runs
from zoo.config import BaseConfig
from zoo.data import ListSplit
from zoo.engine import Trainer
from zoo.errors import DataError
from zoo.machine import launch
from zoo.progress import Reporter
from zoo.runs import Run
from zoo.task import Batch, Facts, Finding, Metrics, Optim, Phase, Record, Split, Task
from zoo.tracking import Metrics as MetricsFile

WIDTH = 3


class Points(ListSplit):
    """Points with a target; those in `broken` cannot be read, those in `poisoned` are NaN."""

    def __init__(
        self,
        count: int,
        *,
        name: str = "p",
        broken: Sequence[str] = (),
        poisoned: Sequence[str] = (),
        **options: Any,
    ) -> None:
        ids = [f"{name}{i}" for i in range(count)]
        super().__init__(ids, ids, "digest", **options)
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(count, WIDTH)).astype(np.float32)
        self.y = (self.x @ np.array([1.0, -2.0, 0.5])).astype(np.float32)
        self.broken, self.poisoned = broken, poisoned

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        name = self.ids[index]
        if name in self.broken:
            msg = f"file of {name} ends too early"
            raise DataError(msg)
        x = self.x[index] * (np.nan if name in self.poisoned else 1)
        return {"id": name, "x": x, "y": self.y[index]}

    def collate(self, items: list[Batch]) -> Batch:
        return {
            "id": [i["id"] for i in items],
            "x": torch.tensor(np.stack([i["x"] for i in items]), dtype=torch.float32),
            "y": torch.tensor(np.stack([i["y"] for i in items]), dtype=torch.float32),
        }


class Toy(Task[BaseConfig]):
    """Regression on `Points`; `net`, `make_optims`, `phases` and `scores` are set by a test."""

    monitor = ("loss", "min")

    def __init__(self, config: BaseConfig) -> None:
        super().__init__(config)
        self.chosen: Any = ("loss", "min")
        self.train = Points(8, batch_size=config.trainer.batch_size)
        self.val: Points | None = None
        self.net: Callable[[], nn.Module] = lambda: nn.Linear(WIDTH, 1)
        self.make_optims: Callable[[nn.Module], dict[str, Optim]] = lambda m: {
            "sgd": Optim(torch.optim.SGD(m.parameters(), lr=0.1))
        }
        self.phases: Callable[[int, int], Phase | None] = lambda epoch, step: None
        self.scores: list[float] = []

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        (out / "nothing").touch()

    def selection(self) -> Any:
        return self.chosen

    def check(self, deep: bool = False) -> list[Finding]:
        return []

    def splits(self) -> dict[str, Split]:
        found: dict[str, Split] = {"train": self.train}
        return found | ({"val": self.val} if self.val is not None else {})

    def model(self, facts: Facts) -> nn.Module:
        return self.net()

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        return self.make_optims(model)

    def phase(self, epoch: int, step: int) -> Phase | None:
        return self.phases(epoch, step)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (model(batch["x"]).squeeze(-1) - batch["y"]).square().mean()}

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        found = model(batch["x"]).squeeze(-1)
        return [
            Record(n, n, {"off": (found[i] - batch["y"][i]).numpy()})
            for i, n in enumerate(batch["id"])
        ]

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        loss = float(np.mean([r.values["off"] ** 2 for r in records]))
        return {"loss": self.scores.pop(0) if self.scores else loss}

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        raise NotImplementedError


def config(out: Path, on_error: str = "raise", **trainer: Any) -> BaseConfig:
    """A configuration of the toy; `trainer` are settings of that section."""
    return BaseConfig.model_validate(
        {
            "task": "toy",
            "preset": "none",
            "out": out,
            "data": {"on_error": on_error},
            "trainer": {"epochs": 1, "log_every": 1, "accelerator": "cpu", **trainer},
            "tracking": {"enabled": False},
        }
    )


def trainer_of(task: Toy) -> Trainer:
    """A trainer with a run folder, ready for `fit`."""
    trainer = Trainer(task, launch(task.config), task.splits(), {}, Reporter(quiet=True))
    run = runs.create(task.config, {})
    trainer.attach(run, MetricsFile(run), None)
    return trainer


def fitted(task: Toy) -> tuple[Trainer, Run]:
    """The trainer after training, and its run."""
    trainer = trainer_of(task)
    trainer.fit()
    return trainer, trainer.run
