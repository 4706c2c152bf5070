"""What a yield is predicted to be without a network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.remote_sensing.crop_yield.baselines import (
    HISTORY,
    History,
    Ridge,
    as_columns,
    histogram_features,
    picture_features,
)
from zoo.domains.remote_sensing.crop_yield.metrics import regression_metrics
from zoo.domains.remote_sensing.crop_yield.yields import load_yields

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "crop_yield" / "yield"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real crop yields here")

# The eleven states of the published pipelines and what the specification's table reports.
STATES = ("05", "17", "18", "19", "20", "27", "29", "31", "38", "39", "46")
REPORTED = {
    2009: (9.44, 6.72, 8.25, 759),
    2010: (9.84, 5.83, 6.78, 811),
    2011: (11.26, 6.62, 7.22, 785),
    2012: (11.46, 8.46, 8.94, 771),
    2013: (9.71, 6.30, 10.44, 729),
    2014: (11.31, 7.88, 7.59, 741),
    2015: (11.92, 8.48, 7.44, 683),
}

ROWS = [
    ("01001", 2003, 30.0),
    ("01001", 2004, 34.0),
    ("01001", 2005, 32.0),
    ("17001", 2003, 40.0),
    ("17001", 2005, 48.0),
]


def column(history: History, rows: list[tuple[str, int]], name: str) -> np.ndarray:
    return np.array([history.predict(fips, year)[name] for fips, year in rows])


@pytest.fixture(scope="module")
def real() -> tuple[History, dict[int, tuple[list[tuple[str, int]], np.ndarray]]]:
    table = load_yields(REAL / "yield_final.csv", states=STATES)
    rows = list(zip(table["fips"], table["year"], table["yield_bu_acre"], strict=True))
    years = {
        year: (
            [(f, y) for f, y, _ in rows if y == year],
            np.array([v for _, y, v in rows if y == year]),
        )
        for year in REPORTED
    }
    return History.of(rows), years


@needs_real
@pytest.mark.parametrize("year", REPORTED)
def test_real_yields_give_the_reported_errors(year: int, real: tuple[Any, Any]) -> None:
    history, years = real
    rows, truth = years[year]
    *reported, counties = REPORTED[year]
    names = ("train_mean", "county_mean", "last_value")
    found = [regression_metrics(truth, column(history, rows, n))["rmse"] for n in names]
    assert len(rows) == counties
    assert [round(f, 2) for f in found] == reported


@needs_real
def test_means_over_the_real_years(real: tuple[Any, Any]) -> None:
    history, years = real
    errors = [
        [regression_metrics(t, column(history, r, n))["rmse"] for r, t in years.values()]
        for n in HISTORY
    ]
    # The table states means of its rounded entries.
    means = [float(np.round(np.mean(np.round(e, 2)), 2)) for e in errors]
    assert means[:3] == [10.71, 7.18, 8.09]
    assert means[3] < means[0]


def test_only_earlier_years_are_known() -> None:
    history = History.of(ROWS)
    assert history.predict("01001", 2005) == {
        "train_mean": pytest.approx((30 + 34 + 40) / 3),
        "county_mean": 32.0,
        "last_value": 34.0,
        "trend": pytest.approx(32 + 4 * 1.5),
    }
    changed = History.of([(f, y, v + 100 * (y >= 2005)) for f, y, v in ROWS])
    assert changed.predict("01001", 2005) == history.predict("01001", 2005)
    assert changed.predict("01001", 2006) != history.predict("01001", 2006)


def test_all_other_years_are_known_when_one_is_left_out() -> None:
    history = History.of(ROWS, "leave_one_year_out")
    found = history.predict("01001", 2004)
    assert found["county_mean"] == 31.0
    assert found["last_value"] == 30.0
    assert found["train_mean"] == pytest.approx((30 + 32 + 40 + 48) / 4)
    # The year itself is never among them.
    changed = History.of([(f, y, 999.0 if y == 2004 else v) for f, y, v in ROWS], history.protocol)
    assert changed.predict("01001", 2004) == found
    assert history.predict("17001", 2002)["last_value"] == 40.0


def test_trend_is_common_to_the_counties() -> None:
    """Deviations from each county's mean: (-1, 1) a year apart and (-4, 4) two years apart."""
    history = History.of(
        [("01001", 2003, 30.0), ("01001", 2004, 32.0), ("17001", 2003, 40.0), ("17001", 2005, 48.0)]
    )
    slope = (2 * 0.5 * 1 + 2 * 1 * 4) / (2 * 0.25 + 2 * 1)
    assert history.predict("01001", 2007)["trend"] == pytest.approx(31 + slope * 3.5)
    assert history.predict("17001", 2007)["trend"] == pytest.approx(44 + slope * 3)


