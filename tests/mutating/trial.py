"""One mutation: damage a copy, do what a user would, judge what came out."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutating.arrays import ARRAYS
from tests.mutating.damage import ANY, Kind
from tests.mutating.headers import HEADERS
from tests.mutating.place import Damage, Place, copied
from tests.mutating.sets import SETS, DataSet
from tests.mutating.tables import TABLES
from tests.mutating.watch import Hung, Memory, Opened, alarm
from zoo.config import resolve
from zoo.data import item_rng, leakage, order_rng
from zoo.errors import DataError, ZooError
from zoo.task import Batch, Facts, Finding, Split, Task
from zoo.training import make, opened

KINDS: Sequence[Kind] = (*ANY, *TABLES, *HEADERS, *ARRAYS)
SECONDS = 20
MEMORY = 300 * 2**20
_LONGEST = 3000


@dataclass
class Verdict:
    """What came of a mutation.

    Attributes:
        set: The data set.
        damage: What was done to it.
        lines: What the user was told, by command.
        faults: What must not happen and did; empty if all is well.
        grown: Bytes of memory taken at most.
    """

    set: DataSet
    damage: Damage
    lines: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    grown: int = 0

    def told(self) -> bool:
        """Whether a line says that something is wrong."""
        words = ("error", "skipped", "note: skipped")
        return any(line.startswith(words) for told in self.lines.values() for line in told)

    def __str__(self) -> str:
        d = self.damage
        files = ", ".join(p.name[:60] for p in d.files)
        return f"{self.set}: {d.kind} ({files!r}) {d.note}"


class Bench:
    """Small data sets of a task, written once, and the facts of a training on each.

    Args:
        task: Name of the task.
        base: An empty folder.
    """

    def __init__(self, task: str, base: Path) -> None:
        self.base = base
        self.sets = [s for s in SETS if s.task == task]
        self.shared = base / "shared"
        self.facts: dict[str, Facts] = {}
        self.shared.mkdir()
        for found in self.sets:
            root = base / "sound" / found.name
            root.mkdir(parents=True)
            found.write(root)
            if "train" in found.steps:
                sound = _task(found, root)
                train = opened(sound)["train"]
                self.facts[found.name] = sound.fit(train)

    def trial(self, seed: int, number: int) -> Verdict | None:
        """Mutation `number` of a seed; None where that damage cannot be done to that data set."""
        rng = np.random.default_rng([seed, number])
        found = self.sets[number % len(self.sets)]
        kind = KINDS[int(rng.integers(len(KINDS)))]
        # Places are the same in every run, so that what is drawn from names is.
        work = self.base / f"{number:06d}"
        place = Place(work / "data", work / "outside", self.shared)
        place.outside.mkdir(parents=True)
        copied(self.base / "sound" / found.name, place.root)
        watch = None
        try:
            damage = kind(place, rng)
            if damage is None:
                return None
            verdict = Verdict(found, damage)
            watch = Opened(place.outside)
            _use(verdict, place.root, self.facts.get(found.like or found.name, {}))
            if damage.sealed and watch.any():
                verdict.faults.append("opened a file outside of the data set")
            if (place.outside / "run").exists():
                verdict.faults.append("ran code of a pickle")
            _judge(verdict, place.root)
            return verdict
        finally:
            if watch:
                watch.close()
            for path in work.rglob("*"):
                if not path.is_symlink() and path.is_dir():
                    path.chmod(0o755)
            shutil.rmtree(work)


# -- use ----------------------------------------------------------------------------------------


def _task(found: DataSet, root: Path, *words: str) -> Task[Any]:
    own = [word.format(root=root) for word in found.words]
    return make(resolve([f"task={found.task}", f"data.root={root}", *own, *words]))


def _use(verdict: Verdict, root: Path, facts: Facts) -> None:
    """Check, train and predict as a user would, and keep what is said."""
    found = verdict.set
    skip = "data.on_error=skip"
    steps: dict[str, Callable[[], list[str]]] = {
        "quick": lambda: _told(_checked(_task(found, root), deep=False)),
        "check": lambda: _told(_checked(_task(found, root), deep=True)),
        "train": lambda: _trained(_task(found, root)),
        "prepare": lambda: _prepared(_task(found, root), root.with_name("prepared")),
        "predict": lambda: _predicted(found, root, facts),
    }
    more: dict[str, Callable[[], list[str]]] = {
        "train": lambda: _trained(_task(found, root, skip), skipping=True),
        "predict": lambda: _predicted(found, root, facts, skip),
    }
    with Memory() as memory, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for name in found.steps:
            step = steps[name]
            _step(verdict, name, step)
            if any("took more" in fault for fault in verdict.faults):
                break
            if verdict.lines[name] and name in more:
                _step(verdict, f"{name}, skipping", more[name])
    verdict.grown = memory.grown
    if memory.grown > MEMORY:
        verdict.faults.append(f"took {memory.grown / 2**20:.0f} MB")


def _step(verdict: Verdict, name: str, step: Callable[[], list[str]]) -> None:
    verdict.lines[name] = []
    try:
        with alarm(SECONDS):
            verdict.lines[name] = step()
    except ZooError as error:
        verdict.lines[name] = [f"error: {line}" for line in str(error).splitlines()]
    except Hung:
        verdict.faults.append(f"{name}: took more than {SECONDS} s")
    except Exception as error:  # what this is all about
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/zoo/" in f.filename] or where
        last = ours[-1]
        place = f"{Path(last.filename).name}:{last.lineno} {last.name}"
        verdict.faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]} at {place}")


def _checked(task: Task[Any], deep: bool) -> list[Finding]:
    """As `zoo data check` does."""
    findings = list(task.check(deep=deep))
    if deep and not any(f.level == "error" for f in findings):
        findings += leakage(task.splits())
    return findings


def _told(findings: Sequence[Finding]) -> list[str]:
    return [f"{f.level}: {f.line()}" for f in findings if f.level != "info"]


def _trained(task: Task[Any], *, skipping: bool = False) -> list[str]:
    """Every item of every split, as one epoch and an evaluation read them."""
    splits = opened(task)
    told: list[str] = []
    for split in splits.values():
        told += _read(split, skipping)
    task.fit(splits["train"]) if "train" in splits else None
    return told


def _prepared(task: Task[Any], out: Path) -> list[str]:
    """As `zoo data prepare` does; what it prints of single files counts as told."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        task.prepare(out, 0, 1)
    return [line for line in said.getvalue().splitlines() if "data.root=" not in line]


