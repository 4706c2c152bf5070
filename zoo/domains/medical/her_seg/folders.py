"""Folders of pictures beside folders of masks, whatever they are called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.domains.medical.her_seg.cases import part_of
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.found import Found, picture_of
from zoo.domains.medical.her_seg.images import images_in, is_image, stems
from zoo.domains.medical.her_seg.lists import part_named, shown, split_lists
from zoo.domains.medical.her_seg.pairing import Truth, matched, truths_in, without_tail
from zoo.errors import DataError
from zoo.task import Finding

# Names in lower case without punctuation, in order of preference. DRIVE has its masks in
# `1st_manual`, and a field of view in `mask`.
IMAGES = (
    *("images", "image", "imgs", "img", "original", "originals", "input", "inputs", "pictures"),
    *("photos", "cxrpng", "trainimages", "trainingimages"),
)
MASKS = (
    *("1stmanual", "manual1", "masks", "groundtruth", "gt", "gts", "labels", "label"),
    *("annotations", "annotation", "segmentations", "segmentation", "seg", "mask", "manual"),
)
_DEEPEST = 3  # folders between the root and a folder of pictures


@dataclass(frozen=True)
class Place:
    """A folder of pictures and the folder of their masks.

    Attributes:
        images: The pictures.
        masks: The masks; None where there are only pictures.
    """

    images: Path
    masks: Path | None


def plain(name: str) -> str:
    """A folder's name without case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, hidden ones left out, sorted.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        msg = f"{folder}: cannot be listed ({error.strerror})"
        raise DataError(msg) from None


def child(folder: Path, names: Sequence[str]) -> Path | None:
    """The subfolder of the first of some plain names that is there."""
    by_name = {plain(p.name): p for p in reversed(subfolders(folder))}
    return next((by_name[name] for name in names if name in by_name), None)


def find_folders(root: Path, data: SegData) -> Found | None:
    """Pictures and masks by folder names, or in the folders that `data.images`, `data.masks` name.

    Raises:
        DataError: A named folder is not there, or two files have one stem.
    """
    named = bool(data.images or data.masks)
    places = _named(root, data) if named else list(_places(root, root, 0))
    if not named and _deeper(root, places):
        return None
    if any(plain(p.masks.name) == "1stmanual" for p in places if p.masks):
        # A field of view is no truth.
        view = [p for p in places if p.masks and plain(p.masks.name) == "mask"]
        places = [Place(p.images, None) if p in view else p for p in places]
    if not any(p.masks for p in places):
        return None
    found = Found("folders", root, [])
    for place in places:
        _gather(found, place, many=len(places) > 1)
    _unique(found)
    return found if found.pictures else None


def _deeper(root: Path, places: Sequence[Place]) -> bool:
    """Whether a folder in this one is the data set, or several are, each with its own list."""
    tops = {place.images.relative_to(root).parts[0] for place in places}
    if any(place.images.parent == root for place in places):
        return False
    if len(tops) == 1:
        return part_named(next(iter(tops))) is None
    return any(split_lists(root / top) for top in tops)


def _named(root: Path, data: SegData) -> list[Place]:
    if not (data.images and data.masks):
        msg = "data.images and data.masks: name both folders, or none and they are found"
        raise DataError(msg)
    images, masks = root / data.images, root / data.masks
    for key, folder in (("data.images", images), ("data.masks", masks)):
        if not folder.is_dir():
            msg = f"{key}: there is no folder {folder}"
            raise DataError(msg)
    return [Place(images, masks)]


def _places(root: Path, folder: Path, depth: int) -> Iterator[Place]:
    images, masks = child(folder, IMAGES), child(folder, MASKS)
    if images is not None and (masks is not None or folder != root):
        yield Place(images, masks)
    if depth >= _DEEPEST or (images is not None and masks is not None):
        return
    for path in subfolders(folder):
        if path not in (images, masks):
            yield from _places(root, path, depth + 1)


def _tree(folder: Path) -> list[Path]:
    """Folders of pictures: this one and those below, such as `train` and `val`."""
    return [folder, *(p for p in sorted(folder.rglob("*")) if p.is_dir() and p.name[0] != ".")]


def _gather(found: Found, place: Place, many: bool) -> None:
    inner = [p for p in _tree(place.images) if images_in(p)]
    for images in inner:
        below = images.relative_to(place.images)
        part = part_of(images / "_", found.root)
        masks = place.masks / below if place.masks is not None else None
        truths = truths_in(masks) if masks is not None and masks.is_dir() else {}
        if below == Path():
            # Folders of the same name on both sides hold pictures of their own.
            shared = {p.name for p in subfolders(images)}
            truths = {name: t for name, t in truths.items() if name not in shared}
        by_stem = stems(images_in(images))
        pairs = matched(by_stem, truths)
        if not pairs:
            told = f"{len(by_stem)} pictures have no masks beside them and are not used"
            found.findings.append(Finding("info", told, str(images)))
            continue
        prefix = _prefix(images, found.root) if many or below != Path() else ""
        # Folders that are no parts are taken for patients or clips.
        group = "/".join(p for p in below.parts if part_named(p) is None) or None
        for stem, path in sorted(by_stem.items()):
            name = f"{prefix}{stem}"
            found.pictures.append(picture_of(name, path, pairs.get(stem), part, group))
            if stem not in pairs:
                found.lacking[name] = f"{path}: no mask found for it in {masks}"
        _idle(found, truths, pairs, masks)


def _idle(
    found: Found, truths: dict[str, Truth], pairs: dict[str, Truth], masks: Path | None
) -> None:
    used = {path for truth in pairs.values() for path in truth.files}
    idle = [
        name
        for name, truth in truths.items()
        if truth.files and not used & set(truth.files) and any(map(is_image, truth.files))
    ]
    if idle:
        told = f"{len(idle)} masks belong to no picture ({shown(idle)})"
        found.findings.append(Finding("info", told, str(masks)))


def _prefix(images: Path, root: Path) -> str:
    """What tells pictures of several folders apart: the folders that are not just `images`."""
    parts = [p for p in images.relative_to(root).parts if plain(p) not in IMAGES or images == root]
    return "/".join(parts) + "/" if parts else ""


def _unique(found: Found) -> None:
    """Ids without folders where stems alone tell pictures apart."""
    short = Counter(p.id.rpartition("/")[2] for p in found.pictures)
    if any(count > 1 for count in short.values()):
        return
    renamed = {p.id: p.id.rpartition("/")[2] for p in found.pictures}
    found.pictures = [
        replace(p, id=renamed[p.id], group=renamed[p.id] if p.group == p.id else p.group)
        for p in found.pictures
    ]
    found.lacking = {renamed[k]: v for k, v in found.lacking.items()}


def find_beside(folder: Path) -> dict[str, tuple[Path, Truth | None]]:
    """Pictures whose masks lie in the same folder under the same name and a tail.

    Returns:
        Stem -> the picture and its masks.
    """
    files = {stem: Truth((path,)) for stem, path in stems(images_in(folder)).items()}
    tailed = {name: truth for name, truth in files.items() if without_tail(name) != name}
    plainly = [name for name in files if name not in tailed]
    pairs = matched(plainly, tailed)
    return {stem: (files[stem].files[0], pairs.get(stem)) for stem in plainly}
