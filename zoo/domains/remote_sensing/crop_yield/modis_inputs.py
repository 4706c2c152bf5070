"""What `zoo predict` takes of the MODIS world: exports, prepared folders, the published file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.counties import Counties, find_tables, load_counties
from zoo.domains.remote_sensing.crop_yield.exports import (
    Rules,
    find_exports,
    has_exports,
    read_county,
)
from zoo.domains.remote_sensing.crop_yield.histograms import proportions
from zoo.domains.remote_sensing.crop_yield.modis_split import ModisSample, ModisSplit, samples_of
from zoo.domains.remote_sensing.crop_yield.store import find_store, open_store
from zoo.errors import DataError
from zoo.task import Facts


def modis_inputs(paths: Sequence[Path], facts: Facts, config: Config) -> ModisSplit:
    """The county-years in folders and files, to predict on; yields are not looked for.

    Args:
        paths: Folders of exports (with the folders of reflectance, temperature and land cover in
            them), prepared folders, or files in the published layout.
        facts: Of the trained model: `crop` and `steps` rule.
        config: The rest of the settings; `data.year` chooses a year, else the last one of each
            place is predicted.

    Raises:
        DataError: Nothing of the kind is there, or a county is damaged and `data.on_error` is not
            `skip`.
        ConfigError: rasterio is missing.
    """
    crop = str(facts.get("crop", config.data.crop))
    steps = int(facts.get("steps", config.data.steps))
    found: list[tuple[ModisSample, np.ndarray]] = []
    notes: list[str] = []
    outlines: dict[str, Any] = {}
    for path in paths:
        if has_exports(path, config.data):
            found += _exports(path, config, crop, notes, outlines)
        elif (place := find_store(path)) is not None:
            found += _stored(place, config, crop, outlines)
        else:
            msg = f"{path}: neither exports (folder {config.data.image_folder}), nor prepared "
            raise DataError(msg + "histograms, nor histogram_all_full.npz")
    if not found:
        msg = f"{paths[0] if paths else 'no path'}: no county-year to predict"
        raise DataError(msg + (f" ({notes[0]})" if notes else ""))
    images = np.stack([image for _, image in found]).astype(np.float32)
    split = ModisSplit(
        [sample for sample, _ in found], images, steps, batch_size=config.trainer.batch_size
    )
    split.outlines = outlines
    split.notes = notes
    return split


def _counties(path: Path, config: Config, outlines: dict[str, Any]) -> Counties | None:
    _, place = find_tables(path if path.is_dir() else path.parent, config.data)
    if place is None:
        return None
    counties = load_counties(place)
    outlines |= counties.outlines
    return counties


def _exports(
    path: Path, config: Config, crop: str, notes: list[str], outlines: dict[str, Any]
) -> list[tuple[ModisSample, np.ndarray]]:
    """County-years of raw exports."""
    counties = _counties(path, config, outlines)
    rules = Rules.of(config.data, path)
    found = []
    asked = None if config.data.year is None else [config.data.year]
    for fips, export in find_exports(path, config.data).items():
        place = counties.place(fips) if counties else None
        try:
            # Which year is the last is known only once the files are open.
            years = read_county(export, rules, place, asked, last=asked is None)
        except DataError as error:
            if config.data.on_error != "skip":
                raise
            notes.append(f"skipped {error}")
            continue
        notes += [f"{fips}: {note}" for note in years.notes]
        lon, lat = place if place and np.isfinite(place).all() else years.place
        for year, counts, steps in zip(years.years, years.counts, years.steps, strict=True):
            sample = ModisSample(crop, fips, int(year), lon=lon, lat=lat, steps=int(steps))
            found.append((sample, proportions(counts)))
    return found


def _stored(
    place: Path, config: Config, crop: str, outlines: dict[str, Any]
) -> list[tuple[ModisSample, np.ndarray]]:
    """County-years of prepared or published histograms."""
    counties = _counties(place, config, outlines)
    store = open_store(place)
    table = store.table.assign(yield_bu_acre=np.nan)
    year = int(table["year"].max()) if config.data.year is None else config.data.year
    rows = table[table["year"] == year].reset_index(drop=True)
    if rows.empty:
        years = ", ".join(str(y) for y in sorted(set(table["year"])))
        msg = f"{place}: no histogram of data.year={year}; there are {years}"
        raise DataError(msg)
    return list(zip(samples_of(rows, crop, counties), store.read(rows), strict=True))
