"""What a yield is predicted to be without a network: the county's past, and a linear model.

Every value of a county and year is computed from years that a prediction of that year may know:
earlier ones (`past`), or all others (`leave_one_year_out`). The year itself is never among them,
so the same table serves training, validation and test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Protocol = Literal["past", "leave_one_year_out"]

HISTORY = ("train_mean", "county_mean", "last_value", "trend")
NAMES = (*HISTORY, "ridge")
IN_WORDS = {
    "train_mean": "mean of all counties and years",
    "county_mean": "county's mean",
    "last_value": "county's last value",
    "trend": "county's mean with the common trend",
    "ridge": "ridge regression on mean band values",
}

_PENALTIES = tuple(float(a) for a in np.logspace(-2, 5, 22))


@dataclass(frozen=True)
class History:
    """Yields by county and year, and the baselines that follow from them.

    Attributes:
        yields: County (five digits) -> year -> yield in the crop's unit.
        protocol: Which years a prediction may know.
    """

    yields: Mapping[str, Mapping[int, float]]
    protocol: Protocol = "past"
    _memo: dict[int, tuple[float, float]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, int, float]], protocol: Protocol = "past") -> History:
        """From (county, year, yield) rows; a county and year listed twice is averaged.

        Yields that are not positive numbers are left out.
        """
        every: dict[str, dict[int, list[float]]] = {}
        for fips, year, value in rows:
            if np.isfinite(value) and value > 0:
                every.setdefault(fips, {}).setdefault(int(year), []).append(float(value))
        table = {
            fips: {year: float(np.mean(years[year])) for year in sorted(years)}
            for fips, years in sorted(every.items())
        }
        return cls(table, protocol)

    @classmethod
    def from_facts(cls, body: Mapping[str, Any]) -> History:
        """What `facts` gave, after JSON made its keys text."""
        table = {
            fips: dict(zip(map(int, years), map(float, values), strict=True))
            for fips, (years, values) in body["yields"].items()
        }
        return cls(table, body["protocol"])

    def facts(self) -> dict[str, Any]:
        """JSON: each county's years and yields."""
        table = {f: [list(years), list(years.values())] for f, years in self.yields.items()}
        return {"protocol": self.protocol, "yields": table}

    @cached_property
    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
        """County number, year and yield of every row."""
        rows = [
            (number, year, value)
            for number, years in enumerate(self.yields.values())
            for year, value in years.items()
        ]
        county, year, value = zip(*rows, strict=True) if rows else ((), (), ())
        return np.array(county, np.int64), np.array(year, np.int64), np.array(value, np.float64)

    def _known(self, years: NDArray[np.int64], year: int) -> NDArray[np.bool_]:
        return years < year if self.protocol == "past" else years != year

    def _common(self, year: int) -> tuple[float, float]:
        if year not in self._memo:
            self._memo[year] = self._mean_and_trend(year)
        return self._memo[year]

    def _mean_and_trend(self, year: int) -> tuple[float, float]:
        """Mean of what may be known for `year`, and the trend a year within counties.

        The trend is the least-squares slope of the deviations from each county's own mean (fixed
        effects): counties with two or three years alone have slopes of noise.
        """
        county, years, values = self._flat
        known = self._known(years, year)
        if not known.any():
            return float("nan"), float("nan")
        county, when, value = county[known], years[known].astype(float), values[known]
        count = np.maximum(np.bincount(county), 1)
        when = when - (np.bincount(county, when) / count)[county]
        about = value - (np.bincount(county, value) / count)[county]
        spread = float(np.square(when).sum())
        return float(value.mean()), float((when * about).sum() / spread) if spread > 0 else 0.0

    def predict(self, fips: str, year: int) -> dict[str, float]:
        """The baselines of a county and year, by the names in `HISTORY`.

        A county that was never seen gets the mean of all. `last_value` is the latest known year
        before `year`, else the earliest after it. All are NaN where no year may be known.
        """
        mean, slope = self._common(int(year))
        mine = self.yields.get(fips, {})
        years = np.array(list(mine), dtype=np.int64)
        values = np.array(list(mine.values()), dtype=np.float64)
        known = self._known(years, int(year))
        years, values = years[known], values[known]
        if not len(years):
            return dict.fromkeys(HISTORY, mean)
        before = np.flatnonzero(years < year)
        last = values[before[-1]] if len(before) else values[0]
        own = float(values.mean())
        return {
            "train_mean": mean,
            "county_mean": own,
            "last_value": float(last),
            "trend": own + slope * (year - float(years.mean())),
        }


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on a few numbers of the imagery.

    Attributes:
        centre: (F,) training mean of each number.
        scale: (F,) training deviation of each, 1 where it is constant.
        weights: (F,) of the standardised numbers.
        intercept: Prediction at the mean.
        penalty: Chosen by generalised cross-validation.
    """

    centre: FloatArray
    scale: FloatArray
    weights: FloatArray
    intercept: float
    penalty: float

    @classmethod
    def fit(cls, features: FloatArray, target: FloatArray) -> Ridge | None:
        """Fit on `features: (N, F)` and `target: (N,)`; None with fewer than three rows.

        A feature that is NaN (a step without a pixel) counts as its mean.
        """
        if len(target) < 3:
            return None
        from sklearn.linear_model import RidgeCV

        known = np.isfinite(features)
        count = np.maximum(known.sum(0), 1)
        centre = np.where(known, features, 0).sum(0) / count
        away = np.where(known, features - centre, 0)
        deviation = np.sqrt(np.square(away).sum(0) / count)
        scale = np.where(deviation > 1e-12, deviation, 1.0)
        model = RidgeCV(alphas=_PENALTIES).fit(away / scale, target)
        weights = np.asarray(model.coef_, dtype=np.float64)
        return cls(centre, scale, weights, float(model.intercept_), float(model.alpha_))

    @classmethod
    def from_facts(cls, body: Mapping[str, Any]) -> Ridge:
        """What `facts` gave."""
        centre, scale, weights = (np.array(body[k]) for k in ("centre", "scale", "weights"))
        return cls(centre, scale, weights, body["intercept"], body["penalty"])

    def facts(self) -> dict[str, Any]:
        """JSON."""
        return {
            "centre": self.centre.tolist(),
            "scale": self.scale.tolist(),
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
            "penalty": self.penalty,
        }

    def predict(self, features: FloatArray) -> float:
        """Prediction for one item's `features: (F,)`."""
        away = np.where(np.isfinite(features), features - self.centre, 0)
        return float(away / self.scale @ self.weights + self.intercept)


