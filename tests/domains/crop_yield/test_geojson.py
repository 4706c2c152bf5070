"""Predicted yields as GeoJSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.remote_sensing.crop_yield.geojson import write_geojson

SQUARE = np.array([[-90.0, 40.0], [-90.0, 41.0], [-89.0, 41.0], [-89.0, 40.0]])  # clockwise
HOLE = np.array([[-89.8, 40.2], [-89.2, 40.2], [-89.2, 40.8], [-89.8, 40.8]])  # counter-clockwise


def written(tmp_path: Path, rows: list[dict[str, Any]], outlines: dict[str, Any]) -> dict[str, Any]:
    write_geojson(tmp_path / "p.geojson", rows, outlines)

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    body: dict[str, Any] = json.loads((tmp_path / "p.geojson").read_text(), parse_constant=refuse)
    return body


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def test_rings_are_closed_and_turn_as_the_standard_says(tmp_path: Path) -> None:
    rows = [{"id": "a", "fips": "17001", "predicted_bu_acre": 41.23456789}]
    body = written(tmp_path, rows, {"17001": [[SQUARE, HOLE]]})
    feature = body["features"][0]
    outer, hole = feature["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert len(outer) == 5
    assert area(outer) == pytest.approx(1)
    assert area(hole) == pytest.approx(-0.36)
    assert feature["properties"] == {"id": "a", "fips": "17001", "predicted_bu_acre": 41.2346}
    assert body["crs"]["properties"]["name"].endswith("CRS84")


def test_several_polygons_points_and_nothing(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "fips": "17001", "lon": -90.0, "lat": 40.0},
        {"id": "b", "fips": "17003", "lon": -90.0, "lat": 40.0},
        {"id": "c", "fips": "17005", "lon": float("nan"), "lat": 40.0},
        {"id": "d", "fips": "17007"},
    ]
    outlines = {"17001": [[SQUARE], [SQUARE + 3]], "17005": [[SQUARE[:2]]]}
    shapes = [f["geometry"] for f in written(tmp_path, rows, outlines)["features"]]
    assert shapes[0]["type"] == "MultiPolygon"
    assert len(shapes[0]["coordinates"]) == 2
    assert shapes[1] == {"type": "Point", "coordinates": [-90.0, 40.0]}
    assert shapes[2] is None
    assert shapes[3] is None


def test_missing_numbers_are_null_and_numpy_is_plain(tmp_path: Path) -> None:
    row = {"id": "a", "fips": "01001", "year": np.int64(2012), "error": np.float64("nan")}
    found = written(tmp_path, [row], {})["features"][0]["properties"]
    assert found == {"id": "a", "fips": "01001", "year": 2012, "error": None}


def test_number_of_outlines_is_told(tmp_path: Path) -> None:
    rows = [{"id": n, "fips": f} for n, f in (("a", "17001"), ("b", "17001"), ("c", "17003"))]
    assert write_geojson(tmp_path / "p.geojson", rows, {"17001": [[SQUARE]]}) == 2
