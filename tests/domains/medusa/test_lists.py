from pathlib import Path

import pytest

from zoo.domains.medical.medusa.lists import (
    find_lists,
    parse_row,
    read_list,
    siblings,
    version_of,
)
from zoo.errors import DataError


def parts_of(text: str) -> tuple[str, str, str, str]:
    row = parse_row(text)
    return row.patient, row.file, row.label, row.source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 a.jpg negative cohen", ("3", "a.jpg", "negative", "cohen")),
        ("3 a.jpg normal", ("3", "a.jpg", "normal", "")),
        ("COVID 1 COVID(1).png positive sirm", ("COVID 1", "COVID(1).png", "positive", "sirm")),
        ("COVID 1 COVID(1).png positive", ("COVID 1", "COVID(1).png", "positive", "")),
        ("u u.png pneumonia rnsa", ("u", "u.png", "pneumonia", "rsna")),
        ("u u.png COVID-19 RSNA", ("u", "u.png", "COVID-19", "rsna")),
        ("p a.png level2 ricord", ("p", "a.png", "level2", "ricord")),
        ("p a.png Typical elsewhere", ("p", "a.png", "Typical", "elsewhere")),
        ("p a.png 1", ("p", "a.png", "1", "")),
        # A patient called like a source, and a source that stands where a label could.
        ("rsna a.png positive", ("rsna", "a.png", "positive", "")),
        (
            "A1-2020-NA-CHEST_AP-3-AP-x.jpg A1-2020-NA-CHEST_AP-3-AP-x.jpg positive stonybrook",
            ("A1-2020-NA-CHEST_AP-3-AP-x.jpg",) * 2 + ("positive", "stonybrook"),
        ),
        ("  p\ta.PNG   positive  fig1 \r", ("p", "a.PNG", "positive", "fig1")),
    ],
)
def test_rows_of_every_version(text: str, expected: tuple[str, str, str, str]) -> None:
    assert parts_of(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("only two.png", "2 columns"),
        ("patient no_image positive cohen", "'no_image'"),
        ("patient_id file label source", "'file'"),
        ("a.png positive cohen", "file name"),
    ],
)
def test_bad_rows(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_row(text)


def test_a_list_with_everything_wrong(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(
        "\ufeffp1 a.png positive rnsa\n"
        "\n"
        "p1 a.png positive rsna\n"
        "p2 a.png positive rsna\n"
        "p1 a.png negative rsna\n"
        "short row\n"
        "p3 ../../etc/b.png negative cohen\n"
        "p4 c.png negative\n",
        encoding="utf-8",
    )
    read = read_list(path)
    assert [(r.patient, r.file, r.source, r.line) for r in read.rows] == [
        ("p1", "a.png", "rsna", 1),
        ("p4", "c.png", "", 8),
    ]
    told = {f.where.rpartition(":")[2]: f for f in read.findings if f.level == "error"}
    assert set(told) == {"4", "5", "6", "7"}
    assert "otherwise than in line 1" in told["4"].what
    assert "2 columns" in told["6"].what
    assert "plain name" in told["7"].what
    assert all("\n" not in f.line() for f in read.findings)
    infos = [f.what for f in read.findings if f.level == "info"]
    assert infos == ["1 repeated rows left out", "1 rows say rnsa for rsna"]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "no rows"), (b"\n \n", "no rows"), (b"p a.png \xff\xfe", "UTF-8"), (None, "read")],
)
def test_unreadable_lists(tmp_path: Path, body: bytes | None, words: str) -> None:
    path = tmp_path / "train.txt"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(DataError, match=words) as caught:
        read_list(path)
    assert "train.txt" in str(caught.value)


def test_versions_are_named_as_the_authors_name_them(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for name in (
        "train.txt",
        "test.txt",
        "labels/train_COVIDx9B.txt",
        "labels/test_COVIDx9B.txt",
        "labels/train_COVIDx_CXR-3B.txt",
        "labels/test_COVIDx8A.txt",
        "labels/readme.txt",
    ):
        (tmp_path / name).write_text("x")
    found = find_lists((tmp_path, tmp_path / "labels", tmp_path / "nowhere"))
    assert {v: list(parts) for v, parts in found.items()} == {
        "": ["train", "test"],
        "9B": ["train", "test"],
        "CXR-3B": ["train"],  # 8A has a test list only, which is no version to train on
    }
    assert version_of("covidx9a") == "9a"


def test_a_named_list_brings_its_siblings(tmp_path: Path) -> None:
    for name in ("train_pnemunia.txt", "test_pnemunia.txt", "train.txt"):
        (tmp_path / name).write_text("x")
    found = siblings(tmp_path / "train_pnemunia.txt")
    assert {p: f.name for p, f in found.items()} == {
        "train": "train_pnemunia.txt",
        "test": "test_pnemunia.txt",
    }
    with pytest.raises(DataError, match="no such label list"):
        siblings(tmp_path / "train_x.txt")
    with pytest.raises(DataError, match="train_<version>"):
        siblings(tmp_path / "test_pnemunia.txt")
