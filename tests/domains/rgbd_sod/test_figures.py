"""Pictures and tables of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.domains.saliency.rgbd_sod import figures
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.metrics import dataset_scores, image_scores
from zoo.domains.saliency.rgbd_sod.picking import picked
from zoo.task import Record


def record(index: int, name: str = "DES", maps: int = 4, scored: bool = True) -> Record:
    """A scene of its own shape; the higher the index the worse the map."""
    height, width = (40, 60) if index % 2 else (60, 40)
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:height, :width]
    truth = (np.hypot(y - 20, x - 20) < 12).astype(np.uint8) * 255
    found = (truth * 0.8 + rng.uniform(0, 10 + 10 * index, truth.shape)).clip(0, 255)
    grey = found.astype(np.uint8)
    values = image_scores(grey, truth) if scored else {}
    values |= {
        "preview_rgb": np.repeat(grey[..., None], 3, axis=2),
        "preview_depth": 255 - grey,
        "preview_truth": truth,
        "preview_maps": np.stack([grey] * maps),
        "depth_valid": np.array(True),
    }
    return Record(f"{name}/{index}", f"{name}/{index}", values)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record(i) for i in (3, 0, 7, 1, 9, 5, 2, 8)]


def configure(**settings: object) -> Config:
    return Config.model_validate({"task": "rgbd_sod", "preset": "sample", **settings})


def test_best_middle_and_worst_are_picked() -> None:
    errors = [0.5, 0.1, 0.9, 0.2, 0.7, 0.3, 0.8]
    assert picked(errors) == [1, 3, 5, 0, 6, 2]
    assert picked(errors, each=1) == [1, 0, 2]
    assert picked([0.3, 0.1]) == [1, 0]
    assert picked([]) == []


@pytest.mark.parametrize("count", range(1, 15))
def test_none_is_picked_twice(count: int) -> None:
    found = picked([0.0] * count)
    assert len(found) == len(set(found)) == min(count, 6)


def test_examples_show_everything_from_best_to_worst(records: list[Record]) -> None:
    figure = figures.examples(records)
    titles = [axes.get_title() for axes in figure.axes]
    heads = ["image", "depth", "truth", "map", *figures._SIDES[1:], "error"]
    assert titles[: len(heads)] == heads
    assert len(figure.axes) == 6 * len(heads)
    labels = [axes.get_xlabel() for axes in figure.axes[:: len(heads)]]
    shown = [int(text.partition("\n")[0].removeprefix("DES/")) for text in labels]
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0, 9)
    worst = next(r for r in records if r.id == "DES/9").values
    assert f"MAE {float(worst['mae']):.3f}" in labels[-1]
    error = np.abs(worst["preview_maps"][0].astype(int) - worst["preview_truth"])
    np.testing.assert_array_equal(figure.axes[-1].images[0].get_array(), error)


def test_maps_of_other_programs_have_one_map(tmp_path: Path) -> None:
    figure = figures.examples([record(0, maps=1), record(1, maps=1)])
    assert [a.get_title() for a in figure.axes[:5]] == ["image", "depth", "truth", "map", "error"]
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_truth_of_another_size_than_its_map_is_drawn() -> None:
    values = dict(record(0).values)
    values["preview_truth"] = values["preview_truth"][::2, ::3]
    figure = figures.examples([Record("a", "a", values)])
    assert figure.axes[-1].images[0].get_array().shape == values["preview_maps"].shape[1:]


def test_pr_curve_leaves_out_where_nothing_is_called(records: list[Record]) -> None:
    made = dict(figures.all_figures(records))
    assert list(made) == ["examples", "pr", "f_threshold"]
    (line,) = made["pr"].axes[0].lines
    recall = np.mean([r.values["recall"] for r in records], axis=0)
    precision = np.mean([r.values["precision"] for r in records], axis=0)
    np.testing.assert_allclose(line.get_xdata(), recall[recall > 0])
    np.testing.assert_allclose(line.get_ydata(), precision[recall > 0])
    assert made["pr"].axes[0].get_title() == "8 images"


def test_f_is_drawn_over_rising_thresholds_with_its_maximum(records: list[Record]) -> None:
    (axes,) = dict(figures.all_figures(records))["f_threshold"].axes
    curve, point = axes.lines
    best = dataset_scores([r.values for r in records])["max_fm"]
    assert curve.get_ydata()[-1] == pytest.approx(
        np.mean([r.values["fm"][0] for r in records])  # entry 0 is threshold 255
    )
    assert point.get_ydata()[0] == pytest.approx(best)
    assert axes.texts[0].get_text() == f"{best:.3f} at {int(point.get_xdata()[0])}"


def test_images_without_a_truth_have_no_curves() -> None:
    bare = [Record(r.id, r.group, {"preview_rgb": r.values["preview_rgb"]}) for r in [record(0)]]
    assert list(figures.all_figures(bare)) == []
    assert list(figures.all_tables(bare, configure())) == []


def test_rows_begin_with_the_largest_error(records: list[Record]) -> None:
    rows = figures.rows(records)
    assert [r["id"] for r in rows] == [f"DES/{i}" for i in (9, 8, 7, 5, 3, 2, 1, 0)]
    first = next(r for r in records if r.id == "DES/9").values
    assert rows[0]["mae"] == pytest.approx(float(first["mae"]))
    assert rows[0]["max_fm"] == pytest.approx(first["fm"].max())
    assert rows[0]["depth_valid"] is True
    assert not [k for k in rows[0] if k.startswith("preview")]


def test_rows_without_scores_keep_their_order() -> None:
    bare = [record(i, scored=False) for i in (2, 0, 1)]
    assert [r["id"] for r in figures.rows(bare)] == ["DES/2", "DES/0", "DES/1"]


def test_tables_tell_how_it_was_scored(records: list[Record]) -> None:
    (title, (row,)), (by_error, rows) = figures.all_tables(records, configure())
    assert title == "How it was scored"
    assert row["set"] == "DES"
    assert row["images"] == 8
    assert row["scored at"] == "the annotation's size"
    assert row["trained on"] == "every training folder"
    assert row["input size"] == 256
    assert by_error == "Images by error"
    assert [r["id"] for r in rows][:2] == ["DES/9", "DES/8"]
    settings = {"data": {"eval_size": "256", "train": ["NJU2K", "NLPR"]}}
    row = figures.protocol(records, configure(**settings))
    assert row["scored at"] == "256 x 256"
    assert row["trained on"] == "NJU2K, NLPR"


def test_the_table_by_error_is_cut_where_it_grows_long() -> None:
    one = record(0).values
    many = [Record(f"DES/{i}", str(i), one | {"mae": np.array(i / 100)}) for i in range(60)]
    _, (title, rows) = figures.all_tables(many, configure())
    assert title == "Images by error, the first 50 of 60"
    assert [r["mae"] for r in rows] == [round(i / 100, 4) for i in range(59, 9, -1)]


@pytest.mark.parametrize(
    ("count", "told"), [(797, "the paper's"), (1000, "whole set"), (3, "neither 797 nor 1000")]
)
def test_the_variant_of_stere_is_told(count: int, told: str) -> None:
    one = record(0, "STERE").values
    many = [Record(f"STERE/{i}", "", one) for i in range(count)]
    assert told in figures.protocol(many, configure())["variant"]


def test_nothing_is_said_of_a_training_where_there_was_none() -> None:
    config = configure(predict={"foreign": "somewhere"})
    assert "trained on" not in figures.protocol([record(0)], config)
