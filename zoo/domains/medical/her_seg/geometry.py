"""How a picture of any size meets the model's square, and how what the model says comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional

Fit = Literal["squash", "letterbox", "tiles"]
# What stands beside a padded picture: the mean of ImageNet, which the model's normalisation turns
# into about 0, as Segment Anything pads.
PADDING = (124, 116, 104)


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the model's square.

    Attributes:
        size: (H, W) of the picture.
        side: S of the square.
        inner: (h, w) the picture has inside of the square, at its upper left corner.
    """

    size: tuple[int, int]
    side: int
    inner: tuple[int, int]

    def back(self, logits: Tensor) -> Tensor:
        """Logits (K, S, S), or at any lower resolution, as (K, H, W), bilinear."""
        share = logits.shape[-1] / self.side
        height, width = (max(1, round(n * share)) for n in self.inner)
        # Cut first: at the border the padding must not be mixed in.
        cut = logits[:, :height, :width]
        if tuple(cut.shape[1:]) == self.size:
            return cut
        return functional.interpolate(cut[None], self.size, mode="bilinear", align_corners=False)[0]

    def valid(self) -> np.ndarray:
        """(S, S) bool, where the picture is."""
        inside = np.zeros((self.side, self.side), bool)
        inside[: self.inner[0], : self.inner[1]] = True
        return inside

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Positions (..., 2) x, y in pixels of the picture, in pixels of the square."""
        scale = np.array([self.inner[1] / self.size[1], self.inner[0] / self.size[0]], np.float32)
        return np.asarray(xy, np.float32) * scale


def place(size: tuple[int, int], side: int, fit: Fit) -> Placement:
    """Where a picture will lie in the square.

    Args:
        size: (H, W).
        side: S.
        fit: `squash` stretches both sides to S as published, `letterbox` keeps the aspect ratio
            and pads at the right or below, `tiles` keeps the resolution and pads.

    Raises:
        ValueError: `tiles`, and the picture is larger than the square: cut it first.
    """
    height, width = size
    if fit == "squash":
        return Placement(size, side, (side, side))
    if fit == "letterbox":
        share = side / max(size)
        inner = (max(1, round(height * share)), max(1, round(width * share)))
        return Placement(size, side, inner)
    if max(size) > side:
        msg = f"a picture of {height} x {width} is larger than the square of {side}; cut it first"
        raise ValueError(msg)
    return Placement(size, side, size)


def to_square(image: np.ndarray, side: int, fit: Fit) -> tuple[np.ndarray, Placement]:
    """A picture in the model's square: bilinear with antialiasing, padded with the mean colour.

    Args:
        image: (H, W, 3) uint8, or float32 in [0, 1].
        side: S.
        fit: As for `place`.

    Returns:
        (S, S, 3) of the same type, and where the picture lies in it.

    Raises:
        ValueError: As for `place`.
    """
    placement = place((image.shape[0], image.shape[1]), side, fit)
    inner = resized(image, placement.inner)
    if placement.inner == (side, side):
        return inner, placement
    colour = np.array(PADDING)
    square = np.empty((side, side, 3), image.dtype)
    square[:] = colour if image.dtype == np.uint8 else colour / 255
    square[: placement.inner[0], : placement.inner[1]] = inner
    return square, placement


def mask_to_square(mask: np.ndarray, placement: Placement) -> np.ndarray:
    """A mask (H, W) beside its picture: (S, S) by nearest pixel, 0 in the padding."""
    inner = resized(mask, placement.inner, nearest=True)
    if placement.inner == (placement.side, placement.side):
        return inner
    square = np.zeros((placement.side, placement.side), mask.dtype)
    square[: placement.inner[0], : placement.inner[1]] = inner
    return square


def resized(values: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """`values` at another size: bilinear with antialiasing, or by nearest pixel.

    Args:
        values: (H, W) or (H, W, 3), uint8 or float32; (H, W) int32 with `nearest`.
        size: (height, width) wanted.
        nearest: For masks.
    """
    if values.shape[:2] == size:
        return values
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    if values.ndim == 3 and values.dtype != np.uint8:  # Pillow has no colour in floats
        planes = [resized(values[..., c], size, nearest=nearest) for c in range(values.shape[2])]
        return np.stack(planes, axis=2)
    # A copy: Pillow's own memory is read-only.
    return np.array(Image.fromarray(np.ascontiguousarray(values)).resize(size[::-1], how))
