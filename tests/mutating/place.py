"""A copy of a data set that may be damaged, and what was done to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

TEXT = (".csv", ".txt", ".json", ".lst")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif")


@dataclass(frozen=True)
class Damage:
    """What was done.

    Attributes:
        kind: In a word or two.
        files: Files touched, as they are called now or were called before.
        told: Whether saying nothing of it would be wrong.
        strict: Whether a message must name one of the files, and not only their folder.
        sealed: Whether the folder outside of the data set must not be opened.
        note: What exactly.
    """

    kind: str
    files: Sequence[Path]
    told: bool = False
    strict: bool = False
    sealed: bool = False
    note: str = ""


@dataclass
class Place:
    """A copy of a data set.

    Attributes:
        root: Folder of the copy.
        outside: Folder beside it, with copies of its files, that no adapter has a reason to open.
        shared: Files kept over all copies, such as bombs that take seconds to make.
    """

    root: Path
    outside: Path
    shared: Path
    _put: list[Path] = field(default_factory=list)

    @cached_property
    def files(self) -> list[Path]:
        """Every file, sorted."""
        return sorted(p for p in self.root.rglob("*") if p.is_file())

    def kind(self, path: Path) -> str:
        """The ending by which a file's format is known."""
        return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix.lower()

    def pick(self, rng: np.random.Generator, *suffixes: str) -> Path | None:
        """A file; every format and folder has the same chance, however many files it has."""
        groups: dict[tuple[str, str], list[Path]] = {}
        for path in self.files:
            kind = self.kind(path)
            if not suffixes or kind in suffixes:
                groups.setdefault((kind, path.parent.name), []).append(path)
        if not groups:
            return None
        group = groups[sorted(groups)[rng.integers(len(groups))]]
        return group[rng.integers(len(group))]

    def write(self, path: Path, body: bytes) -> None:
        """Replace a file; the original, of which it is a hard link, stays as it is."""
        path.unlink(missing_ok=True)
        path.write_bytes(body)

    def edit(self, path: Path, change: Callable[[Path], None]) -> None:
        """Let a library change a file in place, as a copy of its own."""
        body = path.read_bytes()
        self.write(path, body)
        change(path)

    def secret(self, path: Path) -> Path:
        """A copy of a file outside of the data set, good enough to be read without a complaint."""
        target = self.outside / path.name
        shutil.copyfile(path, target)
        return target


def copied(source: Path, target: Path) -> None:
    """Copy a tree by hard links."""
    shutil.copytree(source, target, copy_function=os.link)
