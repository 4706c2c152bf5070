"""A drawn chest: dark lungs with ribs on a bright torso, and soft opacities in or beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Phantom:
    """A drawn radiograph.

    Attributes:
        image: (H, W) in [0, 1], bright is dense.
        lungs: (H, W) bool.
        zones: How many of six lung zones (upper, middle, lower, left and right) hold an opacity.
    """

    image: Floats
    lungs: NDArray[np.bool_]
    zones: int


def draw(
    rng: np.random.Generator, height: int, width: int, positive: bool, supine: bool = False
) -> Phantom:
    """Draw a chest.

    Args:
        rng: Source of all chance.
        height: Pixels.
        width: Pixels.
        positive: Two to five opacities in the lungs, mostly low and to the side; otherwise none,
            or one outside the lungs, so that a bright spot alone is no sign.
        supine: The larger heart of an image taken from the front (AP).
    """
    x, y = _grid(rng, height, width)
    torso = _soft(1 - np.abs((x - 0.5) / 0.47) ** 2.4 - np.abs((y - 0.62) / 0.72) ** 4, 0.05)
    half = 0.135 + 0.02 * rng.random(2)
    tall = 0.26 + 0.04 * rng.random(2)
    middle = 0.46 + 0.02 * rng.random(2)
    sides = (0.5 - 0.185, 0.5 + 0.185)
    lungs = [
        1 - ((x - side) / half[i]) ** 2 - ((y - middle[i]) / tall[i]) ** 2
        for i, side in enumerate(sides)
    ]
    heart = 1 - ((x - 0.55) / (0.145 if supine else 0.115)) ** 2 - ((y - 0.62) / 0.15) ** 2
    open_lung = np.maximum(*lungs)
    open_lung = np.minimum(open_lung, -heart)
    lung = _soft(open_lung, 0.08)
    image = 0.06 + torso * (0.52 - 0.36 * lung)
    image += torso * (0.10 * _soft(1 - np.abs((x - 0.5) / 0.06) ** 2, 0.2))
    image += 0.10 * _soft(heart, 0.15)
    image += torso * _ribs(rng, x, y) * (0.05 + 0.05 * lung)
    inside = open_lung > 0
    spots, zones = _opacities(rng, positive, inside, x, y, sides, half, middle, tall)
    image += spots
    image += 0.018 * rng.standard_normal(image.shape) + _clouds(rng, height, width)
    contrast, level = rng.uniform(0.8, 1.15), rng.uniform(-0.06, 0.08)
    return Phantom(np.clip(contrast * image + level, 0, 1), inside, zones)


def _grid(rng: np.random.Generator, height: int, width: int) -> tuple[Floats, Floats]:
    """Body coordinates of every pixel: slightly turned, moved and scaled."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5
    angle = math.radians(rng.uniform(-4, 4))
    scale = rng.uniform(0.92, 1.06)
    shift = rng.uniform(-0.03, 0.03, size=2)
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    return 0.5 + c * x - s * y + shift[0], 0.5 + s * x + c * y + shift[1]


def _soft(distance: Floats, width: float) -> Floats:
    """1 where the distance is positive, 0 where it is not, soft over `width`."""
    soft: Floats = 1 / (1 + np.exp(-np.clip(distance / width, -30, 30)))
    return soft


def _ribs(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    bend = rng.uniform(0.8, 1.3)
    phase = y + bend * (np.abs(x - 0.5) - 0.18) ** 2 * 2
    waves = np.cos(2 * np.pi * (phase * rng.uniform(9, 11) + rng.random()))
    ribs: Floats = np.clip(waves, 0, None) ** 2
    return ribs


def _clouds(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Slow changes of brightness, as of uneven exposure."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    a, b, c = rng.uniform(-0.04, 0.04, size=3)
    slow: Floats = a * x + b * y + c * x * y
    return slow


def _opacities(
    rng: np.random.Generator,
    positive: bool,
    inside: NDArray[np.bool_],
    x: Floats,
    y: Floats,
    sides: tuple[float, float],
    half: Floats,
    middle: Floats,
    tall: Floats,
) -> tuple[Floats, int]:
    spots = np.zeros_like(x)
    if not positive:
        if rng.random() < 0.5:
            # Shoulder, neck or belly.
            places = ((0.17, 0.14), (0.83, 0.14), (0.5, 0.1), (0.3, 0.88), (0.65, 0.9))
            at = places[rng.integers(len(places))]
            spots += _spot(rng, x, y, at[0], at[1])
        return spots, 0
    zones = set()
    for _ in range(int(rng.integers(2, 6))):
        lung = int(rng.integers(2))
        out = (-1, 1)[lung] * rng.uniform(0.1, 0.75)
        # Low more often than high, at the side more often than at the heart.
        low = rng.triangular(-0.6, 0.45, 0.7)
        centre = sides[lung] + out * half[lung] * math.sqrt(1 - low * low)
        spots += _spot(rng, x, y, centre, middle[lung] + low * tall[lung])
        zones.add((lung, int(low > -0.2) + int(low > 0.25)))
    return spots * np.where(inside, 1.0, 0.35), len(zones)


def _spot(rng: np.random.Generator, x: Floats, y: Floats, u: float, v: float) -> Floats:
    wide, high = rng.uniform(0.035, 0.06, size=2)
    spot: Floats = rng.uniform(0.16, 0.28) * np.exp(
        -(((x - u) / wide) ** 2 + ((y - v) / high) ** 2) / 2
    )
    return spot
