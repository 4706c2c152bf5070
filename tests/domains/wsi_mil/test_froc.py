"""FROC as CAMELYON16 defines it, on cases worked out by hand."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.medical.wsi_mil.annotations import Annotation, read_annotation
from zoo.domains.medical.wsi_mil.froc import (
    ISOLATED,
    Hits,
    detections,
    froc,
    hits_of,
    lesion_mask,
)
from zoo.domains.medical.wsi_mil.localisation import (
    froc_figure,
    froc_metrics,
    froc_table,
    lesion_froc,
)
from zoo.task import Record

from .test_annotations import collection, feature

MPP = 0.25  # 40x: a mask pixel is 32 level-0 pixels, or 8 um


def circle(x: float, y: float, diameter: float, around: int = 90) -> list[list[float]]:
    """A circle; position and diameter in micrometres, points in level-0 pixels."""
    turns = np.linspace(0, 2 * np.pi, around, endpoint=False)
    points = np.stack([x + diameter / 2 * np.cos(turns), y + diameter / 2 * np.sin(turns)], 1)
    return (points / MPP).tolist()


@pytest.fixture
def annotated(tmp_path: Path) -> Any:
    def make(*rings: Any) -> Annotation:
        path = tmp_path / "s.geojson"
        path.write_text(collection(*(feature(r) for r in rings)))
        return read_annotation(path)

    return make


def at(x: float, y: float) -> np.ndarray:
    return np.array([[x, y]]) / MPP


# -- the curve ----------------------------------------------------------------------------------


def test_a_curve_worked_out_by_hand() -> None:
    """Three lesions on two slides, one more slide without.

    By falling threshold:      0.9   0.8   0.7   0.6   0.5   0.4   0.3   0.2
    false alarms so far          0     1     1     2     3     3     4     5
    lesions found so far         1     1     2     2     2     3     3     3 of 4
    false alarms a slide         0   1/3   1/3   2/3     1     1   4/3   5/3

    At 1/4 the curve is between (0, 1/4) and (1/3, 1/4): 1/4. At 1/2 it is between (1/3, 2/4) and
    (2/3, 2/4): 1/2. At 1 the lower threshold counts: 3/4. From 5/3 on nothing more is found.
    """
    slides = [
        Hits(np.array([0.8, 0.3]), np.array([0.9, 0.4])),
        Hits(np.array([0.6]), np.array([0.7, 0.0])),
        Hits(np.array([0.5, 0.2]), np.zeros(0)),
    ]
    curve = froc(slides)
    assert (curve.slides, curve.lesions) == (3, 4)
    np.testing.assert_allclose(
        curve.false_alarms * 3, [0, 0, 1, 1, 2, 3, 3, 4, 5], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(curve.sensitivity * 4, [0, 1, 1, 2, 2, 2, 3, 3, 3])
    assert curve.at == {0.25: 0.25, 0.5: 0.5, 1.0: 0.75, 2.0: 0.75, 4.0: 0.75, 8.0: 0.75}
    assert curve.score == pytest.approx((0.25 + 0.5 + 4 * 0.75) / 6)


def test_a_curve_point_by_point() -> None:
    """Counting detections at each threshold, as the official script goes about it."""
    rng = np.random.default_rng(3)
    slides = []
    for i in range(12):
        found = np.round(rng.random(rng.integers(0, 4) if i % 2 else 0), 2)
        found[: len(found) // 2] = 0
        slides.append(Hits(np.round(rng.random(rng.integers(0, 30)), 2), found))
    curve = froc(slides)
    false = [v for s in slides for v in s.false]
    lesions = [v for s in slides for v in s.found]
    points = [
        (sum(v >= t for v in false) / len(slides), sum(v >= t for v in lesions) / len(lesions))
        for t in sorted({v for v in false + lesions if v > 0}, reverse=True)
    ]
    np.testing.assert_allclose(curve.false_alarms, [0, *(x for x, _ in points)])
    np.testing.assert_allclose(curve.sensitivity, [0, *(y for _, y in points)])
    assert (np.diff(curve.sensitivity) >= 0).all()
    for point, value in curve.at.items():
        best = [y for x, y in points if x <= point]
        assert value >= max(best, default=0) - 1e-12


def test_curves_at_the_ends() -> None:
    perfect = froc([Hits(np.zeros(0), np.array([0.9, 0.2])), Hits(np.zeros(0), np.zeros(0))])
    assert perfect.score == 1
    blind = froc([Hits(np.array([0.5] * 40), np.zeros(2))])
    assert blind.score == 0
    assert math.isnan(froc([Hits(np.array([0.5]), np.zeros(0))]).score)
    assert math.isnan(froc([]).score)
    # Nothing was detected at all: no lesion is found, at whatever rate.
    assert froc([Hits(np.zeros(0), np.zeros(3))]).score == 0


# -- lesions ------------------------------------------------------------------------------------


def test_small_lesions_are_isolated_cells(annotated: Any) -> None:
    """200 um is the limit: grown by 75 um, 275 um."""
    mask = lesion_mask(
        annotated([circle(1000, 1000, 400)], [circle(3000, 1000, 150)], [circle(5000, 1000, 230)]),
        MPP,
    )
    assert mask.cell == 32
    assert len(mask.isolated) == 1
    assert len(mask.lesions) == 2
    assert mask.at(at(3000, 1000)).tolist() == [ISOLATED]
    first, second = mask.at(at(1000, 1000))[0], mask.at(at(5000, 1000))[0]
    assert sorted([first, second]) == [1, 2]
    assert mask.at(at(2000, 1000)).tolist() == [0]
    assert mask.at(np.array([[-5000.0, 3.0], [1e7, 1e7]])).tolist() == [0, 0]


def test_the_limit_of_isolated_cells_is_the_major_axis(annotated: Any) -> None:
    """A thin outline of 260 um is a lesion, a round one of 190 um is not."""
    thin = [[500, 500], [760, 500], [760, 520], [500, 520]]
    long = lesion_mask(annotated([(np.array(thin) / MPP).tolist()]), MPP)
    assert (len(long.lesions), len(long.isolated)) == (1, 0)
    round_ = lesion_mask(annotated([circle(900, 900, 190)]), MPP)
    assert (len(round_.lesions), len(round_.isolated)) == (0, 1)


def test_lesions_are_grown_by_half_of_75_micrometres(annotated: Any) -> None:
    mask = lesion_mask(annotated([circle(1000, 1000, 400)]), MPP)
    inside = [mask.at(at(1000 + 200 + gap, 1000))[0] for gap in (0, 20, 30, 46, 60)]
    assert inside == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(("gap", "lesions"), [(55, 1), (100, 2)])
def test_lesions_that_lie_close_are_one(annotated: Any, gap: float, lesions: int) -> None:
    both = annotated([circle(1000, 1000, 400)], [circle(1400 + gap, 1000, 400)])
    assert len(lesion_mask(both, MPP).lesions) == lesions


def test_holes_belong_to_the_lesion_around_them(annotated: Any) -> None:
    mask = lesion_mask(annotated([circle(1000, 1000, 800), circle(1000, 1000, 500)]), MPP)
    assert mask.at(at(1000, 1000)).tolist() == [1]
    assert len(mask.lesions) == 1


def test_lesions_at_the_slides_corner(annotated: Any) -> None:
    mask = lesion_mask(annotated([circle(0, 0, 800)]), MPP)
    assert mask.corner == (0.0, 0.0)
    assert mask.at(at(100, 100)).tolist() == [1]


def test_an_outline_between_pixels_is_not_lost(annotated: Any) -> None:
    spot = lesion_mask(annotated([[[33, 33], [36, 33], [34, 36]]]), MPP)
    assert len(spot.isolated) == 1
    assert spot.at(np.array([[34.0, 34.0]])).tolist() == [ISOLATED]


def test_no_lesion(annotated: Any) -> None:
    mask = lesion_mask(annotated(), MPP)
    assert mask.lesions == []
    assert mask.at(np.array([[3.0, 4.0]])).tolist() == [0]


@pytest.mark.parametrize(("mpp", "cell"), [(0.243, 32), (0.25, 32), (0.5, 16), (1.0, 8), (40, 1)])
def test_the_grid_follows_the_resolution(annotated: Any, mpp: float, cell: float) -> None:
    assert lesion_mask(annotated([circle(1000, 1000, 400)]), mpp).cell == cell


# -- detections ---------------------------------------------------------------------------------


def test_the_best_patch_stands_for_those_around_it() -> None:
    centres = np.array([[0, 0], [10, 0], [20, 0], [30, 0], [100, 0], [110, 0]], dtype=float)
    scores = np.array([0.5, 0.9, 0.6, 0.7, 0.0, 0.2])
    # 0.9 drops its neighbours at distance 10, 0.7 is 20 away; a score of 0 is no detection.
    assert detections(centres, scores, 12).tolist() == [1, 3, 5]
    assert detections(centres, scores, 1).tolist() == [1, 3, 2, 0, 5]
    assert detections(centres, np.zeros(6), 1).tolist() == []


def test_detections_are_sorted_into_hits_and_false_alarms() -> None:
    numbers = np.array([1, 0, 2, 1, ISOLATED, 0])
    hits = hits_of(numbers, 3, np.array([0.4, 0.8, 0.3, 0.6, 0.9, 0.1]))
    assert hits.false.tolist() == [0.8, 0.1]
    assert hits.found.tolist() == [0.6, 0.3, 0.0]


# -- records ------------------------------------------------------------------------------------


def record(
    name: str, label: int, tumour: float, attention: list[float], lesion: list[int] | None
) -> Record:
    """A slide of patches in a row, far enough apart to be a detection each."""
    count = len(attention)
    values = {
        "label": np.array(label),
        "probabilities": np.array([1 - tumour, tumour]),
        "attention": np.array(attention, dtype=np.float32),
        "coords": np.stack([np.arange(count) * 1000, np.zeros(count)], 1).astype(np.int32),
        "side": np.array(100.0),
    }
    if lesion is not None:
        values["lesion"] = np.array(lesion, dtype=np.int16)
        values["lesions"] = np.array(max([*lesion, 0]))
    return Record(name, name, values)


def test_froc_of_records() -> None:
    records = [
        record("positive", 1, 0.8, [0.1, 0.4, 0.2, 0.3], [0, 1, 2, ISOLATED]),
        record("negative", 0, 0.24, [0.25, 0.75], None),
        record("not_annotated", 1, 0.9, [0.5, 0.5], None),
        record("unknown", -1, 0.9, [0.5, 0.5], None),
        record("annotated_without_lesion", 0, 0.1, [1.0], [0]),
    ]
    curve = lesion_froc(records, 1.5)
    assert curve is not None
    # Scores: found 0.8 and 0.4; false 0.2 (positive), 0.24 and 0.08 (negative), 0.1 (annotated).
    assert (curve.slides, curve.lesions) == (3, 2)
    np.testing.assert_allclose(curve.false_alarms * 3, [0, 0, 0, 1, 2, 3, 4])
    assert curve.score == 1
    metrics = froc_metrics(curve)
    assert list(metrics) == ["froc", *(f"froc_at_{p}" for p in ("0_25", "0_5", 1, 2, 4, 8))]
    title, rows = froc_table(curve)
    assert "2 lesions, 3 slides" in title
    assert rows[0] == {"false alarms a slide": "0.25", "sensitivity": 1.0}
    assert rows[-1] == {"false alarms a slide": "mean", "sensitivity": 1.0}
    json.dumps(rows)
    figure = froc_figure(curve)
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert "2 lesions, mean 1.000" in figure.axes[0].get_title()


def test_no_froc_without_lesions() -> None:
    assert lesion_froc([record("a", 0, 0.2, [1.0], None)], 1.5) is None
    assert lesion_froc([record("a", 0, 0.2, [1.0], [0])], 1.5) is None


def test_a_confident_false_alarm_costs() -> None:
    positive = record("positive", 1, 0.6, [0.9, 0.1], [1, 0])
    calm = lesion_froc([positive, record("negative", 0, 0.1, [0.5, 0.5], None)], 1.5)
    loud = lesion_froc([positive, record("negative", 0, 0.9, [0.5, 0.5], None)], 1.5)
    assert calm is not None
    assert loud is not None
    assert calm.at[0.25] == 1
    assert loud.at[0.25] < 1
