"""What the commands share: argument types, tables, words of the form key=value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
import yaml

from zoo.errors import ConfigError

Pairs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Settings; `zoo config task=NAME` lists them."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def take(pairs: Sequence[str] | None, *names: str) -> tuple[dict[str, Any], list[str]]:
    """Split off the words that are not settings of a run, such as `input=` and `out=`.

    Raises:
        ConfigError: The value of such a word is not YAML.
    """
    taken: dict[str, Any] = {}
    rest = []
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not (sign and key in names):
            rest.append(pair)
            continue
        try:
            # A path may hold YAML's own characters; only lists are read as YAML.
            taken[key] = yaml.safe_load(value) if value.startswith("[") else value
        except yaml.YAMLError as error:
            msg = f"{key}: '{value}' is not valid YAML"
            raise ConfigError(msg) from error
    return taken, rest


def size_text(size: int) -> str:
    """Bytes as a person reads them: `21 kB`, `5.4 MB`."""
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def table(rows: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print rows as a table; columns from the first row."""
    from rich.console import Console
    from rich.table import Table

    from zoo.report import number

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(number(v) for v in row.values()))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # in a pipe nothing should be folded
        console = Console(highlight=False, markup=False, width=1000)
    console.print(drawn)
