"""Figures, tables and overlays from records, without a model."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from zoo.domains.medical.medusa import breakdown, figures
from zoo.domains.medical.medusa.metrics import at_point, wilson
from zoo.domains.medical.medusa.overlays import file_stem, write_overlay
from zoo.privacy import alias
from zoo.task import Record

CLASSES = ["negative", "positive"]
POINT: dict[str, Any] = {
    "threshold": 0.5,
    "wanted": 0.95,
    "sensitivity": 0.96,
    "specificity": 0.5,
    "positives": 25,
    "negatives": 30,
    "positive_patients": 20,
    "negative_patients": 30,
}


def record(
    name: str, label: int, positive: float, *, group: str = "", seed: int = 0, **more: Any
) -> Record:
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {
        "probabilities": np.array([1 - positive, positive]),
        "label": np.array(label),
        "loss": np.array(0.5),
        "preview": rng.integers(0, 255, (30, 24), dtype=np.uint8),
        "body_map": rng.integers(0, 255, (16, 16), dtype=np.uint8),
        "scale_maps": rng.integers(0, 255, (4, 12, 12), dtype=np.uint8),
        "gradcam": rng.random((4, 4)).astype(np.float32),
    }
    values |= {k: np.asarray(v) for k, v in more.items()}
    return Record(name, group or f"patient of {name}", values)


def several(count: int = 12) -> list[Record]:
    rng = np.random.default_rng(1)
    return [
        record(
            f"JANE_DOE_{i}", i % 2, float(np.clip(0.3 + 0.4 * (i % 2) + rng.normal(0, 0.2), 0, 1))
        )
        for i in range(count)
    ]


def drawn(
    records: Sequence[Record],
    classes: Sequence[str] = CLASSES,
    point: Mapping[str, Any] | None = None,
    rendered: Sequence[str] = (),
) -> dict[str, Figure]:
    """The figures by name; mistakes in text show up only when one is rendered, which is slow."""
    made = dict(figures.all_figures(records, classes, len(classes) - 1, point))
    for name in rendered:
        made[name].savefig(io.BytesIO(), format="png", dpi=40)
    return made


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


# -- figures ------------------------------------------------------------------------------------


def test_every_figure_says_it_is_not_for_diagnosis_and_names_nobody() -> None:
    names = ["roc", "confusion", "reliability", "attention"]
    made = drawn(several(), point=POINT, rendered=names)
    assert list(made) == names
    for figure in made.values():
        assert "Not for diagnosis" in texts(figure)
        assert not re.search("JANE|patient of", texts(figure))


def test_the_operating_point_lies_on_the_curve() -> None:
    records = several(40)
    axes = drawn(records, point=POINT)["roc"].axes[0]
    curve, cross = axes.get_lines()[:2]
    labels, scores = breakdown.labels_of(records), breakdown.probabilities_of(records)[:, 1]
    sensitivity, specificity = at_point(labels == 1, scores, POINT["threshold"])
    assert cross.get_xydata()[0] == pytest.approx([1 - specificity, sensitivity])
    on = [np.allclose(p, cross.get_xydata()[0]) for p in curve.get_xydata()]
    assert any(on)
    assert "threshold 0.500 of validation" in texts(axes.figure)


@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_a_threshold_beyond_all_scores_is_an_end_of_the_curve(threshold: float) -> None:
    axes = drawn(several(), point=POINT | {"threshold": threshold})["roc"].axes[0]
    expected = [1, 1] if threshold == 0 else [0, 0]
    assert axes.get_lines()[1].get_xydata()[0] == pytest.approx(expected)


def test_confusion_counts_every_radiograph() -> None:
    records = several(15)
    counts = [int(t.get_text()) for t in drawn(records)["confusion"].axes[0].texts]
    assert sum(counts) == 15


def test_reliability_shows_counts_and_wilson_intervals() -> None:
    records = [record(f"r{i}", int(i < 3), 0.72) for i in range(4)]
    axes = drawn(records)["reliability"].axes[0]
    assert [t.get_text() for t in axes.texts] == ["4"]
    (bar,) = axes.collections[0].get_segments()
    np.testing.assert_allclose(bar[:, 1], wilson(0.75, 4))
    np.testing.assert_allclose(bar[:, 0], 0.72)
    assert "calibration error 0.030" in axes.get_title()


def test_three_classes_and_one_that_does_not_occur() -> None:
    rng = np.random.default_rng(0)
    records = []
    for i, share in enumerate(rng.dirichlet(np.ones(3), 8)):
        one = record(f"r{i}", i % 2, 0.5)
        records.append(Record(one.id, one.group, {**one.values, "probabilities": share}))
    made = drawn(records, ["normal", "pneumonia", "COVID-19"], POINT)
    assert "normal, AUC" in texts(made["roc"])
    assert "COVID-19, AUC" not in texts(made["roc"])
    assert len(made["confusion"].axes[0].texts) == 9
    assert "predicted class" in texts(made["reliability"])


def test_radiographs_without_labels_have_only_their_maps() -> None:
    made = drawn([record("a", -1, 0.4), record("b", -1, 0.6)])
    assert list(made) == ["attention"]
    assert "true" not in texts(made["attention"])


def test_records_without_pictures_have_no_attention_figure() -> None:
    bare = [
        Record(
            r.id, r.group, {k: v for k, v in r.values.items() if k in ("label", "probabilities")}
        )
        for r in several()
    ]
    assert "attention" not in drawn(bare)


def test_attention_has_a_column_a_map_and_its_titles() -> None:
    figure = drawn([record("a", 1, 0.8, lungs=np.eye(16, dtype=bool), cam_in_lungs=0.25)])[
        "attention"
    ]
    titles = [a.get_title() for a in figure.axes]
    assert titles == ["radiograph", "body map", *(f"scale {i}" for i in (1, 2, 3, 4)), "Grad-CAM"]
    assert "CAM in lungs 25%" in texts(figure)
    assert alias("a") in texts(figure)


def test_without_captum_the_figure_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "have_captum", lambda: False)
    one = record("a", 1, 0.8)
    values = {k: v for k, v in one.values.items() if k != "gradcam"}
    shown = texts(drawn([Record("a", "p", values)])["attention"])
    assert "pip install '.[explain]'" in shown
    assert "Grad-CAM needs" in shown


@pytest.mark.parametrize("name", ["<b>x</b>", "$x^{", "a $\\frac$ b", "x" * 200, "Größe", "_h"])
def test_odd_class_names(name: str) -> None:
    assert len(drawn(several(), ["other", name], POINT, rendered=["roc", "attention"])) == 4


def test_wrong_and_right_ones_of_each_class_are_shown_in_turn() -> None:
    right = [record(f"r{i}", i % 2, float(i % 2)) for i in range(20)]
    wrong = [record(f"w{i}", i % 2, float(1 - i % 2)) for i in range(2)]
    chosen = figures.representative([*right, *wrong])
    assert len(chosen) == 4
    assert {"w0", "w1"} <= {r.id for r in chosen}
    assert sorted(int(r.values["label"]) for r in chosen) == [0, 0, 1, 1]
    assert figures.representative([*wrong, *right]) == chosen  # whatever the order


def test_masks_show_the_worst_first() -> None:
    def one(i: int) -> Record:
        made = record(f"r{i}", 0, 0.5, dice=i / 10, lungs=np.eye(16, dtype=bool))
        keep = ("preview", "body_map", "lungs", "dice")
        return Record(made.id, made.group, {k: made.values[k] for k in keep})

    ((name, figure),) = figures.mask_figures([one(i) for i in (9, 3, 7)])
    assert name == "masks"
    shown = [a.get_title() for a in figure.axes if "Dice" in a.get_title()]
    assert shown == [f"body map, Dice {v:.3f}" for v in (0.3, 0.7, 0.9)]
    assert "Not for diagnosis" in texts(figure)
    figure.savefig(io.BytesIO(), format="png", dpi=40)


# -- overlays of a prediction -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "train/x.png", "../../x", "Größe 1.png", "...", "a\\b"])
def test_overlay_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dense"
    values = record("a", 1, 0.8).values
    (path,) = write_overlay(folder, name=name, values=values, said="positive", alpha=0.2)
    assert path.parent == folder
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert not path.name.startswith(".")
    assert [p.name for p in tmp_path.iterdir()] == ["dense"]
    picture = imread(path)
    # Seven panels, higher than wide as the radiograph.
    assert picture.shape[1] > 4 * picture.shape[0]
    assert picture[..., :3].std() > 0.05


def test_different_ids_have_different_files() -> None:
    names = ["a", "b c(1).png", "a/b", "a_b", "a\\b", "x" * 300, "x" * 299]
    stems = [file_stem(n) for n in names]
    assert stems[:2] == names[:2]
    assert stems[3] == "a_b"
    assert len(set(stems)) == len(names)
    assert max(map(len, stems)) < 200


# -- tables -------------------------------------------------------------------------------------


def tables(records: Sequence[Record], point: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return dict(breakdown.all_tables(records, CLASSES, 1, point))


def test_classes_and_operating_point() -> None:
    records = [
        record("a", 1, 0.9, group="p1"),
        record("b", 1, 0.8, group="p1"),
        record("c", 1, 0.2, group="p2"),
        record("d", 0, 0.6, group="p3"),
    ]
    made = tables(records, POINT)
    assert list(made) == ["Classes", "Operating point"]
    negative, positive = made["Classes"]
    low, high = wilson(2 / 3, 2)  # three radiographs of two patients
    assert positive["sensitivity"] == f"0.667 ({low:.3f} to {high:.3f})"
    assert (positive["radiographs"], positive["patients"], positive["predicted"]) == (3, 2, 3)
    assert negative["PPV"].startswith("0.000")
    chosen, here = made["Operating point"]
    low, high = wilson(0.96, 20)
    assert chosen["sensitivity"] == f"0.960 ({low:.3f} to {high:.3f})"
    assert here["sensitivity"].startswith("0.667")
    assert here["specificity"].startswith("0.000")


def test_a_source_that_tells_the_label_is_warned_about() -> None:
    records = [record(f"n{i}", 0, 0.2, source="rsna") for i in range(5)]
    records += [record(f"p{i}", 1, 0.9, source="ricord") for i in range(5)]
    made = tables(records)
    ((warning,),) = [made["Warning: the source predicts the label"]]
    assert "100.0%" in warning["what this means"]
    assert "ricord: positive, rsna: negative" in warning["what this means"]
    rows = {r["value"]: r for r in made["By source"]}
    assert rows["rsna"]["positive"] == 0
    assert rows["rsna"]["sensitivity"] == ""
    assert np.isnan(rows["rsna"]["AUC"])
    assert rows["ricord"]["accuracy"].startswith("1.000")


def test_sources_that_hold_both_labels_are_not_warned_about() -> None:
    records = [record(f"r{i}", i % 2, 0.5, source="ab"[i // 5]) for i in range(10)]
    assert list(tables(records)) == ["Classes", "By source"]
    one = [record(f"r{i}", i % 2, 0.5, source="a") for i in range(10)]
    assert "Warning: the source predicts the label" not in tables(one)
    # All but one of a rare class: guessing the common class does as well as the source.
    rare = [record(f"r{i}", int(i == 0), 0.5, source="ab"[i % 2]) for i in range(40)]
    assert "Warning: the source predicts the label" not in tables(rare)


def test_subgroups_where_metadata_are_there() -> None:
    records = [
        record("a", 1, 0.9, sex="F", age="39", view="PA"),
        record("b", 1, 0.1, sex="M", age="40", view="PA"),
        record("c", 0, 0.1, sex="F", age="91"),
        record("d", 0, 0.2, age="unknown"),
    ]
    rows = tables(records)["Subgroups"]
    found = {(r["group"], r["value"]): r["radiographs"] for r in rows}
    assert found == {
        ("sex", "F"): 2,
        ("sex", "M"): 1,
        ("sex", "unknown"): 1,
        ("age", "under 40"): 1,
        ("age", "40 to 59"): 1,
        ("age", "80 and over"): 1,
        ("age", "unknown"): 1,
        ("view", "PA"): 2,
        ("view", "unknown"): 2,
    }
    assert [r["value"] for r in rows if r["group"] == "age"] == [
        "under 40",
        "40 to 59",
        "80 and over",
        "unknown",
    ]
    women = next(r for r in rows if r["value"] == "F")
    assert women["sensitivity"].startswith("1.000")
    assert women["specificity"].startswith("1.000")


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("0", "under 40"),
        ("59.5", "40 to 59"),
        ("60", "60 to 79"),
        ("-1", ""),
        ("nan", ""),
        ("", ""),
    ],
)
def test_bands_of_age(age: str, band: str) -> None:
    assert breakdown.age_band(age) == band


def test_lung_shares() -> None:
    records = [
        record("a", 1, 0.9, cam_in_lungs=0.5, map_in_lungs=0.8, lung_share=0.3),
        record("b", 0, 0.1, cam_in_lungs=np.nan, map_in_lungs=0.6, lung_share=0.5),
    ]
    cam, body = tables(records)["Is it looking at the lungs?"]
    assert (cam["radiographs"], cam["inside the lungs, mean share"]) == (1, 0.5)
    assert cam["an even map would have"] == pytest.approx(0.3)
    assert body["inside the lungs, mean share"] == pytest.approx(0.7)


def test_no_labels_no_tables() -> None:
    assert tables([record("a", -1, 0.5)], POINT) == {}
