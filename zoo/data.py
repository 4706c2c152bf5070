"""What data adapters share: seeds, batches, splits, leakage checks, sample data sets.

Chance is always derived from named numbers: the order of an epoch from (seed, epoch), an item's
augmentation from (seed, epoch, index). Nothing depends on what was drawn before, which is what
makes resuming in the middle of an epoch exact.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from zoo.errors import DataError
from zoo.files import cache_dir as cache_dir  # adapters know it by this place
from zoo.task import Batch, Finding, Split

# One stream a purpose, so that the order and the items of an epoch never share numbers.
_ORDER, _ITEM, _STEP, _SPLIT = 1, 2, 3, 4
LONGEST_NAME = 255  # bytes of a file's name


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator that orders the items of an epoch."""
    return np.random.default_rng([_ORDER, seed, epoch])


def item_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of everything random in one item of an epoch."""
    return np.random.default_rng([_ITEM, seed, epoch, index])


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for the global generators in one training step of one process."""
    state = np.random.SeedSequence([_STEP, seed, step, rank]).generate_state(1, np.uint64)[0]
    return int(state) >> 1


def split_rng(seed: int) -> np.random.Generator:
    """The generator that divides a data set into train, val and test."""
    return np.random.default_rng([_SPLIT, seed])


def shuffled_batches(
    count: int, size: int, rng: np.random.Generator, drop_last: bool = False
) -> list[list[int]]:
    """Indices 0..count-1 in random order, cut into batches of `size`."""
    return ordered_batches(rng.permutation(count).tolist(), size, drop_last)


