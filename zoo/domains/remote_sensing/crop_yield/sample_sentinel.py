"""A synthetic CropNet tree: small, in the real files and names, and learnable.

A county-year has a vigour, the sum of what is the county's, the year's and its own. Vigour makes
fields bright in the second channel (near infrared) around midsummer and deepens the rows in them,
and yield is a linear function of it. Woods are as bright whatever the vigour, so the mean of a
picture alone tells less than its fields. How much of a county is sown shows in its pictures and
sets its production.

Names are those of real trees, with their traps: a state whose code begins with 0, and an index
that has lost that zero and writes `Winterwheat` where the folder is `WinterWheat`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from scipy import ndimage

from zoo.files import write_json, write_whole

# Part of the cache key: raise it whenever what is written changes.
VERSION = 1

YEARS = (2019, 2020, 2021, 2022)
CROPS = ("soybean", "winterwheat")
# Postal code, its FIPS code and name, and longitude and latitude of the first county.
_STATES = (("AL", "01", "ALABAMA", -87.5, 31.0), ("IL", "17", "ILLINOIS", -90.5, 38.0))
_COUNTIES = 10
_SIDES = (64, 72, 80, 96)
_MONTHS = (4, 5, 6, 7, 8, 9)
_FOLDERS = {"soybean": "Soybean", "winterwheat": "WinterWheat"}
_COMMODITY = {"soybean": "SOYBEANS", "winterwheat": "WHEAT"}
_CELL = 0.08  # degrees of a grid cell of 9 km
_USDA_HEADER = (
    *("commodity_desc", "reference_period_desc", "year", "state_ansi", "state_name"),
    *("county_ansi", "county_name", "asd_code", "asd_desc", "domain_desc", "source_desc"),
    *("agg_level_desc", "PRODUCTION, MEASURED IN BU", "YIELD, MEASURED IN BU / ACRE"),
)


@dataclass(frozen=True)
class County:
    """A synthetic county.

    Attributes:
        fips: Five digits.
        postal: Two letters of the state.
        name: Upper case.
        corner: Longitude and latitude of its first grid cell, in degrees.
        grids: Grid cells.
        side: Of a picture, in pixels.
        sown: Share of its land that is sown.
        vigour: Year -> vigour, about 0 to 1.
    """

    fips: str
    postal: str
    name: str
    corner: tuple[float, float]
    grids: int
    side: int
    sown: float
    vigour: Mapping[int, float]


def counties(seed: int = 0, years: Sequence[int] = YEARS) -> list[County]:
    """Draw the counties of two states with the vigour of each year."""
    rng = np.random.default_rng([seed, VERSION, 1])
    of_year = {year: float(rng.uniform(-0.16, 0.16)) for year in years}
    made = []
    for postal, code, _, lon, lat in _STATES:
        for i in range(_COUNTIES):
            own = rng.uniform(0.3, 0.7)
            vigour = {y: float(own + of_year[y] + rng.normal(0, 0.17)) for y in years}
            made.append(
                County(
                    f"{code}{2 * i + 1:03d}",
                    postal,
                    f"{postal}SAMPLE {chr(ord('A') + i)}",
                    (lon + 0.5 * (i % 5), lat + 0.5 * (i // 5)),
                    int(rng.integers(2, 5)),
                    int(rng.choice(_SIDES)),
                    float(rng.uniform(0.3, 0.7)),
                    {y: float(np.clip(v, 0.02, 0.98)) for y, v in vigour.items()},
                )
            )
    return made


def write_sentinel(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write the tree: pictures, yields of soybean and winter wheat, and the index.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add what real exports have: in the soybean csv of 2020 a county that is missing,
            one with two rows, one without and one of zero yield; a county whose dates have
            different numbers of pictures; a file cut short.
    """
    made = counties(seed)
    for year in YEARS:
        for state in _STATES:
            of_state = [c for c in made if c.postal == state[0]]
            for first in (4, 7):
                _write_quarter(out, of_state, year, first, seed)
        for crop in CROPS:
            _write_yields(
                out, made, crop, year, seed, defects and (crop, year) == ("soybean", 2020)
            )
    for crop in CROPS:
        folder = out / "json" / crop
        folder.mkdir(parents=True, exist_ok=True)
        records = {year: [record(c, crop, year) for c in made] for year in YEARS}
        write_json(folder / f"{crop}_train.json", [r for y in YEARS[:-1] for r in records[y]])
        write_json(folder / f"{crop}_test.json", records[YEARS[-1]])
    if defects:
        _damage(out, made)


