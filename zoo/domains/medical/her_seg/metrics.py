"""Measures of masks: of one picture or volume, of a clip, and of a whole split.

Letters: K classes without background; label images hold 0 (background) to K. A unit is what the
evaluation averages over: an image, a whole volume, or a clip (its frames averaged first).

Empty masks, class by class:

| truth | prediction | dice, iou, boundary_f | hd95, asd | sensitivity | specificity |
|---|---|---|---|---|---|
| empty | empty | 1 | left out | left out | 1 |
| some | empty | 0 | left out | 0 | 1 |
| empty | some | 0 | left out | left out | as counted |

What is left out (NaN) does not enter a mean, and how often it happened is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.domains.medical.her_seg.surface import surfaces

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Scores = Mapping[str, np.ndarray]

OVERLAPS = ("dice", "iou", "dice_official", "iou_official", "sensitivity", "specificity")
DISTANCES = ("hd95", "asd", "boundary_f")
MEASURES = (*OVERLAPS, *DISTANCES)
EMPTY = ("both_empty", "prediction_empty", "truth_empty")
# Averaged as they are, where units have them: one number a unit.
SINGLE = ("loss", "object_f1", "object_ap", "steadiness")
_EACH_CLASS = ("dice", "iou", "hd95")
# Of the diagonal; DAVIS (Perazzi et al. 2016) takes 0.8 %.
_DIAGONAL = 0.008
_VOLUME_TOLERANCE = 2.0
_AP_THRESHOLDS = np.arange(0.5, 1.0, 0.05)


# -- overlap ------------------------------------------------------------------------------------


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> IntArray:
    """(K + 1, K + 1) pixel counts, row = truth, column = prediction.

    Raises:
        ValueError: Shapes differ, or a value is no class index.
    """
    if prediction.shape != truth.shape:
        msg = f"prediction {prediction.shape} and truth {truth.shape} differ in size"
        raise ValueError(msg)
    worst = max(int(prediction.max(initial=0)), int(truth.max(initial=0)))
    if worst > classes:
        msg = f"class index {worst} is above the number of classes, {classes}"
        raise ValueError(msg)
    # Sixteen bits hold 256 x 256 classes: a volume is not copied to 64 bits for a count.
    pairs = truth.astype(np.uint16) * np.uint16(classes + 1) + prediction.astype(np.uint16)
    counts = np.bincount(pairs.ravel(), minlength=(classes + 1) ** 2)
    return counts.reshape(classes + 1, classes + 1).astype(np.int64)


def overlap(counts: IntArray) -> dict[str, FloatArray]:
    """Measures of shared pixels, class by class.

    Args:
        counts: (K + 1, K + 1) of `confusion`.

    Returns:
        (K,) each of `dice`, `iou`, `sensitivity`, `specificity`, and `dice_official`,
        `iou_official`, to which the official evaluation adds 1 above and below (an image without
        foreground and with m false pixels then has 1 / (m + 1)); and of `truth_pixels`,
        `predicted_pixels`.
    """
    hits = np.diag(counts)[1:].astype(np.float64)
    true, predicted = counts.sum(axis=1)[1:], counts.sum(axis=0)[1:]
    outside = counts.sum() - true
    union = true + predicted - hits
    return {
        "dice": _share(2 * hits, true + predicted, 1.0),
        "iou": _share(hits, union, 1.0),
        "dice_official": (2 * hits + 1) / (true + predicted + 1),
        "iou_official": (hits + 1) / (union + 1),
        "sensitivity": _share(hits, true, math.nan),
        "specificity": _share(outside - (predicted - hits), outside, math.nan),
        "truth_pixels": true.astype(np.float64),
        "predicted_pixels": predicted.astype(np.float64),
    }


def _share(part: FloatArray, whole: np.ndarray, empty: float) -> FloatArray:
    return np.where(whole > 0, part / np.maximum(whole, 1), empty)


# -- a unit -------------------------------------------------------------------------------------


def tolerance_of(shape: Sequence[int], spacing: Sequence[float] | None) -> float:
    """How far an outline may be off and still count as hit, where nothing else is said.

    Pictures: 0.8 % of the diagonal as in DAVIS, at least one pixel, in the unit of `spacing`.
    Volumes: 2 mm, or 2 voxels where the spacing is not known.
    """
    if len(shape) == 3:
        return _VOLUME_TOLERANCE
    steps = np.asarray(spacing or (1.0,) * len(shape), np.float64)
    return max(float(np.hypot(*(np.asarray(shape) * steps))) * _DIAGONAL, float(steps.max()))


def unit_scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    classes: int,
    *,
    spacing: Sequence[float] | None = None,
    tolerance: float | None = None,
) -> dict[str, FloatArray]:
    """Every measure of one picture, or of one volume as a whole.

    Args:
        prediction: (H, W) or (Z, H, W) uint8 class indices.
        truth: Likewise.
        classes: K.
        spacing: Pixel size along each axis, mm; none: distances in pixels.
        tolerance: Distance within which an outline counts as hit; none: see `tolerance_of`.

    Returns:
        (K,) for each of `MEASURES` and `EMPTY`, NaN where a measure is not defined.
    """
    found = overlap(confusion(prediction, truth, classes))
    near = tolerance_of(prediction.shape, spacing) if tolerance is None else tolerance
    rows = []
    for c in range(1, classes + 1):
        between = surfaces(prediction == c, truth == c, spacing)
        rows.append((between.hausdorff(), between.average(), between.boundary_f(near)))
    for name, column in zip(DISTANCES, np.array(rows, np.float64).T, strict=True):
        found[name] = column
    return found | empty_cases(found)


def empty_cases(found: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """(K,) 0 or 1 for each of `EMPTY`, from the pixel counts of `overlap`."""
    none, nothing = found["truth_pixels"] == 0, found["predicted_pixels"] == 0
    cases = (none & nothing, ~none & nothing, none & ~nothing)
    return {name: case.astype(np.float64) for name, case in zip(EMPTY, cases, strict=True)}


def averaged(frames: Sequence[Scores]) -> dict[str, FloatArray]:
    """Scores of a clip from those of its frames: means, and sums of what is counted.

    Raises:
        ValueError: There are no frames.
    """
    if not frames:
        msg = "a clip without frames has no scores"
        raise ValueError(msg)
    counted = (*EMPTY, "truth_pixels", "predicted_pixels")
    made = {}
    for name in frames[0]:
        column = np.stack([np.asarray(f[name], np.float64) for f in frames])
        made[name] = column.sum(axis=0) if name in counted else nan_mean(column)
    return made


def steadiness(labels: Iterable[np.ndarray], classes: int) -> float:
    """Mean IoU of each frame's mask with the one before: 1 is a picture that stands still.

    Args:
        labels: (H, W) class indices of the frames, in order.
        classes: K; the mean is over the classes and the pairs of frames in which a class is.

    Returns:
        NaN for a single frame, and where nothing is ever seen.
    """
    values: list[float] = []
    before: np.ndarray | None = None
    for now in labels:
        if before is not None:
            for c in range(1, classes + 1):
                first, second = before == c, now == c
                union = int((first | second).sum())
                if union:
                    values.append(int((first & second).sum()) / union)
        before = now
    return float(np.mean(values)) if values else math.nan


def object_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How many objects were found, for nuclei and the like.

    Args:
        prediction: (H, W) numbered objects, 0 is background.
        truth: Likewise.

    Returns:
        `object_f1`: F of objects matched at IoU above 0.5, and `object_ap`: hits over hits,
        misses and inventions, averaged over IoU 0.5 to 0.95 (Data Science Bowl 2018); both 1
        where neither has an object.
    """
    found, first = np.unique(prediction, return_inverse=True)
    known, second = np.unique(truth, return_inverse=True)
    shape = (len(found), len(known))
    joint = np.bincount(first.ravel() * shape[1] + second.ravel(), minlength=shape[0] * shape[1])
    joint = joint.reshape(shape).astype(np.float64)
    union = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
    ious = (joint / union)[np.ix_(found > 0, known > 0)]
    if not sum(ious.shape):
        return {"object_f1": 1.0, "object_ap": 1.0}
    # Above one half an object has one partner at most, so no assignment has to be solved.
    hits = np.array([int((ious > t).sum()) for t in _AP_THRESHOLDS])
    total = sum(ious.shape)
    return {
        "object_f1": 2 * float(hits[0]) / total,
        "object_ap": float(np.mean(hits / (total - hits))),
    }


