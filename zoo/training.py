"""From a configuration to a finished run: check, train, evaluate, report.

Everything that can be wrong with configuration and data is found before the run folder exists,
so that a mistake leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo import (
    batch_size,
    checkpoint,
    data_changes,
    evaluation,
    faults,
    registry,
    report,
    runs,
    starting,
)
from zoo.beginning import Start as Start
from zoo.beginning import begin as begin
from zoo.checkpoint import load_weights
from zoo.config import AUTO, BaseConfig, Resolved
from zoo.data import leakage, stop_on_errors
from zoo.engine import Interrupted, Trainer, parameters_of
from zoo.errors import ConfigError, DataError, ResumeError
from zoo.fabric import Fabric
from zoo.kernels._dispatch import choice as kernel_choice
from zoo.machine import on_signals, together, workers_for
from zoo.place import place
from zoo.progress import Reporter, figures_line
from zoo.runs import Run
from zoo.startup import Startup
from zoo.task import Facts, Finding, Record, Split, Task
from zoo.team import Lost, Team
from zoo.tracking import DataInput, Metrics, Mirror, as_rows, network_warning, uri_for


def make(resolved: Resolved) -> Task[Any]:
    """The task object of a configuration.

    Raises:
        ConfigError: A package is missing, or `ZOO_KERNELS` has none of its values.
    """
    name, config = resolved.config.task, resolved.config
    if config.trainer.batch_size == AUTO:  # to look at data any size will do
        config = config.resized(1)
    try:
        kind = registry.load_object(resolved.entry.code or "", f"tasks.{name}.code")
    except ModuleNotFoundError as error:
        extras = ",".join(resolved.entry.extras) or "all"
        msg = f"task '{name}' needs the package '{error.name}': pip install '.[{extras}]'"
        raise ConfigError(msg) from error
    try:
        kernel_choice()  # told now: the first block that runs would stop a run under way
    except ValueError as error:
        raise ConfigError(str(error)) from None
    task: Task[Any] = kind(config)
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
    startup = Startup()
    if place().rank:
        reporter.hush()
    reporter.say(start.resolved.origin)
    if start.note:
        reporter.say(start.note)
    batch_size.one_process(start.resolved.config)
    task = make(start.resolved)
    with together(start.resolved.config, _job(start)) as (fabric, team):
        startup.mark("imports")
        start = _one_run(start, team)
        start, found_size = _sized(start, fabric, reporter)
        task = make(start.resolved) if found_size else task
        told = {"processes": team.size, **found_size, **(extra or {})}
        return _train(task, start, fabric, team, reporter, startup, folder, told)


def _job(start: Start) -> dict[str, Any]:
    """What further processes need to take part; they write nothing down."""
    run = str(start.run.path.resolve()) if start.run else ""
    stored = start.resolved.config.stored()
    return {"kind": "train", "config": stored, "run": run, "force": start.force}


def _one_run(start: Start, team: Team) -> Start:
    """With the run that the first process found: the others may have looked a moment later."""
    found = str(start.run.path) if start.run else ""
    chosen = team.share(found)
    if chosen == found:
        return start
    return replace(start, run=Run(Path(chosen)) if chosen else None)


def _train(
    task: Task[Any],
    start: Start,
    fabric: Fabric,
    team: Team,
    reporter: Reporter,
    startup: Startup,
    folder: Path | None,
    extra: Mapping[str, Any],
) -> Run:
    config = task.config
    with contextlib.ExitStack() as held:
        with team.agreed():
            # Before its checkpoints are read: another process may be about to write newer ones.
            if start.run is not None and team.first:
                held.enter_context(_taken(start.run))
            splits, inputs = _data(task, start, reporter)
            startup.mark("data")
            found = _found(start, reporter)
        name = team.share(found.path.name if found else "")
        with team.agreed():
            if name != (found.path.name if found else ""):
                msg = f"process {team.rank} does not read {name}; is the run's folder shared by all"
                raise ResumeError(msg)
            facts = found.meta["facts"] if found else _facts(task, splits["train"])
            fresh = found is None and not config.weights
            with faults.told(config.trainer):
                trainer = Trainer(task, fabric, splits, facts, reporter, fresh, team)
            if config.weights and not found:
                _start_from(config.weights, task, trainer, reporter)
        startup.mark("model")
        run = _run_folder(start, team, inputs, folder, extra)
        with team.agreed():
            if start.run is None and team.first:
                held.enter_context(run.lock())
            if found:
                trainer.restore(found)
                reporter.say(f"resuming {run.name} after step {trainer.at.step}")
            else:
                sizes = parameters_of(trainer.model)
                reporter.say(f"run {run.path}  {sizes['parameters']:,} parameters")
            if start.run is not None and team.first:
                data_changes.note(run, as_rows(inputs), trainer.at.step)
        trainer.startup = startup
        with faults.told(config.trainer, run, trainer.at):
            _conduct(task, trainer, run, inputs, reporter)
    return run


def _data(
    task: Task[Any], start: Start, reporter: Reporter
) -> tuple[dict[str, Split], list[DataInput]]:
    """The splits, checked, and what is written down of them."""
    splits = opened(task, reporter)
    if "train" not in splits:
        there = ", ".join(splits)
        msg = f"{task.config.data.root}: there is nothing to train on, only {there}"
        raise DataError(msg)
    inputs = data_inputs(task.config, splits)
    if start.run is not None:
        warning = data_changes.accept(start.run, as_rows(inputs), start.force)
        if warning:
            reporter.warn(warning)
    return splits, inputs


def _sized(start: Start, fabric: Fabric, reporter: Reporter) -> tuple[Start, dict[str, Any]]:
    """With a batch size, if it was left to us, and what run.json should tell of it."""
    asked = start.resolved
    if asked.config.trainer.batch_size != AUTO:
        return start, {}
    task = make(asked)
    train = opened(task).get("train")
    if train is None:  # told later, in the words of every training
        return replace(start, resolved=replace(asked, config=asked.config.resized(1))), {}
    with faults.told(task.config.trainer):
        trial = Trainer(task, fabric, {"train": train}, _facts(task, train), reporter, fresh=False)
        size = batch_size.find(trial, train, reporter)
    resolved = replace(asked, config=asked.config.resized(size))
    # By this `resume=auto` knows the run again, which is then one of a certain size.
    return replace(start, resolved=resolved), {"auto_batch_size": asked.config.fingerprint()}


@contextlib.contextmanager
def _taken(run: Run) -> Iterator[None]:
    """Hold a run that goes on, and read its state again: it may have gone on since.

    Raises:
        ResumeError: Another process is working on it, or has just finished it.
    """
    before = run.status
    with run.lock():
        run.refresh()
        if run.status == "finished" != before:
            msg = f"run {run.name} has just been finished by another process"
            raise ResumeError(msg)
        run.tidy()
        checkpoint.clean(run.checkpoints)
        yield


def _start_from(word: str, task: Task[Any], trainer: Trainer, reporter: Reporter) -> None:
    """Put weights into a fresh model and tell what was taken."""
    model = trainer.model.module
    origin = starting.origin_of(word, task, model.state_dict())
    taken = starting.take(model, origin)
    for line in starting.lines(taken, origin, task, trainer.facts):
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


def data_inputs(config: BaseConfig, splits: Mapping[str, Split]) -> list[DataInput]:
    """What is written down of the splits: names, fingerprints, where from, how many items."""
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


def _run_folder(
    start: Start,
    team: Team,
    inputs: Sequence[DataInput],
    folder: Path | None,
    extra: Mapping[str, Any],
) -> Run:
    """The run's folder, made or taken over by the first process."""
    path = ""
    with team.agreed():
        if team.first and start.run is not None:
            start.run.adopt(start.resolved.config)
            start.run.update(processes=team.size)
        elif team.first:
            told = {
                "origin": start.resolved.origin,
                "sample": start.resolved.sample,
                "inputs": as_rows(inputs),
                **extra,
            }
            path = str(runs.create(start.resolved.config, told, folder).path)
    path = team.share(path)
    with team.agreed():
        return start.run or Run(Path(path))


