"""One attempt at a file over http: what may be continued, what an answer means, the bytes.

What is kept of a file is continued only when it is sure to be of the same file: by the server's
validator (RFC 9110, `If-Range`), or because the hash is known and will tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from zoo import files

CHUNK = 1 << 20
_REDIRECTS = 10
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_GATED = {401: "asks for a login", 403: "refuses it"}

Report = Callable[[int, int | None], None]
"""Called with the bytes there are and, if known, the bytes there will be."""


@dataclass(frozen=True)
class Source:
    """A file to fetch.

    Attributes:
        name: What it is called in messages.
        urls: Addresses in the order in which they are tried: `https:`, `file:`,
            `hf:OWNER/REPO/PATH[@REVISION]`, `gdrive:ID`; `http:` on this machine only.
        sha256: Its hash, or the first digits of it, if known.
        size: Bytes, if known: also the most that is taken.
        filename: Name it gets.
    """

    name: str
    urls: Sequence[str]
    sha256: str | None
    size: int | None
    filename: str


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        connect: Seconds until a connection.
        read: Seconds without a byte.
        tries: Attempts in a row that brought nothing before the next address is tried.
        wait: Seconds before the second of those; each later one waits twice as long.
        longest: Most seconds waited at once, whatever the server asks for.
    """

    connect: float = 10.0
    read: float = 30.0
    tries: int = 5
    wait: float = 0.5
    longest: float = 30.0


class Again(Exception):
    """This attempt failed; the same address may do better.

    Attributes:
        after: Seconds the server asks to be left alone.
        fresh: Start from zero.
    """

    def __init__(self, why: str, after: float = 0.0, fresh: bool = False) -> None:
        super().__init__(why)
        self.after, self.fresh = after, fresh


class NotHere(Exception):
    """This address will not give the file."""


def offline() -> bool:
    """Whether `ZOO_OFFLINE` forbids the network."""
    return os.environ.get("ZOO_OFFLINE", "").lower() not in ("", "0", "false", "no")


