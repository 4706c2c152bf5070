"""Two halves trained in turns, and an epoch whose length is the number of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from stub_common import Files, StubTask, array, listed, load, save, truncate
from stub_config import AlternatingConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.task import Batch, Facts, Metrics, Optim, Phase, Record, Split

WIDTH = 5


class Balanced(Files):
    """Negatives in random order; half of each batch is replaced by positives."""

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        if not self.train:
            return super().batches(epoch, rng)
        labels = [int(load(p)["label"]) for p in self.paths]
        negative = [i for i, y in enumerate(labels) if not y]
        positive = [i for i, y in enumerate(labels) if y]
        order = rng.permutation(negative).tolist()
        made = []
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            places = rng.choice(len(batch), max(len(batch) // 2, 1), replace=False)
            for place, index in zip(
                places, rng.choice(positive, len(places), replace=False), strict=True
            ):
                batch[place] = int(index)
            made.append(batch)
        return made


class TwoHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.heads = nn.Sequential(
            nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.body(x))


class Alternating(StubTask[AlternatingConfig]):
    monitor = ("accuracy", "max")

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        for split, negatives, positives in (("train", 22, 6), ("val", 4, 4), ("test", 5, 5)):
            for i in range(negatives + positives):
                label = int(i >= negatives)
                x = (rng.normal(size=WIDTH) + 1.5 * label).astype(np.float32)
                save(out / split, f"{split}{i:02d}", x=x, label=np.array(label))
        if defects:
            truncate(out / "val" / "val01.npz")

    def splits(self) -> dict[str, Split]:
        size = self.config.trainer.batch_size
        return {
            n: Balanced(listed(self.root() / n), train=n == "train", batch_size=size)
            for n in ("train", "val", "test")
        }

    def model(self, facts: Facts) -> nn.Module:
        return TwoHalves()

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        lr = self.config.optim.lr
        return {
            half: Optim(torch.optim.Adam(model.get_submodule(half).parameters(), lr=lr))
            for half in ("body", "heads")
        }

    def phase(self, epoch: int, step: int) -> Phase:
        moving, resting = ("body", "heads") if epoch % 2 == 0 else ("heads", "body")
        return Phase(step=(moving,), frozen=(resting,), still=(resting,))

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        return {
            "loss": functional.cross_entropy(model(batch["x"]), batch["label"]),
            "positives": batch["label"].float().mean(),
            "items": torch.tensor(float(len(batch["label"]))),
        }

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        p = array(model(batch["x"]).softmax(-1)[:, 1])
        return [
            Record(name, batch["group"][i], {"p": p[i], "label": array(batch["label"][i])})
            for i, name in enumerate(batch["id"])
        ]

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        threshold = facts.get("threshold", 0.5)
        right = [(r.values["p"] > threshold) == bool(r.values["label"]) for r in records]
        told = {"threshold": threshold} if "threshold" in facts else {}
        return {"accuracy": float(np.mean(right))} | told

    def settle(self, records: Sequence[Record], facts: Facts) -> Facts:
        return {"threshold": float(np.median([r.values["p"] for r in records]))}

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return Balanced(list(paths), batch_size=self.config.trainer.batch_size)
