import numpy as np
import pytest
from scipy import ndimage

from zoo.domains.saliency.rgbd_sod.depth import (
    DepthRules,
    canonical,
    decide,
    foreground_is_smaller,
    hole_mask,
)
from zoo.domains.saliency.rgbd_sod.images import RawDepth

RNG = np.random.default_rng(0)
RULES = DepthRules()


def sensor(values: object) -> RawDepth:
    return RawDepth(np.array(values, np.uint16), "16-bit", zero_is_hole=True)


def grey(values: object) -> RawDepth:
    return RawDepth(np.array(values, np.uint8), "8-bit", zero_is_hole=False)


def test_maps_are_scaled_by_their_own_range() -> None:
    depth = canonical(grey([[13, 52], [26, 39]]), RULES)
    np.testing.assert_allclose(depth.values, [[0, 1], [1 / 3, 2 / 3]], atol=1e-6)
    assert depth.values.dtype == np.float32
    assert depth.valid


def test_a_map_that_spans_8_bits_is_divided_by_255() -> None:
    values = np.arange(256).reshape(16, 16)
    np.testing.assert_allclose(canonical(grey(values), RULES).values, values / 255, atol=1e-6)


def test_a_16_bit_map_is_the_same_as_its_8_bit_copy() -> None:
    values = RNG.integers(0, 256, (20, 30))
    fine = canonical(sensor(values * 200 + 1), RULES)
    np.testing.assert_allclose(fine.values, canonical(grey(values), RULES).values, atol=1e-6)


def test_near_bright_is_turned_round() -> None:
    near_dark = canonical(grey([[0, 100], [200, 250]]), RULES)
    near_bright = canonical(grey([[250, 150], [50, 0]]), RULES, "near_bright")
    np.testing.assert_allclose(near_bright.values, near_dark.values, atol=1e-6)


def test_percentiles_keep_outliers_out() -> None:
    values = np.linspace(50, 100, 10_000).reshape(100, 100).astype(np.uint16)
    values[0, 0] = 60_000
    assert np.median(canonical(sensor(values), RULES).values) < 0.01
    depth = canonical(sensor(values), DepthRules(percentile=(1, 99)))
    assert np.median(depth.values) == pytest.approx(0.5, abs=0.02)
    assert (depth.values.min(), depth.values.max()) == (0, 1)
    # A map of nearly one value has equal percentiles and still a range.
    flat = np.full((100, 100), 7, np.uint16)
    flat[0, 0] = 9
    assert canonical(sensor(flat), DepthRules(percentile=(1, 99))).valid


@pytest.mark.parametrize("holes", ["nearest", "far", "keep"])
@pytest.mark.parametrize("polarity", ["near_dark", "near_bright"])
def test_holes_do_not_stretch_the_range(holes: str, polarity: str) -> None:
    raw = sensor([[1000, 0, 3000], [1500, 2000, 2500]])
    depth = canonical(raw, DepthRules(holes), polarity)
    np.testing.assert_array_equal(depth.holes, [[False, True, False], [False] * 3])
    whole = np.array([[0, np.nan, 1], [0.25, 0.5, 0.75]])
    expected = whole if polarity == "near_dark" else 1 - whole
    got = depth.values
    np.testing.assert_allclose(got[~depth.holes], expected[~depth.holes], atol=1e-6)
    # Filled with the far end, with a measured neighbour, or left at the end where zero lies.
    zero = 0.0 if polarity == "near_dark" else 1.0
    wanted = {"far": [1.0], "keep": [zero], "nearest": [0.0, 1.0, 0.5]}[holes]
    assert min(abs(got[0, 1] - w) for w in wanted) < 1e-6


def test_a_hole_is_not_the_nearest_thing_there_is() -> None:
    values = np.full((40, 40), 2000)
    values[10:20, 10:20] = 1000
    values[25:35, 25:35] = 0
    depth = canonical(sensor(values), RULES)
    assert depth.values[30, 30] == 1
    assert depth.values[15, 15] == 0


def test_holes_take_the_nearest_measured_value() -> None:
    values = RNG.integers(1, 60_000, (60, 80)).astype(np.uint16)
    noise = ndimage.gaussian_filter(RNG.normal(size=values.shape), 3)
    missing = noise > np.quantile(noise, 0.7)
    values[missing] = 0
    depth = canonical(sensor(values), RULES)
    nearest, where = ndimage.distance_transform_edt(missing, return_indices=True)
    exact = depth.values[tuple(where)]
    rows, columns = np.indices(values.shape)
    # Where two measured pixels are about as near, either will do: compare distances.
    for r, c in zip(*np.nonzero(missing & (exact != depth.values)), strict=True):
        same = ~missing & (depth.values == depth.values[r, c])
        distance = np.sqrt(((rows - r) ** 2 + (columns - c) ** 2)[same]).min()
        assert distance <= nearest[r, c] + 0.5
    assert (exact == depth.values)[missing].mean() > 0.8


def test_hole_value_is_set_or_follows_from_the_file() -> None:
    eight = grey([[0, 255], [255, 10]])
    assert not hole_mask(eight, RULES).any()
    assert hole_mask(eight, DepthRules(hole_value=255)).sum() == 2
    assert hole_mask(sensor([[0, 5], [7, 0]]), RULES).sum() == 2
    assert hole_mask(sensor([[0, 5], [7, 0]]), DepthRules(hole_value=5)).sum() == 1
    metres = RawDepth(np.array([[np.nan, 1.5], [np.inf, 0]], np.float32), "float", True)
    assert hole_mask(metres, RULES).sum() == 3
    assert hole_mask(metres, DepthRules(hole_value=9)).sum() == 2


@pytest.mark.parametrize(
    "raw",
    [
        grey(np.zeros((5, 6))),
        grey(np.full((5, 6), 77)),
        sensor(np.zeros((5, 6))),
        sensor(np.where(np.eye(6) > 0, 9, 0)),
        RawDepth(np.full((5, 6), np.nan, np.float32), "float", True),
    ],
)
@pytest.mark.parametrize("polarity", ["near_dark", "near_bright"])
def test_a_map_that_says_nothing_is_zeros_and_not_valid(raw: RawDepth, polarity: str) -> None:
    depth = canonical(raw, RULES, polarity)
    assert not depth.valid
    assert not depth.values.any()
    assert depth.values.shape == raw.values.shape


def test_foreground_against_background() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:4] = True
    near = np.where(mask, 20, 90)
    assert foreground_is_smaller(grey(near), mask, RULES) is True
    assert foreground_is_smaller(grey(255 - near), mask, RULES) is False
    assert foreground_is_smaller(grey(np.full((10, 10), 5)), mask, RULES) is None
    assert foreground_is_smaller(grey(near), np.zeros_like(mask), RULES) is None
    # Holes count for neither side: without that the zeros would be a near background.
    holed = near.copy()
    holed[5:] = 0
    assert foreground_is_smaller(sensor(holed), mask, RULES) is True


def test_polarity_needs_twenty_images_of_which_seventy_percent_agree() -> None:
    assert decide([True] * 19 + [None] * 10) is None
    for yes, no, polarity, sure in (
        (20, 0, "near_dark", True),
        (15, 5, "near_dark", True),
        (14, 6, "near_dark", False),
        (10, 10, "near_dark", False),
        (6, 14, "near_dark", False),
        (5, 15, "near_bright", True),
    ):
        found = decide([True] * yes + [False] * no)
        assert found is not None
        assert (found.polarity, found.sure, found.count) == (polarity, sure, yes + no)
        assert found.share == pytest.approx(yes / (yes + no))
