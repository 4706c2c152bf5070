"""`zoo data prepare`: from Earth Engine's exports to histograms a year, and the published file.

Each county is one task, written whole or not at all, so that a run that was killed goes on where it
stopped; counties whose files changed since are done again. Several processes, started by torchrun
or srun, share the counties, and each may use several cores. When all counties are treated, the
joint files are written:

    histograms/{year}.npz    histogram (N, 9, 32, 32) float32, fips, steps, pixels, lon, lat
    histogram_all_full.npz   the layout of the published data set, of county-years with a yield
    yields.csv, counties.csv the tables that go with them, repaired
    prepared.csv             what became of each county
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from zoo import files
from zoo.domains.remote_sensing.crop_yield.config import Config, CropData
from zoo.domains.remote_sensing.crop_yield.counties import (
    Counties,
    csv_names,
    find_tables,
    load_counties,
)
from zoo.domains.remote_sensing.crop_yield.exports import (
    Export,
    Rules,
    find_exports,
    read_county,
)
from zoo.domains.remote_sensing.crop_yield.joint import write_counties, write_joint, write_part
from zoo.domains.remote_sensing.crop_yield.yields import Yields, read_yields
from zoo.errors import ConfigError, DataError
from zoo.made_with import other_settings

_PARTS = "county_histograms"
# Below this many counties, starting processes costs more than it saves.
_FEW = 8


@dataclass(frozen=True)
class Status:
    """What became of a county.

    Attributes:
        fips: Its code.
        status: `ok`, `failed`, or `waiting` for its turn.
        years: Years with a histogram, as text `2003-2015` with gaps by comma.
        pixels: Most pixels of cropland in a year.
        notes: What is odd.
        reason: Why it failed.
        sources: Name, bytes and time of change of each file, to see that it changed.
    """

    fips: str
    status: Literal["ok", "failed", "waiting"]
    years: str = ""
    pixels: int = 0
    notes: str = ""
    reason: str = ""
    sources: str = ""


class Preparation:
    """One set of histograms in the making.

    Args:
        out: Folder of the results.
        data: The data section of a configuration.
        root: Folder of the exports.
        tell: What is done with lines about the progress.

    Raises:
        ConfigError: `out` holds histograms made with other rules.
        DataError: There are no exports, or no yields.
    """

    def __init__(
        self, out: Path, data: CropData, root: Path, tell: Callable[[str], object] = print
    ) -> None:
        self.out, self.data, self.root, self.tell = out, data, root, tell
        self.exports = find_exports(root, self.data)
        if self.data.states is not None:
            wanted = {f"{int(s):02d}" for s in self.data.states if s.isdigit()}
            self.exports = {f: e for f, e in self.exports.items() if f[:2] in wanted}
            if not self.exports:
                msg = f"{root}: no exports of states {', '.join(sorted(wanted))}; see data.states"
                raise DataError(msg)
        self.rules = Rules.of(self.data, root)
        places, table = find_tables(root, self.data)[::-1]
        if table is None:
            msg = f"{root}: no csv of yields found{csv_names(root)}; set data.yields"
            raise DataError(msg)
        self.table_path, self.places_path = table, places
        self.yields: Yields = read_yields(table, crop=self.data.crop, states=self.data.states)
        self.counties: Counties | None = (
            load_counties(places, outlines=self.exports) if places else None
        )
        self._parts = out / _PARTS
        self._claim()

    def run(self, shard: int = 0, shards: int = 1) -> list[Status]:
        """Treat every `shards`-th county that is not done yet, then write the joint files.

        Returns:
            The status of every county of this shard.
        """
        mine = sorted(self.exports)[shard::shards]
        done = {f: s for f in mine if (s := self.status(f)) is not None and s.status == "ok"}
        todo = [f for f in mine if f not in done]
        told = f"process {shard + 1} of {shards}: " if shards > 1 else ""
        if done:
            self.tell(f"{told}{len(done)} of {len(mine)} counties are done already")
        begun = last = time.monotonic()
        for number, status in enumerate(self._treated(todo, shards), 1):
            done[status.fips] = status
            if status.reason:
                self.tell(f"{told}{status.fips}: {status.reason}")
            now = time.monotonic()
            if now - last > 10:
                left = (now - begun) / number * (len(todo) - number)
                self.tell(f"{told}{number} of {len(todo)} counties, about {left:.0f} s left")
                last = now
        self.conclude()
        return [done[f] for f in mine]

    def status(self, fips: str) -> Status | None:
        """What became of a county; None if it was not treated or its files changed since."""
        try:
            body = json.loads((self._parts / f"{fips}.json").read_text(encoding="utf-8"))
            found = Status(**body)
        except (OSError, ValueError, TypeError):
            return None
        there = found.status != "ok" or (self._parts / f"{fips}.npz").is_file()
        return found if there and found.sources == sources(self.exports[fips]) else None

    def _claim(self) -> None:
        """Write down the rules, or compare them with those that made what is there."""
        wanted, place = self.rules.told(), self.out / "settings.json"
        if not any(self._parts.glob("*.npz")):
            files.write_json(place, wanted)
            return
        other = other_settings(place, wanted, "histograms")
        if other:
            msg = f"{self.out}: holds histograms made with {', '.join(other)}; name another out"
            raise ConfigError(msg)

    def _treated(self, todo: Sequence[str], shards: int) -> Iterator[Status]:
        jobs = [(self._parts, self.exports[f], self.rules, self._place(f)) for f in todo]
        workers = self.data.prepare_workers or max(1, (os.cpu_count() or 1) // shards)
        if workers == 1 or (self.data.prepare_workers is None and len(jobs) < _FEW):
            for job in jobs:
                yield treat(*job)
            return
        # Not forked: torch and GDAL have threads by now.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            for future in as_completed([pool.submit(treat, *job) for job in jobs]):
                yield future.result()

    def one(self, fips: str) -> Status:
        """Treat one county here and now."""
        return treat(self._parts, self.exports[fips], self.rules, self._place(fips))

    def _place(self, fips: str) -> tuple[float, float] | None:
        return None if self.counties is None else self.counties.place(fips)

    def conclude(self) -> bool:
        """Write the report, and the joint files once every county was treated.

        Returns:
            Whether the joint files were written.
        """
        states = {f: self.status(f) or Status(f, "waiting") for f in sorted(self.exports)}
        rows = [{k: v for k, v in asdict(s).items() if k != "sources"} for s in states.values()]
        report = pd.DataFrame(rows)
        files.write_whole(self.out / "prepared.csv", lambda p: report.to_csv(p, index=False))
        ready = [f for f, s in states.items() if s.status == "ok"]
        if not ready or any(s.status == "waiting" for s in states.values()):
            return False
        write_joint(self.out, self._parts, ready, self.yields, self.counties)
        if self.places_path is not None and self.counties is not None:
            write_counties(self.out, ready, self.counties, self.places_path)
        return True


def treat(parts: Path, export: Export, rules: Rules, place: tuple[float, float] | None) -> Status:
    """Turn one county's files into its part; what is wrong with it is written down, not raised."""
    # Before reading: what changes meanwhile is seen as changed the next time.
    seen, fips = sources(export), export.fips
    for partial in parts.glob(f".{fips}-*"):
        if files.is_temporary(partial):
            partial.unlink(missing_ok=True)  # of a run that was killed while it wrote
    try:
        found = read_county(export, rules, place)
        files.write_whole(
            parts / f"{fips}.npz",
            lambda p: write_part(p, found),
        )
        years = spans(found.years.tolist())
        notes = "; ".join(found.notes)
        status = Status(fips, "ok", years, int(found.pixels.max()), notes, sources=seen)
    except DataError as error:
        (parts / f"{fips}.npz").unlink(missing_ok=True)  # of files that were whole once
        status = Status(fips, "failed", reason=str(error), sources=seen)
    files.write_json(parts / f"{fips}.json", asdict(status))
    return status


