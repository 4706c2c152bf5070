"""Drawn pedestrians: who is seen lies in the clothes, where in a mild tint and in the view.

People come in pairs that wear the same three colours: only what is striped how, or what is worn
above and what below, tells the two apart. A colour histogram finds the pair, not the one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

PATTERNS = ("hoops", "bars", "yoke", "sash", "checks", "open")
GARMENTS = ("trousers", "shorts", "skirt")
_DYES: tuple[Colour, ...] = (
    (0.75, 0.14, 0.15),
    (0.90, 0.52, 0.13),
    (0.88, 0.80, 0.22),
    (0.20, 0.52, 0.24),
    (0.16, 0.57, 0.62),
    (0.17, 0.27, 0.66),
    (0.48, 0.22, 0.58),
    (0.85, 0.50, 0.62),
    (0.88, 0.88, 0.86),
    (0.12, 0.12, 0.14),
    (0.45, 0.33, 0.22),
    (0.52, 0.54, 0.56),
)
_HAIR: tuple[Colour, ...] = ((0.10, 0.08, 0.07), (0.36, 0.22, 0.12), (0.72, 0.58, 0.32))
_SKIN: tuple[Colour, ...] = ((0.91, 0.74, 0.62), (0.72, 0.52, 0.40), (0.42, 0.28, 0.21))
# Bottom of the feet and of the torso, crown of the head, as shares of a person's height.
_HIP, _SHOULDER, _NECK = 0.52, 0.185, 0.155


@dataclass(frozen=True)
class Person:
    """What stays the same in every image of a person.

    Attributes:
        upper: Colour of the upper garment, RGB in [0, 1].
        second: Colour of its pattern.
        lower: Colour of the lower garment.
        pattern: One of `PATTERNS`.
        garment: One of `GARMENTS`.
        sleeves: Long sleeves.
        hair: Colour.
        skin: Colour.
        tall: Factor on the height.
        wide: Factor on the width.
        bag: Colour of a shoulder bag, or None.
    """

    upper: Colour
    second: Colour
    lower: Colour
    pattern: str
    garment: str
    sleeves: bool
    hair: Colour
    skin: Colour
    tall: float
    wide: float
    bag: Colour | None


@dataclass(frozen=True)
class Camera:
    """What stays the same in every image of a camera.

    Attributes:
        gain: Factors on red, green and blue.
        level: Added to all.
        wall: Colour of the background above.
        ground: Colour below.
        back: Chance that a person is seen from behind.
        blur: Deviation in pixels of 128 rows.
        cells: Coarseness of the background.
    """

    gain: Colour
    level: float
    wall: Colour
    ground: Colour
    back: float
    blur: float
    cells: int


CAMERAS: tuple[Camera, ...] = (
    Camera((1.04, 1.00, 0.95), 0.01, (0.50, 0.52, 0.48), (0.58, 0.55, 0.50), 0.2, 0.5, 7),
    Camera((0.96, 1.00, 1.05), -0.02, (0.42, 0.48, 0.40), (0.46, 0.46, 0.47), 0.6, 0.7, 11),
    Camera((1.00, 1.03, 0.97), 0.03, (0.62, 0.60, 0.56), (0.66, 0.65, 0.63), 0.4, 0.4, 5),
    Camera((1.03, 0.98, 1.02), -0.04, (0.36, 0.37, 0.40), (0.44, 0.42, 0.40), 0.8, 0.6, 9),
    Camera((0.97, 0.98, 1.00), 0.00, (0.55, 0.50, 0.44), (0.52, 0.50, 0.46), 0.3, 0.8, 6),
    Camera((1.02, 1.02, 1.04), 0.05, (0.48, 0.54, 0.58), (0.60, 0.60, 0.62), 0.5, 0.5, 12),
)


def people(count: int, rng: np.random.Generator) -> list[Person]:
    """Draw people, every two of them in the same three colours.

    The second of a pair wears them the other way round, or in another pattern.

    Args:
        count: How many.
        rng: Source of all chance.
    """
    found: list[Person] = []
    while len(found) < count:
        dyes, patterns = _three_dyes(rng), rng.permutation(PATTERNS)
        garment, turned = str(rng.choice(GARMENTS)), rng.random() < 0.5
        for twin in range(2):
            upper, second, lower = dyes[::-1] if twin and turned else dyes
            bag = _DYES[rng.integers(len(_DYES))] if rng.random() < 0.25 else None
            found.append(
                Person(
                    upper=upper,
                    second=second,
                    lower=lower,
                    pattern=str(patterns[twin]),
                    garment=garment,
                    sleeves=bool(rng.random() < 0.5),
                    hair=_HAIR[rng.integers(len(_HAIR))],
                    skin=_SKIN[rng.integers(len(_SKIN))],
                    tall=float(rng.uniform(0.93, 1.05)),
                    wide=float(rng.uniform(0.86, 1.16)),
                    bag=bag,
                )
            )
    return found[:count]


def _three_dyes(rng: np.random.Generator) -> list[Colour]:
    """Three colours that differ, each a little off the dye."""
    chosen = rng.choice(len(_DYES), size=3, replace=False)
    shades = np.clip(np.array([_DYES[i] for i in chosen]) + rng.normal(0, 0.03, (3, 3)), 0, 1)
    return [(float(r), float(g), float(b)) for r, g, b in shades]


def draw(
    rng: np.random.Generator,
    person: Person | None,
    camera: Camera,
    size: tuple[int, int] = (128, 64),
    off: float = 0.0,
) -> NDArray[np.uint8]:
    """An image of a person as a detector's box would cut it out.

    Args:
        rng: Source of all chance: pose, mirroring, shift, scale, light.
        person: Whom to draw; None leaves the background alone.
        camera: Tint, background, view.
        size: Height and width in pixels.
        off: How far the box is off the person, as a share of its sides; 0 is a good box.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    height = size[0]
    picture = _background(rng, camera, size)
    if person is not None:
        x, y = _grid(rng, size, off)
        view = replace(person, tall=person.tall, wide=person.wide * rng.uniform(0.9, 1.05))
        picture = _drawn(picture, x, y, view, rng, back=rng.random() < camera.back)
    picture = picture * (1 + _slope(rng, height)[:, None, None])
    picture = picture * np.array(camera.gain) * rng.uniform(0.94, 1.06) + camera.level
    blur = camera.blur * height / 128
    picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    picture += rng.normal(0, 0.012, picture.shape)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8))


