import json
from pathlib import Path

import pytest

from zoo.domains.medical.her_seg.lists import find_list, first_dot, plain_stem, read_list
from zoo.errors import DataError


def write(path: Path, body: object) -> Path:
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def test_json_with_the_words_people_use(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"Training": ["a.png"], "valid": ["b"], "test": [], "x": 1})
    assert read_list(path).parts == {"train": ["a.png"], "val": ["b"], "test": []}


def test_json_of_monai(tmp_path: Path) -> None:
    entries = [{"image": "imagesTr/a.png", "label": "labelsTr/a.png"}]
    path = write(tmp_path / "a.json", {"training": entries, "numTraining": 1})
    assert read_list(path).parts == {"train": ["a.png"]}


def test_csv_with_parts_and_patients(tmp_path: Path) -> None:
    text = "Image,Split,Patient\na.png,train,p1\nb,val,p2\nsub/c.jpg,test,\n"
    listing = read_list(write(tmp_path / "a.csv", text))
    assert listing.parts == {"train": ["a.png"], "val": ["b"], "test": ["c.jpg"]}
    assert listing.groups == {"a.png": "p1", "b": "p2"}


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", ["a"], "expected train, valid and test"),
        ("a.json", {"foo": ["a"]}, "found foo"),
        ("a.json", {"train": [3]}, "is no name: '3'"),
        ("a.json", {"train": ["a"], "test": ["a"]}, "'a' is listed twice, in 'train' and 'test'"),
        ("a.json", {"train": ["a", "a"]}, "listed twice, in 'train'"),
        ("a.json", {"test": ["a"]}, "nothing to train on"),
        ("a.json", {"train": [".."]}, "is no file name"),
        ("a.csv", "foo,bar\n1,2\n", "expected a column of names"),
        ("a.csv", "image,split\na,other\n", "line 2: 'other' is no part"),
    ],
)
def test_what_is_wrong_with_a_list_is_one_line(
    tmp_path: Path, name: str, body: object, told: str
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_list(write(tmp_path / name, body))
    assert name in str(caught.value)


def test_paths_in_a_list_lead_nowhere_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"train": ["../../etc/a.png", "C:\\x\\b.png"]})
    assert read_list(path).parts == {"train": ["a.png", "b.png"]}


def test_list_is_found_or_named(tmp_path: Path) -> None:
    assert find_list(tmp_path, None) is None
    first = write(tmp_path / "x_data_split.json", {})
    write(tmp_path / "splits_final.json", [])
    write(tmp_path / "dataset.json", {})
    assert find_list(tmp_path, None) == first
    second = write(tmp_path / "split.csv", "")
    with pytest.raises(DataError, match="several split lists"):
        find_list(tmp_path, None)
    assert find_list(tmp_path, Path("split.csv")) == second
    with pytest.raises(DataError, match="there is no such file"):
        find_list(tmp_path, Path("none.json"))


def test_names_and_stems() -> None:
    assert [plain_stem(n) for n in ("a.png", "a.b.JPG", "a.b", "a")] == ["a", "a.b", "a.b", "a"]
    assert [first_dot(n) for n in ("a.png", "a.b.png", "a")] == ["a", "a", "a"]
