"""`train` and `cv`."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.common import Pairs, Quiet
from zoo.errors import ConfigError

Force = Annotated[
    bool, typer.Option("--force", help="Resume although the data changed; the run tells it.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("train")(train_run)
    app.command()(cv)


def train_run(
    pairs: Pairs = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train, evaluate and report one run: task=NAME [data.root=…] [key=value].

    Without data.root the task's sample data set is used. resume=auto goes on with the newest
    unfinished run of the same settings, resume=RUN with a named one.
    """
    # The configuration is resolved before torch is imported, so a wrong key is told at once.
    _early(pairs or [])
    from zoo.progress import Reporter
    from zoo.training import begin, train

    train(begin(pairs or [], force), Reporter(quiet))


def cv(
    pairs: Pairs = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; each seed trains every fold.")
    ] = "",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Train every fold (and seed) of a task and pool the results: task=NAME [key=value].

    resume=auto or resume=RUN goes on with an unfinished cross-validation, fold by fold.
    """
    numbers = _seeds(seeds)
    _early(pairs or [])
    from zoo.crossval import cross_validate
    from zoo.progress import Reporter

    cross_validate(pairs or [], numbers, Reporter(quiet), force)


def _seeds(text: str) -> list[int]:
    if not text:
        return []
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        msg = f"--seeds {text}: should be whole numbers separated by commas"
        raise ConfigError(msg) from error


def _early(pairs: list[str]) -> None:
    from zoo.config import parse, resolve

    words, errors = parse(pairs)
    named = words.get("resume")
    if errors or named in (None, "auto"):
        resolve(pairs)
