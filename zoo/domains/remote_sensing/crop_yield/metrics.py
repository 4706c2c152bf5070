"""Scores of predicted yields.

The coefficient of determination and the squared correlation are both called R2 in this field; here
`r2` is the former and `r2_corr` the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Metrics that have the unit of the yield.
IN_UNITS = ("rmse", "mae", "bias")


def regression_metrics(truth: ArrayLike, prediction: ArrayLike) -> dict[str, float]:
    """Errors of predictions, in the unit of the arrays, pooled over all their entries.

    Args:
        truth: Observed values, any shape.
        prediction: Predicted values, the same shape.

    Returns:
        `rmse`; `mae`; `bias`, the mean of prediction - truth (the official `me` has the other
        sign); `r2 = 1 - SS_res / SS_tot`, NaN where the truth is constant; `pearson`, NaN where
        either is constant; `r2_corr`, its square (the R2 of MMST-ViT's protocol). Computed in
        float64; all NaN for empty arrays.

    Raises:
        ValueError: The shapes differ.
    """
    y = np.asarray(truth, dtype=np.float64)
    p = np.asarray(prediction, dtype=np.float64)
    if y.shape != p.shape:
        msg = f"truth has shape {y.shape} and prediction {p.shape}; they must be equal"
        raise ValueError(msg)
    y, p = y.ravel(), p.ravel()
    if not y.size:
        return dict.fromkeys(("rmse", "mae", "bias", "r2", "pearson", "r2_corr"), float("nan"))
    error = p - y
    squares = float(np.square(error).sum())
    correlation = _pearson(y, p)
    return {
        "rmse": float(np.sqrt(squares / y.size)),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        # A constant truth whose mean rounds leaves a spread of rounding errors, not of values.
        "r2": 1 - squares / _spread(y) if np.ptp(y) > 0 else float("nan"),
        "pearson": correlation,
        "r2_corr": correlation**2,
    }


def _spread(values: FloatArray) -> float:
    return float(np.square(values - values.mean()).sum())


def _pearson(y: FloatArray, p: FloatArray) -> float:
    if np.ptp(y) == 0 or np.ptp(p) == 0:
        return float("nan")
    both = float(((y - y.mean()) * (p - p.mean())).sum())
    return float(np.clip(both / np.sqrt(_spread(y) * _spread(p)), -1, 1))


def yield_scores(
    truth: FloatArray, prediction: FloatArray, baselines: Mapping[str, FloatArray], t_ha: float
) -> dict[str, float]:
    """Errors of a model in a crop's unit and in t/ha, beside those of what costs nothing.

    Args:
        truth: (N,) observed yields in the crop's unit.
        prediction: (N,) predicted yields.
        baselines: Name -> (N,) predictions of a baseline; NaN where it has none.
        t_ha: Tonnes a hectare of one unit.

    Returns:
        What `regression_metrics` gives; `rmse_t_ha`, `mae_t_ha`, `bias_t_ha`; for each baseline
        `rmse_<name>` and `skill_<name> = 1 - MSE / MSE of the baseline`, both on the rows where
        that baseline has a value; `rmse_ratio_best`, the model's error over the least error
        among the baselines that have a value everywhere.
    """
    found = regression_metrics(truth, prediction)
    found |= {f"{name}_t_ha": found[name] * t_ha for name in IN_UNITS}
    whole = []
    for name, values in baselines.items():
        known = np.isfinite(values)
        if not known.any():
            continue
        theirs = regression_metrics(truth[known], values[known])["rmse"]
        ours = regression_metrics(truth[known], prediction[known])["rmse"]
        found[f"rmse_{name}"] = theirs
        found[f"skill_{name}"] = 1 - (ours / theirs) ** 2 if theirs > 0 else float("nan")
        if known.all():
            whole.append(theirs)
    if whole and min(whole) > 0:
        found["rmse_ratio_best"] = found["rmse"] / min(whole)
    return found


def score_groups(
    truth: FloatArray, prediction: FloatArray, groups: Sequence[str]
) -> dict[str, dict[str, float]]:
    """`regression_metrics` of each group's rows, groups in order of their names, with `count`."""
    owner = np.asarray(groups, dtype=str)
    rows = {}
    for name in np.unique(owner):
        mine = owner == name
        scores = regression_metrics(truth[mine], prediction[mine])
        rows[str(name)] = {"count": float(mine.sum()), **scores}
    return rows
