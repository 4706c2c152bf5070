"""`runs`, `runs sync`, `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Json, table

Out = Annotated[Path, typer.Option("--out", help="Workspace that holds the runs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(help="List runs, bring MLflow up to date.", invoke_without_command=True)
    group.callback()(list_runs)
    group.command()(sync)
    app.add_typer(group, name="runs")
    app.command()(compare)


def list_runs(context: typer.Context, out: Out = Path("runs"), as_json: Json = False) -> None:
    """List the runs of a workspace, newest last."""
    if context.invoked_subcommand:
        return
    from zoo import runs

    rows = []
    for run in runs.every(out):
        results = run.results()
        main = next(iter(results.items()), None)
        rows.append(
            {
                "run": str(run.path.relative_to(out)),
                "preset": run.info.get("preset", ""),
                "seed": run.info.get("seed", ""),
                "state": run.status,
                "created": run.info.get("created", ""),
                "result": f"{main[0]} {main[1]:.4g}" if main and main[1] is not None else "",
                "mlflow": run.mlflow_id or "",
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif not rows:
        typer.echo(f"no runs in {out}")
    else:
        shown = ("run", "preset", "seed", "state", "result")
        table([{k: row[k] for k in shown} for row in rows])


def sync(
    run: Annotated[str, typer.Argument(help="Run folder, name or MLflow id.")],
    out: Out = Path("runs"),
    uri: Annotated[str, typer.Option(help="Tracking store; by default that of the run.")] = "",
) -> None:
    """Replay into MLflow what it has not got yet of a run."""
    from zoo import runs, tracking
    from zoo.config import resolve

    found = runs.find(run, out)
    config = resolve([], found.config()).config
    number = tracking.sync(found, config, uri or tracking.uri_for(config, config.out))
    typer.echo(f"{found.name} is complete in MLflow as {number}")


def compare(
    words: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more.")],
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Compare runs: settings that differ, and results side by side."""
    from zoo import runs
    from zoo.comparison import differences

    found = [runs.find(word, out) for word in words]
    settings, results = differences(found)
    if as_json:
        typer.echo(json.dumps({"settings": settings, "results": results}, indent=1))
        return
    if settings:
        table(settings, "settings that differ")
    else:
        typer.echo("the settings are the same")
    if results:
        table(results, "results")
