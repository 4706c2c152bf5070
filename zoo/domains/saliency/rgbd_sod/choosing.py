"""What trains and what tests: sets by name, lists of stems, pairing, and the guard between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from zoo.domains.saliency.rgbd_sod.config import RgbdData
from zoo.domains.saliency.rgbd_sod.layouts import (
    FOLDERS,
    Kind,
    Pair,
    Place,
    Role,
    canonical,
    files_of,
    find_lists,
    matched,
    plain,
    read_list,
    slug,
)
from zoo.errors import DataError
from zoo.task import Finding

# Stems of these sets are unlike any other set's, so that the same stem is the same photograph.
_UNIQUE_STEMS = ("NJU2K", "NLPR")
_NAMED = 5


@dataclass(frozen=True)
class Part:
    """Scenes of one folder, chosen for training or for a test.

    Attributes:
        place: The folder.
        list: List of stems they were chosen by, None if all were.
        pairs: The complete scenes, by stem.
    """

    place: Place
    list: Path | None
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Chosen:
    """What was chosen from a data folder.

    Attributes:
        train: Scenes to train on, before any is held out.
        tests: Split name -> scenes.
        findings: What is missing or leaking.
        lacking: Scenes that lack a file.
    """

    train: Sequence[Part]
    tests: Mapping[str, Part]
    findings: Sequence[Finding]
    lacking: Sequence[str]


@dataclass
class _Notes:
    findings: list[Finding] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def choose(root: Path, places: Sequence[Place], data: RgbdData) -> Chosen:
    """Choose and pair the scenes that a configuration asks for.

    Without `data.train`, training folders train, and full folders (CAVER's) for which a training
    list lies with the data; without `data.test`, all that is left tests.

    Raises:
        DataError: A set that was named is not there, or a list is missing or empty.
    """
    lists = find_lists(root)
    notes = _Notes()
    train_from = _named(root, places, data.train, "train", lists) or [
        (p, lists.get((p.set, "train")) if p.role == "any" else None)
        for p in places
        if p.role == "train" or (p.role == "any" and (p.set, "train") in lists)
    ]
    trained = {place.path for place, _ in train_from}
    test_from = _named(root, places, data.test, "test", lists) or [
        (p, lists.get((p.set, "test")) if p.role == "any" else None)
        for p in places
        if p.role == "test"
        or (p.role == "any" and ((p.set, "test") in lists or p.path not in trained))
    ]
    train = [_paired(place, stems, data, notes) for place, stems in train_from]
    tests: dict[str, Part] = {}
    for place, stems in test_from:
        name = f"test_{slug(place.set)}"
        if name in tests:
            msg = f"{place.path} and {tests[name].place.path} both make split {name}; rename one"
            raise DataError(msg)
        tests[name] = _paired(place, stems, data, notes)
    notes.findings += _guard(train, tests.values())
    if not train:
        told = f"no training folder; name one of {_have(places)} with data.train=[NAME]"
        notes.findings.append(Finding("warning", told, str(root)))
    return Chosen(_renamed(train, tests.values()), tests, notes.findings, notes.lacking)


def _have(places: Iterable[Place]) -> str:
    return ", ".join(f"{p.set} ({p.role})" for p in places)


def _named(
    root: Path,
    places: Sequence[Place],
    wanted: Sequence[str],
    role: Literal["train", "test"],
    lists: Mapping[tuple[str, Role], Path],
) -> list[tuple[Place, Path | None]]:
    chosen: list[tuple[Place, Path | None]] = []
    for text in wanted:
        name, _, given = text.partition(":")
        place = _match(root, places, name.strip(), role)
        if given:
            stems: Path | None = _list_file(root, given.strip(), f"data.{role}={text}")
        else:
            stems = lists.get((place.set, role)) if place.role == "any" else None
        if any(place.path == other.path for other, _ in chosen):
            msg = f"data.{role}: {place.path} is named twice"
            raise DataError(msg)
        chosen.append((place, stems))
    return chosen


def _match(root: Path, places: Sequence[Place], name: str, role: str) -> Place:
    fits = [p for p in places if p.role in (role, "any")]
    key, usual = plain(name), canonical(name)
    exact = [
        p
        for p in fits
        if key in (plain(p.folder), plain(p.path.relative_to(root).as_posix()), plain(p.set))
    ]
    alike = [p for p in fits if usual is not None and canonical(p.folder) == usual]
    found = exact or alike
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(p.path.relative_to(root).as_posix() for p in found)
        msg = f"data.{role}={name}: {len(found)} folders fit; choose {names}"
        raise DataError(msg)
    msg = f"data.{role}={name}: no such set to {role} on in {root}; found: {_have(places)}"
    raise DataError(msg)


def _list_file(root: Path, name: str, key: str) -> Path:
    given = Path(name).expanduser()
    for path in (root / given, given):
        if path.is_file():
            return path
    msg = f"{key}: there is no list {given}, neither in {root} nor here"
    raise DataError(msg)


# -- pairing ------------------------------------------------------------------------------------


def _paired(place: Place, stems: Path | None, data: RgbdData, notes: _Notes) -> Part:
    """Pair a folder's files; what is missing goes to `notes`."""
    folders: dict[Kind, Path | None] = {"rgb": place.rgb, "mask": place.mask}
    if data.depth == "files":
        folders["depth"] = place.depth
    missing = [kind for kind, folder in folders.items() if folder is None]
    for kind in missing:
        notes.findings.append(_no_folder(place, kind))
    if missing:
        return Part(place, stems, [])
    files: dict[Kind, dict[str, Path]] = {}
    for kind, folder in folders.items():
        assert folder is not None
        files[kind], twice = files_of(folder, kind)
        notes.findings += [
            Finding("error", line, remedy="delete or rename one of them") for line in twice
        ]
    wanted = sorted(files["rgb"]) if stems is None else read_list(stems)
    others: tuple[Kind, ...] = ("depth", "mask")
    for kind in others:
        if kind in files:
            files[kind], idle = matched(files[kind], set(wanted))
            if stems is None and idle:
                notes.findings.append(_idle(idle, kind, folders[kind]))
    pairs = []
    for stem in wanted:
        lacks = [kind for kind in folders if stem not in files[kind]]
        if lacks:
            notes.lacking.append(f"{place.set}/{stem}")
            notes.findings.append(_incomplete(place, stem, lacks, folders, stems))
            continue
        rgb, mask = files["rgb"][stem], files["mask"][stem]
        depth = files["depth"][stem] if "depth" in files else None
        pairs.append(Pair(f"{place.set}/{stem}", place.set, stem, rgb, depth, mask))
    if not wanted:
        notes.findings.append(Finding("error", "there is no image in it", str(place.rgb)))
    return Part(place, stems, pairs)


_WORDS: Mapping[Kind, str] = {"rgb": "image", "depth": "depth map", "mask": "mask"}


def _no_folder(place: Place, kind: Kind) -> Finding:
    names = ", ".join(FOLDERS[kind][:4])
    remedy = "add it, or leave the set out with data.train and data.test"
    if kind == "depth":
        remedy = "add it, or set data.depth=zeros to go without depth"
    told = f"images, but no folder of {_WORDS[kind]}s (looked for {names} …)"
    return Finding("error", told, str(place.path), remedy)


def _incomplete(
    place: Place,
    stem: str,
    lacks: Sequence[Kind],
    folders: Mapping[Kind, Path | None],
    stems: Path | None,
) -> Finding:
    told = " and ".join(f"no {_WORDS[kind]} in {folders[kind]}" for kind in lacks)
    origin = f" of list {stems.name}" if stems is not None else ""
    return Finding("error", f"stem '{stem}'{origin} has {told}", str(place.path), "add it")


def _idle(stems: Sequence[str], kind: Kind, folder: Path | None) -> Finding:
    """A warning for maps or masks without an image."""
    shown = ", ".join(stems[:_NAMED]) + (" …" if len(stems) > _NAMED else "")
    told = f"{len(stems)} {_WORDS[kind]}s have no image and are not used: {shown}"
    return Finding("warning", told, str(folder))


# -- the guard ----------------------------------------------------------------------------------


def _guard(train: Sequence[Part], tests: Iterable[Part]) -> list[Finding]:
    """An error for stems that train and are in a requested test.

    Stems count within one folder, for NJU2K and NLPR also across folders, joined training folders
    included: elsewhere two sets may well number their images alike.
    """
    findings = []
    for test in tests:
        tested = {p.stem for p in test.pairs}
        for part in train:
            if not _comparable(part.place, test.place):
                continue
            both = sorted(tested.intersection(p.stem for p in part.pairs))
            if both:
                shown = ", ".join(both[:_NAMED]) + (" …" if len(both) > _NAMED else "")
                told = f"{len(both)} stems would train that are in test set {test.place.set}"
                remedy = "give lists: data.train=[NAME:train.lst] data.test=[NAME:test.lst]"
                where = str(part.list or part.place.path)
                findings.append(Finding("error", f"{told}: {shown}", where, remedy))
    return findings


def _comparable(train: Place, test: Place) -> bool:
    if train.path == test.path:
        return True
    unique = canonical(test.folder) in _UNIQUE_STEMS
    return unique and (train.mixed or canonical(train.folder) == canonical(test.folder))


def _renamed(train: Sequence[Part], tests: Iterable[Part]) -> list[Part]:
    """Training scenes under ids of their own where a set's two folders number alike."""
    taken = {p.id for test in tests for p in test.pairs}
    made = []
    for part in train:
        if taken.isdisjoint(p.id for p in part.pairs):
            made.append(part)
            continue
        own = [replace(p, id=f"{p.set}-train/{p.stem}") for p in part.pairs]
        made.append(replace(part, pairs=own))
    return made
