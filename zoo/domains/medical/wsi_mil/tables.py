"""Labels, patients, classes and splits from the tables pathology data sets come with."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from zoo.data import group_folds, plain_name, read_csv, read_json, split_rng, stratified_parts
from zoo.domains.medical.wsi_mil.bags import plain_label
from zoo.domains.medical.wsi_mil.config import WsiData
from zoo.domains.medical.wsi_mil.layouts import (
    ID_COLUMNS,
    LABEL_COLUMNS,
    PATIENT_COLUMNS,
    SPLIT_COLUMNS,
    Source,
    below,
    column,
    slide_name,
)
from zoo.errors import DataError

PARTS = ("train", "val", "test")
# Values of `data.merge` for BRACS, whose labels 0..6 are N, PB, UDH, FEA, ADH, DCIS, IC.
BRACS_3 = {"0": "0", "1": "0", "2": "0", "3": "1", "4": "1", "5": "2", "6": "2"}
BRACS_2 = {"0": "0", "1": "0", "2": "0", "3": "1", "4": "1", "5": "1", "6": "1"}

_NUMBERED = re.compile(r"splits?_(\d+)(_bool)?\.(csv|json)")
_SINGLE = ("splits.csv", "split.csv", "splits.json", "split.json")
_PART_NAMES = {"valid": "val", "validation": "val", "dev": "val", "training": "train"}


@dataclass(frozen=True)
class Labels:
    """What is known of each slide beside its features.

    Attributes:
        where: The table, or the feature file whose attributes hold the labels.
        label: Slide -> label as written, before merging.
        patient: Slide -> patient; slides without one are their own patient.
        part: Slide -> train, val or test, where the table says it.
        unreadable: Slide -> why its label could not be read from its feature file.
    """

    where: str
    label: Mapping[str, str]
    patient: Mapping[str, str] = field(default_factory=dict)
    part: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """A division into splits.

    Attributes:
        where: Split file, label table, or empty for a division drawn by seed.
        names: Split -> slides, in the order train, val, test; empty splits are left out.
    """

    where: str
    names: Mapping[str, Sequence[str]]


def read_labels(data: WsiData, source: Source) -> Labels:
    """Labels from `data.labels`, else a table found in the root, else the feature files.

    Raises:
        DataError: No labels, several tables to choose from, or a slide listed with two labels.
    """
    path = _labels_file(data, source)
    if path is not None:
        return _labels_table(path, data)
    found: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    if source.layout in ("acmil", "table"):
        for name, bag in source.bags.items():
            try:
                label = bag.label()
            except DataError as error:  # told by the survey, with all other broken bags
                unreadable[name] = str(error)
                continue
            if label is not None:
                found[name] = label
    if not found:
        broken = next(iter(unreadable.values()), "") or _first_broken(source)
        if broken:
            raise DataError(broken)
        msg = (
            f"{data.root}: no labels found{_others(data, source)}; looked for a csv with the "
            "columns slide_id and label and for labels in the feature file; set data.labels"
        )
        raise DataError(msg)
    return Labels(str(source.path), found, source.patients, unreadable=unreadable)


def _first_broken(source: Source) -> str:
    """Why a lone feature file, which might have held the labels, cannot be read."""
    if len({bag.path for bag in source.bags.values()}) == 1:
        try:
            next(iter(source.bags.values())).peek()
        except DataError as error:
            return str(error)
    return ""


def _others(data: WsiData, source: Source) -> str:
    """The tables that lie where a label table would."""
    there = [str(path) for path in _tables(data, source)]
    return f"; {', '.join(there[:3])} cannot be read or has other columns" if there else ""


def _tables(data: WsiData, source: Source) -> list[Path]:
    if data.root is None or source.layout == "table" or not data.root.is_dir():
        return []
    places = (data.root, data.root / "dataset_csv", data.root / "labels")
    return [p for folder in places if folder.is_dir() for p in sorted(folder.glob("*.csv"))]


def _labels_file(data: WsiData, source: Source) -> Path | None:
    if data.root is None:
        return None
    if data.labels is not None:
        return below(data.root, data.labels)
    found = [path for path in _tables(data, source) if _is_label_table(path, data)]
    if len(found) > 1:
        names = " or ".join(str(path.relative_to(data.root)) for path in found)
        msg = f"{data.root}: {len(found)} label tables found; choose data.labels={names}"
        raise DataError(msg)
    return found[0] if found else None


def _is_label_table(path: Path, data: WsiData) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        head = pd.read_csv(path, nrows=0, encoding="utf-8-sig")
    except (OSError, ValueError):
        return False
    have = {str(name).strip().lower() for name in head.columns}
    ids = [data.id_column.lower()] if data.id_column else ID_COLUMNS
    labels = [data.label_column.lower()] if data.label_column else LABEL_COLUMNS
    return bool(have.intersection(ids)) and bool(have.intersection(labels))


def _labels_table(path: Path, data: WsiData) -> Labels:
    table = read_csv(path)
    names = column(table, data.id_column, ID_COLUMNS, path, "id_column")
    label = column(table, data.label_column, LABEL_COLUMNS, path, "label_column")
    patient = column(table, data.patient_column, PATIENT_COLUMNS, path, "patient_column")
    part = column(table, None, SPLIT_COLUMNS, path, "")
    if names is None or label is None:
        missing = "slide names" if names is None else "labels"
        key = "data.id_column" if names is None else "data.label_column"
        have = ", ".join(str(c) or "(unnamed)" for c in table.columns[:12])
        msg = f"{path}: no column of {missing}; set {key} to one of {have}"
        raise DataError(msg)
    labels: dict[str, str] = {}
    patients: dict[str, str] = {}
    parts: dict[str, str] = {}
    for row in table.to_dict("records"):
        if not row[names]:
            continue
        slide = plain_name(slide_name(row[names]), path)
        text = plain_label(row[label])
        if text and labels.setdefault(slide, text) != text:
            msg = f"{path}: slide '{slide}' has two labels, '{labels[slide]}' and '{text}'"
            raise DataError(msg)
        if patient is not None and patient != names and row[patient]:
            patients[slide] = row[patient]
        if part is not None and row[part]:
            parts[slide] = part_name(row[part])
    return Labels(str(path), labels, patients, parts)


def part_name(text: str) -> str:
    """The split a table's word means; as in the official loader, other words mean test."""
    word = text.strip().lower()
    word = _PART_NAMES.get(word, word)
    return word if word in PARTS else "test"


