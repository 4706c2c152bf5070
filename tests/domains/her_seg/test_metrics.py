"""Measures of masks: by hand, against MONAI, in empty cases, over clips and splits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zoo.domains.medical.her_seg.metrics import (
    EMPTY,
    MEASURES,
    averaged,
    confusion,
    nan_mean,
    object_scores,
    official_hausdorff,
    overlap,
    split_scores,
    stacked,
    steadiness,
    tolerance_of,
    unit_scores,
)
from zoo.domains.medical.her_seg.surface import outline, surfaces


def blob(shape: tuple[int, ...], seed: int, share: float = 0.3) -> np.ndarray:
    """A mask with smooth edges."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (field > np.quantile(field, 1 - share)).astype(np.uint8)


def box(shape: tuple[int, ...], *spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*s) for s in spans)] = 1
    return mask


# -- one unit -----------------------------------------------------------------------------------


def test_overlap_by_hand() -> None:
    truth = box((10, 10), (0, 4), (0, 5))  # 20
    guess = box((10, 10), (0, 4), (2, 8))  # 24, 12 of them shared
    found = overlap(confusion(guess, truth, 1))
    assert found["dice"] == pytest.approx([24 / 44])
    assert found["iou"] == pytest.approx([12 / 32])
    assert found["dice_official"] == pytest.approx([25 / 45])
    assert found["iou_official"] == pytest.approx([13 / 33])
    assert found["sensitivity"] == pytest.approx([12 / 20])
    assert found["specificity"] == pytest.approx([68 / 80])
    assert (found["truth_pixels"][0], found["predicted_pixels"][0]) == (20, 24)


def test_distances_of_shifted_boxes_by_hand() -> None:
    truth, guess = box((20, 30), (5, 10), (5, 10)), box((20, 30), (5, 10), (8, 13))
    found = unit_scores(guess, truth, 1, spacing=(2.0, 0.5))
    # Every outline pixel of the left column is 3 columns of 0.5 mm from the other box.
    assert surfaces(guess > 0, truth > 0, (2.0, 0.5)).hausdorff(100) == pytest.approx(1.5)
    assert found["hd95"] == pytest.approx([1.5])
    in_pixels = unit_scores(guess, truth, 1)
    assert in_pixels["hd95"] == pytest.approx([3.0])
    assert in_pixels["boundary_f"] < 1
    assert unit_scores(guess, truth, 1, tolerance=3.0)["boundary_f"] == pytest.approx([1.0])


def test_a_volume_is_measured_as_a_whole_and_in_millimetres() -> None:
    truth = box((6, 20, 20), (1, 3), (5, 10), (5, 10))
    guess = box((6, 20, 20), (1, 5), (5, 10), (5, 10))
    found = unit_scores(guess, truth, 1, spacing=(5.0, 1.0, 1.0))
    assert found["dice"] == pytest.approx([2 * 50 / 150])
    # The last two slices are 5 and 10 mm beyond the truth: no slice alone has such a distance.
    assert surfaces(guess > 0, truth > 0, (5.0, 1.0, 1.0)).hausdorff(100) == pytest.approx(10.0)
    assert found["hd95"] == pytest.approx([10.0])


def test_outlines_reach_the_edge_of_the_picture() -> None:
    assert outline(np.ones((4, 5), bool)).sum() == 14
    alone = np.zeros((4, 5), bool)
    alone[0, 0] = True
    assert np.array_equal(outline(alone), alone)


def test_cutting_out_a_box_changes_nothing() -> None:
    inner, other = blob((12, 14), 1), blob((12, 14), 2)
    wide = [np.pad(m, ((9, 3), (0, 20))) for m in (inner, other)]
    padded = [np.pad(m, ((1, 1), (0, 1))) for m in (inner, other)]
    a, b = surfaces(*(m > 0 for m in wide)), surfaces(*(m > 0 for m in padded))
    np.testing.assert_allclose(np.sort(a.to_truth), np.sort(b.to_truth))
    np.testing.assert_allclose(np.sort(a.to_prediction), np.sort(b.to_prediction))


