"""Stacks in memory and networks whose answer is known, for tests of what comes after reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo.config import resolve
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.stacks import Kind, Prompts


@dataclass
class FakeStack:
    """A stack whose pictures are arrays."""

    id: str
    pictures: Sequence[np.ndarray]
    truths: Sequence[np.ndarray | None] = ()
    kind: Kind = "image"
    group: str = ""
    spacing: tuple[float, ...] | None = None
    given: dict[int, Prompts] = field(default_factory=dict)
    objects: np.ndarray | None = None
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def picture(self, index: int) -> np.ndarray:
        self.read.append(index)
        return self.pictures[index]

    def truth(self, index: int) -> np.ndarray | None:
        return self.truths[index] if self.truths else None

    def instances(self, index: int) -> np.ndarray | None:
        return self.objects

    def prompts(self, index: int) -> Prompts | None:
        return self.given.get(index)

    def write(self, out: Path, labels: Callable[[int], np.ndarray]) -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.id}.npy"
        np.save(path, np.stack([labels(i) for i in range(len(self))]))
        return [path]


class Bright(nn.Module):
    """Calls what is brighter than a half; several classes are steps of brightness."""

    def __init__(self, outputs: int = 1, gain: float = 20.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.outputs = outputs
        self.seen: list[tuple[int, ...]] = []
        self.prompts: list[Any] = []

    def forward(self, image: Tensor, prompts: Any = None) -> Tensor:
        self.seen.append(tuple(image.shape))
        self.prompts.append(prompts)
        grey = image[:, :1]
        if self.outputs == 1:
            return self.gain * (grey - 0.5)
        steps = torch.arange(self.outputs, device=image.device).view(1, -1, 1, 1)
        return -self.gain * (grey * (self.outputs - 1) - steps) ** 2


def painted(mask: np.ndarray, classes: int = 1, seed: int | None = None) -> np.ndarray:
    """A picture in which `Bright` sees exactly this mask."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-0.1, 0.1, mask.shape) / classes if seed is not None else 0.0
    grey = (0.2 + 0.6 * mask if classes == 1 else mask / classes) + noise
    return np.repeat(grey[..., None], 3, axis=2).clip(0, 1).astype(np.float32)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    return inside.astype(np.uint8)


def settings(*words: str) -> Config:
    """Resolved settings without data."""
    config = resolve(["task=her_seg", "preset=sample", *words]).config
    assert isinstance(config, Config)
    return config


# -- small data sets on the disk ----------------------------------------------------------------


def write_folders(root: Path, classes: int = 1) -> Path:
    """Images, masks and a list: 6 to train, 2 to select, 2 to test; discs on a dark ground."""
    rng = np.random.default_rng(0)
    listed: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, part in enumerate(["train"] * 6 + ["valid"] * 2 + ["test"] * 2):
        shape = (40, 56) if i % 2 else (48, 48)
        mask = disc(shape, tuple(rng.uniform(12, 30, 2)), float(rng.uniform(8, 12)))
        if classes > 1:
            mask[disc(shape, (32, 38), 7) > 0] = 2
        picture = painted(mask, classes, seed=i)
        Image.fromarray((picture * 255).astype(np.uint8)).save(root / "images" / f"p{i}.png")
        values = mask * 255 if classes == 1 else mask
        Image.fromarray(values).save(root / "masks" / f"p{i}.png")
        listed[part].append(f"p{i}.png")
    (root / "data_split.json").write_text(json.dumps(listed))
    return root


def write_frames(root: Path, count: int = 6) -> Path:
    """One folder of frames on which a disc comes and goes."""
    root.mkdir(parents=True)
    for i in range(count):
        mask = disc((48, 64), (24, 30 + i), 10) * (i % 2)
        picture = (painted(mask.astype(np.uint8), seed=i) * 255).astype(np.uint8)
        Image.fromarray(picture).save(root / f"frame{i}.png")
    return root
