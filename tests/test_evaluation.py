"""Records, predictions and figures as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.toys import Toy, config
from zoo import evaluation
from zoo.evaluation import load_records, save_records, write_predictions
from zoo.task import Record


def _equal(a: list[Record], b: list[Record]) -> None:
    assert [(r.id, r.group) for r in a] == [(r.id, r.group) for r in b]
    for x, y in zip(a, b, strict=True):
        assert x.values.keys() == y.values.keys()
        for key in x.values:
            left, right = np.asarray(x.values[key]), np.asarray(y.values[key])
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def test_records_come_back_whatever_their_shapes(tmp_path: Path) -> None:
    records = [
        Record("a/1", "p", {"p": np.array([0.1, 0.9]), "n": np.array(3), "w": np.zeros(4)}),
        Record("é 2", "p", {"p": np.array([0.3, 0.7]), "n": np.array(5), "w": np.ones(2)}),
        Record("c", "q", {"p": np.array([1.0, 0.0]), "n": np.array(7), "name": np.array("left")}),
    ]
    save_records(tmp_path / "x.npz", records)
    _equal(load_records(tmp_path / "x.npz"), records)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as body:
        assert body["all/p"].shape == (3, 2)  # what is alike is one array


def test_records_of_other_types_are_kept_apart(tmp_path: Path) -> None:
    records = [
        Record("a", "a", {"x": np.array(1.0, np.float32)}),
        Record("b", "b", {"x": np.array(1.0, np.float64)}),
        Record("c", "c", {}),
    ]
    save_records(tmp_path / "x.npz", records)
    _equal(load_records(tmp_path / "x.npz"), records)


def test_records_need_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        save_records(tmp_path / "x.npz", [Record("a", "a", {"x": np.array({"k": 1})})])
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_written_as_csv_and_json(tmp_path: Path) -> None:
    rows = [
        {"id": "007", "p": np.float32(0.5), "box": np.array([1, 2]), "where": Path("x")},
        {"id": "a,b", "p": 0.25, "box": [3, 4], "where": None},
    ]
    table, as_json = write_predictions(tmp_path / "deep", rows)
    assert pd.read_csv(table, dtype=str)["id"].tolist() == ["007", "a,b"]
    found = json.loads(as_json.read_text())
    assert found[0] == {"id": "007", "p": 0.5, "box": [1, 2], "where": "x"}


def test_default_rows_are_the_scalars(tmp_path: Path) -> None:
    task = Toy(config(tmp_path))
    record = Record("a", "g", {"p": np.array(0.5), "map": np.zeros(3), "label": np.array("cat")})
    assert task.rows([record], {}) == [{"id": "a", "p": 0.5, "label": "cat"}]


def test_figures_are_drawn_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    task = Toy(config(tmp_path))

    def figures(records: object, facts: object) -> object:
        for name in ("roc", "maps"):
            yield name, plt.figure()

    monkeypatch.setattr(task, "figures", figures)
    before = plt.get_fignums()
    made = evaluation.save_figures(tmp_path / "f", task, "test_a", [], {})
    assert [p.name for p in made] == ["test_a_roc.png", "test_a_maps.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in made)
    assert plt.get_fignums() == before


def test_several_test_splits_stand_side_by_side(tmp_path: Path) -> None:
    results = {"test_a/auc": 0.5, "test_a/loss": float("nan"), "test_b/auc": 0.25}
    csv, markdown = evaluation.write_splits(tmp_path, results)
    table = pd.read_csv(csv, index_col="split")
    assert table.loc["test_b", "auc"] == 0.25
    assert table["loss"].isna().all()
    assert markdown.read_text().splitlines()[0] == "| split | auc | loss |"
    assert "| test_a | 0.5 |  |" in markdown.read_text()


def test_one_split_makes_no_table(tmp_path: Path) -> None:
    assert evaluation.write_splits(tmp_path, {"test/auc": 0.5}) == []
    assert list(tmp_path.iterdir()) == []