def shown(url: str) -> str:
    """An address without what may be secret in it: login, query, fragment."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def size_of(part: Path) -> int:
    """Bytes that are kept of a file."""
    return part.stat().st_size if part.exists() else 0


def note_of(part: Path) -> Path:
    """Where it is written down what a part is of."""
    return part.with_suffix(".json")


def forget(part: Path) -> None:
    """Throw away what is kept."""
    part.unlink(missing_ok=True)
    note_of(part).unlink(missing_ok=True)


def web_address(url: str) -> str:
    """The web address of a source, plain http only to this machine."""
    if url.startswith("hf:"):
        path, _, revision = url[3:].partition("@")
        owner, repo, file = ([*path.split("/", 2), "", ""])[:3]
        base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        url = f"{base}/{owner}/{repo}/resolve/{quote(revision or 'main')}/{quote(file)}"
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return url
    msg = "not an https address"
    raise NotHere(msg)


def fits(source: Source, total: int) -> None:
    """Refuse a file of another length than the source's.

    Raises:
        NotHere: It has another length.
    """
    if source.size is not None and total != source.size:
        msg = f"has {total} bytes, not {source.size}"
        raise NotHere(msg)


class Http:
    """One attempt over http: the request, what the answer means, and the bytes."""

    def __init__(
        self, source: Source, part: Path, report: Report | None, patience: Patience
    ) -> None:
        self.source, self.part, self.report, self.patience = source, part, report, patience

    def get(self, url: str) -> str:
        """Bring the part to its full length; returns its hash.

        Raises:
            Again: The connection or the server failed.
            NotHere: The address has no such file.
        """
        if offline():
            msg = "ZOO_OFFLINE is set"
            raise NotHere(msg)
        import requests

        kept = self._kept(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "zoo"}
        if kept:
            headers["Range"] = f"bytes={kept}-"
            if validator := self._noted().get("validator"):
                headers["If-Range"] = validator
        try:
            with requests.Session() as session:
                answer = self._followed(session, url, headers)
                with answer:
                    return self._taken(url, answer, kept)
        except requests.exceptions.SSLError as error:
            msg = f"its certificate is not trusted ({_first(error)})"
            raise NotHere(msg) from None
        except requests.exceptions.RequestException as error:
            raise Again(_first(error)) from None

    def _followed(self, session: Any, url: str, headers: Mapping[str, str]) -> Any:
        for _ in range(_REDIRECTS):
            answer = session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(self.patience.connect, self.patience.read),
            )
            if answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            url = web_address(urljoin(url, answer.headers.get("Location", "")))
            answer.close()
        msg = "redirects without end"
        raise NotHere(msg)

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads(note_of(self.part).read_text())
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _kept(self, url: str) -> int:
        """Bytes that may be continued from this address; others are thrown away."""
        have = size_of(self.part)
        if not have:
            return 0
        noted = self._noted()
        same = noted.get("url") == shown(url)
        if same and noted.get("validator"):
            return have
        if self.source.sha256:
            if not same:  # the hash will tell; a validator of another server means nothing here
                files.write_json(note_of(self.part), {"url": shown(url)})
            return have
        forget(self.part)
        return 0

    def _taken(self, url: str, answer: Any, kept: int) -> str:
        status = answer.status_code
        if status == 416 and kept:
            if _total(answer.headers.get("Content-Range", "")) == kept:
                return files.sha256(self.part)  # all of it had arrived
            msg = "the file is shorter than what was kept of it"
            raise Again(msg, fresh=True)
        if status in _GATED:
            msg = f"{_GATED[status]} ({status})"
            raise NotHere(msg)
        if status in (408, 425, 429) or status >= 500:
            msg = f"answered {status}"
            raise Again(msg, after=_wait(answer.headers.get("Retry-After")))
        if status not in (200, 206):
            msg = f"answered {status}"
            raise NotHere(msg)
        start, total = self._place(answer, kept)
        if total is not None:
            fits(self.source, total)
            files.need_space(self.part.parent, total - start)
        elif self.source.size is None and not self.source.sha256:
            msg = "tells no length, so that a part could pass for the whole"
            raise NotHere(msg)
        if not start:
            forget(self.part)  # before the note: old bytes must never meet a new validator
        validator = _validator(answer.headers)
        files.write_json(note_of(self.part), {"url": shown(url), "validator": validator})
        return self._received(answer, start, total if total is not None else self.source.size)

    def _place(self, answer: Any, kept: int) -> tuple[int, int | None]:
        """Where the answer's bytes belong, and the length of the whole file."""
        length = answer.headers.get("Content-Length", "")
        if answer.status_code == 200:
            return 0, int(length) if length.isdigit() else None
        found = re.fullmatch(
            r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        noted = self._noted().get("validator")
        changed = noted is not None and noted not in (
            answer.headers.get("ETag"),
            answer.headers.get("Last-Modified"),
        )
        if not found or int(found[1]) != kept or changed:
            msg = "the file changed, or the server sent another part of it"
            raise Again(msg, fresh=True)
        total = int(found[3]) if found[3] != "*" else self.source.size
        return kept, total

    def _received(self, answer: Any, start: int, total: int | None) -> str:
        """Write the body behind the first `start` bytes; returns the hash of the whole."""
        with self.part.open("r+b" if start else "wb") as file:
            hasher = Hasher()
            try:
                if start:
                    while block := file.read(CHUNK):
                        hasher.add(block)
                have, limit = start, total if total is not None else float("inf")
                while have < limit:
                    block = self._block(answer)
                    if not block:
                        break
                    have += len(block)
                    if have > limit:
                        msg = "sent more bytes than it had told"
                        raise Again(msg, fresh=True)
                    file.write(block)
                    hasher.add(block)
                    if self.report:
                        self.report(have, total)
            finally:
                digest = hasher.end()
        if total is not None and have < total:
            msg = f"the connection ended after {have} of {total} bytes"
            raise Again(msg)
        return digest

    def _block(self, answer: Any) -> bytes:
        import urllib3

        try:
            # What has come, not a full block: the bytes before a cut are kept.
            block: bytes = answer.raw.read1(CHUNK)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Again(_first(error)) from None
        return block


class Hasher:
    """SHA-256 in a thread of its own, so that hashing costs no time beside the network."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._blocks: queue.Queue[bytes | None] = queue.Queue(16)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._digest.update(block)

    def add(self, block: bytes) -> None:
        """Hash a block, in order."""
        self._blocks.put(block)

    def end(self) -> str:
        """The digest of all blocks."""
        self._blocks.put(None)
        self._thread.join()
        return self._digest.hexdigest()


def _validator(headers: Mapping[str, str]) -> str | None:
    """What proves that a later answer is of the same file: a strong ETag, or an old date.

    A date counts only if the file was not changed in the second it was sent (RFC 9110, 8.8.2.2).
    """
    tag = headers.get("ETag")
    if tag:
        return None if tag.startswith("W/") else tag
    changed = headers.get("Last-Modified", "")
    with contextlib.suppress(ValueError, TypeError):
        if parsedate_to_datetime(headers.get("Date", "")) > parsedate_to_datetime(changed):
            return changed
    return None


def _total(text: str) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", text.strip())
    return int(found[1]) if found else None


def _wait(text: str | None) -> float:
    return float(text) if text and text.isdigit() else 0.0


def _first(error: BaseException) -> str:
    """What went wrong, without the addresses that requests puts into its messages."""
    text = f"{error}".lower()
    for mark, words in (
        ("timed out", "no byte came in time"),
        ("refused", "the connection was refused"),
        ("name or service not known", "the address is unknown"),
        ("resolve", "the address is unknown"),
        ("incompleteread", "the connection was cut"),
        ("aborted", "the connection was cut"),
        ("reset", "the connection was cut"),
    ):
        if mark in text:
            return words
    return type(error).__name__
