import os
from collections import Counter
from pathlib import Path

import pytest

from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import ReidData
from zoo.domains.reid.fusion_reid.layouts import Found, find, locate, parse_test
from zoo.errors import DataError

from .trees import (
    CUHK03,
    DATA,
    DUKE,
    MARKET,
    MSMT17,
    REASON,
    everything,
    write_boxes,
    write_crop,
    write_cuhk03,
    write_msmt17,
)


def look(root: Path, layout: str = "auto", **data: object) -> Found:
    return find(root, layout, ReidData.model_validate(data))


def told(found: Found) -> list[tuple[str, str, str]]:
    return [(e.role, e.person, e.camera) for e in found.entries]


# -- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["", "market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"]
)
def test_market1501_where_it_usually_lies(tmp_path: Path, place: str) -> None:
    write_boxes(tmp_path / place, MARKET)
    found = look(tmp_path)
    assert found.layout == "market1501"
    assert told(found) == [
        ("train", "0002", "1"),
        ("train", "0002", "2"),
        ("train", "0007", "1"),
        ("train", "0007", "3"),
        ("query", "0001", "1"),
        ("query", "0003", "3"),
        ("gallery", names.DISTRACTOR, "3"),
        ("gallery", "0001", "1"),
        ("gallery", "0001", "2"),
        ("gallery", "0003", "1"),
    ]
    assert found.junk == {"gallery": 1}
    assert not found.findings
    assert found.entries[0].name == "bounding_box_train/0002_c1s1_000451_03.jpg"
    assert found.entries[0].short == "0002_c1s1_000451_03.jpg"
    assert found.entries[0].path.stat().st_size == found.entries[0].size


@pytest.mark.parametrize(
    ("place", "layout"),
    [
        ("", "dukemtmc"),
        ("dukemtmc", "dukemtmc"),
        ("dukemtmc-reid/DukeMTMC-reID", "dukemtmc"),
        ("Occluded_Duke", "occluded_duke"),
    ],
)
def test_duke_and_its_occluded_kin(tmp_path: Path, place: str, layout: str) -> None:
    write_boxes(tmp_path / "data" / place, DUKE)
    found = look(tmp_path / "data")
    assert found.layout == layout
    assert told(found)[:3] == [
        ("train", "0001", "1"),
        ("train", "0001", "2"),
        ("train", "0002", "8"),
    ]
    assert ("gallery", "7140", "8") in told(found)  # a person nobody asks for stays a person
    assert {e.space for e in found.entries} == {layout}


def test_names_decide_where_folders_are_alike(tmp_path: Path) -> None:
    write_boxes(tmp_path / "market1501", DUKE)
    write_boxes(tmp_path / "dukemtmc", MARKET)
    with pytest.raises(DataError, match="no data set of a known layout"):
        look(tmp_path)
    # Whoever says so knows.
    assert look(tmp_path, "dukemtmc").layout == "dukemtmc"