def _conduct(
    task: Task[Any],
    trainer: Trainer,
    run: Run,
    inputs: Sequence[DataInput],
    reporter: Reporter,
) -> None:
    """Train and evaluate with metrics and tracking open, and leave a true status behind."""
    config = task.config
    zero = trainer.team.first
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
    if trainer.startup is not None:
        trainer.startup.mark("tracking")
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
    except Lost as error:
        msg = f"{error}; {faults.kept(run)}; continue with resume={run.path}"
        raise Lost(msg) from error
    finally:
        if zero:
            _leave(run, status, metrics, reporter)
        if mirror is not None:
            mirror.close()
            if mirror.trouble:
                reporter.warn(f"not all was tracked ({mirror.trouble}); zoo runs sync {run.name}")


def _leave(run: Run, status: str, metrics: Metrics | None, reporter: Reporter) -> None:
    """Write down how a training ended; a full disk must not hide why it did."""
    ends = [lambda: run.update(status=status), *([metrics.close] if metrics else [])]
    for end in ends:
        try:
            end()
        except OSError as error:
            reporter.warn(f"{run.path}: its end was not written down ({error.strerror or error})")


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
            team=trainer.team,
            workers=workers_for(trainer.trainer),
        )
        for line in outcome.skipped:
            reporter.warn(f"{name}: skipped {line}")
        if trainer.team.first:
            scored = keep(task, run, name, outcome.records, trainer.facts)
            results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
            intervals |= {f"{name}/{k}": list(v) for k, v in scored.intervals.items()}
            tables |= scored.tables
        reporter.say(f"{name}  " + figures_line(outcome.metrics))
    if not trainer.team.first:
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
    team = trainer.team
    records, _, _ = evaluation.collect(
        trainer.fabric,
        task,
        trainer.model,
        trainer.splits["val"],
        team=team,
        workers=workers_for(trainer.trainer),
    )
    chosen: Facts = {}
    with team.agreed():
        if team.first:
            chosen = task.settle(records, trainer.facts)
            settled = trainer.facts | chosen
            if settled != checkpoint.load(best, weights_only=True).meta["facts"]:
                checkpoint.amend(best, settled)
            trainer.run.update(settled=sorted(chosen))
    trainer.facts = trainer.facts | team.share(chosen)


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
