"""Where counties are: centroids and outlines, from the csv files that come with the yields.

Three forms are read: the census table of the published pipeline (`StateFips`, `CntyFips`,
`Longitude`, `Latitude` and a KML `geometry`), the headerless `state,county,lon,lat` of You et al.,
and a list of names (`FIPS,State,County`) that has no places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.data import read_csv
from zoo.domains.remote_sensing.crop_yield.config import CropData
from zoo.domains.remote_sensing.crop_yield.yields import Repairs, fips_code, is_yield_table
from zoo.errors import DataError
from zoo.extras import optional

_CENSUS = ("StateFips", "CntyFips", "Longitude", "Latitude")
_PLACES = ("State", "County", "Longitude", "Latitude")
# Bytes of control that no text has; 0x1a ends files of old systems.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x19\x1b-\x1f]")

Ring = np.ndarray
Polygon = list[Ring]


@dataclass(frozen=True)
class Counties:
    """Places of counties.

    Attributes:
        table: Indexed by `fips` (five digits as text): `state` (its first two digits), `name`
            ("" where unknown), `lon`, `lat` (degrees; NaN where unknown).
        outlines: Outline by county: polygons, each a list of closed rings (n, 2) of longitude and
            latitude in degrees, the first ring outside, the others holes.
        repairs: What was left out or put right.
    """

    table: pd.DataFrame
    outlines: dict[str, list[Polygon]] = field(default_factory=dict)
    repairs: Repairs = field(default_factory=lambda: Repairs(Path()))

    def place(self, fips: str) -> tuple[float, float]:
        """Longitude and latitude of a county's centre in degrees; NaN where unknown."""
        if fips not in self.table.index:
            return float("nan"), float("nan")
        return float(str(self.table.at[fips, "lon"])), float(str(self.table.at[fips, "lat"]))


def load_counties(path: Path, *, outlines: Iterable[str] | None = None) -> Counties:
    """Read a county table.

    Args:
        path: The csv.
        outlines: Counties whose outlines are parsed; none parses all there are.

    Raises:
        DataError: The file is missing or no such table, a county stands in it at two places, or
            coordinates are no degrees.
        ConfigError: The table has outlines and defusedxml is missing.
    """
    table = read_csv(path)
    if {"FIPS", "State", "County"} <= set(table) and not set(_CENSUS) <= set(table):
        return _named(table, path)
    if not set(_CENSUS) <= set(table):
        if not _places(table.columns):
            msg = f"{path}: no county table; wanted are the columns {', '.join(_CENSUS)}, or rows "
            raise DataError(msg + "state,county,lon,lat without a header")
        table = read_csv(path, header=False)
        table.columns = pd.Index(_PLACES)
        table = table.rename(columns={"State": "StateFips", "County": "CntyFips"})
    repairs = Repairs(path, read=len(table))
    table = _coded(table, repairs)
    lon, lat = _degrees(table, repairs, path)
    frame = pd.DataFrame(
        {
            "fips": table["fips"],
            "state": table["fips"].str[:2],
            "name": table.get("County Name", ""),
            "lon": lon,
            "lat": lat,
        }
    )
    frame = _unique(frame, path, repairs).set_index("fips").sort_index()
    repairs.kept = len(frame)
    rings: dict[str, list[Polygon]] = {}
    if "geometry" in table:
        wanted = None if outlines is None else set(outlines)
        for fips, text in zip(table["fips"], table["geometry"], strict=True):
            if text and (wanted is None or fips in wanted):
                rings[fips] = parse_outline(text, f"{path}: county {fips}")
    return Counties(frame, rings, repairs)


