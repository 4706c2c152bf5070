"""Metrics of slide classification and of attention, as pure functions on numpy arrays.

Letters: B slides, C classes, N instances. `labels` are integers from 0 to C - 1,
`probabilities` (B, C) sum to 1 over the classes, `predictions` are class numbers. A figure that
the data leave undefined (one class only, no slide) is NaN, never a guess.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.domains.medical.decisions import IntArray, binary_auc, confusion_matrix

FloatArray = NDArray[np.float64]
Absent = Literal["skip", "zero"]


def auc_per_class(labels: NDArray[Any], probabilities: NDArray[Any]) -> FloatArray:
    """(C,) areas of each class against the rest; NaN for a class without both sides."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    classes = probabilities.shape[1]
    return np.array([binary_auc(labels == c, probabilities[:, c]) for c in range(classes)])


def auc(labels: NDArray[Any], probabilities: NDArray[Any], absent: Absent = "skip") -> float:
    """One-vs-rest area, mean over the classes; for two classes the usual binary one.

    Args:
        labels: (B,) classes.
        probabilities: (B, C).
        absent: What a class that no slide has counts as: `skip` leaves it out; `zero` counts 0,
            as the torchmetrics macro mean of the official script does.

    Returns:
        The mean area, NaN if no class has one and absent classes are skipped.
    """
    return _mean(auc_per_class(labels, probabilities), absent)


def accuracy(confusion: IntArray) -> float:
    """Share of slides predicted right, 0 to 1."""
    return _ratio(np.trace(confusion), confusion.sum())


def recall_per_class(confusion: IntArray) -> FloatArray:
    """(C,) share of each class's slides predicted right; NaN for a class without slides."""
    return _ratios(np.diag(confusion), confusion.sum(axis=1))


def balanced_accuracy(confusion: IntArray, absent: Absent = "skip") -> float:
    """Mean recall over the classes.

    Args:
        confusion: (C, C) from `confusion_matrix`.
        absent: A class without slides that was predicted is left out (`skip`, as in
            scikit-learn) or counts 0 (`zero`, as in torchmetrics and the official script). A
            class neither present nor predicted is left out in both.
    """
    seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return _mean(recall_per_class(confusion)[seen], absent)


def f1_per_class(confusion: IntArray) -> FloatArray:
    """(C,) harmonic mean of precision and recall; NaN for a class not present or predicted."""
    return _ratios(2 * np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1))


def f1_macro(confusion: IntArray) -> float:
    """Mean F1 over the classes that are present or predicted."""
    return _mean(f1_per_class(confusion), "skip")


def f1_micro(confusion: IntArray) -> float:
    """F1 of all decisions together, which is the accuracy; what the official script selects by."""
    return accuracy(confusion)


def quadratic_kappa(confusion: IntArray) -> float:
    """Cohen's kappa with quadratic weights: agreement beyond chance on ordered classes.

    1 is perfect, 0 is chance; NaN if truth and prediction are one and the same class throughout.
    """
    classes = np.arange(confusion.shape[0])
    distance = (classes[:, None] - classes[None, :]) ** 2
    chance = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) / max(confusion.sum(), 1)
    return 1.0 - _ratio((distance * confusion).sum(), (distance * chance).sum())


def calibration_error(labels: NDArray[Any], probabilities: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error of the predicted class, with bins of equal width.

    Sum over bins of (share of slides) x |accuracy - mean confidence| (Guo et al. 2017, eq. 3).

    Args:
        labels: (B,) classes.
        probabilities: (B, C).
        bins: Number of bins of [0, 1]; a bin contains its lower edge, the last one both.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if len(probabilities) == 0:
        return float("nan")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == np.asarray(labels)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    gap = np.bincount(np.digitize(confidence, edges), weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def slide_metrics(labels: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, float]:
    """The figures reported for a split.

    Args:
        labels: (B,) classes.
        probabilities: (B, C).

    Returns:
        auc and balanced_accuracy over present classes, accuracy (0 to 1), f1_macro, f1_micro,
        quadratic_kappa, calibration_error, and recall_<c> for each class c.
    """
    probabilities = np.asarray(probabilities, np.float64)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    figures = {
        "auc": auc(labels, probabilities),
        "accuracy": accuracy(confusion),
        "balanced_accuracy": balanced_accuracy(confusion),
        "f1_macro": f1_macro(confusion),
        "f1_micro": f1_micro(confusion),
        "quadratic_kappa": quadratic_kappa(confusion),
        "calibration_error": calibration_error(labels, probabilities),
    }
    recalls = recall_per_class(confusion)
    return figures | {f"recall_{c}": float(value) for c, value in enumerate(recalls)}


def instance_auc(scores: NDArray[Any], instance_labels: NDArray[Any]) -> float:
    """How well attention finds the marked instances of one slide.

    Args:
        scores: (N,) attention of the instances; only its order counts.
        instance_labels: (N,) 1 for an instance of the lesion, else 0.

    Returns:
        Area under the ROC curve; NaN if all instances are marked or none is.
    """
    return binary_auc(np.asarray(instance_labels) > 0, scores)


def instances_for_share(weights: NDArray[Any], share: float = 0.9) -> int:
    """Smallest number of instances that hold `share` of the attention.

    Args:
        weights: (N,) attention of the instances of one slide, 0 or more; any scale.
        share: Part of the whole attention, in (0, 1].
    """
    largest_first = np.sort(np.asarray(weights, np.float64))[::-1]
    held = np.cumsum(largest_first)
    # Summing 0.1 ten times misses 1 by an ulp; the margin keeps such a bag from needing one more.
    enough = held >= share * held[-1:] * (1 - 1e-12)
    return int(np.argmax(enough)) + 1 if enough.size else 0


def _mean(values: FloatArray, absent: Absent) -> float:
    kept = np.nan_to_num(values, nan=0.0) if absent == "zero" else values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _ratios(part: IntArray, whole: IntArray) -> FloatArray:
    with np.errstate(invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
