"""CropNet's weather tables (WRF-HRRR), as MMST-ViT reads them; the nets of this task do not.

A csv is of one state and month. Daily rows have a grid cell and a day, monthly rows neither. The
names of columns carry blanks at their ends and county codes have no leading zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.data import read_csv
from zoo.domains.remote_sensing.crop_yield.cropnet import Tree, padded_fips
from zoo.errors import DataError

# Wind components are in the files and not among MMST-ViT's nine.
VARIABLES = (
    "Avg Temperature (K)",
    "Max Temperature (K)",
    "Min Temperature (K)",
    "Precipitation (kg m**-2)",
    "Relative Humidity (%)",
    "Wind Gust (m s**-1)",
    "Wind Speed (m s**-1)",
    "Downward Shortwave Radiation Flux (W m**-2)",
    "Vapor Pressure Deficit (kPa)",
)
MONTHS = (4, 5, 6, 7, 8, 9)
DAYS = 28  # of every month, so that all months are as long


def daily_weather(path: Path, fips: str, days: int = DAYS) -> np.ndarray:
    """The first days of a month in every grid cell of a county.

    Args:
        path: csv of a state and month.
        fips: Five digits.
        days: How many days from the first of the month.

    Returns:
        (g, days, 9) float32, cells by their index, variables in the order and units of
        `VARIABLES`.

    Raises:
        DataError: The file, a column or the county is missing, or a cell lacks a day or a value.
    """
    rows = _rows(path, fips, "Daily", ("Grid Index", "Day"))
    rows = rows[rows["Day"].between(1, days)].sort_values(["Grid Index", "Day"])
    cells = rows["Grid Index"].nunique()
    per_cell = rows.groupby("Grid Index")["Day"]
    if len(rows) != cells * days or bool((per_cell.nunique() != days).any()):
        msg = f"{path}: county '{fips}' has {len(rows)} daily rows for {cells} cells x {days} days"
        raise DataError(msg)
    return _values(rows, path, fips).reshape(cells, days, len(VARIABLES))


def monthly_weather(path: Path, fips: str) -> np.ndarray:
    """The means of a month in a county.

    Returns:
        (9,) float32 in the order and units of `VARIABLES`.

    Raises:
        DataError: As `daily_weather`, or there are several monthly rows.
    """
    rows = _rows(path, fips, "Monthly", ())
    if len(rows) != 1:
        msg = f"{path}: county '{fips}' has {len(rows)} monthly rows, expected 1"
        raise DataError(msg)
    return np.asarray(_values(rows, path, fips)[0])


def season_weather(tree: Tree, postal: str, fips: str, year: int) -> np.ndarray:
    """April to September of a county: MMST-ViT's short term, (6, g, 28, 9) float32.

    Raises:
        DataError: A month's file is missing, months differ in grid cells, or as `daily_weather`.
    """
    months = [daily_weather(_file(tree, year, postal, m), fips) for m in MONTHS]
    if len({len(month) for month in months}) > 1:
        told = ", ".join(str(len(month)) for month in months)
        msg = f"county '{fips}' in {year}: months have {told} grid cells, expected as many in each"
        raise DataError(msg)
    return np.stack(months)


def past_weather(tree: Tree, postal: str, fips: str, years: Sequence[int]) -> np.ndarray:
    """Monthly means of whole years: MMST-ViT's long term, (years, 12, 9) float32.

    Raises:
        DataError: A month's file is missing, or as `monthly_weather`.
    """
    return np.stack(
        [
            np.stack([monthly_weather(_file(tree, y, postal, m), fips) for m in range(1, 13)])
            for y in years
        ]
    )


def _file(tree: Tree, year: int, postal: str, month: int) -> Path:
    path = tree.weather.get((year, postal, month))
    if path is None:
        msg = f"{tree.base}: no weather csv of {postal} in {year}-{month:02d}"
        raise DataError(msg)
    return path


def _rows(path: Path, fips: str, kind: str, numbers: Sequence[str]) -> pd.DataFrame:
    """A county's daily or monthly rows, `numbers` as such."""
    table = read_csv(path)
    needed = ("FIPS Code", "Daily/Monthly", *numbers, *VARIABLES)
    missing = [name for name in needed if name not in table]
    if missing:
        msg = f"{path}: no column '{missing[0]}'; expected those of CropNet's WRF-HRRR csv"
        raise DataError(msg)
    codes = table["FIPS Code"].map(padded_fips)
    rows = table[(codes == fips) & (table["Daily/Monthly"].str.lower() == kind.lower())]
    if rows.empty:
        msg = f"{path}: no {kind.lower()} row of county '{fips}'"
        raise DataError(msg)
    return rows.assign(**{name: pd.to_numeric(rows[name], errors="coerce") for name in numbers})


def _values(rows: pd.DataFrame, path: Path, fips: str) -> np.ndarray:
    plain = rows[list(VARIABLES)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    bad = ~np.isfinite(plain).all(axis=0)
    if bad.any():
        name = VARIABLES[int(np.flatnonzero(bad)[0])]
        msg = f"{path}: county '{fips}' has rows without a number of '{name}'"
        raise DataError(msg)
    return np.asarray(plain)
