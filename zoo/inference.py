"""`zoo eval` and `zoo predict`: a trained model on splits or on files."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from zoo import evaluation, files
from zoo.checkpoint import load_weights
from zoo.config import BaseConfig, resolve
from zoo.errors import ConfigError, DataError
from zoo.evaluation import Outcome
from zoo.loader import reseed
from zoo.machine import launch, workers_for
from zoo.progress import Reporter
from zoo.task import Facts, Record, Split, Task
from zoo.training import make, opened, trained


def _out(config: BaseConfig, kind: str) -> Path:
    if config.predict.out is not None:
        return config.predict.out.expanduser()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return config.out / f"{kind}-{config.task}-{stamp}-{secrets.token_hex(2)}"


def _loaded(pairs: Sequence[str]) -> tuple[Task[Any], Fabric, Any, Facts]:
    task, found, facts = trained(pairs)
    fabric = launch(task.config)
    reseed(task.config.seed)
    model = fabric.setup_module(task.model(facts))
    load_weights(model, found)
    return task, fabric, model, facts


def evaluate_run(
    pairs: Sequence[str], split: str, reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    """Score a run's weights on a split, or on every test split.

    Returns:
        Rows `metric`, `value`, `95 % interval`, and the folder that was written.

    Raises:
        ConfigError: The split does not exist, or neither weights nor foreign predictions were
            given.
        ZooError: Data or weights are wrong.
    """
    if any(p.startswith("predict.foreign=") for p in pairs):
        return _evaluate_foreign(pairs, split, reporter)
    task, fabric, model, facts = _loaded(pairs)
    splits = opened(task, reporter)
    names = [split] if split else [n for n in splits if n.startswith("test")]
    for name in names:
        if name not in splits:
            msg = f"--split {name}: the data have no such split; splits are {', '.join(splits)}"
            raise ConfigError(msg)
    out = _out(task.config, "eval")
    rows: list[dict[str, Any]] = []
    results: dict[str, float] = {}
    for name in names:
        outcome = _over(task, fabric, model, splits[name], facts, None, reporter)
        rows += _scored(task, name, outcome, facts, out)
        results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
    files.write_json(out / "metrics.json", results)
    return rows, out


def _over(
    task: Task[Any],
    fabric: Fabric,
    model: Any,
    split: Split,
    facts: Facts,
    dense: Path | None,
    reporter: Reporter,
) -> Outcome:
    done = 0
    reporter.begin("evaluating", len(split.ids))

    def tick(count: int) -> None:
        nonlocal done
        done += count
        reporter.step(done)

    with reporter:
        outcome = evaluation.evaluate(
            fabric,
            task,
            model,
            split,
            facts,
            out=dense,
            workers=workers_for(task.config.trainer),
            tick=tick,
        )
    for line in outcome.skipped:
        reporter.warn(f"skipped {line}")
    return outcome


def _scored(
    task: Task[Any], name: str, outcome: Outcome, facts: Facts, out: Path
) -> list[dict[str, Any]]:
    records = outcome.records
    evaluation.write_predictions(out / name, task.rows(records, facts))
    evaluation.save_records(out / name / "records.npz", records)
    evaluation.save_figures(out / "figures", task, name, records, facts)
    intervals = task.intervals(records, facts)
    return [
        {
            "metric": f"{name}/{key}",
            "value": value,
            "95 % interval": "{:.4g} to {:.4g}".format(*intervals[key]) if key in intervals else "",
        }
        for key, value in outcome.metrics.items()
    ]


def _evaluate_foreign(
    pairs: Sequence[str], split: str, reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    resolved = resolve(pairs)
    task = make(resolved)
    folder = resolved.config.predict.foreign
    if folder is None or not folder.expanduser().exists():
        msg = f"predict.foreign={folder}: there is no such file or folder"
        raise DataError(msg)
    reporter.say(resolved.origin)
    found: dict[str, list[Record]] = {
        name: list(records)
        for name, records in task.foreign(folder.expanduser()).items()
        if records and split in ("", name)
    }
    if not found:
        where = f" of split {split}" if split else ""
        msg = f"predict.foreign={folder}: no prediction fits an item of the data{where}"
        raise DataError(msg)
    out = _out(resolved.config, "eval")
    rows: list[dict[str, Any]] = []
    results: dict[str, float] = {}
    for name, records in found.items():
        outcome = Outcome(records, task.score(records, {}))
        rows += _scored(task, name, outcome, {}, out)
        results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
    files.write_json(out / "metrics.json", results)
    return rows, out


def predict_paths(
    pairs: Sequence[str], paths: Sequence[Path], reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    """Predict on files and folders with a run's weights.

    Returns:
        One row a prediction, and the folder that was written.

    Raises:
        DataError: A path does not exist or holds nothing the task reads.
        ZooError: The weights are wrong.
    """
    for path in paths:
        if not path.exists():
            msg = f"input={path}: there is no such file or folder"
            raise DataError(msg)
    task, fabric, model, facts = _loaded(pairs)
    split = task.inputs(paths, facts)
    for note in getattr(split, "notes", ()):
        reporter.warn(note)
    out = _out(task.config, "predict")
    records, written, skipped = evaluation.collect(
        fabric,
        task,
        model,
        split,
        out=out / "dense" if task.config.predict.dense else None,
        workers=workers_for(task.config.trainer),
    )
    for line in skipped:
        reporter.warn(f"skipped {line}")
    if not records:
        msg = "nothing could be predicted: " + (skipped[0] if skipped else "the input is empty")
        raise DataError(msg)
    rows = task.rows(records, facts)
    evaluation.write_predictions(out, rows)
    if task.medical:
        files.write_text(out / "NOTICE.txt", "Research software. Not for diagnosis.\n")
        reporter.say("Research software. Not for diagnosis.")
    if written:
        reporter.say(f"{len(written)} dense outputs")
    return rows, out
