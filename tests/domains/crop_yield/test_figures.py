"""Pictures of a split: what is on them, and that odd data do not break them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from zoo.domains.remote_sensing.crop_yield import figures
from zoo.task import Record

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])


def records(years: tuple[int, ...] = (2012,), **more: Any) -> list[Record]:
    rng = np.random.default_rng(0)
    made = []
    for year in years:
        for i in range(12):
            fips = f"{17 + i % 3}{2 * i + 1:03d}"
            truth = float(rng.normal(45, 8))
            values: dict[str, Any] = {
                "truth": truth,
                "prediction": truth + float(rng.normal(1, 3)),
                "year": year,
                "fips": fips,
                "state": fips[:2],
                "lon": -90.0 + i % 4,
                "lat": 40.0 + i // 4,
                "baseline_train_mean": 45.0,
                "baseline_county_mean": truth + float(rng.normal(0, 5)),
                "operator": ("sobel", "scharr", "learnable")[(i + year) % 3],
                "attention": rng.random(9),
                "season_12": truth + float(rng.normal(0, 6)),
                "season_28": truth + float(rng.normal(0, 3)),
            } | more
            arrays = {k: np.array(v) for k, v in values.items() if v is not None}
            made.append(Record(f"{year}/{fips}", fips, arrays))
    return made


def drawn(found: list[Record], outlines: dict[str, Any] | None = None) -> dict[str, Any]:
    return dict(figures.all_figures(found, "bu/acre", outlines or {}))


def test_every_picture_of_one_year(tmp_path: Path) -> None:
    found = records()
    outlines = {str(r.values["fips"]): [[SQUARE + i]] for i, r in enumerate(found[:6])}
    made = drawn(found, outlines)
    assert set(made) == {
        "predicted_observed",
        "error_map",
        "error_beside_baselines",
        "in_season",
        "operators",
        "channel_attention",
    }
    for name, figure in made.items():
        figure.savefig(tmp_path / f"{name}.png")
    axes = made["predicted_observed"].axes[0]
    points = sum(len(c.get_offsets()) for c in axes.collections)
    assert points == 12
    assert axes.get_xlabel() == "observed, bu/acre"


def test_several_years_have_a_curve_each() -> None:
    made = drawn(records((2011, 2012, 2013)))
    lines = made["error_by_year"].axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        "model",
        "mean of all counties and years",
        "county's mean",
    ]
    assert [list(line.get_xdata()) for line in lines] == [[2011, 2012, 2013]] * 3
    assert "error_beside_baselines" not in made


def test_map_fills_counties_by_their_error() -> None:
    found = records()
    for i, record in enumerate(found):
        record.values["prediction"] = record.values["truth"] + (5 if i == 0 else -5)
    outlines = {str(r.values["fips"]): [[SQUARE, SQUARE / 2]] for r in found[:2]}
    shapes, dots = figures.error_map(found, "bu/acre", outlines).axes[0].collections
    over, under = (to_hex(c) for c in shapes.get_facecolors())
    assert over != under
    assert len(dots.get_offsets()) == 10
    assert {to_hex(c) for c in dots.get_facecolors()} == {under}


def test_counties_without_a_place_are_counted() -> None:
    made = figures.error_map(records(lon=np.nan), "bu/acre", {})
    assert "12 without a known place" in made.axes[0].get_title()


def test_operators_are_counted_by_year() -> None:
    axes = drawn(records((2011, 2012)))["operators"].axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["sobel", "scharr", "learnable"]
    assert [p.get_height() for p in axes.patches] == [4.0] * 6


def test_without_a_truth_there_is_a_map_of_predictions() -> None:
    made = drawn(records(truth=None, operator=None, attention=None))
    assert list(made) == ["prediction_map"]


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_one_county_and_constant_numbers_can_be_drawn(value: float, tmp_path: Path) -> None:
    found = records(truth=45.0, prediction=45.0 + value, baseline_county_mean=None)[:1]
    for name, figure in drawn(found).items():
        figure.savefig(tmp_path / f"{name}.png")


def test_unit_of_cotton_is_shown() -> None:
    made = figures.beside_baselines(records(), "lb/acre")
    assert made.axes[0].get_xlabel() == "RMSE, lb/acre"


def test_bands_are_those_of_the_sensor() -> None:
    three = drawn(records(attention=np.array([0.2, 0.5, 0.9])))["channel_attention"]
    assert len(three.axes[0].get_xticklabels()) == 3
    nine = drawn(records())["channel_attention"]
    assert nine.axes[0].get_xticklabels()[0].get_text() == "red"
