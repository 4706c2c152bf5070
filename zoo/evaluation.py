"""Runs a model over a split and keeps what came out: records, metrics, figures, tables."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from zoo import files
from zoo.config import BaseConfig
from zoo.data import order_rng, step_seed
from zoo.errors import DataError
from zoo.loader import Feed, reseed
from zoo.task import Facts, Metrics, Record, Split, Task
from zoo.team import Team

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.fabric import Fabric


@dataclass
class Outcome:
    """What evaluating a split gave.

    Attributes:
        records: One a unit of evaluation, in the order of the split.
        metrics: Scores of the whole split.
        files: Dense outputs that were written.
        skipped: One line for each broken item left out.
    """

    records: list[Record]
    metrics: Metrics
    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(
    fabric: Fabric,
    task: Task[Any],
    model: nn.Module,
    split: Split,
    *,
    out: Path | None = None,
    workers: int = 0,
    tick: Callable[[int], None] | None = None,
    team: Team | None = None,
) -> tuple[list[Record], list[Path], list[str]]:
    """Records of every item of a split, each unit once.

    Several processes share the batches; what they found is in the first one, and nothing in the
    others. Each writes the dense outputs of its own records.

    Args:
        fabric: Launched devices.
        task: Gives records from batches.
        model: In whatever mode; it is left in eval mode.
        split: What to predict.
        out: Folder for dense outputs; none are written without it.
        workers: Loading processes.
        tick: Called with the number of items after each batch, those of all processes guessed.
        team: The processes; none: those of `fabric`.
    """
    team = team or Team(fabric)
    team.align(model)
    model.eval()
    mine = _Found()
    with team.agreed():
        _through(fabric, task, model, split, mine, out, workers, tick, team)
    found = team.gather(mine.bare() if team.size > 1 else mine)
    place = {name: i for i, name in enumerate(split.ids)}
    unique = {r.id: r for part in found for r in part.records}
    ordered = sorted(unique.values(), key=lambda r: (place.get(r.id, len(place)), r.id))
    # A batch that two processes read would name a file twice.
    written = list(dict.fromkeys(p for part in found for p in part.written))
    return ordered, written, [line for part in found for line in part.skipped]


@dataclass
class _Found:
    """What one process found."""

    records: list[Record] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def bare(self) -> _Found:
        """Without the functions that write dense outputs, which stay where they are."""
        records = [Record(r.id, r.group, r.values) for r in self.records]
        return _Found(records, self.written, self.skipped)


def _through(
    fabric: Fabric,
    task: Task[Any],
    model: nn.Module,
    split: Split,
    found: _Found,
    out: Path | None,
    workers: int,
    tick: Callable[[int], None] | None,
    team: Team,
) -> None:
    """Run the model over this process's share of a split."""
    seed = task.config.seed
    batches = split.batches(0, order_rng(seed, 0))
    feed = Feed(
        split,
        batches[team.rank :: team.size],
        seed=seed,
        epoch=0,
        workers=workers,
        on_error=task.config.data.on_error,
    )
    with torch.no_grad():
        for names, batch in feed:
            if batch is None:
                continue
            reseed(step_seed(seed, 0, 0), fabric.device)
            made = task.records(model, fabric.to_device(batch))
            found.records.extend(made)
            if out is not None:
                for record in made:
                    found.written.extend(record.write(out) if record.write else [])
            if tick:
                tick(len(names) * team.size)
    found.skipped = feed.skipped


def evaluate(
    fabric: Fabric,
    task: Task[Any],
    model: nn.Module,
    split: Split,
    facts: Facts,
    *,
    team: Team | None = None,
    **options: Any,
) -> Outcome:
    """`collect` and score a split; the scores are in all processes, the rest in the first.

    Raises:
        DataError: No item could be read.
    """
    team = team or Team(fabric)
    records, written, skipped = collect(fabric, task, model, split, team=team, **options)
    metrics: Metrics = {}
    with team.agreed():
        if team.first and not records:
            msg = "nothing could be evaluated: " + (skipped[0] if skipped else "the split is empty")
            raise DataError(msg)
        if team.first:
            metrics = task.score(records, facts)
    return Outcome(records, team.share(metrics), written, skipped)


