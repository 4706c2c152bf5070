"""From a configuration to a finished run: check, train, evaluate, report.

Everything that can be wrong with configuration and data is found before the run folder exists,
so that a mistake leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from zoo import checkpoint, evaluation, registry, report, runs, starting
from zoo.checkpoint import load_weights
from zoo.config import BaseConfig, Resolved, resolve
from zoo.data import leakage, stop_on_errors
from zoo.engine import Interrupted, Trainer, parameters_of
from zoo.errors import ConfigError, DataError, ResumeError
from zoo.machine import launch, on_signals, workers_for
from zoo.progress import Reporter, figures_line
from zoo.runs import Run
from zoo.starting import held_by
from zoo.task import Facts, Finding, Record, Split, Task
from zoo.tracking import DataInput, Metrics, Mirror, as_rows, network_warning, uri_for

# A resumed run may differ in these; anything else would make it another experiment.
_FREE = ("trainer.", "tracking.", "predict.", "out", "resume", "data.root")
_FIXED = ("trainer.batch_size", "trainer.accumulate", "trainer.precision")


def make(resolved: Resolved) -> Task[Any]:
    """The task object of a configuration."""
    name = resolved.config.task
    try:
        kind = registry.load_object(resolved.entry.code or "", f"tasks.{name}.code")
    except ModuleNotFoundError as error:
        extras = ",".join(resolved.entry.extras) or "all"
        msg = f"task '{name}' needs the package '{error.name}': pip install '.[{extras}]'"
        raise ConfigError(msg) from error
    task: Task[Any] = kind(resolved.config)
    return task


def opened(task: Task[Any], reporter: Reporter | None = None) -> dict[str, Split]:
    """A task's splits after its check and the leakage check.

    Raises:
        DataError: The check or the leakage check found an error.
    """
    findings: Sequence[Finding] = task.check()
    stop_on_errors(findings)
    if reporter:
        for finding in findings:
            if finding.level == "warning":
                reporter.warn(finding.line())
    splits = task.splits()
    stop_on_errors(leakage(splits))
    return splits


def _facts(task: Task[Any], train: Split) -> Facts:
    facts = task.fit(train)
    try:
        same: Facts = json.loads(json.dumps(facts))
    except (TypeError, ValueError) as error:
        msg = f"task '{task.config.task}': facts must be JSON ({error})"
        raise ConfigError(msg) from error
    return same


@dataclass
class Start:
    """How a training begins: a new run, or one that goes on."""

    resolved: Resolved
    run: Run | None = None
    note: str = ""


def begin(pairs: Sequence[str]) -> Start:
    """Resolve `key=value` words, and find the run that `resume=` names.

    Raises:
        ConfigError: A key or value is wrong.
        ResumeError: The run does not exist, is finished, or was made with other settings.
    """
    words = dict(p.partition("=")[::2] for p in pairs)
    named = words.get("resume") or None
    if named is None or named == "auto":
        resolved = resolve(pairs)
        if resolved.config.resume != "auto":
            return Start(resolved)
        run = runs.unfinished(resolved.config)
        note = "" if run else "resume=auto: no unfinished run with these settings; a new one begins"
        return Start(resolved, run, note)
    out = Path(words.get("out") or "runs")
    run = runs.find(named, out)
    if "cv" in run.info:
        msg = f"{run.name} is a cross-validation; continue it with zoo cv resume={run.name}"
        raise ResumeError(msg)
    before = resolve([], run.config())
    resolved = resolve(list(pairs), run.config())
    _same_experiment(run, before.config, resolved.config)
    return Start(resolved, run)


def _same_experiment(run: Run, old: BaseConfig, new: BaseConfig) -> None:
    was, now = old.flat(), new.flat()
    changed = [
        k
        for k in sorted(set(was) | set(now))
        if was.get(k) != now.get(k) and (k in _FIXED or not k.startswith(_FREE))
    ]
    if changed:
        shown = ", ".join(f"{k} ({was.get(k)} -> {now.get(k)})" for k in changed)
        msg = f"run {run.name} cannot be resumed with other settings: {shown}; start a new run"
        raise ResumeError(msg)
    if run.status == "finished" and new.trainer.epochs <= old.trainer.epochs:
        msg = f"run {run.name} is finished; raise trainer.epochs to train it further"
        raise ResumeError(msg)


def train(
    start: Start,
    reporter: Reporter,
    *,
    folder: Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Run:
    """Train, evaluate and report one run.

    Args:
        start: From `begin`.
        reporter: Tells the person in front of it.
        folder: Where to make the run folder; none: the workspace.
        extra: Further entries of run.json.

    Raises:
        ZooError: Anything that is wrong with settings, data or the training itself; a run folder
            then exists only if training had begun, and its status says so.
    """
    resolved = start.resolved
    config = resolved.config
    reporter.say(resolved.origin)
    if start.note:
        reporter.say(start.note)
    task = make(resolved)
    fabric = launch(config)
    if not fabric.is_global_zero:
        reporter.hush()
    with contextlib.ExitStack() as held:
        # Before its checkpoints are read: another process may be about to write newer ones.
        if start.run is not None and fabric.is_global_zero:
            held.enter_context(start.run.lock())
            start.run.tidy()
        splits = opened(task, reporter)
        if "train" not in splits:
            msg = f"{config.data.root}: there is nothing to train on, only {', '.join(splits)}"
            raise DataError(msg)
        inputs = _inputs(config, splits)
        if start.run is not None:
            _same_data(start.run, inputs)
        found = _found(start, reporter)
        facts = found.meta["facts"] if found else _facts(task, splits["train"])
        fresh = found is None and not config.weights
        trainer = Trainer(task, fabric, splits, facts, reporter, fresh)
        if config.weights and not found:
            _start_from(config.weights, task, trainer, reporter)
        run = _run_folder(start, fabric, inputs, folder, extra)
        if start.run is None and fabric.is_global_zero:
            held.enter_context(run.lock())
        if found:
            trainer.restore(found)
            reporter.say(f"resuming {run.name} after step {trainer.at.step}")
        else:
            sizes = parameters_of(trainer.model)
            reporter.say(f"run {run.path}  {sizes['parameters']:,} parameters")
        _conduct(task, trainer, run, inputs, reporter)
    return run


def _start_from(word: str, task: Task[Any], trainer: Trainer, reporter: Reporter) -> None:
    """Put weights into a fresh model and tell what was taken."""
    model = trainer.model.module
    origin = starting.origin_of(word, task, model.state_dict())
    taken = starting.take(model, origin)
    for line in starting.lines(taken, origin, task.config):
        reporter.say(line)


def _found(start: Start, reporter: Reporter) -> checkpoint.Checkpoint | None:
    if start.run is None:
        return None
    found, notes = checkpoint.newest(start.run.checkpoints)
    for note in notes:
        reporter.warn(note)
    if found is None:
        reporter.say(f"run {start.run.name} has no sound checkpoint; it starts from the beginning")
    return found


def _inputs(config: BaseConfig, splits: Mapping[str, Split]) -> list[DataInput]:
    source = str(config.data.root) if config.data.root else f"zoo sample data set of {config.task}"
    context = {"train": "training", "val": "validation"}
    return [
        DataInput(
            name=f"{config.task}-{name}",
            digest=split.digest,
            context=context.get(name, "evaluation"),
            source=source,
            items=len(split.ids),
        )
        for name, split in splits.items()
    ]


def _same_data(run: Run, inputs: Sequence[DataInput]) -> None:
    now, was = as_rows(inputs), run.info.get("inputs", [])
    changed = [d["name"] for d, w in zip(now, was, strict=False) if d["digest"] != w["digest"]]
    if changed or len(now) != len(was):
        msg = (
            f"run {run.name}: the data changed since it began "
            f"({', '.join(changed) or 'other splits'}); start a new run"
        )
        raise ResumeError(msg)


def _run_folder(
    start: Start,
    fabric: Fabric,
    inputs: Sequence[DataInput],
    folder: Path | None,
    extra: Mapping[str, Any] | None,
) -> Run:
    if start.run is not None:
        if fabric.is_global_zero:
            start.run.adopt(start.resolved.config)
        return start.run
    path = ""
    if fabric.is_global_zero:
        made = runs.create(
            start.resolved.config,
            {
                "origin": start.resolved.origin,
                "sample": start.resolved.sample,
                "inputs": as_rows(inputs),
                **(extra or {}),
            },
            folder,
        )
        path = str(made.path)
    path = fabric.broadcast(path)
    return Run(Path(path))


def _conduct(
    task: Task[Any],
    trainer: Trainer,
    run: Run,
    inputs: Sequence[DataInput],
    reporter: Reporter,
) -> None:
    """Train and evaluate with metrics and tracking open, and leave a true status behind."""
    config = task.config
    zero = trainer.fabric.is_global_zero
    metrics = Metrics(run) if zero else None
    mirror = None
    if zero and config.tracking.enabled:
        uri = uri_for(config, config.out)
        warning = network_warning(uri)
        if warning:
            reporter.warn(warning)
        mirror = Mirror(run, config, uri, inputs)
        mirror.start()
    trainer.attach(run, metrics, mirror)
    status = "failed"
    try:
        if zero:
            run.update(status="running")
        with reporter:
            trainer.fit()
        with on_signals(trainer.leave):
            _finish(task, trainer, run, reporter)
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        if zero:
            run.update(status=status)
        if metrics is not None:
            metrics.close()
        if mirror is not None:
            mirror.close()
            if mirror.trouble:
                reporter.warn(f"not all was tracked ({mirror.trouble}); zoo runs sync {run.name}")


def _finish(task: Task[Any], trainer: Trainer, run: Run, reporter: Reporter) -> None:
    """Evaluate the best (or last) weights on every test split and write the report."""
    found = checkpoint.best(run.checkpoints)
    load_weights(trainer.model, found)
    _settle(task, trainer, found.path)
    results: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    tables: dict[str, Any] = {}
    for name, split in trainer.splits.items():
        if not name.startswith("test"):
            continue
        outcome = evaluation.evaluate(
            trainer.fabric,
            task,
            trainer.model,
            split,
            trainer.facts,
            workers=workers_for(trainer.trainer),
        )
        for line in outcome.skipped:
            reporter.warn(f"{name}: skipped {line}")
        if trainer.fabric.is_global_zero:
            scored = keep(task, run, name, outcome.records, trainer.facts)
            results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
            intervals |= {f"{name}/{k}": list(v) for k, v in scored.intervals.items()}
            tables |= scored.tables
        reporter.say(f"{name}  " + figures_line(outcome.metrics))
    if not trainer.fabric.is_global_zero:
        return
    trainer.log(results)
    run.update(
        results={k: (v if math.isfinite(v) else None) for k, v in results.items()},
        intervals=intervals,
        tables=tables,
        steps=trainer.at.step,
        best=trainer.at.best_name,
        skipped=trainer.at.skipped,
        parameters=parameters_of(trainer.model),
    )
    evaluation.write_splits(run.path, results)
    page = report.write(run, task)
    reporter.say(f"report {page}")


def _settle(task: Task[Any], trainer: Trainer, best: Path) -> None:
    """Store what the task chooses on validation with the selected weights."""
    if "val" not in trainer.splits or type(task).settle is Task.settle:
        return
    records, _, _ = evaluation.collect(
        trainer.fabric,
        task,
        trainer.model,
        trainer.splits["val"],
        workers=workers_for(trainer.trainer),
    )
    chosen = task.settle(records, trainer.facts)
    settled = trainer.facts | chosen
    if (
        trainer.fabric.is_global_zero
        and settled != checkpoint.load(best, weights_only=True).meta["facts"]
    ):
        checkpoint.amend(best, settled)
    if trainer.fabric.is_global_zero:
        trainer.run.update(settled=sorted(chosen))
    trainer.facts = settled


@dataclass
class Kept:
    """What was derived from a split's records and stored with the run."""

    intervals: dict[str, tuple[float, float]]
    tables: dict[str, list[dict[str, Any]]]


