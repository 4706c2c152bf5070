"""What a data set of volumes or clips lists: cases that are opened when they are needed.

A case is a patient's volume or a clip. It knows its name, its files and its classes; pixels are
read by the `Stack` it opens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.domains.medical.her_seg.stacks import Kind, Stack
from zoo.errors import DataError
from zoo.task import Finding

Part = Literal["train", "val", "test"]

# How folders and lists call the parts of a data set.
_PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "traindataset", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valdataset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testdataset", "testset"), "test"),
}


@dataclass(frozen=True)
class Classes:
    """Which values of label files are which class.

    Attributes:
        names: Of the foreground classes, in the order of their indices 1, 2, …
        values: The values of each class in files; none means every value above 0.
        background: Values besides 0 that are background.
    """

    names: tuple[str, ...] = ("foreground",)
    values: tuple[tuple[int, ...], ...] = ((),)
    background: tuple[int, ...] = ()

    @classmethod
    def of(cls, labels: Mapping[str, int | Sequence[int]], where: object) -> Classes:
        """From names and values; `background` may name further values that are none of a class.

        Args:
            labels: Name -> value or values.
            where: The setting or file they come from, for messages.

        Raises:
            DataError: A value stands twice, or a class has none, 0, or more than a colour.
        """
        listed = {k: (v,) if isinstance(v, int) else tuple(v) for k, v in labels.items()}
        background = tuple(v for v in listed.pop("background", ()) if v != 0)
        if not listed:
            return cls(background=background)
        every = [*background, *(v for values in listed.values() for v in values)]
        for name, values in listed.items():
            if not values or not all(0 < v < 2**24 for v in values):
                msg = f"{where}: class '{name}' needs values from 1; 0 is the background"
                raise DataError(msg)
        twice = sorted(v for v in set(every) if every.count(v) > 1)
        if twice:
            msg = (
                f"{where}: value {twice[0]} belongs to two classes; classes may not overlap, name "
                "each value once in data.labels"
            )
            raise DataError(msg)
        return cls(tuple(listed), tuple(listed.values()), background)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Classes:
        """From what a model carries: `classes` and, where it is known, `values`."""
        names = tuple(str(n) for n in facts.get("classes", ())) or ("foreground",)
        values = tuple(tuple(int(v) for v in vs) for vs in facts.get("values", ()))
        if len(values) != len(names):
            values = ((),) if len(names) == 1 else tuple((i,) for i in range(1, len(names) + 1))
        return cls(names, values)

    @property
    def written(self) -> tuple[int, ...]:
        """The value each class is written as: the first of its values, 1 for "above 0"."""
        return tuple(values[0] if values else 1 for values in self.values)

    def indices(self, labels: np.ndarray, where: object) -> np.ndarray:
        """Class indices of label values.

        Args:
            labels: Whole numbers from 0, any shape and integer type.
            where: File, for the message.

        Returns:
            uint8 of the same shape; 0 is background.

        Raises:
            DataError: There is a value that belongs to no class.
        """
        if self.values == ((),):
            found: np.ndarray = labels > 0
            if self.background:
                found &= ~np.isin(labels, self.background)
            return found.astype(np.uint8)
        known = [0, *self.background, *(v for values in self.values for v in values)]
        top = int(labels.max(initial=0))
        table = np.full(max(top, *known) + 1, 255, np.uint8)
        table[[0, *self.background]] = 0
        for index, values in enumerate(self.values, 1):
            table[list(values)] = index
        mapped: np.ndarray = table[labels]
        if (mapped == 255).any():
            strange = sorted({int(v) for v in np.unique(labels[mapped == 255])})
            shown = ", ".join(map(str, strange[:4])) + (" …" if len(strange) > 4 else "")
            msg = (
                f"{where}: label value {shown} belongs to no class ({self._told()}); correct the "
                "file, or list the value in data.labels (under 'background' if it is none)"
            )
            raise DataError(msg)
        return mapped

    def _told(self) -> str:
        pairs = zip(self.names, self.values, strict=True)
        return "; ".join(f"{n}: {', '.join(map(str, vs))}" for n, vs in pairs)

    def as_written(self, indices: np.ndarray) -> np.ndarray:
        """Class indices as the values of label files, in as few bits as the values need."""
        table = np.array([0, *self.written])
        kind = np.min_scalar_type(int(table.max()))
        out: np.ndarray = table.astype(kind)[indices]
        return out


@dataclass(frozen=True)
class Case:
    """A volume or clip of a data set.

    Attributes:
        name: Unique in the data set; the id of its stack.
        group: Patient, volume or clip: what must not be in two splits.
        kind: `volume` or `clip`.
        files: The files it is made of, images before labels: what fingerprints are made of.
        classes: The same for all cases of a data set.
        open: Makes the stack; pixels are read when they are asked for.
        slices: (index, whether it holds foreground) of every picture that has a truth. The first
            call reads the labels; later ones read a small index in the cache.
        look: Findings of its files; with True they are read whole, otherwise their heads alone.
        part: The split it belongs to, where folders or lists say so.
        labelled: Whether it has any truth.
    """

    name: str
    group: str
    kind: Kind
    files: tuple[Path, ...]
    classes: Classes
    open: Callable[[], Stack]
    slices: Callable[[], list[tuple[int, bool]]]
    look: Callable[[bool], list[Finding]]
    part: Part | None = None
    labelled: bool = True


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which numbers count as numbers: frame2 stands before frame10."""
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in pieces)


def sorted_paths(paths: Sequence[Path]) -> list[Path]:
    """Paths in natural order of their names; equal ones by their exact spelling."""
    return sorted(paths, key=lambda p: (natural(p.stem), p.name))


def part_of(path: Path, root: Path) -> Part | None:
    """The split that one of the folders between `root` and `path` is named after."""
    for name in path.relative_to(root).parts[:-1] if path != root else ():
        part = _PARTS.get(re.sub(r"[^a-z]", "", name.lower()))
        if part is not None:
            return part
    return None


def only(names: Sequence[str], most: int = 3) -> str:
    """A few names for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
