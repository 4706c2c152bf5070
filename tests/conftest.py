"""What every test shares: one thread, no display, a cache of its own, no network."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere
os.environ["MPLBACKEND"] = "Agg"
os.environ["COLUMNS"] = "200"

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import STUBS, Zoo, run_zoo
from zoo.machine import cores

for _name in ("MLFLOW_TRACKING_URI", "ZOO_REGISTRY", "ZOO_OFFLINE"):
    os.environ.pop(_name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A process a core for the whole suite, where pytest-xdist is; -n says otherwise.

    For a few files the processes' start would take longer than the tests.
    """
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:  # this is one of them, or a test's own pytest
        return
    whole = set(config.args) <= {*config.getini("testpaths"), str(config.rootpath)}
    alone = option.usepdb or option.collectonly or option.markexpr.startswith("slow")
    if whole and not alone and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = cores()
        option.dist = "worksteal"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty `ZOO_CACHE` for the session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _first_backward() -> None:
    """Starts autograd while torch knows no device but the CPU.

    After an export it knows of more, starts threads for them, and refuses to go on in the forked
    children that the tests of resuming kill.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine can be reached, unless a test is marked `network`."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        local = not isinstance(address, tuple) or str(address[0]).startswith(("127.", "::1"))
        if not local and address[0] != "localhost":
            msg = f"a test opened a connection to {address}"
            raise RuntimeError(msg)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def zoo() -> Zoo:
    """Runs a command line of `zoo` in this process."""
    return run_zoo


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty workspace."""
    return tmp_path / "runs"


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stub tasks known."""
    monkeypatch.setenv("ZOO_REGISTRY", str(STUBS))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracked(out: Path, empty_store: Path) -> Path:
    """An empty workspace that has an MLflow database."""
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    return out


@pytest.fixture
def announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a task that a registry of the user's announces without code."""
    (tmp_path / "announced").mkdir()
    path = tmp_path / "announced" / "registry.yaml"
    path.write_text(
        "format: 1\n"
        "tasks:\n"
        "  soon:\n"
        "    {title: Soon, domain: reid, summary: Not yet., system: S, paper: {title: P, url: u}}\n"
    )
    monkeypatch.setenv("ZOO_REGISTRY", str(path))
    return "soon"
