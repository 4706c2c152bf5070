"""`data sample`, `data check`, `data prepare`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import typer

from zoo.cli.common import Pairs, size_text, take
from zoo.errors import ConfigError, DataError


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    data = typer.Typer(help="Sample data sets, checks and preparation.", no_args_is_help=True)
    data.command()(sample)
    data.command()(check)
    data.command()(prepare)
    app.add_typer(data, name="data")


def sample(pairs: Pairs = None) -> None:
    """Write a task's sample data set: task=NAME out=DIR [defects=true]."""
    from zoo import registry
    from zoo.data import written_once

    taken, rest = take(pairs, "out", "defects", "task")
    if rest:
        msg = f"data sample takes task=, out= and defects=, not '{rest[0]}'"
        raise ConfigError(msg)
    if not taken.get("task") or not taken.get("out"):
        msg = "data sample needs task=NAME and out=DIR"
        raise ConfigError(msg)
    wanted = str(taken.get("defects", "false")).lower()
    if wanted not in ("true", "false"):
        msg = f"defects={wanted}: should be true or false"
        raise ConfigError(msg)
    name, entry = registry.built(taken["task"])
    out = Path(taken["out"]).expanduser()
    if out.exists():
        if not out.is_dir() or any(out.iterdir()):
            msg = f"out={out} is there already and not empty; name a new folder"
            raise DataError(msg)
        out.rmdir()
    kind = registry.load_object(entry.code or "", f"tasks.{name}.code")
    written_once(out, lambda folder: kind.write_sample(folder, defects=wanted == "true"))
    Path(f"{out}.lock").unlink(missing_ok=True)
    count = sum(1 for p in out.rglob("*") if p.is_file())
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    typer.echo(f"{out}: {count} files, {size_text(size)}")
    typer.echo(f"zoo train task={name} preset=sample data.root={out}")


def check(pairs: Pairs = None) -> None:
    """Check a data set as training would read it; exits 2 if anything is broken."""
    from zoo.config import resolve
    from zoo.data import leakage
    from zoo.training import make

    resolved = resolve(pairs or [])
    task = make(resolved)
    typer.echo(resolved.origin)
    findings = list(task.check(deep=True))
    if not any(f.level == "error" for f in findings):
        findings += leakage(task.splits())
    for finding in findings:
        typer.echo(f"{finding.level:<7}  {finding.line()}")
    counts = Counter(f.level for f in findings)
    typer.echo(f"{counts['error']} errors, {counts['warning']} warnings")
    if counts["error"]:
        raise typer.Exit(2)


def prepare(pairs: Pairs = None) -> None:
    """Turn raw files into what training reads: task=NAME data.…=… out=DIR.

    Several processes started by torchrun or srun share the work.
    """
    from zoo.config import resolve
    from zoo.training import make

    taken, rest = take(pairs, "out")
    if not taken.get("out"):
        msg = "data prepare needs out=DIR"
        raise ConfigError(msg)
    task = make(resolve(rest))
    shard, shards = _place(os.environ)
    task.prepare(Path(taken["out"]).expanduser(), shard, shards)


def _place(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process among those that torchrun or SLURM started, and how many they are.

    Raises:
        ConfigError: The variables make no sense.
    """
    from zoo.place import place

    here = place(environment)
    return here.rank, here.size