def ordered_batches(order: Sequence[int], size: int, drop_last: bool = False) -> list[list[int]]:
    """`order` cut into batches of `size`; the last one may be smaller or is dropped."""
    batches = [list(order[i : i + size]) for i in range(0, len(order), size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()
    return batches


def fingerprint(parts: Iterable[Any]) -> str:
    """Hash of JSON-able parts, 16 hexadecimal digits, for `Split.digest`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def as_text(name: str, where: object) -> None:
    """Make sure that a file's name can be written down: names of other systems may be no UTF-8.

    Args:
        name: The name, or what is made of it.
        where: The file, for the message.

    Raises:
        DataError: It cannot.
    """
    if not name.isascii() and name != name.encode(errors="ignore").decode():
        shown = str(where).encode(errors="backslashreplace").decode()
        msg = f"{shown}: the file's name is no text in UTF-8; rename it"
        raise DataError(msg)


def plain_name(text: str, where: object) -> str:
    """A name from an index, csv or archive, refused if it could lead out of the data folder.

    Args:
        text: The name, later joined to a folder.
        where: File the name was read from, for the message.

    Raises:
        DataError: The name is empty, longer than a file's can be, or holds a path separator, `..`
            or a control character.
    """
    bad = not text or "/" in text or "\\" in text or ".." in text or not text.isprintable()
    if bad:
        msg = f"{where}: {text[:80]!r} is no plain name; separators and '..' are refused"
        raise DataError(msg)
    if len(text.encode()) > LONGEST_NAME:
        msg = f"{where}: {text[:80]!r} … is longer than a file's name can be"
        raise DataError(msg)
    return text


def read_csv(path: Path, *, header: bool = True) -> pd.DataFrame:
    """A csv as text cells, blanks trimmed: ids keep leading zeros, empty cells are "".

    Args:
        path: The file, in UTF-8 with or without byte order mark.
        header: Whether the first row names the columns.

    Raises:
        DataError: The file is missing, empty or no csv.
    """
    if not path.is_file():
        msg = f"{path}: no such file"
        raise DataError(msg)
    table = parsed_csv(path, path, header=header)
    if table.empty:
        msg = f"{path}: the table has no rows"
        raise DataError(msg)
    table = table.fillna("")
    for name in table:
        table[name] = table[name].str.strip()
    if header:
        table.columns = pd.Index([str(name).strip() for name in table.columns])
    return table


def parsed_csv(source: Path | io.StringIO, path: Path, *, header: bool = True) -> pd.DataFrame:
    """A csv as text cells.

    Args:
        source: The file, or its text.
        path: The file, for messages.
        header: Whether the first row names the columns.

    Raises:
        DataError: It is empty or no csv, or a row has more cells than there are columns.
    """
    form: dict[str, Any] = {"header": 0 if header else None, "dtype": str, "index_col": False}
    form |= {"keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", pd.errors.ParserWarning)
            table: pd.DataFrame = pd.read_csv(source, **form)
        if said:  # cells fell off rows: blank ones, as behind a last comma, are no loss
            _refuse_long_rows(source, path)
    except DataError:
        raise
    except (OSError, UnicodeError, ValueError) as error:  # pandas' own errors are ValueErrors
        msg = f"{path}: cannot be read as csv ({_reason(error)})"
        raise DataError(msg) from None
    return table


def _refuse_long_rows(source: Path | io.StringIO, path: Path) -> None:
    text = io.StringIO(read_text(source) if isinstance(source, Path) else source.getvalue())
    with contextlib.suppress(csv.Error):
        rows = csv.reader(text)
        columns = len(next(rows, []))
        for number, row in enumerate(rows, 2):
            if any(cell.strip() for cell in row[columns:]):
                msg = (
                    f"{path}: row {number} has {len(row)} cells, the first row {columns}; quote "
                    "cells that hold commas"
                )
                raise DataError(msg)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark.

    Raises:
        DataError: The file is missing, no plain file (a pipe would be waited for) or no such text.
    """
    if not path.is_file():
        told = "is no plain file" if path.exists() else "no such file"
        msg = f"{path}: {told}"
        raise DataError(msg)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        told = "is no text in UTF-8" if isinstance(error, UnicodeError) else _reason(error)
        msg = f"{path}: cannot be read ({told})"
        raise DataError(msg) from None


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: As `read_text`, or it is no JSON, or one nested so deeply that only malice
            explains it.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        msg = f"{path}: cannot be read as JSON ({told})"
        raise DataError(msg) from None


def _reason(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:160]


def stratified_parts(
    labels: Sequence[int], groups: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Divide items into named parts so that a group stays whole and classes stay balanced.

    Groups are dealt out one by one in a seeded order, largest first, each to the part that is
    furthest below its share of the group's classes. Then a part that got nothing, or nothing of a
    class, takes a small group from one that can spare it: a rare class still reaches every part
    if it has as many groups as there are parts.

    Args:
        labels: Class of each item.
        groups: Patient (or the like) of each item.
        fractions: Part -> share of the items; they are scaled to sum to 1.
        seed: Seeds the order in which groups of equal size are dealt.

    Returns:
        Part -> sorted item indices; every item is in exactly one part.
    """
    rng = split_rng(seed)
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = sorted(members)
    order = [names[i] for i in rng.permutation(len(names))]
    order.sort(key=lambda g: -len(members[g]))
    total = sum(fractions.values())
    classes = sorted(set(labels))
    want = {
        part: {c: share / total * sum(1 for y in labels if y == c) for c in classes}
        for part, share in fractions.items()
    }
    dealt: dict[str, list[str]] = {part: [] for part in fractions if fractions[part] > 0}
    for group in order:
        items = members[group]
        counts = {c: sum(1 for i in items if labels[i] == c) for c in classes}
        part = max(
            dealt,
            key=lambda p: (sum(want[p][c] * n for c, n in counts.items()), sum(want[p].values())),
        )
        dealt[part].append(group)
        for c, n in counts.items():
            want[part][c] -= n
    _level({g: {labels[i] for i in members[g]} for g in names}, members, dealt)
    return {part: sorted(i for g in dealt.get(part, ()) for i in members[g]) for part in fractions}


def _level(
    classes: Mapping[str, set[int]],
    members: Mapping[str, list[int]],
    dealt: dict[str, list[str]],
) -> None:
    """Move small groups so that no part stays empty or without a class, where that is possible."""

    def has(part: str, c: int | None) -> int:
        return sum(1 for g in dealt[part] if c is None or c in classes[g])

    for wanted in (None, *sorted(set().union(*classes.values()))):
        for poor in dealt:
            if has(poor, wanted):
                continue
            spare = [
                (len(members[g]), -has(rich, wanted), g, rich)
                for rich, groups in dealt.items()
                for g in groups
                if (wanted is None or wanted in classes[g])
                and has(rich, None) > 1
                and (wanted is None or all(has(rich, c) > 1 for c in classes[g]))
            ]
            if spare:
                *_, group, rich = min(spare)
                dealt[rich].remove(group)
                dealt[poor].append(group)


def group_folds(
    labels: Sequence[int], groups: Sequence[str], folds: int, seed: int
) -> list[list[int]]:
    """Test indices of each of `folds` folds: groups whole, classes balanced, sizes alike.

    Raises:
        DataError: There are fewer groups than folds.
    """
    if len(set(groups)) < folds:
        msg = f"{len(set(groups))} patients cannot make {folds} folds; lower data.folds"
        raise DataError(msg)
    parts = stratified_parts(labels, groups, {str(k): 1.0 for k in range(folds)}, seed)
    return [parts[str(k)] for k in range(folds)]


def leakage(splits: Mapping[str, Split]) -> list[Finding]:
    """An error for every id or group (patient, slide, identity, county) in two splits.

    Test splits may share items with one another (several views of one test set), not with what
    trained or selected the model.
    """
    findings = []
    names = list(splits)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if first.startswith("test") and second.startswith("test"):
                continue
            for kind in ("ids", "groups"):
                both = set(getattr(splits[first], kind)) & set(getattr(splits[second], kind))
                if both:
                    shown = ", ".join(sorted(both)[:3]) + (" …" if len(both) > 3 else "")
                    what = "items" if kind == "ids" else "groups"
                    findings.append(
                        Finding(
                            "error",
                            f"{len(both)} {what} are in both '{first}' and '{second}': {shown}",
                            _origins(splits[first], splits[second]),
                            "a patient, identity or county must be in one split only",
                        )
                    )
                    break
    return findings


def _origins(*splits: Split) -> str:
    return " and ".join(dict.fromkeys(filter(None, (getattr(s, "where", "") for s in splits))))


def stop_on_errors(findings: Sequence[Finding]) -> None:
    """Raise the errors among findings as one message.

    Raises:
        DataError: At least one finding is an error.
    """
    errors = [f.line() for f in findings if f.level == "error"]
    if errors:
        more = f"\n… and {len(errors) - 10} more; `zoo data check` lists all" * (len(errors) > 10)
        raise DataError("\n".join(errors[:10]) + more)


def written_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, written by `write` if it is not there yet; safe under several processes.

    The content appears by a rename, so a folder that exists is complete.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                write(fresh)
                fresh.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
                fresh.rename(folder)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
    return folder


class ListSplit:
    """A split whose items are a list; the base of most adapters' splits.

    Args:
        ids: Unique names.
        groups: Patient or the like of each item.
        digest: Fingerprint of the content.
        batch_size: Items a batch.
        shuffle: Random order (training) or the given one.
        drop_last: Leave out a smaller last batch when shuffling.

    Attributes:
        where: The file that tells what is in the split, for messages; "" if there is none.
        composed: For `trainer.batch_size=auto`, where a subclass has a `batches` of its own: why
            the size of a batch cannot be chosen by memory alone, "" if it can.

    Raises:
        DataError: There is no item, two items have one id, or an id is no text in UTF-8 (as file
            names of other systems may be) and could not be written down.
    """

    where: str = ""
    composed: str | None = None

    def __init__(
        self,
        ids: Sequence[str],
        groups: Sequence[str],
        digest: str,
        *,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> None:
        if not ids:
            msg = "a split has no items"
            raise DataError(msg)
        if len(set(ids)) != len(ids):
            twice = next(i for i in ids if list(ids).count(i) > 1)
            msg = f"'{twice}' is listed twice in one split"
            raise DataError(msg)
        for name in ids:
            as_text(name, name)
        self.ids: Sequence[str] = list(ids)
        self.groups: Sequence[str] = list(groups)
        self.digest = digest
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Read item `index`; subclasses implement it."""
        raise NotImplementedError

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Batches of an epoch: shuffled for training, in order otherwise."""
        if self.shuffle:
            return shuffled_batches(len(self.ids), self.batch_size, rng, self.drop_last)
        return ordered_batches(range(len(self.ids)), self.batch_size)

    def collate(self, items: list[Batch]) -> Batch:
        """Join items; subclasses implement it."""
        raise NotImplementedError
