"""Writing small pictures and masks, and a configuration that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.domains.medical.her_seg.config import Config

REAL = Path(__file__).parents[4] / "shared" / "data" / "her_seg"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not here")


def configure(root: Path | None, size: int = 32, **given: Any) -> Config:
    """A small configuration; `given` are keys of `data`, or whole other sections."""
    sections = {k: given.pop(k) for k in ("optim", "trainer", "predict", "model") if k in given}
    body: dict[str, Any] = {"task": "her_seg", "preset": "paper"}
    body |= {"data": {"root": root, **given}, "model": {"image_size": size}} | sections
    return Config.model_validate(body)


def disc(size: tuple[int, int] = (24, 20), seed: int = 0) -> np.ndarray:
    """(H, W) bool: a disc somewhere inside of the picture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: size[0], : size[1]]
    y, x = rng.uniform(7, np.array(size) - 7)
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= 25)


def picture(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: the mask as a bright thing."""
    noise = np.random.default_rng([seed, 7]).integers(0, 60, (*mask.shape, 3))
    return (noise + 150 * mask[..., None]).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    """Write an array as a picture; bool becomes 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = array.astype(np.uint8) * 255 if array.dtype == bool else array
    Image.fromarray(values).save(path, **options)
    return path


def pairs(
    root: Path,
    names: Sequence[str],
    images: str = "images/{}.png",
    masks: str = "masks/{}.png",
    size: tuple[int, int] = (24, 20),
) -> dict[str, np.ndarray]:
    """Write a picture and a mask for each name; the masks, by name."""
    made = {}
    for seed, name in enumerate(names):
        made[name] = disc(size, seed)
        save(root / images.format(name), picture(made[name], seed))
        save(root / masks.format(name), made[name])
    return made


def write_json(path: Path, body: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))
    return path
