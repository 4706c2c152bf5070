"""Masks from picture and depth: two test sets, staged freezing, and maps of other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from stub_common import Files, StubTask, array, listed, load, save, truncate, writer
from stub_config import TestsetsConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.task import Batch, Facts, Metrics, Optim, Phase, Record, Split

SETS = ("a", "b")


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.decoder = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.decoder(self.encoder(torch.stack([image, depth], 1))).squeeze(1)


class Testsets(StubTask[TestsetsConfig]):
    monitor = ("mae", "min")

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 8), ("val", 3), ("test_a", 4), ("test_b", 3)):
            for i in range(count):
                mask = np.zeros((8, 8), np.float32)
                x, y = rng.integers(0, 5, 2)
                mask[x : x + 4, y : y + 4] = 1
                image, depth = (mask + rng.normal(0, s, (8, 8)) for s in (0.4, 0.8))
                save(
                    out / split,
                    f"{split}{i}",
                    image=image.astype(np.float32),
                    depth=depth.astype(np.float32),
                    mask=mask,
                )
        if defects:
            truncate(out / "test_b" / "test_b1.npz")

    def splits(self) -> dict[str, Split]:
        size = self.config.trainer.batch_size
        return {
            n: Files(listed(self.root() / n), train=n == "train", batch_size=size)
            for n in ("train", "val", *(f"test_{s}" for s in SETS))
        }

    def model(self, facts: Facts) -> nn.Module:
        return TwoStreams()

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        adam = torch.optim.Adam(model.parameters(), lr=self.config.optim.lr)
        return {"adam": Optim(adam, lambda epoch, step, steps: 0.97**epoch)}

    def phase(self, epoch: int, step: int) -> Phase | None:
        """The encoder rests for an epoch, then all trains."""
        return Phase(("adam",), ("encoder",), ("encoder",)) if epoch == 0 else None

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        logits = model(batch["image"], batch["depth"])
        return {"loss": functional.binary_cross_entropy_with_logits(logits, batch["mask"])}

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        maps = array(model(batch["image"], batch["depth"]).sigmoid())
        return [
            self._record(name, maps[i], array(batch["mask"][i]) if "mask" in batch else None)
            for i, name in enumerate(batch["id"])
        ]

    def _record(self, name: str, found: np.ndarray, mask: np.ndarray | None) -> Record:
        values = {"mean": np.asarray(found.mean())}
        if mask is not None:
            values["mae"] = np.asarray(np.abs(found - mask).mean())
        return Record(name, name, values, writer(name, found))

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        return {"mae": float(np.mean([r.values["mae"] for r in records]))}

    def finish(self, records: Sequence[Record], facts: Facts, out: Path) -> Sequence[Path]:
        if not self.serving:
            msg = "finish is for eval and predict"
            raise RuntimeError(msg)
        (out / "all.txt").write_text("\n".join(r.id for r in records))
        return [out / "all.txt"]

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return Files(list(paths), batch_size=2)

    def foreign(self, predictions: Path) -> Mapping[str, Sequence[Record]]:
        """Maps `<set>/<id>.npy` of somebody else's program."""
        return {
            f"test_{s}": [
                self._record(p.stem, np.load(map_file), load(p)["mask"])
                for p in listed(self.root() / f"test_{s}")
                if (map_file := predictions / s / f"{p.stem}.npy").is_file()
            ]
            for s in SETS
        }
