"""Tables and curves of methods against each other."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest

from zoo.domains.saliency.rgbd_sod import compare
from zoo.domains.saliency.rgbd_sod.compare import SHOWN, best, compared, table_rows
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.metrics import dataset_scores, image_scores
from zoo.task import Record

Found = dict[str, dict[str, list[Record]]]


def truth(index: int) -> np.ndarray:
    y, x = np.mgrid[:30, :40]
    return np.hypot(y - 12 - index, x - 20) < 7


def records(name: str, count: int, error: float) -> list[Record]:
    """Scores of maps that are the truth with noise of this strength."""
    made = []
    for i in range(count):
        noise = np.random.default_rng(i).normal(0, error, (30, 40))
        found = (truth(i) * 200 + 20 + noise).clip(0, 255).astype(np.uint8)
        made.append(Record(f"{name}/{i}", f"{name}/{i}", image_scores(found, truth(i))))
    return made


@pytest.fixture(scope="module")
def found() -> Found:
    return {
        "good_one": {"test_des": records("DES", 4, 5), "test_sip": records("SIP", 3, 5)},
        "bad": {"test_des": records("DES", 4, 60)},
        "half": {"test_des": records("DES", 2, 1), "test_sip": records("SIP", 3, 40)},
    }


def configure(**settings: object) -> Config:
    return Config.model_validate({"task": "rgbd_sod", "preset": "sample", **settings})


def test_a_row_a_method_and_set(found: Found) -> None:
    rows = table_rows(found)
    assert [(r["method"], r["split"], r["set"], r["images"]) for r in rows] == [
        ("good_one", "test_des", "DES", 4),
        ("good_one", "test_sip", "SIP", 3),
        ("bad", "test_des", "DES", 4),
        ("half", "test_des", "DES", 2),
        ("half", "test_sip", "SIP", 3),
    ]
    expected = dataset_scores([r.values for r in found["bad"]["test_des"]])
    for name, value in expected.items():
        assert rows[2][name] == pytest.approx(value)


def test_the_best_of_a_set_is_among_methods_with_all_its_images(found: Found) -> None:
    winners = best(table_rows(found))
    # `half` is better on DES, on half of the images.
    assert {m for m, name, _ in winners if name == "DES"} == {"good_one"}
    assert {(name, metric) for _, name, metric in winners} == {
        (name, metric) for name in ("DES", "SIP") for metric in SHOWN
    }


def test_equal_figures_are_both_best_and_a_lone_method_is_not() -> None:
    one = {"test_des": records("DES", 2, 5)}
    assert best(table_rows({"a": one})) == set()
    winners = best(table_rows({"a": one, "b": one}))
    assert {m for m, _, _ in winners} == {"a", "b"}
    assert len(winners) == 2 * len(SHOWN)


def test_less_error_is_better(found: Found) -> None:
    rows = table_rows(found)
    mae = {r["method"]: r["mae"] for r in rows if r["set"] == "DES"}
    assert mae["good_one"] < mae["bad"]
    assert ("good_one", "DES", "mae") in best(rows)


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown(found: Found) -> None:
    text = compare.markdown(table_rows(found), configure())
    head, _, *lines = cells(text)
    width = len(SHOWN)
    assert head[:2] == ["method", "DES S ↑"]
    assert head[width] == "DES MAE ↓"
    assert len(head) == 1 + 2 * width
    assert [line[0] for line in lines] == [r"good\_one", "bad", "half"]
    assert all(re.fullmatch(r"\*\*1?\.\d{3}\*\*", c) for c in lines[0][1:])
    assert lines[1][1 + width :] == ["-"] * width
    assert all(re.fullmatch(r"1?\.\d{3}", c) for c in lines[1][1 : 1 + width])
    assert all(re.fullmatch(r"1?\.\d{3}\*", c) for c in lines[2][1 : 1 + width])
    assert "Images: DES 4, SIP 3." in text
    assert "On fewer images, and not compared: half 2 of 4 of DES." in text
    assert "own size" in text
    assert "256 x 256" in compare.markdown(table_rows(found), configure(data={"eval_size": "256"}))


def test_latex(found: Found) -> None:
    text = compare.latex(table_rows(found), configure())
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{l" + "c" * 2 * len(SHOWN) + "}"
    assert body[-1] == r"\end{tabular}"
    rows = [line for line in body if line.endswith(r"\\")]
    counts = [line.count("&") for line in rows]
    # The first line spans the sets, the others have a cell a metric.
    assert counts == [2, *[2 * len(SHOWN)] * 4]
    assert rows[2].startswith(r"good\_one & \textbf{")
    assert r"\textbf" not in rows[3]
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("name", "told"),
    [("a_b&c%", r"a\_b\&c\%"), ("{x}\\", r"\{x\}\textbackslash{}"), ("2^n~", None)],
)
def test_names_are_escaped_for_latex(name: str, told: str | None) -> None:
    expected = told or r"2\textasciicircum{}n\textasciitilde{}"
    assert compare.tex(name) == expected


def test_names_cannot_break_a_markdown_table() -> None:
    one = {"test_des": records("DES", 1, 5)}
    text = compare.markdown(table_rows({"a|b": one, "<b>*": one}), configure())
    _, _, *lines = cells(text)
    assert [line[0] for line in lines] == [r"a\|b", r"\<b\>\*"]


def test_curves_are_those_of_the_pictures(found: Found) -> None:
    table = list(csv.DictReader(io.StringIO(compare.curves_csv(found))))
    assert len(table) == 5 * 256
    mine = [r for r in table if (r["method"], r["set"]) == ("bad", "DES")]
    assert [int(r["threshold"]) for r in mine] == list(range(256))
    values = [r.values for r in found["bad"]["test_des"]]
    for name in ("precision", "recall", "fm", "em"):
        mean = np.mean([v[name] for v in values], axis=0)[::-1]
        np.testing.assert_allclose([float(r[name]) for r in mine], mean)
    assert max(float(r["fm"]) for r in mine) == pytest.approx(dataset_scores(values)["max_fm"])
    assert float(mine[0]["recall"]) == 1


def test_pictures_have_a_panel_a_set_and_a_line_a_method(found: Found) -> None:
    figures = compare.curve_figures(found)
    assert list(figures) == ["pr", "f_threshold"]
    panels = [axes for axes in figures["pr"].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["DES", "SIP"]
    labels = [axes.get_legend_handles_labels()[1] for axes in panels]
    assert [[text.partition(",")[0] for text in each] for each in labels] == [
        ["good_one", "bad", "half"],
        ["good_one", "half"],
    ]
    # A method has one colour in every panel.
    colours = [{text.get_label(): text.get_color() for text in axes.lines} for axes in panels]
    for label in labels[1]:
        name = label.partition(",")[0]
        (first,) = {c for text, c in colours[0].items() if text.startswith(name)}
        assert colours[1][label] == first


def test_only_the_wanted_formats_are_written(found: Found) -> None:
    made = compared(found, configure())
    assert made.texts.keys() == {"comparison.md", "comparison.tex", "curves.csv"}
    assert len(made.rows) == 5
    made = compared(found, configure(predict={"tables": ["csv"]}))
    assert made.texts.keys() == {"curves.csv"}