def _grid(rng: np.random.Generator, size: tuple[int, int], off: float) -> tuple[Floats, Floats]:
    """Body coordinates of each pixel: x from the middle, y from the crown, 1 is a body's height."""
    height, width = size
    scale = rng.uniform(0.86, 0.97)
    right, down = rng.uniform(-0.035, 0.035, 2)
    if off:
        angle = rng.uniform(0, 2 * np.pi)
        right, down = right + off * 0.5 * np.cos(angle), down + off * np.sin(angle)
    y = (np.arange(height) + 0.5) / height - (1 - scale) / 2 - down
    x = (np.arange(width) + 0.5) / height - width / height / 2 - right
    lean = rng.normal(0, 0.02)
    rows, columns = np.meshgrid(np.float32(y / scale), np.float32(x / scale), indexing="ij")
    return columns - np.float32(lean) * (rows - np.float32(0.5)), rows


def _background(rng: np.random.Generator, camera: Camera, size: tuple[int, int]) -> Floats:
    height, width = size
    horizon = rng.uniform(0.35, 0.7)
    rows = np.linspace(0, 1, height)[:, None, None]
    share = 1 / (1 + np.exp(-(rows - horizon) * 40))
    plain = (1 - share) * np.array(camera.wall) + share * np.array(camera.ground)
    cells = (camera.cells, max(2, camera.cells // 2), 1)
    light = rng.normal(0, 0.09) + rng.normal(0, 0.10, cells)
    coarse = light + rng.normal(rng.normal(0, 0.03, 3), 0.03, (*cells[:2], 3))
    down, right = _stretch(cells[0], height), _stretch(cells[1], width)
    picture: Floats = plain + np.einsum("yi,xj,ijc->yxc", down, right, coarse, optimize=True)
    if rng.random() < 0.4:  # a post, a door, a passing car
        left = rng.integers(0, width)
        picture[:, left : left + int(rng.integers(width // 16, width // 5))] += rng.normal(0, 0.08)
    return picture


def _stretch(cells: int, pixels: int) -> Floats:
    """(pixels, cells): weights of linear interpolation between cells."""
    at = np.linspace(0, cells - 1, pixels)
    weights: Floats = np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1)
    return weights


def _slope(rng: np.random.Generator, height: int) -> Floats:
    slope: Floats = np.linspace(-1, 1, height) * rng.uniform(-0.06, 0.06)
    return slope


# -- the body -----------------------------------------------------------------------------------


def _drawn(
    picture: Floats,
    x: Floats,
    y: Floats,
    person: Person,
    rng: np.random.Generator,
    *,
    back: bool,
) -> Floats:
    """The person over a background, from the back to the front."""
    y = 1 - (1 - y) / person.tall  # feet stay where they are
    half = 0.150 * person.wide
    swing = rng.uniform(-1, 1)
    skin, hair = np.array(person.skin), np.array(person.hair)
    picture = _legs(picture, x, y, person, half, swing)
    arm = np.array(person.upper)
    for side in (-1, 1):
        reach = side * (half + 0.010), _SHOULDER + 0.03
        elbow = side * (half + 0.025 + 0.012 * side * swing), _SHOULDER + 0.17
        hand = side * (half + 0.02 + 0.03 * side * swing), _HIP - 0.01
        picture = _over(picture, _limb(x, y, reach, elbow, 0.036), arm)
        picture = _over(picture, _limb(x, y, elbow, hand, 0.030), arm if person.sleeves else skin)
        picture = _over(picture, _limb(x, y, hand, hand, 0.026), skin)
    torso = np.minimum(half - np.abs(x), np.minimum(y - _SHOULDER + 0.02, _HIP + 0.015 - y))
    torso = np.minimum(torso, half + 0.035 - np.abs(x) - (_SHOULDER + 0.03 - y).clip(0))
    down = (y - _SHOULDER) / (_HIP - _SHOULDER)
    marked = _pattern(person.pattern, x / half, down)[..., None]
    cloth = marked * np.array(person.second) + (1 - marked) * np.array(person.upper)
    picture = _over(picture, torso, cloth * (1 - 0.10 * (np.abs(x) / half).clip(0, 1)[..., None]))
    picture = _over(picture, _limb(x, y, (0, _NECK - 0.02), (0, _SHOULDER - 0.01), 0.025), skin)
    head = 1 - np.hypot(x / 0.058, (y - 0.085) / 0.074)
    picture = _over(picture, head * 0.05, hair if back else skin)
    cap = np.minimum(head, (0.060 - y) / 0.05)
    picture = _over(picture, cap * 0.05, hair)
    if person.bag is not None:
        box = np.minimum(0.055 - np.abs(x - half), 0.07 - np.abs(y - _HIP + 0.04))
        picture = _over(picture, box, np.array(person.bag))
    return picture


def _legs(
    picture: Floats, x: Floats, y: Floats, person: Person, half: float, swing: float
) -> Floats:
    cloth, skin = np.array(person.lower), np.array(person.skin)
    stride = 0.035 * abs(swing)
    for side in (-1, 1):
        hip = side * half * 0.48, _HIP
        knee = side * (half * 0.46 + stride * 0.6), 0.74
        foot = side * (half * 0.42 + stride), 0.95
        shin = cloth if person.garment == "trousers" else skin
        picture = _over(picture, _limb(x, y, knee, foot, 0.048), shin)
        if person.garment != "skirt":
            picture = _over(picture, _limb(x, y, hip, knee, 0.070), cloth)
        shoe = np.array((0.15, 0.14, 0.14))
        picture = _over(picture, _limb(x, y, foot, (foot[0] + side * 0.012, 0.965), 0.024), shoe)
    if person.garment == "skirt":
        flare = half * 0.85 + 0.22 * (y - _HIP)
        cone = np.minimum(flare - np.abs(x), np.minimum(y - _HIP + 0.02, 0.76 - y))
        picture = _over(picture, cone, cloth)
    return picture


def _limb(
    x: Floats, y: Floats, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Floats:
    """Signed distance to a capsule, positive inside, in body heights."""
    along = end[0] - start[0], end[1] - start[1]
    length = max(along[0] ** 2 + along[1] ** 2, 1e-12)
    share = (x - start[0]) * (along[0] / length) + (y - start[1]) * (along[1] / length)
    share = np.clip(share, 0, 1)
    right, down = x - start[0] - share * along[0], y - start[1] - share * along[1]
    distance: Floats = radius - np.sqrt(right * right + down * down)
    return distance


def _pattern(name: str, across: Floats, down: Floats) -> Floats:
    """1 where the second colour is; `across` runs from -1 to 1, `down` from 0 to 1."""
    if name == "hoops":
        value = np.sin(2 * np.pi * 2.5 * down)
    elif name == "bars":
        value = -np.cos(2 * np.pi * 1.5 * across)
    elif name == "yoke":
        value = (0.45 - down) * 8
    elif name == "sash":
        value = (0.42 - np.abs(across - 2 * (down - 0.5))) * 5
    elif name == "checks":
        value = np.sin(2 * np.pi * 1.5 * down) * np.sin(np.pi * 1.5 * across)
        value = 3 * value
    else:  # open
        value = (0.42 - np.abs(across)) * 6
    soft: Floats = 1 / (1 + np.exp(-np.clip(6 * value, -30, 30)))
    return soft


def _over(picture: Floats, distance: Floats, colour: Floats) -> Floats:
    """Lay a shape of one colour, or of a coloured picture, over a picture; soft by a pixel.

    The picture is changed, only where the shape is: most shapes are small.
    """
    soft = np.clip(distance * picture.shape[0] + 0.5, 0, 1)
    rows, columns = np.flatnonzero(soft.any(axis=1)), np.flatnonzero(soft.any(axis=0))
    if rows.size:
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inner = picture[box]
        inner += soft[box][..., None] * ((colour[box] if colour.ndim == 3 else colour) - inner)
    return picture
