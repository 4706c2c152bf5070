"""Finding the radiographs of a data set: COVIDx, RSNA, RICORD, folders with a csv, lung masks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.domains.medical import dicom
from zoo.domains.medical.medusa import ricord
from zoo.domains.medical.medusa.config import MedusaData
from zoo.domains.medical.medusa.entries import Entry, Found, part_name, plain_path
from zoo.domains.medical.medusa.images import is_image, relative
from zoo.domains.medical.medusa.lists import (
    SOURCES,
    LabelList,
    find_lists,
    read_list,
    siblings,
    version_of,
)
from zoo.domains.medical.medusa.tables import (
    FILE_COLUMNS,
    LABEL_COLUMNS,
    PATIENT_COLUMNS,
    SPLIT_COLUMNS,
    cells,
    columns_of,
    covidx_label,
    finding_of,
    is_frontal,
    people_of,
    read_people,
    read_table,
    rsna_labels,
)
from zoo.errors import DataError
from zoo.task import Finding

RSNA_LABELS = "stage_2_train_labels.csv"
_MASK_COLUMNS = ("mask", "mask_path")
_MASK_FOLDERS = ("masks", "mask")
_MASK_NAME = re.compile(r"(.+)[-_]mask", re.IGNORECASE)
# Montgomery's masks: one folder a lung.
_LUNGS = ("leftMask", "rightMask")


def find(data: MedusaData, masks: bool = False) -> Found:
    """The radiographs below `data.root`.

    Args:
        data: The data section.
        masks: The body is trained: only radiographs with a lung mask count.

    Raises:
        DataError: The root is missing, nothing is recognised, or a choice has to be made.
    """
    if data.root is None:
        msg = "data.root is not set"
        raise DataError(msg)
    if not data.root.is_dir():
        msg = f"{data.root}: no such folder; set data.root to the data set"
        raise DataError(msg)
    layout = recognise(data, masks) if data.layout == "auto" else data.layout
    if layout is None:
        msg = (
            f"{data.root}: no radiographs recognised; looked for train.txt or labels/train_*.txt, "
            f"{RSNA_LABELS}, MIDRC-RICORD-1C-*/, a csv of files and labels, and lung masks; "
            "set data.layout and data.labels"
        )
        raise DataError(msg)
    readers = {"covidx": _covidx, "rsna": _rsna, "ricord": _ricord, "csv": _csv, "masks": _masks}
    return readers[layout](data)


def recognise(data: MedusaData, masks: bool = False) -> str | None:
    """The layout of `data.root`, None where there is none."""
    root = data.root
    if root is None or not root.is_dir():
        return None
    if masks:
        return "masks"
    if data.labels is not None and data.labels.suffix == ".txt":
        return "covidx"
    if _versions(root):
        return "covidx"
    if (root / RSNA_LABELS).is_file():
        return "rsna"
    if ricord.patient_folders(root):
        return "ricord"
    if data.labels is not None or _tables(root):
        return "csv"
    return "masks" if mask_files(root) else None


# -- COVIDx -------------------------------------------------------------------------------------


def _versions(root: Path) -> dict[str, dict[str, Path]]:
    return find_lists((root, root / "labels"))


def _covidx(data: MedusaData) -> Found:
    root = _root(data)
    lists = _chosen_lists(root, data)
    people = read_people([p for f in (root, root / "labels") for p in sorted(f.glob("*.csv"))])
    masks = mask_files(root)
    entries: list[Entry] = []
    findings: list[Finding] = [*people.findings]
    for part, path in lists.items():
        read = read_list(path)
        findings += read.findings
        places = _Places(root, [f"{part}", f"data/{part}", f"competition_{part}", "images", "."])
        entries += [
            Entry(
                name=f"{part}/{row.file}",
                path=places.of(row.file),
                patient=row.patient,
                label=row.label,
                part=part,
                source=row.source,
                meta=people.of(row.file, row.patient),
                masks=masks.get(Path(row.file).stem, ()),
                where=f"{path}:{row.line}",
            )
            for row in read.rows
        ]
        findings += _unknown_sources(read)
    return Found("covidx", str(lists["train"]), entries, findings)


def _chosen_lists(root: Path, data: MedusaData) -> dict[str, Path]:
    if data.labels is not None:
        return siblings(root / data.labels.expanduser())
    versions = _versions(root)
    if not versions:
        msg = f"{root}: no label list; looked for train.txt and labels/train_*.txt"
        raise DataError(msg)
    names = ", ".join(sorted(v or "(plain train.txt)" for v in versions))
    if data.version is not None:
        wanted = version_of(data.version).casefold()
        chosen = [lists for name, lists in versions.items() if name.casefold() == wanted]
        if not chosen:
            msg = f"{root}: no label list of version '{data.version}'; there are {names}"
            raise DataError(msg)
        return chosen[0]
    if "" in versions:
        # The list that came with the download itself.
        return versions[""]
    if len(versions) > 1:
        msg = f"{root}: label lists of {len(versions)} versions; choose data.version from {names}"
        raise DataError(msg)
    return next(iter(versions.values()))


def _unknown_sources(read: LabelList) -> list[Finding]:
    counts = Counter(row.source for row in read.rows if row.source and row.source not in SOURCES)
    return [
        Finding("info", f"{count} rows of source '{name}', not one of COVIDx's", str(read.path))
        for name, count in sorted(counts.items())
    ]


class _Places:
    """The folders a list's files may lie in, each looked into once."""

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        self._folders = [root / f for f in folders if (root / f).is_dir()] or [root]
        self._have = [{entry.name for entry in os.scandir(f)} for f in self._folders]

    def of(self, file: str) -> Path:
        """Where a file is, or where it should be."""
        for folder, have in zip(self._folders, self._have, strict=True):
            # A name with a folder in it is looked for as such.
            if file in have or ("/" in file and (folder / file).is_file()):
                return folder / file
        return self._folders[0] / file


