"""Looking over a CropNet tree: which county-years can be used, and what is wrong with the others.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.domains.remote_sensing.crop_yield.config import Config, CropData
from zoo.domains.remote_sensing.crop_yield.cropnet import (
    SEASON,
    Entry,
    Tree,
    entries_of_folders,
    find_tree,
    index_files,
    read_index,
)
from zoo.domains.remote_sensing.crop_yield.imagery import Pictures, counties_in, look, read
from zoo.domains.remote_sensing.crop_yield.units import unit_of
from zoo.domains.remote_sensing.crop_yield.usda import YieldTable, read_county_yields
from zoo.errors import DataError
from zoo.task import Finding

_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """A county-year that can be used.

    Attributes:
        crop: What is grown.
        fips: Five digits.
        year: Year of harvest.
        postal: Two letters of the state; empty if not told.
        county: Its name; empty if not told.
        pictures: Its dates and their shape.
        production: In bushels, cotton in 480-lb bales; NaN if not known.
        yield_value: In bushels an acre, cotton in pounds an acre; NaN if not known.
    """

    crop: str
    fips: str
    year: int
    postal: str
    county: str
    pictures: Pictures
    production: float = float("nan")
    yield_value: float = float("nan")

    @property
    def id(self) -> str:
        """`soybean/2021/17001`."""
        return f"{self.crop}/{self.year}/{self.fips}"


@dataclass(frozen=True)
class SentinelSurvey:
    """What a CropNet tree holds and what is wrong with it.

    Attributes:
        tree: Its files.
        source: What named the county-years: the index's folder, or `folders`.
        year: The year that is predicted.
        years: Every year that has pictures and yields.
        parts: Split -> usable county-years, in the order of the index.
        yields: Year -> yields of all counties of the csv, with pictures or not.
        findings: Everything that is wrong; errors are warnings under `data.on_error=skip`.
        skipped: Ids of county-years left out because their pictures are damaged.
    """

    tree: Tree
    source: str
    year: int
    years: Sequence[int]
    parts: Mapping[str, Sequence[Sample]]
    yields: Mapping[int, YieldTable]
    findings: Sequence[Finding]
    skipped: Sequence[str] = ()


@dataclass
class _Notes:
    """Findings in the making; equal lines are told once, and counts with some examples."""

    skip: bool
    findings: dict[str, Finding] = field(default_factory=dict)

    def error(self, what: str, where: str = "", remedy: str = "") -> None:
        """An error, or the warning it is under `data.on_error=skip`."""
        if self.skip:
            self.add(Finding("warning", f"skipped: {what}", where))
        else:
            self.add(Finding("error", what, where, remedy))

    def add(self, finding: Finding) -> None:
        self.findings.setdefault(finding.line(), finding)

    def counted(self, names: Sequence[str], what: str, where: str = "") -> None:
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
            self.add(Finding("warning", f"{len(names)} county-years {what}: {shown}", where))


def survey_sentinel(config: Config, deep: bool = False) -> SentinelSurvey:
    """Find the county-years, their pictures and yields, and divide them.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every picture that is used, not shapes alone.

    Raises:
        DataError: There is nothing to look over: no tree, no yields of the crop, no such year, or
            an index that cannot be read.
    """
    data = config.data
    if data.root is None:
        msg = "data.root is not set"
        raise DataError(msg)
    notes = _Notes(data.on_error == "skip")
    tree = find_tree(data.root, data.yields)
    for path in tree.doubles:
        notes.add(Finding("warning", "another file of this name is used instead", str(path)))
    source, listed = _entries(tree, data, notes)
    years = sorted({e.year for part in listed.values() for e in part})
    yields = _yields(tree, data.crop, years, notes)
    year, divided = _divide(listed, years, yields, data, notes)
    skipped: list[str] = []
    looked: dict[tuple[str, int], Sample] = {}
    every = [entry for part in divided.values() for entry in part]
    _without_yield(every, yields, data.crop, notes)
    for entry in every:
        table = yields.get(entry.year)
        if table is None or entry.fips not in table.rows:
            continue
        try:
            looked[entry.key] = _sample(entry, table, data, deep)
        except DataError as error:
            skipped.append(f"{data.crop}/{entry.year}/{entry.fips}")
            notes.error(str(error), remedy="fetch it again or set data.on_error=skip")
    parts = {
        part: [looked[e.key] for e in entries if e.key in looked]
        for part, entries in divided.items()
    }
    if data.val_fraction == 0:
        del parts["val"]
    for part in [p for p, samples in parts.items() if not samples]:
        what = f"split '{part}' has no usable {data.crop} county-year (data.year={year})"
        remedy = "data.val_fraction" if part == "val" else "data.year or data.states"
        notes.add(Finding("error", what, str(tree.base), f"choose another {remedy}"))
    known = [y for y in years if y in yields]
    findings = list(notes.findings.values())
    return SentinelSurvey(tree, source, year, known, parts, yields, findings, skipped)


def _entries(tree: Tree, data: CropData, notes: _Notes) -> tuple[str, dict[str, list[Entry]]]:
    """Where county-years are named, and `train` and `test`, or `all`, of them."""
    files = index_files(tree, data.crop, data.index)
    if files:
        listed = {part: read_index(path, tree) for part, path in files.items()}
        source = str(next(iter(files.values())).parent)
    else:
        inside: dict[Path, list[str]] = {}
        for key, path in sorted(tree.pictures.items()):
            if key[2] in SEASON:
                try:
                    inside[path] = counties_in(path)
                except DataError as error:
                    notes.error(str(error), remedy="fetch it again or set data.on_error=skip")
        listed = {"all": entries_of_folders(tree, inside)}
        source = "folders"
    return source, {part: _kept(entries, data, notes) for part, entries in listed.items()}


def _kept(entries: Iterable[Entry], data: CropData, notes: _Notes) -> list[Entry]:
    """The entries of the wanted states and years, each county-year once."""
    kept: dict[tuple[str, int], Entry] = {}
    twice = []
    for entry in entries:
        if data.states is not None and entry.fips[:2] not in data.states:
            continue
        if kept.setdefault(entry.key, entry) is not entry:
            twice.append(f"{entry.year}/{entry.fips}")
    notes.counted(twice, "are listed twice; the first record counts")
    return list(kept.values())


def _yields(tree: Tree, crop: str, years: Sequence[int], notes: _Notes) -> dict[int, YieldTable]:
    """Year -> yields, for the years that have pictures."""
    have = sorted(year for name, year in tree.yields if name == crop)
    if not have:
        crops = sorted({name for name, _ in tree.yields})
        told = f"there are csv of {', '.join(crops)}" if crops else "there are none at all"
        msg = f"{tree.base}: no USDA csv of {crop}; {told}; correct data.crop"
        raise DataError(msg)
    tables: dict[int, YieldTable] = {}
    for year in years:
        path = tree.yields.get((crop, year))
        if path is None:
            what = f"no USDA csv of {crop} for {year}, though there are pictures"
            notes.add(Finding("warning", what, str(tree.base)))
            continue
        try:
            tables[year] = read_county_yields(path, crop, year)
        except DataError as error:
            # A wrong table says nothing about single counties: it is no case for skipping.
            notes.add(Finding("error", str(error)))
            continue
        for what, count in tables[year].repaired.items():
            notes.add(Finding("info", f"{count} {what} passed over", str(path)))
    return tables


def _divide(
    listed: Mapping[str, Sequence[Entry]],
    years: Sequence[int],
    yields: Mapping[int, YieldTable],
    data: CropData,
    notes: _Notes,
) -> tuple[int, dict[str, list[Entry]]]:
    """The predicted year, and the entries of train, val and test.

    Without `data.year` the index's own division holds. Otherwise, and without an index, all
    entries are divided by year.
    """
    every = {e.key: e for part in listed.values() for e in part}.values()
    if not years:
        remedy = "correct data.states" if data.states else "fetch files of April to September"
        msg = f"no county-year is left; {remedy}"
        raise DataError(msg)
    given = data.year is None and {"train", "test"} <= listed.keys() and bool(listed["test"])
    if given:
        train, test = list(listed["train"]), list(listed["test"])
        year = max(e.year for e in test)
    else:
        with_yields = [y for y in years if y in yields]
        year = data.year if data.year is not None else max(with_yields, default=years[-1])
        if year not in years:
            msg = f"data.year={year}: there are pictures of {', '.join(map(str, years))}"
            raise DataError(msg)
        past = data.protocol == "past"
        train = [e for e in every if (e.year < year if past else e.year != year)]
        test = [e for e in every if e.year == year]
    if data.first_year is not None:
        train = [e for e in train if e.year >= data.first_year]
    _no_future(train, test, data, notes)
    # As the official code: over all of the index, before anything is dropped; split_seed=42
    # gives its very division.
    order = np.random.RandomState(data.split_seed).permutation(len(train))
    cut = int((1 - data.val_fraction) * len(train))
    held = set(order[cut:].tolist())
    parts = {
        "train": [e for i, e in enumerate(train) if i not in held],
        "val": [e for i, e in enumerate(train) if i in held],
        "test": test,
    }
    return year, parts


def _no_future(
    train: Sequence[Entry], test: Sequence[Entry], data: CropData, notes: _Notes
) -> None:
    """Errors where what is tested, or what is later, trains."""
    both = sorted({e.key for e in train} & {e.key for e in test})
    if both:
        shown = ", ".join(f"{year}/{fips}" for fips, year in both[:_SHOWN])
        what = f"{len(both)} county-years both train and test: {shown}"
        rows = [next(e for e in part if e.key == both[0]).where for part in (train, test)]
        where = " and ".join(dict.fromkeys(rows))
        notes.add(Finding("error", what, where, "correct the index or set data.year"))
    first = min((e.year for e in test), default=None)
    late = sorted({e.year for e in train if first is not None and e.year >= first})
    if data.protocol == "past" and late:
        what = f"training holds {', '.join(map(str, late))}, which is not before the test, {first}"
        remedy = "set data.year, or data.protocol=leave_one_year_out"
        where = next(e for e in train if e.year == late[0]).where
        notes.add(Finding("error", what, where, remedy))


def _without_yield(
    entries: Sequence[Entry], yields: Mapping[int, YieldTable], crop: str, notes: _Notes
) -> None:
    """Say which county-years have pictures and no yield that could be trained on."""
    absent: list[str] = []
    useless: list[str] = []
    for entry in entries:
        table = yields.get(entry.year)
        if table is not None and entry.fips not in table.rows:
            (useless if entry.fips in table.dropped else absent).append(
                f"{entry.year}/{entry.fips}"
            )
    notes.counted(absent, f"have pictures but no row of {crop} and are left out")
    notes.counted(
        useless, f"have a {crop} yield that is missing, withheld or zero, and are left out"
    )


def _sample(entry: Entry, table: YieldTable, data: CropData, deep: bool) -> Sample:
    """Look at a county's pictures.

    Raises:
        DataError: They are missing or damaged.
    """
    if entry.missing:
        msg = (
            f"{entry.where}: '{entry.missing[0]}' of county {entry.fips} in {entry.year} "
            "is not there"
        )
        raise DataError(msg)
    if len(entry.files) < len(SEASON):
        have = ", ".join(path.name for path in entry.files) or "none"
        msg = (
            f"{entry.where}: county {entry.fips} in {entry.year}: expected {len(SEASON)} quarters, "
            f"found {have}"
        )
        raise DataError(msg)
    seen = look(entry.files, entry.fips, entry.year, data.dates)
    if deep:
        for shot in seen.shots:
            read(shot, (0, 0, seen.height, seen.width))
    row = table.rows[entry.fips]
    return Sample(
        data.crop,
        entry.fips,
        entry.year,
        entry.postal,
        entry.county or row.county,
        seen,
        row.production,
        row.yield_value,
    )


def describe(found: SentinelSurvey, config: Config) -> list[Finding]:
    """Counts, sizes and units, for `zoo data check`."""
    unit = unit_of(config.data.crop)
    named = "every county in the folders" if found.source == "folders" else found.source
    lines = [
        Finding(
            "info",
            f"{len(found.tree.pictures)} h5 files of pictures; county-years from {named}; "
            f"{found.year} is predicted",
            str(found.tree.base),
        )
    ]
    for part, samples in found.parts.items():
        if not samples:
            continue
        years = Counter(s.year for s in samples)
        counts = [s.pictures.count for s in samples]
        sides = sorted({(s.pictures.height, s.pictures.width) for s in samples})
        values = [s.yield_value for s in samples]
        told = ", ".join(f"{year}: {n}" for year, n in sorted(years.items()))
        size = " and ".join(f"{h} x {w}" for h, w in (sides[0], sides[-1])[: len(sides)])
        lines.append(
            Finding(
                "info",
                f"{part}: {len(samples)} county-years ({told}); {min(counts)} to {max(counts)} "
                f"pictures each, of {size} pixels; {config.data.crop} yields {min(values):.4g} to "
                f"{max(values):.4g} {unit.text}",
            )
        )
        small = sum(1 for s in samples if min(s.pictures.height, s.pictures.width) < _side(config))
        if small:
            what = f"{part}: {small} county-years have pictures smaller than data.image_size"
            lines.append(Finding("warning", f"{what}={_side(config)}; zeros are put around them"))
    if found.skipped:
        lines.append(Finding("info", f"{len(found.skipped)} county-years are not usable"))
    return lines


def _side(config: Config) -> int:
    return config.data.image_size