@pytest.mark.parametrize(
    ("truth", "guess", "expected", "case"),
    [
        (0, 0, (1, 1, 1, math.nan, math.nan, math.nan, 1), "both_empty"),
        (1, 0, (0, 0, 0, math.nan, math.nan, 0, 1), "prediction_empty"),
        (0, 1, (0, 0, 0, math.nan, math.nan, math.nan, 0.84), "truth_empty"),
        (1, 1, (1, 1, 1, 0, 0, 1, 1), None),
    ],
)
@pytest.mark.parametrize("spatial", [2, 3])
def test_empty_masks_are_defined(
    truth: int, guess: int, expected: tuple[float, ...], case: str | None, spatial: int
) -> None:
    shape = (1,) * (spatial - 2) + (10, 10)
    some = np.zeros(shape, np.uint8)
    some[..., 2:6, 3:7] = 1
    found = unit_scores(some * guess, some * truth, 1)
    names = ("dice", "iou", "boundary_f", "hd95", "asd", "sensitivity", "specificity")
    for name, value in zip(names, expected, strict=True):
        assert found[name] == pytest.approx([value], nan_ok=True), name
    assert {n: float(found[n][0]) for n in EMPTY} == {n: float(n == case) for n in EMPTY}


def test_official_smoothing_of_empty_masks() -> None:
    nothing, some = np.zeros((4, 4), np.uint8), box((4, 4), (0, 1), (0, 3))
    found = [overlap(confusion(p, nothing, 1)) for p in (nothing, some)]
    assert [float(f["dice_official"][0]) for f in found] == [1.0, 0.25]
    assert [float(f["iou_official"][0]) for f in found] == [1.0, 0.25]
    assert official_hausdorff(some > 0, nothing > 0) == math.inf
    assert math.isnan(official_hausdorff(nothing > 0, nothing > 0))


def test_everything_foreground() -> None:
    full = np.ones((5, 5), np.uint8)
    found = unit_scores(full, full, 1)
    assert math.isnan(found["specificity"][0])
    assert (found["dice"][0], found["hd95"][0]) == (1, 0)


def test_classes_are_measured_apart() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[:4], truth[4:, :4] = 1, 2
    guess = truth.copy()
    guess[truth == 2] = 1
    found = unit_scores(guess, truth, 3)
    assert found["dice"] == pytest.approx([2 * 32 / (48 + 32), 0, 1])
    assert found["both_empty"].tolist() == [0, 0, 1]
    assert found["prediction_empty"].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="class index 2"):
        confusion(guess, truth, 1)
    with pytest.raises(ValueError, match="differ in size"):
        confusion(guess[:4], truth, 3)


def test_many_classes_do_not_overflow() -> None:
    truth = np.array([[250, 250, 3]], np.uint8)
    counts = confusion(np.array([[250, 3, 3]], np.uint8), truth, 250)
    assert (counts[250, 250], counts[250, 3], counts[3, 3]) == (1, 1, 1)
    assert counts.sum() == 3


