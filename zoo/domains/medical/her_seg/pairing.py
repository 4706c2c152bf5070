"""Pairing pictures with masks by their names, which are seldom quite the same.

    21_training.tif      21_manual1.gif
    ISIC_0000000.jpg     ISIC_0000000_segmentation.png
    benign (1).png       benign (1)_mask.png, benign (1)_mask_1.png
    p003_2.png           p003_2_mask/<one file an object>.png

Names are compared whole first, then without what masks are commonly called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.domains.medical.her_seg.images import images_in, is_image
from zoo.errors import DataError

# What masks are called besides their picture's name.
_TAIL = re.compile(
    r"[_\-. ]+(masks?|segmentation|seg|labels?|gt|ground[_ ]?truth|annotation|lesion|manual1?"
    r"|1stho|anno)([_\-. ]?\d+)?$",
    re.IGNORECASE,
)
_PIECES = re.compile(r"[_\-. ]+[^_\-. ]+")


@dataclass(frozen=True)
class Truth:
    """The mask files of one picture.

    Attributes:
        files: One; several whose union counts; or those of single objects.
        objects: Whether each file is an object: they lie in a folder named after the picture.
    """

    files: tuple[Path, ...]
    objects: bool = False


def truths_in(folder: Path) -> dict[str, Truth]:
    """Mask files in a folder by stem; a folder in it is the objects of one picture.

    Raises:
        DataError: Two files have the same stem, or the folder cannot be listed.
    """
    found: dict[str, Truth] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        msg = f"{folder}: cannot be listed ({error.strerror})"
        raise DataError(msg) from None
    for path in entries:
        if path.is_dir() and not path.name.startswith("."):
            found[path.name] = Truth(tuple(images_in(path)), objects=True)
        elif is_image(path) and not path.is_dir():
            if path.stem in found:
                other = found[path.stem].files[0]
                msg = f"{path} and {other.name} have the same stem; delete or rename one of them"
                raise DataError(msg)
            found[path.stem] = Truth((path,))
    return found


def without_tail(stem: str) -> str:
    """A mask's stem without `_mask`, `_segmentation`, `_manual1` and the like.

    >>> without_tail("benign (1)_mask_1")
    'benign (1)'
    """
    return _TAIL.sub("", stem)


def matched(images: Iterable[str], truths: Mapping[str, Truth]) -> dict[str, Truth]:
    """Masks of pictures: by the same stem, by a known tail, or by tails that all files share.

    Args:
        images: Stems of the pictures.
        truths: Masks by stem, as `truths_in` gives them.

    Returns:
        Picture's stem -> its masks; several files of one picture (`_mask`, `_mask_1`) are joined.
    """
    stems = set(images)
    found: dict[str, list[str]] = {}
    left = []
    for name in truths:
        short = without_tail(name)
        if name in stems:
            found.setdefault(name, []).append(name)
        elif short in stems:
            found.setdefault(short, []).append(name)
        else:
            left.append(name)
    bare = [stem for stem in stems if stem not in found]
    if left and bare:
        for stem, name in _by_common_tails(bare, left).items():
            found.setdefault(stem, []).append(name)
    return {stem: _joined([truths[n] for n in sorted(names)]) for stem, names in found.items()}


def _joined(parts: list[Truth]) -> Truth:
    # A mask of the picture's own name or without number is the whole; numbered ones add to it.
    if any(t.objects for t in parts):
        return next(t for t in parts if t.objects)
    return Truth(tuple(path for t in parts for path in t.files))


def _by_common_tails(stems: list[str], names: list[str]) -> dict[str, str]:
    """Pairs that agree once what all of a side share at the end is cut off."""
    tail, other = common_tail(stems), common_tail(names)
    if not tail and not other:
        return {}
    short = {stem.removesuffix(tail): stem for stem in stems}
    named = {name.removesuffix(other): name for name in names}
    return {stem: named[key] for key, stem in short.items() if key in named}


def common_tail(names: list[str]) -> str:
    """What all names end with, from a separator on; "" for a single name that has nothing known.

    >>> common_tail(["21_training", "22_training"])
    '_training'
    """
    pieces = [list(_PIECES.finditer(name)) for name in names]
    tail = ""
    for back in range(1, min((len(p) for p in pieces), default=0) + 1):
        ends = {name[p[-back].start() :] for name, p in zip(names, pieces, strict=True)}
        if len(ends) > 1 or any(p[-back].start() == 0 for p in pieces):
            break
        tail = ends.pop()
    return "" if any(ch.isdigit() for ch in tail[:2]) and len(names) == 1 else tail
