"""County yields as USDA NASS and the published pipelines distribute them, repaired and reported.

Two forms of csv are read: a Quick Stats export (header with `Year`, `State ANSI`, `County ANSI`,
`Value`; other columns help where they are there) and the headerless `year,state,county,yield` of
You et al. (AAAI 2017). What is no yield of one county (combined counties without a code, suppressed
values, the zeros that stand for a season not yet reported) is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.data import read_csv
from zoo.errors import DataError

COLUMNS = ("year", "fips", "state", "yield_bu_acre")
# Kilograms a hectare of one unit an acre: a bushel is 60 lb of soybeans or wheat, 56 lb of corn.
KG_PER_HA = {"soybean": 67.25, "winterwheat": 67.25, "corn": 62.77, "cotton": 1.121}
# The unit of `yield_bu_acre`: cotton is reported in pounds.
UNIT = {"soybean": "bu/acre", "winterwheat": "bu/acre", "corn": "bu/acre", "cotton": "lb/acre"}
# What a median county yield can be in that unit since there have been such satellites (2000).
_PLAUSIBLE = {
    "soybean": (8.0, 120.0),
    "winterwheat": (8.0, 200.0),
    "corn": (60.0, 400.0),
    "cotton": (100.0, 3500.0),
}
_COMMODITY = {"soybean": "SOYBEANS", "winterwheat": "WHEAT", "corn": "CORN", "cotton": "COTTON"}
_NEEDED = ("Year", "State ANSI", "County ANSI", "Value")
# Quick Stats: withheld, less than half a unit, not available, …
_MARKERS = ("(D)", "(Z)", "(NA)", "(X)", "(S)", "(L)", "(H)")


@dataclass
class Repairs:
    """What was put right or left out while a table was read.

    Attributes:
        source: The file.
        read: Rows of the file.
        kept: Rows that are left.
        dropped: Reason -> rows left out for it.
        repaired: What was put right -> rows.
    """

    source: Path
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: float) -> None:
        """Count rows that are left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def repair(self, what: str, count: float) -> None:
        """Count rows that were put right."""
        if count:
            self.repaired[what] = self.repaired.get(what, 0) + int(count)

    def lines(self) -> list[str]:
        """The report, one line each; only the first where nothing was wrong."""
        told = [f"{self.source}: {self.kept} of {self.read} rows are used"]
        told += [f"{self.source}: {n} rows left out: {why}" for why, n in self.dropped.items()]
        told += [f"{self.source}: {n} rows put right: {what}" for what, n in self.repaired.items()]
        return told


@dataclass(frozen=True)
class Yields:
    """Yields of one crop.

    Attributes:
        table: One row a county and year, sorted by year and county: `year` (int), `fips` (five
            digits as text), `state` (its first two), `yield_bu_acre` (float; lb/acre for cotton).
        repairs: What was left out or put right.
    """

    table: pd.DataFrame
    repairs: Repairs


def fips_code(state: str | int, county: str | int) -> str:
    """The five-digit county code of a state's and a county's number: (17, 1) -> "17001"."""
    return f"{int(state):02d}{int(county):03d}"


def load_yields(
    path: Path, *, crop: str = "soybean", states: Iterable[str] | None = None
) -> pd.DataFrame:
    """The table of `read_yields`, for those who need no report."""
    return read_yields(path, crop=crop, states=states).table


