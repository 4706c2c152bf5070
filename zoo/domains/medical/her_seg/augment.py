"""Training pictures: cut or fitted to the model's square, then changed at random with their mask.

Everything a preset does stands in one table of strengths below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.domains.medical.her_seg.geometry import Fit, mask_to_square, to_square

# OpenCV's code for mirroring at the border, without repeating the border itself.
_MIRRORED = 4
# Points a prompt has at most; unused ones have label -1.
POINTS = 3
# How far an edge of a drawn box may lie from the mask's, in shares of the box and in pixels.
_BOX_SHARE, _BOX_PIXELS = 0.1, 20


@dataclass(frozen=True)
class Strength:
    """What is changed, how often and how much; a chance of 0 leaves a change out.

    Attributes:
        mirror: Chance of a mirror image, left and right exchanged.
        upset: Chance of top and bottom exchanged.
        turn: Chance of a turn by 90, 180 or 270 degrees (0 as well).
        warp: Chance of shift, scale and rotation.
        shift: Largest shift in shares of the side.
        scale: Smallest and largest factor.
        rotate: Largest angle in degrees.
        light: Chance of other brightness and contrast.
        brightness: Largest change in shares of the full range.
        contrast: Largest change of the factor 1.
        colour: Chance of other saturation and hue; grey stays grey.
        saturation: Largest change of the factor 1.
        hue: Largest turn of the colour circle, in shares of it.
        negative: Chance of inverted colours.
    """

    mirror: float = 0.0
    upset: float = 0.0
    turn: float = 0.0
    warp: float = 0.0
    shift: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    light: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    negative: float = 0.0


STRENGTHS: Mapping[str, Strength] = {
    # The official recipe has this and nothing else.
    "official": Strength(mirror=0.1),
    "standard": Strength(
        mirror=0.5,
        upset=0.5,
        turn=0.5,
        warp=0.5,
        shift=0.06,
        scale=(0.8, 1.25),
        rotate=20,
        light=0.5,
        brightness=0.2,
        contrast=0.2,
        colour=0.3,
        saturation=0.3,
        hue=0.03,
    ),
    "none": Strength(),
}


class Augmentation:
    """A preset's changes to a picture in the model's square and to its masks.

    Args:
        strength: What is changed.
    """

    def __init__(self, strength: Strength) -> None:
        self.strength = strength
        self._pipeline: Any = None

    @classmethod
    def of(cls, preset: str) -> Augmentation:
        """The preset that `data.augment` names."""
        return cls(STRENGTHS[preset])

    def __getstate__(self) -> dict[str, Any]:
        """Without the pipeline, which each process makes for itself."""
        return {"strength": self.strength, "_pipeline": None}

    def __call__(
        self, image: np.ndarray, masks: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Change one picture.

        Args:
            image: (S, S, 3) uint8.
            masks: (S, S) uint8 arrays over it, named `mask` and `valid`.
            rng: Where all chance comes from.

        Returns:
            The picture and the masks, of the same sizes and types.
        """
        if self.strength == Strength():
            return image, dict(masks)
        if self._pipeline is None:
            self._pipeline = _pipeline(self.strength)
        moved = self._pipeline(rng, image, **masks)
        return moved["image"], {name: moved[name] for name in masks}


def _pipeline(s: Strength) -> Any:
    from zoo.augmentation import Pipeline, albumentations  # takes a second or two

    spatial = {
        "mirror": (s.mirror, albumentations.HorizontalFlip(p=s.mirror)),
        "upset": (s.upset, albumentations.VerticalFlip(p=s.upset)),
        "turn": (s.turn, albumentations.RandomRotate90(p=s.turn)),
        "warp": (
            s.warp,
            albumentations.Affine(
                scale=s.scale,
                translate_percent=(-s.shift, s.shift),
                rotate=(-s.rotate, s.rotate),
                border_mode=_MIRRORED,
                p=s.warp,
            ),
        ),
    }
    colour = {
        "light": (
            s.light,
            albumentations.RandomBrightnessContrast(s.brightness, s.contrast, p=s.light),
        ),
        "colour": (
            s.colour,
            albumentations.ColorJitter(
                brightness=(1, 1),
                contrast=(1, 1),
                saturation=(1 - s.saturation, 1 + s.saturation),
                hue=(-s.hue, s.hue),
                p=s.colour,
            ),
        ),
        "negative": (s.negative, albumentations.InvertImg(p=s.negative)),
    }
    return Pipeline(
        [made for chance, made in spatial.values() if chance],
        [made for chance, made in colour.values() if chance],
        kinds={"valid": "mask"},
    )