def _predicted(found: DataSet, root: Path, facts: Facts, *words: str) -> list[str]:
    paths = [p for pattern in found.given for p in sorted(root.glob(pattern))] or [root]
    for path in paths:
        if not path.exists():  # as `zoo predict` does
            msg = f"input={path}: there is no such file or folder"
            raise DataError(msg)
    split = _task(found, root, *words).inputs(paths, facts)
    return _read(split, bool(words)) + [f"note: {n}" for n in getattr(split, "notes", ())]


def _read(split: Split, skipping: bool) -> list[str]:
    told = []
    for batch in split.batches(0, order_rng(0, 0)):
        items = []
        for index in batch:
            try:
                items.append(split.item(index, item_rng(0, 0, index)))
            except ZooError as error:
                if not skipping:
                    raise
                told.append(f"skipped {error}")
        if items:
            _looked(split.collate(items))
    return told


def _looked(batch: Batch) -> None:
    """Decode what a batch only points at: the pictures of volumes and clips."""
    for values in batch.values():
        for stack in values if isinstance(values, list) else [values]:
            if hasattr(stack, "picture"):
                for index in range(len(stack)):
                    stack.picture(index)


# -- judgement ----------------------------------------------------------------------------------


def _judge(verdict: Verdict, root: Path) -> None:
    damage, lines = verdict.damage, verdict.lines
    errors = {n: [x for x in told if x.startswith("error")] for n, told in lines.items()}
    for name, told in lines.items():
        for line in told:
            if not _sayable(line):
                verdict.faults.append(f"{name}: cannot be printed in one line: {line[:200]!r}")
                break
    names = _names(damage, root)
    # Where what is broken may be skipped, the line is of what is left.
    nameless = [
        n for n, told in errors.items() if told and "skip" not in n and not _named(told, names)
    ]
    if nameless:
        first = errors[nameless[0]][0]
        verdict.faults.append(f"{', '.join(nameless)}: names no file: {first[:300]}")
    checked = " ".join(lines.get("check", lines.get("prepare", ())))
    if errors.get("train") and not checked and not any("check:" in f for f in verdict.faults):
        verdict.faults.append(f"check: silent, but training stops: {errors['train'][0][:300]}")
    read = not _unread(verdict)
    if damage.told and read and not any(n in checked for n in names):
        others = " ".join(x for told in lines.values() for x in told)
        if not any(n in others for n in names):  # what only prediction reads is told there
            verdict.faults.append(f"check: silent; said otherwise: {others[:200]!r}")


def _named(told: Sequence[str], names: set[str]) -> bool:
    return any(name in line for line in told for name in names)


def _unread(verdict: Verdict) -> bool:
    patterns = verdict.set.unread
    return all(any(p.match(pattern) for pattern in patterns) for p in verdict.damage.files)


def _names(damage: Damage, root: Path) -> set[str]:
    """Words by which a message can name what was damaged."""
    found: set[str] = set()
    for path in damage.files:
        shown = path.name.encode("utf-8", "backslashreplace").decode()
        found |= {path.name, shown, path.name.partition(".")[0]}
        if not damage.strict:
            inside = [p for p in path.parents if root in (p, *p.parents)]
            found |= {str(p) for p in inside}
    return {name for name in found if name}


def _sayable(line: str) -> bool:
    """Whether a terminal and a log get one line of a length that is read."""
    return len(line) < _LONGEST


def scratch() -> Path:
    """Where data sets are copied to: memory, where there is some, since it is all small files."""
    shm = Path("/dev/shm")
    return (
        shm
        if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2**29
        else Path(tempfile.gettempdir())
    )
