"""Finding the bags of a data set: ACMIL, CLAM and TRIDENT trees, tensors, tables.

Recognition looks at names and at one HDF5 file; it reads no features except those of tables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from zoo.data import plain_name, read_csv
from zoo.domains.medical.wsi_mil.bags import (
    FEATURES,
    BagFile,
    H5Bag,
    TableBag,
    TensorBag,
    plain_label,
)
from zoo.domains.medical.wsi_mil.config import WsiData
from zoo.errors import DataError
from zoo.hdf5 import opened

ID_COLUMNS = ("slide_id", "slide", "bag_id", "bag", "bag_name", "image_id", "name", "id")
LABEL_COLUMNS = ("label", "class", "target")
PATIENT_COLUMNS = ("case_id", "patient", "patient_id")
SPLIT_COLUMNS = ("split_info", "split", "partition")

_H5 = (".h5", ".hdf5")
# Endings that slide names carry in tables although feature files do not, or the reverse.
_ENDINGS = re.compile(
    r"\.(svs|tiff?|ndpi|mrxs|scn|vms|vmu|bif|czi|dcm|isyntax|jpe?g|png|h5|hdf5|pt|npy)$", re.I
)
_TRIDENT = re.compile(r"(\d+(?:\.\d+)?)x_(\d+)px_(\d+)px_overlap")
# Sub-folders that hold something else than features.
_NOT_FEATURES = {"patches", "splits", "masks", "stitches", "dataset_csv", "coords", "thumbnails"}


@dataclass(frozen=True)
class Source:
    """The bags of a data set.

    Attributes:
        layout: `acmil`, `clam`, `trident`, `tensors` or `table`.
        path: Feature folder or file.
        bags: Slide name -> its bag, sorted by name.
        patients: Slide -> patient, where the layout itself tells (tables).
    """

    layout: str
    path: Path
    bags: dict[str, BagFile]
    patients: Mapping[str, str] = field(default_factory=dict)


def slide_name(text: str) -> str:
    """A slide's name without the file endings it may carry: `tumor_001.tif` -> `tumor_001`."""
    while True:
        shorter = _ENDINGS.sub("", text)
        if shorter in ("", text):
            return text
        text = shorter


def column(
    table: pd.DataFrame, given: str | None, usual: Sequence[str], where: object, key: str
) -> str | None:
    """The name of a table's column: the given one, else the first usual one (any case).

    Raises:
        DataError: A column was given and is not there.
    """
    names = [str(name) for name in table.columns]
    if given is not None:
        if given not in names:
            have = ", ".join(n or "(unnamed)" for n in names[:12])
            msg = f"{where}: no column '{given}' as data.{key} says; columns are {have}"
            raise DataError(msg)
        return given
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def below(root: Path, path: Path) -> Path:
    """`path` seen from the data root (from the folder of a root that is a file)."""
    base = root.parent if root.is_file() else root
    return base / path.expanduser()


def find(data: WsiData) -> Source:
    """The bags below `data.root`.

    Raises:
        DataError: The root is missing, nothing is recognised in it, or several feature sets are
            and `data.features` does not choose one.
    """
    if data.root is None:
        msg = "data.root is not set"
        raise DataError(msg)
    if not data.root.exists():
        msg = f"{data.root}: no such file or folder; set data.root to the data set"
        raise DataError(msg)
    start = data.root if data.features is None else below(data.root, data.features)
    if not start.exists():
        msg = f"{start}: no such feature file or folder; correct data.features"
        raise DataError(msg)
    found = _candidates(start)
    if data.layout != "auto":
        found = [(layout, path) for layout, path in found if layout == data.layout]
    if not found:
        want = "any layout" if data.layout == "auto" else f"layout '{data.layout}'"
        msg = (
            f"{start}: no features of {want} found; looked for h5_files/ and pt_files/, "
            "<mag>x_<size>px_<overlap>px_overlap/features_<encoder>/, *.h5, *.pt and tables"
        )
        raise DataError(msg)
    if len(found) > 1:
        base = data.root if data.root.is_dir() else data.root.parent
        names = [_relative(path, base) for _, path in found]
        msg = f"{start}: {len(found)} feature sets found; choose data.features={' or '.join(names)}"
        raise DataError(msg)
    layout, path = found[0]
    return open_source(layout, path, data)


def open_source(layout: str, path: Path, data: WsiData | None = None) -> Source:
    """The bags of a feature folder or file whose layout is known.

    Raises:
        DataError: Two files have one slide name, or the file cannot be read.
    """
    if layout == "acmil":
        return Source(layout, path, _acmil(path))
    if layout == "table":
        bags, patients = read_table(path, data or WsiData())
        return Source(layout, path, bags, patients)
    if layout == "trident":
        return Source(layout, path, _trident(path))
    if layout == "tensors":
        files: Iterable[Path] = [path] if path.is_file() else _files(path, (".pt",))
        return Source(layout, path, _unique(TensorBag(slide_name(f.name), f) for f in files))
    return Source(layout, path, _clam(path))


