"""`publish`, `models` and `serve`: models that people load by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import Json, Quiet, table

Out = Annotated[Path, typer.Option("--out", help="Workspace that holds the runs.")]
Uri = Annotated[
    str, typer.Option(help="Store; by default MLFLOW_TRACKING_URI or that of the workspace.")
]
Alias = Annotated[str, typer.Option(help="The alias that a better version takes.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(publish)
    group = typer.Typer(
        help="List registered models, see and undo promotions.", invoke_without_command=True
    )
    group.callback()(list_models)
    group.command()(history)
    group.command()(rollback)
    app.add_typer(group, name="models")
    app.command()(serve)


def publish(
    run: Annotated[str, typer.Argument(help="Run folder, name or MLflow id; it is finished.")],
    out: Out = Path("runs"),
    uri: Uri = "",
    alias: Alias = "champion",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it whatever the comparison says.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Register a run's model as zoo-TASK and promote it if it is better.

    It is compared with the version under the alias, on the same test data by the task's metric.
    """
    from zoo import publishing
    from zoo.progress import Reporter

    made = publishing.publish(run, out, Reporter(quiet), uri=uri, alias=alias, force=force)
    if quiet:
        return
    state = "registered as" if made.fresh else "is already"
    typer.echo(f"{run} {state} {made.name} version {made.version}")
    if made.verdict is not None:
        told = "promoted to" if made.verdict.promoted else "not promoted to"
        typer.echo(f"{told} {made.name}@{alias}: {made.verdict.why}")


def list_models(
    context: typer.Context, out: Out = Path("runs"), uri: Uri = "", as_json: Json = False
) -> None:
    """List the versions of the models the zoo registered."""
    if context.invoked_subcommand:
        return
    from zoo import store

    rows = store.listed(store.store_for(uri, out))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        table(rows)
    else:
        typer.echo("no model is registered; zoo publish RUN registers one")


def history(
    name: Annotated[str, typer.Argument(help="Task or registered model.")],
    out: Out = Path("runs"),
    uri: Uri = "",
    alias: Alias = "champion",
    as_json: Json = False,
) -> None:
    """Show every move of an alias."""
    from zoo import promotion, store

    with store.asking(store.store_for(uri, out)) as client:
        moves = promotion.Registry(client, store.registered(name), alias).history()
    rows = [promotion.shown(m) for m in moves]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        table(rows)
    else:
        typer.echo(f"{store.registered(name)}@{alias} was never given to a version")


def rollback(
    name: Annotated[str, typer.Argument(help="Task or registered model.")],
    to: Annotated[str, typer.Option(help="Version; by default the one before.")] = "",
    out: Out = Path("runs"),
    uri: Uri = "",
    alias: Alias = "champion",
) -> None:
    """Give the alias back to the version that had it before."""
    from zoo import promotion, store

    with store.asking(store.store_for(uri, out)) as client:
        place = promotion.Registry(client, store.registered(name), alias)
        move = place.roll_back(to or None)
    typer.echo(f"{place.name}@{alias} is version {move.version} again, was {move.former}")


def serve(
    model: Annotated[
        str, typer.Argument(help="Task, registered model, models:/NAME@ALIAS, or a run.")
    ],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 5001,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    max_mb: Annotated[float, typer.Option(help="Largest request, in MB.")] = 64.0,
    out: Out = Path("runs"),
    uri: Uri = "",
) -> None:
    """Answer requests with a model over HTTP, on this machine alone unless --host says more."""
    from zoo import serving

    serving.serve(model, out=out, uri=uri, host=host, port=port, max_mb=max_mb, tell=typer.echo)
