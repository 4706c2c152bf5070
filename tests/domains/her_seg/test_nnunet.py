"""nnU-Net and Decathlon folders: both versions of dataset.json, channels, folds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.domains.medical.her_seg import data
from zoo.domains.medical.her_seg.nnunet import is_nnunet, read_dataset
from zoo.domains.medical.her_seg.video import stacks_from
from zoo.domains.medical.her_seg.volumes import volume_cases, volume_layout
from zoo.errors import ConfigError, DataError

from .volume_files import configure, nifti

RNG = np.random.default_rng(1)


def image() -> np.ndarray:
    return RNG.normal(100, 10, (6, 5, 4)).astype(np.float32)


def labels(*values: int) -> np.ndarray:
    found = np.zeros((6, 5, 4), np.uint8)
    for i, value in enumerate(values):
        found[i] = value
    return found


def write(root: Path, names: list[str], body: dict[str, Any], channels: int = 1) -> None:
    for name in names:
        for c in range(channels):
            nifti(root / "imagesTr" / f"{name}_{c:04d}.nii.gz", image())
        nifti(root / "labelsTr" / f"{name}.nii.gz", labels(1, 2))
    (root / "dataset.json").write_text(json.dumps(body))


V2: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "file_ending": ".nii.gz",
}
V1: dict[str, Any] = {
    "modality": {"0": "T1", "1": "T2"},
    "labels": {"0": "background", "1": "liver", "2": "tumour"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}


@pytest.mark.parametrize(("body", "channels"), [(V2, 1), (V1, 2)])
def test_both_versions_of_the_description(
    tmp_path: Path, body: dict[str, Any], channels: int
) -> None:
    write(tmp_path, ["c10", "c2"], body, channels)
    assert is_nnunet(tmp_path)
    assert volume_layout(tmp_path) == "nnunet"
    cases = volume_cases(tmp_path, configure(tmp_path))
    assert [c.name for c in cases] == ["c2", "c10"]
    assert cases[0].classes.names == ("liver", "tumour")
    assert [c.part for c in cases] == [None, None]
    assert len(cases[0].files) == channels + 1
    stack = cases[0].open()
    assert sorted(np.unique(np.stack([stack.truth(i) for i in range(4)]))) == [0, 1, 2]
    picture = stack.picture(0)
    # The last channel fills the picture's three.
    assert np.array_equal(picture[..., 1], picture[..., 2])
    assert np.array_equal(picture[..., 0], picture[..., 1]) == (channels == 1)


def test_the_decathlon_keeps_channels_in_a_fourth_axis(tmp_path: Path) -> None:
    write(tmp_path, [], V1)
    nifti(tmp_path / "imagesTr" / "BRATS_001.nii.gz", np.stack([image(), image()], axis=-1))
    nifti(tmp_path / "labelsTr" / "BRATS_001.nii.gz", labels(1))
    (case,) = volume_cases(tmp_path, configure(tmp_path))
    assert case.look(True) == []
    assert case.open().picture(0).shape == (5, 6, 3)
    nifti(tmp_path / "imagesTr" / "BRATS_001.nii.gz", np.stack([image()] * 3, axis=-1))
    assert "four axes" in case.look(False)[0].what


def test_test_folders_and_unlabelled_images(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], V2)
    for name in ("x", "y"):
        nifti(tmp_path / "imagesTs" / f"{name}_0000.nii.gz", image())
    nifti(tmp_path / "imagesTr" / "bare_0000.nii.gz", image())
    cases = {c.name: c for c in volume_cases(tmp_path, configure(tmp_path))}
    # imagesTs without labels is for prediction.
    assert {n: (c.part, c.labelled) for n, c in cases.items()} == {
        "a": (None, True),
        "b": (None, True),
        "bare": (None, False),
    }
    nifti(tmp_path / "labelsTs" / "x.nii.gz", labels(2))
    cases = {c.name: c for c in volume_cases(tmp_path, configure(tmp_path))}
    assert {n: c.part for n, c in cases.items()} == {
        "a": "train",
        "b": "train",
        "bare": "train",
        "x": "test",
    }
    splits = data.open_splits(configure(tmp_path, val_fraction=0))
    assert {name: len(split.ids) for name, split in splits.items()} == {"train": 8, "test": 1}


def test_folds_of_splits_final(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    write(tmp_path, names, V2)
    folds = [{"train": [n for n in names if n != held], "val": [held]} for held in names]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    for fold, held in enumerate(names):
        cases = volume_cases(tmp_path, configure(tmp_path, fold=fold))
        assert {c.name for c in cases if c.part == "test"} == {held}
        assert {c.name for c in cases if c.part == "train"} == set(names) - {held}
    with pytest.raises(DataError, match=r"data.fold=3: there are folds 0 to 2"):
        volume_cases(tmp_path, configure(tmp_path, fold=3))
    # With labels for the test images, the fold's held-out cases select.
    nifti(tmp_path / "imagesTs" / "x_0000.nii.gz", image())
    nifti(tmp_path / "labelsTs" / "x.nii.gz", labels(2))
    cases = volume_cases(tmp_path, configure(tmp_path, fold=1))
    assert {c.name: c.part for c in cases} == {"a": "train", "b": "val", "c": "train", "x": "test"}
    folds[0]["val"] = ["gone"]
    other = tmp_path / "elsewhere.json"
    other.write_text(json.dumps(folds))
    with pytest.raises(DataError, match="names cases not there: gone"):
        volume_cases(tmp_path, configure(tmp_path, split=other))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"channel_names": {"0": "CT"}}, "expected an object with 'labels'"),
        ({**V2, "labels": {"background": 0}}, "no class besides the background"),
        ({**V2, "labels": {"background": 0, "a": "x"}}, "not as nnU-Net writes them"),
        ({**V2, "labels": {"whole": [1, 2], "core": 2}}, "belongs to two classes"),
        ({**V2, "labels": {**V2["labels"], "ignore": 3}}, "'ignore' label"),
        ({**V2, "file_ending": ".mha"}, "files end in '.mha'"),
        ({**V2, "dataset": {"a": {"images": ["../x.nii.gz"], "label": "y"}}}, "leads out of"),
        ({**V2, "dataset": {"a": {"images": []}}}, "needs 'images' and 'label'"),
    ],
)
def test_what_the_description_lacks_is_told(
    tmp_path: Path, body: dict[str, Any], told: str
) -> None:
    write(tmp_path, ["a"], body)
    with pytest.raises(DataError, match=told) as caught:
        volume_cases(tmp_path, configure(tmp_path))
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_no_json(tmp_path: Path) -> None:
    write(tmp_path, ["a"], V2)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_dataset(tmp_path)


def test_files_listed_one_by_one(tmp_path: Path) -> None:
    nifti(tmp_path / "scans" / "one.nii.gz", image())
    nifti(tmp_path / "truth" / "one.nii.gz", labels(1))
    entry = {"images": ["scans/one.nii.gz"], "label": "truth/one.nii.gz"}
    write(tmp_path, ["unused"], {**V2, "dataset": {"case": entry}})
    (case,) = volume_cases(tmp_path, configure(tmp_path))
    assert case.name == "case"
    assert case.look(True) == []


def test_a_missing_channel_is_told(tmp_path: Path) -> None:
    write(tmp_path, ["a"], V1, 3)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="'a' lacks channel 0001"):
        volume_cases(tmp_path, configure(tmp_path))


def test_one_class_is_chosen_by_target(tmp_path: Path) -> None:
    write(tmp_path, ["a"], V2)
    (case,) = volume_cases(tmp_path, configure(tmp_path, target="tumour"))
    assert case.classes.names == ("tumour",)
    stack = case.open()
    assert sorted(np.unique(np.stack([stack.truth(i) for i in range(4)]))) == [0, 1]
    # The written file has the value of the class, not its index.
    assert case.classes.written == (2,)


def test_channels_beside_a_given_file_are_found(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], V1, 2)
    facts = {"classes": ["liver", "tumour"], "kind": "volume"}
    (stack,) = stacks_from([tmp_path / "imagesTr" / "a_0000.nii.gz"], configure(), facts)
    assert stack.id == "a"
    assert len(stack.source.files) == 2
    both = stacks_from([tmp_path / "imagesTr"], configure(), facts)
    assert [s.id for s in both] == ["a", "b"]
    assert all(s.truth(0) is None for s in both)
    # Given as a folder, the adapter finds the same.
    found = data.inputs([tmp_path / "imagesTr"], facts, configure()).stacks
    assert [s.id for s in found] == ["a", "b"]
    assert all(len(s.source.files) == 2 for s in found)
    prompted = configure(predict={"points": [[1, 2, 1]]})
    with pytest.raises(ConfigError, match="are for a single picture"):
        stacks_from([tmp_path / "imagesTr"], prompted, facts)
