"""The data adapter of the MODIS world: histograms of counties with their yields, split by year.

Read is what `zoo data prepare` wrote, or the published `histogram_all_full.npz`; yields come from
the csv beside it, or from the published file. A county-year that is predicted never trains, and
under `data.protocol=past` nothing of its year or later does. Histograms are handed out as stored;
the training mean of each band, which the model takes off, is among the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.data import read_csv, split_rng, stop_on_errors
from zoo.domains.remote_sensing.crop_yield.config import Config, CropData
from zoo.domains.remote_sensing.crop_yield.counties import (
    Counties,
    csv_names,
    find_tables,
    load_counties,
)
from zoo.domains.remote_sensing.crop_yield.exports import has_exports
from zoo.domains.remote_sensing.crop_yield.histograms import band_means
from zoo.domains.remote_sensing.crop_yield.modis_inputs import modis_inputs
from zoo.domains.remote_sensing.crop_yield.modis_split import ModisSample, ModisSplit, samples_of
from zoo.domains.remote_sensing.crop_yield.store import Store, find_store, open_store
from zoo.domains.remote_sensing.crop_yield.units import unit_of
from zoo.domains.remote_sensing.crop_yield.yields import read_yields
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Facts, Finding

__all__ = [
    "ModisSample",
    "ModisSplit",
    "ModisSurvey",
    "check_modis",
    "modis_facts",
    "modis_inputs",
    "open_modis",
    "refuse_future",
    "survey_modis",
]

_SHOWN = 3


@dataclass(frozen=True)
class ModisSurvey:
    """What a data folder holds and how it is divided.

    Attributes:
        store: The histograms.
        year: The year that is predicted.
        years: Every year that has histograms with yields.
        parts: Split -> rows of the store's table, with `yield_bu_acre`.
        counties: Places and outlines, None without a table.
        yields: All yields of the crop, with histograms or not.
        findings: Everything that is odd or wrong.
    """

    store: Store
    year: int
    years: Sequence[int]
    parts: Mapping[str, pd.DataFrame]
    counties: Counties | None
    yields: pd.DataFrame
    findings: Sequence[Finding] = field(default_factory=tuple)


def survey_modis(config: Config, deep: bool = False) -> ModisSurvey:
    """Find histograms, yields and counties, and divide them by year.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every histogram that is used.

    Raises:
        DataError: There is nothing to look over: no histograms, no yields, no such year.
    """
    data = config.data
    place = _place(data)
    store = open_store(place)
    findings: list[Finding] = []
    folder = place if place.is_dir() else place.parent
    csv, places = find_tables(folder, data)
    table, yields = _with_yields(store, csv, data, findings)
    counties = load_counties(places, outlines=set(table["fips"])) if places else None
    if counties is not None:
        findings += [Finding("info", line) for line in counties.repairs.lines()[1:]]
    else:
        findings += _unread(folder, csv)
    short = table[table["steps"] < data.steps]
    if len(short):
        told = f"have fewer than {data.steps} steps; the others are empty"
        _count(findings, short, told, store.root)
    years = sorted(int(y) for y in table["year"].unique())
    try:
        year = _predicted(years, data)
        parts = _divide(table, year, years, data)
    except DataError as error:
        msg = f"{store.root}: {error}"
        raise DataError(msg) from None
    found = ModisSurvey(store, year, years, parts, counties, yields, tuple(findings))
    if deep:
        for part in parts.values():
            store.read(part)
    return found


def _unread(folder: Path, yields: Path | None) -> list[Finding]:
    """A warning of the csv files that could have told where the counties are."""
    own = {"prepared.csv", yields.name if yields else ""}
    others = sorted(p.name for p in folder.glob("*.csv") if p.name not in own)
    told = "no table of counties, though it is a csv"
    remedy = "places are not known; mend it, or name one in data.counties"
    return [Finding("warning", told, str(folder / name), remedy) for name in others[:_SHOWN]]


def _place(data: CropData) -> Path:
    if data.root is None:
        msg = "data.root is not set"
        raise DataError(msg)
    root = data.root.expanduser()
    if not root.exists():
        msg = f"data.root={root}: no such file or folder"
        raise DataError(msg)
    place = find_store(root)
    if place is None:
        raw = next((r for r in (root, root / "modis") if has_exports(r, data)), None)
        if raw is not None:
            msg = f"{raw}: holds exports that have to be prepared first: zoo data prepare "
            msg += f"task=crop_yield data.root={raw} out=DIR, then data.root=DIR"
            raise DataError(msg)
        msg = f"{root}: neither prepared histograms (histograms/YEAR.npz), nor the published "
        msg += f"histogram_all_full.npz, nor the folder {data.image_folder} of exports"
        raise DataError(msg)
    return place


def _with_yields(
    store: Store, csv: Path | None, data: CropData, findings: list[Finding]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the store that have a yield, and all yields."""
    own = store.table["yield_bu_acre"].notna().all()
    # What the published file says of itself goes before a csv that only lies beside it.
    if csv is not None and (data.yields is not None or not own):
        read = read_yields(csv, crop=data.crop, states=data.states)
        findings += [Finding("info", line) for line in read.repairs.lines()]
        yields = read.table
    elif own:
        if data.crop != "soybean":
            msg = f"{store.root}: the published yields are of soybean; name those of {data.crop} "
            raise DataError(msg + "in data.yields")
        yields = _own_yields(store, data, findings)
    else:
        msg = f"{store.root}: no csv of yields beside the histograms"
        msg += f"{csv_names(store.root)}; set data.yields"
        raise DataError(msg)
    columns = ["year", "fips", "yield_bu_acre"]
    histograms = store.table.drop(columns="yield_bu_acre")
    table = histograms.merge(yields[columns], on=["year", "fips"], how="inner")
    if table.empty:
        msg = f"{store.root}: no county-year has both a histogram and a yield; do years and codes "
        raise DataError(msg + f"of {csv or store.root} fit?")
    seen = set(histograms["year"])
    both = yields[yields["year"].isin(seen)].merge(
        histograms[["year", "fips"]], on=["year", "fips"], how="left", indicator=True
    )
    lacking = both[both["_merge"] == "left_only"]
    _count(findings, lacking, "have a yield and no histogram", csv or store.root)
    return table.sort_values(["year", "fips"]).reset_index(drop=True), yields


