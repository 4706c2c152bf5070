"""FROC as CAMELYON16 defines it: how many lesions are found at how many false alarms a slide.

Source: the challenge's evaluation page and its script `Evaluation_FROC.py`
(github computationalpathologygroup/Camelyon16). In short: outlines are drawn at level 5, grown by
75 um in diameter (which joins what lies closer), filled, and taken apart by 8-connectivity. A
component whose major axis is shorter than 275 um is isolated tumour cells: finding it is neither
right nor wrong. A detection inside a lesion finds it, with the best of its scores; one outside of
all is a false alarm. The score is the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false alarms a
slide, over all slides with and without lesions.

One difference: the script leaves out its lowest threshold, which is the score 0 of a missed lesion
as long as there is one; here scores of 0 never count, and every other one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from zoo.domains.medical.wsi_mil.annotations import Annotation

OPERATING_POINTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False alarms a slide at which sensitivity is read."""
CAMELYON16_MPP = 0.243
"""Micrometres per level-0 pixel that the official script takes for every slide."""
ISOLATED = -1
"""Stands for isolated tumour cells among the lesion numbers of patches."""

_GROWN_UM = 75.0
_ISOLATED_UM = 275.0
_CELL_UM = CAMELYON16_MPP * 32  # a pixel of level 5


@dataclass(frozen=True, eq=False)
class LesionMask:
    """The lesions of a slide, grown and numbered.

    Attributes:
        labels: (h, w) int32, the number of the component, 0 outside.
        isolated: Numbers of the components that are isolated tumour cells.
        corner: (x, y) level-0 position of the first pixel's corner.
        cell: Level-0 pixels a pixel of the mask.
    """

    labels: np.ndarray
    isolated: frozenset[int]
    corner: tuple[float, float]
    cell: float

    @property
    def lesions(self) -> list[int]:
        """Numbers of the components that have to be found."""
        return [n for n in range(1, int(self.labels.max(initial=0)) + 1) if n not in self.isolated]

    def at(self, points: np.ndarray) -> np.ndarray:
        """Which lesion points (N, 2) lie in, level-0 pixels.

        Returns:
            (N,) int32: 1 to the number of lesions in the order of `lesions`, 0 outside,
            `ISOLATED` in isolated tumour cells.
        """
        numbers = np.zeros(len(points), dtype=np.int32)
        cells = np.floor((np.asarray(points, np.float64) - self.corner) / self.cell).astype(int)
        height, width = self.labels.shape
        within = ((cells >= 0) & (cells < [width, height])).all(1)
        numbers[within] = self.labels[cells[within, 1], cells[within, 0]]
        renamed = np.zeros(int(self.labels.max(initial=0)) + 1, dtype=np.int32)
        for place, number in enumerate(self.lesions, 1):
            renamed[number] = place
        renamed[list(self.isolated)] = ISOLATED
        return renamed[numbers]


def lesion_mask(annotation: Annotation, mpp: float = CAMELYON16_MPP) -> LesionMask:
    """Draw, grow, fill and number the lesions of a slide.

    Only the surroundings of the lesions are drawn, so that memory follows their size.

    Args:
        annotation: The outlines.
        mpp: Micrometres per level-0 pixel. A mask pixel has the power of two of level-0 pixels
            that is nearest to the 7.8 um of the official script.
    """
    cell = 2.0 ** max(0, round(math.log2(_CELL_UM / mpp)))
    box = annotation.box
    if box is None:
        return LesionMask(np.zeros((0, 0), np.int32), frozenset(), (0.0, 0.0), cell)
    reach = _GROWN_UM / (mpp * cell * 2)
    margin = math.ceil(reach) + 1
    left, top = (max(0, math.floor(v / cell) - margin) for v in box[:2])
    right, bottom = (math.floor(v / cell) + margin + 1 for v in box[2:])
    drawn = _drawn(annotation, cell, (left, top, max(right, left + 1), max(bottom, top + 1)))
    grown = ndimage.distance_transform_edt(~drawn) < reach if drawn.any() else drawn
    filled = ndimage.binary_fill_holes(grown)
    labels, _ = ndimage.label(filled, structure=np.ones((3, 3)))
    short = _ISOLATED_UM / (mpp * cell)
    isolated = {n for n, axis in enumerate(_major_axes(labels), 1) if axis < short}
    return LesionMask(labels.astype(np.int32), frozenset(isolated), (left * cell, top * cell), cell)


