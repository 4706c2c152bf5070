"""Outlines from ASAP and QuPath, and the labels of patches that follow from them."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.path import Path as Curve

from zoo.domains.medical.wsi_mil import data
from zoo.domains.medical.wsi_mil.annotations import (
    find_annotations,
    patch_labels,
    read_annotation,
)
from zoo.domains.medical.wsi_mil.marks import level0_mpp, patch_side
from zoo.errors import DataError

from .conftest import configure

RNG = np.random.default_rng(0)


def square(left: float, top: float, side: float) -> list[list[float]]:
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def asap(*outlines: tuple[str, Any], groups: str = "", kind: str = "Polygon") -> str:
    """ASAP's XML of (group, points)."""
    drawn = "".join(
        f'<Annotation Name="a{i}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        "<Coordinates>"
        + "".join(
            f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(points)
        )
        + "</Coordinates></Annotation>"
        for i, (group, points) in enumerate(outlines)
    )
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{drawn}</Annotations>'
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )


def feature(rings: Any, name: str | None = None, kind: str = "Polygon", **more: Any) -> Any:
    """A Feature as QuPath writes it; rings are closed here."""

    def closed(ring: Any) -> Any:
        return [*ring, ring[0]]

    coordinates: Any = [closed(r) for r in rings]
    if kind == "MultiPolygon":
        coordinates = [[closed(r) for r in polygon] for polygon in rings]
    properties: dict[str, Any] = {"objectType": "annotation"} | more
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "0f3f1c0e-7a52-4c0e-9a6e-1f6a8f0c7d11",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def collection(*features: Any) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features)})


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str, name: str = "s.geojson") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# -- which patches lie inside -------------------------------------------------------------------


def test_patches_of_a_square_with_a_hole(written: Any) -> None:
    """A lesion of 100 pixels with a hole of 20 in its middle, patches of 20."""
    path = written(asap(("_0", square(0, 0, 100)), ("_2", square(40, 40, 20))), "s.xml")
    annotation = read_annotation(path)
    assert (len(annotation.lesions), len(annotation.holes)) == (1, 1)
    assert annotation.box == (0.0, 0.0, 100.0, 100.0)
    corners = np.array([[0, 0], [80, 80], [40, 40], [100, 0], [-20, 0], [36, 36], [20, 40]])
    for rule in ("centre", "share"):
        labels = patch_labels(annotation, corners, 20, rule)
        assert labels.dtype == np.int64
        # The sixth has its centre (46, 46) in the hole, which covers 16 x 16 of its 20 x 20.
        assert labels.tolist() == [1, 1, 0, 0, 0, 0, 1], rule


def test_the_two_rules_differ_at_the_edge(written: Any) -> None:
    path = written(collection(feature([square(0, 0, 100)], "Tumor")))
    annotation = read_annotation(path)
    # Side by side along the right edge: 60, exactly 50 and 40 per cent inside.
    corners = np.array([[88, 40], [90, 40], [92, 40]])
    np.testing.assert_allclose(annotation.share(corners, 20), [0.6, 0.5, 0.4], atol=0.02)
    assert patch_labels(annotation, corners, 20, "share").tolist() == [1, 0, 0]
    assert patch_labels(annotation, corners, 20, "centre").tolist() == [1, 0, 0]
    # A corner patch can have its centre inside and less than half of its area.
    narrow = read_annotation(written(collection(feature([[[0, 0], [200, 0], [0, 8]]]))))
    corner = np.array([[0, -6]])
    assert patch_labels(narrow, corner, 16, "centre").tolist() == [1]
    assert patch_labels(narrow, corner, 16, "share").tolist() == [0]


def test_points_inside_a_drawn_curve_agree_with_matplotlib(written: Any) -> None:
    turns = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radii = 4000 + 1500 * np.sin(5 * turns) + RNG.normal(0, 60, len(turns))
    curve = np.stack([9000 + radii * np.cos(turns), 7000 + radii * np.sin(turns)], 1)
    annotation = read_annotation(written(collection(feature([curve.tolist()]))))
    points = RNG.uniform(2000, 16000, (20000, 2)) + 0.123
    inside = annotation.inside(points)
    assert 0.2 < inside.mean() < 0.6
    np.testing.assert_array_equal(inside, Curve(curve).contains_points(points))


