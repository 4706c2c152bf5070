"""County pictures in CropNet's HDF5 files: looked at quickly, read lazily, links refused.

A file is of one state and quarter: group `{FIPS}` / group `{YYYY-MM-DD}` / `data` (g, H, W, 3) and
`coordinates` (g, 2, 2) = ((south, west), (north, east)) in degrees of each of g grid cells of
9 x 9 km. The three channels are a false-colour composite of Sentinel-2's B11, B08 and B02, as
pictures of 8 bits whatever the type they are stored in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from zoo.domains.remote_sensing.crop_yield.cropnet import padded_fips
from zoo.errors import DataError
from zoo.hdf5 import holds, opened, own


@dataclass(frozen=True)
class Shot:
    """The pictures of a county on one date.

    Attributes:
        file: The h5 file.
        group: The county's group in it.
        date: YYYY-MM-DD.
    """

    file: Path
    group: str
    date: str

    @property
    def where(self) -> str:
        """Its place in a message."""
        return f"{self.file}:/{self.group}/{self.date}"


@dataclass(frozen=True)
class Pictures:
    """What can be told of a county's pictures without reading them.

    Attributes:
        shots: The dates that are used, in order.
        grids: Pictures g of a date.
        height: Of a picture, in pixels.
        width: Of a picture, in pixels.
        lon: Mean longitude of the grid cells in degrees, NaN if not told.
        lat: Mean latitude in degrees, NaN if not told.
        sample: Hash of a row of pixels of the first date.
    """

    shots: tuple[Shot, ...]
    grids: int
    height: int
    width: int
    lon: float
    lat: float
    sample: str

    @property
    def count(self) -> int:
        """Pictures of all dates."""
        return self.grids * len(self.shots)


def counties_in(path: Path) -> list[str]:
    """The five-digit codes of the counties in a file.

    Raises:
        DataError: The file is missing or damaged.
    """
    with opened(path) as file:
        return sorted(fips for name in file if (fips := padded_fips(name)) is not None)


def contents(path: Path) -> dict[str, list[int]]:
    """Five-digit codes of the counties in a file -> years of their dates.

    Raises:
        DataError: The file is missing or damaged.
    """
    with opened(path) as file:
        return {
            fips: sorted({int(d[:4]) for d in _group(file, name, str(path)) if _DATE.fullmatch(d)})
            for name in sorted(file)
            if (fips := padded_fips(name)) is not None
        }


def look(files: Sequence[Path], fips: str, year: int, dates: int | None) -> Pictures:
    """Find a county's dates and look at shapes.

    Args:
        files: Of the season, in order of time.
        fips: Five digits.
        year: Year all dates must be of.
        dates: How many dates, evenly spread over those there; None takes the first, third, … of
            each file, the 1st of every month in CropNet.

    Raises:
        DataError: The county is not in a file, a date is of another year, dates differ in how many
            pictures they have or of what size, or a file is damaged or leads elsewhere.
    """
    shots: list[list[Shot]] = []
    shapes: dict[Shot, tuple[int, ...]] = {}
    for path in files:
        with opened(path) as file:
            name = _county(file, fips, path)
            inner = _group(file, name, str(path))
            found = [Shot(path, name, d) for d in sorted(inner) if _DATE.fullmatch(d)]
            if not found:
                msg = f"{path}:/{name}: no group named like a date, YYYY-MM-DD"
                raise DataError(msg)
            shots.append(found)
            for shot in found:
                shapes[shot] = _stored(file, shot).shape
    chosen = _chosen(shots, dates)
    _one_year([shot for found in shots for shot in found], year)
    _one_shape({shot: shapes[shot] for shot in chosen})
    first = chosen[0]
    grids, height, width, _ = shapes[first]
    with opened(first.file) as file:
        row = np.ascontiguousarray(_stored(file, first)[0, height // 2])
        lon, lat = _centre(file, first, grids)
    sample = hashlib.sha256(f"{row.dtype}{row.shape}".encode() + row.tobytes()).hexdigest()[:16]
    return Pictures(tuple(chosen), grids, height, width, lon, lat, sample)


def read(shot: Shot, window: tuple[int, int, int, int]) -> np.ndarray:
    """Read a window of the pictures of a date.

    Args:
        shot: County and date.
        window: (top, left, height, width) in pixels, inside of the picture.

    Returns:
        (g, height, width, 3), uint8 as stored, or else float32 in [0, 255].

    Raises:
        DataError: The file is damaged, or values are not finite or not of 8 bits.
    """
    top, left, height, width = window
    with opened(shot.file) as file:
        stored = _stored(file, shot)
        values = stored[:, top : top + height, left : left + width]
    if values.dtype == np.uint8:
        return np.asarray(values)
    plain = values.astype(np.float32)
    low, high = (float(plain.min()), float(plain.max())) if plain.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        msg = f"{shot.where}: values from {low:g} to {high:g}, expected pictures of 0 to 255"
        raise DataError(msg)
    if values.dtype.kind == "f" and 0 < high <= 1:
        msg = f"{shot.where}: values up to {high:g}, expected 0 to 255 and not 0 to 1"
        raise DataError(msg)
    return np.asarray(plain)


# -- inside a file ------------------------------------------------------------------------------

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _county(file: h5py.File, fips: str, path: Path) -> str:
    """The name of a county's group, which may have lost its leading zero."""
    for name in (fips, fips.lstrip("0")):
        if holds(file, name, str(path)):
            return name
    have = len(file)
    msg = f"{path}: county '{fips}' is not among the {have} counties in it"
    raise DataError(msg)


