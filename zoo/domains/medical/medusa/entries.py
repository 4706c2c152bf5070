"""What every layout is turned into: one entry a radiograph, and the classes of its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data import plain_name
from zoo.domains.medical.dicom import years
from zoo.errors import DataError
from zoo.task import Finding

PARTS = ("train", "val", "test")
# Class names in index order, as the authors' label maps have them; level2 is the worse one.
PUBLISHED = (
    ("negative", "positive"),
    ("normal", "pneumonia", "COVID-19"),
    ("level2", "level1"),
)
_PART_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True)
class Entry:
    """One radiograph of a data set.

    Attributes:
        name: Unique in the data set; the file as the list or folder names it.
        path: The file.
        patient: Who it shows. In memory only; outside it is an alias.
        label: As written; "" unknown.
        part: train, val or test where the layout says it, else "".
        source: Hospital or collection the image came from, "" unknown.
        meta: `sex`, `age` in years, `view`, as far as known.
        masks: Files whose union is the lung mask.
        box: (xmin, ymin, xmax, ymax) to cut out, ends exclusive.
        weight: Factor on the loss.
        where: List and line, for messages.
    """

    name: str
    path: Path
    patient: str = field(repr=False)
    label: str = ""
    part: str = ""
    source: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[Path, ...] = ()
    box: tuple[int, int, int, int] | None = None
    weight: float = 1.0
    where: str = ""


@dataclass(frozen=True)
class Found:
    """The radiographs of a folder.

    Attributes:
        layout: covidx, rsna, ricord, csv or masks.
        where: The list, table or folder that names them.
        entries: All that were named, whether or not the file is there.
        findings: What is wrong with the lists, and what was left out and why.
    """

    layout: str
    where: str
    entries: Sequence[Entry]
    findings: Sequence[Finding] = ()


def facts_of_person(sex: str = "", age: str = "", view: str = "") -> dict[str, str]:
    """Sex as M, F or O, age in whole years, view in capitals; "" where not known."""
    first = sex.strip()[:1].upper()
    return {
        "sex": first if first in ("M", "F", "O") else "",
        "age": years(age.strip()),
        "view": view.strip().upper(),
    }


def part_name(text: str) -> str:
    """train, val or test for the names in use; "" for anything else."""
    lower = text.strip().lower()
    lower = _PART_NAMES.get(lower, lower)
    return lower if lower in PARTS else ""


def plain_path(text: str, where: object) -> str:
    """A relative path from a list, with forward slashes, refused if it could leave the folder.

    Raises:
        DataError: A part of it is empty, `..`, or holds a control character.
    """
    return "/".join(plain_name(part, where) for part in text.replace("\\", "/").split("/"))


def canonical(label: str) -> str:
    """A label as the published class of the same name in another case, else as it is."""
    for names in PUBLISHED:
        for name in names:
            if label.casefold() == name.casefold():
                return name
    return label


def classes_for(labels: set[str], given: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Class names in index order.

    Args:
        labels: Those that occur, merged already.
        given: `data.classes`.
        where: The label list, for messages.

    Raises:
        DataError: Fewer than two classes, one given twice, or a label that is none of them.
    """
    if given is not None:
        names = tuple(given)
    else:
        names = next((p for p in PUBLISHED if labels <= set(p)), tuple(sorted(labels)))
    if len(set(names)) != len(names) or len(names) < 2:
        msg = f"{where}: at least two different classes are needed, found {_named(names)}"
        raise DataError(msg)
    unknown = sorted(labels - set(names))
    if unknown:
        msg = (
            f"{where}: label '{unknown[0]}' is none of the classes {_named(names)}; add it to "
            f"data.classes, or set data.merge to another class or '' to leave it out"
        )
        raise DataError(msg)
    return names


def positive_of(classes: Sequence[str]) -> int:
    """Index of the class that balanced batches and sensitivity are about: the last.

    positive, COVID-19, and level1, which the authors' binary lists call positive.
    """
    return len(classes) - 1


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"
