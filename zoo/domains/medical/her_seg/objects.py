"""Objects as numbers: merging masks of single objects, and finding objects in a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from zoo.domains.medical.her_seg.masks import Coding, read_mask
from zoo.errors import DataError


@dataclass(frozen=True, eq=False)
class Merged:
    """Masks of single objects in one picture.

    Attributes:
        objects: (H, W) int32, numbered from 1 in the order of the files; 0 background.
        overlapping: Pixels that several files claim; the first one has them.
        empty: Files without foreground.
    """

    objects: np.ndarray
    overlapping: int
    empty: tuple[Path, ...]


def merge(paths: Sequence[Path], size: tuple[int, int], coding: Coding | None = None) -> Merged:
    """The objects of a picture from one mask file each.

    Args:
        paths: The files; none makes a picture without objects.
        size: (H, W) of the picture.
        coding: What values mean; by default, foreground is told by brightness.

    Raises:
        DataError: A file is broken or of another size.
    """
    coding = coding or Coding()
    objects = np.zeros(size, np.int32)
    overlapping, empty = 0, []
    for number, path in enumerate(paths, 1):
        mask = read_mask(path, coding, size)
        same_size(path, (mask.shape[0], mask.shape[1]), size)
        pixels = np.flatnonzero(mask)
        if not len(pixels):
            empty.append(path)
            continue
        flat = objects.reshape(-1)
        free = flat[pixels] == 0
        overlapping += int(len(pixels) - free.sum())
        flat[pixels[free]] = number
    return Merged(objects, overlapping, tuple(empty))


def same_size(path: Path, size: tuple[int, int], picture: tuple[int, int]) -> None:
    """Refuse a mask that does not lie over its picture.

    Raises:
        DataError: The sizes differ.
    """
    if size != picture:
        msg = (
            f"{path}: the mask is {size[1]} x {size[0]} pixels and its picture {picture[1]} x "
            f"{picture[0]}; export both at one size"
        )
        raise DataError(msg)


def numbered(labels: np.ndarray, smallest: int = 0) -> np.ndarray:
    """Objects of a mask: pixels of one class that touch, also at corners.

    Args:
        labels: (H, W), or (Z, H, W) of a volume: class indices or bool; 0 is background.
        smallest: Objects of fewer pixels are left out.

    Returns:
        int32 of the same shape, numbered from 1 without gaps, class by class.
    """
    found = np.zeros(labels.shape, np.int32)
    count = 0
    for value in np.unique(labels[labels > 0]):
        touching = np.ones((3,) * labels.ndim, bool)  # at a corner, too
        parts, number = ndimage.label(labels == value, structure=touching)
        sizes = np.bincount(parts.reshape(-1), minlength=number + 1)
        keep = sizes >= max(1, smallest)
        keep[0] = False
        numbers = np.where(keep, np.cumsum(keep) + count, 0).astype(np.int32)
        found += numbers[parts]
        count += int(keep.sum())
    return found


def without_small(labels: np.ndarray, smallest: int) -> np.ndarray:
    """Class indices without objects of fewer than `smallest` pixels; the same type and shape."""
    if smallest <= 1:
        return labels
    return np.where(numbered(labels, smallest) > 0, labels, 0).astype(labels.dtype)


def relabelled(objects: np.ndarray) -> np.ndarray:
    """Object numbers made consecutive from 1; 0 stays background. (H, W) int32."""
    known, inverse = np.unique(objects, return_inverse=True)
    start = 0 if known[0] == 0 else 1
    return (inverse.reshape(objects.shape) + start).astype(np.int32)
