"""Image augmentation by albumentations, with chance that comes from the item's generator alone.

albumentations 2.0.8 is the last release under the MIT licence and no longer developed: it is
pinned, and used through this module only. It keeps generators of its own and ignores the global
ones, so a pipeline hands it new ones for every item: the same item of the same epoch is augmented
alike in any worker and after a resume.

This module imports OpenCV and takes a second or two: import it where a pipeline is made.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from zoo.errors import ConfigError

# Otherwise it asks the package index for a newer version of itself on import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
try:
    import albumentations
    from PIL import Image, ImageEnhance
except ModuleNotFoundError as error:
    _msg = (
        f"image augmentation needs the package '{error.name}': pip install "
        "'zoo-medical-remote-reid[all]'"
    )
    raise ConfigError(_msg) from error

__all__ = ["CentredCrop", "Colour", "Pipeline", "albumentations", "whole_degrees"]


class Pipeline:
    """Transforms of an image and of what lies over it, pixel by pixel.

    Args:
        spatial: albumentations transforms that move pixels: of the image and all else alike.
        colour: Transforms of the image alone, after the spatial ones.
        kinds: How each further array is treated: as an `image` (bilinear) or as a `mask` (nearest
            pixel). A name that is not listed is a mask.
    """

    def __init__(
        self,
        spatial: Sequence[Any],
        colour: Sequence[Any] = (),
        kinds: Mapping[str, Literal["image", "mask"]] | None = None,
    ) -> None:
        targets = dict(kinds or {})
        self._spatial = albumentations.Compose(list(spatial), additional_targets=targets)
        self._colour = albumentations.Compose(list(colour))
        self._known = {"mask", *targets}

    def __call__(
        self, rng: np.random.Generator, image: np.ndarray, **others: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Augment one item.

        Args:
            rng: Where all chance comes from; two numbers are drawn.
            image: (H, W, 3) uint8.
            **others: (H, W) or (H, W, C) arrays over the image, named as in `kinds`, or `mask`.

        Returns:
            `image` and the others, all of one size, which need not be the size given.

        Raises:
            ValueError: Sizes differ, or an array has a name the pipeline was not made for.
        """
        strange = set(others) - self._known
        if strange:
            msg = f"the pipeline was not made for '{sorted(strange)[0]}'"
            raise ValueError(msg)
        first, second = (int(n) for n in rng.integers(2**63, size=2))
        # Not `set_random_seed`: it gives every transform the same numbers.
        arrays, plain = np.random.default_rng(first), random.Random(second)
        for part in (self._spatial, self._colour):
            part.set_random_state(arrays, plain)
        moved: dict[str, np.ndarray] = self._spatial(image=image, **others)
        moved["image"] = self._colour(image=moved["image"])["image"]
        return moved


def whole_degrees(low: int, high: int, p: float) -> Any:
    """Rotation about the centre by a whole number of degrees in [low, high], size kept.

    What comes from outside of the image is 0; images are interpolated, masks are not.

    Args:
        low: Smallest angle, counter-clockwise.
        high: Largest angle.
        p: Chance that an item is rotated at all.
    """
    turns = [
        albumentations.Rotate(limit=(angle, angle), border_mode=0, p=1.0)
        for angle in range(low, high + 1)
    ]
    return albumentations.OneOf(turns, p=p)


class CentredCrop(albumentations.DualTransform):  # type: ignore[misc] # untyped package
    """A centred window whose sides are each reduced by 1 pixel up to a share of the side.

    Args:
        most: Largest share of a side that is cut off.
        p: Chance that an item is cropped.
    """

    def __init__(self, most: float, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.most = most

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw how much is cut off each side."""
        height, width = params["shape"][:2]
        return {
            "cut": [
                min(self.py_random.randint(1, max(1, int(side * self.most))), side - 1)
                for side in (height, width)
            ]
        }

    def apply(self, img: np.ndarray, cut: Sequence[int] = (0, 0), **params: Any) -> np.ndarray:
        """Crop an array that is interpolated."""
        top, left = cut[0] // 2, cut[1] // 2
        return img[top : top + img.shape[0] - cut[0], left : left + img.shape[1] - cut[1]]

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Crop a mask."""
        return self.apply(mask, **params)


class Colour(albumentations.ImageOnlyTransform):  # type: ignore[misc] # untyped package
    """Brightness, contrast, saturation and sharpness, in this order, by Pillow's enhancement.

    A factor is drawn for each, a whole number of tenths; 1 leaves the image as it is.

    Args:
        brightness: Smallest and largest factor, in tenths.
        contrast: Likewise.
        saturation: Likewise; 0 is grey.
        sharpness: Likewise; 0 is blurred.
        p: Chance that an item is changed.
    """

    def __init__(
        self,
        brightness: tuple[int, int],
        contrast: tuple[int, int],
        saturation: tuple[int, int],
        sharpness: tuple[int, int],
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.sharpness = sharpness

    def get_params(self) -> dict[str, Any]:
        """Draw the four factors."""
        ranges = (self.brightness, self.contrast, self.saturation, self.sharpness)
        return {"factors": [self.py_random.randint(low, high) / 10 for low, high in ranges]}

    def apply(self, img: np.ndarray, factors: Sequence[float] = (), **params: Any) -> np.ndarray:
        """Change the image."""
        kinds = (
            ImageEnhance.Brightness,
            ImageEnhance.Contrast,
            ImageEnhance.Color,
            ImageEnhance.Sharpness,
        )
        picture = Image.fromarray(img)
        for kind, factor in zip(kinds, factors, strict=True):
            picture = kind(picture).enhance(factor)
        return np.asarray(picture)
