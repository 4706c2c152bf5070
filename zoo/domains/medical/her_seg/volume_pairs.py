"""Which volume file is an image and which its labels, by folders and names.

Data sets of volumes come as two folders with files of one stem, as one folder a patient with the
labels among the images, or as files side by side with a tail such as `_seg`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zoo.domains.medical.her_seg.cases import Part, only, part_of, sorted_paths
from zoo.errors import DataError

IMAGE_FOLDERS = {
    *("image", "images", "img", "imgs", "imagestr", "volume", "volumes", "scan", "scans"),
    *("frame", "frames", "jpegimages", "original", "rgb", "input", "inputs"),
}
LABEL_FOLDERS = {
    *("label", "labels", "labelstr", "mask", "masks", "seg", "segmentation", "segmentations"),
    *("gt", "groundtruth", "annotation", "annotations", "truth"),
}
_LABEL_WORDS = {
    *("seg", "segmentation", "segmentations", "label", "labels", "mask", "masks", "gt", "truth"),
    *("groundtruth", "annotation", "annotations", "ot"),  # OT: BraTS 2013 and 2015
}
# Masks of where to look, not of what is segmented.
_ASIDE = {"brain", "brainmask", "body", "bodymask", "roi", "foreground"}
# A channel's number at the end of nnU-Net's image names.
_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class Pair:
    """An image with its labels.

    Attributes:
        name: Unique: the folders below the root, and the stem where a folder holds several.
        group: The same without folders that are called after a split: the patient.
        image: Image file.
        label: Its labels, or None.
        part: The split a folder is named after.
    """

    name: str
    group: str
    image: Path
    label: Path | None
    part: Part | None


def words(name: str) -> list[str]:
    """The words of a name in small letters: `FlairSub_seg2` has flair, sub, seg and 2."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [w.lower() for w in found]


def is_label(stem: str) -> bool:
    """Whether a name says that the file holds labels."""
    have = set(words(stem))
    return bool(have & _LABEL_WORDS) and not have & _ASIDE


def base(stem: str) -> str:
    """What an image's and its labels' names have in common."""
    bare = _CHANNEL.sub("", stem)
    return " ".join(w for w in words(bare) if w not in _LABEL_WORDS)


def is_images(folder: Path) -> bool:
    """Whether a folder is called as folders of images are."""
    return _bare(folder.name) in IMAGE_FOLDERS


def is_labels(folder: Path) -> bool:
    """Whether a folder is called as folders of labels are."""
    return _bare(folder.name) in LABEL_FOLDERS


