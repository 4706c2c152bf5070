"""Crops to predict on: queries, and the gallery they are ranked against."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.images import load
from zoo.domains.reid.fusion_reid.layouts import Entry, Role, is_crop
from zoo.domains.reid.fusion_reid.split import ReidSplit
from zoo.errors import DataError
from zoo.task import Facts


@dataclass(frozen=True)
class _Reading:
    """How names are read: as those of the training data, else as any data set's.

    Attributes:
        layout: Of the training data, or as the user says.
        pattern: The user's own.
        cameras: Those the model knows.
    """

    layout: str
    pattern: re.Pattern[str] | None
    cameras: frozenset[str]

    def __call__(self, name: str) -> tuple[names.Name | None, str]:
        """What a path below its folder says, and whose cameras it means."""
        file = name.rpartition("/")[2]
        if self.layout == "folder":
            said = names.parse(name if self.pattern else file, "folder", self.pattern)
            # Without a pattern, IMG_1234.jpg would be person IMG at camera 1234.
            if said and (self.pattern or said.camera in self.cameras):
                return said, self.layout
        elif self.layout == "cuhk03":
            said = names.parse(file, "cuhk03")
            if said:
                return said, self.layout
        form = names.form_of(file)
        if form is None and self.layout in ("folder", "cuhk03"):
            return None, ""
        if form in (None, self.layout):
            return names.parse(file, self.layout), self.layout
        return names.parse(file, form), ""


def inputs(paths: Sequence[Path], gallery: Path | None, facts: Facts, config: Config) -> ReidSplit:
    """Crops to extract features of, and to rank a gallery for.

    Person and camera are told by names of the form of the training data, else of any data set's;
    names that tell nothing are welcome. A camera the model has no embedding of gets the mean.

    Args:
        paths: Query images and folders of them, subfolders included.
        gallery: Folder of gallery images, or None. Junk (Market-1501's identity -1) is left out.
        facts: Of the trained model; its input size is used, not the configuration's.
        config: For `data.layout` and `data.pattern` where they tell the names' form,
            `data.on_error` and `trainer.batch_size`.

    Returns:
        A split, queries before gallery, whose `notes` say what was skipped and what is not known.

    Raises:
        DataError: A path holds no image, two images have one name, or a file is broken.
        ConfigError: `data.pattern` is none.
    """
    known = str(facts["domain"])
    layout = known if config.data.layout == "auto" else names.domain_of(config.data.layout)
    reading = _Reading(layout, names.compiled(config.data.pattern), frozenset(facts["cameras"]))
    found = [pair for path in paths for pair in _entries(Path(path), "query", reading)]
    notes: list[str] = []
    if gallery is not None:
        if not gallery.is_dir():
            msg = f"predict.gallery={gallery}: there is no such folder"
            raise DataError(msg)
        listed = _entries(gallery, "gallery", reading)
        used = [pair for pair in listed if pair[0].person != names.JUNK]
        if len(used) < len(listed):
            notes.append(f"{len(listed) - len(used)} gallery images marked as junk are left out")
        if not used:
            msg = f"predict.gallery={gallery}: every image in it is marked as junk"
            raise DataError(msg)
        found += used
    sound = _sound(found, skip=config.data.on_error == "skip", notes=notes)
    _unique([entry for entry, _ in sound])
    split = ReidSplit(
        [entry for entry, _ in sound],
        identities=facts["identities"],
        cameras=facts["cameras"],
        domains=[domain for _, domain in sound],
        cameras_of=known,
        size=(int(facts["input_size"][0]), int(facts["input_size"][1])),
        batch_size=config.trainer.batch_size,
    )
    split.notes = notes + _unknown(split)
    return split


def _entries(path: Path, role: Role, reading: _Reading) -> list[tuple[Entry, str]]:
    """The images at a path, sorted, and whose cameras each was taken by."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if is_crop(p.name) and p.is_file())
        if not files:
            msg = f"{path}: no images in this folder; expected .jpg, .png or .bmp files"
            raise DataError(msg)
        name = path.resolve().name or "input"
        return [_entry(p, f"{name}/{p.relative_to(path).as_posix()}", role, reading) for p in files]
    if not path.is_file():
        msg = f"{path}: no such file or folder"
        raise DataError(msg)
    if not is_crop(path.name):
        msg = f"{path}: is no image; expected a .jpg, .png or .bmp file"
        raise DataError(msg)
    return [_entry(path, path.name, role, reading)]


def _entry(path: Path, name: str, role: Role, reading: _Reading) -> tuple[Entry, str]:
    said, domain = reading(name.partition("/")[2] or name)
    person, camera = (said.person, said.camera) if said else ("", "")
    if person == names.JUNK and role == "query":
        person = ""
    return Entry(path, name, role, person, camera, "files", path.stat().st_size), domain


def _sound(
    found: Sequence[tuple[Entry, str]], *, skip: bool, notes: list[str]
) -> list[tuple[Entry, str]]:
    """What can be used: with `skip`, every file is decoded first."""
    if not skip:
        return list(found)
    sound = []
    for entry, domain in found:
        try:
            load(entry.path)
        except DataError as error:
            notes.append(f"skipped: {error}")
        else:
            sound.append((entry, domain))
    if not any(entry.role == "query" for entry, _ in sound):
        msg = "; ".join(notes[:5]) or "no image to predict on"
        raise DataError(msg)
    return sound


def _unique(entries: Sequence[Entry]) -> None:
    seen: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        other = seen.setdefault((entry.role, entry.short), entry)
        if other is not entry:
            msg = (
                f"{entry.path} and {other.path} are both called '{entry.short}'; predict on one at "
                "a time"
            )
            raise DataError(msg)


def _unknown(split: ReidSplit) -> list[str]:
    """Notes on images whose camera the model cannot know."""
    silent = sum(not e.camera for e in split.entries)
    strange = sum(split.camera(i) < 0 for i in range(len(split))) - silent
    told: Mapping[str, int] = {
        "file names tell no camera": silent,
        "images are of cameras the model was not trained on": strange,
    }
    return [
        f"{count} of {len(split)} {what}; they get the mean camera embedding"
        for what, count in told.items()
        if count
    ]