def record(county: County, crop: str, year: int) -> dict[str, object]:
    """A record of the index as the official builder writes it, zero and case lost."""
    fips = str(int(county.fips))
    name = crop.title()
    return {
        "FIPS": fips,
        "year": year,
        "county": county.name,
        "state": county.postal,
        "county_ansi": fips[2:],
        "state_ansi": fips[:2],
        "data": {
            "USDA": f"USDA/data/{name}/{year}/USDA_{name}_County_{year}.csv",
            "sentinel": [
                f"Sentinel-2 Imagery/data/{year}/{county.postal}/"
                + _quarter_name(fips[:2], county.postal, year, first)
                for first in (4, 7)
            ],
        },
    }


def _quarter_name(state: str, postal: str, year: int, first: int) -> str:
    last = {4: "06-30", 7: "09-30"}[first]
    return f"Agriculture_{state}_{postal}_{year}-{first:02d}-01_{year}-{last}.h5"


def quarter_path(out: Path, county: County, year: int, first: int) -> Path:
    """The h5 file of a county's state; `first` is 4 or 7, the quarter's first month."""
    folder = out / "Sentinel-2 Imagery" / "data" / str(year) / county.postal
    return folder / _quarter_name(county.fips[:2], county.postal, year, first)


def yields_path(out: Path, crop: str, year: int) -> Path:
    """The csv of a crop and year."""
    name = _FOLDERS[crop]
    return out / "USDA" / "data" / name / str(year) / f"USDA_{name}_County_{year}.csv"


# -- pictures -----------------------------------------------------------------------------------


def _write_quarter(out: Path, made: Sequence[County], year: int, first: int, seed: int) -> None:
    def write(path: Path) -> None:
        # No times in the file: the same seed gives the same bytes.
        with h5py.File(path, "w", track_order=False) as file:
            for county in made:
                for month in range(first, first + 3):
                    for day in (1, 15):
                        _write_date(file, county, year, month, day, seed)

    write_whole(quarter_path(out, made[0], year, first), write)


def _write_date(
    file: h5py.File, county: County, year: int, month: int, day: int, seed: int
) -> None:
    node = file.create_group(f"{county.fips}/{year}-{month:02d}-{day:02d}")
    pictures = np.stack([draw(county, year, month, day, g, seed) for g in range(county.grids)])
    node.create_dataset("data", data=pictures, chunks=(1, *pictures.shape[1:]), compression="gzip")
    node.create_dataset("coordinates", data=_coordinates(county))
    for name, text in (("state", county.postal), ("county", county.name)):
        node.create_dataset(name, data=np.array([text.encode()]))


def _coordinates(county: County) -> np.ndarray:
    """(g, 2, 2) float64: south, west; north, east of each grid cell, in degrees."""
    lon, lat = county.corner
    west = lon + _CELL * np.arange(county.grids)
    south = np.full(county.grids, lat)
    corners = [[south, west], [south + _CELL, west + _CELL]]
    return np.ascontiguousarray(np.array(corners).transpose(2, 0, 1))


def bell(month: int, day: int) -> float:
    """How much of its height a crop has: 1 in mid-July, near 0 in April."""
    days = 30.4 * (month - 7) + day - 15
    return float(np.exp(-0.5 * (days / 40) ** 2))


