"""Trained on slices, evaluated on volumes, with a mask file a volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from stub_common import Files, StubTask, array, digest, listed, load, save, truncate, writer
from stub_config import VolumesConfig
from torch import Tensor, nn
from torch.nn import functional

from zoo.data import ListSplit
from zoo.task import Batch, Facts, Metrics, Optim, Record, Split


class Slices(ListSplit):
    """One item a slice of the volumes in `paths`."""

    def __init__(self, paths: Sequence[Path], batch_size: int) -> None:
        self.slices = [(p, z) for p in paths for z in range(len(load(p)["volume"]))]
        ids = [f"{p.stem}/{z}" for p, z in self.slices]
        groups = [p.stem.partition("-")[0] for p, _ in self.slices]
        super().__init__(ids, groups, digest(paths), batch_size=batch_size, shuffle=True)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        path, z = self.slices[index]
        body = load(path)
        flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
        return {
            "image": np.ascontiguousarray(body["volume"][z, :, flip]),
            "mask": np.ascontiguousarray(body["mask"][z, :, flip]),
        }

    def collate(self, items: list[Batch]) -> Batch:
        return {k: torch.from_numpy(np.stack([i[k] for i in items])) for k in items[0]}


class Net(nn.Module):
    low: Tensor
    high: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("high", torch.tensor(high))
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)
        )

    def forward(self, slices: Tensor) -> Tensor:
        scaled = (slices - self.low) / (self.high - self.low)
        return self.net(scaled.unsqueeze(1)).squeeze(1)


class Volumes(StubTask[VolumesConfig]):
    monitor = ("dice", "max")

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        rng = np.random.default_rng(0)
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            for i in range(count):
                depth = int(rng.integers(3, 7))
                mask = np.zeros((depth, 8, 8), np.float32)
                x, y = rng.integers(0, 4, 2)
                mask[1:, x : x + 4, y : y + 4] = 1
                volume = 100 + 50 * mask + rng.normal(0, 5, mask.shape).astype(np.float32)
                save(out / split, f"{split}{i}-ct", volume=volume.astype(np.float32), mask=mask)
        if defects:
            truncate(out / "test" / "test1-ct.npz")

    def splits(self) -> dict[str, Split]:
        root = self.root()
        return {
            "train": Slices(listed(root / "train"), self.config.trainer.batch_size),
            "val": Files(listed(root / "val")),
            "test": Files(listed(root / "test")),
        }

    def fit(self, train: Split) -> Facts:
        rng = np.random.default_rng(0)
        values = [train.item(i, rng)["image"] for i in range(len(train.ids))]
        return {"low": float(min(v.min() for v in values)), "high": float(np.max(values))}

    def model(self, facts: Facts) -> nn.Module:
        return Net(facts["low"], facts["high"])

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        return {"adam": Optim(torch.optim.Adam(model.parameters(), lr=self.config.optim.lr))}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        logits = model(batch["image"])
        return {
            "loss": functional.binary_cross_entropy_with_logits(logits, batch["mask"]),
            "dimensions": torch.tensor(float(batch["image"].ndim)),
        }

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        made = []
        for i, name in enumerate(batch["id"]):
            # Slice by slice, as a volume would be too large at once.
            found = torch.cat([model(z[None]) for z in batch["volume"][i]]) > 0
            values = {}
            if "mask" in batch:
                mask = batch["mask"][i] > 0
                values = {
                    "both": array((found & mask).sum()),
                    "sizes": array(found.sum() + mask.sum()),
                }
            values["voxels"] = array(found.sum())
            mask_file = writer(name, array(found).astype(np.uint8))
            made.append(Record(name, batch["group"][i], values, mask_file))
        return made

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        dice = [2 * r.values["both"] / max(1, r.values["sizes"]) for r in records]
        return {"dice": float(np.mean(dice)), "volumes": float(len(records))}

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        return Files(list(paths))
