from __future__ import annotations

import numpy as np
import pytest

from zoo.intervals import bootstrap_intervals


def test_bootstrap_draws_whole_patients() -> None:
    groups = ["a", "b", "a", "c", "b", "d"]
    patients = np.array(groups)
    seen = []

    def score(rows: np.ndarray) -> dict[str, float]:
        counts = np.bincount(rows, minlength=6)
        seen.append(all(len(set(counts[patients == name])) == 1 for name in set(groups)))
        return {"mean": float(rows.mean()), "never": float("nan")}

    found = bootstrap_intervals(score, groups, resamples=200, seed=1)
    assert len(seen) >= 200
    assert all(seen)
    assert found["mean"][0] < 2.5 < found["mean"][1]
    assert np.isnan(found["never"]).all()
    assert found["mean"] == bootstrap_intervals(score, groups, resamples=200, seed=1)["mean"]
    other = bootstrap_intervals(score, groups, resamples=200, seed=2)["mean"]
    assert found["mean"] != other


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap_intervals(
        lambda rows: {"mean": float(values[rows].mean())},
        [str(i) for i in range(400)],
        resamples=4000,
    )
    low, high = found["mean"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert low < values.mean() < high


def test_bootstrap_of_one_patient_claims_nothing() -> None:
    found = bootstrap_intervals(lambda rows: {"n": len(rows)}, ["a", "a"])
    assert np.isnan(found["n"]).all()
