"""P x K batches, a centre loss with parameters of its own, and ranking over the whole test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from stub_common import Files, StubTask, array, listed, save, truncate
from stub_config import IdentitiesConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.task import Batch, Facts, Metrics, Optim, Record, Split

WIDTH, FEATURE = 6, 4


class PxK(Files):
    """Batches of `p` identities with `k` pictures each; names are `<identity>-<camera>-<n>`."""

    def __init__(self, paths: Sequence[Path], p: int, k: int) -> None:
        super().__init__(paths, train=True)
        self.p, self.k = p, k
        self.classes = sorted(set(self.groups))

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        left: dict[str, list[list[int]]] = {}
        for name in self.classes:
            own = [i for i, g in enumerate(self.groups) if g == name]
            order = rng.permutation(own).tolist()
            groups = [order[i : i + self.k] for i in range(0, len(order), self.k)]
            left[name] = [g for g in groups if len(g) == self.k]
        made = []
        while True:
            ready = [n for n in self.classes if left[n]]
            if len(ready) < self.p:
                return made
            chosen = rng.choice(ready, self.p, replace=False)
            made.append([i for name in chosen for i in left[name].pop()])

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        item = super().item(index, rng)
        return item | {"label": np.array(self.classes.index(self.groups[index]))}


class Centres(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, FEATURE))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return (features - self.centres[labels]).square().sum(1).mean()


class Embedding(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, FEATURE))
        self.classifier = nn.Linear(FEATURE, classes)
        self.centres = Centres(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Identities(StubTask[IdentitiesConfig]):
    monitor = None

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        for split, people, pictures in (("train", 7, 5), ("test", 6, 4)):
            for i in range(people):
                person = 2 * rng.normal(size=WIDTH)
                for n in range(pictures):
                    x = (person + rng.normal(0, 0.4, WIDTH)).astype(np.float32)
                    save(out / split, f"{split}{i}-{n % 2}-{n}", x=x)
        if defects:
            truncate(out / "train" / "train1-0-0.npz")

    def splits(self) -> dict[str, Split]:
        data = self.config.data
        return {
            "train": PxK(listed(self.root() / "train"), data.identities, data.instances),
            "test": Files(listed(self.root() / "test"), batch_size=5),
        }

    def fit(self, train: Split) -> Facts:
        return {"classes": sorted(set(train.groups))}

    def model(self, facts: Facts) -> nn.Module:
        return Embedding(len(facts["classes"]))

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        assert isinstance(model, Embedding)
        optim = self.config.optim
        net = [*model.net.parameters(), *model.classifier.parameters()]
        centres = torch.optim.SGD(model.centres.parameters(), lr=optim.centre_lr)
        return {
            "net": Optim(torch.optim.SGD(net, lr=optim.lr, momentum=0.9)),
            # The weight of the loss is taken back for the centres, as published.
            "centres": Optim(centres, grad_scale=1 / optim.centre_weight),
        }

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        labels = batch["label"]
        features = model(batch["x"])
        counts = labels.unique(return_counts=True)[1]
        identity = functional.cross_entropy(model.classifier(features), labels)
        centre = model.centres(features, labels)
        return {
            "loss": identity + self.config.optim.centre_weight * centre,
            "centre": centre,
            "p": torch.tensor(float(len(counts))),
            "k_least": counts.min().float(),
            "k_most": counts.max().float(),
        }

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        features = array(functional.normalize(model(batch["x"])))
        return [
            Record(
                name,
                batch["group"][i],
                {"feature": features[i], "camera": np.array(int(name.split("-")[1]))},
            )
            for i, name in enumerate(batch["id"])
        ]

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """Rank-1 and mAP of every record as a query against all others of another camera."""
        features = np.stack([r.values["feature"] for r in records])
        far = ((features[:, None] - features[None]) ** 2).sum(-1)
        who = np.array([r.group for r in records])
        camera = np.array([r.values["camera"] for r in records])
        first, precision = [], []
        for q in range(len(records)):
            rest = np.flatnonzero((camera != camera[q]) | (who != who[q]))
            hits = who[rest[np.argsort(far[q, rest], kind="stable")]] == who[q]
            places = np.flatnonzero(hits)
            first.append(bool(hits[0]))
            precision.append(np.mean((np.arange(len(places)) + 1) / (places + 1)))
        return {"rank1": float(np.mean(first)), "map": float(np.mean(precision))}

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, object]]:
        return [
            {"id": r.id} | {f"f{i}": v for i, v in enumerate(r.values["feature"])} for r in records
        ]

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return Files(list(paths), batch_size=5)
