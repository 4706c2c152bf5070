"""Rank lists: who is listed, what is said of each, tables and pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from zoo.domains.reid.fusion_reid.names import JUNK
from zoo.domains.reid.fusion_reid.ranking import reranked
from zoo.domains.reid.fusion_reid.ranklists import (
    Crop,
    Crops,
    RankList,
    picture,
    rank_lists,
    table,
    write,
)
from zoo.domains.reid.fusion_reid.rerank import Reranker
from zoo.errors import DataError

# The query is person 7 under camera 1; the gallery lies farther and farther away.
GALLERY = [("7", "c1"), ("8", "c2"), ("7", "c2"), (JUNK, "c2"), ("", "c2"), ("7", ""), ("9", "c1")]


def crowd(persons_of_query: str = "7") -> tuple[torch.Tensor, Crops]:
    angles = torch.tensor([0.0, *(0.1 * (i + 1) for i in range(len(GALLERY)))])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    persons = [persons_of_query, *(p for p, _ in GALLERY)]
    cameras = ["c1", *(c for _, c in GALLERY)]
    roles = ["query", *["gallery"] * len(GALLERY)]
    ids = ["query/q.jpg", *(f"gallery/{i}.jpg" for i in range(len(GALLERY)))]
    return features, Crops(ids, persons, cameras, roles, ids)


def places(one: RankList) -> list[tuple[int, str, str]]:
    return [(p.rank, p.crop.id[8:9], p.verdict) for p in one.places]


def test_the_same_view_is_not_listed_and_junk_never_is() -> None:
    (found,) = rank_lists(*crowd(), top=10)
    assert places(found) == [
        (1, "1", "wrong"),
        (2, "2", "right"),
        (3, "4", "unknown"),
        (4, "5", "right"),  # its camera is unknown, so it may be another one
        (5, "6", "wrong"),
    ]
    assert found.first_right == 2
    assert found.places[0].distance == pytest.approx(2 * np.sin(0.1), abs=1e-4)
    (loose,) = rank_lists(*crowd(), top=2, same_camera=True)
    assert places(loose) == [(1, "0", "right"), (2, "1", "wrong")]


def test_of_an_unknown_query_nothing_is_known() -> None:
    (found,) = rank_lists(*crowd(""), top=3)
    assert places(found) == [(1, "0", "unknown"), (2, "1", "unknown"), (3, "2", "unknown")]
    assert found.first_right is None


def test_the_querys_own_file_is_not_listed() -> None:
    """Somebody ranks a folder against itself."""
    features, crops = crowd("")
    paths = ["a.jpg", "b.jpg", "a.jpg", *"cdefg"]
    again = Crops(crops.ids, crops.persons, crops.cameras, crops.roles, paths)
    (found,) = rank_lists(features, again, top=2)
    assert [p.crop.path for p in found.places] == ["b.jpg", "c"]
    assert [p.rank for p in found.places] == [1, 2]


def test_some_queries_are_the_same_as_in_the_whole() -> None:
    torch.manual_seed(0)
    features = torch.randn(60, 5)
    columns = [f"{i}" for i in range(60)], [f"{i % 9}" for i in range(60)], ["c"] * 60
    crops = Crops(*columns, ["query"] * 20 + ["gallery"] * 40, [""] * 60)
    for rerank in (None, Reranker(5, 3, 0.3)):
        every = rank_lists(features, crops, top=4, rerank=rerank, same_camera=True)
        some = rank_lists(
            features, crops, top=4, rerank=rerank, same_camera=True, rows=np.array([3, 17])
        )
        assert some == [every[3], every[17]]
    fitted = reranked(features, crops.persons, crops.roles, Reranker(5, 3, 0.3))
    assert every == rank_lists(features, crops, top=4, rerank=fitted, same_camera=True)
    matrix = fitted.matrix()
    assert every[5].places[0].distance == pytest.approx(float(matrix[5].min()), abs=1e-6)


def test_refusals() -> None:
    features, crops = crowd()
    with pytest.raises(DataError, match="gallery is empty"):
        rank_lists(features[:1], Crops(*(c[:1] for c in vars(crops).values())))
    features[2, 0] = torch.nan
    with pytest.raises(DataError, match=r"gallery/1\.jpg: its embedding"):
        rank_lists(features, crops)


# -- tables -------------------------------------------------------------------------------------


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    lists = rank_lists(*crowd(), top=3)
    files = write(tmp_path, lists, load, pictures=0, about={"weights": "best"})
    assert [f.name for f in files] == ["rank_lists.csv", "rank_lists.json"]
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["query"], r["rank"], r["image"], r["verdict"]) for r in rows] == [
        ("query/q.jpg", "1", "gallery/1.jpg", "wrong"),
        ("query/q.jpg", "2", "gallery/2.jpg", "right"),
        ("query/q.jpg", "3", "gallery/4.jpg", "unknown"),
    ]
    assert rows == [{k: str(v) for k, v in row.items()} for row in table(lists)]
    told = json.loads(files[1].read_text())
    assert told["about"] == {"weights": "best"}
    (one,) = told["lists"]
    assert one["first_right"] == 2
    assert [p["crop"]["id"] for p in one["places"]] == [r["image"] for r in rows]


def test_a_query_with_nothing_left_has_an_entry_and_a_picture(tmp_path: Path) -> None:
    crops = Crops(["q", "g"], ["7", "7"], ["c1", "c1"], ["query", "gallery"], ["q", "g"])
    lists = rank_lists(torch.ones(2, 3), crops)
    files = write(tmp_path, lists, load)
    assert files[0].read_text().splitlines() == [
        "query,query_person,query_camera,rank,distance,verdict,image,person,camera,path"
    ]
    assert json.loads(files[1].read_text())["lists"][0]["places"] == []
    assert [f.name for f in files[2:]] == ["rank_lists.png", "0001_q.png"]


# -- pictures -----------------------------------------------------------------------------------


def load(crop: Crop) -> np.ndarray:
    """A crop whose colour follows from its name; some are squares, one is broken."""
    if crop.id.endswith("2.jpg"):
        msg = f"{crop.id}: broken"
        raise DataError(msg)
    colour = np.frombuffer(crop.id.encode()[-6:].rjust(6), dtype=np.uint8)[:3]
    height = 32 if crop.id.endswith("4.jpg") else 64
    return np.broadcast_to(colour, (height, 32, 3)).copy()


def test_pictures_frame_right_wrong_and_unknown() -> None:
    figure = picture(rank_lists(*crowd(), top=4), load, "by $distance$")
    (axes,) = figure.axes
    frames = [p for p in axes.patches if isinstance(p, Rectangle)]
    assert len(frames) == 5
    colours = [f.get_edgecolor()[:3] for f in frames]
    assert len(set(colours)) == 4  # the query's own colour is the fourth
    assert colours[2] == colours[4] != colours[1]
    assert len({str(f.get_linestyle()) for f in frames[1:4]}) == 3  # without colour as well
    assert len(axes.images) == 4  # the broken one stays blank
    texts = [t.get_text() for t in axes.texts]
    assert "cannot\nbe read" in texts
    assert any(t.startswith("2: 0.299") and "id 7" in t for t in texts)
    assert any(t.startswith("3: ") and "id ?" in t for t in texts)
    assert figure.get_suptitle() == r"by \$distance\$"


def test_crops_keep_their_shape_within_their_place() -> None:
    figure = picture(rank_lists(*crowd(), top=4), load)
    (axes,) = figure.axes
    shapes = [(i.get_extent()[1] - i.get_extent()[0], i.get_array().shape) for i in axes.images]
    for width, (rows, columns, _) in shapes:
        height = width * rows / columns
        assert width <= 1 + 1e-9
        assert height <= 2 + 1e-9
        assert max(width / 1, height / 2) == pytest.approx(1)


def test_many_queries_are_drawn_in_part(tmp_path: Path) -> None:
    one = rank_lists(*crowd(), top=2)[0]
    figure = picture([one] * 30, load)
    assert any("6 more queries" in t.get_text() for t in figure.axes[0].texts)
    many = [
        RankList(Crop(f"dir/{name}.jpg", "1", "c", ""), one.places) for name in ("a b", "ä/$x", "c")
    ]
    files = write(tmp_path, many, load, pictures=2)
    assert [f.relative_to(tmp_path).as_posix() for f in files[2:]] == [
        "rank_lists.png",
        "rank_lists/0001_a_b.png",
        "rank_lists/0002__x.png",
    ]
    with Image.open(files[2]) as image:
        assert image.height > image.width / 2
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