def test_share_agrees_with_the_area(written: Any) -> None:
    """A triangle below the diagonal: patches on it are covered by half, others wholly or not."""
    triangle = [[0.0, 0.0], [1024.0, 1024.0], [0.0, 1024.0]]
    annotation = read_annotation(written(collection(feature([triangle]))))
    grid = np.stack(np.meshgrid(np.arange(0, 1024, 128), np.arange(0, 1024, 128)), -1).reshape(
        -1, 2
    )
    share = annotation.share(grid, 128)
    on, below = grid[:, 0] == grid[:, 1], grid[:, 0] < grid[:, 1]
    np.testing.assert_allclose(share[on], 0.5, atol=0.02)
    assert (share[below] == 1).all()
    assert (share[~on & ~below] == 0).all()
    assert share.sum() * 128**2 == pytest.approx(1024**2 / 2, rel=0.01)


def test_outlines_that_overlap_count_once(written: Any) -> None:
    both = read_annotation(
        written(collection(feature([square(0, 0, 100)]), feature([square(50, 0, 100)])))
    )
    assert both.inside(np.array([[75.0, 50.0]])).tolist() == [True]
    assert both.share(np.array([[60, 20]]), 20).tolist() == [1]


def test_outlines_that_share_an_edge_hold_a_point_on_it_once(written: Any) -> None:
    for square_, expected in ((square(0, 0, 10), False), (square(10, 0, 10), True)):
        one = read_annotation(written(collection(feature([square_]))))
        assert one.inside(np.array([[10.0, 5.0]])).tolist() == [expected]


def test_no_outline_and_no_patch(written: Any) -> None:
    empty = read_annotation(written(collection()))
    assert empty.box is None
    assert patch_labels(empty, np.zeros((3, 2)), 10).tolist() == [0, 0, 0]
    assert patch_labels(empty, np.zeros((3, 2)), 10, "share").tolist() == [0, 0, 0]
    one = read_annotation(written(collection(feature([square(0, 0, 10)]))))
    assert patch_labels(one, np.zeros((0, 2)), 10).tolist() == []


# -- ASAP ---------------------------------------------------------------------------------------


def test_camelyon_groups(written: Any) -> None:
    outlines = [(g, square(0, 0, 9)) for g in ("Tumor", "_0", "_1", "metastases", "None")]
    outlines += [(g, square(0, 0, 9)) for g in ("_2", "Exclusion", "normal")]
    annotation = read_annotation(written(asap(*outlines), "s.xml"))
    assert len(annotation.lesions) == 5
    assert len(annotation.holes) == 3
    chosen = read_annotation(annotation.where, lesions=["TUMOR"], holes=["_2"])
    assert (len(chosen.lesions), len(chosen.holes)) == (1, 1)
    assert sum(chosen.unused.values()) == 6


def test_a_group_within_a_group(written: Any) -> None:
    groups = '<Group Name="necrosis" PartOfGroup="_2" /><Group Name="_2" PartOfGroup="None" />'
    text = asap(("necrosis", square(0, 0, 9)), ("_0", square(0, 0, 50)), groups=groups)
    annotation = read_annotation(written(text, "s.xml"))
    assert [o.names for o in annotation.holes] == [("necrosis", "_2")]
    circle = '<Group Name="a" PartOfGroup="b" /><Group Name="b" PartOfGroup="a" />'
    text = asap(("a", square(0, 0, 9)), groups=circle)
    assert read_annotation(written(text, "s.xml")).lesions[0].names == ("a", "b")


def test_points_are_put_in_order_and_commas_read(written: Any) -> None:
    text = asap(("_0", square(0, 0, 8)))
    text = text.replace('Order="0"', 'Order="9"').replace('X="8.0"', 'X="8,0"')
    text = text.replace('X="8"', 'X="8,5"')
    ring = read_annotation(written(text, "s.xml")).lesions[0].rings[0]
    assert ring.tolist() == [[8.5, 0], [8.5, 8], [0, 8], [0, 0]]


def test_what_encloses_nothing_is_left_out(written: Any) -> None:
    text = asap(("_0", [[1, 1], [2, 2]]), ("_0", [[1, 1]]), ("_0", square(0, 0, 9)))
    assert len(read_annotation(written(text, "s.xml")).lesions) == 1
    for kind, count in (("Dot", 0), ("PointSet", 0), ("Spline", 1), ("Rectangle", 1)):
        text = asap(("_0", square(0, 0, 9)), kind=kind)
        assert len(read_annotation(written(text, "s.xml")).lesions) == count


# -- QuPath -------------------------------------------------------------------------------------


def test_geometries_of_qupath(written: Any) -> None:
    ring = feature([square(0, 0, 100), square(40, 40, 20)], "Tumor")
    several = feature([[square(200, 0, 10)], [square(300, 0, 10)]], kind="MultiPolygon")
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    nowhere = {"type": "Feature", "geometry": None, "properties": None}
    annotation = read_annotation(written(collection(ring, several, point, nowhere)))
    assert len(annotation.lesions) == 3
    points = np.array([[10, 10], [50, 50], [205, 5], [305, 5], [255, 5]])
    assert annotation.inside(points).tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("wrap", ["collection", "list", "single"])
