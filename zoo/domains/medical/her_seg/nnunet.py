"""Folders as nnU-Net and the Medical Segmentation Decathlon lay them out.

`imagesTr/<case>_<channel>.nii.gz` (nnU-Net) or `imagesTr/<case>.nii.gz` with the channels as a
fourth axis (Decathlon), `labelsTr/<case>.nii.gz`, optional `imagesTs` and `labelsTs`, and
`dataset.json` of version 1 (`modality`, labels as value -> name) or 2 (`channel_names`, labels as
name -> value, `file_ending`, optional `dataset` with the files of each case). Folds come from
`splits_final.json`, which nnU-Net keeps with its preprocessed data: copy it beside `dataset.json`
or name it in `data.split`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.data import read_json
from zoo.domains.medical.her_seg.cases import Classes, Part, natural, only
from zoo.domains.medical.her_seg.nifti import SUFFIXES, is_nifti, stem_of
from zoo.errors import DataError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Listed:
    """A case as the folders list it.

    Attributes:
        name: The case.
        images: Its files, one a channel or one with all channels; none if they are missing.
        label: Its labels, or None.
        part: train, val or test, if the folders or folds say so.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None
    part: Part | None


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` says.

    Attributes:
        labels: Class name -> values; `background` is not among them.
        channels: Names of the channels.
        files: Case -> images and label as listed one by one, or empty.
    """

    labels: dict[str, list[int]]
    channels: tuple[str, ...]
    files: dict[str, tuple[tuple[Path, ...], Path]]


def is_nnunet(root: Path) -> bool:
    """Whether a folder has nnU-Net's files, of volumes rather than pictures."""
    if not os.path.lexists(root / "dataset.json") or not (root / "imagesTr").is_dir():
        return False
    return any(is_nifti(p) for p in (root / "imagesTr").iterdir())


def read_dataset(root: Path) -> Dataset:
    """Read `dataset.json`.

    Raises:
        DataError: It is missing, no JSON, lacks labels, or asks for what is not read here: other
            file endings, overlapping regions, an `ignore` label.
    """
    path = root / "dataset.json"
    body = read_json(path)
    if not isinstance(body, dict) or not isinstance(body.get("labels"), dict):
        msg = f"{path}: expected an object with 'labels'; write it as nnU-Net's manual says"
        raise DataError(msg)
    ending = str(body.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        msg = f"{path}: files end in '{ending}'; volumes are read as .nii.gz or .nii, convert them"
        raise DataError(msg)
    named: dict[str, Any] = body.get("channel_names") or body.get("modality") or {"0": "image"}
    try:
        channels = tuple(str(named[key]) for key in sorted(named, key=int))
        labels = _labels(body["labels"])
    except (TypeError, ValueError) as error:
        msg = f"{path}: labels or channels are not as nnU-Net writes them ({error})"
        raise DataError(msg) from None
    if "ignore" in labels:
        msg = (
            f"{path}: has an 'ignore' label, which says that voxels are not annotated; such data "
            "are not supported, set data.labels to take these voxels as background"
        )
        raise DataError(msg)
    Classes.of(labels, path)
    return Dataset(labels, channels, _files(body.get("dataset"), root, path))


def _labels(found: dict[str, Any]) -> dict[str, list[int]]:
    """Name -> values, of either version, without the background."""
    labels: dict[str, list[int]] = {}
    for key, value in found.items():
        if re.fullmatch(r"\d+", str(key)) and isinstance(value, str):  # version 1
            key, value = value, int(key)
        values = [int(v) for v in value] if isinstance(value, list) else [int(value)]
        if str(key).lower() != "background" and values != [0]:
            labels[str(key)] = values
    if not labels:
        msg = "there is no class besides the background"
        raise ValueError(msg)
    return labels


def _files(found: Any, root: Path, path: Path) -> dict[str, tuple[tuple[Path, ...], Path]]:
    if not isinstance(found, dict):
        return {}
    listed = {}
    for name, entry in found.items():
        if not isinstance(entry, dict) or not {"images", "label"} <= entry.keys():
            msg = f"{path}: 'dataset' needs 'images' and 'label' for '{name}'"
            raise DataError(msg)
        images = tuple(_inside(root, text, path) for text in entry["images"])
        listed[str(name)] = images, _inside(root, entry["label"], path)
    return listed


def _inside(root: Path, text: object, path: Path) -> Path:
    name = PurePosixPath(str(text))
    if name.is_absolute() or ".." in name.parts:
        msg = f"{path}: '{name}' leads out of the data set's folder, which is refused"
        raise DataError(msg)
    return root / name


def listed(root: Path, split: Path | None = None, fold: int = 0) -> tuple[Dataset, list[Listed]]:
    """The cases of a data set.

    Without `splits_final.json`, all of `imagesTr` trains where there are `labelsTs`; else nothing
    is said of the parts. With it, the fold's `val` cases are the test where there are no
    `labelsTs`, as in nnU-Net's cross-validation.

    Args:
        root: Folder with `dataset.json`.
        split: A file such as `splits_final.json`, or a list of another form, which is left alone.
        fold: Which fold of it.

    Raises:
        DataError: A file is no JSON or says what nnU-Net doesn't, or a fold names what is
            not there.
    """
    dataset = read_dataset(root)
    if dataset.files:
        train = [Listed(n, i, label, None) for n, (i, label) in dataset.files.items()]
    else:
        train = _folder(root / "imagesTr", root / "labelsTr", None)
    test: list[Listed] = []
    if (root / "labelsTs").is_dir():
        test = [c for c in _folder(root / "imagesTs", root / "labelsTs", "test") if c.label]
    if not train:
        msg = f"{root / 'imagesTr'}: no .nii.gz or .nii file"
        raise DataError(msg)
    folds = read_folds(split or root / "splits_final.json")
    if folds is None:
        part: Part | None = "train" if test else None
        return dataset, [Listed(c.name, c.images, c.label, part) for c in train] + test
    if fold >= len(folds):
        msg = f"data.fold={fold}: there are folds 0 to {len(folds) - 1}"
        raise DataError(msg)
    held: Part = "val" if test else "test"
    parts: dict[str, Part] = dict.fromkeys(folds[fold][0], "train")
    parts |= dict.fromkeys(folds[fold][1], held)
    strange = sorted(set(parts) - {c.name for c in train})
    if strange:
        msg = f"{split or root / 'splits_final.json'}: names cases not there: {only(strange)}"
        raise DataError(msg)
    named = [Listed(c.name, c.images, c.label, parts[c.name]) for c in train if c.name in parts]
    return dataset, named + test


def read_folds(path: Path) -> list[tuple[list[str], list[str]]] | None:
    """(train, val) of each fold; None if there is no such file or it is a list of another form.

    Raises:
        DataError: The file is no JSON.
    """
    if not path.is_file() or path.suffix.lower() != ".json":
        return None
    body = read_json(path)
    if not isinstance(body, list) or not all(
        isinstance(f, dict) and {"train", "val"} <= f.keys() for f in body
    ):
        return None
    return [([str(n) for n in f["train"]], [str(n) for n in f["val"]]) for f in body]


def _folder(images: Path, labels: Path, part: Part | None) -> list[Listed]:
    """Cases of a folder of images and one of labels; images without labels are kept."""
    found = by_case(images)
    listed = []
    for path in _volumes(labels) if labels.is_dir() else []:
        name = stem_of(path)
        listed.append(Listed(name, found.pop(name, ()), path, part))
    listed += [Listed(name, files, None, part) for name, files in found.items()]
    return sorted(listed, key=lambda c: natural(c.name))


def by_case(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Case -> its files in the order of the channels.

    Raises:
        DataError: A channel is missing between others.
    """
    if not folder.is_dir():
        return {}
    return group_channels(_volumes(folder))


def group_channels(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """As `by_case`, of given files."""
    found: dict[str, dict[int, Path]] = {}
    for path in paths:
        match = _CHANNEL.fullmatch(stem_of(path))
        name, number = (match[1], int(match[2])) if match else (stem_of(path), 0)
        if number in found.setdefault(name, {}):
            msg = f"{path}: channel {number} of '{name}' is there twice; delete one of the files"
            raise DataError(msg)
        found[name][number] = path
    for name, channels in found.items():
        lost = sorted(set(range(max(channels) + 1)) - set(channels))
        if lost:
            msg = f"{paths[0].parent}: '{name}' lacks channel {lost[0]:04d}; all are needed"
            raise DataError(msg)
    return {n: tuple(c[i] for i in sorted(c)) for n, c in found.items()}


def all_channels(image: Path) -> tuple[Path, ...]:
    """A volume with the channels beside it, where it is called `<case>_0000`."""
    stem = stem_of(image)
    if not stem.endswith("_0000"):
        return (image,)
    case = stem.removesuffix("0000")
    near = [p for p in _volumes(image.parent) if stem_of(p).startswith(case)]
    return group_channels(near)[case[:-1]]


def is_further(image: Path) -> bool:
    """Whether a file is a further channel of `<case>_0000` beside it."""
    match = _CHANNEL.fullmatch(stem_of(image))
    if match is None or match[2] == "0000":
        return False
    return any((image.parent / f"{match[1]}_0000{suffix}").is_file() for suffix in SUFFIXES)


def _volumes(folder: Path) -> list[Path]:
    kept = [p for p in folder.iterdir() if is_nifti(p) and not p.name.startswith(".")]
    return sorted(kept, key=lambda p: natural(p.name))