# -- RSNA and RICORD ----------------------------------------------------------------------------


def _rsna(data: MedusaData) -> Found:
    root = _root(data)
    path = root / (data.labels.expanduser() if data.labels is not None else RSNA_LABELS)
    labels, findings = rsna_labels(path)
    places = _Places(root, ["stage_2_train_images", "train", "images", "."])
    entries = []
    for who, label in sorted(labels.items()):
        shown = places.of(f"{who}.dcm")
        if not shown.is_file():
            # COVIDx's own export of the same files.
            other = places.of(f"{who}.png")
            shown = other if other.is_file() else shown
        entries.append(Entry(shown.name, shown, who, label, source="rsna", where=str(path)))
    return Found("rsna", str(path), entries, findings)


def _ricord(data: MedusaData) -> Found:
    root = _root(data)
    return ricord.find(root, None if data.labels is None else root / data.labels.expanduser())


# -- folders with a csv -------------------------------------------------------------------------


def _tables(root: Path) -> list[Path]:
    """Tables that name images (or patients) and a label."""
    found = []
    for path in sorted(root.glob("*.csv")):
        have = columns_of(path)
        named = have & {*FILE_COLUMNS, *PATIENT_COLUMNS}
        if named and have & set(LABEL_COLUMNS):
            found.append(path)
    return found


def _csv(data: MedusaData) -> Found:
    root = _root(data)
    path = _table_file(root, data)
    table = read_table(path)
    files, patients = cells(table, FILE_COLUMNS), cells(table, PATIENT_COLUMNS)
    labels = _table_labels(columns_of(path), cells(table, LABEL_COLUMNS), data)
    parts, sources = cells(table, SPLIT_COLUMNS), cells(table, ("source", "dataset"))
    folders, masks = cells(table, ("folder",)), cells(table, _MASK_COLUMNS)
    weights, people = cells(table, ("weight",)), people_of(table)
    places = _Places(root, [".", "images", "train", "test"])
    entries: list[Entry] = []
    findings: list[Finding] = []
    skipped: Counter[str] = Counter()
    for i, line in enumerate(range(2, len(table) + 2)):
        if not is_frontal(people[i]["view"]):
            skipped["views other than frontal"] += 1
            continue
        if not labels[i]:
            skipped["no label"] += 1
            continue
        try:
            name = _file_name(files[i], patients[i], folders[i], places, f"{path}:{line}")
            mask = plain_path(masks[i], f"{path}:{line}") if masks[i] else ""
            weight = float(weights[i] or 1)
        except ValueError as error:  # DataError is one
            told = str(error) if isinstance(error, DataError) else f"weight '{weights[i]}'"
            findings.append(Finding("error", told, "" if f":{line}" in told else f"{path}:{line}"))
            continue
        entries.append(
            Entry(
                name,
                places.of(name),
                _person(patients[i]),
                labels[i],
                part=part_name(parts[i]),
                source=sources[i],
                meta=people[i],
                masks=(root / mask,) if mask else (),
                weight=weight,
                where=f"{path}:{line}",
            )
        )
    for why, count in skipped.items():
        findings.append(Finding("info", f"{count} rows left out: {why}", str(path)))
    return Found("csv", str(path), [_with_header(e, findings) for e in entries], findings)


