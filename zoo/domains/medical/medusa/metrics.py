"""Metrics of radiograph classification and of lung masks, as pure functions on numpy arrays.

Letters: B radiographs, K classes. `labels` are integers from 0 to K - 1, `probabilities` (B, K)
sum to 1. Shares of an empty row or column of the confusion matrix are 0, as the official script
prints them; areas that the data leave undefined are NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from zoo.domains.medical.decisions import IntArray, binary_auc, confusion_matrix

FloatArray = NDArray[np.float64]

BINS = 10


# -- decisions ----------------------------------------------------------------------------------


def sensitivity(confusion: NDArray[Any]) -> FloatArray:
    """(K,) share of each class that was predicted as it; 0 for a class without radiographs."""
    return _shares(np.diag(confusion), confusion.sum(axis=1))


def ppv(confusion: NDArray[Any]) -> FloatArray:
    """(K,) share of each class's predictions that are right; 0 for a class never predicted."""
    return _shares(np.diag(confusion), confusion.sum(axis=0))


def specificity(confusion: NDArray[Any]) -> FloatArray:
    """(K,) share of all others that were not predicted as the class; 0 if there are no others."""
    others = confusion.sum() - confusion.sum(axis=1)
    taken = confusion.sum(axis=0) - np.diag(confusion)
    return _shares(others - taken, others)


def accuracy(confusion: NDArray[Any]) -> float:
    """Share of radiographs predicted right; 0 if there is none."""
    return _share(float(np.trace(confusion)), float(confusion.sum()))


def _shares(part: NDArray[Any], whole: NDArray[Any]) -> FloatArray:
    return np.array([_share(float(p), float(w)) for p, w in zip(part, whole, strict=True)])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# -- ranks and calibration ----------------------------------------------------------------------


def auc(labels: NDArray[Any], probabilities: NDArray[Any], positive: int | None = None) -> float:
    """Area under the ROC curve.

    Args:
        labels: (B,) classes.
        probabilities: (B, K).
        positive: Class against the rest; None: the mean over all classes that have both sides.

    Returns:
        The area, NaN if no class asked for has both sides.
    """
    labels = np.asarray(labels)
    wanted = range(probabilities.shape[1]) if positive is None else [positive]
    areas = [
        binary_auc(labels == c, probabilities[:, c])
        for c in wanted
        if 0 < (labels == c).sum() < len(labels)
    ]
    return float(np.mean(areas)) if areas else math.nan


def average_precision(labels: NDArray[Any], scores: NDArray[Any], positive: int) -> float:
    """Area under the precision-recall curve, as a sum of steps; NaN without a positive."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    true = (np.asarray(labels) == positive)[order]
    if not true.any():
        return math.nan
    # Equal scores are one threshold: only the last of them is a point of the curve.
    ends = np.append(np.flatnonzero(np.diff(np.asarray(scores)[order])), len(order) - 1)
    found = np.cumsum(true)[ends]
    recall, precision = found / true.sum(), found / (ends + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed, in bins of equal width.

    Attributes:
        count: (bins,) radiographs in each bin.
        predicted: (bins,) mean probability; NaN in an empty bin.
        observed: (bins,) share for which it came true; NaN in an empty bin.
    """

    count: IntArray
    predicted: FloatArray
    observed: FloatArray

    @property
    def error(self) -> float:
        """Expected calibration error: mean |predicted - observed|, weighted by count."""
        full = self.count > 0
        if not full.any():
            return math.nan
        gaps = np.abs(self.predicted - self.observed)[full]
        return float((gaps * self.count[full]).sum() / self.count.sum())


def reliability(
    labels: NDArray[Any], probabilities: NDArray[Any], positive: int = 1, bins: int = BINS
) -> Reliability:
    """Calibration of a two-class model's positive class, else of the predicted class.

    The error of it is equation 3 of Guo et al. 2017, for two classes on the probability of the
    positive one.

    Args:
        labels: (B,) classes.
        probabilities: (B, K).
        positive: Which class, for K = 2.
        bins: Number of bins of [0, 1]; a bin contains its lower edge, the last one both.
    """
    labels = np.asarray(labels)
    if probabilities.shape[1] == 2:
        chance, true = probabilities[:, positive], labels == positive
    else:
        chance, true = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.digitize(chance, np.linspace(0, 1, bins + 1)[1:-1])
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, weights=chance, minlength=bins) / count
        observed = np.bincount(place, weights=true.astype(np.float64), minlength=bins) / count
    return Reliability(count, predicted, observed)