def sources(export: Export) -> str:
    """Name, size and time of change of a county's files."""
    told = []
    for path in export.files():
        stat = path.stat()
        told.append(f"{path.parent.name}/{path.name}:{stat.st_size}:{stat.st_mtime_ns}")
    return ";".join(told)


def spans(years: Sequence[int]) -> str:
    """`2003-2005,2007` of whole numbers in rising order."""
    runs: list[list[int]] = []
    for year in years:
        if runs and runs[-1][1] == year - 1:
            runs[-1][1] = year
        else:
            runs.append([year, year])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def prepare_modis(out: Path, config: Config, root: Path, shard: int = 0, shards: int = 1) -> None:
    """Turn the exports below `data.raw` (else `root`) into histograms in `out`.

    Args:
        out: Folder of the results; made if need be.
        config: The configuration.
        root: The data folder.
        shard: This process among several.
        shards: How many there are.

    Raises:
        DataError: There are no exports or yields, or counties failed and `data.on_error` is not
            `skip`; the others are done then.
        ConfigError: `out` holds histograms made with other rules, or rasterio is missing.
    """
    raw = config.data.raw.expanduser() if config.data.raw is not None else root
    work = Preparation(out, config.data, raw)
    for line in work.yields.repairs.lines():
        print(line)
    for line in work.counties.repairs.lines()[1:] if work.counties else ():
        print(line)
    done = work.run(shard, shards)
    failed = [s for s in done if s.status == "failed"]
    told = f"process {shard + 1} of {shards}: " if shards > 1 else ""
    print(f"{told}{len(done)} counties: {len(done) - len(failed)} ok, {len(failed)} failed")
    if failed and config.data.on_error != "skip":
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        msg = (
            f"{failed[0].reason}{more}; the other counties are done, see {out}/prepared.csv, or "
            "set data.on_error=skip"
        )
        raise DataError(msg)
    if shards > 1:
        print(f"every process must run; {out}/prepared.csv says what is waiting")
    print(f"zoo data check task={config.task} data.root={out}")