def _own_yields(store: Store, data: CropData, findings: list[Finding]) -> pd.DataFrame:
    table = store.table[["year", "fips", "yield_bu_acre"]]
    empty = table["yield_bu_acre"] <= 0
    told = "have a yield of zero or less (placeholder) and are left out"
    _count(findings, table[empty], told, store.root)
    table = table[~empty]
    table = table.assign(state=table["fips"].str[:2])
    if data.states is not None:
        table = table[table["state"].isin({f"{int(s):02d}" for s in data.states if s.isdigit()})]
    if table.empty:
        msg = f"{store.root}: no yield is left in the states of data.states"
        raise DataError(msg)
    return table[["year", "fips", "state", "yield_bu_acre"]].reset_index(drop=True)


def _count(findings: list[Finding], rows: pd.DataFrame, what: str, where: Path) -> None:
    if len(rows):
        names = [f"{f}/{y}" for f, y in zip(rows["fips"], rows["year"], strict=True)]
        shown = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
        told = f"{len(rows)} county-years {what}: {shown}"
        findings.append(Finding("warning", told, str(where)))


def _predicted(years: Sequence[int], data: CropData) -> int:
    year = years[-1] if data.year is None else data.year
    told = ", ".join(map(str, years))
    if year not in years:
        msg = f"data.year={year}: no county has histogram and yield in that year; there are {told}"
        raise DataError(msg)
    return year


def _divide(
    table: pd.DataFrame, year: int, years: Sequence[int], data: CropData
) -> dict[str, pd.DataFrame]:
    """`train`, `test`, and `val` if a share is held out."""
    others = [y for y in years if y != year]
    if data.protocol == "past":
        others = [y for y in others if y < year]
    if data.first_year is not None:
        others = [y for y in others if y >= data.first_year]
    if not others:
        told = ", ".join(map(str, years))
        why = f"before {year}" if data.protocol == "past" else f"other than {year}"
        since = f" and from {data.first_year} on" if data.first_year is not None else ""
        msg = f"nothing trains: no year {why}{since} among {told}; see data.year, data.first_year"
        raise DataError(msg)
    pool = table[table["year"].isin(others)].reset_index(drop=True)
    held = round(len(pool) * data.val_fraction)
    if data.val_fraction and not 0 < held < len(pool):
        msg = f"{len(pool)} county-years cannot hold out {data.val_fraction:g} for selection; "
        raise DataError(msg + "see data.val_fraction")
    order = split_rng(data.split_seed).permutation(len(pool))
    parts = {"train": pool.iloc[np.sort(order[held:])]}
    if held:
        parts["val"] = pool.iloc[np.sort(order[:held])]
    parts["test"] = table[table["year"] == year]
    return {name: part.reset_index(drop=True) for name, part in parts.items()}