def histogram_features(histogram: NDArray[np.floating[Any]]) -> FloatArray:
    """Mean value of each band and step of a `(bands, steps, bins)` histogram: (bands * steps,).

    The mean is in bins (156.19 digital numbers each), among the values that fell into one; NaN for
    a step without any, such as one that is still to come.
    """
    shares = histogram.astype(np.float64)
    total = shares.sum(-1)
    weighted = shares @ np.arange(1, histogram.shape[-1] + 1, dtype=np.float64)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1), np.nan).ravel()


def picture_features(pictures: NDArray[np.floating[Any]]) -> FloatArray:
    """Mean and deviation of each channel over all pixels of `(P, C, H, W)` pictures: (2 C,)."""
    # Picture by picture: a county of 132 pictures in float64 would be 160 MB.
    means = np.array([p.mean((1, 2), dtype=np.float64) for p in pictures])
    spreads = np.array([p.var((1, 2), dtype=np.float64) for p in pictures])
    mean = means.mean(0)
    return np.concatenate([mean, np.sqrt(spreads.mean(0) + means.var(0))])


def as_columns(rows: Sequence[Mapping[str, float]]) -> dict[str, FloatArray]:
    """One array a baseline, NaN where a row has none, in the order of `NAMES`."""
    there = [n for n in NAMES if any(n in row for row in rows)]
    return {n: np.array([row.get(n, np.nan) for row in rows], dtype=np.float64) for n in there}
