"""Weighted F of Margolin et al., CVPR 2014, with the constants of the authors' MATLAB code."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from zoo.domains.saliency.rgbd_sod.counts import EPS, Counts

# Gaussian window, and how fast the weight of a background error rises with distance.
_RADIUS, _SIGMA = 3, 5.0
_DECAY = math.log(0.5) / 5.0
# Beyond this distance exp(_DECAY * distance) is below 1e-12, far under what is compared.
_FAR = 200
_STRIP = 1 << 15  # pixels


@cache
def _fading() -> np.ndarray:
    """exp(_DECAY * distance) by squared distance in pixels."""
    return np.exp(_DECAY * np.sqrt(np.arange(_FAR**2 + 1)))


@cache
def _window() -> np.ndarray:
    """One axis of the 7x7 Gaussian with sigma 5, which is a product of two."""
    bell = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    return np.asarray(bell / bell.sum())


def weighted_f(prediction: np.ndarray, mask: np.ndarray, counts: Counts, eps: float = EPS) -> float:
    """Weighted F with beta 1 (CVPR 2014, eqs. 9-15); 0 for an empty truth.

    Args:
        prediction: (H, W) uint8.
        mask: (H, W) bool, C-contiguous.
        counts: Of both; its `stretched` gives a pixel's value.
        eps: Added to denominators.
    """
    real = counts.foreground
    if real == 0:
        return 0.0
    inner = _foreground_error(prediction, mask, counts.stretched)
    outer = _background_error(prediction, mask, counts)
    hit = real - inner
    recall = 1 - inner / real
    precision = hit / (hit + outer + eps)
    return 2 * recall * precision / (recall + precision + eps)


def _foreground_error(prediction: np.ndarray, mask: np.ndarray, stretched: np.ndarray) -> float:
    """Sum over the foreground of the error, or of its blurred neighbourhood's where smaller.

    In the neighbourhood a background pixel counts with the error of its nearest foreground pixel.
    Of several equally near ones the distance transform of SciPy chooses, as for the toolkit.
    """
    # The window never looks further than its radius beyond the foreground.
    used = _box(mask.view(np.uint8), _RADIUS)
    inside = mask[used]
    error = (1 - stretched).take(prediction[used])
    near = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    spread = error.ravel().take(near[0] * inside.shape[1] + near[1])
    bell = _window()
    blurred = cv2.sepFilter2D(spread, cv2.CV_64F, bell, bell, borderType=cv2.BORDER_CONSTANT)
    return float(np.minimum(error, blurred).sum(where=inside))


def _background_error(prediction: np.ndarray, mask: np.ndarray, counts: Counts) -> float:
    """Sum over the background of the error times 2 - exp(ln(0.5) / 5 * distance)."""
    stretched = counts.stretched.copy()
    stretched[: counts.span[0]] = 0.0  # does not occur
    plain = float(counts.by_class[0] @ stretched)
    if plain == 0:
        return 0.0
    # No distance is needed where the error is 0: in most maps, far from the object.
    ones = mask.view(np.uint8)
    used = _box((prediction > int(np.flatnonzero(stretched)[0]) - 1).view(np.uint8) | ones)
    values = prediction[used]
    distance = cv2.distanceTransform(1 - ones[used], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    faded = 0.0
    # In strips that stay in the cache: a fresh array of the whole image costs more than its sums.
    step = max(1, _STRIP // values.shape[1])
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        # Squares of distances on a grid are integers: rounding restores what float32 lost.
        squared = (distance[rows] * distance[rows] + np.float32(0.5)).astype(np.intp)
        fading = _fading().take(squared, mode="clip")
        faded += float(np.vdot(stretched.take(values[rows]), fading))
    # The foreground has distance 0 and factor 1: its share is known from the histogram.
    return 2 * plain - (faded - float(counts.by_class[1] @ stretched))


def _box(ones: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of (H, W) uint8 `ones`, wider by a margin."""
    x, y, width, height = cv2.boundingRect(ones)
    rows = slice(max(y - margin, 0), y + height + margin)
    return rows, slice(max(x - margin, 0), x + width + margin)
