"""`list`, `info`, `config`, `doctor`: what the zoo has and what works here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, Pairs


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("list")(list_tasks)
    app.command()(info)
    app.command("config")(show_config)
    app.command()(doctor)


def list_tasks(as_json: Json = False) -> None:
    """List the tasks: which work, which are coming."""
    from zoo import registry

    rows = [
        {
            "task": name,
            "state": "works" if entry.built else "coming",
            "field": entry.domain,
            "system": entry.system,
            "title": entry.title,
            "aliases": ", ".join(entry.aliases),
        }
        for name, entry in registry.tasks().items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = {k: max(len(k), *(len(r[k]) for r in rows)) for k in rows[0]}
    for row in ({k: k for k in rows[0]}, *rows):
        typer.echo("  ".join(row[k].ljust(width[k]) for k in rows[0]).rstrip())


def info(
    task: Annotated[str, typer.Argument(help="Task name or alias.")], as_json: Json = False
) -> None:
    """Show a task: paper, presets, published figures, weights, model card."""
    from zoo import registry

    name, entry = registry.find(task.removeprefix("task="))
    if as_json:
        typer.echo(entry.model_dump_json(indent=1))
        return
    typer.echo(f"{name}: {entry.title} ({entry.domain}), {entry.system}")
    typer.echo(f"\n{entry.summary}")
    paper = ", ".join(x for x in (entry.paper.title, entry.paper.venue, entry.paper.url) if x)
    typer.echo(f"\npaper: {paper}")
    if not entry.built:
        typer.echo("\nThis task is announced, not built in this version.")
    _block("presets", {k: p.summary for k, p in entry.presets.items()})
    _block(
        "published figures (not ours)",
        {f"{p.dataset} {p.metric}": f"{p.value} ({p.model} {p.source})" for p in entry.published},
    )
    _block(
        "scores of this implementation",
        {f"{s.dataset} {s.metric}": f"{s.value} ({s.command})" for s in entry.scores},
    )
    _block("weights", {k: f"{w.format}, {w.licence}" for k, w in entry.weights.items()})
    if entry.card:
        typer.echo("\n" + entry.card_text())


def _block(title: str, values: dict[str, Any]) -> None:
    if values:
        typer.echo(f"\n{title}:")
        width = max(map(len, values))
        for key, value in values.items():
            typer.echo(f"  {key.ljust(width)}  {value}")


def show_config(
    pairs: Pairs = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Every key with its meaning and value.")
    ] = False,
) -> None:
    """Print the resolved configuration of a task and preset; `config=FILE` reads it back."""
    from zoo.config import keys, resolve, to_yaml

    resolved = resolve(pairs or [])
    if not describe:
        typer.echo(f"# {resolved.origin}")
        typer.echo(to_yaml(resolved.config), nl=False)
        return
    values = resolved.config.flat()
    for key, text, _ in keys(type(resolved.config)):
        typer.echo(f"{key}={values.get(key, '')}\n    {text}")


def doctor(as_json: Json = False) -> None:
    """Say which optional parts work here: devices, decoders, memory, cache."""
    from zoo.doctor import examine

    rows = examine()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    width = max(len(r["part"]) for r in rows)
    for row in rows:
        mark = {True: "works  ", False: "missing", None: "       "}[row["ok"]]
        typer.echo(f"{row['part'].ljust(width)}  {mark}  {row['detail']}".rstrip())