def save_records(path: Path, records: Sequence[Record]) -> None:
    """Store records (without their dense outputs) as one npz file that needs no pickle."""
    body: dict[str, np.ndarray] = {
        "ids": np.array([r.id for r in records], dtype=np.str_),
        "groups": np.array([r.group for r in records], dtype=np.str_),
    }
    names = sorted({k for r in records for k in r.values})
    stacked = []
    for name in names:
        have = [np.asarray(r.values[name]) for r in records if name in r.values]
        alike = len(have) == len(records) and len({(a.shape, a.dtype.str) for a in have}) == 1
        if alike:
            body[f"all/{name}"] = np.stack(have)
            stacked.append(name)
            continue
        for i, record in enumerate(records):
            if name in record.values:
                body[f"one/{i}/{name}"] = np.asarray(record.values[name])
    files.write_whole(path, lambda p: np.savez_compressed(p, allow_pickle=False, **body))


def load_records(path: Path) -> list[Record]:
    """Read what `save_records` wrote."""
    with np.load(path, allow_pickle=False) as body:
        values: list[dict[str, np.ndarray]] = [{} for _ in body["ids"]]
        for key in body.files:
            kind, _, rest = key.partition("/")
            if kind == "all":
                array = body[key]
                for i, row in enumerate(values):
                    row[rest] = array[i]
            elif kind == "one":
                index, _, name = rest.partition("/")
                values[int(index)][name] = body[key]
        ids, groups = body["ids"], body["groups"]
    return [Record(str(i), str(g), v) for i, g, v in zip(ids, groups, values, strict=True)]


def write_predictions(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Write prediction rows as predictions.csv and predictions.json."""
    import pandas as pd

    table = folder / "predictions.csv"
    files.write_whole(table, lambda p: pd.DataFrame(list(rows)).to_csv(p, index=False))
    as_json = folder / "predictions.json"
    files.write_text(as_json, json.dumps(list(rows), indent=1, default=_plain) + "\n")
    return [table, as_json]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def write_splits(folder: Path, results: Mapping[str, float]) -> list[Path]:
    """Write the metrics of several test splits side by side, as splits.csv and splits.md.

    Args:
        folder: Where they go.
        results: `<split>/<metric>` -> value.

    Returns:
        The files; none where there is one split only, which has nothing to stand beside.
    """
    table: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        split, _, metric = key.partition("/")
        table.setdefault(split, {})[metric] = value
    if len(table) < 2:
        return []
    names = list(dict.fromkeys(m for metrics in table.values() for m in metrics))
    head = ["split", *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    plain = [",".join(head)]
    for split, metrics in table.items():
        values = [metrics.get(n, math.nan) for n in names]
        shown = ["" if math.isnan(v) else f"{v:.4g}" for v in values]
        lines.append("| " + " | ".join([split, *shown]) + " |")
        plain.append(",".join([split, *(str(v) for v in values)]))
    files.write_text(folder / "splits.md", "\n".join(lines) + "\n")
    files.write_text(folder / "splits.csv", "\n".join(plain) + "\n")
    return [folder / "splits.csv", folder / "splits.md"]


def save_figures(
    folder: Path, task: Task[Any], name: str, records: Sequence[Record], facts: Facts
) -> list[Path]:
    """Draw a split's figures as `<split>_<name>.png`; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    made = []
    for title, figure in task.figures(records, facts):
        path = folder / f"{name}_{title}.png"
        files.write_whole(path, partial(figure.savefig, dpi=110, bbox_inches="tight"))
        plt.close(figure)
        made.append(path)
    return made


def results_folder(config: BaseConfig, kind: str) -> Path:
    """Where results go: `predict.out`, else a fresh name `<kind>-<task>-<time>-<id>` in `out`.

    Raises:
        ConfigError: `predict.out` is a file, or below one.
    """
    if config.predict.out is not None:
        named = config.predict.out.expanduser()
        files.check_place(named, f"predict.out={named}", folder=True)
        return named
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return config.out / f"{kind}-{config.task}-{stamp}-{secrets.token_hex(2)}"


def write_outcome(
    task: Task[Any], name: str, outcome: Outcome, facts: Facts, out: Path
) -> list[dict[str, Any]]:
    """Write a split's predictions, records and figures below `out`.

    Returns:
        Rows `metric`, `value`, `95 % interval`.
    """
    records = outcome.records
    write_predictions(out / name, task.rows(records, facts))
    save_records(out / name / "records.npz", records)
    save_figures(out / "figures", task, name, records, facts)
    intervals = task.intervals(records, facts)
    return [
        {
            "metric": f"{name}/{key}",
            "value": value,
            "95 % interval": "{:.4g} to {:.4g}".format(*intervals[key]) if key in intervals else "",
        }
        for key, value in outcome.metrics.items()
    ]