def draw(county: County, year: int, month: int, day: int, grid: int, seed: int = 0) -> np.ndarray:
    """The picture of a grid cell on a date, (side, side, 3) uint8.

    The land stays as it is over the dates; light and noise change.
    """
    size = (county.side, county.side)
    fields, woods, rows = _land(
        county.side, county.sown, (seed, VERSION, 2, int(county.fips), grid)
    )
    sky = np.random.default_rng([seed, VERSION, 3, int(county.fips), grid, year, month * 100 + day])
    grown = county.vigour[year] * bell(month, day)
    soil = np.array([150.0, 85.0, 70.0])
    picture = np.broadcast_to(soil, (*size, 3)).copy()
    picture[woods] = (70, 165, 35)
    crop = soil + grown * np.array([-75.0, 120.0, -30.0])
    picture[fields] = crop
    picture[..., 1] += fields * rows * (4 + 34 * grown)
    picture *= sky.uniform(0.96, 1.04)
    picture += sky.normal(0, 2.5, (*size, 1)) + sky.normal(0, 1.0, 3)
    # Levels in steps of 8 make the files small.
    return np.asarray(8 * np.rint(np.clip(picture, 0, 248) / 8), np.uint8)


@cache
def _land(
    side: int, sown: float, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sown fields and woods, (H, W) bool each, and the rows in the fields, (H, W) -1 or 1."""
    rng = np.random.default_rng(seed)
    size, cells = (side, side), 6
    kinds = rng.random((cells, cells))
    turned = rng.random((cells, cells)) < 0.5
    places = tuple(np.arange(n) * cells // n for n in size)
    kind = kinds[np.ix_(*places)]
    hedge = ndimage.morphological_gradient(kind, size=(2, 2)) > 0
    fields = (kind < sown) & ~hedge
    woods = (kind > sown + 0.4 * (1 - sown)) & ~hedge
    y, x = np.indices(size)
    along = np.where(turned[np.ix_(*places)], x, y)
    return fields, woods, np.where(along % 6 < 3, 1.0, -1.0)


# -- yields -------------------------------------------------------------------------------------


def crop_yield(county: County, crop: str, year: int, seed: int = 0) -> tuple[float, float]:
    """Production in bushels and yield in bushels an acre."""
    rng = np.random.default_rng([seed, VERSION, 4, int(county.fips), year, CROPS.index(crop)])
    base, slope = {"soybean": (22, 40), "winterwheat": (30, 55)}[crop]
    quantity = base + slope * county.vigour[year] + rng.normal(0, 1.2)
    acres = 90_000 * county.sown * rng.uniform(0.97, 1.03)
    return round(acres * quantity, -2), round(float(quantity), 1)


def _write_yields(
    out: Path, made: Sequence[County], crop: str, year: int, seed: int, defects: bool
) -> None:
    rows = []
    for i, county in enumerate(made):
        production, quantity = crop_yield(county, crop, year, seed)
        values = [f"{production:.0f}", f"{quantity:g}"]
        if defects and i == 2:
            continue
        if defects and i == 3:
            rows.append(_row(county, crop, year, ["1000", "1"], "YEAR - AUG FORECAST"))
        elif defects and i == 4:
            values = ["", ""]
        elif defects and i == 5:
            values = ["0", "0"]
        rows.append(_row(county, crop, year, values))
    path = yields_path(out, crop, year)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_USDA_HEADER, *rows])


def _row(
    county: County, crop: str, year: int, values: Sequence[str], period: str = "YEAR"
) -> list[str]:
    state = next(s for s in _STATES if s[0] == county.postal)
    return [
        *(_COMMODITY[crop], period, str(year), str(int(state[1])), state[2]),
        *(str(int(county.fips[2:])), county.name, "10", "NORTHWEST", "TOTAL", "SURVEY"),
        *("COUNTY", *values),
    ]


def _damage(out: Path, made: Sequence[County]) -> None:
    """Make dates of a county differ, and cut a file short."""
    county = made[-1]
    with h5py.File(quarter_path(out, county, 2021, 7), "a") as file:
        node = file[f"{county.fips}/2021-08-01"]
        fewer = node["data"][1:]
        del node["data"]
        node.create_dataset("data", data=fewer)
    path = quarter_path(out, made[0], 2019, 4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