# -- the operating point ------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the positive class's probability, and what it gave where it was chosen.

    Attributes:
        threshold: At or above it a radiograph counts as positive.
        wanted: Sensitivity asked for.
        sensitivity: Sensitivity reached on the radiographs it was chosen on.
        specificity: Specificity there.
        positives: Positive radiographs there.
        negatives: The others.
    """

    threshold: float
    wanted: float
    sensitivity: float
    specificity: float
    positives: int
    negatives: int

    def facts(self) -> dict[str, float | int]:
        """As JSON."""
        return asdict(self)


def operating_point(
    positive: NDArray[Any], scores: NDArray[Any], wanted: float
) -> OperatingPoint | None:
    """The highest threshold that keeps a sensitivity of at least `wanted`.

    It lies half-way to the next lower score, so that rounding does not turn over the radiograph
    it was set by.

    Args:
        positive: (B,) truth.
        scores: (B,) probability of the positive class.
        wanted: Sensitivity, in (0, 1).

    Returns:
        The point, or None without a positive radiograph to choose it on.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    hits = np.sort(scores[positive])[::-1]
    if not hits.size:
        return None
    needed = math.ceil(wanted * hits.size - 1e-9)
    edge = hits[needed - 1]
    below = scores[scores < edge]
    threshold = float((edge + below.max()) / 2) if below.size else float(edge)
    reached, left = at_point(positive, scores, threshold)
    misses = int((~positive).sum())
    return OperatingPoint(threshold, wanted, reached, left, int(positive.sum()), misses)


def at_point(positive: NDArray[Any], scores: NDArray[Any], threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of `scores >= threshold`; 0 where a side is empty."""
    positive = np.asarray(positive, bool)
    called = np.asarray(scores) >= threshold
    return (
        _share(float((called & positive).sum()), float(positive.sum())),
        _share(float((~called & ~positive).sum()), float((~positive).sum())),
    )


# -- intervals ----------------------------------------------------------------------------------


def wilson(share: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
        share: Observed proportion.
        trials: Independent trials behind it. Give the number of patients where a patient has
            several radiographs, which is the cautious choice.
        level: Coverage.

    Returns:
        (low, high); NaN without a trial.
    """
    if trials <= 0:
        return math.nan, math.nan
    z = float(norm.ppf(0.5 + level / 2))
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    half = z * spread / (1 + z * z / trials)
    # At the ends the formula gives them up to rounding.
    return (middle - half if share > 0 else 0.0), (middle + half if share < 1 else 1.0)


# -- a split ------------------------------------------------------------------------------------


def slugs(classes: Sequence[str]) -> list[str]:
    """Class names as endings of metric names; numbers where names would not be told apart."""
    made = [re.sub(r"[^a-z0-9]+", "_", c.lower()).strip("_") for c in classes]
    return made if all(made) and len(set(made)) == len(made) else [str(i) for i in range(len(made))]


def radiograph_metrics(
    labels: NDArray[Any], probabilities: NDArray[Any], classes: Sequence[str], positive: int
) -> dict[str, float]:
    """The figures reported for a split.

    Args:
        labels: (B,) classes.
        probabilities: (B, K).
        classes: K names.
        positive: The class that `sensitivity`, `specificity` and `auprc` are about.

    Returns:
        accuracy, sensitivity, specificity, auc, auprc, calibration_error, and for each class
        sensitivity_<class> and ppv_<class>. With two classes auc is that of the positive one,
        else the mean of one against the rest.
    """
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    recalls, precisions = sensitivity(confusion), ppv(confusion)
    found = {
        "accuracy": accuracy(confusion),
        "sensitivity": float(recalls[positive]),
        "specificity": float(specificity(confusion)[positive]),
        **rank_metrics(labels, probabilities, positive),
    }
    for name, recall, precision in zip(slugs(classes), recalls, precisions, strict=True):
        found[f"sensitivity_{name}"] = float(recall)
        found[f"ppv_{name}"] = float(precision)
    return found


def rank_metrics(
    labels: NDArray[Any], probabilities: NDArray[Any], positive: int
) -> dict[str, float]:
    """auc, auprc and calibration_error, the figures of a split that are no proportions.

    Args:
        labels: (B,) classes.
        probabilities: (B, K).
        positive: See `radiograph_metrics`.
    """
    two = probabilities.shape[1] == 2
    return {
        "auc": auc(labels, probabilities, positive if two else None),
        "auprc": average_precision(labels, probabilities[:, positive], positive),
        "calibration_error": reliability(labels, probabilities, positive).error,
    }


# -- masks and maps -----------------------------------------------------------------------------


def overlap(predicted: NDArray[Any], mask: NDArray[Any]) -> tuple[float, float]:
    """Dice coefficient and intersection over union of two binary masks; 1 if both are empty."""
    predicted, mask = np.asarray(predicted, bool), np.asarray(mask, bool)
    both, sizes = float((predicted & mask).sum()), float(predicted.sum() + mask.sum())
    return (2 * both / sizes, both / (sizes - both)) if sizes else (1.0, 1.0)


def mass_inside(heat: NDArray[Any], mask: NDArray[Any]) -> float:
    """Share of a non-negative heat map's mass that lies inside a mask; NaN for a map of zeros.

    Args:
        heat: (h, w), 0 or more.
        mask: (h, w) binary.
    """
    total = float(np.sum(heat))
    return float(np.sum(np.where(mask, heat, 0.0))) / total if total > 0 else math.nan
