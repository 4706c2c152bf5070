"""`export`: a trained model as one file that runs without the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Quiet, size_text, take
from zoo.errors import ConfigError

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="WEIGHTS [key=value]...",
        help="What weights= takes; format=pt2|onnx|safetensors, part=served|network, to=FILE.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(export)


def export(words: Words = None, quiet: Quiet = False) -> None:
    """Write a trained model as one file: WEIGHTS format=pt2|onnx|safetensors [part=…] [to=FILE].

    part=served (default) takes what a user of the model has and gives what a user wants, with the
    preparation inside; part=network is the network alone. The file is compared with the model and
    described by FILE.json. Settings given as key=value go on top of those the model was trained
    with.
    """
    taken, rest = take(words, "format", "part", "to")
    pairs = [word if "=" in word else f"weights={word}" for word in rest]
    named = [word for word in pairs if word.startswith("weights=")]
    if len(named) != 1 or "format" not in taken:
        msg = "export needs one WEIGHTS and format=pt2, onnx or safetensors"
        raise ConfigError(msg)
    from zoo.export_files import export as write

    to = Path(str(taken["to"])).expanduser() if taken.get("to") else None
    made = write(pairs, str(taken["format"]), str(taken.get("part", "")), to)
    if quiet:
        return
    for line in made.lines:
        typer.echo(line)
    typer.echo(f"{made.path}: {size_text(made.told['bytes'])}, sha256 {made.told['sha256']}")
