"""`bench`: forms of a block timed against each other in one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    name: Annotated[str, typer.Argument(help="A block, a task, or 'all' for every block.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Append one JSON object a row.")] = None,
    table: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, few rounds.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Time forms of a block or task against the plain one: median ratios of interleaved runs."""
    from zoo import files
    from zoo.benchmarks import NAMES

    if name not in (*NAMES, "all"):
        msg = f"no benchmark '{name}'; there are {', '.join(NAMES)} and all"
        raise ConfigError(msg)
    _check(device, threads)
    for option, path in (("--json", json), ("--table", table)):
        if path is not None:
            files.check_place(path, f"{option} {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
    from zoo.benchmarks.__main__ import main

    words = [name, "--device", device, "--threads", str(threads)]
    words += ["--json", str(json)] if json else []
    words += ["--table", str(table)] if table else []
    words += ["--quick"] if quick else []
    main(words)


def _check(device: str, threads: int) -> None:
    if threads < 1:
        msg = f"--threads {threads}: should be 1 or more"
        raise ConfigError(msg)
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        msg = f"--device {device}: should be cpu, cuda or cuda:N"
        raise ConfigError(msg)
    import torch

    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        msg = f"--device {device}: there is no such CUDA device here; `zoo doctor` says what is"
        raise ConfigError(msg)