def _table_file(root: Path, data: MedusaData) -> Path:
    if data.labels is not None:
        return root / data.labels.expanduser()
    found = _tables(root)
    if len(found) != 1:
        names = " or ".join(p.name for p in found)
        told = f"{len(found)} tables could hold labels; choose data.labels={names}"
        none = "no csv with a column of files or patients and one of labels; set data.labels"
        msg = f"{root}: {told if found else none}"
        raise DataError(msg)
    return found[0]


def _table_labels(columns: set[str], raw: Sequence[str], data: MedusaData) -> list[str]:
    """Labels; findings become COVIDx's classes unless classes or a merge say otherwise."""
    if "label" in columns or "class" in columns or "finding" not in columns:
        return list(raw)
    findings = [finding_of(text) for text in raw]
    three = data.classes == ["normal", "pneumonia", "COVID-19"]
    if data.merge or (data.classes is not None and not three):
        return findings
    return [covidx_label(finding, three) for finding in findings]


def _file_name(file: str, patient: str, folder: str, places: _Places, where: str) -> str:
    """The file of a row as a relative path; fig1's files are named by patient."""
    if file:
        name = plain_path(file, where)
        inside = f"{plain_path(folder, where)}/{name}" if folder else name
        return inside if places.of(inside).is_file() else name
    base = plain_path(patient, where)
    for ending in (".jpg", ".png", ".jpeg", ".dcm"):
        if places.of(base + ending).is_file():
            return base + ending
    return base + ".jpg"


def _person(patient: str) -> str:
    """fig1 writes several images of one patient as COVID-00039a, b and c."""
    match = re.fullmatch(r"(COVID-\d+)[a-z]", patient)
    return match[1] if match else patient


def _with_header(entry: Entry, findings: list[Finding]) -> Entry:
    """A DICOM file without a patient in the table belongs to the patient of its header."""
    if entry.patient or not entry.path.is_file() or not dicom.is_dicom(entry.path):
        return entry
    try:
        return replace(entry, patient=dicom.read_header(entry.path).patient)
    except DataError as error:
        findings.append(Finding("error", str(error), remedy="replace the file"))
        return entry


# -- lung masks ---------------------------------------------------------------------------------


def mask_files(root: Path) -> dict[str, tuple[Path, ...]]:
    """Stem of a radiograph -> its mask files.

    `1-mask.png` or `1_mask.png` beside `1.jpg`, a folder `masks` with the same names (with or
    without `_mask`), or Montgomery's `ManualMask/leftMask` and `rightMask`.
    """
    found: dict[str, tuple[Path, ...]] = {}
    lungs = [p for name in _LUNGS for p in sorted(root.glob(f"*/{name}/*.png"))]
    for path in lungs:
        found[path.stem] = (*found.get(path.stem, ()), path)
    folders = [root / n for n in _MASK_FOLDERS if (root / n).is_dir()]
    for path in (p for f in folders for p in sorted(f.iterdir())):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            match = _MASK_NAME.fullmatch(path.stem)
            found[match[1] if match else path.stem] = (path,)
    for path in sorted(root.glob("*.png")):
        match = _MASK_NAME.fullmatch(path.stem)
        if match is not None:
            found[match[1]] = (path,)
    return found


def _masks(data: MedusaData) -> Found:
    root = _root(data)
    masks = mask_files(root)
    listed = _covidx(data) if _versions(root) else None
    if listed is None and _masks_in_table(root, data):
        listed = _csv(data)
    if listed is not None:
        entries = [replace(e, label="") for e in listed.entries if e.masks]
        return Found("masks", listed.where, entries, listed.findings)
    if not masks:
        msg = f"{root}: no lung masks; looked for <name>-mask.png, masks/ and ManualMask/leftMask/"
        raise DataError(msg)
    images = _images_with_masks(root, masks)
    findings = [
        Finding("error", "a lung mask without its radiograph", str(masks[stem][0]))
        for stem in sorted(masks.keys() - images.keys())
    ]
    made = [
        Entry(relative(path, root), path, stem, masks=masks[stem], where=str(root))
        for stem, path in sorted(images.items())
    ]
    return Found("masks", str(root), made, findings)


def _masks_in_table(root: Path, data: MedusaData) -> bool:
    named = [root / data.labels.expanduser()] if data.labels is not None else _tables(root)
    return any(columns_of(path) & set(_MASK_COLUMNS) for path in named)


def _images_with_masks(root: Path, masks: Mapping[str, tuple[Path, ...]]) -> dict[str, Path]:
    theirs = {path for paths in masks.values() for path in paths}
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())]
    images: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            if path.stem in masks and path not in theirs and is_image(path):
                images.setdefault(path.stem, path)
    return images


def _root(data: MedusaData) -> Path:
    if data.root is None:
        msg = "data.root is not set"
        raise DataError(msg)
    return data.root
