"""Split lists: which pictures train, select and test, from a json or csv file.

A json maps `train`, `valid` (or `val`) and `test` to names; MONAI's form, in which an entry is a
mapping with `image`, is read as well. A csv has a column of names and one that says the part, and
may have one that says the patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from zoo.data import read_csv, read_json
from zoo.domains.medical.her_seg.cases import Part, part_of
from zoo.domains.medical.her_seg.images import IMAGE_SUFFIXES
from zoo.errors import DataError

_NAME_COLUMNS = ("image", "name", "image_id", "imageid", "id", "file", "filename", "stem", "img")
_PART_COLUMNS = ("split", "part", "set", "subset", "partition", "fold")
_GROUP_COLUMNS = ("patient", "patient_id", "patientid", "group", "case", "case_id", "subject")
_ENDINGS = re.compile(r"\.(nii(\.gz)?|(npy\.)?h5|hdf5|npz|mp4|avi|mov|mkv|tiff?)$", re.IGNORECASE)
_ENTRY_KEYS = ("image", "name", "id", "file")


@dataclass(frozen=True)
class Listing:
    """A split list as read.

    Attributes:
        path: The file.
        parts: Part -> names as listed, in order; none twice.
        groups: Name -> patient, where the list tells.
    """

    path: Path
    parts: dict[Part, list[str]]
    groups: dict[str, str] = field(default_factory=dict)


def find_list(root: Path, given: Path | None) -> Path | None:
    """The split list of a data folder.

    Args:
        root: The folder.
        given: `data.split`: a path as it is, or below the folder.

    Raises:
        DataError: The given file is not there, or there are several and none is given.
    """
    if given is not None:
        for path in (given.expanduser(), root / given):
            if path.is_file():
                return path
        msg = f"data.split={given}: there is no such file, here or in {root}"
        raise DataError(msg)
    found = split_lists(root)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        msg = f"{root}: several split lists ({names}); name one as data.split"
        raise DataError(msg)
    return found[0] if found else None


def split_lists(root: Path) -> list[Path]:
    """Files right in a folder that look like split lists; nnU-Net's folds are none."""
    return sorted(
        path
        for path in root.iterdir()
        if re.search(r"split", path.stem, re.IGNORECASE)
        and path.suffix.lower() in (".json", ".csv")
        and not path.name.startswith((".", "splits_final"))
    )


def read_list(path: Path) -> Listing:
    """A json or csv split list.

    Raises:
        DataError: It is missing, cannot be read, names nothing to train on, or a name twice.
    """
    listing = _from_csv(path) if path.suffix.lower() == ".csv" else _from_json(path)
    seen: dict[str, Part] = {}
    for part, names in listing.parts.items():
        for name in names:
            if name in seen:
                where = f"'{part}'" if seen[name] == part else f"'{seen[name]}' and '{part}'"
                msg = f"{path}: '{name}' is listed twice, in {where}; list it once"
                raise DataError(msg)
            seen[name] = part
    if not listing.parts.get("train"):
        msg = f"{path}: lists nothing to train on; expected names under 'train'"
        raise DataError(msg)
    return listing


def _from_json(path: Path) -> Listing:
    body = read_json(path)
    if not isinstance(body, dict):
        msg = f"{path}: expected train, valid and test with lists of names"
        raise DataError(msg)
    parts: dict[Part, list[str]] = {}
    for key, entries in body.items():
        part = part_named(str(key))
        if part is None or not isinstance(entries, list):
            continue
        parts.setdefault(part, []).extend(_entry(entry, path) for entry in entries)
    if not parts:
        keys = ", ".join(map(str, list(body)[:6]))
        msg = f"{path}: expected lists under train, valid and test; found {keys or 'nothing'}"
        raise DataError(msg)
    return Listing(path, parts)


def _entry(entry: object, path: Path) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in _ENTRY_KEYS if key in entry), None)
    if not isinstance(entry, str):
        msg = f"{path}: a list entry is no name: {str(entry)[:60]!r}"
        raise DataError(msg)
    return last_part(entry, path)


def last_part(text: str, where: object) -> str:
    """The file name in a path of a list; what could lead elsewhere is cut off.

    Raises:
        DataError: Nothing is left, or it holds control characters.
    """
    name = PurePosixPath(text.strip().replace("\\", "/")).name
    if not name or name == ".." or not name.isprintable():
        msg = f"{where}: {text[:60]!r} is no file name"
        raise DataError(msg)
    return name


def part_named(text: str) -> Part | None:
    """The part a word such as `Training` or `valid` means, None if it is none.

    >>> part_named("valid")
    'val'
    """
    return part_of(Path(text, "_"), Path()) if text.strip() else None


def _from_csv(path: Path) -> Listing:
    table = read_csv(path)
    columns = {str(name).strip().lower(): str(name) for name in table.columns}
    name = next((columns[c] for c in _NAME_COLUMNS if c in columns), None)
    part = next((columns[c] for c in _PART_COLUMNS if c in columns), None)
    if name is None or part is None:
        msg = (
            f"{path}: expected a column of names ({', '.join(_NAME_COLUMNS[:3])} …) and one of "
            f"parts ({', '.join(_PART_COLUMNS[:3])} …); found {', '.join(map(str, table.columns))}"
        )
        raise DataError(msg)
    group = next((columns[c] for c in _GROUP_COLUMNS if c in columns), None)
    parts: dict[Part, list[str]] = {}
    groups: dict[str, str] = {}
    for number, (text, word) in enumerate(zip(table[name], table[part], strict=True), 2):
        where = f"{path}, line {number}"
        known = part_named(word)
        if known is None:
            msg = f"{where}: '{word}' is no part; expected train, valid or test"
            raise DataError(msg)
        parts.setdefault(known, []).append(last_part(text, where))
    if group is not None:
        listed = (last_part(text, path) for text in table[name])
        groups = {text: g for text, g in zip(listed, table[group], strict=True) if g}
    return Listing(path, parts, groups)


def plain_stem(name: str) -> str:
    """A listed name without the ending of a picture file; other dots belong to it.

    >>> plain_stem("a.b.png"), plain_stem("a.b")
    ('a.b', 'a.b')
    """
    base, dot, ending = name.rpartition(".")
    return base if dot and f".{ending.lower()}" in IMAGE_SUFFIXES else name


def bare_name(name: str) -> str:
    """A listed name without the endings of volumes and clips.

    >>> bare_name("case_01.nii.gz"), bare_name("clip.v2.mp4")
    ('case_01', 'clip.v2')
    """
    return _ENDINGS.sub("", name)


def first_dot(name: str) -> str:
    """A listed name as the official loader cuts it: at the first dot.

    >>> first_dot("case1.v2.png")
    'case1'
    """
    return name.partition(".")[0]


def shown(names: Iterable[str], most: int = 3) -> str:
    """Some names for a message."""
    every: Sequence[str] = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
