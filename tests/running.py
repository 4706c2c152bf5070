"""Helpers for tests that go through the command line and look at what a run left."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.benchmarks.killing import only_run as only_run
from zoo.benchmarks.killing import values as values
from zoo.runs import Run

STUBS = Path(__file__).parent / "stubs" / "registry.yaml"


@dataclass(frozen=True)
class Result:
    """What a command line gave."""

    code: int
    out: str
    err: str


Zoo = Callable[..., Result]


def run_zoo(*words: str | Path) -> Result:
    """`zoo WORDS` in this process."""
    from zoo.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(w) for w in words])
    return Result(code, out.getvalue(), err.getvalue())


def good(*words: str | Path) -> Result:
    """`zoo WORDS`, which must succeed."""
    result = run_zoo(*words)
    assert result.code == 0, result.err + result.out
    return result


def series(run: Run, name: str) -> list[float]:
    """The values of one metric over steps."""
    return [row["values"][name] for row in run.metrics() if name in row["values"]]


def flip(path: Path, place: int = -20) -> None:
    """Damage one byte of a file."""
    body = bytearray(path.read_bytes())
    body[place] ^= 0x40
    path.write_bytes(body)


def histories(uri: str, run_id: str) -> Mapping[tuple[str, int], set[Any]]:
    """Every value MLflow has for a metric and step of a run, except its own system metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found: dict[tuple[str, int], set[Any]] = {}
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith("system/"):
            for m in client.get_metric_history(run_id, name):
                value = None if m.value != m.value else m.value
                found.setdefault((name, m.step), set()).add(value)
    return found
