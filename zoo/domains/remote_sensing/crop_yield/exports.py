"""Raw MODIS exports of Earth Engine: finding a county's files and turning them into histograms.

A county has three rasters named `{state}_{county}.tif` by its numbers without leading zeros:
reflectance (MOD09A1, 7 bands a composite), temperature (MYD11A2, 2 bands) and land cover (MCD12Q1,
a band a year). Big counties come in tiles (`17_185-0000000000-0000000768.tif`). A year has 46
composites of 8 days. Layout: pycrop-yield-prediction (T. Gabriel), after You et al. (AAAI 2017).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from zoo.domains.remote_sensing.crop_yield.config import CropData
from zoo.domains.remote_sensing.crop_yield.histograms import (
    BINS,
    COMPOSITES,
    FIRST_STEP,
    LAST_STEP,
    REFLECTANCE_BANDS,
    STEPS,
    TEMPERATURE_BANDS,
    counts_of,
    paired,
)
from zoo.domains.remote_sensing.crop_yield.rasters import Grid, Raster, class_share
from zoo.domains.remote_sensing.crop_yield.yields import fips_code
from zoo.errors import DataError

_NAME = re.compile(r"(?P<state>\d{1,2})_(?P<county>\d{1,3})(?P<tile>-\d+-\d+)?")
_SUFFIXES = (".tif", ".tiff", ".jp2")
_CDL_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(?!\d)")
# A window of a raster that is read at once.
_WINDOW_BYTES = 96_000_000
# A county's centroid and the middle of its raster: no county of the contiguous states is wider.
_FAR_DEGREES = 1.5


@dataclass(frozen=True)
class Export:
    """The files of one county.

    Attributes:
        fips: Five digits as text.
        image: Reflectance, one file or its tiles.
        temperature: The same for temperature.
        mask: The same for land cover; empty when a Cropland Data Layer is used.
        problem: What is wrong with the files; "" if nothing is.
    """

    fips: str
    image: tuple[Path, ...] = ()
    temperature: tuple[Path, ...] = ()
    mask: tuple[Path, ...] = ()
    problem: str = ""

    def files(self) -> list[Path]:
        """All files."""
        return [*self.image, *self.temperature, *self.mask]


@dataclass(frozen=True)
class Rules:
    """How exports become histograms; what is made with other rules does not mix.

    Attributes:
        start: Year of the first composite.
        land_cover: Class whose pixels count.
        cdl: Year -> Cropland Data Layer map, used in place of the land-cover bands; empty uses
            those.
        cdl_share: Least share of the class in a pixel.
    """

    start: int = 2003
    land_cover: int = 12
    cdl: dict[int, Path] = field(default_factory=dict)
    cdl_share: float = 0.5

    @classmethod
    def of(cls, data: CropData, root: Path) -> Rules:
        """What a configuration asks for.

        Raises:
            DataError: There is no Cropland Data Layer map though one is asked for.
        """
        maps = find_cdl(root / data.mask_folder) if data.mask_source == "cdl" else {}
        return cls(data.export_start, data.land_cover, maps, data.cdl_share)

    def told(self) -> dict[str, object]:
        """The rules as JSON, to be compared."""
        rules: dict[str, object] = {"export_start": self.start, "land_cover": self.land_cover}
        if self.cdl:
            rules |= {"mask_source": "cdl", "cdl_share": self.cdl_share}
        return rules


@dataclass(frozen=True)
class CountyYears:
    """Histograms of one county.

    Attributes:
        years: (Y,) int64, those that have a season and cropland with values.
        counts: (Y, 9, 32, 32) int64 pixels a [band, step, bin].
        steps: (Y,) int64 composites of the season that are there, at most 32.
        pixels: (Y,) int64 pixels of the class.
        place: Longitude and latitude of the raster's middle in degrees.
        notes: What is odd, one line each.
    """

    years: np.ndarray
    counts: np.ndarray
    steps: np.ndarray
    pixels: np.ndarray
    place: tuple[float, float]
    notes: tuple[str, ...] = ()


def has_exports(root: Path, data: CropData) -> bool:
    """Whether a folder holds reflectance exports."""
    return (root / data.image_folder).is_dir()


def find_exports(root: Path, data: CropData) -> dict[str, Export]:
    """Counties that have a file in any of the folders, by code.

    Raises:
        DataError: There is no folder of reflectance, or no file in it has a county's name.
    """
    folder = root / data.image_folder
    if not folder.is_dir():
        msg = f"{folder}: no such folder; set data.raw, or data.image_folder to its name"
        raise DataError(msg)
    image, double = _by_county(folder)
    if not image:
        msg = f"{folder}: no file is named STATE_COUNTY.tif, such as 17_1.tif"
        raise DataError(msg)
    temperature, hot = _by_county(root / data.temperature_folder)
    cdl = data.mask_source == "cdl"
    mask, covered = ({}, {}) if cdl else _by_county(root / data.mask_folder)
    found = {}
    for fips in sorted({*image, *temperature, *mask}):
        parts = [
            ("reflectance", image, data.image_folder),
            ("temperature", temperature, data.temperature_folder),
        ]
        parts += [] if cdl else [("land cover", mask, data.mask_folder)]
        lacks = [
            f"no {what} file in {root / name}" for what, have, name in parts if fips not in have
        ]
        problem = next((d[fips] for d in (double, hot, covered) if fips in d), "")
        found[fips] = Export(
            fips,
            image.get(fips, ()),
            temperature.get(fips, ()),
            mask.get(fips, ()),
            problem or ", ".join(lacks),
        )
    return found


def _by_county(folder: Path) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """Files by county, and what is wrong where several are no tiles of one raster."""
    files: dict[str, list[Path]] = {}
    whole: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        match = _NAME.fullmatch(path.stem)
        if match is None or path.suffix.lower() not in _SUFFIXES or not path.is_file():
            continue
        fips = fips_code(match["state"], match["county"])
        files.setdefault(fips, []).append(path)
        if not match["tile"]:
            whole.setdefault(fips, []).append(path)
    wrong = {
        fips: f"{folder}: {', '.join(p.name for p in files[fips])} are all county {fips}"
        for fips, names in whole.items()
        if len(files[fips]) > 1 and names
    }
    return {fips: tuple(paths) for fips, paths in files.items()}, wrong


def find_cdl(folder: Path) -> dict[int, Path]:
    """Cropland Data Layer maps by the year in their names (`2012_30m_cdls.tif`).

    Raises:
        DataError: There is none, or two for one year.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        match = _CDL_YEAR.search(path.stem)
        if match is None or path.suffix.lower() not in _SUFFIXES:
            continue
        year = int(match[1])
        if year in found:
            msg = f"{path}: {found[year].name} is of {year} as well; keep one map a year"
            raise DataError(msg)
        found[year] = path
    if not found:
        msg = f"{folder}: no Cropland Data Layer map with a year in its name"
        raise DataError(msg + "; set data.mask_folder, or data.mask_source=landcover")
    return found


