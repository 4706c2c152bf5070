from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from zoo.domains.medical.decisions import confusion_matrix
from zoo.domains.medical.medusa import metrics


def drawn(classes: int, count: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes * 100 + count)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes)])
    scores = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    odds = np.exp(scores.round() if tied else scores)
    return labels, odds / odds.sum(1, keepdims=True)


CASES = [(2, 40, False), (3, 60, False), (2, 50, True), (4, 80, True)]


@pytest.mark.parametrize(("classes", "count", "tied"), CASES)
def test_figures_of_a_split_against_scikit_learn(classes: int, count: int, tied: bool) -> None:
    labels, probabilities = drawn(classes, count, tied)
    guesses, names = probabilities.argmax(1), [f"class {c}" for c in range(classes)]
    found = metrics.radiograph_metrics(labels, probabilities, names, classes - 1)
    kinds = list(range(classes))
    recall = sk.recall_score(labels, guesses, labels=kinds, average=None, zero_division=0)
    precision = sk.precision_score(labels, guesses, labels=kinds, average=None, zero_division=0)
    assert [found[f"sensitivity_class_{c}"] for c in kinds] == pytest.approx(list(recall))
    assert [found[f"ppv_class_{c}"] for c in kinds] == pytest.approx(list(precision))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guesses))
    rest = labels != classes - 1
    assert found["specificity"] == pytest.approx((guesses[rest] != classes - 1).mean())
    # Of two classes that of the positive one: 1 - p breaks ties by rounding.
    areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in kinds]
    assert found["auc"] == pytest.approx(areas[1] if classes == 2 else np.mean(areas))
    expected = sk.average_precision_score(labels == classes - 1, probabilities[:, -1])
    assert found["auprc"] == pytest.approx(expected)
    if classes == 2:
        assert found["sensitivity"] == found["sensitivity_class_1"]
        assert found["specificity"] == found["sensitivity_class_0"]


@pytest.mark.parametrize(("classes", "count", "tied"), CASES)
def test_calibration_against_torchmetrics(classes: int, count: int, tied: bool) -> None:
    labels, probabilities = drawn(classes, count, tied)
    truth, scores = torch.from_numpy(labels), torch.from_numpy(probabilities)
    ours = metrics.reliability(labels, probabilities, 1, bins=15).error
    if classes == 2:
        theirs = tm.binary_calibration_error(scores[:, 1].contiguous(), truth, n_bins=15)
    else:
        theirs = tm.multiclass_calibration_error(scores, truth, classes, n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_of_the_class_that_counts_as_positive() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = metrics.reliability(labels, probabilities, positive=0)
    assert found.count.tolist() == [1, *[0] * 8, 3]
    assert found.observed[[0, -1]] == pytest.approx([0.0, 2 / 3])
    assert np.isnan(found.observed[4])
    assert found.error == pytest.approx(3 / 4 * 1 / 3)


def test_absent_classes_are_zero_and_keep_their_place() -> None:
    table = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics.sensitivity(table).tolist() == [0.5, 1.0, 0.0]
    assert metrics.ppv(table).tolist() == [1.0, 0.5, 0.0]
    assert metrics.specificity(table).tolist() == [1.0, 0.5, 1.0]
    assert metrics.accuracy(np.zeros((2, 2))) == 0.0


def test_areas_of_one_class_alone_are_undefined() -> None:
    labels, probabilities = np.zeros(4, int), np.full((4, 2), 0.5)
    found = metrics.radiograph_metrics(labels, probabilities, ["a", "b"], 1)
    assert np.isnan(found["auc"])
    assert np.isnan(found["auprc"])
    assert found["specificity"] == 1.0


def test_numbers_that_are_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 1, got -1 to 1"):
        confusion_matrix(np.array([-1, 1]), np.array([0, 1]), 2)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["negative", "positive"], ["negative", "positive"]),
        (["normal", "pneumonia", "COVID-19"], ["normal", "pneumonia", "covid_19"]),
        (["a b", "a-b"], ["0", "1"]),
        (["正常", "肺炎"], ["0", "1"]),
    ],
)
def test_class_names_in_metric_names(classes: list[str], expected: list[str]) -> None:
    assert metrics.slugs(classes) == expected


# -- operating point ----------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("tied", [False, True])
def test_no_higher_threshold_keeps_the_sensitivity(wanted: float, tied: bool) -> None:
    labels, probabilities = drawn(2, 300, tied)
    scores, true = probabilities[:, 1], labels == 1
    point = metrics.operating_point(true, scores, wanted)
    assert point is not None
    assert point.sensitivity >= wanted
    assert point.sensitivity == pytest.approx((scores[true] >= point.threshold).mean())
    assert point.specificity == pytest.approx((scores[~true] < point.threshold).mean())
    assert (point.positives, point.negatives) == (true.sum(), (~true).sum())
    for higher in scores[scores > point.threshold]:
        sensitivity, specificity = metrics.at_point(true, scores, np.nextafter(higher, 2))
        assert sensitivity < wanted or specificity <= point.specificity


def test_the_threshold_is_not_the_score_that_set_it() -> None:
    scores = np.array([0.9, 0.8, 0.6, 0.2])
    true = np.array([True, True, False, False])
    point = metrics.operating_point(true, scores, 0.95)
    assert point is not None
    assert point.threshold == pytest.approx(0.7)
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)
    assert point.facts()["wanted"] == 0.95


@pytest.mark.parametrize(("count", "wanted", "kept"), [(20, 0.95, 19), (10, 0.9, 9), (3, 0.95, 3)])
def test_as_many_positives_as_are_needed(count: int, wanted: float, kept: int) -> None:
    scores = np.linspace(0.1, 0.9, count)
    point = metrics.operating_point(np.ones(count, bool), scores, wanted)
    assert point is not None
    assert point.sensitivity == pytest.approx(kept / count)
    assert point.specificity == 0.0  # no negatives


def test_no_point_without_positives() -> None:
    assert metrics.operating_point(np.zeros(4, bool), np.linspace(0, 1, 4), 0.9) is None


# -- intervals and maps -------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (5, 5), (195, 200), (3, 7), (1, 1)])
def test_wilson_against_scipy(hits: int, trials: int) -> None:
    ours = metrics.wilson(hits / trials, trials)
    theirs = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert np.isnan(metrics.wilson(0.5, 0)).all()


def test_overlap_of_masks() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert metrics.overlap(a, b) == (1.0, 1.0)
    a[:2], b[1:3] = True, True
    assert metrics.overlap(a, b) == pytest.approx((0.5, 1 / 3))
    assert metrics.overlap(a, ~a) == (0.0, 0.0)


def test_mass_inside() -> None:
    heat = np.array([[1.0, 3.0], [0.0, 4.0]])
    assert metrics.mass_inside(heat, np.array([[1, 1], [0, 0]], bool)) == pytest.approx(0.5)
    assert np.isnan(metrics.mass_inside(0 * heat, np.ones((2, 2), bool)))