def read_yields(
    path: Path, *, crop: str = "soybean", states: Iterable[str] | None = None
) -> Yields:
    """Read yields of one crop by county and year.

    Args:
        path: The csv, with the header of Quick Stats or without one.
        crop: One of `soybean`, `corn`, `cotton`, `winterwheat`.
        states: Two-digit state codes to keep; none keeps all.

    Raises:
        DataError: The file is missing or no such table, a county has two different yields in one
            year, or the numbers cannot be in the crop's unit.
    """
    cells, repairs = _cells(path, crop)
    year, state = _numbers(cells["Year"]), _numbers(cells["State ANSI"])
    county, value = _numbers(cells["County ANSI"]), _values(cells["Value"], repairs)
    whole = _whole(year, 1850, 2200) & _whole(state, 1, 99)
    repairs.drop("year or state is no whole number", (~whole).sum())
    blank = whole & county.isna()
    repairs.drop("no county code (combined counties)", blank.sum())
    wrong = whole & ~blank & ~_whole(county, 1, 999)
    repairs.drop("county code is no number of one to three digits", wrong.sum())
    good = whole & ~blank & ~wrong
    marked = good & value.isna()
    repairs.drop("no value (withheld or not reported)", marked.sum())
    good &= ~marked
    empty = good & (value <= 0)
    repairs.drop("yield is zero or less (placeholder)", empty.sum())
    good &= ~empty
    table = pd.DataFrame(
        {
            "year": year[good].astype(int),
            "fips": [
                fips_code(s, c)
                for s, c in zip(state[good].astype(int), county[good].astype(int), strict=True)
            ],
            "yield_bu_acre": value[good].astype(float),
        }
    )
    table["fips"] = table["fips"].astype(str)
    table.insert(2, "state", table["fips"].str[:2])
    table = _kept_states(_unique(table, repairs), states, repairs)
    _check_unit(table, crop, path)
    repairs.kept = len(table)
    return Yields(table.reset_index(drop=True), repairs)


def combined(parts: Sequence[Yields]) -> Yields:
    """Tables of several files as one, for Quick Stats exports cut up by year.

    Raises:
        DataError: Two files have different yields for one county and year.
    """
    repairs = Repairs(parts[0].repairs.source)
    for part in parts:
        repairs.read += part.repairs.read
        for reason, count in part.repairs.dropped.items():
            repairs.drop(reason, count)
        for what, count in part.repairs.repaired.items():
            repairs.repair(what, count)
    table = _unique(pd.concat([part.table for part in parts], ignore_index=True), repairs)
    repairs.kept = len(table)
    return Yields(table.reset_index(drop=True), repairs)


def is_yield_table(path: Path) -> bool:
    """Whether the first line of a csv looks like one of the two forms."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first = [cell.strip().strip('"') for cell in file.readline(4096).split(",")]
    except OSError:
        return False
    return set(_NEEDED) <= set(first) or _headerless(first)


def _headerless(first: Sequence[str]) -> bool:
    numbers = pd.to_numeric(pd.Series(list(first)), errors="coerce")
    return len(first) == 4 and bool(numbers.notna().all()) and 1850 < float(numbers.iloc[0]) < 2200


def _cells(path: Path, crop: str) -> tuple[pd.DataFrame, Repairs]:
    """The four columns as text, of the rows that are a yield of `crop`."""
    if crop not in _COMMODITY:
        msg = f"{crop!r} is no crop; choose from {', '.join(_COMMODITY)}"
        raise DataError(msg)
    table = read_csv(path)
    if _headerless([str(name) for name in table.columns]):
        table = read_csv(path, header=False)
        table.columns = pd.Index(_NEEDED)
        return table, Repairs(path, read=len(table))
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        msg = (
            f"{path}: no column {', '.join(map(repr, missing))}; wanted is a Quick Stats export "
            f"with {', '.join(_NEEDED)}, or year,state,county,yield without a header"
        )
        raise DataError(msg)
    repairs = Repairs(path, read=len(table))
    return _of_crop(table, crop, path, repairs), repairs


def _of_crop(table: pd.DataFrame, crop: str, path: Path, repairs: Repairs) -> pd.DataFrame:
    """Rows of a full Quick Stats export that are the crop's yield of a whole county and year."""
    keep = pd.Series(True, index=table.index)
    if "Commodity" in table:
        keep &= table["Commodity"].str.upper() == _COMMODITY[crop]
    if "Data Item" in table:
        item = table["Data Item"].str.upper()
        # An export without "YIELD" in any row has only been renamed by its owner.
        if item.str.contains("YIELD").any():
            keep &= item.str.contains("YIELD")
        if crop == "winterwheat":
            keep &= item.str.contains("WINTER")
    for column, wanted in (("Geo Level", "COUNTY"), ("Domain", "TOTAL"), ("Period", "YEAR")):
        if column in table:
            keep &= table[column].str.upper().isin([wanted, ""])
    repairs.drop("another crop, measure, level or period", (~keep).sum())
    if not keep.any():
        msg = f"{path}: no row is a county yield of {crop}; name the right file in data.yields"
        raise DataError(msg)
    return table[keep]


