"""Augmentation of training slices by MONAI, with chance that comes from the item's generator alone.

What moves pixels moves the slice, its neighbours and its mask alike, and what changes intensities
changes all channels of a slice by one draw: neighbouring slices stay comparable, as they are in a
volume. Colours, which slices don't have, are left alone. MONAI keeps generators of its own; they
are seeded anew for every item, so that an item of an epoch is augmented alike in any worker and
after a resume.

Importing MONAI takes seconds; it happens when the first slice is augmented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.extras import optional


class SliceAugmentation:
    """Ours for volumes (`data.augment=standard`): called as `augment.Augmentation` is.

    Mirror images (0.5), in-plane rotation by up to 15 degrees with scaling by up to 20 % and shifts
    by up to 6 % (0.5), a smooth bias field (0.3), gamma from 0.7 to 1.5 (0.3), another contrast and
    brightness (0.3 each), noise (0.2) and blur (0.1).
    """

    def __init__(self) -> None:
        self._pipelines: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the pipelines, which each process makes for itself."""
        return {"_pipelines": None}

    def __call__(
        self, image: np.ndarray, masks: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Change one slice.

        Args:
            image: (S, S, 3) uint8; a grey slice stays grey.
            masks: (S, S) uint8 arrays over it.
            rng: Where all chance comes from.

        Returns:
            The slice and the masks, of the same sizes and types; 0 where nothing was.
        """
        if self._pipelines is None:
            self._pipelines = _pipelines()
        spatial, intensity = self._pipelines
        for part, seed in zip(self._pipelines, rng.integers(2**32, size=2), strict=True):
            part.set_random_state(seed=int(seed))
        grey = bool((image == image[..., :1]).all())
        channels = image[..., :1] if grey else image
        over = np.stack(list(masks.values()))
        moved = spatial({"image": _tensor(channels.transpose(2, 0, 1)), "masks": _tensor(over)})
        shown = intensity({"image": moved["image"] / 255})["image"].numpy()
        picture = np.clip(np.rint(255 * shown), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        labels = np.rint(moved["masks"].numpy()).astype(np.uint8)
        whole = np.repeat(picture, 3, axis=2) if grey else picture
        return np.ascontiguousarray(whole), dict(zip(masks, labels, strict=True))


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _pipelines() -> tuple[Any, Any]:
    """What moves pixels, and what changes intensities in [0, 1]."""
    monai = optional("monai.transforms", "slices are augmented by", "medical")
    both = ["image", "masks"]
    spatial = monai.Compose(
        [
            monai.RandFlipd(both, prob=0.5, spatial_axis=1),
            monai.RandAffined(
                both,
                prob=0.5,
                rotate_range=np.pi / 12,
                scale_range=(0.2, 0.2),
                translate_range=None,
                mode=["bilinear", "nearest"],
                padding_mode="zeros",
            ),
        ]
    )
    intensity = monai.Compose(
        [
            monai.RandBiasFieldd("image", prob=0.3, degree=2, coeff_range=(0.0, 0.15)),
            monai.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            monai.RandScaleIntensityd("image", prob=0.3, factors=0.2),
            monai.RandShiftIntensityd("image", prob=0.3, offsets=0.1),
            monai.RandGaussianNoised("image", prob=0.2, std=0.05),
            monai.RandGaussianSmoothd(
                "image", prob=0.1, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8)
            ),
        ]
    )
    return spatial, intensity
