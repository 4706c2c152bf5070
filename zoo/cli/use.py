"""`eval` and `predict`: a trained model on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Pairs, Quiet, table, take
from zoo.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("eval")(evaluate)
    app.command()(predict)


def evaluate(
    pairs: Pairs = None,
    split: Annotated[
        str, typer.Option(help="Evaluate this split; by default every test split.")
    ] = "",
    quiet: Quiet = False,
) -> None:
    """Score a trained model: weights=RUN_OR_FILE [data.root=…] [key=value].

    weights= takes a run, a checkpoint, a file, a name of `zoo weights list` or models:/NAME@alias;
    a file that does not say its task needs task=NAME. Settings are those of the weights;
    data.root= and others go on top of them. task=NAME predict.foreign=DIR needs no model: it scores
    the outputs of another method, predict.foreign=[A,B] compares those of several.
    """
    from zoo.inference import evaluate_run
    from zoo.progress import Reporter

    rows, out = evaluate_run(pairs or [], split, Reporter(quiet))
    if rows and not quiet:
        table(rows)
        typer.echo(f"written to {out}")


def predict(pairs: Pairs = None, quiet: Quiet = False) -> None:
    """Predict on files or folders: weights=RUN_OR_FILE input=PATH [predict.out=DIR] [key=value].

    weights= takes what it takes in `zoo eval`; input=[A,B] names several.
    """
    taken, rest = take(pairs, "input")
    given = taken.get("input")
    if not given:
        msg = "predict needs input=PATH, a file or folder, or input=[A,B]"
        raise ConfigError(msg)
    from zoo.inference import predict_paths
    from zoo.progress import Reporter

    paths = [Path(str(p)).expanduser() for p in (given if isinstance(given, list) else [given])]
    rows, out = predict_paths(rest, paths, Reporter(quiet))
    if rows and not quiet:  # of several processes the first one has them
        if len(rows) > 20:
            typer.echo(f"{len(rows)} predictions; the first 20:")
        table(rows[:20])
        typer.echo(f"written to {out}")
