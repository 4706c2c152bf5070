"""What predictions are written as: masks, greys of mask videos, outlines over pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from zoo import files
from zoo.domains.medical.her_seg.cases import Classes
from zoo.domains.medical.her_seg.image_stack import COLOURS, as_image


def write_mask(path: Path, labels: np.ndarray, classes: Classes) -> None:
    """Write class indices as a PNG that reads back exactly; see `image_stack.as_image`.

    Args:
        path: Ends in .png; appears by a rename.
        labels: (H, W) uint8 class indices.
        classes: One: grey 0 and 255; several: a palette whose index is the class.
    """
    image = as_image(labels, classes)
    files.write_whole(path, lambda fresh: image.save(fresh, format="PNG"))


def grey_levels(classes: int) -> np.ndarray:
    """Grey of each class index in a mask video, (classes + 1,) uint8: 0 to 255, evenly spread."""
    return np.rint(np.linspace(0, 255, classes + 1)).astype(np.uint8)


def outlined(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A picture with the outlines of its classes.

    Args:
        picture: (H, W, 3) uint8; it is not changed.
        labels: (H, W) uint8 class indices.

    Returns:
        (H, W, 3) uint8; lines are drawn inside of the objects, 1 pixel for each 256 of the
        shorter side.
    """
    drawn = picture.copy()
    width = max(1, min(labels.shape) // 256)
    for index in np.unique(labels[labels > 0]):
        inside = labels == index
        core = ndimage.binary_erosion(inside, iterations=width, border_value=1)
        drawn[inside & ~core] = COLOURS[1 + (int(index) - 1) % (len(COLOURS) - 1)]
    return drawn