def test_forms_of_a_qupath_export(written: Any, wrap: str) -> None:
    one = feature([square(0, 0, 9)], "Tumor")
    text = {"collection": collection(one), "list": json.dumps([one]), "single": json.dumps(one)}
    annotation = read_annotation(written(text[wrap], "s.json"))
    assert [o.names for o in annotation.lesions] == [("Tumor",)]
    assert annotation.lesions[0].rings[0].tolist() == square(0, 0, 9)


def test_classes_of_qupath(written: Any) -> None:
    features = [
        feature([square(0, 0, 9)], "Tumor: Positive"),
        feature([square(0, 0, 9)], "Stroma"),
        feature([square(0, 0, 9)], "Ignore*"),
        feature([square(0, 0, 9)], "Region*"),
        feature([square(0, 0, 9)]),
        feature([square(0, 0, 9)], classification={"names": ["Tumor", "Negative"]}),
    ]
    path = written(collection(*features))
    every = read_annotation(path)
    assert len(every.lesions) == 4
    assert dict(every.unused) == {"Ignore*": 1, "Region*": 1}
    tumour = read_annotation(path, lesions=["tumor"])
    assert len(tumour.lesions) == 2
    assert dict(tumour.unused) == {"Stroma": 1, "Ignore*": 1, "Region*": 1, "(none)": 1}
    cut = read_annotation(path, holes=["stroma"])
    assert (len(cut.lesions), len(cut.holes)) == (3, 1)


def test_objects_that_nobody_drew_are_left_out(written: Any) -> None:
    kinds = ("detection", "cell", "tile", "tmaCore", "root")
    found = read_annotation(
        written(collection(*(feature([square(0, 0, 9)], objectType=k) for k in kinds)))
    )
    assert found.lesions == ()


def test_objects_inside_others_are_read(written: Any) -> None:
    inner = feature([square(1, 1, 2)], "Tumor")
    outer = feature([square(0, 0, 9)], "Region*", childObjects=[inner])
    assert len(read_annotation(written(collection(outer))).lesions) == 1


def test_qupath_counts_from_the_scanned_part(written: Any) -> None:
    path = written(collection(feature([square(0, 0, 100)])))
    assert read_annotation(path, origin=(500, 70)).box == (500, 70, 600, 170)
    path = written(asap(("_0", square(0, 0, 100))), "s.xml")
    assert read_annotation(path, origin=(500, 70)).box == (0, 0, 100, 100)


# -- what cannot be read ------------------------------------------------------------------------

BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("s.xml", "", "cannot be read as XML"),
        ("s.xml", "no XML at all", "cannot be read as XML"),
        ("s.xml", asap(("_0", square(0, 0, 9)))[:-40], "cannot be read as XML"),
        ("s.xml", BOMB, "cannot be read as XML"),
        ("s.xml", OUTSIDE, "cannot be read as XML"),
        ("s.xml", "<Annotations><Regions/></Annotations>", "not ASAP's annotations"),
        ("s.xml", asap(("_0", [["left", 0], [1, 1], [2, 0]])), "no pair of coordinates"),
        ("s.xml", asap(("_0", [["nan", 0], [1, 1], [2, 0]])), "not finite"),
        ("s.geojson", "", "cannot be read as GeoJSON"),
        ("s.geojson", '{"type": "FeatureCollection", "features": [', "cannot be read as GeoJSON"),
        ("s.geojson", "[" * 100000, "cannot be read as GeoJSON"),
        ("s.json", '{"shapes": []}', "no GeoJSON"),
        ("s.json", "3", "no GeoJSON"),
        ("s.geojson", '[{"shape": 1}]', "no GeoJSON Feature"),
        ("s.geojson", '["a"]', "no GeoJSON Feature"),
        ("s.geojson", '[{"type": "Feature", "properties": 3}]', "no GeoJSON object"),
        (
            "s.geojson",
            '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [1, 2]}}]',
            "no lists of rings",
        ),
        (
            "s.geojson",
            '[{"type": "Feature", "geometry": {"type": "MultiPolygon"}}]',
            "no lists of rings",
        ),
        ("s.geojson", collection(feature([[[0, 0], [1], [2, 2]]])), "no pair of coordinates"),
        ("s.geojson", collection(feature([[[0, 0], [1, None], [2, 2]]])), "no pair"),
        ("s.geojson", collection(feature([[[0, 0], [1, 1e999], [2, 2]]])), "not finite"),
    ],
)
def test_an_unreadable_annotation_is_one_line(
    written: Any, name: str, text: str, told: str
) -> None:
    path = written(text, name)
    with pytest.raises(DataError, match=told) as failure:
        read_annotation(path)
    message = str(failure.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 400


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name, told in (("s.xml", "as XML"), ("s.geojson", "as GeoJSON")):
        (tmp_path / name).write_bytes(bytes(range(256)) * 9)
        with pytest.raises(DataError, match=told):
            read_annotation(tmp_path / name)
    with pytest.raises(DataError, match="no such annotation file"):
        read_annotation(tmp_path / "none.xml")


# -- files of a data set ------------------------------------------------------------------------


def test_annotations_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.xml", "b.geojson", "c.tif.json", "._a.xml", "notes.txt"):
        (tmp_path / name).write_text("")
    assert set(find_annotations(tmp_path)) == {"a", "b", "c"}
    (tmp_path / "a.geojson").write_text("")
    with pytest.raises(DataError, match=r"slide 'a' has a second annotation file, a.geojson"):
        find_annotations(tmp_path)
    with pytest.raises(DataError, match="no such folder of annotations"):
        find_annotations(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no annotations found"):
        find_annotations(tmp_path / "empty")


@pytest.fixture
def outlined(clam: Path) -> Path:
    """The small CLAM data set with an outline around the left half of each positive slide."""
    folder = clam / "annotations"
    folder.mkdir()
    for path in (clam / "features" / "h5_files").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            coords = file["coords"][()]
            if path.stem.endswith(("1", "3", "5", "7", "9")):
                left, top = coords.min(0)
                text = asap(("_0", square(int(left), int(top), 512 * 3)))
                (folder / f"{path.stem}.xml").write_text(text)
            if not path.stem.endswith("1"):
                del file["labels"]
    return clam


def test_patch_labels_come_from_outlines_where_the_file_has_none(outlined: Path) -> None:
    config = configure(outlined, annotations=outlined / "annotations")
    splits = data.open_splits(config)
    seen = 0
    for split in splits.values():
        for i, name in enumerate(split.ids):
            item = split.item(i, RNG)
            stored, annotated = name.endswith("1"), int(name[-1]) % 2 == 1
            if not annotated and not stored:
                assert item["instances"] is None
                assert item["marks"] is None
            elif not stored:
                seen += 1
                coords = item["coords"].numpy()
                within = (coords - coords.min(0) < 512 * 3).all(1)
                np.testing.assert_array_equal(item["instances"].numpy(), within)
            else:
                with h5py.File(outlined / "features" / "h5_files" / f"{name}.h5") as file:
                    np.testing.assert_array_equal(item["instances"].numpy(), file["labels"][()])
    assert seen > 4


def test_the_check_tells_what_is_annotated_and_what_is_broken(outlined: Path) -> None:
    folder = outlined / "annotations"
    config = configure(outlined, annotations=folder)
    lines = [f.line() for f in data.check(config)]
    assert any("annotated slides, " in line and "lesion outlines" in line for line in lines)
    broken = next(iter(sorted(folder.glob("*.xml"))))
    broken.write_text("<ASAP_Annotations>")
    errors = [f for f in data.check(config) if f.level == "error"]
    assert [str(broken) in f.what for f in errors] == [True]
    for path in folder.glob("*.xml"):
        path.rename(folder / f"other_{path.name}")
    lines = [f.line() for f in data.check(config) if f.level == "warning"]
    assert any("no annotation fits a slide" in line for line in lines)


def test_features_without_places_cannot_be_labelled(outlined: Path) -> None:
    config = configure(outlined, annotations=outlined / "annotations")
    split = data.open_splits(config)["train"]
    index = next(i for i, n in enumerate(split.ids) if int(n[-1]) % 2)
    marking = split.marking
    assert marking is not None
    with pytest.raises(DataError, match="features without coordinates"):
        marking.marks(split.ids[index], None, {})


def test_size_and_resolution_of_patches() -> None:
    coords = np.array([[0, 0], [512, 0], [0, 1024]])
    assert patch_side(coords, {"patch_size_level0": 448}, 99) == 448
    assert patch_side(coords, {}, 99) == 99
    assert patch_side(coords, {}) == 512
    assert patch_side(coords[:1], {}) == 1
    assert level0_mpp({"mpp": 0.5, "level0_magnification": 20}) == 0.5
    # Half a micrometre at 40x is the resolution of the patches.
    assert level0_mpp({"mpp": 0.5, "level0_magnification": 40}) == 0.25
    assert level0_mpp({"level0_magnification": 40}, 0.23) == 0.23
    assert level0_mpp({}) == 0.243
