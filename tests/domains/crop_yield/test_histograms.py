"""Histograms against numpy's, and what masks, wraps and ends."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.domains.remote_sensing.crop_yield.histograms import (
    EDGES,
    counts_of,
    histogram,
    masked,
    paired,
    proportions,
    shifted,
)


def test_bins_equal_numpy_for_every_value() -> None:
    values = np.arange(65536, dtype=np.uint16)
    ours = counts_of(values.reshape(1, 1, 256, 256))[0, 0]
    assert ours.tolist() == np.histogram(values, EDGES)[0].tolist()
    for edge, bin_ in ((1, 0), (157, 0), (158, 1), (4999, 31)):
        one = counts_of(np.array([[[[edge]]]], np.uint16))[0, 0]
        assert one.argmax() == bin_
        assert one.sum() == 1
    assert not counts_of(np.array([[[[0, 5000, 65535]]]], np.uint16)).any()


@pytest.mark.parametrize("steps", [32, 7])
def test_counts_equal_a_loop(steps: int) -> None:
    rng = np.random.default_rng(1)
    year = rng.integers(0, 6000, (steps, 9, 5, 7)).astype(np.uint16)
    crop = rng.random((5, 7)) < 0.5
    ours = counts_of(year, crop)
    for s in range(steps):
        for b in range(9):
            expected = np.histogram(year[s, b][crop], EDGES)[0]
            assert ours[b, s].tolist() == expected.tolist()
    assert not ours[:, steps:].any()


def test_windows_add_up() -> None:
    year = np.random.default_rng(2).integers(0, 6000, (32, 9, 6, 5)).astype(np.uint16)
    parts = counts_of(year[:, :, :4]) + counts_of(year[:, :, 4:])
    np.testing.assert_array_equal(parts, counts_of(year))


def test_mask_before_or_after_is_the_same() -> None:
    rng = np.random.default_rng(3)
    year = rng.integers(0, 6000, (46, 9, 6, 5)).astype(np.uint16)
    crop = rng.random((6, 5)) < 0.5
    np.testing.assert_array_equal(
        histogram(masked(year, crop)), proportions(counts_of(year[6:38], crop))
    )


def test_missing_temperature_leaves_all_bins() -> None:
    assert shifted(np.array([0, 11499, 11500, 15000], np.uint16)).tolist() == [
        54036,
        65535,
        0,
        3500,
    ]
    light = np.full((7, 1, 1), 500, np.uint16)
    cold = histogram_of_one(light, np.zeros((2, 1, 1), np.uint16))
    assert cold[:7].sum() == 7
    assert cold[7:].sum() == 0


def histogram_of_one(light: np.ndarray, heat: np.ndarray) -> np.ndarray:
    return proportions(counts_of(paired(light, heat)))


def test_pairing_stops_at_the_shorter_list() -> None:
    light, heat = np.ones((7 * 5 + 3, 2, 2), np.uint16), np.full((2 * 4, 2, 2), 12000, np.uint16)
    year = paired(light, heat)
    assert year.shape == (4, 9, 2, 2)
    assert (year[:, 7:] == 500).all()


def test_a_row_sums_to_one_or_nothing() -> None:
    year = np.zeros((20, 9, 2, 2), np.uint16)
    year[:, 1] = 3000
    found = histogram(year)
    assert found.sum(-1)[1].tolist() == [1.0] * 14 + [0.0] * 18
    assert found.sum() == 14
