"""Tables that come with radiographs: metadata, findings, labels; RSNA's csv files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from zoo.data import parsed_csv
from zoo.domains.medical.medusa.entries import facts_of_person
from zoo.errors import DataError
from zoo.task import Finding

FILE_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "imagename",
    "image",
    "image_path",
    "path",
    "image index",
    "image_id",
)
LABEL_COLUMNS = ("label", "class", "finding", "finding labels", "target", "diagnosis")
PATIENT_COLUMNS = ("patientid", "patient_id", "patient id", "patient", "subject_id", "case_id")
SPLIT_COLUMNS = ("split", "part", "partition", "set")
SEX_COLUMNS = ("sex", "gender", "patient sex", "patient gender", "patientsex")
AGE_COLUMNS = ("age", "patient age", "patientage")
VIEW_COLUMNS = ("view", "view position", "viewposition", "projection")

_PERSONAL = {*SEX_COLUMNS, *AGE_COLUMNS, *VIEW_COLUMNS}
_KNOWN = {*_PERSONAL, *FILE_COLUMNS, *LABEL_COLUMNS, *PATIENT_COLUMNS, *SPLIT_COLUMNS}

# What COVIDx calls pneumonia (create_COVIDx of COVID-Net).
_PNEUMONIA = {
    "sars",
    "mers",
    "mers-cov",
    "streptococcus",
    "klebsiella",
    "chlamydophila",
    "legionella",
    "e.coli",
    "lung opacity",
    "pneumonia",
}
_NEGATIVE_POSITIVE = ("negative", "positive")
_THREE = ("normal", "pneumonia", "COVID-19")
_FRONTAL = {"", "AP", "PA", "AP SUPINE", "AP SEMI ERECT", "AP ERECT"}


def read_table(path: Path) -> pd.DataFrame:
    """A csv as trimmed text cells, in UTF-8 or, as `figure1` has it, ISO-8859-1.

    Raises:
        DataError: The file is missing, empty or no csv.
    """
    if not path.is_file():
        msg = f"{path}: cannot be read (no such file, or no plain one)"
        raise DataError(msg)
    try:
        body = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise DataError(msg) from None
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = body.decode("iso-8859-1")
    table = parsed_csv(io.StringIO(text), path).fillna("")
    if table.empty:
        msg = f"{path}: the table has no rows"
        raise DataError(msg)
    for name in table:
        table[name] = table[name].str.strip()
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    return table


def column(table: pd.DataFrame, usual: Sequence[str]) -> str | None:
    """The first of the usual columns that a table has."""
    have = {str(name) for name in table.columns}
    return next((name for name in usual if name in have), None)


def cells(table: pd.DataFrame, usual: Sequence[str]) -> list[str]:
    """The cells of the first usual column there is, else empty ones."""
    name = column(table, usual)
    return [""] * len(table) if name is None else [str(cell) for cell in table[name]]


def columns_of(path: Path) -> set[str]:
    """Column names in lower case; none where the file is no csv."""
    if not path.is_file():  # a pipe would be waited for
        return set()
    try:
        with path.open("rb") as file:
            line = file.readline(65536).decode("iso-8859-1").removeprefix("ï»¿")
    except OSError:
        return set()
    if "\0" in line:  # no text
        return set()
    try:
        head = pd.read_csv(io.StringIO(line), nrows=0)
    except ValueError:
        return set()
    return {str(name).strip().lower() for name in head.columns}


def finding_of(text: str) -> str:
    """The finding that counts: first of a comma list (fig1), last of a `/` hierarchy (cohen)."""
    return text.split(",")[0].split("/")[-1].strip()


def covidx_label(finding: str, three: bool) -> str:
    """What COVIDx makes of a finding: COVID-19 against all others, or normal, pneumonia, COVID-19.

    Args:
        finding: As `finding_of` gives it; "" stays "".
        three: Three classes.
    """
    if not finding:
        return ""
    covid = finding.casefold() in ("covid-19", "covid19", "covid")
    if not three:
        return _NEGATIVE_POSITIVE[covid]
    return _THREE[2 if covid else int(finding.casefold() in _PNEUMONIA)]


def is_frontal(view: str) -> bool:
    """Whether a view is one that COVIDx keeps; an unknown one is."""
    return view.strip().upper() in _FRONTAL


# -- people -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class People:
    """Sex, age and view from metadata tables.

    Attributes:
        by_file: File name -> facts.
        by_patient: Patient -> facts, for tables without file names. In memory only.
        findings: Tables that could not be read.
    """

    by_file: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    by_patient: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    findings: Sequence[Finding] = ()

    def of(self, file: str, patient: str) -> Mapping[str, str]:
        """What is known of a radiograph."""
        return self.by_file.get(file) or self.by_patient.get(patient) or {}


def read_people(paths: Iterable[Path]) -> People:
    """Facts from every table that has a sex, age or view column; a broken one is a warning."""
    by_file: dict[str, Mapping[str, str]] = {}
    by_patient: dict[str, Mapping[str, str]] = {}
    findings = []
    for path in paths:
        if not path.is_file():
            told = "is no plain file, or a link that leads nowhere"
            findings.append(Finding("warning", told, str(path), "subgroups are not known"))
            continue
        have = columns_of(path)
        if not have:
            told = "cannot be read as a table"
            findings.append(Finding("warning", told, str(path), "subgroups are not known"))
        elif not have & _KNOWN:
            told = "has no column that is known, such as sex, age, view, filename or patientid"
            findings.append(Finding("warning", told, str(path), "subgroups are not known"))
        if not have & _PERSONAL:
            continue
        try:
            table = read_table(path)
        except DataError as error:
            findings.append(Finding("warning", str(error), remedy="subgroups are not known"))
            continue
        people = people_of(table)
        files, patients = cells(table, FILE_COLUMNS), cells(table, PATIENT_COLUMNS)
        for file, patient, facts in zip(files, patients, people, strict=True):
            if file:
                by_file.setdefault(file, facts)
            elif patient:
                by_patient.setdefault(patient, facts)
    return People(by_file, by_patient, findings)


def people_of(table: pd.DataFrame) -> list[dict[str, str]]:
    """Sex, age and view of each row."""
    columns = (cells(table, usual) for usual in (SEX_COLUMNS, AGE_COLUMNS, VIEW_COLUMNS))
    return [facts_of_person(*row) for row in zip(*columns, strict=True)]


# -- RSNA ---------------------------------------------------------------------------------------

_BOX = ("x", "y", "width", "height")


def rsna_labels(path: Path) -> tuple[dict[str, str], list[Finding]]:
    """Patient -> label from one of the two csv files of the RSNA pneumonia challenge.

    `stage_2_train_labels.csv` has a row a box: a patient is positive if any row is.
    `stage_2_detailed_class_info.csv` repeats a patient's class with every box.

    Returns:
        Labels (negative and positive, or the detailed classes), and findings on bad rows.

    Raises:
        DataError: The file is missing, no csv, or has neither column.
    """
    table = read_table(path)
    detailed = column(table, ("class",))
    target = column(table, ("target",))
    patient = column(table, ("patientid",))
    if patient is None or (detailed is None and target is None):
        msg = f"{path}: expected the columns patientId and Target (or class)"
        raise DataError(msg)
    labels: dict[str, str] = {}
    findings = []
    for line, row in enumerate(table.to_dict("records"), 2):
        who = str(row[patient])
        told = None if target is None else _wrong_box(row)
        if not re.fullmatch(r"[\w.\-]+", who):
            told = "no patientId" if not who else "a patientId that is no plain name"
        if told:
            findings.append(Finding("error", told, f"{path}:{line}", "correct the row"))
            continue
        if target is not None:
            if row["target"] == "1" or who not in labels:
                labels[who] = _NEGATIVE_POSITIVE[row["target"] == "1"]
        elif labels.setdefault(who, str(row["class"])) != str(row["class"]):
            told = "another class than an earlier row of the same patient"
            findings.append(Finding("error", told, f"{path}:{line}", "keep one class"))
    return labels, findings


def _wrong_box(row: Mapping[object, object]) -> str:
    """Why a row of the box table is wrong, "" if it is not: pixels of a 1024 grid, or empty."""
    given = [str(row.get(name, "")) for name in _BOX]
    if row["target"] not in ("0", "1"):
        return f"Target is '{row['target']}', expected 0 or 1"
    if row["target"] == "0":
        return "Target is 0 but there is a box" if any(given) else ""
    try:
        x, y, width, height = (float(value) for value in given)
    except ValueError:
        return "Target is 1 but the box is not four numbers"
    inside = min(x, y) >= 0 and min(width, height) > 0 and max(x + width, y + height) <= 1024
    return "" if inside else "a box outside of 1024 x 1024 pixels"