def test_several_data_sets_have_to_be_chosen_from(tmp_path: Path) -> None:
    write_boxes(tmp_path / "market1501", MARKET)
    write_boxes(tmp_path / "dukemtmc", DUKE)
    with pytest.raises(DataError, match=r"several data sets \(dukemtmc, market1501\)"):
        look(tmp_path)
    assert look(tmp_path, "dukemtmc").where == tmp_path / "dukemtmc"


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("auto", "no data set of a known layout"),
        ("market1501", "looked for bounding_box_train/"),
        ("msmt17", "list_train.txt"),
        ("cuhk03", "images_detected/"),
        ("folder", "none of the folders train/"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, layout: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        look(tmp_path, layout)
    with pytest.raises(DataError, match="no such folder"):
        look(tmp_path / "nowhere", layout)


def test_locate_gives_the_folder(tmp_path: Path) -> None:
    write_boxes(tmp_path / "market1501", MARKET)
    assert locate(tmp_path, "auto") == ("market1501", tmp_path / "market1501")
    assert locate(tmp_path / "market1501", "auto")[0] == "market1501"


@pytest.mark.parametrize(
    ("text", "layout", "path"),
    [
        ("/data/duke", "auto", "/data/duke"),
        ("dukemtmc:/data", "dukemtmc", "/data"),
        ("folder:own", "folder", "own"),
        ("c:/data", "auto", "c:/data"),
    ],
)
def test_further_data_sets_are_named_with_or_without_layout(
    text: str, layout: str, path: str
) -> None:
    assert parse_test(text) == (layout, Path(path))


# -- names --------------------------------------------------------------------------------------


def test_a_badly_named_file_is_one_finding(tmp_path: Path) -> None:
    write_boxes(tmp_path, MARKET)
    write_crop(tmp_path / "query" / "person 7.jpg")
    (finding,) = look(tmp_path).findings
    assert finding.level == "error"
    assert "person 7.jpg" in finding.where
    assert "PPPP_cCsS_FFFFFF_BB.jpg" in finding.what


def test_names_that_all_fail_are_one_finding(tmp_path: Path) -> None:
    write_boxes(tmp_path, MARKET | {"query": ["a.jpg", "b.jpg", "c.jpg"]})
    (finding,) = look(tmp_path, "market1501").findings
    assert "none of 3 file names" in finding.what
    assert "data.pattern" in finding.remedy


def test_nobody_and_junk_do_not_train(tmp_path: Path) -> None:
    more = ["-1_c1s1_000001_00.jpg", "0000_c1s1_000002_00.jpg"]
    write_boxes(tmp_path, MARKET)
    for name in more:
        write_crop(tmp_path / "bounding_box_train" / name)
    found = look(tmp_path)
    assert found.junk == {"train": 2, "gallery": 1}
    assert sum(e.role == "train" for e in found.entries) == 4


def test_thumbnails_lists_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_boxes(tmp_path, MARKET)
    for name in ("readme.txt", ".0002_c1s1_000451_03.jpg", "._x.jpg"):
        (tmp_path / "bounding_box_train" / name).write_bytes(b"x")
    (tmp_path / "bounding_box_train" / "0009_c1s1_000001_00.jpg").mkdir()
    found = look(tmp_path)
    assert not found.findings
    assert len(found.entries) == 10


@pytest.mark.skipif(not (DATA / "market1501_lists").is_dir(), reason=REASON)
def test_a_tree_of_all_real_names(tmp_path: Path) -> None:
    """All 36,036 names of Market-1501 as links to one image."""
    image = write_crop(tmp_path / "one.jpg")
    root = tmp_path / "market1501"
    for part in ("train", "query", "test"):
        rows = (DATA / "market1501_lists" / f"market1501_{part}.csv").read_text().splitlines()
        paths = [root / row.split(",")[1] for row in rows]
        paths[0].parent.mkdir(parents=True)
        for path in paths:
            os.link(image, path)
    found = look(tmp_path)
    assert Counter(e.role for e in found.entries) == {
        "train": 12936,
        "query": 3368,
        "gallery": 15913,
    }
    assert found.junk == {"gallery": 3819}
    people = {
        role: {e.person for e in found.entries if e.role == role} for role in ("train", "query")
    }
    assert {k: len(v) for k, v in people.items()} == {"train": 751, "query": 750}
    assert not people["train"] & people["query"]


# -- own folders --------------------------------------------------------------------------------


def test_own_folders(tmp_path: Path) -> None:
    for name in ("train/7_1_a.jpg", "train/8_2_a.png", "query/9_lobby_a.jpg", "test/9_2_b.jpg"):
        write_crop(tmp_path / name)
    found = look(tmp_path)
    assert found.layout == "folder"
    assert told(found) == [
        ("train", "0007", "1"),
        ("train", "0008", "2"),
        ("query", "0009", "lobby"),
        ("gallery", "0009", "2"),
    ]


def test_own_pattern_reaches_into_subfolders(tmp_path: Path) -> None:
    for name in ("train/anna/hall-1.jpg", "train/ben/hall-2.jpg", "train/ben/odd.jpg"):
        write_crop(tmp_path / name)
    found = look(tmp_path, "folder", pattern=r"^(?P<pid>\w+)/hall-(?P<cam>\d+)")
    assert told(found) == [("train", "anna", "1"), ("train", "ben", "2")]
    (finding,) = found.findings
    assert "ben/odd.jpg" in finding.where.replace(os.sep, "/")


# -- MSMT17 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "place"),
    [(1, "msmt17"), (1, "MSMT17_V1"), (2, "msmt17/MSMT17_V2"), (2, ""), (1, "")],
)
def test_msmt17_of_both_versions(tmp_path: Path, version: int, place: str) -> None:
    write_msmt17(tmp_path / place, version)
    found = look(tmp_path)
    assert found.layout == "msmt17"
    assert told(found) == [
        ("train", "0000", "1"),
        ("train", "0000", "14"),
        ("train", "0001", "5"),
        ("train", "0001", "6"),
        ("query", "0000", "1"),
        ("gallery", "0000", "5"),
        ("gallery", "0002", "15"),
    ]
    assert {e.space for e in found.entries} == {"msmt17-train", "msmt17-test"}
    assert found.entries[0].short == "0000/0000_000_01_0303morning_0008_0.jpg"


