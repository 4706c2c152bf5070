"""Drawing the pictures of the synthetic 2D data: bright bodies on uneven ground.

A body is a little brighter than what surrounds it. The ground itself runs from dark to bright over
more than that, and dark bodies and bright threads lie about that are not annotated, so that no
threshold on brightness tells what is foreground, while the surroundings of a pixel do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_CONTRAST = (0.2, 0.3)  # of a body over its surroundings
_NOISE = 0.04


@dataclass(frozen=True, eq=False)
class Drawn:
    """A synthetic picture.

    Attributes:
        rgb: (H, W, 3) uint8.
        objects: (H, W) int32, bodies numbered from 1, 0 background; they do not overlap.
    """

    rgb: np.ndarray
    objects: np.ndarray


def draw(size: tuple[int, int], rng: np.random.Generator, bodies: int) -> Drawn:
    """A picture of some bodies on shaded ground, with threads and dark bodies beside them.

    Args:
        size: (height, width) in pixels.
        rng: Where all chance comes from.
        bodies: How many are drawn; 0 makes a picture without foreground.
    """
    unit = min(size)
    taken = np.zeros(size, bool)
    objects = np.zeros(size, np.int32)
    lift = np.zeros(size)
    radii = (0.1 * unit, 0.24 * unit)
    for number in range(1, bodies + 1):
        body = _placed(size, radii, taken, rng)
        objects[body] = number
        lift[body] = rng.uniform(*_CONTRAST)
    for _ in range(int(rng.integers(1, 4))):
        lift[_placed(size, (0.06 * unit, 0.14 * unit), taken, rng)] = -rng.uniform(*_CONTRAST)
    for _ in range(2):
        thread = _thread(size, rng) & (objects == 0)
        lift[thread] = rng.uniform(*_CONTRAST)
    return Drawn(_coloured(_ground(size, rng) + lift, rng), objects)


def draw_nuclei(size: tuple[int, int], rng: np.random.Generator, *, stained: bool) -> Drawn:
    """A picture of many small nuclei: bright on dark, or dark on bright if `stained`."""
    taken = np.zeros(size, bool)
    objects = np.zeros(size, np.int32)
    lift = np.zeros(size)
    for number in range(1, int(rng.integers(6, 15)) + 1):
        body = _placed(size, (4.5, 8.5), taken, rng, gap=1)
        objects[body] = number
        lift[body] = rng.uniform(0.25, 0.5)
    # Relabelled: a nucleus for which there was no room has left a gap in the numbers.
    numbers = np.unique(objects)
    objects = np.searchsorted(numbers, objects).astype(np.int32)
    shade = 0.12 + 0.1 * _smooth(size, 3, rng) + lift
    if not stained:
        grey = _bytes(shade[..., None] + rng.normal(0, 0.02, (*size, 1)))
        return Drawn(np.repeat(grey, 3, axis=2), objects)
    tint = np.array([0.55, 0.85, 0.35])  # what a stain takes away from white
    rgb = 0.93 - shade[..., None] * tint + rng.normal(0, 0.02, (*size, 3))
    return Drawn(_bytes(rgb), objects)


def _ground(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) brightness that falls off to one side and has soft bumps."""
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0.2, 0.3) * (rows * np.sin(angle) + columns * np.cos(angle))
    return np.asarray(rng.uniform(0.35, 0.5) + slope + 0.05 * _smooth(size, 5, rng))


def _coloured(brightness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    tint = rng.uniform(0.85, 1.15, 3)
    blurred = ndimage.gaussian_filter(brightness, 0.7)
    noise = rng.normal(0, _NOISE, (*brightness.shape, 1)) + rng.normal(
        0, _NOISE / 2, (*brightness.shape, 3)
    )
    return _bytes(blurred[..., None] * tint / tint.mean() + noise)


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.rint(unit * 255), 0, 255), np.uint8)


def _smooth(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) noise in about [-1, 1] with `cells` bumps along a side."""
    coarse = rng.uniform(-1, 1, (cells + 3, cells + 3))
    at = np.meshgrid(*(np.linspace(1, cells + 1, side) for side in size), indexing="ij")
    return np.asarray(ndimage.map_coordinates(coarse, at, order=3))


def _placed(
    size: tuple[int, int],
    radii: tuple[float, float],
    taken: np.ndarray,
    rng: np.random.Generator,
    gap: int = 3,
) -> np.ndarray:
    """(H, W) bool: an ellipse where there is room, marked in `taken` with a margin around it."""
    for _ in range(60):
        long, short = rng.uniform(*radii, 2)
        angle = rng.uniform(0, np.pi)
        y, x = (rng.uniform(0.1, 0.9) * side for side in size)
        rows, columns = np.ogrid[: size[0], : size[1]]
        u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        shape = (u / long) ** 2 + (v / short) ** 2 <= 1
        room = (u / (long + gap)) ** 2 + (v / (short + gap)) ** 2 <= 1
        if not (room & taken).any():
            taken |= room
            return np.asarray(shape)
    return np.zeros(size, bool)


def _thread(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: a bent line from side to side, two pixels wide."""
    along = np.arange(size[1])
    start, end, bend = *rng.uniform(0, 1, 2), rng.uniform(-0.2, 0.2)
    t = along / max(1, size[1] - 1)
    height = (start + (end - start) * t + bend * np.sin(np.pi * t)) * (size[0] - 1)
    mask = np.abs(np.arange(size[0])[:, None] - height[None]) <= 1
    return np.asarray(mask if rng.random() < 0.5 or size[0] != size[1] else mask.T)
