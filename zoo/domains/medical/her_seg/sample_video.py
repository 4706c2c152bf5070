"""A synthetic data set of clips: a bright body that drifts over uneven ground.

`train/<clip>/frames/frame3.png` … `frame10.png` (numbers without leading zeros, which plain sorting
puts in the wrong order) with masks of every second frame in `train/<clip>/masks`, likewise `test`;
and `drifting.mp4`, a video to predict on, with frames at uneven times.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from zoo.domains.medical.her_seg.video_file import VideoWriter

# Part of the cache key of the sample data set: raise it whenever what is written changes.
VERSION = 1

SIDE, FRAMES = 96, 8
_FIRST = 3  # number of the first frame: 3 to 10, so that plain sorting goes wrong
_TRAIN, _TEST = 10, 3
_MILLISECOND = Fraction(1, 1000)


@dataclass(frozen=True, eq=False)
class Clip:
    """A drawn clip.

    Attributes:
        frames: (T, H, W, 3) uint8.
        masks: (T, H, W) bool.
    """

    frames: np.ndarray
    masks: np.ndarray


def draw(rng: np.random.Generator, frames: int = FRAMES, side: int = SIDE) -> Clip:
    """A body that moves, turns and breathes; dark bodies and bright threads lie still.

    Args:
        rng: Where all chance comes from.
        frames: T.
        side: H and W in pixels.
    """
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    ground = rng.uniform(0.35, 0.5) + 0.2 * (rows * np.sin(angle) + columns * np.cos(angle))
    ground += 0.6 * ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), side / 12)
    for _ in range(int(rng.integers(1, 3))):
        y, x = rng.uniform(-0.8, 0.8, 2)
        long, short = rng.uniform(0.12, 0.25, 2)
        ground[_ellipse(rows, columns, y, x, long, short, 0)] -= 0.2
    for _ in range(3):
        turn, off = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8)
        across = rows * np.sin(turn) + columns * np.cos(turn) - off
        ground[np.abs(across) < rng.uniform(0.02, 0.035)] += 0.22
    start, drift = rng.uniform(-0.4, 0.4, 2), rng.uniform(-0.5, 0.5, 2)
    radii, lift = rng.uniform(0.25, 0.42, 2), rng.uniform(0.22, 0.3)
    turn, spin = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6)
    tint = rng.uniform(0.85, 1.15, 3)
    pictures, masks = [], []
    for share in np.linspace(0, 1, frames):
        y, x = start + share * drift
        size = radii * (1 + 0.12 * np.sin(2 * np.pi * share))
        body = _ellipse(rows, columns, y, x, size[0], size[1], turn + share * spin)
        shade = ndimage.gaussian_filter(ground + lift * body, 0.7)
        noise = rng.normal(0, 0.035, (side, side, 1)) + rng.normal(0, 0.015, (side, side, 3))
        pictures.append(shade[..., None] * tint / tint.mean() + noise)
        masks.append(body)
    shown = np.clip(np.rint(255 * np.stack(pictures)), 0, 255).astype(np.uint8)
    return Clip(shown, np.stack(masks))


def _ellipse(
    rows: np.ndarray,
    columns: np.ndarray,
    y: float,
    x: float,
    long: float,
    short: float,
    turn: float,
) -> np.ndarray:
    u = (columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)
    v = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
    return np.asarray((u / long) ** 2 + (v / short) ** 2 <= 1)


def write_clips(out: Path, defects: bool = False, seed: int = 0) -> None:
    """Write the data set: 10 clips to train, 3 to test and a video.

    Args:
        out: Folder; it is made if need be.
        defects: Add clips named `defect_…` that each have one of the faults found in practice.
        seed: Seeds everything.
    """
    rng = np.random.default_rng([seed, VERSION, 4])
    for number in range(_TRAIN + _TEST):
        part = "train" if number < _TRAIN else "test"
        write_clip(out / part / f"clip{number + 1}", draw(rng))
    write_video(out / "drifting.mp4", draw(rng, 24).frames)
    if defects:
        write_defects(out, rng)


def write_clip(folder: Path, clip: Clip) -> None:
    """Write `frames` and, for every second frame, `masks`."""
    for name in ("frames", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        stem = f"frame{_FIRST + i}"
        Image.fromarray(frame).save(folder / "frames" / f"{stem}.png")
        if i % 2 == 0:
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{stem}.png")


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write an MP4 whose first half has 25 frames a second and whose second half has 10.

    Args:
        path: The file.
        frames: (T, H, W, 3) uint8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [40 if i < len(frames) // 2 else 100 for i in range(len(frames))]
    stamps = np.cumsum([0, *steps[:-1]])
    size = frames.shape[1], frames.shape[2]
    with VideoWriter(path, size, _MILLISECOND) as video:
        for frame, stamp in zip(frames, stamps, strict=True):
            video.add(frame, int(stamp))


# -- defects ------------------------------------------------------------------------------------


def write_defects(out: Path, rng: np.random.Generator) -> None:
    """Add clips that each have one fault, named after it, and a video that is cut off."""
    for name in ("broken_frame", "other_size", "mask_size", "mask_without_frame", "broken_mask"):
        folder = out / "train" / f"defect_{name}"
        write_clip(folder, draw(rng, 4, 48))
        frame, mask = (folder / k / f"frame{_FIRST + 2}.png" for k in ("frames", "masks"))
        if name.startswith("broken"):
            path = frame if name == "broken_frame" else mask
            path.write_bytes(path.read_bytes()[:60])
        elif name == "other_size":
            Image.new("RGB", (40, 48)).save(frame)
        elif name == "mask_size":
            Image.new("L", (40, 48)).save(mask)
        else:
            mask.rename(mask.with_name("frame77.png"))
    body = (out / "drifting.mp4").read_bytes()
    (out / "defect_cut_off.mp4").write_bytes(body[: len(body) // 2])
