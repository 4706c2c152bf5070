"""From stored pictures to what the Sentinel-2 net takes: crop, augment, normalise.

The parameters of an augmentation are drawn once a county and hold for all its pictures, as in the
official code: the pictures keep their meaning relative to one another. Evaluation is a centre
crop, so it gives the same numbers each time; the official code augments there as well.

The pipeline of training is SimCLR's (Chen et al. 2020) as MMST-ViT and DFYP set it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

# Of the official code, for channels (B11, B08, B02) in [0, 1].
MEAN = (0.466, 0.471, 0.380)
DEVIATION = (0.195, 0.194, 0.192)
_JITTER = 0.8  # brightness, contrast and saturation change by factors from 0.2 to 1.8
_HUE = 0.2  # of a full turn
_KERNEL = 9  # pixels
_SIGMA = (0.1, 2.0)  # pixels
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """How every picture of a county is cut and changed.

    Attributes:
        window: (top, left, height, width) in pixels, inside of the stored picture.
        size: Side in pixels of what comes out.
        resize: Scale the window to `size`; otherwise it is filled up with zeros on all sides.
        flip: Mirror left and right.
        jitter: (which, by how much), in order; 0 brightness, 1 contrast, 2 saturation, 3 hue.
        grey: Take the colour out.
        sigma: Deviation in pixels of a Gaussian blur; None: none.
    """

    window: tuple[int, int, int, int]
    size: int
    resize: bool = False
    flip: bool = False
    jitter: tuple[tuple[int, float], ...] = ()
    grey: bool = False
    sigma: float | None = None

    def __call__(self, raw: np.ndarray, scaling: Literal["unit", "official"] = "unit") -> Tensor:
        """Turn the window's pixels into input of the net.

        Args:
            raw: (n, height, width, 3) of the window, 0 to 255.
            scaling: `unit` divides by 255 first. `official` does not, though mean and deviation
                are those of [0, 1]; colour changes then clip most values to 1.

        Returns:
            (n, 3, size, size) float32, normalised.
        """
        pictures = torch.from_numpy(np.ascontiguousarray(raw)).permute(0, 3, 1, 2).float()
        if scaling == "unit":
            pictures = pictures / 255
        pictures = self._cut(pictures.contiguous())
        if self.flip:
            pictures = functional.horizontal_flip(pictures)
        for which, amount in self.jitter:
            pictures = _CHANGES[which](pictures, amount)
        if self.grey:
            pictures = functional.rgb_to_grayscale(pictures, num_output_channels=3)
        if self.sigma is not None:
            pictures = functional.gaussian_blur(pictures, [_KERNEL] * 2, [self.sigma] * 2)
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
        normalised: Tensor = (pictures - mean) / deviation
        return normalised

    def _cut(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        if self.resize:
            scaled: Tensor = functional.resize(pictures, [self.size, self.size], antialias=True)
            return scaled
        if (height, width) == (self.size, self.size):
            return pictures
        top, left = (self.size - height) // 2, (self.size - width) // 2
        out = pictures.new_zeros((*pictures.shape[:-2], self.size, self.size))
        out[..., top : top + height, left : left + width] = pictures
        return out


_CHANGES = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def centre_view(height: int, width: int, size: int) -> View:
    """The middle of a picture; a smaller one gets zeros around it."""
    inner = min(height, size), min(width, size)
    # Rounded half to even, as torchvision's centre crop does.
    top, left = round((height - inner[0]) / 2), round((width - inner[1]) / 2)
    return View((top, left, *inner), size)


def random_view(height: int, width: int, size: int, rng: np.random.Generator) -> View:
    """Draw an augmentation: crop and scale, mirror, colour (80 %), grey (20 %), blur."""
    window = _random_window(height, width, rng)
    flip = bool(rng.random() < 0.5)
    jitter: tuple[tuple[int, float], ...] = ()
    if rng.random() < 0.8:
        factors = [*rng.uniform(1 - _JITTER, 1 + _JITTER, 3), rng.uniform(-_HUE, _HUE)]
        jitter = tuple((int(i), float(factors[i])) for i in rng.permutation(4))
    grey = bool(rng.random() < 0.2)
    return View(window, size, True, flip, jitter, grey, float(rng.uniform(*_SIGMA)))


def _random_window(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A window of 8 to 100 % of the area with sides 3:4 to 4:3 (Szegedy et al. 2015)."""
    for _ in range(10):
        area = height * width * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            return int(top), int(left), high, wide
    # A very long picture: the largest window of an allowed shape, in the middle.
    high = min(height, round(width / _RATIO[0]))
    wide = min(width, round(height * _RATIO[1]))
    return (height - high) // 2, (width - wide) // 2, high, wide
