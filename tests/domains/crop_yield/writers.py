"""Small MODIS exports and tables in the real layout, and real files where they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.sample_modis import (
    County,
    counties,
    write_county,
    write_raster,
    write_tables,
)

REAL = Path(__file__).parents[4] / "shared" / "data" / "crop_yield"
WHY = "the shared real files are not on this machine"
IMAGE, HEAT, COVER = (f"crop_yield-data_{n}" for n in ("image", "temperature", "mask"))
YEARS = (2003, 2004)


def settings(root: Path | None, **data: Any) -> Config:
    """A configuration with data keys."""
    return Config.model_validate(
        {"task": "crop_yield", "preset": "sample", "data": {"root": root, **data}}
    )


def small_counties(count: int = 3) -> list[County]:
    """Some counties of Illinois over two years."""
    return counties(0, YEARS, ("17",), count)


def write_exports(root: Path, count: int = 3, **kinds: bool) -> list[County]:
    """Exports of some counties with their tables."""
    made = small_counties(count)
    for k, county in enumerate(made):
        write_county(root, county, np.random.default_rng(k), **kinds)
    write_tables(root, made, np.random.default_rng(9), YEARS)
    return made


def write_flat(
    root: Path,
    stem: str,
    *,
    composites: int = 46,
    nir: int = 3000,
    kelvin: float = 300,
    cover: int = 12,
    place: tuple[float, float] = (-89.5, 40.0),
    size: tuple[int, int] = (4, 5),
    **raster: Any,
) -> None:
    """Exports of one county in which every pixel of a band has one value."""
    light = np.full((composites * 7, *size), 500, np.uint16)
    light[1::7] = nir
    heat = np.full((composites * 2, *size), round(kelvin / 0.02), np.uint16)
    west, north = place
    for folder, values in ((IMAGE, light), (HEAT, heat)):
        write_raster(root / folder / f"{stem}.tif", values, west, north, 0.0044916, **raster)
    land = np.full((1, *size), cover, np.uint16)
    write_raster(root / COVER / f"{stem}.tif", land, west, north, 0.0044916, **raster)


def write_csv(path: Path, text: str) -> Path:
    """A csv of lines that are cut out of indented text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")
    return path


def write_store(
    root: Path, values: Mapping[tuple[int, str], float], steps: int = 32, seed: int = 0
) -> Path:
    """A prepared folder of random histograms with the yields given by year and county."""
    rng = np.random.default_rng(seed)
    for year in sorted({year for year, _ in values}):
        mine = sorted(fips for y, fips in values if y == year)
        counts = rng.integers(0, 9, (len(mine), 9, 32, 32))
        path = root / "histograms" / f"{year}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            histogram=(counts / counts.sum(-1, keepdims=True)).astype(np.float32),
            fips=np.array(mine),
            steps=np.full(len(mine), steps),
            pixels=np.full(len(mine), 30),
            lon=np.full(len(mine), -89.0),
            lat=np.full(len(mine), 40.0),
        )
    lines = ["Year,State ANSI,County ANSI,Value"]
    lines += [f"{y},{int(f[:2])},{int(f[2:])},{v}" for (y, f), v in values.items()]
    write_csv(root / "yields.csv", "\n".join(lines))
    return root