def test_county_without_a_past_gets_the_mean_of_all() -> None:
    history = History.of(ROWS)
    assert history.predict("55001", 2005) == dict.fromkeys(HISTORY, pytest.approx(104 / 3))
    assert all(np.isnan(v) for v in history.predict("01001", 2003).values())
    assert all(np.isnan(v) for v in History.of([]).predict("01001", 2003).values())


def test_placeholders_are_left_out_and_repeats_averaged() -> None:
    history = History.of([*ROWS, ("01001", 2005, 36.0), ("01001", 2002, 0.0), ("9", 2002, np.nan)])
    assert history.yields["01001"] == {2003: 30.0, 2004: 34.0, 2005: 34.0}
    assert "9" not in history.yields


def test_history_survives_json() -> None:
    history = History.of(ROWS, "leave_one_year_out")
    again = History.from_facts(json.loads(json.dumps(history.facts())))
    assert again == history
    assert again.predict("01001", 2004) == history.predict("01001", 2004)


def test_ridge_finds_a_linear_rule_and_survives_json() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(5, 2, (80, 6))
    features[:, 5] = 3  # a constant one must not divide by zero
    weights = np.array([1.0, -2.0, 0.5, 0, 0, 0])
    target = features @ weights + 20
    ridge = Ridge.fit(features, target)
    assert ridge is not None
    again = Ridge.from_facts(json.loads(json.dumps(ridge.facts())))
    new = rng.normal(5, 2, (20, 6))
    new[:, 5] = 3
    assert np.allclose([again.predict(f) for f in new], new @ weights + 20, atol=0.05)
    assert Ridge.fit(features[:2], target[:2]) is None


def test_a_number_that_is_missing_says_nothing() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(10, 1, (60, 3))
    target = 5 * features[:, 0] + 30
    features[::7, 1] = np.nan
    ridge = Ridge.fit(features, target)
    assert ridge is not None
    json.dumps(ridge.facts(), allow_nan=False)
    whole, cut = ridge.predict(np.array([12.0, 10, 10])), np.array([12.0, np.nan, 10])
    assert ridge.predict(cut) == pytest.approx(whole, abs=0.1)
    assert ridge.predict(np.full(3, np.nan)) == pytest.approx(ridge.intercept)


def test_ridge_shrinks_noise() -> None:
    rng = np.random.default_rng(1)
    ridge = Ridge.fit(rng.normal(0, 1, (40, 60)), rng.normal(30, 1, 40))
    assert ridge is not None
    assert abs(ridge.predict(rng.normal(0, 1, 60)) - 30) < 1.5


def test_histogram_features_are_mean_bins() -> None:
    histogram = np.zeros((2, 3, 4), np.float32)
    histogram[0, 0, 3] = 1
    histogram[1, 2] = (0.5, 0.5, 0, 0)
    nan = np.nan
    assert np.array_equal(
        histogram_features(histogram), [4, nan, nan, nan, nan, 1.5], equal_nan=True
    )


def test_picture_features_are_those_of_all_pixels() -> None:
    pictures = np.random.default_rng(0).normal(3, 2, (5, 3, 8, 7)).astype(np.float32)
    flat = pictures.astype(np.float64)
    found = picture_features(pictures)
    assert np.allclose(found, [*flat.mean((0, 2, 3)), *flat.std((0, 2, 3))], atol=1e-9)


def test_columns_keep_the_order_of_the_names() -> None:
    found = as_columns([{"ridge": 2.0}, {"county_mean": 1.0, "ridge": 3.0}])
    assert list(found) == ["county_mean", "ridge"]
    assert np.isnan(found["county_mean"][0])
    assert found["ridge"].tolist() == [2.0, 3.0]