def _numbers(cells: pd.Series) -> pd.Series:
    return pd.to_numeric(cells, errors="coerce")


def _whole(numbers: pd.Series, least: int, most: int) -> pd.Series:
    whole: pd.Series = numbers.notna() & (numbers == np.floor(numbers))
    return whole & numbers.between(least, most)


def _values(cells: pd.Series, repairs: Repairs) -> pd.Series:
    """Yields; thousands separators are taken out and the markers of Quick Stats have no value."""
    grouped = cells.str.match(r"^-?\d{1,3}(,\d{3})+(\.\d+)?$")
    repairs.repair("thousands separator", grouped.sum())
    repairs.repair("marker such as (D) read as missing", cells.isin(_MARKERS).sum())
    values = _numbers(cells.where(~grouped, cells.str.replace(",", "")))
    return values.where(np.isfinite(values))


def _unique(table: pd.DataFrame, repairs: Repairs) -> pd.DataFrame:
    """One row a county and year; repeated rows go, contradicting ones are refused."""
    same = table.duplicated()
    repairs.drop("repeats another row", same.sum())
    table = table[~same].sort_values(["year", "fips"], kind="stable")
    twice = table[table.duplicated(["year", "fips"], keep=False)]
    if len(twice):
        year, fips = int(twice["year"].iloc[0]), twice["fips"].iloc[0]
        both = twice[(twice["year"] == year) & (twice["fips"] == fips)]["yield_bu_acre"]
        msg = (
            f"{repairs.source}: county {fips} has several yields in {year} "
            f"({', '.join(f'{v:g}' for v in both)}); {len(twice)} such rows: keep one of each"
        )
        raise DataError(msg)
    return table


def _kept_states(
    table: pd.DataFrame, states: Iterable[str] | None, repairs: Repairs
) -> pd.DataFrame:
    if states is not None:
        wanted = {f"{int(s):02d}" if str(s).isdigit() else str(s) for s in states}
        keep = table["state"].isin(wanted)
        repairs.drop("another state", (~keep).sum())
        table = table[keep]
        unknown = sorted(wanted - set(table["state"]))
        if unknown:
            msg = f"{repairs.source}: no yield in state {', '.join(unknown)}; see data.states"
            raise DataError(msg)
    if table.empty:
        more = "; ".join(f"{n} {why}" for why, n in repairs.dropped.items())
        msg = f"{repairs.source}: no yield of a county is left ({more})"
        raise DataError(msg)
    return table


def _check_unit(table: pd.DataFrame, crop: str, path: Path) -> None:
    """Refuse numbers whose median is no yield of the crop in its unit (t/ha, kg/ha, …)."""
    middle, (least, most) = float(table["yield_bu_acre"].median()), _PLAUSIBLE[crop]
    if least <= middle <= most:
        return
    unit, factor = UNIT[crop], KG_PER_HA[crop]
    others = {"t/ha": middle * 1000 / factor, "kg/ha": middle / factor}
    guess = next((f"; they look like {u}" for u, v in others.items() if least <= v <= most), "")
    msg = (
        f"{path}: the median yield {middle:.4g} is no {crop} yield in {unit} "
        f"({least:g} to {most:g}){guess}: convert to {unit}, or set data.crop"
    )
    raise DataError(msg)