def _group(node: h5py.Group, name: str, where: str) -> h5py.Group:
    if not holds(node, name, where) or not isinstance(node[name], h5py.Group):
        msg = f"{where}: no group '{name}'"
        raise DataError(msg)
    return node[name]


def _numbers(file: h5py.File, shot: Shot, name: str) -> h5py.Dataset | None:
    """A numeric data set of a date, stored in the file itself."""
    node = _group(_group(file, shot.group, str(shot.file)), shot.date, str(shot.file))
    if not holds(node, name, shot.where):
        return None
    found = node[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
        msg = f"{shot.where}: '{name}' is no array of numbers"
        raise DataError(msg)
    return own(found, f"{shot.where}: '{name}'")


def _stored(file: h5py.File, shot: Shot) -> h5py.Dataset:
    found = _numbers(file, shot, "data")
    if found is None:
        msg = f"{shot.where}: no data set 'data'"
        raise DataError(msg)
    if found.ndim != 4 or found.shape[3] != 3 or 0 in found.shape:
        msg = f"{shot.where}: 'data' has shape {found.shape}, expected (grids, height, width, 3)"
        raise DataError(msg)
    return found


def _centre(file: h5py.File, shot: Shot, grids: int) -> tuple[float, float]:
    """Mean longitude and latitude of the grid cells; NaN where the file does not tell."""
    found = _numbers(file, shot, "coordinates")
    if found is None or found.shape != (grids, 2, 2):
        return float("nan"), float("nan")
    lat, lon = found[()].astype(np.float64).mean(axis=(0, 1))
    if not (abs(lat) <= 90 and abs(lon) <= 180):
        return float("nan"), float("nan")
    return round(float(lon), 6), round(float(lat), 6)


def _chosen(shots: Sequence[Sequence[Shot]], dates: int | None) -> list[Shot]:
    if dates is None:
        return [shot for found in shots for shot in found[::2]]
    every = [shot for found in shots for shot in found]
    places = np.linspace(0, len(every) - 1, min(dates, len(every)))
    return [every[i] for i in np.unique(np.rint(places).astype(int))]


def _one_year(shots: Sequence[Shot], year: int) -> None:
    for shot in shots:
        if int(shot.date[:4]) != year:
            msg = f"{shot.where}: a date of another year than the county-year's, {year}"
            raise DataError(msg)


def _one_shape(shapes: dict[Shot, tuple[int, ...]]) -> None:
    first, *others = shapes
    for shot in others:
        if shapes[shot] != shapes[first]:
            here, there = (" x ".join(map(str, shapes[s][:3])) for s in (shot, first))
            msg = (
                f"{shot.where}: {here} (grids x height x width), but {there} on {first.date}; "
                "all dates of a county must show the same grid cells"
            )
            raise DataError(msg)
