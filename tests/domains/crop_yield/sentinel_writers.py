"""Writes CropNet trees with whatever a test wants to be wrong with them."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zoo.domains.remote_sensing.crop_yield.config import Config

HEADER = (
    *("commodity_desc", "reference_period_desc", "year", "state_ansi", "state_name"),
    *("county_ansi", "county_name", "domain_desc"),
    *("PRODUCTION, MEASURED IN BU", "YIELD, MEASURED IN BU / ACRE"),
)
POSTAL = {"01": "AL", "17": "IL", "19": "IA"}
FIPS = ("01001", "17001", "17003")
YEARS = (2020, 2021, 2022)
NAMES = {"corn": "CORN", "cotton": "COTTON", "soybean": "SOYBEANS", "winterwheat": "WHEAT"}


def configure(root: Path, trainer: Mapping[str, Any] | None = None, **data: Any) -> Config:
    plain = {"root": root, "sensor": "sentinel2", "image_size": 32, "val_fraction": 0.0}
    return Config(task="crop_yield", preset="paper", data=plain | data, trainer=dict(trainer or {}))


def pixels(fips: str, date: str, grids: int, side: int | tuple[int, int] = 40) -> np.ndarray:
    """Pictures that tell county and date by their values."""
    rng = np.random.default_rng([int(fips), int(date.replace("-", ""))])
    size = (side, side) if isinstance(side, int) else side
    return rng.integers(0, 256, (grids, *size, 3)).astype(np.uint8)


def dates_of(year: int, first: int) -> list[str]:
    return [f"{year}-{m:02d}-{d}" for m in range(first, first + 3) for d in ("01", "15")]


def h5_path(
    root: Path, fips: str, year: int, first: int, top: str = "Sentinel-2 Imagery/data"
) -> Path:
    postal = POSTAL[fips[:2]]
    last = {1: "03-31", 4: "06-30", 7: "09-30", 10: "12-31"}[first]
    name = f"Agriculture_{fips[:2]}_{postal}_{year}-{first:02d}-01_{year}-{last}.h5"
    return root / top / str(year) / postal / name


def write_h5(
    path: Path,
    fips: str,
    year: int,
    first: int,
    *,
    grids: int = 2,
    side: int | tuple[int, int] = 40,
    dtype: str = "uint8",
    group: str | None = None,
    change: Callable[[h5py.Group, str], None] | None = None,
) -> None:
    """Add a county to the file of a state and quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        county = file.create_group(group or fips)
        for date in dates_of(year, first):
            node = county.create_group(date)
            node["data"] = pixels(fips, date, grids, side).astype(dtype)
            lon, lat = -90.0, 40.0
            node["coordinates"] = np.array([[[lat, lon], [lat + 0.1, lon + 0.1]]] * grids)
            node["state"] = np.array([POSTAL[fips[:2]].encode()])
            node["county"] = np.array([b"COUNTY"])
            if change is not None:
                change(node, date)


def row(fips: str, year: int, *, crop: str = "soybean", **values: str) -> dict[str, str]:
    plain = {
        "commodity_desc": NAMES[crop],
        "reference_period_desc": "YEAR",
        "year": str(year),
        "state_ansi": str(int(fips[:2])),
        "state_name": "STATE",
        "county_ansi": str(int(fips[2:])),
        "county_name": f"NAME {fips}",
        "domain_desc": "TOTAL",
        "PRODUCTION, MEASURED IN BU": f"{1_000_000 + int(fips):d}",
        "YIELD, MEASURED IN BU / ACRE": f"{40 + int(fips) % 7 + year - 2020}",
    }
    return plain | values


def csv_path(root: Path, year: int, folder: str = "Soybean", top: str = "USDA/data") -> Path:
    return root / top / folder / str(year) / f"USDA_{folder}_County_{year}.csv"


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tree(
    root: Path,
    *,
    fips: Sequence[str] = FIPS,
    years: Sequence[int] = YEARS,
    folder: str = "Soybean",
    crop: str = "soybean",
    imagery: str = "Sentinel-2 Imagery/data",
    quarters: Sequence[int] = (4, 7),
    **options: Any,
) -> Path:
    """A sound tree without an index; county i has 2 + i pictures a date."""
    for year in years:
        for i, code in enumerate(fips):
            for first in quarters:
                path = h5_path(root, code, year, first, imagery)
                write_h5(path, code, year, first, **({"grids": 2 + i} | options))
        write_csv(csv_path(root, year, folder), [row(c, year, crop=crop) for c in fips])
    return root


def record(fips: str, year: int, crop: str = "Soybean", **changes: Any) -> dict[str, Any]:
    """A record as the official builder writes it of a code with its zero."""
    paths = [h5_path(Path(), fips, year, first).as_posix() for first in (4, 7)]
    data = {"USDA": csv_path(Path(), year, crop).as_posix(), "sentinel": paths}
    head = {"FIPS": fips, "year": year, "county": "NAME", "state": POSTAL[fips[:2]]}
    return head | {"county_ansi": fips[2:], "state_ansi": fips[:2], "data": data} | changes


def write_index(
    root: Path, train: Sequence[Any], test: Sequence[Any], crop: str = "soybean"
) -> Path:
    folder = root / "json" / crop
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{crop}_train.json").write_text(json.dumps(train))
    (folder / f"{crop}_test.json").write_text(json.dumps(test))
    return folder
