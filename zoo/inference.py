"""`zoo eval` and `zoo predict`: a trained model on splits or on files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import evaluation, files
from zoo.checkpoint import load_weights
from zoo.conversion import trained
from zoo.errors import ConfigError, DataError
from zoo.evaluation import Outcome
from zoo.fabric import Fabric
from zoo.foreign import evaluate_foreign
from zoo.loader import reseed
from zoo.machine import together, workers_for
from zoo.place import place
from zoo.progress import Reporter
from zoo.task import NOTICE, Facts, Record, Split, Task
from zoo.team import Team
from zoo.training import opened


@dataclass(frozen=True)
class _Loaded:
    """A model with its weights on its device, and the processes that use it together."""

    task: Task[Any]
    fabric: Fabric
    team: Team
    model: Any
    facts: Facts


def _loaded(
    pairs: Sequence[str], reporter: Reporter, held: ExitStack, job: Mapping[str, Any]
) -> _Loaded:
    """A trained model; `held` ends the processes that were started for it."""
    if place().rank:
        reporter.hush()
    task, found, facts = trained(pairs)
    for line in found.meta.get("told", ()):
        reporter.say(line)
    task.serving = True
    # As many processes as are asked for now: how many trained it says nothing about this machine.
    asked = any(p.startswith("trainer.devices=") for p in pairs)
    devices = task.config.trainer.devices if asked else 1
    fabric, team = held.enter_context(together(task.config, job, devices))
    with team.agreed():
        reseed(task.config.seed)
        model = fabric.setup_module(task.model(facts))
        load_weights(model, found)
    return _Loaded(task, fabric, team, model, facts)


def evaluate_run(
    pairs: Sequence[str], split: str, reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    """Score a run's weights on a split, or on every test split.

    Returns:
        Rows `metric`, `value`, `95 % interval` (of several processes in the first one only), and
        the folder that was written.

    Raises:
        ConfigError: The split does not exist, or neither weights nor foreign predictions were
            given.
        ZooError: Data or weights are wrong.
    """
    if any(p.startswith("predict.foreign=") for p in pairs):
        if place().rank:  # nothing to share: no model runs
            return [], Path()
        return evaluate_foreign(pairs, split, reporter)
    with ExitStack() as held:
        job = {"kind": "eval", "pairs": list(pairs), "split": split}
        return _evaluate(_loaded(pairs, reporter, held, job), split, reporter)


def _evaluate(use: _Loaded, split: str, reporter: Reporter) -> tuple[list[dict[str, Any]], Path]:
    task, facts, team = use.task, use.facts, use.team
    with team.agreed():
        splits = opened(task, reporter)
        names = [split] if split else [n for n in splits if n.startswith("test")]
        for name in names:
            if name not in splits:
                known = ", ".join(splits)
                msg = f"--split {name}: the data have no such split; splits are {known}"
                raise ConfigError(msg)
        folder = evaluation.results_folder(task.config, "eval")
    out = team.share(folder)
    rows: list[dict[str, Any]] = []
    results: dict[str, float] = {}
    for name in names:
        outcome = _over(use, splits[name], None, reporter)
        with team.agreed():
            if team.first:
                rows += evaluation.write_outcome(task, name, outcome, facts, out)
                task.finish(outcome.records, facts, out / name)
        results |= {f"{name}/{k}": v for k, v in outcome.metrics.items()}
    if team.first:
        files.write_json(out / "metrics.json", results)
        evaluation.write_splits(out, results)
    return rows, out


def _over(use: _Loaded, split: Split, dense: Path | None, reporter: Reporter) -> Outcome:
    done = 0
    reporter.begin("evaluating", len(split.ids))

    def tick(count: int) -> None:
        nonlocal done
        done += count
        reporter.step(done)

    with reporter:
        outcome = evaluation.evaluate(
            use.fabric,
            use.task,
            use.model,
            split,
            use.facts,
            team=use.team,
            out=dense,
            workers=workers_for(use.task.config.trainer),
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
        One row a prediction (of several processes in the first one only), and the folder that
        was written.

    Raises:
        DataError: A path does not exist or holds nothing the task reads.
        ZooError: The weights are wrong, or `predict.out` is no place for a folder.
    """
    for path in paths:
        if not path.exists():
            msg = f"input={path}: there is no such file or folder"
            raise DataError(msg)
    with ExitStack() as held:
        job = {"kind": "predict", "pairs": list(pairs), "paths": [str(p) for p in paths]}
        return _predict(_loaded(pairs, reporter, held, job), paths, reporter)


def _predict(
    use: _Loaded, paths: Sequence[Path], reporter: Reporter
) -> tuple[list[dict[str, Any]], Path]:
    task, facts, team = use.task, use.facts, use.team
    with team.agreed():
        split = task.inputs(paths, facts)
        for note in getattr(split, "notes", ()):
            reporter.warn(note)
        folder = evaluation.results_folder(task.config, "predict")
    out = team.share(folder)
    records, written, skipped = evaluation.collect(
        use.fabric,
        task,
        use.model,
        split,
        out=out / "dense" if task.config.predict.dense else None,
        workers=workers_for(task.config.trainer),
        team=team,
    )
    for line in skipped:
        reporter.warn(f"skipped {line}")
    with team.agreed():
        if not team.first:
            return [], out
        if not records:
            msg = "nothing could be predicted: " + (skipped[0] if skipped else "the input is empty")
            raise DataError(msg)
        rows = task.rows(records, facts)
        evaluation.write_predictions(out, rows)
        written += task.finish(records, facts, out)
    _closing(task, facts, records, written, out, reporter)
    return rows, out


def _closing(
    task: Task[Any],
    facts: Facts,
    records: Sequence[Record],
    written: Sequence[Path],
    out: Path,
    reporter: Reporter,
) -> None:
    """What is told of all predictions at once."""
    if task.medical:
        files.write_text(out / "NOTICE.txt", f"{NOTICE}\n")
        reporter.say(NOTICE)
    if written:
        reporter.say(f"{len(written)} further files")
    for line in task.remarks(records, facts):
        reporter.say(line)