def classes_of(labels: Mapping[str, str], data: WsiData, where: str) -> tuple[str, ...]:
    """Class names in index order: `data.classes`, else the sorted labels after `data.merge`.

    Whole numbers sort as numbers.

    Raises:
        DataError: `data.merge` names a label that does not occur, a label is not among
            `data.classes`, or fewer than two classes are left.
    """
    have = sorted(set(labels.values()), key=_order)
    unknown = [name for name in data.merge if name not in have]
    if unknown:
        msg = f"data.merge names '{unknown[0]}', but the labels of {where} are {', '.join(have)}"
        raise DataError(msg)
    merged = sorted({data.merge.get(name, name) for name in have}, key=_order)
    if data.classes is None:
        names = merged
    else:
        names = data.classes
        extra = [name for name in merged if name not in names]
        if extra:
            slide = next(s for s, v in labels.items() if data.merge.get(v, v) == extra[0])
            msg = (
                f"{where}: label '{extra[0]}' of slide '{slide}' is not among "
                f"data.classes={names}; add it or map it with data.merge"
            )
            raise DataError(msg)
    if len(names) < 2 or len(set(names)) != len(names):
        msg = f"{where}: at least two different classes are needed, found {', '.join(names)}"
        raise DataError(msg)
    return tuple(names)


def _order(name: str) -> tuple[int, int, str]:
    whole = re.fullmatch(r"-?\d{1,9}", name)
    return (0, int(name), name) if whole else (1, 0, name)


def available_folds(data: WsiData) -> list[int]:
    """Values of `data.fold` for cross-validation: of `data.folds`, else of the split files.

    Raises:
        DataError: `data.splits` does not exist, or several folders hold split files.
    """
    if data.folds:
        return list(range(data.folds))
    place = _splits_place(data)
    return sorted(_numbered(place)) if place is not None and place.is_dir() else []


def read_parts(data: WsiData, labels: Labels, known: Container[str]) -> Parts | None:
    """The division the data set comes with, None if one has to be drawn.

    Args:
        data: `splits`, `fold` and `split_seed` choose the file; with `folds` or
            `leave_one_group_out` there is none.
        labels: A split column in the label table serves when there is no split file.
        known: Slides with features or a label; ids in split files are matched against it.

    Raises:
        DataError: The split file is missing, unreadable, unsafe, or has no training slides.
    """
    given = {
        "data.splits": data.splits is not None,
        "data.folds": data.folds > 0,
        "data.leave_one_group_out": data.leave_one_group_out,
    }
    chosen = [key for key, there in given.items() if there]
    if len(chosen) > 1:
        msg = f"{' and '.join(chosen)} exclude one another; drop one of them"
        raise DataError(msg)
    if data.folds or data.leave_one_group_out:
        return None
    place = _splits_place(data)
    if place is not None:
        if place.is_file() and data.fold is not None:
            msg = f"data.fold={data.fold} but data.splits is one file, {place}; name its folder"
            raise DataError(msg)
        return read_split_file(_choose(place, data) if place.is_dir() else place, known)
    if data.fold is not None:
        msg = f"data.fold={data.fold} needs data.folds or split files with a number"
        raise DataError(msg)
    if not labels.part:
        return None
    names: dict[str, list[str]] = {part: [] for part in PARTS}
    for slide, part in labels.part.items():
        names[part].append(slide)
    return _parts(names, labels.where)


