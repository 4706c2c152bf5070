"""Measures against their definitions written out plainly, the toolkit, and by hand."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import convolve, distance_transform_edt

from zoo.domains.saliency.rgbd_sod import author_protocol, metrics
from zoo.domains.saliency.rgbd_sod.counts import Counts, stretch_table
from zoo.errors import DataError

EPS = np.spacing(1)
ATOL = 1e-9


# -- the definitions ----------------------------------------------------------------------------


def stretched(prediction: np.ndarray) -> np.ndarray:
    p = prediction / 255
    return p if p.max() == p.min() else (p - p.min()) / (p.max() - p.min())


def plain_f(called: np.ndarray, g: np.ndarray) -> float:
    hit = (called & g).sum()
    if not hit:
        return 0.0
    precision, recall = hit / called.sum(), hit / g.sum()
    return float(1.3 * precision * recall / (0.3 * precision + recall))


def plain_e(called: np.ndarray, g: np.ndarray) -> float:
    if not g.any():
        total = (~called).sum()
    elif g.all():
        total = called.sum()
    else:
        a, b = called - called.mean(), g - g.mean()
        total = ((2 * a * b / (a**2 + b**2 + EPS) + 1) ** 2 / 4).sum()
    return float(total / (g.size - 1))


def plain_similarity(p: np.ndarray, g: np.ndarray) -> float:
    n = max(p.size - 1, 1)
    x, y = p.mean(), g.mean()
    above = 4 * x * y * ((p - x) * (g - y)).sum() / n
    below = (x**2 + y**2) * (((p - x) ** 2).sum() / n + ((g - y) ** 2).sum() / n)
    if above:
        return float(above / (below + EPS))
    return float(below == 0)


def plain_s(p: np.ndarray, g: np.ndarray) -> float:
    if g.all() or not g.any():
        return float(p.mean() if g.all() else 1 - p.mean())
    likeness = 0.0
    for values in (p[g], 1 - p[~g]):
        spread = values.std(ddof=1) if values.size > 1 else 0
        score = 2 * values.mean() / (values.mean() ** 2 + 1 + spread + EPS)
        likeness += values.size / g.size * score
    y, x = (int(np.round(axis.mean())) + 1 for axis in np.nonzero(g))
    region = 0.0
    for rows in (slice(0, y), slice(y, None)):
        for columns in (slice(0, x), slice(x, None)):
            part = g[rows, columns]
            if part.size:
                region += part.size / g.size * plain_similarity(p[rows, columns], part)
    return float(max(0, 0.5 * likeness + 0.5 * region))


def plain_weighted(p: np.ndarray, g: np.ndarray) -> float:
    if not g.any():
        return 0.0
    distance, nearest = distance_transform_edt(~g, return_indices=True)
    error = np.abs(p - g)
    axis = np.exp(-(np.arange(-3, 4) ** 2) / 50)
    window = np.outer(axis, axis) / axis.sum() ** 2
    blurred = convolve(error[tuple(nearest)], window, mode="constant")
    weighted = np.where(g, np.minimum(error, blurred), error * (2 - 0.5 ** (distance / 5)))
    hit = g.sum() - weighted[g].sum()
    recall, precision = 1 - weighted[g].mean(), hit / (hit + weighted[~g].sum() + EPS)
    return float(2 * recall * precision / (recall + precision + EPS))


def plain_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    p, g = stretched(prediction), truth > 128
    levels = (p * 255).astype(np.uint8)
    adaptive = p >= min(2 * p.mean(), 1)
    union = (adaptive | g).sum()
    called = [levels >= k for k in range(255, -1, -1)]
    whole = (prediction >= 128) | g
    return {
        "mae": np.abs(p - g).mean(),
        "sm": plain_s(p, g),
        "wfm": plain_weighted(p, g),
        "adp_fm": plain_f(adaptive, g),
        "adp_em": plain_e(adaptive, g),
        "adp_iou": (adaptive & g).sum() / max(union, 1),
        "adp_dice": 2 * (adaptive & g).sum() / max(adaptive.sum() + g.sum(), 1),
        "iou": ((prediction >= 128) & g).sum() / whole.sum() if whole.any() else 1.0,
        "fm": np.array([plain_f(c, g) for c in called]),
        "em": np.array([plain_e(c, g) for c in called]),
        "precision": np.array([(c & g).sum() / max(c.sum(), 1) for c in called]),
        "recall": np.array([(c & g).sum() / max(g.sum(), 1) for c in called]),
    }


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A map and a truth of any kind that a user may have, degenerate ones as well."""
    h, w = (int(n) for n in rng.integers(2, 40, 2))
    y, x = np.mgrid[:h, :w]
    truths = [
        lambda: rng.random((h, w)) < rng.random(),
        lambda: (abs(y - rng.integers(h)) < rng.integers(1, 9)) & (abs(x - rng.integers(w)) < 5),
        lambda: np.full((h, w), rng.random() < 0.5),
        lambda: (y == rng.integers(h)) & (x == rng.integers(w)),
        lambda: ((y - h / 2) / (h / 3)) ** 2 + ((x - w / 2) / (w / 4)) ** 2 < 1,
        lambda: x == w - 1,
    ]
    g = truths[rng.integers(len(truths))]()
    lone = np.full((h, w), int(rng.integers(1, 255)))
    lone[rng.integers(h), rng.integers(w)] = rng.integers(256)
    a, b = rng.integers(0, 256, 2)
    maps = [
        rng.integers(0, 256, (h, w)),
        np.full((h, w), a),
        np.clip(g * 200 * rng.random() + rng.normal(0, 30, (h, w)), 0, 255),
        np.where(rng.random((h, w)) < 0.5, a, b),
        lone,
        np.where(g, a, b),
    ]
    return maps[rng.integers(len(maps))].astype(np.uint8), g.astype(np.uint8) * 255