def test_msmt17_without_its_val_list(tmp_path: Path) -> None:
    write_msmt17(tmp_path)
    assert len(look(tmp_path, msmt17_val=False).entries) == len(look(tmp_path).entries) - 1


def test_msmt17_lists_name_missing_images(tmp_path: Path) -> None:
    write_msmt17(tmp_path)
    (tmp_path / "train" / MSMT17["list_train.txt"][0].split(" ")[0]).unlink()
    found = look(tmp_path)
    (finding,) = found.findings
    assert finding.level == "error"
    assert "1 of 3 listed images are not in" in finding.what
    assert len(found.entries) == 6


def test_images_listed_twice_are_told_by_their_list(tmp_path: Path) -> None:
    write_msmt17(tmp_path)
    count = len(look(tmp_path).entries)
    first = MSMT17["list_train.txt"][0]
    for list_ in ("list_train.txt", "list_val.txt"):  # both train
        path = tmp_path / list_
        sound = path.read_text()
        path.write_text(f"{sound}{first}\n")
        found = look(tmp_path)
        (finding,) = found.findings
        assert finding.where == str(path)
        assert "images of 'train' are listed twice: " in finding.what
        assert Path(first.split(" ")[0]).name in finding.what
        assert len(found.entries) == count
        path.write_text(sound)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("../../etc/0000_000_01_x.jpg 0", "leads out of the data folder"),
        ("/etc/0000_000_01_x.jpg 0", "leads out of the data folder"),
        ("0000/0000_000_01_x.jpg", "expected '<path> <identity>'"),
        ("0000/0000_000_01_x.jpg zero", "expected '<path> <identity>'"),
        ("0000/portrait.jpg 0", "not of the form"),
    ],
)
def test_msmt17_lines_that_cannot_be(tmp_path: Path, line: str, words: str) -> None:
    write_msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=words) as caught:
        look(tmp_path)
    assert "list_query.txt:1" in str(caught.value)


@pytest.mark.parametrize("list_", ["list_train.txt", "list_val.txt", "list_gallery.txt"])
def test_msmt17_without_one_of_two_lists(tmp_path: Path, list_: str) -> None:
    write_msmt17(tmp_path)
    (tmp_path / list_).unlink()
    (finding,) = look(tmp_path).findings
    assert finding.level == "error"
    assert finding.what == "the list is missing"
    assert finding.where.endswith(list_)


@pytest.mark.parametrize(
    ("lists", "roles"),
    [
        (("list_train.txt", "list_val.txt"), {"query", "gallery"}),
        (("list_query.txt", "list_gallery.txt"), {"train"}),
    ],
)
def test_half_of_msmt17_serves_too(tmp_path: Path, lists: tuple[str, str], roles: set[str]) -> None:
    write_msmt17(tmp_path)
    for name in lists:
        (tmp_path / name).unlink()
    found = look(tmp_path)
    assert not found.findings
    assert {e.role for e in found.entries} == roles


def test_msmt17_without_images(tmp_path: Path) -> None:
    write_msmt17(tmp_path)
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="its images are not there; looked for test and mask_test"):
        look(tmp_path)


# -- CUHK03 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("division", ["json", "mat"])
@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_with_either_division(tmp_path: Path, boxes: str, division: str) -> None:
    write_cuhk03(tmp_path / "cuhk03", boxes, division)
    found = look(tmp_path, cuhk03=boxes)
    assert found.layout == "cuhk03"
    assert [e.path.name for e in found.entries] == everything(CUHK03.values())
    assert told(found)[::3] == [
        ("train", "1_001", "1"),
        ("train", "2_007", "2"),
        ("gallery", "1_002", "2"),
    ]


def test_cuhk03_not_extracted(tmp_path: Path) -> None:
    (tmp_path / "cuhk03_release").mkdir()
    with pytest.raises(DataError, match="torchreid's CUHK03 class writes this folder"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "neither splits_new_detected.json nor"),
        ("[{}]", "no division of torchreid's form"),
        ("{", "cannot be read as JSON"),
        ('[{"train": [["x/portrait.png", 0, 0]], "query": [], "gallery": []}]', "not of the form"),
    ],
)
def test_cuhk03_without_a_division(tmp_path: Path, text: str | None, words: str) -> None:
    write_cuhk03(tmp_path)
    path = tmp_path / "splits_new_detected.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=words):
        look(tmp_path)


def test_cuhk03_with_a_broken_matrix(tmp_path: Path) -> None:
    write_cuhk03(tmp_path, division="mat")
    path = tmp_path / "cuhk03_new_protocol_config_detected.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        look(tmp_path)


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    write_msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match=r"list_query\.txt: cannot be read \(is no text in UTF-8\)"):
        look(tmp_path)
