"""`zoo cv`: every fold and seed as a run of its own under one parent.

The parent folder holds `folds/` with one run folder a training. What is finished is not trained
again, so an interrupted cross-validation goes on where it stopped, fold by fold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo import data_changes, evaluation, report, runs, tracking
from zoo.config import AUTO, BaseConfig, Resolved, resolve
from zoo.errors import ConfigError, ResumeError, TrackingError
from zoo.place import place
from zoo.progress import Reporter, figures_line
from zoo.runs import Run
from zoo.task import Task
from zoo.training import Start, data_inputs, make, opened, train


@dataclass(frozen=True)
class _Training:
    """One fold with one seed.

    Attributes:
        seed: Its seed.
        number: Number of the fold, from 0.
        words: What the fold sets, for people.
        resolved: Its settings.
        run: Its run so far, if it has one.
    """

    seed: int
    number: int
    words: str
    resolved: Resolved
    run: Run | None

    @property
    def finished(self) -> bool:
        return self.run is not None and self.run.status == "finished"


def cross_validate(
    pairs: Sequence[str], seeds: Sequence[int], reporter: Reporter, force: bool = False
) -> Run:
    """Train every fold for every seed and write the parent run.

    Args:
        pairs: `key=value` words; `resume=auto|RUN` goes on with an unfinished parent.
        seeds: Seeds to train each fold with; empty: the configured one.
        reporter: Tells the person in front of it.
        force: Go on although the data changed since folds were trained.

    Raises:
        ConfigError: The task has a single fold and a single seed, or torchrun or srun started
            several processes.
        DataError: The check of the first fold found an error.
        ResumeError: The parent was made with other settings, or the data changed.
    """
    if place().size > 1:
        msg = "zoo cv starts processes for each fold itself: run it once, with trainer.devices=N"
        raise ConfigError(msg)
    plain = [p for p in pairs if not p.startswith("resume=")]
    named = next((p.partition("=")[2] for p in pairs if p.startswith("resume=")), None)
    resolved = resolve(plain)
    if resolved.config.trainer.batch_size == AUTO:
        msg = (
            "trainer.batch_size=auto: the folds of a cross-validation need one size; find it with "
            "zoo train trainer.max_steps=1 and set it"
        )
        raise ConfigError(msg)
    task = make(resolved)
    folds = task.folds()
    seeds = list(seeds) or [resolved.config.seed]
    # What is wrong with the data is told first: it may be why there is a single fold.
    opened(make(resolve([*plain, *(f"{k}={v}" for k, v in folds[0].items())])))
    if len(folds) * len(seeds) < 2:
        msg = "there is one fold and one seed, so nothing to cross-validate; set --seeds 1,2,3"
        if "data.folds" in resolved.config.flat():
            msg += " or data.folds=5"
        raise ConfigError(msg)
    parent = _parent(resolved.config, named, folds, seeds, resolved.origin, resolved.sample)
    reporter.say(f"{parent.path}: {len(folds)} folds x {len(seeds)} seeds")
    with parent.lock():
        planned = list(_planned(parent.path / "folds", plain, folds, seeds))
        _same_data(parent, planned, force, reporter)
        _announce(parent, resolved.config, reporter)
        done = _children(parent, planned, force, reporter)
        _summarise(parent, task, done, reporter)
    return parent


def _parent(
    config: BaseConfig,
    named: str | None,
    folds: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    origin: str,
    sample: bool,
) -> Run:
    plan = {"folds": [dict(f) for f in folds], "seeds": list(seeds)}
    if named == "auto":
        same = [
            r
            for r in runs.every(config.out)
            if r.info.get("cv") == plan and r.status != "finished" and _alike(r, config)
        ]
        if same:
            return same[-1]
    elif named:
        run = runs.find(named, config.out)
        if run.info.get("cv") != plan or not _alike(run, config):
            msg = f"{run.name} is not a cross-validation with these settings, folds and seeds"
            raise ResumeError(msg)
        return run
    return runs.create(config, {"cv": plan, "origin": f"cv of {origin}", "sample": sample})


def _announce(parent: Run, config: BaseConfig, reporter: Reporter) -> None:
    """Make the parent in MLflow first, so that the folds can name it."""
    parent.update(status="running")
    if not config.tracking.enabled:
        return
    try:
        tracking.sync(parent, config, tracking.uri_for(config, config.out))
    except TrackingError as error:
        reporter.warn(str(error))


def _planned(
    there: Path, plain: Sequence[str], folds: Sequence[Mapping[str, str]], seeds: Sequence[int]
) -> Iterator[_Training]:
    """Every training in order, with the run that was begun for it."""
    for seed in seeds:
        for number, fold in enumerate(folds):
            words = [*plain, f"seed={seed}", *(f"{k}={v}" for k, v in fold.items())]
            resolved = resolve(words)
            run = _existing(there, resolved.config)
            yield _Training(seed, number, _words(fold), resolved, run)


def _same_data(parent: Run, planned: Sequence[_Training], force: bool, reporter: Reporter) -> None:
    """Stop if what was trained so far saw other data than what is left would.

    Of each fold its newest training is compared.

    Raises:
        ResumeError: The data changed, and going on was not asked for.
    """
    if all(training.finished for training in planned):
        return
    begun = {t.number: (t.run, t.resolved) for t in planned if t.run is not None}
    found: data_changes.Changes = {}
    for number, (run, resolved) in begun.items():
        task = make(resolved)
        rows = tracking.as_rows(data_inputs(task.config, opened(task)))
        changes = data_changes.changed(run, rows)
        found |= {f"{name} of fold {number + 1}": change for name, change in changes.items()}
    warning = data_changes.judge(parent.name, list(found), force)
    if warning:
        reporter.warn(warning)
        count = sum(training.run is not None for training in planned)
        data_changes.write(parent, {"trainings": count}, found)


def _children(
    parent: Run, planned: Sequence[_Training], force: bool, reporter: Reporter
) -> list[tuple[int, int, Run]]:
    there = parent.path / "folds"
    folds = 1 + max(training.number for training in planned)
    done = []
    try:
        for item in planned:
            reporter.say(f"\nseed {item.seed}, fold {item.number + 1}/{folds}: {item.words}")
            run = item.run
            if run is not None and item.finished:
                reporter.say(f"{run.name} is finished")
            else:
                extra = {
                    "mlflow_parent": parent.mlflow_id,
                    "fold": item.number,
                    "parent": parent.name,
                }
                start = Start(item.resolved, run, force=force)
                run = train(start, reporter, folder=there, extra=extra)
            done.append((item.seed, item.number, run))
    except BaseException:
        parent.update(status="interrupted")
        raise
    return done


def _words(fold: Mapping[str, str]) -> str:
    return " ".join(f"{k}={v}" for k, v in fold.items()) or "all data"


def _alike(run: Run, config: BaseConfig) -> bool:
    """Whether a run has these settings; the number of processes may be another."""
    return run.info.get("fingerprint") == config.fingerprint() or runs.same_but_for_devices(
        run, config
    )


def _existing(there: Path, config: BaseConfig) -> Run | None:
    there_are = [Run(p.parent) for p in sorted(there.glob("*/run.json"))]
    found = [r for r in there_are if _alike(r, config)]
    finished = [r for r in found if r.status == "finished"]
    candidates = finished or found
    return candidates[-1] if candidates else None


def _summarise(
    parent: Run, task: Task[Any], done: Sequence[tuple[int, int, Run]], reporter: Reporter
) -> None:
    """Mean and deviation over trainings, and scores of all folds' predictions pooled a seed."""
    rows = [
        {"seed": seed, "fold": fold, "run": run.name} | run.results() for seed, fold, run in done
    ]
    names = [k for k in rows[0] if k.startswith("test")]
    results: dict[str, float] = {}
    for name in names:
        values = np.array([r[name] for r in rows if r.get(name) is not None], float)
        results[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
        results[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    pooled = _pooled(parent, task, done)
    if pooled:
        keys = pooled[0]["metrics"].keys()
        for key in keys:
            values = np.array([p["metrics"][key] for p in pooled], float)
            results[f"pooled/{key}"] = float(values.mean())
            if len(pooled) > 1:
                results[f"pooled/{key}_std"] = float(values.std(ddof=1))
    parent.update(
        results={k: (v if math.isfinite(v) else None) for k, v in results.items()},
        tables={
            "Trainings": rows,
            "Pooled predictions by seed": [{"seed": p["seed"]} | p["metrics"] for p in pooled],
        },
        intervals=pooled[0]["intervals"] if len(pooled) == 1 else {},
        status="finished",
    )
    metrics = tracking.Metrics(parent)
    metrics.log(0, results)
    metrics.close()
    page = report.write(parent, task)
    config = task.config
    if config.tracking.enabled:
        try:
            tracking.sync(parent, config, tracking.uri_for(config, config.out))
        except TrackingError as error:
            reporter.warn(str(error))
    reporter.say("\nmean over trainings  " + figures_line(_main(results, "_mean")))
    if pooled:
        reporter.say("pooled predictions   " + figures_line(_main(results, "")))
    reporter.say(f"report {page}")


def _main(results: Mapping[str, float], end: str) -> dict[str, float]:
    if end:
        stems = {k: k.removesuffix(end) for k in results if k.endswith(end)}
        return {stem: results[k] for k, stem in stems.items() if stem.startswith("test")}
    return {k: v for k, v in results.items() if k.startswith("pooled/")}


def _pooled(
    parent: Run, task: Task[Any], done: Sequence[tuple[int, int, Run]]
) -> list[dict[str, Any]]:
    """Scores of the test predictions of all folds together, one entry a seed.

    Only where the folds' test items are disjoint: the same item predicted twice is no pool.
    """
    out = []
    for seed in dict.fromkeys(s for s, _, _ in done):
        records = []
        for s, _, run in done:
            file = run.path / "records" / "test.npz"
            if s == seed and file.exists():
                records += evaluation.load_records(file)
        folds = {f for s, f, _ in done if s == seed}
        if len(folds) < 2 or len({r.id for r in records}) != len(records):
            continue
        facts = _facts_of(done[0][2])
        name = f"pooled_seed{seed}"
        parent.figures.mkdir(exist_ok=True)
        evaluation.save_figures(parent.figures, task, name, records, facts)
        evaluation.write_predictions(parent.path / "predictions" / name, task.rows(records, facts))
        intervals = task.intervals(records, facts)
        out.append(
            {
                "seed": seed,
                "metrics": task.score(records, facts),
                "intervals": {f"pooled/{k}": list(v) for k, v in intervals.items()},
            }
        )
    return out


def _facts_of(run: Run) -> dict[str, Any]:
    """The facts a finished run learnt from its training data.

    What it settled on its own validation split (an operating point) is not true of other folds.
    """
    from zoo import checkpoint

    facts: dict[str, Any] = checkpoint.best(run.checkpoints).meta["facts"]
    return {k: v for k, v in facts.items() if k not in run.info.get("settled", ())}