def candidates(path: Path) -> list[tuple[str, Path]]:
    """(layout, feature folder or file) of everything recognised at `path`, at most one level down.

    Raises:
        DataError: `path` does not exist.
    """
    if not path.exists():
        msg = f"{path}: no such file or folder"
        raise DataError(msg)
    return _candidates(path)


def _candidates(start: Path) -> list[tuple[str, Path]]:
    if start.is_file():
        return _file_candidates(start)
    if not start.is_dir():  # a pipe, say
        msg = f"{start}: is neither a plain file nor a folder"
        raise DataError(msg)
    found = _folder_candidates(start)
    # Loose files in the root must not hide a feature folder: both are offered to choose from.
    if not any(path != start for _, path in found if path.is_dir()) and not _is_tool_folder(start):
        inner = sorted(p for p in start.iterdir() if p.is_dir() and p.name not in _NOT_FEATURES)
        found += [hit for folder in inner for hit in _folder_candidates(folder)]
    if not found:
        found = [("table", p) for p in _files(start, (".csv",)) if _is_table(p)]
    return found


def _file_candidates(path: Path) -> list[tuple[str, Path]]:
    ending = path.suffix.lower()
    if ending in _H5:
        return [("acmil" if _has_groups(path) else "clam", path)]
    if ending == ".pt":
        return [("tensors", path)]
    return [("table", path)] if ending == ".csv" else []


def _folder_candidates(folder: Path) -> list[tuple[str, Path]]:
    if _is_tool_folder(folder):
        return [("trident" if _is_trident(folder) else "clam", folder)]
    inner = [*folder.glob("*_overlap/features_*"), *folder.glob("features_*")]
    found = [("trident", path) for path in sorted(inner) if _is_trident(path)]
    if found:
        return found
    files = _files(folder, _H5)
    if files:
        grouped = [path for path in files if _has_groups(path)]
        return [("acmil", path) for path in grouped] or [("clam", folder)]
    return [("tensors", folder)] if _files(folder, (".pt",)) else []


def _is_tool_folder(folder: Path) -> bool:
    """Whether a folder's own shape tells that it is one set of features."""
    return (folder / "h5_files").is_dir() or (folder / "pt_files").is_dir() or _is_trident(folder)


def _is_trident(folder: Path) -> bool:
    """Whether a folder holds TRIDENT's tile features: told by its own name and its parent."""
    if not (folder.name.startswith("features_") and folder.is_dir()):
        return False
    job = _TRIDENT.fullmatch(folder.parent.name) or (folder.parent / "patches").is_dir()
    return bool(job) and bool(_files(folder, _H5))


def _has_groups(path: Path) -> bool:
    """Whether an HDF5 file holds a group a slide; false for a file that cannot be read.

    Links elsewhere count as groups: they are never followed, and refused when their bag is read.
    """
    try:
        with opened(path) as file:
            links = file.id.links
            if any(links.exists(name.encode()) for name in FEATURES):
                return False
            return any(
                links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD
                or isinstance(file[name], h5py.Group)
                for name in file
            )
    except DataError:
        return False


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files of a folder by ending, sorted; hidden ones (`._x.h5` of macOS) are left out.

    Links that lead nowhere are among them: passed over, they would be missing in silence.
    """
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in endings and not p.name.startswith(".") and not p.is_dir()
    )


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _unique(bags: Iterable[BagFile]) -> dict[str, BagFile]:
    found: dict[str, BagFile] = {}
    for bag in bags:
        plain_name(bag.id, bag.path)
        if bag.id in found:
            msg = f"{bag.where}: slide '{bag.id}' has a second feature file, {found[bag.id].where}"
            raise DataError(msg)
        found[bag.id] = bag
    return dict(sorted(found.items()))


def _acmil(path: Path) -> dict[str, BagFile]:
    encoder = re.fullmatch(r"patch_feats_pretrain_(.+)", path.stem)
    settings = {"encoder": encoder[1]} if encoder else {}
    with opened(path) as file:
        names = list(file)
    bags = _unique(H5Bag(slide_name(n), path, group=n, settings=settings) for n in names)
    if not bags:
        msg = f"{path}: the file holds no slide"
        raise DataError(msg)
    return bags


def _clam(path: Path) -> dict[str, BagFile]:
    """CLAM's `h5_files` with `pt_files` for slides that have only those, a flat folder, or a file.

    The coordinate files, whose attributes tell the tile size, are looked for beside the features.
    """
    if path.is_file():
        return _unique([H5Bag(slide_name(path.name), path)])
    inner = path / "h5_files"
    flat = not (inner.is_dir() or (path / "pt_files").is_dir())
    folder = path if flat else inner
    files = _files(folder, _H5) if folder.is_dir() else []
    beside = [path / "patches", path.parent / "patches"]
    bags: list[BagFile] = []
    for file in files:
        name = slide_name(file.name)
        hits = (p / f"{name}.h5" for p in beside)
        companion = next((hit for hit in hits if os.path.lexists(hit)), None)
        bags.append(H5Bag(name, file, companion=companion))
    have = {bag.id for bag in bags}
    pt_files = path / "pt_files"
    tensors = _files(pt_files, (".pt",)) if pt_files.is_dir() else []
    bags += [TensorBag(n, t) for t in tensors if (n := slide_name(t.name)) not in have]
    return _unique(bags)


def _trident(folder: Path) -> dict[str, BagFile]:
    settings: dict[str, Any] = {"encoder": folder.name.removeprefix("features_")}
    told = _TRIDENT.fullmatch(folder.parent.name)
    if told:
        settings["target_magnification"] = float(told[1])
        settings["patch_size"], settings["overlap"] = int(told[2]), int(told[3])
    bags = []
    for file in _files(folder, _H5):
        name = slide_name(file.name)
        patches = folder.parent / "patches" / f"{name}_patches.h5"
        companion = patches if os.path.lexists(patches) else None
        bags.append(H5Bag(name, file, companion=companion, settings=settings))
    return _unique(bags)


def _is_table(path: Path) -> bool:
    """Whether a csv looks like bags: no header, or a bag column, and two numeric columns."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        head = pd.read_csv(path, header=None, nrows=2, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return False
    if len(head.columns) < 4:
        return False
    first, last = head.iloc[0].tolist(), head.iloc[-1].tolist()
    # Stricter than reading: a clinical table of slides and numbers must not pass for features.
    named = any(cell.strip().lower() in ("bag", "bag_id", "bag_name") for cell in first)
    return (named or _headless(first)) and sum(_is_number(cell) for cell in last[2:]) >= 2


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _headless(row: Sequence[str]) -> bool:
    """Whether a table's first row is data: everything after label and bag id is a number."""
    return len(row) > 2 and all(_is_number(cell) for cell in row[2:])


