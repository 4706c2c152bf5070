"""Files of prepared histograms: a county's part, a year of all counties, the published layout."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from zoo import files
from zoo.data import read_csv
from zoo.domains.remote_sensing.crop_yield.counties import Counties
from zoo.domains.remote_sensing.crop_yield.exports import CountyYears
from zoo.domains.remote_sensing.crop_yield.histograms import BANDS, BINS, STEPS, proportions
from zoo.domains.remote_sensing.crop_yield.yields import Yields

PUBLISHED = "histogram_all_full.npz"
YEARS = "histograms"
SHAPE = (len(BANDS), STEPS, BINS)


@dataclass(frozen=True)
class CountyYear:
    """One county and year whose histogram is in a part.

    Attributes:
        fips: Code of the county.
        year: The year.
        steps: Composites of the season that are there.
        pixels: Pixels of the class.
        lon: Longitude of the county's centre in degrees.
        lat: Its latitude.
    """

    fips: str
    year: int
    steps: int
    pixels: int
    lon: float
    lat: float


def write_part(path: Path, found: CountyYears) -> None:
    """A county's counts, a member of the archive a year, so that one is read without the others."""
    counts = {
        f"counts_{year}": part.astype(np.uint32)
        for year, part in zip(found.years.tolist(), found.counts, strict=True)
    }
    np.savez_compressed(
        path,
        allow_pickle=False,
        years=found.years,
        steps=found.steps,
        pixels=found.pixels,
        place=np.array(found.place),
        **counts,
    )


def read_part(parts: Path, row: CountyYear) -> np.ndarray:
    """(9, 32, 32) float64 proportions of one county-year."""
    with np.load(parts / f"{row.fips}.npz", allow_pickle=False) as part:
        return proportions(part[f"counts_{row.year}"].astype(np.int64))


def write_joint(
    out: Path, parts: Path, ready: Sequence[str], yields: Yields, counties: Counties | None
) -> None:
    """Write a file a year of all counties, the published file and the table of yields.

    Args:
        out: Folder of the results.
        parts: Folder of the counties' parts.
        ready: Counties that have one.
        yields: Which county-years have a yield.
        counties: Where counties lie; the middle of the raster where it is not known.
    """
    index = _index(parts, ready, counties)
    for year, rows in sorted(index.items()):
        place = out / YEARS / f"{year}.npz"
        files.write_whole(place, partial(_write_year, parts=parts, rows=rows))
    for old in (out / YEARS).glob("*.npz"):
        if not files.is_temporary(old) and old.stem not in {str(y) for y in index}:
            old.unlink()  # of exports that were there at an earlier run
    table = yields.table
    value = dict(
        zip(zip(table["year"], table["fips"], strict=True), table["yield_bu_acre"], strict=True)
    )
    known = [
        row for _, rows in sorted(index.items()) for row in rows if (row.year, row.fips) in value
    ]
    if known:
        arrays = {
            "output_yield": np.array([value[row.year, row.fips] for row in known]),
            "output_year": np.array([row.year for row in known], np.float64),
            "output_locations": np.array([(row.lon, row.lat) for row in known]),
            "output_index": np.array(
                [(int(row.fips[:2]), int(row.fips[2:])) for row in known], np.float64
            ),
        }
        images = (read_part(parts, row) for row in known)
        files.write_whole(out / PUBLISHED, lambda p: write_published(p, len(known), images, arrays))
    told = pd.DataFrame(
        {
            "Year": table["year"],
            "State ANSI": table["state"],
            "County ANSI": table["fips"].str[2:],
            "Value": table["yield_bu_acre"],
        }
    )
    files.write_whole(out / "yields.csv", lambda p: told.to_csv(p, index=False))


def write_counties(out: Path, ready: Sequence[str], counties: Counties, source: Path) -> None:
    """Write `counties.csv`: places and outlines of the counties that have histograms."""
    known = counties.table[counties.table.index.isin(ready)]
    rows = pd.DataFrame(
        {
            "StateFips": known["state"],
            "CntyFips": known.index.str[2:],
            "County Name": known["name"],
            "Longitude": known["lon"],
            "Latitude": known["lat"],
        }
    )
    rows["geometry"] = known.index.map(_outlines(source)).fillna("")
    if len(rows):
        files.write_whole(out / "counties.csv", lambda p: rows.to_csv(p, index=False))


def _outlines(path: Path) -> dict[str, str]:
    """The KML text of each county, as it stands in the table."""
    table = read_csv(path)
    if not {"geometry", "StateFips", "CntyFips"} <= set(table):
        return {}
    codes = table["StateFips"].str.zfill(2) + table["CntyFips"].str.zfill(3)
    return dict(zip(codes, table["geometry"], strict=True))


def _index(
    parts: Path, ready: Sequence[str], counties: Counties | None
) -> dict[int, list[CountyYear]]:
    """County-years that have a histogram, by year and then county."""
    index: dict[int, list[CountyYear]] = {}
    for fips in sorted(ready):
        with np.load(parts / f"{fips}.npz", allow_pickle=False) as part:
            lon, lat = counties.place(fips) if counties else (np.nan, np.nan)
            if not np.isfinite(lon + lat):
                lon, lat = part["place"].tolist()
            columns = (part[name].tolist() for name in ("years", "steps", "pixels"))
            for year, steps, pixels in zip(*columns, strict=True):
                index.setdefault(year, []).append(CountyYear(fips, year, steps, pixels, lon, lat))
    return index


def _write_year(path: Path, parts: Path, rows: Sequence[CountyYear]) -> None:
    np.savez_compressed(
        path,
        allow_pickle=False,
        histogram=np.stack([read_part(parts, row) for row in rows]).astype(np.float32),
        fips=np.array([row.fips for row in rows], dtype="U5"),
        steps=np.array([row.steps for row in rows], np.int64),
        pixels=np.array([row.pixels for row in rows], np.int64),
        lon=np.array([row.lon for row in rows]),
        lat=np.array([row.lat for row in rows]),
    )


def write_published(
    path: Path, count: int, images: Iterable[np.ndarray], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write `histogram_all_full.npz` of N county-years, its images one by one.

    The whole of eleven states would take a gigabyte of memory.

    Args:
        path: The file.
        count: N.
        images: N times (9, 32, 32), stored as float64 under `output_image`.
        arrays: The other members, N rows each.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        with archive.open("output_image.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": (count, *SHAPE)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(np.ascontiguousarray(image, "<f8").tobytes())
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
