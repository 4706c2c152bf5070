"""Intervals of metrics, resampled by patient, identity, county or image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def bootstrap_intervals(
    score: Callable[[IntArray], Mapping[str, float]],
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of metrics by resampling whole groups with replacement.

    Slides of one patient are not independent, so patients are drawn and bring all their slides.

    Args:
        score: Gives the metrics of the slides whose row numbers it gets; rows repeat.
        groups: Patient (or other unit) of each row.
        resamples: Number of draws.
        level: Share of the draws inside the interval.
        seed: Makes the draws repeatable.

    Returns:
        (low, high) for each metric. Draws in which a metric is NaN, as the area is when a class
        was not drawn, are left out of it. With fewer than two groups all are NaN.
    """
    names, owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        return {name: (float("nan"), float("nan")) for name in score(np.arange(len(owner)))}
    rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    figures = list(score(np.arange(len(owner))))

    def statistic(picked: IntArray) -> FloatArray:
        drawn = score(np.concatenate([rows[g] for g in picked]))
        return np.array([drawn[name] for name in figures])

    with warnings.catch_warnings():
        # scipy warns of draws without a value; they are left out below.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(
            (np.arange(len(names)),),
            statistic,
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    tail = (1 - level) / 2
    intervals = {}
    for name, values in zip(figures, drawn, strict=True):
        known = values[~np.isnan(values)]
        low, high = np.quantile(known, [tail, 1 - tail]) if known.size else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals
