"""Real servers on loopback, and a Python that has mlflow and torch but not the zoo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_START = 120.0  # seconds a server may take to come up on a busy machine


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHONPATH"))}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | dict(extra)


@dataclass
class Process:
    """A program in a process group of its own.

    Attributes:
        words: Command line.
        log: File that takes what it prints.
        health: Address that answers 200 once it is up.
        environment: Variables on top of ours.
    """

    words: Sequence[str]
    log: Path
    health: str
    environment: Mapping[str, str] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Begin without waiting for it to be up."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.words,
                stdout=log,
                stderr=log,
                env=_environment(self.environment),
                cwd=self.log.parent,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it is up."""
        assert self._running is not None
        until = time.monotonic() + _START
        while time.monotonic() < until:
            assert self._running.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(self.health, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise AssertionError(self.log.read_text())

    def start(self) -> None:
        self.launch()
        self.wait()

    def stop(self) -> None:
        """End it and all it started."""
        if self._running is None:
            return
        os.killpg(self._running.pid, signal.SIGKILL)  # our own session, still unreaped
        self._running.wait()
        self._running = None


@contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        process.start()
        yield process
    finally:
        process.stop()


@dataclass
class Tracker(Process):
    """`mlflow server` with SQLite and artifacts that go through it."""

    uri: str = ""


def tracker(folder: Path, store: Path) -> Tracker:
    """A tracking server, not started yet, on an existing database."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    words = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{store}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    return Tracker(words, folder / "mlflow.log", f"{uri}/health", uri=uri)


def elsewhere(folder: Path) -> Path:
    """The Python of a new virtual environment: this one's packages, but not the zoo.

    Files `*.pth` of a folder that a `.pth` names are not read, so that an editable install is not
    seen there.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (inside,) = folder.glob("lib/python*/site-packages")
    packages = [p for p in sys.path if p.endswith("site-packages")]
    (inside / "there.pth").write_text("\n".join(packages) + "\n")
    # `mlflow models serve` looks for the other one on the path.
    for name, code in (
        ("mlflow", "mlflow.cli import cli"),
        ("uvicorn", "uvicorn.main import main"),
    ):
        script = folder / "bin" / name
        script.write_text(f"#!{python}\nfrom {code}\n{code.split()[-1]}()\n")
        script.chmod(0o755)
    return python


def run_elsewhere(python: Path, code: str, *words: str, **environment: str) -> str:
    """Run a program there; gives what it printed."""
    done = subprocess.run(
        [str(python), "-c", code, *words],
        env=_environment(environment),
        cwd=python.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def post(url: str, body: Any, kind: str = "application/json") -> tuple[int, str]:
    """POST JSON, or bytes as they are; gives status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
