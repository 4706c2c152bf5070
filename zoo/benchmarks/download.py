"""`zoo pull` against curl on the loopback: one file of 500 MB, hashing included on our side.

The server is a process of its own that sends with the kernel's `sendfile`, so that what is measured
is the client. curl neither hashes nor waits for the disk; a further form adds `sha256sum` to it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from zoo import files
from zoo.benchmarks.harness import Row, device_name, quantile, ratios, versions
from zoo.download import fetch
from zoo.errors import ConfigError
from zoo.resuming import Source


def _serve(path: Path, pipe: Any) -> None:
    size = path.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.flush()
            with path.open("rb") as file:
                self.connection.sendfile(file)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def _file(path: Path, megabytes: int) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(megabytes):
            file.write(number.to_bytes(8, "little") + block[8:])


def _ours(url: str, digest: str, size: int, place: Path) -> None:
    fetch(Source("bench/file", [url], digest, size, "file.bin"), place)


def _curl(url: str, place: Path, *, hashed: bool) -> None:
    place.mkdir()
    file = place / "file.bin"
    subprocess.run(["curl", "-sS", "-o", str(file), url], check=True)
    if hashed:
        subprocess.run(["sha256sum", str(file)], check=True, stdout=subprocess.DEVNULL)


def _in_turn(
    forms: Mapping[str, Callable[[Path], None]], place: Path, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each download; the removal of the file is not counted."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            begun = time.perf_counter()
            form(place)
            spent = time.perf_counter() - begun
            shutil.rmtree(place)
            if turn:  # the first round warms up
                times[name].append(1e3 * spent)
    return times


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Seconds of a whole download, new each time.

    Args:
        device: Not used; named in the row.
        quick: 20 MB, two rounds.

    Raises:
        ConfigError: There is no curl to compare with.
    """
    if shutil.which("curl") is None:
        msg = "the download is compared with curl, which is not installed"
        raise ConfigError(msg)
    megabytes, rounds = (20, 2) if quick else (500, 9)
    here, there = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _file(folder / "served.bin", megabytes)
        digest = files.sha256(folder / "served.bin")
        server = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(folder / "served.bin", there), daemon=True
        )
        server.start()
        try:
            url = f"http://127.0.0.1:{here.recv()}/file.bin"
            forms = {
                "curl": partial(_curl, url, hashed=False),
                "curl and sha256sum": partial(_curl, url, hashed=True),
                "zoo": partial(_ours, url, digest, megabytes << 20),
            }
            times = _in_turn(forms, folder / "got", rounds)
        finally:
            server.terminate()
            server.join()
    speed = ratios(times)
    return [
        Row(
            "download",
            f"{megabytes} MB on the loopback: {1e3 * megabytes / statistics.median(own):.0f} MB/s",
            form,
            "fwd",
            device_name(device),
            statistics.median(own),
            quantile(own, 0.1),
            quantile(own, 0.9),
            speed[form],
            versions=versions(),
        )
        for form, own in times.items()
    ]
