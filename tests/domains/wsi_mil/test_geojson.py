"""Patches for QuPath: RFC 7946's structure, and the fields QuPath reads."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.medical.wsi_mil.annotations import read_annotation
from zoo.domains.medical.wsi_mil.geojson import BANDS, write_geojson

CORNERS = np.array([[0, 0], [448, 0], [1000, 2000]])
RANKS = np.array([0.0, 0.5, 0.995])
VALUES = {"attention": np.array([0.1, 0.2, 0.7]), "branch 0": np.array([1e-9, 0.25, 1 / 3])}


def write(path: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"name": "s", "corners": CORNERS, "side": 448, "ranks": RANKS}
    write_geojson(path, **(given | {"measurements": VALUES} | options))
    return json.loads(path.read_text())


def test_structure_of_rfc_7946(tmp_path: Path) -> None:
    body = write(tmp_path / "s.geojson")
    assert body["type"] == "FeatureCollection"  # section 3.3
    assert len(body["features"]) == 3
    for feature, corner in zip(body["features"], CORNERS, strict=True):
        # Section 3.2: a Feature has geometry and properties, and may have an id.
        assert {"type", "geometry", "properties", "id"} == set(feature)
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        # Section 3.1.6: four or more positions, the last as the first, counter-clockwise.
        assert len(ring) == 5
        assert ring[0] == ring[-1] == corner.tolist()
        x, y = np.array(ring, dtype=float).T
        area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
        assert area == 448**2
        assert all(isinstance(v, int) for position in ring for v in position)


def test_fields_that_qupath_reads(tmp_path: Path) -> None:
    features = write(tmp_path / "s.geojson")["features"]
    for i, feature in enumerate(features):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        name, colour = properties["classification"]["name"], properties["classification"]["color"]
        assert (name, tuple(colour)) in [(band, rgb) for _, band, rgb in BANDS]
        assert all(isinstance(v, int) and 0 <= v <= 255 for v in colour)
        # QuPath from 0.4 on: a mapping of names to numbers.
        assert set(properties["measurements"]) == set(VALUES)
        for key, value in properties["measurements"].items():
            assert isinstance(value, float)
            assert value == pytest.approx(VALUES[key][i], rel=1e-5)
        # QuPath takes ids that are UUIDs, and only those.
        assert str(uuid.UUID(feature["id"])) == feature["id"]
    assert len({f["id"] for f in features}) == 3
    assert [f["properties"]["classification"]["name"] for f in features] == [
        "attention: lower half",
        "attention: upper half",
        "attention: top 1 %",
    ]


def test_bands_of_attention(tmp_path: Path) -> None:
    count = 1000
    body = write(
        tmp_path / "s.geojson",
        corners=np.zeros((count, 2), int),
        ranks=np.arange(count) / count,
        measurements={},
    )
    names = [f["properties"]["classification"]["name"] for f in body["features"]]
    assert {name: names.count(name) for name in names} == {
        "attention: lower half": 500,
        "attention: upper half": 300,
        "attention: top 20 %": 150,
        "attention: top 5 %": 40,
        "attention: top 1 %": 10,
    }


def test_ids_follow_from_slide_and_patch(tmp_path: Path) -> None:
    def ids(name: str) -> list[str]:
        return [f["id"] for f in write(tmp_path / "s.geojson", name=name)["features"]]

    assert ids("a") == ids("a")
    assert not set(ids("a")) & set(ids("b"))


def test_positions_count_from_where_qupath_counts(tmp_path: Path) -> None:
    features = write(tmp_path / "s.geojson", origin=(400, 100))["features"]
    assert features[2]["geometry"]["coordinates"][0][0] == [600, 1900]
    half = write(tmp_path / "s.geojson", side=223.5)["features"]
    assert half[0]["geometry"]["coordinates"][0][2] == [223.5, 223.5]


def test_patches_as_annotations_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "s.geojson"
    write(path)
    assert read_annotation(path).lesions == ()  # detections are not drawn by anybody
    write(path, object_type="annotation")
    found = read_annotation(path, lesions=["attention: top 1 %"])
    assert [o.box for o in found.lesions] == [(1000, 2000, 1448, 2448)]
    assert found.inside(np.array([[1200, 2200], [100, 100]])).tolist() == [True, False]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "s.geojson", measurements={"attention": np.array([np.nan] * 3)})
    assert list(tmp_path.iterdir()) == []
