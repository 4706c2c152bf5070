"""One map and its truth as a histogram, and every measure that is a function of it.

MAE, F, E and S need nothing but the number of pixels by (8-bit value, foreground, quadrant), so an
image is read once for all 256 thresholds, and the sums behind variances are exact integers.

Sources: F: Achanta et al., CVPR 2009; E: Fan et al., IJCAI 2018; S: Fan et al., ICCV 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

EPS = float(np.spacing(1.0))
BETA_SQUARED = 0.3
LEVELS = 256
_HALF = 128  # smallest 8-bit value of at least 0.5


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F with beta squared 0.3, elementwise; 0 where precision or recall is."""
    above = (1 + BETA_SQUARED) * precision * recall
    return np.asarray(above / np.where(above == 0, 1, BETA_SQUARED * precision + recall))


def stretch_table(low: int, high: int) -> np.ndarray:
    """(256,) float64: what each 8-bit value becomes in a map with this minimum and maximum.

    In the order of operations of the toolkit, since 255 times it is rounded down afterwards.
    """
    table = np.arange(LEVELS) / 255
    return table if low == high else (table - table[low]) / (table[high] - table[low])


@dataclass(frozen=True)
class Counts:
    """One image as a histogram.

    Attributes:
        shape: Height and width in pixels.
        table: (4, 2, 256) int64 pixels by quadrant around the foreground's centroid (left top,
            left bottom, right top, right bottom), background or foreground, and 8-bit value.
        corner: Rows above and columns left of the quadrants' common corner.
        prediction: The map itself, needed in degenerate cases only.
    """

    shape: tuple[int, int]
    table: np.ndarray
    corner: tuple[int, int]
    prediction: np.ndarray

    @classmethod
    def of(cls, prediction: np.ndarray, mask: np.ndarray) -> Counts:
        """Counts of a uint8 map and a bool mask of the same shape (H, W)."""
        ones = mask.view(np.uint8)
        height, width = mask.shape
        rows = cv2.reduce(ones, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
        total = int(rows.sum())
        corner = (height, width)
        if total:
            columns = cv2.reduce(ones, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
            y = int(rows @ np.arange(height)) / total
            x = int(columns.astype(np.int64) @ np.arange(width)) / total
            corner = (round(y) + 1, round(x) + 1)  # round is half to even, as in the toolkit
        code = np.zeros(mask.shape, np.uint16)
        code[corner[0] :] = 2 * LEVELS
        code[:, corner[1] :] += np.uint16(4 * LEVELS)
        code += prediction
        code += np.multiply(ones, np.uint16(LEVELS), dtype=np.uint16)
        table = np.bincount(code.ravel(), minlength=8 * LEVELS).reshape(4, 2, LEVELS)
        return cls((height, width), table, corner, prediction)

    @cached_property
    def by_class(self) -> np.ndarray:
        """(2, 256) pixels of background and foreground by 8-bit value."""
        return np.asarray(self.table.sum(0))

    @property
    def size(self) -> int:
        """Pixels."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def foreground(self) -> int:
        """Pixels of the true foreground."""
        return int(self.by_class[1].sum())

    @cached_property
    def span(self) -> tuple[int, int]:
        """Smallest and largest 8-bit value."""
        present = np.flatnonzero(self.by_class.sum(0))
        return int(present[0]), int(present[-1])

    @cached_property
    def stretched(self) -> np.ndarray:
        """(256,) stretched value of each 8-bit value; only those of `span` occur."""
        return stretch_table(*self.span)

    @property
    def _scale(self) -> tuple[int, int]:
        """Origin and length of the stretch in 8-bit values: p = (v - origin) / length."""
        low, high = self.span
        return (0, 255) if low == high else (low, high - low)

    # -- measures at thresholds -----------------------------------------------------------------

    @cached_property
    def at_least(self) -> np.ndarray:
        """(2, 256) pixels of background and foreground whose value is v or more."""
        return np.cumsum(self.by_class[:, ::-1], axis=1)[:, ::-1]

    def _rates(self, positives: np.ndarray) -> dict[str, np.ndarray]:
        """Measures from (2, T) false and true positives at T thresholds."""
        false, true = positives
        called = false + true
        precision = true / np.maximum(called, 1)
        recall = true / max(self.foreground, 1)
        union = np.maximum(self.foreground + false, 1)
        return {
            "precision": precision,
            "recall": recall,
            "fm": f_measure(precision, recall),
            "em": self._e_measure(false, true),
            "iou": true / union,
            "dice": 2 * true / np.maximum(self.foreground + called, 1),
        }

    def _e_measure(self, false: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Enhanced alignment from the four counts (IJCAI 2018, eqs. 2-5), (T,)."""
        called = false + true
        # A single pixel leaves 0 here, where the toolkit divides by eps.
        pixels = max(self.size - 1, 1)
        if self.foreground == 0:
            return np.asarray((self.size - called) / pixels)
        if self.foreground == self.size:
            return np.asarray(called / pixels)
        guess, real = called / self.size, self.foreground / self.size
        missed = self.foreground - true
        parts = (
            (true, 1 - guess, 1 - real),
            (false, 1 - guess, -real),
            (missed, -guess, 1 - real),
            (self.size - called - missed, -guess, -real),
        )
        total = np.zeros(len(called))
        for count, a, b in parts:
            aligned = 2 * (a * b) / (a**2 + b**2 + EPS)
            total += (aligned + 1) ** 2 / 4 * count
        return total / pixels

    def curves(self) -> dict[str, np.ndarray]:
        """`precision`, `recall`, `fm`, `em`, `iou`, `dice`: (256,), entry k at 255 - k."""
        low, high = self.span
        places = (self.stretched[low : high + 1] * 255).astype(np.uint8)
        counts = np.stack(
            [np.bincount(places, row[low : high + 1], LEVELS) for row in self.by_class]
        )
        return self._rates(np.cumsum(counts[:, ::-1], axis=1))

    def adaptive(self) -> dict[str, float]:
        """`adp_fm`, `adp_em`, `adp_iou`, `adp_dice` at twice the mean, at most 1."""
        low, high = self.span
        origin, length = self._scale
        total = int(self.by_class.sum(0) @ np.arange(LEVELS))
        threshold = min(2 * ((total - origin * self.size) / (length * self.size)), 1)
        values = self.stretched[low : high + 1]
        if np.abs(values - threshold).min() < 1e-12:
            # A tie: which side it falls to is decided by how the toolkit's mean is rounded.
            threshold = min(2 * float(self.stretched[self.prediction].mean()), 1)
        place = low + int(np.searchsorted(values, threshold, side="left"))
        none = np.zeros((2, 1), np.int64)
        positives = self.at_least[:, place : place + 1] if place <= high else none
        rates = self._rates(positives)
        return {f"adp_{name}": float(rates[name][0]) for name in ("fm", "em", "iou", "dice")}

    def iou_at_half(self) -> float:
        """Intersection over union of the map as it is, at 0.5."""
        false, true = (int(n) for n in self.at_least[:, _HALF])
        union = self.foreground + false
        return true / union if union else 1.0

    # -- measures of the whole map --------------------------------------------------------------

    def mae(self) -> float:
        """Mean absolute error of the stretched map."""
        low, high = self.span
        values = self.stretched[low : high + 1]
        off, on = self.by_class[:, low : high + 1]
        return float(off @ values + on @ (1 - values)) / self.size

    def s_measure(self) -> float:
        """Structure measure with alpha 0.5 (ICCV 2017, eqs. 1-8)."""
        if self.foreground in (0, self.size):
            return 1 - self.mae()
        share = self.foreground / self.size
        likeness = share * self._object(1) + (1 - share) * self._object(0)
        return max(0.0, 0.5 * likeness + 0.5 * self._region())

    def _object(self, kind: int) -> float:
        """Likeness of the foreground (1) to 1, or of the background (0) to 0."""
        moments = _Moments.of(self.by_class[kind])
        origin, length = self._scale
        mean = (moments.first - origin * moments.count) / (length * moments.count)
        mean = mean if kind else 1 - mean
        spread = math.sqrt(moments.spread() / max(moments.count - 1, 1)) / length
        return 2 * mean / (mean**2 + 1 + spread + EPS)

    def _region(self) -> float:
        """Similarity of the four quadrants, weighted by their area."""
        (height, width), (y, x) = self.shape, self.corner
        sizes = (y * x, (height - y) * x, y * (width - x), (height - y) * (width - x))
        # An empty quadrant, where the toolkit gives NaN, has no weight.
        return sum(self._similarity(q) * n / self.size for q, n in enumerate(sizes) if n)

    def _similarity(self, quadrant: int) -> float:
        """Structural similarity of one quadrant (ICCV 2017, eq. 3), by exact integer sums."""
        both = _Moments.of(self.table[quadrant].sum(0))
        inside = _Moments.of(self.table[quadrant, 1])
        origin, length = self._scale
        count, real = both.count, inside.count
        x, y = (both.first - origin * count) / (length * count), real / count
        norm = count * max(count - 1, 1)
        own = both.spread() * count / length**2 / norm
        true = real * (count - real) / norm
        shared = (count * inside.first - both.first * real) / length / norm
        above, below = 4 * x * y * shared, (x**2 + y**2) * (own + true)
        if above != 0:
            return above / (below + EPS)
        if real in (0, count) and own == 0:
            return self._flat(quadrant, int(np.flatnonzero(self.table[quadrant].sum(0))[0]))
        return 1.0 if below == 0 else 0.0

    def _flat(self, quadrant: int, value: int) -> float:
        """1 for a flat map on a flat truth, unless the toolkit's mean of the map is not exact.

        Its mean of equal numbers is rounded, depending on their number and layout. A variance of
        1e-34 then passes for a difference and it gives 0. Published figures have this in them.
        """
        y, x = self.corner
        rows = slice(y, None) if quadrant % 2 else slice(0, y)
        columns = slice(x, None) if quadrant >= 2 else slice(0, x)
        # A view into an image of the same width: its strides decide the order of summation.
        part = np.full(self.shape, self.stretched[value])[rows, columns]
        mean = np.mean(part)
        return 1.0 if np.sum((part - mean) ** 2) == 0 else 0.0


@dataclass(frozen=True)
class _Moments:
    """Number, sum and sum of squares of 8-bit values: integers, hence exact."""

    count: int
    first: int
    second: int

    @classmethod
    def of(cls, histogram: np.ndarray) -> _Moments:
        count, first, second = (int(n) for n in histogram @ _powers())
        return cls(count, first, second)

    def spread(self) -> float:
        """Sum of squared deviations from the mean."""
        return (self.count * self.second - self.first**2) / max(self.count, 1)


@cache
def _powers() -> np.ndarray:
    values = np.arange(LEVELS, dtype=np.int64)
    return np.stack([np.ones_like(values), values, values**2], axis=1)