def read_table(path: Path, data: WsiData) -> tuple[dict[str, BagFile], dict[str, str]]:
    """Bags of a table with one instance a row.

    Without a header the columns are bag label, bag id, features (as MUSK). With one, the columns
    of bag, label, patient and instance label are found by name and the rest are features; the
    label may be missing.

    Returns:
        Bag name -> bag; bag name -> patient.

    Raises:
        DataError: A cell is no number, or the rows of a bag disagree on its label or patient.
    """
    first = read_csv(path, header=False).iloc[0].tolist()
    label: str | None
    patient: str | None
    instance: str | None
    if _headless(first):
        table = read_csv(path, header=False)
        table.columns = pd.Index([str(name) for name in table.columns])
        names, label = "1", "0"
        patient = instance = None
    else:
        table = read_csv(path)
        found = column(table, data.id_column, ID_COLUMNS, path, "id_column")
        if found is None:
            msg = f"{path}: no column of bag names ({', '.join(ID_COLUMNS)}); set data.id_column"
            raise DataError(msg)
        names = found
        label = column(table, data.label_column, LABEL_COLUMNS, path, "label_column")
        patient = column(table, data.patient_column, PATIENT_COLUMNS, path, "patient_column")
        instance = column(table, None, ("instance_label", "patch_label"), path, "")
    special = {names, label, patient, instance, ""}
    features = [c for c in table.columns if c not in special and not c.startswith("Unnamed:")]
    values = _numbers(table, features, path)
    marks = None if instance is None else _numbers(table, [instance], path)[:, 0]
    bags: list[BagFile] = []
    patients = {}
    for name, found_rows in table.groupby(names, sort=False).indices.items():
        rows = np.asarray(found_rows)
        bag = slide_name(str(name))
        told = _agreed(table, label, rows, path, bag)
        bags.append(
            TableBag(
                bag,
                path,
                values[rows],
                None if marks is None else marks[rows].astype(np.int64),
                None if told is None else plain_label(told),
            )
        )
        case = _agreed(table, patient, rows, path, bag)
        if case is not None:
            patients[bag] = case
    return _unique(bags), patients


def _agreed(
    table: pd.DataFrame, name: str | None, rows: np.ndarray, path: Path, bag: str
) -> str | None:
    """The one value of a column in the rows of a bag; None without column or value."""
    if name is None:
        return None
    values = sorted(set(table[name].iloc[rows]) - {""})
    if len(values) > 1:
        msg = f"{path}: bag '{bag}' has several values in column '{name}': {', '.join(values[:3])}"
        raise DataError(msg)
    return values[0] if values else None


def _numbers(table: pd.DataFrame, names: list[str], path: Path) -> np.ndarray:
    """Columns as (rows, columns) float32; an empty cell becomes NaN and is told with its bag."""
    cells = table[names].replace("", "nan")
    numbers = cells.apply(pd.to_numeric, errors="coerce")
    wrong = numbers.isna() & (cells != "nan")
    if wrong.to_numpy().any():
        row, place = (int(x[0]) for x in np.nonzero(wrong.to_numpy()))
        cell = cells.iloc[row, place]
        msg = f"{path}: {str(cell)[:40]!r} in column '{names[place]}', row {row + 1} is no number"
        raise DataError(msg)
    return np.asarray(numbers, dtype=np.float32)
