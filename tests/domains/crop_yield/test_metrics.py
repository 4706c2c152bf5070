"""Scores of predicted yields against other implementations and by hand."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from zoo.domains.remote_sensing.crop_yield.metrics import (
    regression_metrics,
    score_groups,
    yield_scores,
)
from zoo.domains.remote_sensing.crop_yield.units import unit_of


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = rng.normal(45, 9, 61)
    return truth, truth + rng.normal(1.5, 4, 61)


def test_scores_are_scikit_learns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    found = regression_metrics(truth, prediction)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(truth, prediction), rel=1e-12)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, prediction), rel=1e-12)
    assert found["r2"] == pytest.approx(r2_score(truth, prediction), rel=1e-12)
    assert found["pearson"] == pytest.approx(pearsonr(truth, prediction).statistic, rel=1e-12)
    assert found["r2_corr"] == pytest.approx(found["pearson"] ** 2)
    assert found["bias"] == pytest.approx((prediction - truth).mean())


def test_squared_correlation_is_not_the_coefficient_of_determination() -> None:
    truth = np.array([1.0, 2.0, 3.0])
    found = regression_metrics(truth, truth + 10)
    assert found["r2_corr"] == pytest.approx(1)
    assert found["r2"] == pytest.approx(1 - 300 / 2)
    assert found["bias"] == 10


@pytest.mark.parametrize("value", [0.1, 47.0])
def test_constant_truth_has_no_r2(value: float) -> None:
    found = regression_metrics(np.full(7, value), np.linspace(0, 1, 7))
    assert np.isnan(found["r2"])
    assert np.isnan(found["pearson"])
    assert np.isfinite(found["rmse"])


def test_nothing_scored_is_nan_and_shapes_must_agree() -> None:
    assert all(np.isnan(v) for v in regression_metrics([], []).values())
    with pytest.raises(ValueError, match=r"shape \(2,\) and prediction \(1,\)"):
        regression_metrics([1, 2], [1])


def test_skill_compares_on_the_rows_a_baseline_has(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, prediction = pair
    partial = np.where(np.arange(61) < 20, np.nan, truth + 8)
    found = yield_scores(truth, prediction, {"mean": np.full(61, 45.0), "last": partial}, 0.06725)
    rows = slice(20, None)
    ours = root_mean_squared_error(truth[rows], prediction[rows])
    assert found["rmse_last"] == pytest.approx(8)
    assert found["skill_last"] == pytest.approx(1 - (ours / 8) ** 2)
    # A baseline without a value for every row is no rival for the whole.
    assert found["rmse_ratio_best"] == pytest.approx(found["rmse"] / found["rmse_mean"])
    assert found["rmse_t_ha"] == pytest.approx(found["rmse"] * 0.06725)
    assert found["bias_t_ha"] == pytest.approx(found["bias"] * 0.06725)


def test_perfect_or_missing_baselines_divide_nothing_by_zero() -> None:
    truth = np.array([1.0, 2.0])
    found = yield_scores(truth, truth, {"ridge": truth, "trend": np.full(2, np.nan)}, 1.0)
    assert np.isnan(found["skill_ridge"])
    assert "rmse_trend" not in found
    assert "rmse_ratio_best" not in found


def test_groups_are_scored_apart() -> None:
    found = score_groups(np.array([1.0, 2, 10]), np.array([1.0, 4, 9]), ["19", "19", "17"])
    assert list(found) == ["17", "19"]
    assert found["17"]["count"] == 1
    assert found["17"]["bias"] == -1
    assert found["19"]["rmse"] == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize(
    ("crop", "text", "t_ha"),
    [
        ("soybean", "bu/acre", 60 * 0.45359237 / 0.40468564224 / 1000),
        ("winterwheat", "bu/acre", 60 * 0.45359237 / 0.40468564224 / 1000),
        ("corn", "bu/acre", 56 * 0.45359237 / 0.40468564224 / 1000),
        ("cotton", "lb/acre", 0.45359237 / 0.40468564224 / 1000),
    ],
)
def test_a_unit_is_the_weight_of_its_bushel(crop: str, text: str, t_ha: float) -> None:
    unit = unit_of(crop)
    assert unit.text == text
    assert unit.key == text.replace("/", "_")
    assert unit.t_ha == pytest.approx(t_ha, rel=2e-4)