def read_county(
    export: Export,
    rules: Rules,
    place: tuple[float, float] | None = None,
    years: Sequence[int] | None = None,
    *,
    last: bool = False,
) -> CountyYears:
    """Histograms of all years, or of some, of a county's exports.

    Rasters are read in windows and bands of the season alone; temperature and land cover of another
    grid are brought onto that of reflectance by the nearest pixel.

    Args:
        export: The files.
        rules: How they are read.
        place: Longitude and latitude where the county should lie; unknown is not checked.
        years: Years to read; none reads all.
        last: Of those read only the last that has a season.

    Raises:
        DataError: A file is missing, damaged or has bands missing; the raster lies elsewhere;
            there is no cropland, or every pixel of it is nodata.
        ConfigError: rasterio is missing.
    """
    if export.problem:
        msg = f"county {export.fips}: {export.problem}"
        raise DataError(msg)
    with Raster(export.image) as image, Raster(export.temperature) as heat:
        middle = _place(image, place, export.fips)
        span = _Span.of(image, heat, rules, years)
        span = span.last() if last else span
        if rules.cdl:
            crops = (_cdl_masks(span, rules, win) for win in windows(image, span))
            counts, pixels = _counted(image, heat, span, crops)
        else:
            with Raster(export.mask) as cover:
                crops = (_masks(cover, span, rules, win) for win in windows(image, span))
                counts, pixels = _counted(image, heat, span, crops)
    _something(export, rules, counts, pixels)
    seen = counts.any(axis=(1, 2, 3))
    notes = [*span.notes]
    notes += [f"{y}: no cropland with values" for y in np.array(span.years)[~seen]]
    return CountyYears(
        np.array(span.years)[seen],
        counts[seen],
        np.array(span.steps)[seen],
        pixels[seen],
        middle,
        tuple(notes),
    )


