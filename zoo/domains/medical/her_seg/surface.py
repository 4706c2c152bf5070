"""Distances between the outlines of two masks, in two or three dimensions.

Definitions are MONAI's: the outline of a mask is its pixels that have a neighbour outside (across
a face; beyond the edge of the picture is outside), distances are Euclidean between pixel centres.
Own code, since it works on the box around both masks and shares one distance transform between
all measures; a test compares it with MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Surfaces:
    """Distances from each outline pixel of one mask to the other's outline.

    Attributes:
        to_truth: (n,) from the prediction's outline; empty where nothing was predicted.
        to_prediction: (m,) from the truth's outline; empty where there is no truth. Where only
            one mask is empty, the other's distances are infinite.
    """

    to_truth: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    @property
    def defined(self) -> bool:
        """Whether both masks have pixels, without which there is no distance between them."""
        return bool(self.to_truth.size and self.to_prediction.size)

    def hausdorff(self, percentile: float = 95.0) -> float:
        """The larger of both directions' percentiles; 100 is the Hausdorff distance.

        NaN where a mask is empty.
        """
        if not self.defined:
            return float("nan")
        ways = (self.to_truth, self.to_prediction)
        return max(float(np.percentile(way, percentile)) for way in ways)

    def average(self) -> float:
        """Average symmetric surface distance: the mean over the pixels of both outlines.

        NaN where a mask is empty.
        """
        if not self.defined:
            return float("nan")
        return float(np.concatenate([self.to_truth, self.to_prediction]).mean())

    def boundary_f(self, tolerance: float) -> float:
        """F of the outlines: harmonic mean of the shares within `tolerance` of the other.

        1 where both masks are empty, 0 where one is.
        """
        if not self.defined:
            return float(not self.to_truth.size and not self.to_prediction.size)
        precision = float((self.to_truth <= tolerance).mean())
        recall = float((self.to_prediction <= tolerance).mean())
        total = precision + recall
        return 2 * precision * recall / total if total else 0.0


def outline(mask: Mask) -> Mask:
    """The pixels of a mask with a neighbour outside of it, in any number of dimensions."""
    edge: Mask = mask & ~ndimage.binary_erosion(mask)
    return edge


def surfaces(prediction: Mask, truth: Mask, spacing: Sequence[float] | None = None) -> Surfaces:
    """Distances between the outlines of two masks of one shape.

    Args:
        prediction: Bool, any number of dimensions.
        truth: Likewise.
        spacing: Pixel size along each axis, mm; none: distances are in pixels.

    Returns:
        Distances in the unit of `spacing`.
    """
    box = _box(prediction | truth)
    if box is None:
        return Surfaces(np.empty(0), np.empty(0))
    # The box is one pixel wider, so that cutting it out makes no outline that was not there, but
    # not beyond the picture: there outside begins in both.
    first, second = outline(prediction[box]), outline(truth[box])
    return Surfaces(_reach(first, second, spacing), _reach(second, first, spacing))


def _reach(edge: Mask, other: Mask, spacing: Sequence[float] | None) -> NDArray[np.float64]:
    count = int(edge.sum())
    if not count or not other.any():
        return np.full(count, np.inf)
    distances = ndimage.distance_transform_edt(~other, sampling=spacing)
    found: NDArray[np.float64] = np.asarray(distances, np.float64)[edge]
    return found


def _box(mask: Mask) -> tuple[slice, ...] | None:
    """The box around what is set, one pixel wider where there is room."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found or found[0] is None:
        return None
    return tuple(
        slice(max(0, s.start - 1), min(n, s.stop + 1))
        for s, n in zip(found[0], mask.shape, strict=True)
    )