def open_modis(config: Config, found: ModisSurvey | None = None) -> dict[str, ModisSplit]:
    """`train`, `test`, and `val` if `data.val_fraction` holds any out.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.

    Raises:
        DataError: The data are not there or damaged, or what is predicted would train.
    """
    found = found or survey_modis(config)
    stop_on_errors(found.findings)
    images = {name: found.store.read(part) for name, part in found.parts.items()}
    fitted = [images[name] for name in ("train", "val") if name in images]
    counts = np.array([len(part) for part in fitted], np.float64)
    # Of all that trains or selects and of the whole season, as published (spec of the port).
    means = np.average([band_means(part) for part in fitted], axis=0, weights=counts)
    splits = {}
    for name, part in found.parts.items():
        splits[name] = ModisSplit(
            samples_of(part, config.data.crop, found.counties),
            images[name],
            config.data.steps,
            batch_size=config.trainer.batch_size,
            training=name == "train",
            band_mean=means.tolist(),
        )
        splits[name].where = str(found.store.root)
        if found.counties is not None:
            splits[name].outlines = dict(found.counties.outlines)
    refuse_future(splits, config.data.protocol)
    return splits


def refuse_future(splits: Mapping[str, Any], protocol: str = "past") -> None:
    """Refuse splits in which what is predicted, or a later year, trains or selects the model.

    Args:
        splits: Splits with `samples`, each with `year` and `fips`.
        protocol: `past` allows earlier years alone; any other all years but the predicted one.

    Raises:
        DataError: A training or validation county-year is of the predicted year, or, under
            `past`, of a later one.
    """
    test = {
        s.year for name, split in splits.items() if name.startswith("test") for s in split.samples
    }
    if not test:
        return
    first = min(test)
    for name, split in splits.items():
        if name.startswith("test"):
            continue
        for sample in split.samples:
            late = sample.year >= first if protocol == "past" else sample.year in test
            if late:
                msg = (
                    f"{split.where}: '{name}' holds county {sample.fips} of {sample.year}, and "
                    f"{first} is predicted: nothing of that year or later may train; see data.year"
                )
                raise DataError(msg)


def check_modis(
    config: Config, found: ModisSurvey | None = None, deep: bool = True
) -> list[Finding]:
    """Everything worth knowing of the data, errors first.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.
        deep: Read every histogram, where `found` is not given.
    """
    try:
        found = found or survey_modis(config, deep)
    except DataError as error:
        return [Finding("error", str(error))]
    findings = [*found.findings, *_failed(found, config.data)]
    unit = unit_of(config.data.crop).text
    for name, part in found.parts.items():
        value = part["yield_bu_acre"]
        years = f"{part['year'].min()} to {part['year'].max()}"
        told = f"{name}: {len(part)} county-years of {part['fips'].nunique()} counties, {years}, "
        told += f"yield {value.mean():.1f} ± {value.std(ddof=0):.1f} {unit}"
        findings.append(Finding("info", told, str(found.store.root)))
    return errors_first(findings)


def _failed(found: ModisSurvey, data: CropData) -> list[Finding]:
    """Counties whose exports could not be prepared; errors unless they are to be skipped."""
    path = found.store.root / "prepared.csv"
    if not found.store.root.is_dir() or not path.is_file():
        return []
    report = read_csv(path)
    missing = [name for name in ("fips", "status", "reason") if name not in report]
    if missing:
        told = f"no column '{missing[0]}': it is not what `zoo data prepare` wrote"
        return [Finding("error", told, str(path), "remove it, or prepare again")]
    bad = report[report["status"] != "ok"]
    skip = data.on_error == "skip"
    remedy = "" if skip else "mend and prepare it again, or set data.on_error=skip"
    return [
        Finding(
            "warning" if skip else "error",
            row["reason"] or f"county {row['fips']} waits to be prepared",
            remedy=remedy,
        )
        for _, row in bad.iterrows()
    ]


def modis_facts(train: ModisSplit) -> Facts:
    """What travels with a model trained on `train`, JSON only.

    Returns:
        `sensor`, `crop`, `yield_unit`, `steps`, `band_mean` (nine means over county-years, steps
        and bins of what trains or selects), `years` that trained, `target_mean_raw`: the training
        mean of the yield.
    """
    crop = train.samples[0].crop
    mean = train.band_mean
    return {
        "sensor": "modis",
        "crop": crop,
        "yield_unit": unit_of(crop).text,
        "steps": train.steps,
        "band_mean": mean if mean is not None else band_means(train.images).tolist(),
        "years": sorted({s.year for s in train.samples}),
        "target_mean_raw": float(np.mean([s.yield_bu_acre for s in train.samples])),
    }