@pytest.mark.parametrize("seed", range(150))
def test_scores_are_what_their_definitions_say(seed: int) -> None:
    prediction, truth = drawn(np.random.default_rng(seed))
    ours, expected = metrics.image_scores(prediction, truth), plain_scores(prediction, truth)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=ATOL, atol=ATOL, err_msg=name)


def test_scores_of_a_large_map_are_what_their_definitions_say() -> None:
    """Long distances, several strips, an object at the border."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :420]
    truth = (np.hypot(y - 40, x - 15) < 50).astype(np.uint8) * 255
    soft = 200 / (1 + np.exp((np.hypot(y - 45, x - 20) - 52) / 4)) + rng.uniform(0, 50, y.shape)
    prediction = soft.clip(0, 255).astype(np.uint8)
    ours, expected = metrics.image_scores(prediction, truth), plain_scores(prediction, truth)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=ATOL, atol=ATOL, err_msg=name)


def test_scores_are_those_of_the_toolkit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("py_sod_metrics", reason="pysodmetrics is not installed")
    from zoo.benchmarks.rgbd_sod_metrics import toolkit

    theirs = toolkit()
    assert theirs is not None
    undefined = 0
    for seed in range(400):
        prediction, truth = drawn(np.random.default_rng(1000 + seed))
        ours = metrics.image_scores(prediction, truth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(prediction, truth)
        for name, value in expected.items():
            if np.isnan(value).any():
                undefined += 1
                assert name == "sm"
            else:
                np.testing.assert_allclose(ours[name], value, rtol=ATOL, atol=ATOL, err_msg=name)
    assert undefined  # the trap of the empty quadrant is among the cases


# -- by hand ------------------------------------------------------------------------------------


def test_a_map_by_hand() -> None:
    """Values 0, 128, 255 become 0, 128/255, 1; the truth is the two on the right."""
    prediction = np.array([[0, 128], [0, 255]], np.uint8)
    truth = np.array([[0, 255], [0, 255]], np.uint8)
    found = metrics.image_scores(prediction, truth)
    assert found["mae"] == pytest.approx((1 - 128 / 255) / 4)
    assert found["iou"] == 1  # both reach 0.5
    assert found["adp_fm"] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))  # threshold 0.75: one of two
    assert found["recall"].tolist() == [0.5] * 127 + [1.0] * 129  # entry k is threshold 255 - k
    assert found["precision"].tolist() == [1.0] * 255 + [0.5]


def test_iou_is_of_the_map_as_it_is() -> None:
    prediction = np.array([[10, 100, 20, 127]], np.uint8)
    truth = np.array([[0, 255, 0, 255]], np.uint8)
    assert metrics.image_scores(prediction, truth)["iou"] == 0
    prediction[0, 3] = 128
    assert metrics.image_scores(prediction, truth)["iou"] == 0.5


def test_iou_of_nothing_found_where_there_is_nothing_is_one() -> None:
    nothing = np.zeros((5, 6), np.uint8)
    assert metrics.image_scores(nothing, nothing)["iou"] == 1
    assert metrics.image_scores(nothing + 200, nothing)["iou"] == 0


def test_truth_counts_above_128() -> None:
    prediction = np.array([[0, 255, 255]], np.uint8)
    grey = np.array([[0, 128, 129]], np.uint8)
    as_bool = np.array([[False, False, True]])
    a, b = metrics.image_scores(prediction, grey), metrics.image_scores(prediction, as_bool)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_levels_are_rounded_down_as_the_toolkit_does() -> None:
    """255 * ((v/255 - low) / (high - low)) is not always the integer it stands for."""
    table = stretch_table(3, 250)
    levels = (table[3:251] * 255).astype(np.uint8)
    assert levels[0] == 0
    assert levels[-1] == 255
    exact = (np.arange(248) * 255) // 247
    assert (levels <= exact).all()
    assert (exact - levels <= 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("full", [False, True])
def test_every_score_of_a_tiny_image_is_a_number(
    shape: tuple[int, int], value: int, full: bool
) -> None:
    prediction, truth = np.full(shape, value, np.uint8), np.full(shape, full)
    for values in (
        metrics.image_scores(prediction, truth),
        author_protocol.image_scores(prediction, truth),
    ):
        assert all(np.isfinite(v).all() for v in values.values())


def test_a_flat_quadrant_counts_as_the_toolkit_counts_it() -> None:
    """A flat map on a flat truth is alike, unless the mean of the map is rounded."""
    truth = np.zeros((9, 11), np.uint8)
    truth[:2, :2] = 255
    for value in range(0, 256, 7):
        prediction = np.full(truth.shape, value, np.uint8)
        prediction[0, 0], prediction[0, 1] = 0, 255
        ours = metrics.image_scores(prediction, truth)["sm"]
        assert float(ours) == pytest.approx(plain_s(stretched(prediction), truth > 0), abs=ATOL)


def test_counts_are_the_pixels_of_the_quadrants() -> None:
    rng = np.random.default_rng(3)
    prediction = rng.integers(0, 256, (13, 17)).astype(np.uint8)
    mask = rng.random((13, 17)) < 0.3
    counts = Counts.of(prediction, mask)
    y, x = counts.corner
    part = prediction[y:, :x][mask[y:, :x]]  # left bottom
    np.testing.assert_array_equal(counts.table[1, 1], np.bincount(part, minlength=256))
    assert counts.table.sum() == counts.size == 13 * 17


def test_inputs_are_left_as_they_are() -> None:
    prediction, truth = drawn(np.random.default_rng(5))
    copies = prediction.copy(), truth.copy()
    metrics.image_scores(prediction, truth)
    np.testing.assert_array_equal(prediction, copies[0])
    np.testing.assert_array_equal(truth, copies[1])


def test_views_give_what_copies_give() -> None:
    rng = np.random.default_rng(6)
    wide = rng.integers(0, 256, (40, 60)).astype(np.uint8)
    prediction, truth = wide[::2, 5:50:3], wide[1::2, 10:55:3]
    a = metrics.image_scores(prediction, truth)
    b = metrics.image_scores(prediction.copy(), truth.copy())
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.zeros((3, 4)), np.zeros((3, 4), bool), "2-D uint8 array, not float64"),
        (np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), bool), r"of shape \(3, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), bool), r"of shape \(0, 4\)"),
        (np.zeros((3, 4), np.uint8), np.zeros((4, 3), bool), r"map is \(3, 4\) and the truth"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 4)), "bool or uint8, not float64"),
    ],
)
def test_wrong_arrays_are_refused(prediction: np.ndarray, truth: np.ndarray, words: str) -> None:
    for function in (
        metrics.image_scores,
        metrics.image_curves,
        author_protocol.image_scores,
    ):
        with pytest.raises(DataError, match=words):
            function(prediction, truth)


# -- of a data set ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def values() -> list[dict[str, np.ndarray]]:
    return [metrics.image_scores(*drawn(np.random.default_rng(n))) for n in range(12)]


def test_curves_are_averaged_before_the_maximum_is_taken(
    values: list[dict[str, np.ndarray]],
) -> None:
    found = metrics.dataset_scores(values)
    for name in ("fm", "em"):
        curve = np.mean([v[name] for v in values], axis=0)
        assert found[f"max_{name}"] == pytest.approx(curve.max(), abs=ATOL)
        assert found[f"mean_{name}"] == pytest.approx(curve.mean(), abs=ATOL)
        assert found[f"max_{name}"] < np.mean([v[name].max() for v in values]) - 1e-3
    p, r = (np.mean([v[n] for v in values], axis=0) for n in ("precision", "recall"))
    assert found["max_fm_of_mean_pr"] == pytest.approx((1.3 * p * r / (0.3 * p + r)).max())
    for name in metrics.SCALARS:
        assert found[name] == pytest.approx(np.mean([v[name] for v in values]), abs=ATOL)
    assert found["images"] == 12


def test_a_resampled_data_set_scores_as_a_list_of_its_images(
    values: list[dict[str, np.ndarray]],
) -> None:
    rows = np.random.default_rng(0).integers(0, len(values), 30)
    quick = metrics.stacked_scores(metrics.stacked(values), rows)
    slow = metrics.dataset_scores([values[i] for i in rows])
    assert quick == pytest.approx(slow, abs=ATOL)


def test_single_precision_curves_are_averaged_in_double(
    values: list[dict[str, np.ndarray]],
) -> None:
    small = [{k: v.astype(np.float32) for k, v in one.items()} for one in values]
    found, exact = metrics.dataset_scores(small), metrics.dataset_scores(values)
    assert found == pytest.approx(exact, abs=1e-6)
    assert metrics.mean_curves(small)["fm"].dtype == np.float64


def test_no_images_are_no_data_set() -> None:
    for function in (metrics.dataset_scores, author_protocol.dataset_scores):
        with pytest.raises(DataError, match="no image was scored"):
            function([])


# -- the author's script ------------------------------------------------------------------------


def test_the_author_leaves_out_what_an_empty_truth_would_give() -> None:
    full = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
    values = author_protocol.image_scores(full, np.zeros((20, 30), bool))
    assert not values["precision"].any()
    assert not values["recall"].any()
    assert values["adp_f"] == 0


def test_the_author_has_255_thresholds_and_larger_constants() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((60, 80), np.uint8)
    truth[10:40, 20:50] = 255
    prediction = np.clip(truth * 0.8 + rng.normal(0, 25, truth.shape), 0, 255).astype(np.uint8)
    ours = metrics.image_scores(prediction, truth)
    author = author_protocol.image_scores(prediction, truth)
    assert author["precision"].shape == (255,)
    # Threshold 254 of theirs counts what ours counts at 254.
    np.testing.assert_allclose(author["recall"], ours["recall"][1:])
    np.testing.assert_allclose(author["precision"], ours["precision"][1:], atol=1e-6)
    assert author["mae"] == pytest.approx(float(ours["mae"]), abs=ATOL)
    assert author["wfm"] == pytest.approx(float(ours["wfm"]), abs=1e-4)
    assert author["sm"] == pytest.approx(float(ours["sm"]), abs=5e-3)
