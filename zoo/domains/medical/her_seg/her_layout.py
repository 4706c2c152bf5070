"""The official layout of HER-Seg: pre-sized pictures and masks, and a split json.

    <root>/image_1024/<id>.png
    <root>/mask_1024/<id>.png, or mask_1024_<target>/<id>.png for one of several targets
    <root>/<data set>_data_split.json

Organs of CT slices (`<root>/all`) have a mask folder each and two lists, `train_data_split.json`
and `test_data_split.json`, keyed by the organ's code. The official evaluation scores both lists;
here the first one trains and the second one tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from zoo.data import read_json
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.folders import subfolders
from zoo.domains.medical.her_seg.found import Found, picture_of
from zoo.domains.medical.her_seg.lists import first_dot, last_part, shown
from zoo.domains.medical.her_seg.pairing import Truth
from zoo.errors import DataError
from zoo.task import Finding

_IMAGES = re.compile(r"image_\d+")
_MASKS = re.compile(r"mask_\d+(?:_(.+))?")
_SLICE = re.compile(r"(.+?)[_-]*slice[_-]?\d+$", re.IGNORECASE)
_ORGAN_LISTS = {"train": "train_data_split.json", "test": "test_data_split.json"}


def find_her(root: Path, data: SegData) -> Found | None:
    """Pictures of the official layout; the split json is read with the others' lists.

    Raises:
        DataError: `data.target` names no mask folder, or is needed and missing.
    """
    top = root / "all" if (root / "all").is_dir() else root
    images = next((p for p in subfolders(top) if _IMAGES.fullmatch(p.name)), None)
    if images is None:
        return None
    organs = _organ_lists(root, top)
    if organs:
        return _organs(root, top, images, organs, data.target)
    masks = _mask_folder(top, data.target)
    # The official loader takes any value above 0.
    thing = data.target or "foreground"
    found = Found("her", root, [], key=first_dot, thing=thing, threshold=0)
    for path in sorted(images.glob("*.png")):
        if path.name.startswith("."):
            continue
        name = first_dot(path.name)
        if path.stem != name:
            told = "the official layout cuts names at their first dot"
            remedy = f"rename it to {path.stem.replace('.', '_')}.png, and in the list"
            found.findings.append(Finding("error", told, str(path), remedy))
            continue
        mask = masks / path.name
        truth = Truth((mask,)) if mask.is_file() else None
        found.pictures.append(picture_of(name, path, truth, None, slice_group(name)))
        if truth is None:
            found.lacking[name] = f"{path}: no mask found for it in {masks}"
    return found


def slice_group(name: str) -> str:
    """The volume a slice was cut from, which must not be in two splits; else the name itself.

    >>> slice_group("case0005_slice012"), slice_group("img7")
    ('case0005', 'img7')
    """
    told = _SLICE.fullmatch(name)
    return told[1] if told else name


def _mask_folder(top: Path, target: str | None) -> Path:
    found: dict[str, Path] = {}
    for path in subfolders(top):
        told = _MASKS.fullmatch(path.name)
        if told:
            found[told[1] or ""] = path
    by_name = {path.name: path for path in found.values()}
    if target is not None:
        folder = by_name.get(target) or found.get(target)
        if folder is None:
            have = ", ".join(by_name) or "none"
            msg = f"data.target={target}: there is no mask folder of it in {top}; found: {have}"
            raise DataError(msg)
        return folder
    if len(found) > 1:
        msg = f"{top}: several mask folders ({', '.join(by_name)}); choose one by data.target"
        raise DataError(msg)
    if not found:
        msg = f"{top}: pictures of the official layout, but no folder such as mask_1024 beside them"
        raise DataError(msg)
    return next(iter(found.values()))


# -- organs -------------------------------------------------------------------------------------

Lists = Mapping[str, Mapping[str, list[str]]]


def _organ_lists(root: Path, top: Path) -> Lists:
    """Part -> organ -> names, where both lists are there."""
    found: dict[str, Mapping[str, list[str]]] = {}
    for part, name in _ORGAN_LISTS.items():
        path = next((f / name for f in (root, top) if (f / name).is_file()), None)
        if path is None:
            return {}
        body = read_json(path)
        if not isinstance(body, dict) or not all(isinstance(v, list) for v in body.values()):
            msg = f"{path}: expected a list of names under each organ's code"
            raise DataError(msg)
        found[part] = {str(k): [last_part(str(n), path) for n in v] for k, v in body.items()}
    return found


def _organs(root: Path, top: Path, images: Path, lists: Lists, target: str | None) -> Found:
    codes = sorted(lists["train"])
    if target not in codes:
        msg = f"{root}: masks of several organs; choose one by data.target: {', '.join(codes)}"
        raise DataError(msg)
    masks = _organ_masks(top, target)
    found = Found("her", root, [], key=first_dot, thing=target, threshold=0)
    missing = []
    for part, by_organ in lists.items():
        for listed in by_organ.get(target, []):
            name = first_dot(listed)
            image, mask = images / f"{name}.png", masks / f"{name}.png"
            if not image.is_file():
                missing.append(name)
                continue
            truth = Truth((mask,)) if mask.is_file() else None
            found.pictures.append(picture_of(name, image, truth, part, slice_group(name)))
            if truth is None:
                found.lacking[name] = f"{image}: no mask found for it in {masks}"
    if missing:
        told = f"{len(missing)} listed pictures are not there ({shown(missing)})"
        found.findings.append(Finding("error", told, str(images)))
    return found


def _organ_masks(top: Path, target: str) -> Path:
    names = {p.name.lower(): p for p in subfolders(top)}
    wanted = (f"mask_1024_{target}", f"mask_{target}", f"{target}_mask", target)
    for name in wanted:
        if name in names:
            return names[name]
    ends = [p for n, p in names.items() if n.startswith("mask") and n.endswith(f"_{target}")]
    if len(ends) == 1:
        return ends[0]
    msg = f"{top}: no mask folder of '{target}'; expected one named {' or '.join(wanted)}"
    raise DataError(msg)