def keep(task: Task[Any], run: Run, name: str, records: Sequence[Record], facts: Facts) -> Kept:
    """Store a split's records, predictions and figures in the run folder."""
    (run.path / "records").mkdir(exist_ok=True)
    run.figures.mkdir(exist_ok=True)
    evaluation.save_records(run.path / "records" / f"{name}.npz", records)
    evaluation.write_predictions(run.path / "predictions" / name, task.rows(records, facts))
    evaluation.save_figures(run.figures, task, name, records, facts)
    tables = {f"{name}: {title}": rows for title, rows in task.tables(records, facts)}
    return Kept(task.intervals(records, facts), tables)


def trained(pairs: Sequence[str]) -> tuple[Task[Any], Any, Facts]:
    """A task with the model of `weights=`, for evaluation and prediction.

    The settings the weights were trained with are the base; `key=value` words go on top, so that
    preprocessing travels with the weights.

    Returns:
        The task, the checkpoint, and its facts.

    Raises:
        ConfigError: `weights=` is missing or a word is wrong.
        ZooError: The weights cannot be found or read.
    """
    words = dict(p.partition("=")[::2] for p in pairs)
    named = words.get("weights")
    if not named:
        msg = "weights=RUN is missing: a run folder, its name, an MLflow run id or a checkpoint"
        raise ConfigError(msg)
    found = held_by(named, Path(words.get("out") or "runs"))
    base = found.meta["config"] | {"resume": None}
    if "task" in words and registry.find(words["task"])[0] != base["task"]:
        msg = f"weights={named} are of task '{base['task']}', not '{words['task']}'"
        raise ConfigError(msg)
    resolved = resolve(list(pairs), base)
    return make(resolved), found, found.meta["facts"]
