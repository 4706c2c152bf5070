"""RICORD 1c as The Cancer Imaging Archive serves it: studies of DICOM files, MD.ai annotations.

Names, boxes and severity follow COVID-Net's `create_ricord_dataset` and `create_COVIDxSev`. The
table of clinical data is not needed: a file's header has its study's UID.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.data import read_json, read_text
from zoo.domains.medical import dicom
from zoo.domains.medical.medusa.entries import Entry, Found
from zoo.errors import DataError
from zoo.task import Finding

LIST = "ricord_data_set.txt"
_PATIENT = re.compile(r"MIDRC-RICORD-1C-(.+)", re.IGNORECASE)
_STUDY = re.compile(r"(?:.*-)?(\d{5})")
_DEPTH = 4
# Words that begin the grading labels; others of the same project grade appearance.
_GRADES = {"mild": "level1", "moderate": "level2", "severe": "level2", "invalid": "NA"}


def patient_folders(root: Path) -> list[Path]:
    """Folders `MIDRC-RICORD-1C-<mrn>` at most four levels below the root."""
    found = []
    for folder, inner, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        for name in sorted(inner):
            if _PATIENT.fullmatch(name):
                found.append(Path(folder) / name)
        inner[:] = [n for n in inner if depth < _DEPTH and not _PATIENT.fullmatch(n)]
    return sorted(found)


def find(root: Path, labels: Path | None) -> Found:
    """The frontal radiographs of a RICORD download.

    Args:
        root: Folder above the patients' folders.
        labels: MD.ai export; none: `*annotations*.json` in the root. Without any, every image is
            `positive`, as COVIDx takes them.

    Raises:
        DataError: The list of usable images or the annotations cannot be read.
    """
    findings: list[Finding] = []
    annotations = labels or next(iter(sorted(root.glob("*annotations*.json"))), None)
    grades = severity(annotations) if annotations is not None else None
    usable = read_usable(root / LIST) if (root / LIST).is_file() else None
    entries: dict[str, Entry] = {}
    skipped: Counter[str] = Counter()
    for image in _images(root, findings):
        if usable is not None and image.name not in usable:
            skipped[f"not in {LIST}"] += 1
            continue
        if image.header.view not in dicom.FRONTAL:
            skipped["views other than AP and PA"] += 1
            continue
        label = "positive" if grades is None else grades.get(image.header.study, "NA")
        if label == "NA":
            skipped["no airspace grade"] += 1
            continue
        header = image.header
        entries[image.name] = Entry(
            image.name,
            image.path,
            image.patient,
            label,
            source="ricord",
            meta={"sex": header.sex, "age": header.age, "view": header.view},
            box=usable[image.name] if usable is not None else None,
            where=str(image.path.parent),
        )
    for why, count in skipped.items():
        findings.append(Finding("info", f"{count} images left out: {why}", str(root)))
    where = str(annotations or root)
    return Found("ricord", where, list(entries.values()), findings)


@dataclass(frozen=True)
class _Image:
    name: str
    path: Path
    patient: str = field(repr=False)
    header: dicom.Header = field(repr=False)


def _images(root: Path, findings: list[Finding]) -> Iterator[_Image]:
    """Every readable DICOM file under its COVIDx name; the others become findings."""
    for folder in patient_folders(root):
        match = _PATIENT.fullmatch(folder.name)
        patient = match[1] if match else folder.name
        for study in sorted(p for p in folder.iterdir() if p.is_dir()):
            files = sorted(p for p in study.rglob("*") if not p.is_dir() and dicom.is_dicom(p))
            for index, path in enumerate(files):
                try:
                    header = dicom.read_header(path)
                except DataError as error:
                    findings.append(Finding("error", str(error)))
                    continue
                # Folders end in five digits of the study's UID, in some downloads only in effect.
                digits = _STUDY.fullmatch(study.name)
                tail = digits[1] if digits else header.study[-5:]
                name = f"MIDRC-RICORD-1C-{patient}-{tail}-{index}.png"
                yield _Image(name, path, patient, header)


def read_usable(path: Path) -> dict[str, tuple[int, int, int, int] | None]:
    """Image name -> box in pixels, ends exclusive, or None, from `ricord_data_set.txt`.

    Raises:
        DataError: A row is neither a name nor a name and four whole numbers in order.
    """
    usable: dict[str, tuple[int, int, int, int] | None] = {}
    for number, text in enumerate(read_text(path).splitlines(), 1):
        tokens = text.split()
        if len(tokens) == 1:
            usable[tokens[0]] = None
        elif tokens:
            try:
                left, top, right, bottom = (int(t) for t in tokens[1:])
            except ValueError:
                left = top = right = bottom = 0
            if not (0 <= left < right and 0 <= top < bottom):
                msg = f"{path}:{number}: expected a name, or a name and xmin ymin xmax ymax"
                raise DataError(msg)
            usable[tokens[0]] = (left, top, right, bottom)
    return usable


def severity(path: Path) -> dict[str, str]:
    """StudyInstanceUID -> level1, level2 or NA: the majority of the annotators' grades.

    Mild is level1, moderate and severe are level2, an invalid study is NA; of equally many the
    one met first counts. Other labels of the project are not grades.

    Args:
        path: MD.ai export: `labelGroups` with the labels' names and `datasets` with annotations,
            or a plain list of annotations with `labelName`.

    Raises:
        DataError: The file cannot be read as such.
    """
    loaded = read_json(path)
    try:
        votes: dict[str, list[str]] = {}
        for study, label in _annotations(loaded):
            grade = _GRADES.get(label.split()[0].lower() if label.split() else "")
            if grade is not None:
                votes.setdefault(study, []).append(grade)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not an MD.ai export of annotations ({type(error).__name__})"
        raise DataError(msg) from None
    return {study: Counter(grades).most_common(1)[0][0] for study, grades in votes.items()}


def _annotations(loaded: Any) -> Iterator[tuple[str, str]]:
    if isinstance(loaded, list):
        groups: list[Any] = []
        annotations = loaded
    else:
        groups = loaded.get("labelGroups", [])
        annotations = [a for d in loaded["datasets"] for a in d["annotations"]]
    names: Mapping[str, str] = {one["id"]: one["name"] for g in groups for one in g["labels"]}
    for one in annotations:
        label = one.get("labelName") or names.get(one.get("labelId"), "")
        if one.get("StudyInstanceUID"):
            yield str(one["StudyInstanceUID"]), str(label)
