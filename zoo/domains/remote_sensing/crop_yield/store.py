"""Histograms on disk: a prepared folder with a file a year, or the published single file."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.domains.remote_sensing.crop_yield.histograms import STEPS
from zoo.domains.remote_sensing.crop_yield.joint import PUBLISHED, SHAPE, YEARS
from zoo.domains.remote_sensing.crop_yield.yields import fips_code
from zoo.errors import DataError, first_line

# Rows of the published file that are turned into float32 at once.
_ROWS = 64
# Where a prepared folder may lie below what the user names.
_BELOW = ("", "prepared", "modis", "modis/prepared")
_KEYS = ("histogram", "fips", "steps", "pixels", "lon", "lat")
# What reading a damaged archive raises; zipfile gives up on unknown compression with the last two.
_DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
)
# Bytes that a column of a year may unpack to: there are some three thousand counties.
_COLUMN = 2**24
_HIGHEST = 10**9  # beyond any yield, year, place or code
_PUBLISHED_KEYS = ("output_image", "output_yield", "output_year", "output_locations")


@dataclass(frozen=True)
class Store:
    """Where histograms are.

    Attributes:
        root: The folder of the files, or the published file.
        years: File of each year; empty for the published file.
        table: One row a county-year in rising order of year and county: `year`, `fips`, `lon`,
            `lat`, `steps`, `pixels`, `yield_bu_acre` (NaN unless the published file has it), and
            `row` in its file.
    """

    root: Path
    years: Mapping[int, Path]
    table: pd.DataFrame

    def read(self, rows: pd.DataFrame) -> np.ndarray:
        """(N, 9, 32, 32) float32 histograms of some rows of the table, in their order.

        Raises:
            DataError: A file is damaged.
        """
        out = np.empty((len(rows), *SHAPE), np.float32)
        if not self.years:
            wanted = {int(row): i for i, row in enumerate(rows["row"])}
            for row, image in _published_images(self.root):
                if row in wanted:
                    out[wanted[row]] = image
            _proportions(out, self.root)
            return out
        places = np.arange(len(rows))
        for year in sorted(set(rows["year"])):
            mine = (rows["year"] == year).to_numpy()
            with _opened(self.years[year]) as archive:
                images = _member(archive, "histogram", self.years[year])
                out[places[mine]] = images[rows["row"].to_numpy()[mine]]
            _proportions(out[places[mine]], self.years[year])
        return out


def find_store(root: Path) -> Path | None:
    """The prepared folder or the published file at or below a place; None if there is none."""
    if root.is_file():
        return root
    for below in _BELOW:
        folder = root / below
        if any((folder / YEARS).glob("[0-9]*.npz")):
            return folder
        if (folder / PUBLISHED).is_file():
            return folder / PUBLISHED
    return None


def open_store(place: Path) -> Store:
    """Look at what `find_store` found; the histograms themselves are not read.

    Raises:
        DataError: A file is damaged, has members missing or of another shape, or a county stands
            twice in a year.
    """
    store = _published(place) if place.is_file() else _yearly(place)
    table = store.table.sort_values(["year", "fips"], kind="stable").reset_index(drop=True)
    twice = table[table.duplicated(["year", "fips"])]
    if len(twice):
        first = twice.iloc[0]
        msg = f"{place}: county {first['fips']} stands twice in {first['year']}; prepare it again"
        raise DataError(msg)
    return Store(store.root, store.years, table)


def _opened(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        msg = f"{path}: is no npz file ({first_line(error)}); prepare or fetch it again"
        raise DataError(msg) from None


def _member(archive: Any, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(archive[name])
    except _DAMAGED as error:
        msg = f"{path}: member '{name}' is damaged ({first_line(error)}); fetch it again"
        raise DataError(msg) from None


def _column(archive: Any, name: str, path: Path) -> np.ndarray:
    """One value a county."""
    if archive.zip.getinfo(f"{name}.npy").file_size > _COLUMN:
        msg = f"{path}: member '{name}' is far longer than there are counties; fetch it again"
        raise DataError(msg)
    values = _member(archive, name, path)
    plain = values.ndim == 1 and values.dtype.kind in ("U" if name == "fips" else "fiu")
    if not plain or (values.dtype.kind == "f" and np.isinf(values).any()):
        msg = f"{path}: member '{name}' is no column of values, one a county; prepare it again"
        raise DataError(msg)
    return values


def _have(archive: Any, names: Iterable[str], path: Path) -> None:
    missing = [name for name in names if name not in getattr(archive, "files", ())]
    if missing:
        msg = f"{path}: no member {', '.join(missing)}; it holds no histograms of counties"
        raise DataError(msg)


def _yearly(folder: Path) -> Store:
    years, tables = {}, []
    for path in sorted((folder / YEARS).glob("[0-9]*.npz")):
        if not path.stem.isdigit():
            continue
        if not path.is_file():  # a pipe would be waited for
            msg = f"{path}: is no plain file"
            raise DataError(msg)
        with _opened(path) as archive:
            _have(archive, _KEYS, path)
            columns = {name: _column(archive, name, path) for name in _KEYS[1:]}
        shape = next(_header(path, "histogram"))
        if {(len(column), *SHAPE) for column in columns.values()} != {shape}:
            msg = f"{path}: its members have different lengths or shapes; prepare it again"
            raise DataError(msg)
        year = int(path.stem)
        years[year] = path
        table = pd.DataFrame({"year": year} | columns)
        tables.append(table.assign(row=np.arange(len(table)), yield_bu_acre=np.nan))
    table = pd.concat(tables, ignore_index=True)
    table["fips"] = table["fips"].astype(str)
    return Store(folder, years, table)


def _published(path: Path) -> Store:
    with _opened(path) as archive:
        _have(archive, [*_PUBLISHED_KEYS, "output_index"], path)
        names = (*_PUBLISHED_KEYS[1:], "output_index")
        value, year, place, index = (_member(archive, name, path) for name in names)
    for name, values in zip(names, (value, year, place, index), strict=True):
        # NaN is not below it either.
        if values.dtype.kind not in "fiu" or not (np.abs(values) < _HIGHEST).all():
            msg = f"{path}: member '{name}' holds what is no number; fetch it again"
            raise DataError(msg)
    count = value.size
    have = (next(_header(path)), value.shape, year.shape, place.shape, index.shape)
    wanted = ((count, *SHAPE), (count,), (count,), (count, 2), (count, 2))
    for name, shape, fits in zip(("output_image", *names), have, wanted, strict=True):
        if shape != fits:
            msg = f"{path}: {name} is {shape}, expected {fits}; fetch it again"
            raise DataError(msg)
    table = pd.DataFrame(
        {
            "year": year.astype(int),
            "fips": [fips_code(s, c) for s, c in index.astype(int).tolist()],
            "lon": place[:, 0].astype(float),
            "lat": place[:, 1].astype(float),
            "steps": STEPS,
            "pixels": -1,
            "yield_bu_acre": value.astype(float),
            "row": np.arange(count),
        }
    )
    return Store(path, {}, table)


def _header(path: Path, name: str = "output_image") -> Iterator[Any]:
    """Shape, then file and type of a large member, for reading it piece by piece."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(file)
            if fortran or kind.kind != "f":
                msg = "it is stored in another order or type"
                raise ValueError(msg)
            yield shape
            yield file, kind
    except _DAMAGED as error:
        msg = f"{path}: member '{name}' cannot be read ({first_line(error)}); fetch it again"
        raise DataError(msg) from None


def _published_images(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Row and image (9, 32, 32) of the published file, some rows at a time.

    As a whole the eleven states take a gigabyte of memory in float64.
    """
    header = _header(path)
    shape = next(header)
    file, kind = next(header)
    size = math.prod(SHAPE) * kind.itemsize
    for first in range(0, shape[0], _ROWS):
        count = min(_ROWS, shape[0] - first)
        try:
            body = file.read(count * size)
        except _DAMAGED as error:
            msg = f"{path}: output_image is damaged ({error}); fetch it again"
            raise DataError(msg) from None
        if len(body) != count * size:
            msg = f"{path}: output_image ends after row {first}; fetch it again"
            raise DataError(msg)
        block = np.frombuffer(body, kind).reshape(count, *SHAPE)
        yield from zip(range(first, first + count), block, strict=True)


def _proportions(images: np.ndarray, where: Path) -> None:
    """Refuse what cannot be proportions: a mean taken off already, counts, NaN."""
    if len(images) and not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
        msg = f"{where}: histograms are no proportions from 0 to 1; prepare or fetch them again"
        raise DataError(msg)
