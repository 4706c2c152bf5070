"""`zoo eval` and `zoo predict`: a trained model on splits or on files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from zoo import evaluation, files
from zoo.checkpoint import load_weights
from zoo.errors import ConfigError, DataError
from zoo.evaluation import Outcome
from zoo.foreign import evaluate_foreign
from zoo.loader import reseed
from zoo.machine import launch, workers_for
from zoo.progress import Reporter
from zoo.task import Facts, Split, Task
from zoo.training import opened, trained


def _loaded(pairs: Sequence[str]) -> tuple[Task[Any], Fabric, Any, Facts]:
    task, found, facts = trained(pairs)
    task.serving = True
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
        return evaluate_foreign(pairs, split, reporter)
    task, fabric, model, facts = _loaded(pairs)
    splits = opened(task, reporter)
    names = [split] if split else [n for n in splits if n.startswith("test")]
    for name in names:
        if name not in splits:
            msg = f"--split {name}: the data have no such split; splits are {', '.join(splits)}"
            raise ConfigError(msg)
    out = evaluation.results_folder(task.config, "eval")
    rows: list[dict[str, Any]] = []
    results: dict[str, float] = {}
    for name in names:
        outcome = _over(task, fabric, model, splits[name], facts, None, reporter)
        rows += evaluation.write_outcome(task, name, outcome, facts, out)
        task.finish(outcome.records, facts, out / name)
        results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
    files.write_json(out / "metrics.json", results)
    evaluation.write_splits(out, results)
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
    out = evaluation.results_folder(task.config, "predict")
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
    written += task.finish(records, facts, out)
    if task.medical:
        files.write_text(out / "NOTICE.txt", "Research software. Not for diagnosis.\n")
        reporter.say("Research software. Not for diagnosis.")
    if written:
        reporter.say(f"{len(written)} further files")
    for line in task.remarks(records, facts):
        reporter.say(line)
    return rows, out