def _something(export: Export, rules: Rules, counts: np.ndarray, pixels: np.ndarray) -> None:
    """Refuse a county whose files hold nothing that counts."""
    first, fips = export.image[0], export.fips
    msg = ""
    if not pixels.any():
        msg = f"{first}: county {fips} has no pixel of land-cover class {rules.land_cover}; see "
        msg += "data.land_cover, data.mask_source"
    elif not counts[:, :REFLECTANCE_BANDS].any():
        msg = f"{first}: county {fips} has no value in its cropland: every pixel is nodata; export "
        msg += "it again or leave it out"
    elif not counts[:, REFLECTANCE_BANDS:].any():
        msg = f"{export.temperature[0]}: county {fips} has no temperature from 230 to 330 K; "
        msg += "values are counts of 0.02 K (15000 is 300 K): export it again"
    if msg:
        raise DataError(msg)


@dataclass(frozen=True)
class _Span:
    """Years that both rasters have, with the steps of their seasons.

    Attributes:
        offsets: Number of each year among those of the export.
        years: The years.
        steps: Composites of the season, 1 to 32.
        notes: What is odd.
    """

    offsets: tuple[int, ...]
    years: tuple[int, ...]
    steps: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, image: Raster, heat: Raster, rules: Rules, years: Sequence[int] | None) -> _Span:
        light = _composites(image, REFLECTANCE_BANDS, "reflectance")
        warm = _composites(heat, TEMPERATURE_BANDS, "temperature")
        notes = []
        if light != warm:
            told = f"{light} composites of reflectance and {warm} of temperature"
            notes.append(f"{told}; the first {min(light, warm)} are used")
        both = min(light, warm)
        offsets, found, steps = [], [], []
        for k in range(-(-both // COMPOSITES)):
            there = min(both - k * COMPOSITES, LAST_STEP) - FIRST_STEP
            year = rules.start + k
            if years is not None and year not in years:
                continue
            if there <= 0:
                notes.append(f"{year}: ends before the season begins")
                continue
            if there < STEPS:
                notes.append(f"{year}: {there} of {STEPS} steps, the others are empty")
            offsets.append(k)
            found.append(year)
            steps.append(there)
        if not found:
            last = rules.start + max(0, -(-both // COMPOSITES) - 1)
            asked = "" if years is None else f" of {', '.join(map(str, years))}"
            msg = f"{image.paths[0]}: holds no season{asked}; it has {rules.start} to {last}"
            raise DataError(msg + "; see data.export_start, data.year")
        return cls(tuple(offsets), tuple(found), tuple(steps), tuple(notes))

    def last(self) -> _Span:
        """The last year alone."""
        year = str(self.years[-1])
        notes = tuple(n for n in self.notes if not n[:4].isdigit() or n.startswith(year))
        return _Span(self.offsets[-1:], self.years[-1:], self.steps[-1:], notes)

    def bands(self, index: int, per: int) -> list[int]:
        """Bands (from 1) of the season of year `index`, `per` a composite."""
        first = (self.offsets[index] * COMPOSITES + FIRST_STEP) * per
        return list(range(first + 1, first + self.steps[index] * per + 1))


def _composites(raster: Raster, per: int, what: str) -> int:
    if raster.count % per:
        msg = (
            f"{raster.paths[0]}: {raster.count} bands are no whole number of {what} composites of "
            f"{per} bands: bands are missing; export it again"
        )
        raise DataError(msg)
    if raster.dtype.kind not in "uif":
        msg = f"{raster.paths[0]}: values are {raster.dtype}; {what} is stored as uint16"
        raise DataError(msg)
    return raster.count // per


def _place(image: Raster, place: tuple[float, float] | None, fips: str) -> tuple[float, float]:
    """Where the raster lies, which must be where the county is."""
    path = image.paths[0]
    if not image.grid.crs:
        msg = f"{path}: no coordinate system (CRS); exports have EPSG:4326: export it again"
        raise DataError(msg)
    lon, lat = image.grid.centre()
    if not (abs(lon) <= 180 and abs(lat) <= 90):  # infinite and NaN as well
        msg = f"{path}: its coordinates are no place under its CRS {image.grid.crs_name[:60]}: "
        msg += "the CRS is wrong; export it again"
        raise DataError(msg)
    if place is not None and np.isfinite(place).all():
        apart = max(abs(lon - place[0]), abs(lat - place[1]))
        if apart > _FAR_DEGREES:
            msg = (
                f"{path}: lies at {lon:.2f}, {lat:.2f} and county {fips} at {place[0]:.2f}, "
                f"{place[1]:.2f} (longitude, latitude): wrong CRS, or another county's file"
            )
            raise DataError(msg)
    return lon, lat


def windows(image: Raster, span: _Span) -> Iterator[Grid]:
    """Strips of rows from top to bottom, each small enough to be read at once.

    Where all bands of a pixel are stored together a strip holds every year, since reading some of
    them costs as much as reading all; otherwise one year at a time is read.
    """
    bands = image.count if image.pixel_interleaved else max(span.steps) * REFLECTANCE_BANDS
    grid = image.grid
    rows = max(1, _WINDOW_BYTES // max(1, bands * grid.width * image.dtype.itemsize))
    for top in range(0, grid.height, rows):
        yield grid.window(top, 0, min(rows, grid.height - top), grid.width)


def _masks(cover: Raster, span: _Span, rules: Rules, window: Grid) -> tuple[Grid, np.ndarray]:
    """(Y, H, W) bool; a year beyond the last band takes that one."""
    bands = [min(k, cover.count - 1) + 1 for k in span.offsets]
    kinds = cover.read(sorted(set(bands)), window)
    order = {band: i for i, band in enumerate(sorted(set(bands)))}
    return window, kinds[[order[band] for band in bands]] == rules.land_cover


def _cdl_masks(span: _Span, rules: Rules, window: Grid) -> tuple[Grid, np.ndarray]:
    """(Y, H, W) bool from the map of each year, or the nearest year that has one."""
    masks: dict[Path, np.ndarray] = {}
    rows = []
    for year in span.years:
        path = rules.cdl[min(rules.cdl, key=lambda y: (abs(y - year), y))]
        if path not in masks:
            masks[path] = class_share(path, rules.land_cover, window) >= rules.cdl_share
        rows.append(masks[path])
    return window, np.stack(rows)


def _counted(
    image: Raster, heat: Raster, span: _Span, crops: Iterator[tuple[Grid, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Counts (Y, 9, 32, 32) and pixels (Y,) of all windows."""
    count = len(span.years)
    bands = REFLECTANCE_BANDS + TEMPERATURE_BANDS
    counts = np.zeros((count, bands, STEPS, BINS), np.int64)
    pixels = np.zeros(count, np.int64)
    groups = [list(range(count))] if image.pixel_interleaved else [[i] for i in range(count)]
    for window, crop in crops:
        pixels += crop.sum((1, 2))
        for group in groups:
            if not crop[group].any():
                continue
            light_bands = [span.bands(i, REFLECTANCE_BANDS) for i in group]
            warm_bands = [span.bands(i, TEMPERATURE_BANDS) for i in group]
            light = _stored(image.read(list(chain(*light_bands)), window))
            warm = _stored(heat.read(list(chain(*warm_bands)), window))
            a = b = 0
            for i, lights, warms in zip(group, light_bands, warm_bands, strict=True):
                year = paired(light[a : a + len(lights)], warm[b : b + len(warms)])
                counts[i] += counts_of(year, crop[i])
                a, b = a + len(lights), b + len(warms)
    return counts, pixels


def _stored(values: np.ndarray) -> np.ndarray:
    """Values as uint16; what cannot be one (negative fill values, NaN) becomes 0, missing."""
    if values.dtype == np.uint16:
        return values
    fits = np.isfinite(values) & (values >= 0) & (values <= 65535)
    return np.where(fits, values, 0).astype(np.uint16)