def read_split_file(path: Path, known: Container[str]) -> Parts:
    """A split file of any of the usual forms.

    `split_<seed>.json` with `train_names` …, CLAM's `splits_<fold>.csv` with one column a split
    and `splits_<fold>_bool.csv`, and tables of slide and split.

    Raises:
        DataError: As `read_parts`.
    """
    raw = _json_parts(path) if path.suffix.lower() == ".json" else _csv_parts(path)
    return _parts({part: _matched(raw.get(part, []), known, path) for part in PARTS}, str(path))


def _parts(names: Mapping[str, Sequence[str]], where: str) -> Parts:
    for part, slides in names.items():
        if len(set(slides)) != len(slides):
            twice = next(s for i, s in enumerate(slides) if s in slides[:i])
            msg = f"{where}: slide '{twice}' is listed twice in split '{part}'"
            raise DataError(msg)
    if not names.get("train"):
        msg = f"{where}: split 'train' lists no slides"
        raise DataError(msg)
    return Parts(where, {part: list(names[part]) for part in PARTS if names.get(part)})


def _matched(texts: Iterable[str], known: Container[str], path: Path) -> list[str]:
    """Slide names as the data set spells them.

    pandas writes ids that look like numbers as `12.0` when a column has empty cells.
    """
    names = []
    for text in texts:
        name = slide_name(text)
        if name not in known and re.fullmatch(r"\d+\.0", text) and text[:-2] in known:
            name = text[:-2]
        names.append(plain_name(name, path))
    return names


def _json_parts(path: Path) -> dict[str, list[str]]:
    body = read_json(path)
    raw: dict[str, list[str]] = {}
    for part in PARTS:
        value: Any = body.get(f"{part}_names", body.get(part)) if isinstance(body, dict) else None
        if value is not None:
            if not isinstance(value, list):
                msg = f"{path}: '{part}_names' is no list of slide names"
                raise DataError(msg)
            raw[part] = [str(name) for name in value]
    if not raw:
        msg = f"{path}: none of train_names, val_names, test_names is there"
        raise DataError(msg)
    return raw


def _csv_parts(path: Path) -> dict[str, list[str]]:
    table = read_csv(path)
    ids = column(table, None, ID_COLUMNS, path, "")
    part = column(table, None, SPLIT_COLUMNS, path, "")
    if ids is not None and part is not None:
        raw: dict[str, list[str]] = {}
        for name, word in zip(table[ids], table[part], strict=True):
            if name and word:
                raw.setdefault(part_name(word), []).append(name)
        return raw
    columns = {p: c for p in PARTS if (c := column(table, None, (p,), path, "")) is not None}
    if not columns:
        have = ", ".join(str(c) or "(unnamed)" for c in table.columns[:8])
        msg = f"{path}: columns {have} are no split; expected train, val, test or slide, split"
        raise DataError(msg)
    marks = {p: table[c].str.lower() for p, c in columns.items()}
    if all(mark.isin(["true", "false"]).all() for mark in marks.values()):
        first = table.columns[0]
        return {p: table[first][mark == "true"].tolist() for p, mark in marks.items()}
    return {p: [name for name in table[c] if name] for p, c in columns.items()}


def _splits_place(data: WsiData) -> Path | None:
    """The split file, or the folder of split files, None if there is none."""
    if data.root is None:
        return None
    if data.splits is not None:
        place = below(data.root, data.splits)
        if not place.exists():
            msg = f"{place}: no such split file or folder; correct data.splits"
            raise DataError(msg)
        return place
    if not data.root.is_dir():
        return None
    inner = sorted(p for p in data.root.glob("splits/*") if p.is_dir())
    folders = [p for p in (data.root, data.root / "splits", *inner) if p.is_dir()]
    found = [p for p in folders if _numbered(p) or _single(p)]
    if len(found) > 1:
        names = " or ".join(str(p.relative_to(data.root)) for p in found)
        msg = f"{data.root}: {len(found)} folders hold split files; choose data.splits={names}"
        raise DataError(msg)
    return found[0] if found else None