def _drawn(annotation: Annotation, cell: float, window: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) bool: mask pixels whose centre is lesion."""
    left, top, right, bottom = window
    xs = (np.arange(left, right) + 0.5) * cell
    ys = (np.arange(top, bottom) + 0.5) * cell
    drawn = np.stack(list(annotation.rows(ys, [xs] * len(ys))))
    for outline in annotation.lesions:
        x0, y0, x1, y1 = (math.floor(v / cell) for v in outline.box)
        # An outline that falls between the centres would be lost with all that lies around it.
        if x1 - x0 < 2 and y1 - y0 < 2:
            spots = np.floor(np.concatenate(outline.rings) / cell).astype(int) - (left, top)
            spots = spots[((spots >= 0) & (spots < [right - left, bottom - top])).all(1)]
            drawn[spots[:, 1], spots[:, 0]] = True
    return drawn


def _major_axes(labels: np.ndarray) -> list[float]:
    """Major axis of each component: of the ellipse with its second moments, in pixels."""
    axes = []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        points = np.argwhere(labels[place] == number).astype(np.float64)
        spread = np.cov(points.T, bias=True)
        axes.append(4 * math.sqrt(max(0.0, float(np.linalg.eigvalsh(spread)[-1]))))
    return axes


@dataclass(frozen=True, eq=False)
class Hits:
    """What the detections on one slide hit.

    Attributes:
        false: Scores of the detections outside of all lesions.
        found: (lesions,) best score inside each lesion that has to be found, 0 if missed.
    """

    false: np.ndarray
    found: np.ndarray


def detections(centres: np.ndarray, scores: np.ndarray, radius: float) -> np.ndarray:
    """Patches that stand for a detection each: the best one within `radius`.

    Patch scores are no detections: a lesion covers many patches, and so does a false alarm. The
    patch with the largest score is taken, those within the radius are dropped, and so on.

    Args:
        centres: (N, 2) centres of the patches.
        scores: (N,) scores; patches at 0 or below are no detections.
        radius: Distance in the unit of `centres`.

    Returns:
        Indices of the detections, best first.
    """
    free = np.asarray(scores) > 0
    if not free.any():
        return np.zeros(0, dtype=np.int64)
    tree = cKDTree(centres)
    kept = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if free[i]:
            kept.append(i)
            free[tree.query_ball_point(centres[i], radius)] = False
    return np.array(kept, dtype=np.int64)


def hits_of(numbers: np.ndarray, lesions: int, scores: np.ndarray) -> Hits:
    """Sort detections into false alarms and found lesions.

    Args:
        numbers: (n,) lesion of each detection, as `LesionMask.at` gives it.
        lesions: How many lesions the slide has to be searched for.
        scores: (n,) their scores.
    """
    found = np.zeros(lesions)
    inside = numbers > 0
    np.maximum.at(found, numbers[inside] - 1, scores[inside])
    return Hits(np.asarray(scores)[numbers == 0], found)


@dataclass(frozen=True, eq=False)
class Froc:
    """A FROC curve and what is read off it.

    Attributes:
        false_alarms: (t,) mean false alarms a slide, ascending, from the strictest threshold on.
        sensitivity: (t,) share of lesions found.
        at: False alarms a slide -> sensitivity, for `OPERATING_POINTS`.
        score: Their mean: the challenge's figure. NaN without lesions.
        slides: Slides counted.
        lesions: Lesions that had to be found.
    """

    false_alarms: np.ndarray
    sensitivity: np.ndarray
    at: dict[float, float]
    score: float
    slides: int
    lesions: int


def froc(slides: Sequence[Hits]) -> Froc:
    """The FROC curve over slides with and without lesions.

    Sensitivity between two thresholds is interpolated, and beyond the last one it stays as it is.
    """
    false = np.sort(np.concatenate([s.false for s in slides] or [np.zeros(0)]))
    found = np.sort(np.concatenate([s.found for s in slides] or [np.zeros(0)]))
    every = np.unique(np.concatenate([false, found]))
    thresholds = every[every > 0][::-1]
    alarms = np.concatenate([[0], len(false) - np.searchsorted(false, thresholds)])
    right = np.concatenate([[0], len(found) - np.searchsorted(found, thresholds)])
    if not len(found):
        at = dict.fromkeys(OPERATING_POINTS, float("nan"))
        empty = np.full(len(alarms), np.nan)
        return Froc(alarms / max(len(slides), 1), empty, at, float("nan"), len(slides), 0)
    rate, sensitivity = alarms / len(slides), right / len(found)
    values = np.interp(OPERATING_POINTS, rate, sensitivity)
    at = {point: float(v) for point, v in zip(OPERATING_POINTS, values, strict=True)}
    return Froc(rate, sensitivity, at, float(values.mean()), len(slides), len(found))