def is_county_table(path: Path) -> bool:
    """Whether the first line of a csv looks like a table with places."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = [cell.strip().strip('"') for cell in file.readline(8192).split(",")]
    except OSError:
        return False
    return set(_CENSUS) <= set(first) or _places(first)


def find_tables(root: Path, data: CropData) -> tuple[Path | None, Path | None]:
    """The csv files of yields and of counties: as configured, else found in the folder or beside.

    A file whose name holds the crop's name goes before another of the same form.

    Raises:
        DataError: Several files could be meant.
    """
    return (
        _table(root, data.yields, is_yield_table, "yields", data.crop),
        _table(root, data.counties, is_county_table, "counties", data.crop),
    )


def _table(
    root: Path, named: Path | None, fits: Callable[[Path], bool], key: str, crop: str
) -> Path | None:
    if named is not None:
        named = named.expanduser()
        near = root / named
        return near if near.is_file() else named
    folders = [root] if root.is_dir() else [root.parent]
    folders += [folder for folder in (folders[0] / "data", folders[0] / "yield") if folder.is_dir()]
    for folder in folders:
        tables = sorted(p for p in folder.glob("*.csv") if not p.is_dir())
        for path in tables:
            if not path.is_file():
                msg = f"{path}: is no plain file, or a link that leads nowhere; remove it"
                raise DataError(msg)
            _look_text(path)
        found = [p for p in tables if fits(p)]
        if fits is is_yield_table:
            # Rows state,county,lon,lat have four numbers as well, but no year.
            found = [p for p in found if not is_county_table(p)]
        ours = [p for p in found if crop in p.name.lower()]
        found = ours if len(found) > 1 and ours else found
        if len(found) > 1:
            names = ", ".join(p.name for p in found[:4])
            msg = f"{folder}: {names} could all be meant; name one in data.{key}"
            raise DataError(msg)
        if found:
            return found[0]
    return None


def _look_text(path: Path) -> None:
    """Refuse what cannot be a csv at all: otherwise it would pass for a table of something else."""
    with path.open("rb") as file:
        head = file.read(8192)
    told = "" if head else "is empty"
    if _CONTROL.search(head):
        told = "is no text"
    if told:
        msg = f"{path}: {told}; copy it again or remove it"
        raise DataError(msg)


def csv_names(root: Path) -> str:
    """The csv files of a folder, for messages that none of them is what was looked for."""
    there = sorted(p.name for p in root.glob("*.csv"))[:4] if root.is_dir() else []
    return f" ({', '.join(there)} cannot be read as one)" if there else ""


def parse_outline(text: str, where: str) -> list[Polygon]:
    """Polygons of a KML `Polygon` or `MultiGeometry`.

    Returns:
        For each polygon its rings, (n, 2) float64 longitude and latitude, the outer one first.

    Raises:
        DataError: The text is no such geometry.
        ConfigError: defusedxml is missing.
    """
    tree = optional("defusedxml.ElementTree", "county outlines are read by", "remote")
    try:
        root = tree.fromstring(text)
        found = [root] if _tag(root) == "Polygon" else [e for e in root if _tag(e) == "Polygon"]
        polygons = [_rings(polygon) for polygon in found]
    except (SyntaxError, ValueError) as error:
        first = str(error).splitlines()[0]
        msg = f"{where}: the outline is no KML polygon ({first})"
        raise DataError(msg) from None
    if not polygons:
        msg = f"{where}: the outline holds no polygon"
        raise DataError(msg)
    return polygons


def _rings(polygon: Any) -> Polygon:
    outer: list[Ring] = []
    inner: list[Ring] = []
    for boundary in polygon:
        for coordinates in (e for e in boundary.iter() if _tag(e) == "coordinates"):
            points = [
                [float(v) for v in p.split(",")[:2]] for p in (coordinates.text or "").split()
            ]
            ring = np.array(points, dtype=np.float64)
            if ring.ndim != 2 or ring.shape[0] < 4 or ring.shape[1] != 2:
                msg = "a ring needs at least four points of longitude and latitude"
                raise ValueError(msg)
            (outer if _tag(boundary) == "outerBoundaryIs" else inner).append(ring)
    if len(outer) != 1:
        msg = f"a polygon has {len(outer)} outer rings"
        raise ValueError(msg)
    return outer + inner


def _tag(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _places(names: Iterable[object]) -> bool:
    cells = list(names)
    numbers = pd.to_numeric(pd.Series([str(c) for c in cells]), errors="coerce")
    return len(cells) == 4 and bool(numbers.notna().all()) and 0 < numbers.iloc[0] < 100


def _coded(table: pd.DataFrame, repairs: Repairs) -> pd.DataFrame:
    """Rows with whole state and county numbers, and their code as `fips`."""
    state = pd.to_numeric(table["StateFips"], errors="coerce")
    county = pd.to_numeric(table["CntyFips"], errors="coerce")
    good = state.between(1, 99) & county.between(1, 999)
    good &= (state == state.round()) & (county == county.round())
    repairs.drop("no state or county number", (~good).sum())
    table = table[good].copy()
    codes = [fips_code(s, c) for s, c in zip(state[good], county[good], strict=True)]
    table["fips"] = pd.Series(codes, index=table.index, dtype=str)
    return table


def _degrees(table: pd.DataFrame, repairs: Repairs, path: Path) -> tuple[pd.Series, pd.Series]:
    """Longitude and latitude; a minus sign that slipped behind the latitude goes back in front.

    The census file has the longitude's sign at the end of the latitude before it in 627 rows
    ("19.683885-" beside "155.393159").
    """
    text = table["Latitude"]
    slipped = text.str.endswith("-")
    lat = pd.to_numeric(text.str.removesuffix("-"), errors="coerce")
    lon = pd.to_numeric(table["Longitude"], errors="coerce")
    lon = lon.where(~(slipped & (lon > 0)), -lon)
    repairs.repair("minus sign of the longitude behind the latitude", slipped.sum())
    lost = lon.isna() | lat.isna()
    repairs.repair("no coordinates (kept without a place)", lost.sum())
    wrong = ~lost & ~(lon.between(-180, 180) & lat.between(-90, 90))
    if wrong.any():
        fips = table["fips"][wrong].iloc[0]
        msg = (
            f"{path}: county {fips} lies at longitude {lon[wrong].iloc[0]:g}, latitude "
            f"{lat[wrong].iloc[0]:g}: these are no degrees; are the columns exchanged?"
        )
        raise DataError(msg)
    return lon.where(~lost), lat.where(~lost)


def _unique(frame: pd.DataFrame, path: Path, repairs: Repairs) -> pd.DataFrame:
    same = frame.duplicated()
    repairs.drop("repeats another row", same.sum())
    frame = frame[~same]
    twice = frame[frame.duplicated("fips")]
    if len(twice):
        msg = f"{path}: county {twice['fips'].iloc[0]} stands at two places; keep one of the rows"
        raise DataError(msg)
    return frame


def _named(table: pd.DataFrame, path: Path) -> Counties:
    """A list of names; leading zeros that a spreadsheet took away come back."""
    repairs = Repairs(path, read=len(table), kept=len(table))
    digits = table["FIPS"].str.fullmatch(r"\d{4,5}")
    if not digits.all():
        msg = f"{path}: {table['FIPS'][~digits].iloc[0]!r} is no county code of five digits"
        raise DataError(msg)
    repairs.repair("leading zero of the county code", (table["FIPS"].str.len() == 4).sum())
    fips = table["FIPS"].str.zfill(5)
    frame = pd.DataFrame(
        {"fips": fips, "state": fips.str[:2], "name": table["County"], "lon": np.nan, "lat": np.nan}
    )
    frame = _unique(frame, path, repairs)
    repairs.kept = len(frame)
    return Counties(frame.set_index("fips").sort_index(), {}, repairs)


def bounds(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    """Smallest box around an outline: west, south, east, north in degrees."""
    points = np.concatenate([polygon[0] for polygon in polygons])
    (west, south), (east, north) = points.min(0), points.max(0)
    return float(west), float(south), float(east), float(north)
