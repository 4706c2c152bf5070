"""`pull` and `weights …`: published files, their cache, bundles for places without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Json, Pairs, Quiet, size_text, table, take

if TYPE_CHECKING:
    from zoo.conversion import Converted
    from zoo.weights import Held

Names = Annotated[list[str] | None, typer.Argument(help="TASK/NAME or backbone/NAME; none: all.")]
_FILE = "FILE"
_MOST_NAMED = 4


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(pull)
    group = typer.Typer(help="Published weights and their cache.", no_args_is_help=True)
    group.command("list")(list_weights)
    group.command()(verify)
    group.command()(convert)
    group.command()(add)
    group.command()(drop)
    group.command("export")(export_bundle)
    group.command("import")(import_bundle)
    app.add_typer(group, name="weights")


def pull(
    name: Annotated[str, typer.Argument(help="TASK/NAME or backbone/NAME, see weights list.")],
    quiet: Quiet = False,
) -> None:
    """Fetch published weights into the cache and print their path."""
    from zoo import registry, weights

    own = None if name in registry.weights() else weights.held(name)
    if own is not None:  # one that the user added
        typer.echo(str(own.path))
        return
    name, entry = weights.find(name)
    before = weights.held(name)
    if before is None and entry.urls and not quiet:
        typer.echo(f"{name}: {entry.summary}; licence: {entry.licence}", err=True)
    item = weights.pull(name, _bar(name, quiet))
    if not quiet and entry.sha256 is None:
        typer.echo(f"no full hash is published; recorded: sha256 {item.sha256}", err=True)
    typer.echo(str(item.path))
    if not quiet:
        typer.echo(f"use: {entry.use.replace(_FILE, str(item.path))}", err=True)


def _bar(name: str, quiet: bool) -> Any:
    """A progress bar that appears with the first bytes, on a terminal only."""
    import sys

    if quiet or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown: dict[str, Any] = {}

    def report(have: int, total: int | None) -> None:
        if not shown:
            shown["bar"] = Progress(*columns, console=Console(stderr=True), transient=True)
            shown["bar"].start()
            shown["row"] = shown["bar"].add_task(name, total=total)
        shown["bar"].update(shown["row"], completed=have, total=total)
        if total is not None and have >= total:
            shown["bar"].stop()

    return report


def list_weights(as_json: Json = False) -> None:
    """List what can be pulled, what is in the cache, and what a person has to fetch."""
    from zoo import registry, weights

    known = registry.weights()
    own = {item.name: item for item in weights.everything()}
    rows = []
    for name, entry in known.items():
        item = own.pop(name, None)
        state = "in the cache" if item else "can be pulled" if entry.urls else "fetch by hand"
        size = item.size if item else entry.size
        rows.append(
            {
                "name": name,
                "state": state,
                "MB": round(size / 1e6, 1) if size else "",
                "licence": entry.licence,
                "what": entry.summary,
                "how": entry.by_hand,
            }
        )
    rows += [
        {
            "name": item.name,
            "state": "in the cache",
            "MB": round(item.size / 1e6, 1),
            "licence": "",
            "what": "added by you",
            "how": "",
        }
        for item in own.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table([{k: v for k, v in row.items() if k != "how"} for row in rows])


def verify(names: Names = None) -> None:
    """Hash cached files again; exits 2 if one is damaged."""
    from zoo import weights
    from zoo.errors import WeightsError

    checked = weights.verify(names or ())
    for item, sound in checked:
        typer.echo(f"{item.name}: {'sound' if sound else 'DAMAGED'}  {item.path}")
    bad = [item.name for item, sound in checked if not sound]
    if bad:
        msg = f"{', '.join(bad)}: damaged; `zoo weights drop NAME`, then pull or add it again"
        raise WeightsError(msg)
    if not checked:
        typer.echo("the cache holds no weights")


def convert(pairs: Pairs = None, as_json: Json = False) -> None:
    """Write somebody's weights as a file of ours: task=NAME from=FILE [to=OUT.safetensors].

    The file also holds settings and facts, so that eval, predict and train take it as it is.
    data.root=DIR fits from a training set what no tensor tells; other key=value go on top of what
    they tell. from= takes what weights= takes. --json prints every key.
    """
    from zoo.errors import ConfigError

    taken, rest = take(pairs, "from", "to")
    if not taken.get("from") or not any(word.startswith("task=") for word in rest):
        msg = "convert needs from=FILE, and task=NAME whose weights they are"
        raise ConfigError(msg)
    from zoo import conversion, origins

    to = Path(taken["to"]).expanduser() if taken.get("to") else None
    done = conversion.convert(rest, taken["from"], to, *origins.asked(rest))
    if as_json:
        typer.echo(json.dumps(done.lists(), indent=1))
        return
    _report(done)


def _report(done: Converted) -> None:
    made = done.conversion
    for line in done.told:
        typer.echo(line)
    changed = {k: v for k, v in made.renamed.items() if k != v}
    typer.echo(f"{done.path}: {done.tensors} tensors of {done.task}, {len(changed)} renamed")
    _named("dropped", [f"{k} ({why})" for k, why in made.dropped.items()])
    _named("from settings and facts", done.added)
    _named("missing", done.missing)
    use = "zoo train" if done.missing else "zoo predict, eval or train"
    typer.echo(f"use: {use} weights={done.path}")


def _named(what: str, keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
        typer.echo(f"  {len(keys)} {what}: {', '.join(keys[:_MOST_NAMED])}{more}")


def add(
    name: Annotated[str, typer.Argument(help="Its name in the registry, or one of yours.")],
    file: Annotated[Path, typer.Argument(help="The file you fetched.")],
) -> None:
    """Take a file that was fetched by hand into the cache."""
    from zoo import weights

    _told(weights.add(name, file))


def drop(name: Annotated[str, typer.Argument(help="A name in the cache.")]) -> None:
    """Remove a file from the cache."""
    from zoo import weights

    weights.drop(name)
    typer.echo(f"{name}: dropped")


def export_bundle(
    out: Annotated[Path, typer.Argument(help="The bundle to write, a tar file.")],
    names: Names = None,
) -> None:
    """Write cached files as one bundle for a place without a network."""
    from zoo import weights

    for item in weights.export_bundle(names or (), out):
        _told(item)
    typer.echo(f"{out}: {size_text(out.stat().st_size)}")


def import_bundle(bundle: Annotated[Path, typer.Argument(help="The bundle.")]) -> None:
    """Take the files of a bundle into the cache."""
    from zoo import weights

    for item in weights.import_bundle(bundle):
        _told(item)


def _told(item: Held) -> None:
    typer.echo(f"{item.name}: {item.path.name}, {size_text(item.size)}, sha256 {item.sha256}")
