"""nnU-Net's folders with pictures instead of volumes: png, tif or bmp files and a dataset.json.

    imagesTr/<case>_0000.png (a file a channel; colour pictures are one file), labelsTr/<case>.png,
    imagesTs, labelsTs; splits_final.json, if there are folds

Labels are consecutive class numbers. In the first version of `dataset.json` `labels` maps numbers
to names, in the second one names to numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from zoo.data import read_json
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.found import Found
from zoo.domains.medical.her_seg.images import IMAGE_SUFFIXES, images_in
from zoo.domains.medical.her_seg.lists import shown
from zoo.domains.medical.her_seg.nnunet import read_folds
from zoo.domains.medical.her_seg.pictures import Picture
from zoo.errors import DataError
from zoo.task import Finding

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def find_nnunet(root: Path, data: SegData) -> Found | None:
    """Pictures of an nnU-Net folder; None where its files are volumes.

    Raises:
        DataError: `dataset.json` does not say what the labels are.
    """
    path = root / "dataset.json"
    if not os.path.lexists(path) or not (root / "imagesTr").is_dir():
        return None
    body = read_json(path)
    if not isinstance(body, dict):
        msg = f"{path}: expected a mapping with 'labels'"
        raise DataError(msg)
    files = images_in(root / "imagesTr")
    ending = str(body.get("file_ending", files[0].suffix if files else "")).lower()
    if ending not in IMAGE_SUFFIXES:
        return None
    usual = {} if data.labels else _labels(body.get("labels"), path)
    found = Found("nnunet", root, [], usual=usual)
    for images, labels, part in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        if (root / images).is_dir():
            _gather(found, root / images, root / labels, ending, part)
    _fold(found, data)
    return found


def _fold(found: Found, data: SegData) -> None:
    """Give pictures the parts of a fold, whose `val` is the test where there are no `labelsTs`."""
    path = data.split or found.root / "splits_final.json"
    folds = read_folds(path)
    if folds is None:
        return
    if data.fold >= len(folds):
        msg = f"data.fold={data.fold}: {path} has folds 0 to {len(folds) - 1}"
        raise DataError(msg)
    tested = any(p.part == "test" for p in found.pictures)
    parts = dict.fromkeys(folds[data.fold][0], "train")
    parts |= dict.fromkeys(folds[data.fold][1], "val" if tested else "test")
    strange = sorted(set(parts) - {p.id for p in found.pictures})
    if strange:
        msg = f"{path}: names pictures that are not there: {shown(strange)}"
        raise DataError(msg)
    found.settled = True
    found.pictures = [
        p if p.part == "test" else replace(p, part=parts[p.id])
        for p in found.pictures
        if p.part == "test" or p.id in parts
    ]


def _labels(body: object, path: Path) -> Mapping[str, tuple[int, ...]]:
    if not isinstance(body, dict) or not body:
        msg = f"{path}: 'labels' is missing; it maps class names to the numbers in masks"
        raise DataError(msg)
    found: dict[str, tuple[int, ...]] = {}
    for key, value in body.items():
        name, number = (value, key) if str(key).isdecimal() else (key, value)
        numbers = number if isinstance(number, list) else [number]
        if not all(str(n).isdecimal() for n in numbers):
            msg = f"{path}: label '{name}' has no whole number"
            raise DataError(msg)
        if str(name).lower() == "ignore":
            msg = (
                f"{path}: has an 'ignore' label, which says that pixels are not annotated; set "
                "data.labels and name its value under 'background' to take them as background"
            )
            raise DataError(msg)
        found[str(name)] = tuple(int(n) for n in numbers)
    found.pop("background", None)
    taken = [n for numbers in found.values() for n in numbers]
    if len(set(taken)) < len(taken):
        msg = f"{path}: regions that overlap; name each value's class in data.labels"
        raise DataError(msg)
    return found


def _gather(found: Found, images: Path, labels: Path, ending: str, part: str | None) -> None:
    channels: dict[str, dict[int, Path]] = {}
    for path in images_in(images):
        told = _CHANNEL.fullmatch(path.stem)
        if path.suffix.lower() != ending:
            continue
        if told is None:
            text = "the name has no channel number such as _0000"
            found.findings.append(Finding("error", text, str(path)))
            continue
        channels.setdefault(told[1], {})[int(told[2])] = path
    if not labels.is_dir():
        text = f"{len(channels)} pictures have no labels and are not used"
        found.findings.append(Finding("info", text, str(images)))
        return
    for name, planes in sorted(channels.items()):
        mask = labels / f"{name}{ending}"
        image = tuple(planes[k] for k in sorted(planes))
        masks = (mask,) if mask.is_file() else ()
        found.pictures.append(Picture(name, name, image, masks, part=part))
        if not masks:
            found.lacking[name] = f"{image[0]}: there is no {mask.name} in {labels}"