# -- a split ------------------------------------------------------------------------------------


def nan_mean(values: np.ndarray, axis: int = 0) -> FloatArray:
    """Mean of what is defined along an axis; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def stacked(units: Sequence[Scores]) -> dict[str, FloatArray]:
    """Scores of N units as arrays: (N, K), and (N,) for what is one number a unit.

    Raises:
        ValueError: There are no units.
    """
    if not units:
        msg = "nothing was scored"
        raise ValueError(msg)
    names = [n for n in (*MEASURES, *EMPTY) if n in units[0]]
    found = {n: np.stack([np.asarray(u[n], np.float64) for u in units]) for n in names}
    for name in SINGLE:
        if any(name in u for u in units):
            column = [float(u[name]) if name in u else math.nan for u in units]
            found[name] = np.array(column, np.float64)
    return found


def split_scores(
    arrays: Mapping[str, FloatArray], classes: Sequence[str], rows: IntArray | None = None
) -> dict[str, float]:
    """Measures of a split: means over units for each class, then over classes.

    Args:
        arrays: Of `stacked`.
        classes: Names of the classes, as parts of metric names.
        rows: Units to take, with repetitions; none: all.

    Returns:
        Every measure; with several classes `dice_<class>`, `iou_<class>`, `hd95_<class>` as well;
        `units`, and how many class masks fall in each case of `EMPTY` (of a clip: frames).
    """
    taken = {k: v if rows is None else v[rows] for k, v in arrays.items()}
    scores: dict[str, float] = {}
    for name in (n for n in MEASURES if n in taken):
        each = nan_mean(taken[name])
        scores[name] = float(nan_mean(each))
        if len(classes) > 1 and name in _EACH_CLASS:
            pairs = zip(classes, each, strict=True)
            scores |= {f"{name}_{c}": float(value) for c, value in pairs}
    scores |= {n: float(nan_mean(taken[n])) for n in SINGLE if n in taken}
    scores["units"] = float(len(taken["dice"]))
    return scores | {n: float(taken[n].sum()) for n in EMPTY if n in taken}


# -- the official evaluation --------------------------------------------------------------------


def official_hausdorff(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Hausdorff distance in pixels as the official evaluation has it.

    Args:
        prediction: (H, W) bool.
        truth: Likewise.

    Returns:
        Infinite where one mask is empty (dropped there), NaN where both are (kept there, so that
        its mean becomes NaN). `hd95` of this module leaves out both.
    """
    if prediction.any() != truth.any():
        return math.inf
    return surfaces(prediction, truth).hausdorff(100.0)
