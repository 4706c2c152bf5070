"""The training augmentation of the BBS-Net lineage, which the author's systems share."""

from __future__ import annotations

import numpy as np

from zoo.augmentation import CentredCrop, Colour, Pipeline, albumentations, whole_degrees

# The sister code crops 1 to 30 pixels of packages that are 256 pixels wide; here a share, since
# images are augmented at their own size.
_MOST_CROPPED = 30 / 256


class Augmentation:
    """Flip, centred crop, rotation of image, depth and mask together; colour of the image.

    In this order: horizontal flip with chance 0.5; a centred window, each side reduced by up to
    30/256; with chance 0.2 a rotation by -15 to 14 whole degrees; brightness and contrast factors
    of 0.5 to 1.5, saturation 0 to 2, sharpness 0 to 3. Ranges are those of the author's released
    systems (CMINet, ADENet); image and depth are interpolated bilinearly and the mask by nearest
    pixel, where those use bicubic interpolation throughout.
    """

    def __init__(self) -> None:
        self._pipeline = Pipeline(
            spatial=[
                albumentations.HorizontalFlip(p=0.5),
                CentredCrop(_MOST_CROPPED),
                whole_degrees(-15, 14, p=0.2),
            ],
            colour=[
                Colour(brightness=(5, 15), contrast=(5, 15), saturation=(0, 20), sharpness=(0, 30))
            ],
            kinds={"nearness": "image"},
        )

    def __call__(
        self, rgb: np.ndarray, depth: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augment one scene.

        Args:
            rgb: (H, W, 3) uint8.
            depth: (H, W) float32 in [0, 1], 0 near.
            mask: (H, W) uint8.
            rng: Where all chance comes from.

        Returns:
            The three, of one size that is a little smaller.
        """
        # Outside of a rotated image everything is filled with 0. Handed in as nearness, that
        # makes the corners of the depth far; as depth they would be the nearest thing there is.
        moved = self._pipeline(rng, rgb, nearness=1 - depth, mask=mask)
        return moved["image"], 1 - moved["nearness"], moved["mask"]
