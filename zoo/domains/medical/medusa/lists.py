"""COVIDx label lists: one radiograph a row, in the forms of ten versions.

`patient file label source`, single spaces, no header. Versions 1 to 2 and some later test lists
have no source; lists 7 and 8 have five tokens where a sirm patient is written `COVID 1`; 199 rows
of 9A and 9B say `rnsa` for rsna (label files of lindawangg/COVID-Net).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data import read_text
from zoo.domains.medical.medusa.entries import PARTS, PUBLISHED, plain_path
from zoo.errors import DataError
from zoo.task import Finding

SOURCES = ("cohen", "fig1", "actmed", "sirm", "rsna", "ricord", "bimcv", "stonybrook")
_MISSPELT = {"rnsa": "rsna"}
_LABELS = {name.casefold() for names in PUBLISHED for name in names}
_FILE = re.compile(r"\.(png|jpe?g|dcm|dicom)$", re.IGNORECASE)
_LIST = re.compile(r"(train|val|test)(?:[_-](.+))?\.txt", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A row of a list.

    Attributes:
        patient: Patient, blanks kept. In memory only.
        file: File name.
        label: As written.
        source: Collection, "" where the list does not say.
        line: Number in the file, from 1.
    """

    patient: str = field(repr=False)
    file: str
    label: str
    source: str
    line: int


@dataclass(frozen=True)
class LabelList:
    """A list that has been read.

    Attributes:
        path: The file.
        rows: Sound rows, without exact repetitions.
        findings: Rows that cannot be read, contradict one another, or were corrected.
    """

    path: Path
    rows: Sequence[Row]
    findings: Sequence[Finding]


def parse_row(text: str, line: int = 0) -> Row:
    """One row; read from the right where its end is known, else from the left.

    Args:
        text: The row.
        line: Its number.

    Raises:
        DataError: It has fewer than three tokens, or no file name where one belongs.
    """
    tokens = text.split()
    if len(tokens) < 3:
        msg = f"{len(tokens)} columns; expected patient, file, label and maybe source"
        raise DataError(msg)
    last = _MISSPELT.get(tokens[-1].lower(), tokens[-1].lower())
    if last in SOURCES and len(tokens) >= 4:
        before, label, source = tokens[:-2], tokens[-2], last
    elif tokens[-1].casefold() in _LABELS:
        before, label, source = tokens[:-1], tokens[-1], ""
    else:
        # A source or a label nobody published.
        before, label = tokens[:2], tokens[2]
        source = " ".join(tokens[3:])
    patient, file = " ".join(before[:-1]), before[-1]
    if not patient or not _FILE.search(file):
        msg = f"'{file[:60]}' where a file name ending in .png, .jpg, .jpeg or .dcm was expected"
        raise DataError(msg)
    return Row(patient, file, label, source, line)


def read_list(path: Path) -> LabelList:
    """Read a list; what is wrong with a row becomes a finding with its number.

    Raises:
        DataError: The file is missing, no text, or has no row at all.
    """
    lines = read_text(path).splitlines()
    rows: dict[str, Row] = {}
    findings: list[Finding] = []
    twice = misspelt = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = parse_row(text, number)
            plain_path(row.file, "the row")
        except DataError as error:
            findings.append(Finding("error", str(error), f"{path}:{number}", "correct the row"))
            continue
        misspelt += text.split()[-1].lower() in _MISSPELT
        known = rows.setdefault(row.file, row)
        if known is row:
            continue
        if (known.patient, known.label) == (row.patient, row.label):
            twice += 1
            continue
        told = f"'{row.file}' is listed again, otherwise than in line {known.line}"
        findings.append(Finding("error", told, f"{path}:{number}", "keep one of the two rows"))
    if not rows and not findings:
        msg = f"{path}: the list has no rows"
        raise DataError(msg)
    for count, told in ((twice, "repeated rows left out"), (misspelt, "rows say rnsa for rsna")):
        if count:
            findings.append(Finding("info", f"{count} {told}", str(path)))
    return LabelList(path, list(rows.values()), findings)


def find_lists(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Version -> train, val, test -> list.

    Versions are named as the authors name them: `train_COVIDx9B.txt` is 9B,
    `train_COVIDx_CXR-3B.txt` CXR-3B, Kaggle's plain `train.txt` "". A version without a training
    list is none.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            match = _LIST.fullmatch(path.name)
            if match is not None:
                found.setdefault(version_of(match[2] or ""), {})[match[1].lower()] = path
    return {
        version: {part: paths[part] for part in PARTS if part in paths}
        for version, paths in found.items()
        if "train" in paths
    }


def version_of(text: str) -> str:
    """The part of a list's name that tells the version: `COVIDx_CXR-3B` -> `CXR-3B`."""
    return re.sub(r"^covidx[_-]?", "", text.strip(), flags=re.IGNORECASE)


def siblings(path: Path) -> dict[str, Path]:
    """The list a user names and those of the other parts that lie beside it.

    Raises:
        DataError: It is missing, or not named as a training list.
    """
    if not path.is_file():
        msg = f"{path}: no such label list; correct data.labels"
        raise DataError(msg)
    match = _LIST.fullmatch(path.name)
    if match is None or match[1].lower() != "train":
        msg = f"{path}: a list is named train_<version>.txt, its test list test_<version>.txt"
        raise DataError(msg)
    rest = path.name[len("train") :]
    beside = {part: path.with_name(part + rest) for part in ("val", "test")}
    return {"train": path} | {part: p for part, p in beside.items() if p.is_file()}
