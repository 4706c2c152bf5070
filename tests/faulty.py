"""A web server on loopback that misbehaves on purpose, one fault a request, then serves well."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

FAULTS = (
    "cut", "cut_early", "ignore_range", "503", "404", "416", "wrong", "stall", "change",
    "headless", "shifted", "long",
)  # fmt: skip


@dataclass
class Script:
    """What a server does.

    Attributes:
        bodies: Contents; a `change` moves on to the next one.
        faults: One a request, in order; afterwards it serves well.
        validator: `etag`, `weak`, `date` or `none`.
        asked: (path, Range, If-Range) of every request.
        sent: Bytes of bodies sent.
    """

    bodies: Sequence[bytes]
    faults: list[str] = field(default_factory=list)
    validator: str = "etag"
    stall: float = 1.0
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: int = 0
    version: int = 0

    @property
    def body(self) -> bytes:
        return self.bodies[self.version]

    def tag(self) -> str:
        return '"' + hashlib.sha256(self.body).hexdigest()[:16] + '"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        script = self.script
        script.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        fault = script.faults.pop(0) if script.faults else "well"
        if fault == "change" and script.version + 1 < len(script.bodies):
            script.version += 1
        if fault.isdigit():
            self._plain(int(fault))
        elif fault == "headless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            self.wfile.flush()
            self._hang_up()
        else:
            self._serve(fault)

    def _plain(self, status: int) -> None:
        self.send_response(status)
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(self.script.body)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _start(self, fault: str) -> int:
        asked, guard = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or fault == "ignore_range":
            return 0
        if guard is not None and guard not in (self.script.tag(), _DATE):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _serve(self, fault: str) -> None:
        body, start = self.script.body, self._start(fault)
        if start >= len(body):
            self._plain(416)
            return
        told = start + 7 if fault == "shifted" and start else start
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {told}-{len(body) - 1}/{len(body)}")
        tags = {"etag": self.script.tag(), "weak": f"W/{self.script.tag()}"}
        if self.script.validator in tags:
            self.send_header("ETag", tags[self.script.validator])
        elif self.script.validator == "date":
            self.send_header("Last-Modified", _DATE)
        piece = body[start:]
        if fault == "wrong":
            piece = bytes(b ^ 255 for b in piece)
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        share = {"cut": len(piece) // 2, "cut_early": min(100, len(piece) // 3), "stall": 1000}
        piece = piece[: share.get(fault, len(piece))] + (b"more" if fault == "long" else b"")
        self.script.sent += len(piece)
        self.wfile.write(piece)
        self.wfile.flush()
        if fault == "stall":
            time.sleep(self.script.stall)
        if fault in share or fault == "long":
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


_DATE = "Wed, 01 Jan 2020 00:00:00 GMT"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *words: Any) -> None:
        """A client that gives up is what these tests are about."""


@contextmanager
def server(script: Script) -> Iterator[str]:
    """A running server; gives its address."""
    handler = type("Handler", (_Handler,), {"script": script})
    running = _Server(("127.0.0.1", 0), handler)
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
