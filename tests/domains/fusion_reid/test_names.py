from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from zoo.domains.reid.fusion_reid.names import (
    DISTRACTOR,
    JUNK,
    Name,
    compiled,
    expected,
    form_of,
    number,
    order,
    parse,
)
from zoo.errors import ConfigError

from .trees import DATA, REASON


@pytest.mark.parametrize(
    ("name", "layout", "said"),
    [
        ("0002_c1s1_000451_03.jpg", "market1501", Name("0002", "1")),
        ("1501_c6s4_001877_00.jpg", "market1501", Name("1501", "6")),
        ("-1_c3s2_014528_05.jpg", "market1501", Name(JUNK, "3")),
        ("0000_c6s3_094992_04.jpg", "market1501", Name(DISTRACTOR, "6")),
        ("0000151_c5s1_000001_00.jpg", "market1501", Name("0151", "5")),
        ("12345_c12s1_000001_00.jpg", "market1501", Name("12345", "12")),
        ("0001_c2_f0046182.jpg", "dukemtmc", Name("0001", "2")),
        ("7140_c8_f0175988.jpg", "occluded_duke", Name("7140", "8")),
        ("0000_c1_f0000001.jpg", "dukemtmc", Name("0000", "1")),
        ("0000_000_01_0303morning_0008_0.jpg", "msmt17", Name("0000", "1")),
        ("0012_003_15_0303noon_0008_0.jpg", "msmt17", Name("0012", "15")),
        ("1_001_2_07.png", "cuhk03", Name("1_001", "2")),
        ("7_2_x.jpg", "folder", Name("0007", "2")),
        ("7_2.jpg", "folder", Name("0007", "2")),
        ("anna_cam03_x.jpg", "folder", Name("anna", "3")),
        ("0007_c2s1_x.jpg", "folder", Name("0007", "2")),
        ("12_lobby_x.jpg", "folder", Name("0012", "lobby")),
        ("0_c1_x.jpg", "folder", Name("0000", "1")),
        ("-1_c1_x.jpg", "folder", Name(JUNK, "1")),
    ],
)
def test_names_tell_person_and_camera(name: str, layout: str, said: Name) -> None:
    assert parse(name, layout) == said


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("person 7.jpg", "market1501"),
        ("x0002_c1s1_000451_03.jpg", "market1501"),
        ("0002_cs1.jpg", "market1501"),
        ("0002c1s1.jpg", "dukemtmc"),
        ("0000_000.jpg", "msmt17"),
        ("1_001_3_07.png", "cuhk03"),
        ("portrait.jpg", "folder"),
        ("7_.jpg", "folder"),
        ("7_2b_x.jpg", "folder"),
    ],
)
def test_other_names_tell_nothing(name: str, layout: str) -> None:
    assert parse(name, layout) is None


def test_a_pattern_reads_any_path() -> None:
    pattern = compiled(r"^(?P<pid>\w+)/[a-z]+-(?P<cam>\d+)\.png$")
    assert parse("anna/hall-07.png", "folder", pattern) == Name("anna", "7")
    assert parse("anna/hall.png", "folder", pattern) is None
    empty = compiled(r"(?P<pid>\d*)_(?P<cam>\d+)")
    assert parse("_3.jpg", "folder", empty) is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "no regular expression"),
        (r"(?P<pid>\d+)", "no group 'cam'"),
        (r"(\d+)_(\d+)", "no group 'pid'"),
    ],
)
def test_a_wrong_pattern_is_told(pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compiled(pattern)
    assert compiled(None) is None


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("0002_c1s1_000451_03.jpg", "market1501"),
        ("-1_c1s1_000451_03.jpg", "market1501"),
        ("0001_c2_f0046182.jpg", "dukemtmc"),
        ("0000_000_01_0303morning_0008_0.jpg", "msmt17"),
        ("IMG_1234.jpg", None),
        ("1_001_2_07.png", None),
    ],
)
def test_the_form_of_a_single_name(name: str, layout: str | None) -> None:
    assert form_of(name) == layout


def test_numbers_sort_by_value_before_words() -> None:
    assert sorted(["10", "lobby", "9", "0002", "1_001"], key=order) == [
        "0002",
        "9",
        "10",
        "1_001",
        "lobby",
    ]
    assert [number(t) for t in ("01", "0", "b07")] == ["1", "0", "b07"]
    assert expected("market1501").startswith("PPPP_cC")


# -- the complete lists of Market-1501 ----------------------------------------------------------

LISTS = DATA / "market1501_lists"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason=REASON)


@cache
def listed(part: str) -> list[tuple[str, Name]]:
    """Identity as the list tells it, and what we read in the name."""
    rows = [r.split(",") for r in (LISTS / f"market1501_{part}.csv").read_text().splitlines()]
    found = []
    for told, path in rows:
        said = parse(Path(path).name, "market1501")
        assert said is not None, path
        found.append((told, said))
    return found


@needs_lists
@pytest.mark.parametrize(
    ("part", "images", "identities"),
    [("train", 12936, 751), ("query", 3368, 750), ("test", 19732, 750)],
)
def test_complete_lists_give_the_published_counts(part: str, images: int, identities: int) -> None:
    rows = listed(part)
    people = Counter(said.person for _, said in rows)
    assert len(rows) == images
    junk, nobody = people.pop(JUNK, 0), people.pop(DISTRACTOR, 0)
    assert (junk, nobody) == ((3819, 2798) if part == "test" else (0, 0))
    assert len(people) == identities
    assert {said.camera for _, said in rows} == set("123456")
    special = {JUNK: -1, DISTRACTOR: 0}
    for told, said in rows:
        own = special[said.person] if said.person in special else int(said.person)
        assert own == int(told)


@needs_lists
def test_complete_training_list_in_detail() -> None:
    rows = listed("train")
    cameras = Counter(said.camera for _, said in rows)
    assert [cameras[c] for c in "123456"] == [2017, 1709, 2707, 920, 2338, 3245]
    people = Counter(said.person for _, said in rows)
    assert (min(people.values()), max(people.values())) == (2, 72)
    seen = Counter(person for person, _ in {(s.person, s.camera) for _, s in rows})
    assert (min(seen.values()), max(seen.values())) == (2, 6)
    assert sum(n < 16 for n in people.values()) == 387


@needs_lists
def test_every_query_of_the_complete_lists_has_a_match() -> None:
    gallery = Counter((s.person, s.camera) for _, s in listed("test"))
    total = Counter(s.person for _, s in listed("test"))
    good, same = [], []
    for _, said in listed("query"):
        same.append(gallery[said.person, said.camera])
        good.append(total[said.person] - same[-1])
    assert (min(good), max(good)) == (1, 68)
    assert np.mean(good) == pytest.approx(14.7, abs=0.05)
    assert np.mean(same) == pytest.approx(3.9, abs=0.05)