def test_tolerances() -> None:
    assert tolerance_of((300, 400), None) == pytest.approx(4.0)
    assert tolerance_of((300, 400), (0.5, 0.5)) == pytest.approx(2.0)
    assert tolerance_of((10, 10), None) == 1.0  # at least a pixel
    assert tolerance_of((9, 300, 400), (3.0, 1.0, 1.0)) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [2, 3])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_measures_equal_those_of_monai_and_torchmetrics(
    spatial: int, scaled: bool, seed: int
) -> None:
    import torch
    from monai.metrics import (  # type: ignore[attr-defined]
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
    )
    from torchmetrics.functional.classification import binary_jaccard_index

    shape = (9, 17, 23)[-spatial:]
    truth, guess = blob(shape, seed), blob(shape, seed + 100, share=0.2)
    spacing = (3.0, 0.5, 1.5)[-spatial:] if scaled else None
    ours = unit_scores(guess, truth, 1, spacing=spacing)
    p, y = (torch.from_numpy(m)[None, None].float() for m in (guess, truth))
    theirs = {
        "hd95": compute_hausdorff_distance(p, y, percentile=95, spacing=spacing),
        "asd": compute_average_surface_distance(p, y, symmetric=True, spacing=spacing),
        "dice": compute_dice(p, y),
        "iou": binary_jaccard_index(p, y),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx([float(value)], rel=1e-5), name


# -- clips --------------------------------------------------------------------------------------


def test_frames_are_averaged_and_counts_added() -> None:
    some, nothing = box((10, 10), (2, 6), (3, 7)), np.zeros((10, 10), np.uint8)
    frames = [unit_scores(p, y, 1) for p, y in ((some, some), (nothing, some), (nothing, nothing))]
    clip = averaged(frames)
    assert clip["dice"] == pytest.approx([2 / 3])
    assert clip["hd95"] == pytest.approx([0.0])  # of the one frame that has a distance
    assert clip["sensitivity"] == pytest.approx([0.5])
    assert {n: float(clip[n][0]) for n in EMPTY} == {
        "both_empty": 1.0, "prediction_empty": 1.0, "truth_empty": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="without frames"):
        averaged([])


def test_clips_count_alike_whatever_their_length() -> None:
    good, bad = (
        {**{n: np.array([v]) for n in MEASURES}, **{n: np.array([0.0]) for n in EMPTY}}
        for v in (1.0, 0.0)
    )
    scores = split_scores(stacked([averaged([good] * 9), averaged([bad])]), ["polyp"])
    assert scores["dice"] == 0.5
    assert scores["units"] == 2


def test_steadiness() -> None:
    still = box((8, 8), (1, 5), (1, 5))
    moved = box((8, 8), (1, 5), (3, 7))
    nothing = np.zeros((8, 8), np.uint8)
    assert steadiness([still, still, still], 1) == 1.0
    assert steadiness([still, moved], 1) == pytest.approx(8 / 24)
    assert steadiness([still, nothing, nothing, still], 1) == 0.0  # the still pair has nothing
    assert math.isnan(steadiness([still], 1))
    assert math.isnan(steadiness([nothing, nothing], 1))
    assert steadiness(iter([still, still * 2]), 2) == 0.0


# -- objects ------------------------------------------------------------------------------------


def test_objects_by_hand() -> None:
    truth = np.zeros((10, 30), np.int32)
    truth[:, 0:10], truth[:, 12:20], truth[:, 22:28] = 7, 3, 9
    guess = np.zeros_like(truth)
    guess[:, 0:8] = 1  # IoU 0.8 with the first
    guess[:, 15:24] = 2  # 0.42 with the second, 0.13 with the third
    found = object_scores(guess, truth)
    assert found["object_f1"] == pytest.approx(2 * 1 / (3 + 2))
    # Found at 0.5, 0.55 … 0.75 (and not above 0.8): one hit of four in six of ten thresholds.
    assert found["object_ap"] == pytest.approx(6 / 10 / 4)


def test_objects_that_merge_are_not_found() -> None:
    truth = np.zeros((6, 13), np.int32)
    truth[:, :6], truth[:, 7:] = 1, 2
    assert object_scores((truth > 0).astype(np.int32), truth)["object_f1"] == 0.0
    assert object_scores(truth[:, ::-1], truth[:, ::-1])["object_f1"] == 1.0


def test_no_objects() -> None:
    nothing, some = np.zeros((4, 4), np.int32), np.ones((4, 4), np.int32)
    assert object_scores(nothing, nothing) == {"object_f1": 1.0, "object_ap": 1.0}
    assert object_scores(some, nothing) == {"object_f1": 0.0, "object_ap": 0.0}
    assert object_scores(nothing, some) == {"object_f1": 0.0, "object_ap": 0.0}


# -- a split ------------------------------------------------------------------------------------


def test_a_split_averages_units_then_classes() -> None:
    rows = [(0.8, 0.4), (0.6, math.nan)]
    units = [
        {**{n: np.array(r) for n in MEASURES}, **{n: np.array([1.0, 0.0]) for n in EMPTY}}
        for r in rows
    ]
    units[0]["loss"] = np.array(0.25)
    scores = split_scores(stacked(units), ["cup", "disc"])
    assert scores["dice_cup"] == pytest.approx(0.7)
    assert scores["dice_disc"] == pytest.approx(0.4)
    assert scores["dice"] == pytest.approx(0.55)
    assert scores["hd95_disc"] == pytest.approx(0.4)
    assert scores["loss"] == 0.25
    assert scores["both_empty"] == 2
    alone = split_scores(stacked(units), ["cup", "disc"], np.array([1, 1]))
    assert alone["dice_cup"] == pytest.approx(0.6)
    assert math.isnan(alone["dice_disc"])
    assert alone["dice"] == pytest.approx(0.6)
    assert "dice_cup" not in split_scores(stacked([{"dice": np.array([1.0])}]), ["cup"])
    with pytest.raises(ValueError, match="nothing was scored"):
        stacked([])


def test_means_of_what_is_defined() -> None:
    values = np.array([[1.0, math.nan], [3.0, math.nan]])
    np.testing.assert_array_equal(nan_mean(values), [2.0, math.nan])
