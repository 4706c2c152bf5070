"""`zoo eval predict.foreign=`: outputs of other programs scored as our own, one method or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoo import evaluation, files
from zoo.config import resolve
from zoo.data import plain_name
from zoo.errors import ConfigError, DataError
from zoo.evaluation import Outcome
from zoo.progress import Reporter
from zoo.task import Comparison, Record, Task
from zoo.training import make

Found = dict[str, dict[str, list[Record]]]  # method -> split -> records


def evaluate_foreign(
    pairs: Sequence[str], split: str, reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    """Score folders of other methods' outputs on a split, or on every test split.

    One method's results lie directly in the folder that is written, those of several in one
    folder a method; the comparison lies beside them.

    Returns:
        Rows to show (`metric`, `value`, `95 % interval` of one method, the comparison of several),
        and the folder that was written.

    Raises:
        ConfigError: The task has no such format, or two folders have one name.
        DataError: A folder is not there or holds nothing that fits.
    """
    resolved = resolve(pairs)
    task = make(resolved)
    folders = resolved.config.predict.foreign
    if folders is None:
        msg = "predict.foreign= names no folder; give predict.foreign=DIR or [A,B]"
        raise ConfigError(msg)
    for folder in folders:
        if not folder.exists():
            msg = f"predict.foreign={folder}: there is no such file or folder"
            raise DataError(msg)
    reporter.say(resolved.origin)
    found = {
        name: _records(task, name, folder, split, reporter)
        for name, folder in _methods(task, folders).items()
    }
    out = evaluation.results_folder(resolved.config, "eval")
    rows: list[dict[str, Any]] = []
    results: dict[str, float] = {}
    for method, splits in found.items():
        own = out if len(found) == 1 else out / method
        before = "" if len(found) == 1 else f"{method}/"
        for name, records in splits.items():
            outcome = Outcome(records, task.score(records, {}))
            rows += evaluation.write_outcome(task, name, outcome, {}, own)
            results |= {f"{before}{name}/{k}": v for k, v in outcome.metrics.items()}
    comparison = task.compared(found)
    _write(out, comparison)
    files.write_json(out / "metrics.json", results)
    return (rows if len(found) == 1 else list(comparison.rows)), out


def _methods(task: Task[Any], folders: Sequence[Path]) -> dict[str, Path]:
    """Every method's folder by name, in the order given."""
    found: dict[str, Path] = {}
    for folder in folders:
        for name, path in task.methods(folder).items():
            if name in found:
                msg = (
                    f"predict.foreign: {found[name]} and {path} are both called '{name}'; "
                    "rename one, a method is called as its folder"
                )
                raise ConfigError(msg)
            found[plain_name(name, path)] = path
    return found


def _records(
    task: Task[Any], method: str, folder: Path, split: str, reporter: Reporter
) -> dict[str, list[Record]]:
    """Records of one method by split.

    Raises:
        DataError: None fits.
    """
    given: Mapping[str, Sequence[Record]] = task.foreign(folder)
    for note in getattr(given, "notes", ()):
        reporter.warn(f"{method}: {note}")
    found = {
        name: list(records) for name, records in given.items() if records and split in ("", name)
    }
    if not found:
        where = f" of split {split}" if split else ""
        msg = f"predict.foreign={folder}: no prediction fits an item of the data{where}"
        raise DataError(msg)
    return found


def _write(out: Path, comparison: Comparison) -> None:
    """Write comparison.csv, the task's texts and the pictures."""
    import matplotlib as mpl
    import pandas as pd

    mpl.use("Agg")
    table = pd.DataFrame(list(comparison.rows))
    files.write_whole(out / "comparison.csv", lambda p: table.to_csv(p, index=False))
    for name, text in comparison.texts.items():
        files.write_text(out / name, text)
    for name, figure in comparison.figures.items():
        path = out / "figures" / f"{name}.png"
        files.write_whole(path, partial(figure.savefig, dpi=110, bbox_inches="tight"))
