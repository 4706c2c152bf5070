"""County yields as USDA's Quick Stats exports in CropNet give them, repaired and counted.

A csv is of one crop and year. Codes come without leading zeros, numbers with thousands separators,
withheld ones as (D) or (Z); combined counties have no code, and a county may have two rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.data import read_csv
from zoo.domains.remote_sensing.crop_yield.yields import UNIT
from zoo.errors import DataError

# A word of `commodity_desc`, and between what the median of a year lies in the crop's `UNIT`:
# what lies outside was converted, to t/ha or kg/ha for instance.
_COMMODITY = {"corn": "CORN", "cotton": "COTTON", "soybean": "SOY", "winterwheat": "WHEAT"}
_PLAUSIBLE = {
    "corn": (20.0, 400.0),
    "cotton": (100.0, 3000.0),
    "soybean": (8.0, 120.0),
    "winterwheat": (8.0, 200.0),
}
_PRODUCTION = {"cotton": ["PRODUCTION, MEASURED IN 480 LB BALES"]}
# Some files head cotton's pounds with bushels.
_YIELD = {"cotton": ["YIELD, MEASURED IN LB / ACRE", "YIELD, MEASURED IN BU / ACRE"]}


@dataclass(frozen=True)
class CountyYield:
    """What a county harvested.

    Attributes:
        production: In bushels, cotton in bales of 480 lb; positive.
        yield_value: In bushels an acre, cotton in pounds an acre; positive.
        county: Its name as the csv spells it.
    """

    production: float
    yield_value: float
    county: str = ""


@dataclass(frozen=True)
class YieldTable:
    """The yields of a crop and year.

    Attributes:
        rows: Five-digit FIPS -> yield.
        dropped: Five-digit FIPS -> why its row cannot be used.
        repaired: What was mended -> how many rows, for the report.
    """

    rows: Mapping[str, CountyYield]
    dropped: Mapping[str, str] = field(default_factory=dict)
    repaired: Mapping[str, int] = field(default_factory=dict)


def read_county_yields(path: Path, crop: str, year: int) -> YieldTable:
    """Read a csv of one crop and year.

    Of two rows of one county the one of the whole year and domain counts (`reference_period_desc`
    YEAR, `domain_desc` TOTAL), else the first. Values that are missing, withheld, zero or negative
    are dropped: training takes their logarithm.

    Args:
        path: The csv.
        crop: corn, cotton, soybean or winterwheat.
        year: The year it should be of.

    Raises:
        DataError: A column is missing, rows are of another year or crop, or the values are in
            another unit than the header says.
    """
    table = read_csv(path)
    production = _column(table, _PRODUCTION.get(crop, ["PRODUCTION, MEASURED IN BU"]), path)
    quantity = _column(table, _YIELD.get(crop, ["YIELD, MEASURED IN BU / ACRE"]), path)
    state, county = (_column(table, [name], path) for name in ("state_ansi", "county_ansi"))
    _same_year(table, year, path)
    _same_crop(table, crop, path)
    fips = [_fips(s, c) for s, c in zip(table[state], table[county], strict=True)]
    table = table.assign(_fips=pd.Series(fips, table.index, dtype=object))
    repaired = Counter({"rows of combined counties without a code": fips.count(None)})
    chosen = table[table["_fips"].notna()]
    order = _whole(chosen).sort_values(kind="stable").index
    chosen = chosen.loc[order]
    repaired["further rows of a county"] = int(chosen["_fips"].duplicated().sum())
    chosen = chosen[~chosen["_fips"].duplicated()].sort_index()
    rows: dict[str, CountyYield] = {}
    dropped: dict[str, str] = {}
    names = chosen["county_name"] if "county_name" in chosen else [""] * len(chosen)
    columns = (chosen["_fips"], chosen[production], chosen[quantity], names)
    for code, made, got, name in zip(*columns, strict=True):
        values = (number(made), number(got))
        if all(math.isfinite(v) and v > 0 for v in values):
            rows[code] = CountyYield(*values, county=str(name)[:60])
        else:
            shown = " and ".join(f"'{text}'" for text in (made, got))
            dropped[code] = f"production and yield are {shown}"
    _plausible(rows, crop, path)
    return YieldTable(rows, dropped, {k: n for k, n in repaired.items() if n})


def number(text: str) -> float:
    """A number with thousands separators; NaN for anything else, such as (D)."""
    plain = text.replace(",", "").strip()
    return (
        float(plain)
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", plain, re.I)
        else math.nan
    )


def _fips(state: str, county: str) -> str | None:
    """Five digits of two unpadded numbers, which blank cells may have turned into floats."""
    codes = [re.fullmatch(r"(\d{1,3})(\.0*)?", text) for text in (state, county)]
    if codes[0] is None or codes[1] is None or len(codes[0][1]) > 2:
        return None
    return codes[0][1].zfill(2) + codes[1][1].zfill(3)


def _plain(name: object) -> str:
    return re.sub(r"[^A-Z0-9]", "", str(name).upper())


def _column(table: pd.DataFrame, names: list[str], path: Path) -> str:
    """The column of one of these names, however it is spaced."""
    by_plain = {_plain(column): str(column) for column in reversed(table.columns)}
    for name in names:
        if _plain(name) in by_plain:
            return by_plain[_plain(name)]
    have = ", ".join(f"'{c}'" for c in table.columns if _plain(names[0])[:5] in _plain(c))
    told = f"it has {have}" if have else f"its {len(table.columns)} columns are others"
    msg = f"{path}: no column '{names[0]}'; {told}; units must be those of USDA"
    raise DataError(msg)


def _same_year(table: pd.DataFrame, year: int, path: Path) -> None:
    if "year" in table:
        other = sorted(set(table["year"]) - {str(year), f"{year}.0", ""})
        if other:
            msg = f"{path}: holds rows of {other[0]}, expected {year} alone"
            raise DataError(msg)


def _same_crop(table: pd.DataFrame, crop: str, path: Path) -> None:
    if "commodity_desc" in table:
        words = [w for w in table["commodity_desc"] if w and _COMMODITY[crop] not in w.upper()]
        if words:
            msg = f"{path}: holds rows of '{words[0][:40]}', expected {crop}"
            raise DataError(msg)


def _whole(table: pd.DataFrame) -> pd.Series[int]:
    """0 for rows of the whole year and domain, 1 for others."""
    whole = pd.Series(1, index=table.index)
    wanted = {"reference_period_desc": "YEAR", "domain_desc": "TOTAL"}
    known = [name for name in wanted if name in table]
    if known:
        fits = [table[name].str.upper() == wanted[name] for name in known]
        whole[np.logical_and.reduce(fits)] = 0
    return whole


def _plausible(rows: Mapping[str, CountyYield], crop: str, path: Path) -> None:
    if not rows:
        return
    median = float(np.median([row.yield_value for row in rows.values()]))
    low, high = _PLAUSIBLE[crop]
    if not low <= median <= high:
        unit = UNIT[crop]
        msg = (
            f"{path}: the median {crop} yield is {median:.4g}, which cannot be {unit} "
            f"({low:g} to {high:g}); convert the values to {unit}"
        )
        raise DataError(msg)
