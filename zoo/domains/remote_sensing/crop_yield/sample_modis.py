"""A small MODIS world in the files of the real one: GeoTIFF exports, tables, histograms.

Three states of fourteen counties over nine years. Yield depends on a county-year's vigour, which
raises near-infrared and lowers red and temperature in the growing season of cropland alone; other
land tells the opposite. The files have what real ones have: tiles, 1 km temperature, a last year
that is not over, combined counties without a code, placeholders, slipped minus signs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo import files
from zoo.domains.remote_sensing.crop_yield.config import CropData
from zoo.domains.remote_sensing.crop_yield.histograms import COMPOSITES, DAYS
from zoo.domains.remote_sensing.crop_yield.prepare import Preparation
from zoo.extras import optional

VERSION = 1
STATES = {"17": (-89.4, 39.9), "18": (-86.3, 39.9), "19": (-93.5, 42.0)}
COUNTIES = 14
YEARS = tuple(range(2003, 2012))
# Size of an exported pixel in degrees: 500 m at the equator.
PIXEL = 0.0044916
# Composites of the last year that a county with an unfinished season has.
SHORT = 30
_CROPLAND = 12
_OTHER = (5, 8, 10, 13, 14)
_SCALE = 0.02
_THREADS = 2


@dataclass(frozen=True)
class County:
    """A county of the sample.

    Attributes:
        state: Two digits.
        number: Number within the state.
        lon: Longitude of its centre in degrees.
        lat: Its latitude.
        height: Rows of its raster.
        width: Columns.
        vigour: One number a year, about 0 to 1.
        yields: Bushels an acre of each year.
    """

    state: str
    number: int
    lon: float
    lat: float
    height: int
    width: int
    vigour: np.ndarray
    yields: np.ndarray

    @property
    def fips(self) -> str:
        """Five digits."""
        return f"{self.state}{self.number:03d}"

    @property
    def stem(self) -> str:
        """Name of its files: numbers without leading zeros."""
        return f"{int(self.state)}_{self.number}"

    def box(self) -> tuple[float, float, float, float]:
        """West, south, east, north of its raster in degrees."""
        half = self.width * PIXEL / 2, self.height * PIXEL / 2
        return self.lon - half[0], self.lat - half[1], self.lon + half[0], self.lat + half[1]


def counties(
    seed: int = 0,
    years: Sequence[int] = YEARS,
    states: Sequence[str] = tuple(STATES),
    each: int = COUNTIES,
) -> list[County]:
    """The counties: vigour is a county's, a year's and chance's share; 22 + 26 v bu/acre, ± 1.5."""
    rng = np.random.default_rng([seed, 11])
    seasons = rng.normal(0, 0.13, len(years))
    made = []
    for state in states:
        lon, lat = STATES[state]
        for k in range(each):
            own = 0.5 + rng.normal(0, 0.1)
            vigour = np.clip(own + seasons + rng.normal(0, 0.12, len(years)), 0.02, 1.1)
            yields = np.round(22 + 26 * vigour + rng.normal(0, 1.5, len(years)), 1)
            size = rng.integers(8, 14, 2)
            place = lon + 0.4 * (k % 4 - 1.5), lat + 0.4 * (k // 4 - 1.5)
            made.append(
                County(state, 2 * k + 1, *place, int(size[0]), int(size[1]), vigour, yields)
            )
    return made


def bell(day: float) -> float:
    """How green a field is: 0 in winter, 1 around day 205."""
    return math.exp(-(((day - 205) / 45) ** 2))


def write_modis(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write exports, tables and, prepared from them, histograms.

    Args:
        out: The folder; made if need be.
        seed: Seeds everything.
        defects: Add what the check must find: a county without temperature, one without land
            cover, one cut off, one of nodata alone, one in a wrong place.

    Raises:
        ConfigError: rasterio is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = counties(seed)

    def exports(k: int) -> None:
        kind = {"tiled": k == 0, "coarse": k % 7 == 3, "short": k == 5, "band": k % 3 == 1}
        write_county(out, made[k], np.random.default_rng([seed, 12, k]), **kind)

    # Threads: rasters spend nearly all of their time in GDAL, which does not hold Python's lock.
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(exports, range(len(made))))
        write_tables(out, made, np.random.default_rng([seed, 13]))
        if defects:
            _damage(out, made)
        work = Preparation(out / "prepared", CropData(), out)
        list(pool.map(work.one, work.exports))
    work.conclude()


def write_county(
    out: Path,
    county: County,
    rng: np.random.Generator,
    *,
    tiled: bool = False,
    coarse: bool = False,
    short: bool = False,
    band: bool = False,
) -> None:
    """Write the three rasters of a county.

    Args:
        out: Folder of the data set.
        county: The county.
        rng: Draws pixels.
        tiled: Reflectance in two files, as Earth Engine cuts up big counties.
        coarse: Temperature in pixels of 1 km.
        short: The last year ends after 30 composites.
        band: Bands stored one after the other; else those of a pixel together.
    """
    data, shape = CropData(), (county.height, county.width)
    inside = _inside(shape)
    crop = rng.random(shape) < 0.6
    crop[shape[0] // 2, shape[1] // 2] = True
    count = len(county.vigour) * COMPOSITES - (COMPOSITES - SHORT) * short
    vigour = np.repeat(county.vigour, COMPOSITES)[:count, None, None]
    days = 1 + DAYS * (np.arange(count) % COMPOSITES)
    green = np.array([bell(float(day)) for day in days])[:, None, None]
    # Land that is no field is greenest where fields are poorest.
    plants = np.where(crop, vigour, 1.1 - vigour) * green
    light = _reflectance(plants, rng) * inside
    heat = _temperature(plants, green, days, rng) * inside
    cover = np.where(crop, _CROPLAND, rng.choice(_OTHER, shape)) * inside
    west, _, _, north = county.box()
    image = out / data.image_folder
    if tiled:
        cut = county.width // 2
        for first, part in ((0, light[..., :cut]), (cut, light[..., cut:])):
            name = f"{county.stem}-0000000000-{first:010d}.tif"
            write_raster(image / name, part, west + first * PIXEL, north, PIXEL, band=band)
    else:
        write_raster(image / f"{county.stem}.tif", light, west, north, PIXEL, band=band)
    step = 2 if coarse else 1
    heat = heat[:, ::step, ::step]
    place = out / data.temperature_folder / f"{county.stem}.tif"
    write_raster(place, heat, west, north, PIXEL * step, band=band)
    bands = np.repeat(cover[None], len(county.vigour), axis=0)
    write_raster(
        out / data.mask_folder / f"{county.stem}.tif", bands, west, north, PIXEL, band=band
    )


def _inside(shape: tuple[int, int]) -> np.ndarray:
    """An oval county: pixels of the corners are outside of it."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = (y + 0.5) / shape[0] * 2 - 1, (x + 0.5) / shape[1] * 2 - 1
    return np.asarray(x**2 + y**2 < 1.3)


def _reflectance(plants: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(7 * S, H, W) uint16 of how much grows, (S, H, W)."""
    means = (
        900 - 500 * plants,
        1800 + 2200 * plants,
        500 - 200 * plants,
        800 - 200 * plants,
        2200 + 900 * plants,
        2000 - 500 * plants,
        1400 - 600 * plants,
    )
    bands = np.stack(means, axis=1)
    bands += rng.normal(0, 40, bands.shape)
    counts: np.ndarray = np.clip(bands, 100, 16000).astype(np.uint16)
    return counts.reshape(-1, *plants.shape[1:])


def _temperature(
    plants: np.ndarray, green: np.ndarray, days: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(2 * S, H, W) uint16 counts of 0.02 K; 0 where clouds hid the ground."""
    summer = np.array([math.sin(math.pi * (day - 20) / 345) for day in days])[:, None, None]
    day = 272 + 28 * summer + 12 * green - 11 * plants
    bands = np.stack((day, day - 12), axis=1)
    bands += rng.normal(0, 0.8, bands.shape)
    counts = np.rint(bands / _SCALE).astype(np.uint16)
    counts[rng.random(counts.shape) < 0.03] = 0
    return counts.reshape(-1, *plants.shape[1:])


def write_raster(
    path: Path,
    values: np.ndarray,
    west: float,
    north: float,
    pixel: float,
    *,
    band: bool = False,
    crs: str | None = "EPSG:4326",
    nodata: float | None = 0,
) -> None:
    """Write (bands, H, W) as GeoTIFF, north up.

    Args:
        path: The file; its folder is made.
        values: As stored.
        west: Longitude of the western edge.
        north: Latitude of the northern edge.
        pixel: Side of a pixel.
        band: Bands stored one after the other; else those of a pixel together.
        crs: Coordinate system, None for none.
        nodata: The tag, None for none.

    Raises:
        ConfigError: rasterio is missing.
    """
    rasterio = optional("rasterio", "GeoTIFFs are written by", "remote")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=values.shape[1],
        width=values.shape[2],
        count=len(values),
        dtype="uint16",
        crs=crs,
        transform=rasterio.Affine(pixel, 0, west, 0, -pixel, north),
        nodata=nodata,
        compress="deflate",
        interleave="band" if band else "pixel",
    ) as dataset:
        dataset.write(values.astype(np.uint16))


def write_tables(
    out: Path,
    made: Sequence[County],
    rng: np.random.Generator,
    years: Sequence[int] = YEARS,
) -> None:
    """Write the csv of yields, with rows to leave out, and of counties, with slipped signs."""
    lines = ["Program,Year,Period,Geo Level,State,State ANSI,County ANSI,Data Item,Value"]
    item = '"SOYBEANS - YIELD, MEASURED IN BU / ACRE"'
    for k, year in enumerate(years):
        for state in sorted({county.state for county in made}):
            mine = [c for c in made if c.state == state]
            head = f"SURVEY,{year},YEAR,COUNTY,{state},{state}"
            lines += [f"{head},{c.number},{item},{c.yields[k]:.1f}" for c in mine]
            rest = np.mean([c.yields[k] for c in mine]) + rng.normal()
            lines.append(f"{head},,{item},{rest:.1f}")
    # The season after the last is listed before it is counted.
    lines += [
        f"SURVEY,{years[-1] + 1},YEAR,COUNTY,{c.state},{c.state},{c.number},{item},0" for c in made
    ]
    files.write_text(out / "soybean_yields.csv", "\n".join(lines) + "\n")
    lines = ["Fips,CntyFips,StateName,StateFips,geometry,County Name,Latitude,Longitude"]
    for k, county in enumerate(made):
        lat, lon = f"{county.lat:.6f}", f"{county.lon:.6f}"
        if k % 5 == 2:
            lat, lon = f"{lat}-", lon.removeprefix("-")
        lines.append(
            f"0{county.fips},{county.number},{county.state},{county.state},"
            f'"{_outline(county)}",County {county.number},{lat},{lon}'
        )
    files.write_text(out / "counties.csv", "\n".join(lines) + "\n")


def _outline(county: County) -> str:
    """An octagon of its county's cell of the grid, as KML."""
    half = 0.19
    corners = [
        (-1, -0.6),
        (-0.6, -1),
        (0.6, -1),
        (1, -0.6),
        (1, 0.6),
        (0.6, 1),
        (-0.6, 1),
        (-1, 0.6),
    ]
    points = [(county.lon + half * x, county.lat + half * y) for x, y in [*corners, corners[0]]]
    text = " ".join(f"{x:.5f},{y:.5f}" for x, y in points)
    ring = f"<LinearRing><coordinates>{text}</coordinates></LinearRing>"
    return f"<Polygon><outerBoundaryIs>{ring}</outerBoundaryIs></Polygon>"


def _damage(out: Path, made: Sequence[County]) -> None:
    """Five counties whose files are broken, each in a way of its own."""
    data = CropData()
    image = out / data.image_folder
    (out / data.temperature_folder / f"{made[1].stem}.tif").unlink()
    (out / data.mask_folder / f"{made[2].stem}.tif").unlink()
    whole = image / f"{made[4].stem}.tif"
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    west, _, _, north = made[6].box()
    count = len(made[6].vigour) * COMPOSITES * 7
    empty = np.zeros((count, made[6].height, made[6].width), np.uint16)
    write_raster(image / f"{made[6].stem}.tif", empty, west, north, PIXEL)
    shutil.copyfile(image / f"{made[-1].stem}.tif", image / f"{made[3].stem}.tif")