def _numbered(folder: Path) -> dict[int, Path]:
    """Fold or seed -> its split file; CLAM's lists are preferred to its boolean tables."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _NUMBERED.fullmatch(path.name)
        if match and (not match[2] or int(match[1]) not in found):
            found[int(match[1])] = path
    return found


def _single(folder: Path) -> Path | None:
    return next((folder / name for name in _SINGLE if (folder / name).is_file()), None)


def _choose(folder: Path, data: WsiData) -> Path:
    """The split file of `data.fold`; without one, ACMIL's by seed, CLAM's first."""
    numbered = _numbered(folder)
    single = _single(folder)
    if not numbered:
        if single is None or data.fold is not None:
            want = "split files" if data.fold is None else f"split file number {data.fold}"
            msg = f"{folder}: no {want} found; expected splits_<fold>.csv or split_<seed>.json"
            raise DataError(msg)
        return single
    if data.fold is not None:
        number = data.fold
    else:
        seeded = all(path.suffix == ".json" for path in numbered.values())
        number = data.split_seed if seeded else min(numbered)
    if number not in numbered:
        have = ", ".join(str(n) for n in sorted(numbered))
        msg = f"{folder}: no split file number {number}; there are {have}; set data.fold"
        raise DataError(msg)
    return numbered[number]


def draw(labels: Mapping[str, int], patients: Mapping[str, str], data: WsiData) -> Parts:
    """Divide slides by patient, stratified by class: k folds or one division, by `split_seed`.

    With `leave_one_group_out` the test set of fold k is the k-th patient by name.

    Args:
        labels: Slide -> class index.
        patients: Slide -> patient.
        data: `folds`, `leave_one_group_out`, `fold`, `val_fraction`, `test_fraction`, `split_seed`.

    Raises:
        DataError: There are too few patients, or the fold does not exist.
    """
    slides = sorted(labels)
    groups = [patients[s] for s in slides]
    index = [labels[s] for s in slides]
    wanted = 2 + (data.val_fraction > 0)
    if len(set(groups)) < wanted:
        msg = (
            f"{len(set(groups))} patients are too few for {wanted} splits; add slides, give "
            "data.splits or set data.val_fraction=0"
        )
        raise DataError(msg)
    if data.folds or data.leave_one_group_out:
        parts = _fold(index, groups, data)
    else:
        inside = 1 - data.test_fraction
        shares = {
            "train": inside * (1 - data.val_fraction),
            "val": inside * data.val_fraction,
            "test": data.test_fraction,
        }
        parts = stratified_parts(index, groups, shares, data.split_seed)
    for part in PARTS:
        if not parts[part] and (part != "val" or data.val_fraction > 0):
            msg = (
                f"{len(set(groups))} patients leave split '{part}' empty; give data.splits or "
                f"other fractions"
            )
            raise DataError(msg)
    return Parts("", {p: [slides[i] for i in parts[p]] for p in PARTS if parts[p]})


def _fold(labels: Sequence[int], groups: Sequence[str], data: WsiData) -> dict[str, list[int]]:
    """Item indices of train, val and test with one fold as test."""
    fold = data.fold or 0
    if data.leave_one_group_out:
        names = sorted(set(groups))
        if fold >= len(names):
            msg = f"data.fold={fold} is not among the groups 0 to {len(names) - 1}, one a fold"
            raise DataError(msg)
        return _around([i for i, g in enumerate(groups) if g == names[fold]], labels, groups, data)
    if data.folds < 2:
        msg = f"data.folds={data.folds} is no cross-validation; set at least 2, or 0 for none"
        raise DataError(msg)
    if fold >= data.folds:
        msg = f"data.fold={fold} is not among the folds 0 to {data.folds - 1} of data.folds"
        raise DataError(msg)
    test = group_folds(labels, groups, data.folds, data.split_seed)[fold]
    return _around(test, labels, groups, data)


def _around(
    test: Sequence[int], labels: Sequence[int], groups: Sequence[str], data: WsiData
) -> dict[str, list[int]]:
    """Train and val of what is not test."""
    rest = sorted(set(range(len(labels))) - set(test))
    shares = {"train": 1 - data.val_fraction, "val": data.val_fraction}
    inner = stratified_parts(
        [labels[i] for i in rest], [groups[i] for i in rest], shares, data.split_seed
    )
    parts = {part: [rest[i] for i in members] for part, members in inner.items()}
    return parts | {"test": list(test)}


def few(slides: Sequence[str], labels: Mapping[str, int], shots: int, seed: int) -> list[str]:
    """At most `shots` slides of each class, drawn by seed, in the given order."""
    rng = split_rng(seed)
    kept: set[str] = set()
    for label in sorted({labels[s] for s in slides}):
        members = [s for s in slides if labels[s] == label]
        kept.update(members[i] for i in rng.permutation(len(members))[:shots])
    return [s for s in slides if s in kept]
