"""What metrics of classification are made of: counts of decisions and the area under the ROC curve.

Letters: B cases, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

IntArray = NDArray[np.int64]


def confusion_matrix(labels: NDArray[Any], predictions: NDArray[Any], classes: int) -> IntArray:
    """(K, K) counts, row = truth, column = prediction; absent classes keep their row and column.

    Args:
        labels: (B,) integers from 0 to K - 1.
        predictions: (B,) likewise.
        classes: K.

    Raises:
        ValueError: A label or prediction is not a class number.
    """
    labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    both = np.concatenate([labels, predictions])
    if both.size and (both.min() < 0 or both.max() >= classes):
        msg = f"class numbers must be 0 to {classes - 1}, got {both.min()} to {both.max()}"
        raise ValueError(msg)
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes)


def binary_auc(positive: NDArray[Any], scores: NDArray[Any]) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative, ties half.

    By ranks (Mann and Whitney): an interval calls it a thousand times, for which scikit-learn's
    checks take too long.

    Args:
        positive: (B,) truth, bool or 0/1.
        scores: (B,) larger means more likely positive.

    Returns:
        The area, or NaN if there are no positives or no negatives.
    """
    positive = np.asarray(positive).astype(bool)
    hits = int(positive.sum())
    misses = positive.size - hits
    if hits == 0 or misses == 0:
        return float("nan")
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