def _bare(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def pairs_by_pattern(
    root: Path, images: str, masks: str | None, stem: Callable[[Path], str]
) -> list[Pair]:
    """Pairs of the files that two patterns below the root match.

    Those in one folder belong together where it holds one of each; otherwise names decide.

    Raises:
        DataError: A pattern matches nothing or leads out of the root, an image has no labels or
            labels have no image.
    """
    found = _matching(root, images, "data.images")
    labels = _matching(root, masks, "data.masks") if masks else []
    if not labels:
        return [_pair(root, p, None, stem, several=_several(found, p)) for p in found]
    left = set(labels)
    pairs = []
    for image in found:
        near = [p for p in labels if p.parent == image.parent]
        if len(near) != 1 or _several(found, image):
            near = [p for p in near or labels if base(stem(p)) == base(stem(image))]
        if len(near) != 1:
            told = "no labels" if not near else f"{len(near)} label files"
            msg = f"{image}: {told} by data.masks='{masks}'; make the pattern narrower or wider"
            raise DataError(msg)
        left.discard(near[0])
        pairs.append(_pair(root, image, near[0], stem, several=_several(found, image)))
    if left:
        msg = f"{min(left)}: no image by data.images='{images}'; make the patterns agree"
        raise DataError(msg)
    return pairs


def _matching(root: Path, pattern: str, key: str) -> list[Path]:
    plain = PurePosixPath(pattern)
    if plain.is_absolute() or ".." in plain.parts:
        msg = f"{key}='{pattern}': expected a pattern below data.root"
        raise DataError(msg)
    if (root / pattern).is_dir():
        pattern = f"{pattern}/*"
    found = sorted_paths([p for p in root.glob(pattern) if p.is_file()])
    if not found:
        msg = f"{root}: no file matches {key}='{pattern}'; write it as in 'train/*/*flair.nii.gz'"
        raise DataError(msg)
    return found


def _several(found: Sequence[Path], path: Path) -> bool:
    return sum(p.parent == path.parent for p in found) > 1


def pairs_in(root: Path, files: Sequence[Path], stem: Callable[[Path], str]) -> list[Pair]:
    """Pairs among files below a root, by folders' and files' names.

    Args:
        root: Folder of the data set.
        files: All volume files below it.
        stem: The name of a file without its ending.

    Raises:
        DataError: A folder holds several images or labels that names don't tell apart.
    """
    folders: dict[Path, list[Path]] = {}
    for path in sorted_paths(list(files)):
        folders.setdefault(path.parent, []).append(path)
    pairs: list[Pair] = []
    for folder in sorted(folders):
        if is_labels(folder):
            continue
        other = _label_folder(folder, set(folders))
        if other is not None:
            pairs += _across(root, folders[folder], folders[other], stem)
        else:
            pairs += _within(root, folder, folders[folder], stem)
    return pairs


def _label_folder(folder: Path, folders: set[Path]) -> Path | None:
    """The folder of labels beside a folder of images."""
    found = [f for f in folders if f.parent == folder.parent and is_labels(f)]
    if not found or not is_images(folder):
        return None
    tail = _bare(folder.name).removeprefix("images")  # imagesTr goes with labelsTr
    exact = [f for f in found if tail and _bare(f.name) == f"labels{tail}"]
    return min(exact or found)


def _across(
    root: Path, images: Sequence[Path], labels: Sequence[Path], stem: Callable[[Path], str]
) -> list[Pair]:
    by_base: dict[str, Path] = {}
    for path in labels:
        other = by_base.setdefault(base(stem(path)), path)
        if other is not path:
            msg = f"{path} and {other.name} are labels of one name; delete or rename one of them"
            raise DataError(msg)
    pairs = []
    for path in images:
        label = by_base.pop(base(stem(path)), None)
        pairs.append(_pair(root, path, label, stem, several=True))
    if by_base:
        label = min(by_base.values())
        msg = f"{label}: no image of that name in {images[0].parent}; delete it or add the image"
        raise DataError(msg)
    return pairs


def _within(
    root: Path, folder: Path, files: Sequence[Path], stem: Callable[[Path], str]
) -> list[Pair]:
    """The pairs of one folder: a patient's, or files side by side."""
    labels = [p for p in files if is_label(stem(p))]
    aside = [p for p in files if set(words(stem(p))) & _ASIDE and p not in labels]
    images = [p for p in files if p not in labels and p not in aside]
    if not labels:
        return [_pair(root, p, None, stem, several=len(images) > 1) for p in images]
    if len(labels) == 1 and len(images) == 1:
        return [_pair(root, images[0], labels[0], stem, several=False)]
    pairs = []
    for label in labels:
        near = [p for p in images if base(stem(p)) == base(stem(label))]
        if len(near) != 1:
            shown = only([p.name for p in (images if len(images) > 1 else labels)], 4)
            key = "data.images" if len(images) > 1 else "data.masks"
            msg = (
                f"{folder}: {len(images)} images and {len(labels)} label files ({shown}); choose "
                f"by patterns such as {key}='*/{(images or labels)[0].name}'"
            )
            raise DataError(msg)
        pairs.append(_pair(root, near[0], label, stem, several=True))
    return pairs


def _pair(
    root: Path, image: Path, label: Path | None, stem: Callable[[Path], str], *, several: bool
) -> Pair:
    inner = [p for p in image.parent.relative_to(root).parts if _bare(p) not in IMAGE_FOLDERS]
    last = _CHANNEL.sub("", stem(image))
    kept = [p for p in inner if part_of(Path(p, "x"), Path()) is None]
    loose = several or not kept
    # A patient's folder holds one image, or files that are called after it; others are loose.
    whose = bool(kept) and (not several or last.lower().startswith(kept[-1].lower()))
    group = "/".join(kept if whose else [*kept, last])
    return Pair(
        "/".join([*inner, last] if loose else inner), group, image, label, part_of(image, root)
    )
