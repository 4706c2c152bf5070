"""`zoo serve`: MLflow's scoring app on one machine, with a limit on what a request may hold."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from zoo import store
from zoo.errors import ConfigError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_LOCAL = ("127.0.0.1", "::1", "localhost")
_AT_ONCE = 16  # connections; each may hold a request of the largest size
_LONGEST = 400  # characters of an answer that says what is wrong


# -- which model --------------------------------------------------------------------------------


@contextlib.contextmanager
def fetched(word: str, out: Path, uri: str) -> Iterator[tuple[Path, str]]:
    """A model folder on this machine, for as long as the context is open.

    Args:
        word: Task, registered model, `models:/…`, a run, or a folder that holds a model.
        out: Workspace that holds the runs.
        uri: Store; none: `MLFLOW_TRACKING_URI` or that of the workspace.

    Yields:
        The folder, and what to call it.

    Raises:
        ZooError: There is no such model or run.
    """
    folder = Path(word).expanduser()
    if folder.is_file():
        msg = f"{word}: serve takes a task, a registered model, a run or a model's folder, no file"
        raise ConfigError(msg)
    if (folder / "MLmodel").is_file():
        yield folder, folder.name
        return
    address = store.address_of(word)
    with tempfile.TemporaryDirectory(prefix="zoo-") as top:
        place = Path(top) / "model"
        if address is None:
            from zoo import packing

            source = packing.opened(word, out)
            packing.pack(source, place)
            yield place, source.run.name
            return
        uri = store.store_for(uri, out)
        place.mkdir()
        with store.asking(uri, store.LONG) as client:
            store.download(client, address, uri, place)
        yield place, address.removeprefix("models:/")


# -- the server ---------------------------------------------------------------------------------


class Guarded:
    """An app behind limits: JSON alone, no more than so many bytes, short complaints.

    Args:
        app: The app inside.
        most: Bytes a request may hold.
    """

    def __init__(self, app: App, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            await _answer(send, 415, "send JSON: Content-Type: application/json")
            return
        if not told.isdigit() or int(told) > self.most:
            await self._too_much(send)
            return
        body = bytearray()
        more = True
        while more:  # the app inside would read it whole as well
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.most:
                await self._too_much(send)
                return
        given = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replayed() -> Message:
            return next(given, None) or await receive()

        await self.app(scope, replayed, _Short(send))

    async def _too_much(self, send: Send) -> None:
        line = f"the request is larger than {self.most / 1e6:g} MB, the limit of this server"
        await _answer(send, 413, line)


class _Short:
    """Passes answers on; of a complaint only its first line, and no more than a line holds."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._status < 400:
                await self._send(message)
        elif self._status < 400:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await _answer(self._send, self._status, _line(bytes(self._body)))


def _line(body: bytes) -> str:
    """What a complaint says, in one line."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message", text))
    lines = [line for line in text.splitlines() if line.strip()] or ["failed"]
    return lines[0][:_LONGEST]


async def _answer(send: Send, status: int, line: str) -> None:
    codes = {413: "REQUEST_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE"}
    code = codes.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    body = json.dumps({"error_code": code, "message": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    # What was not read of a request that is too large must not be taken for the next one.
    headers += [(b"connection", b"close")] if status == 413 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_io(folder: Path) -> dict[str, Any]:
    """`io.json` of a model folder that the zoo wrote.

    Raises:
        ConfigError: The folder is somebody else's model.
    """
    for path in sorted(folder.rglob("io.json")):
        with contextlib.suppress(ValueError):
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return told
    msg = f"{folder.name} is not a model that `zoo publish` made: it has no io.json"
    raise ConfigError(msg)


def scoring_app(folder: Path, max_mb: float) -> App:
    """MLflow's scoring app of a model folder, behind `Guarded`.

    Raises:
        ConfigError: The folder is no model of ours, or one that reads files of this machine.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    told = read_io(folder)
    if told.get("with_zoo"):
        msg = (
            "this model reads files where it runs and is not served over HTTP; "
            f"load it with mlflow.pyfunc ({told['with_zoo']})"
        )
        raise ConfigError(msg)
    from mlflow.pyfunc import load_model, scoring_server

    app: App = scoring_server.init(load_model(str(folder)))
    return Guarded(app, int(max_mb * 1e6))


def serve(
    word: str,
    *,
    out: Path,
    uri: str,
    host: str,
    port: int,
    max_mb: float,
    tell: Callable[[str], None],
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        word: As `fetched` takes it.
        out: Workspace that holds the runs.
        uri: Store.
        host: Address to listen on.
        port: 0 takes a free one.
        max_mb: Largest request.
        tell: Prints a line.

    Raises:
        ConfigError: The address is taken, or the model cannot be served.
        ZooError: There is no such model.
    """
    if not max_mb > 0:
        msg = f"--max-mb {max_mb:g}: should be above 0"
        raise ConfigError(msg)
    listening = _listening(host, port)
    with contextlib.closing(listening), fetched(word, out, uri) as (folder, name):
        app = scoring_app(folder, max_mb)
        import uvicorn

        place = f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        tell(f"{name} answers at http://{place}/invocations; Ctrl-C ends it")
        if host not in _LOCAL:
            tell(f"warning: {host} may be reached from other machines, and nobody is asked who")
        example = folder / "serving_input_example.json"
        if example.is_file():
            tell(
                f"curl -H 'Content-Type: application/json' -d @{example} http://{place}/invocations"
            )
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, limit_concurrency=_AT_ONCE
        )
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, not a failure
            uvicorn.Server(settings).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before the model is loaded: a taken port is told at once."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        reason = getattr(error, "strerror", None) or error
        # A port that is taken or not allowed is mended by another port, an address is not.
        ours = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = "--port 0 takes a free one" if ours else "--host names an address of this machine"
        msg = f"cannot listen on {host} port {port} ({reason}); {hint}"
        raise ConfigError(msg) from error
    return made
