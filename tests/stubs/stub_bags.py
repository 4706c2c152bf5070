"""Packed ragged bags: a batch holds as many bags as fit into a number of instances.

Every source of chance is used: the item's generator, NumPy's global one, dropout and the
generator of the loss. A resume that forgets one of them gives other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from stub_common import Files, StubTask, array, listed, load, save, truncate, writer
from stub_config import BagsConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.task import Batch, Export, Facts, Metrics, Optim, Record, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6


class BagSplit(Files):
    def __init__(self, paths: Sequence[Path], budget: int, train: bool = False) -> None:
        super().__init__(paths, train=train)
        self.budget = budget
        self.sizes: list[int] | None = None

    def _sizes(self) -> list[int]:
        if self.sizes is None:
            self.sizes = [len(load(p)["features"]) for p in self.paths]
        return self.sizes

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        order = rng.permutation(len(self.ids)).tolist() if self.train else range(len(self.ids))
        sizes = self._sizes()
        packs: list[list[int]] = [[]]
        for index in order:
            if packs[-1] and sum(sizes[i] for i in packs[-1]) + sizes[index] > self.budget:
                packs.append([])
            packs[-1].append(index)
        return packs

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        item = super().item(index, rng)
        if self.train:
            noise = rng.normal(0, 0.01, item["features"].shape)
            noise += np.random.normal(0, 0.01, item["features"].shape)
            item["features"] = item["features"] + noise.astype(np.float32)
        return item

    def collate(self, items: list[Batch]) -> Batch:
        bags = [torch.from_numpy(i["features"]) for i in items]
        sizes = torch.tensor([0, *(len(b) for b in bags)])
        return {
            "features": torch.cat(bags),
            "bounds": sizes.cumsum(0),
            "labels": torch.tensor([int(i["label"]) for i in items]),
            "ids": [i["id"] for i in items],
            "groups": [i["group"] for i in items],
        }


class Pool(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(dropout))
        self.gate = nn.Linear(8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, features: Tensor, bounds: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.inner(features)
        scores = self.gate(hidden).squeeze(-1)
        logits, weights = [], []
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            weight = scores[start:end].softmax(0)
            logits.append(self.head(weight @ hidden[start:end]))
            weights.append(weight)
        return torch.stack(logits), weights


class Bags(StubTask[BagsConfig]):
    monitor = ("loss", "min")
    medical: ClassVar[bool] = True

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 16), ("val", 5), ("test", 6)):
            for i in range(count):
                features = rng.normal(size=(int(rng.integers(4, 40)), WIDTH)).astype(np.float32)
                features[: 1 + len(features) // 5, 0] += 3.0 * (i % 2)
                name = f"{split}{i:02d}"
                save(out / split, name, features=features, label=np.array(i % 2))
        if defects:
            truncate(out / "train" / "train03.npz")

    def splits(self) -> dict[str, Split]:
        budget = self.config.data.instances
        return {
            n: BagSplit(listed(self.root() / n), budget, train=n == "train")
            for n in ("train", "val", "test")
        }

    def model(self, facts: Facts) -> nn.Module:
        return Pool(self.config.model.dropout)

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        adam = torch.optim.AdamW(model.parameters(), lr=self.config.optim.lr)
        epochs = self.config.trainer.epochs
        return {"adam": Optim(adam, lambda e, s, n: 1.0 - (e + s / n) / epochs)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        features = batch["features"]
        keep = torch.rand(features.shape, generator=rng, device=features.device) > 0.05
        logits, _ = model(features * keep, batch["bounds"])
        return {
            "loss": functional.cross_entropy(logits, batch["labels"]),
            "instances": torch.tensor(float(len(features))),
            "bags": torch.tensor(float(len(batch["labels"]))),
        }

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        logits, weights = model(batch["features"], batch["bounds"])
        return [
            Record(
                name,
                group,
                {"p": array(logits[i].softmax(-1)), "label": array(batch["labels"][i])},
                writer(name, array(weights[i])),
            )
            for i, (name, group) in enumerate(zip(batch["ids"], batch["groups"], strict=True))
        ]

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        p = np.stack([r.values["p"] for r in records])
        label = np.array([r.values["label"] for r in records])
        chosen = np.maximum(p[np.arange(len(p)), label], 1e-9)
        return {
            "accuracy": float((p.argmax(1) == label).mean()),
            "loss": float(-np.log(chosen).mean()),
        }

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, object]]:
        return [{"id": r.id, "p_1": float(r.values["p"][1])} for r in records]

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots()
        axes.hist([r.values["p"][1] for r in records])
        yield "probabilities", figure

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return BagSplit(list(paths), self.config.data.instances)

    def export(self, model: nn.Module, facts: Facts) -> Export:
        return Export(why_not="a stub")