# -- fitting ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Square:
    """A picture in the model's square.

    Attributes:
        image: (S, S, 3) uint8.
        mask: (S, S) uint8 class indices.
        valid: (S, S) uint8, 1 where the picture is and 0 in the padding.
    """

    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray


def fitted(image: np.ndarray, mask: np.ndarray, side: int, fit: Fit) -> Square:
    """A picture and its mask in the model's square.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 class indices.
        side: S.
        fit: How; `tiles` wants a picture that is no larger than the square.
    """
    square, placement = to_square(image, side, fit)
    return Square(square, mask_to_square(mask, placement), placement.valid().astype(np.uint8))


def cut(
    image: np.ndarray, mask: np.ndarray, side: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A window of the model's size at the picture's own resolution, as tiles are in prediction.

    Args:
        image: (H, W, 3).
        mask: (H, W).
        side: Largest height and width of the window.
        share: Chance that it holds a pixel of foreground chosen at random, if there is any.
        rng: Where all chance comes from; the same amount is drawn for every picture.

    Returns:
        Picture and mask of the window.
    """
    height, width = mask.shape
    toward, where, *at = rng.random(4)
    top, left = (int(a * (max(0, n - side) + 1)) for a, n in zip(at, (height, width), strict=True))
    found = np.flatnonzero(mask) if toward < share else np.zeros(0, np.int64)
    if len(found):
        # `at` is then where in the window the pixel lies.
        row, column = divmod(int(found[int(where * len(found))]), width)
        top = min(max(0, row - int(at[0] * side)), max(0, height - side))
        left = min(max(0, column - int(at[1] * side)), max(0, width - side))
    window = np.s_[top : top + side, left : left + side]
    return image[window], mask[window]


# -- prompts ------------------------------------------------------------------------------------


def drawn_prompts(
    mask: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as a user might give them for the whole of the foreground.

    Args:
        mask: (S, S), above 0 is foreground.
        kind: `points`, `boxes`, or `mixed`: points, a box, both or neither, equally often.
        rng: Where all chance comes from.

    Returns:
        Points (3, 3) float32: x, y, label; 1 inside, 0 outside, -1 unused. And a box (4,) float32:
        left, top, right, bottom, moved a little; all -1 if there is none. An empty mask has no
        box, and its points are outside.
    """
    points = np.zeros((POINTS, 3), np.float32)
    points[:, 2] = -1
    box = np.full(4, -1, np.float32)
    choice = int(rng.integers(4))
    if kind == "points" or (kind == "mixed" and choice in (0, 2)):
        count = int(rng.integers(1, POINTS + 1))
        # The first lies inside, further ones on either side.
        inside = [True, *(rng.random(count - 1) < 0.5)]
        for i, wanted in enumerate(inside):
            points[i] = _point(mask, bool(wanted), rng)
    if kind == "boxes" or (kind == "mixed" and choice in (1, 2)):
        box = _box(mask, rng)
    return points, box


def _point(mask: np.ndarray, inside: bool, rng: np.random.Generator) -> tuple[float, float, float]:
    where = np.flatnonzero(mask > 0) if inside else np.flatnonzero(mask == 0)
    if not len(where):
        inside, where = not inside, np.arange(mask.size)
    row, column = divmod(int(where[int(rng.integers(len(where)))]), mask.shape[1])
    return column + 0.5, row + 0.5, float(inside)


def _box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.flatnonzero((mask > 0).any(axis=1)), np.flatnonzero((mask > 0).any(axis=0))
    if not len(rows):
        return np.full(4, -1, np.float32)
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    sides = np.tile(edges[2:] - edges[:2], 2)
    most = np.minimum(_BOX_SHARE * sides, _BOX_PIXELS)
    moved = edges + rng.uniform(-1, 1, 4) * most
    limits = np.tile(mask.shape[::-1], 2)
    return np.asarray(np.clip(moved, 0, limits), np.float32)
