from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from zoo.domains.medical.decisions import confusion_matrix
from zoo.domains.medical.wsi_mil import metrics

RNG = np.random.default_rng(0)


def sample(classes: int, count: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes * 100 + count)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=count - classes)])
    scores = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    if tied:
        scores = scores.round()
    odds = np.exp(scores)
    return labels, (odds / odds.sum(1, keepdims=True)).astype(np.float32)


CASES = [(2, 40, False), (3, 60, False), (7, 90, False), (2, 40, True), (4, 80, True)]


@pytest.mark.parametrize(("classes", "count", "tied"), CASES)
def test_against_scikit_learn(classes: int, count: int, tied: bool) -> None:
    labels, probabilities = sample(classes, count, tied)
    predictions = probabilities.argmax(1)
    table = confusion_matrix(labels, predictions, classes)
    figures = metrics.slide_metrics(labels, probabilities)
    areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(classes)]
    assert (table == sk.confusion_matrix(labels, predictions)).all()
    assert figures["auc"] == pytest.approx(np.mean(areas))
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    expected = sk.balanced_accuracy_score(labels, predictions)
    assert figures["balanced_accuracy"] == pytest.approx(expected)
    for average in ("macro", "micro"):
        expected = sk.f1_score(labels, predictions, average=average)
        assert figures[f"f1_{average}"] == pytest.approx(expected)
    expected = sk.cohen_kappa_score(labels, predictions, weights="quadratic")
    assert figures["quadratic_kappa"] == pytest.approx(expected)
    recalls = sk.recall_score(labels, predictions, average=None)
    assert [figures[f"recall_{c}"] for c in range(classes)] == pytest.approx(list(recalls))


@pytest.mark.parametrize(("classes", "count", "tied"), CASES)
def test_against_torchmetrics(classes: int, count: int, tied: bool) -> None:
    labels, probabilities = sample(classes, count, tied)
    truth, scores = torch.from_numpy(labels), torch.from_numpy(probabilities)
    table = confusion_matrix(labels, probabilities.argmax(1), classes)
    ours = [
        metrics.auc(labels, probabilities, "zero"),
        metrics.f1_macro(table),
        metrics.balanced_accuracy(table, "zero"),
        metrics.calibration_error(labels, probabilities),
        metrics.quadratic_kappa(table),
    ]
    theirs = [
        tm.multiclass_auroc(scores, truth, classes),
        tm.multiclass_f1_score(scores, truth, classes, average="macro"),
        tm.multiclass_accuracy(scores, truth, classes, average="macro"),
        tm.multiclass_calibration_error(scores, truth, classes, n_bins=15),
        tm.multiclass_cohen_kappa(scores, truth, classes, weights="quadratic"),
    ]
    assert ours == pytest.approx([float(value) for value in theirs], abs=1e-6)


def test_two_classes_give_the_usual_binary_area() -> None:
    labels, probabilities = sample(2, 50, tied=True)
    expected = sk.roc_auc_score(labels, probabilities[:, 1])
    assert metrics.auc(labels, probabilities) == pytest.approx(expected)


def test_an_absent_class_is_skipped_or_counts_zero() -> None:
    labels, probabilities = sample(3, 60, tied=False)
    kept = labels < 2
    labels, probabilities = labels[kept], probabilities[kept]
    areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(2)]
    assert metrics.auc(labels, probabilities) == pytest.approx(np.mean(areas))
    assert metrics.auc(labels, probabilities, "zero") == pytest.approx(np.sum(areas) / 3)
    assert np.isnan(metrics.auc_per_class(labels, probabilities)[2])
    table = confusion_matrix(labels, probabilities.argmax(1), 3)
    assert table[:, 2].any()  # predicted, though absent
    recalls = metrics.recall_per_class(table)
    assert np.isnan(recalls[2])
    assert metrics.balanced_accuracy(table) == pytest.approx(recalls[:2].mean())
    assert metrics.balanced_accuracy(table, "zero") == pytest.approx(recalls[:2].sum() / 3)


def test_undefined_figures_are_nan() -> None:
    labels, probabilities = np.zeros(4, int), np.full((4, 2), 0.5)
    assert np.isnan(metrics.auc(labels, probabilities))
    assert np.isnan(metrics.quadratic_kappa(confusion_matrix(labels, labels, 2)))
    empty = metrics.slide_metrics(np.zeros(0, int), np.zeros((0, 2)))
    assert all(np.isnan(value) for value in empty.values())


def test_ordered_classes_keep_their_distance_when_one_is_missing() -> None:
    labels, predictions = np.array([0, 0, 2, 2, 0]), np.array([0, 2, 2, 2, 0])
    table = confusion_matrix(labels, predictions, 3)
    expected = sk.cohen_kappa_score(labels, predictions, labels=[0, 1, 2], weights="quadratic")
    assert metrics.quadratic_kappa(table) == pytest.approx(expected)


def test_calibration_of_certain_predictions() -> None:
    certain = np.array([[1.0, 0.0]] * 4)
    assert metrics.calibration_error(np.array([0, 0, 1, 1]), certain) == pytest.approx(0.5)
    assert metrics.calibration_error(np.zeros(4, int), certain) == 0


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 to 1, got -1 to 1"):
        confusion_matrix(np.array([-1, 1]), np.array([0, 1]), 2)


def test_instance_auc() -> None:
    scores, truth = RNG.random(50), RNG.random(50) < 0.3
    assert metrics.instance_auc(scores, truth) == pytest.approx(sk.roc_auc_score(truth, scores))
    assert np.isnan(metrics.instance_auc(scores, np.zeros(50)))


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([0.05, 0.9, 0.05], 0.9, 1),
        ([0.1] * 10, 0.9, 9),
        ([0.1] * 10, 1.0, 10),
        ([3, 1, 4, 2], 0.5, 2),
        ([1], 0.9, 1),
        ([], 0.9, 0),
    ],
)
def test_instances_for_share(weights: list[float], share: float, expected: int) -> None:
    assert metrics.instances_for_share(np.array(weights), share) == expected
