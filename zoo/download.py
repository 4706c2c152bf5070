"""Downloads that resume, across connections and across processes, and end in the right file.

A file comes from the first of several addresses that gives it whole. What arrived is kept in a
`.part` beside the place it will take, with a note of where it came from; the next attempt, of this
process or another, asks for the rest. What is kept is only ever continued when it is sure to be
of the same file: by the server's validator (RFC 9110, `If-Range`), or because the hash is known
and will tell. A file takes its place by a rename after its hash was compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import BaseFileLock, FileLock, SoftFileLock

from zoo import files
from zoo.errors import WeightsError, ZooError, first_line
from zoo.resuming import (
    CHUNK,
    Again,
    Http,
    NotHere,
    Patience,
    Report,
    Source,
    fits,
    forget,
    note_of,
    offline,
    shown,
    size_of,
    web_address,
)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`; where the file system has no locks, by a file that exists.

    Raises:
        WeightsError: The folder cannot be written.
    """
    lock: BaseFileLock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except NotImplementedError:
        lock = SoftFileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise _unwritable(path.parent, error) from error
        lock = SoftFileLock(f"{path}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fetch(
    source: Source,
    folder: Path,
    *,
    report: Report | None = None,
    patience: Patience | None = None,
) -> tuple[Path, str]:
    """Download a file below `folder`, or continue what an earlier attempt began.

    Args:
        source: What to fetch.
        folder: The cache; the file becomes `<folder>/<sha256>/<filename>`.
        report: Told about progress.
        patience: How long servers are waited for.

    Returns:
        The file and its sha256.

    Raises:
        WeightsError: No address gave the right file, the cache cannot be written, or the network
            is forbidden. What arrived so far is kept where it can be continued.
        ZooError: The disk is full.
    """
    patience = patience or Patience()
    whole = source.sha256 if source.sha256 and len(source.sha256) == 64 else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    stem = whole or "new-" + hashlib.sha256(source.name.encode()).hexdigest()[:32]
    part = folder / f"{stem}.part"
    with locked(part):
        if whole and (folder / whole / source.filename).is_file():
            return folder / whole / source.filename, whole  # another process was faster
        troubles = []
        for url in source.urls:
            try:
                return _one_address(source, url, part, report, patience)
            except NotHere as trouble:
                troubles.append(f"{shown(url)}: {trouble}")
            except OSError as error:
                raise _disk(part, error) from error
        msg = f"{source.name} could not be downloaded. " + "; ".join(troubles)
        raise WeightsError(msg)


def _unwritable(folder: Path, error: OSError) -> WeightsError:
    msg = f"{folder}: cannot be written ({error.strerror or error}); set ZOO_CACHE to another place"
    return WeightsError(msg)


def _disk(part: Path, error: OSError) -> ZooError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        msg = f"{part.parent}: the disk is full; make room and pull again, what arrived is kept"
        return ZooError(msg)
    return _unwritable(part.parent, error)


# -- one address --------------------------------------------------------------------------------


def _one_address(
    source: Source, url: str, part: Path, report: Report | None, patience: Patience
) -> tuple[Path, str]:
    failed, mended = 0, False
    while True:
        before = size_of(part)
        try:
            if url.startswith("file:"):
                digest = _copied(source, url, part, report)
            elif url.startswith("gdrive:"):
                digest = _from_drive(url, part)
            else:
                digest = Http(source, part, report, patience).get(web_address(url))
        except Again as trouble:
            if trouble.fresh:
                forget(part)
            moved = not trouble.fresh and size_of(part) > before
            failed = 0 if moved else failed + 1
            if failed >= patience.tries:
                raise NotHere(str(trouble)) from None
            # A connection that was cut is taken up again at once, a refusal after a while.
            pause = 0.0 if moved else patience.wait * 2 ** (failed - 1)
            time.sleep(min(max(pause, trouble.after), patience.longest))
            continue
        if source.sha256 and not digest.startswith(source.sha256):
            forget(part)
            if before and not mended:
                mended = True  # what was continued may have been of another file
                continue
            why = (
                f"sent other bytes than expected (sha256 {digest[:12]}…, not {source.sha256[:12]}…)"
            )
            raise NotHere(why)
        return _placed(source, part, digest), digest


def _placed(source: Source, part: Path, digest: str) -> Path:
    final = part.parent / digest / source.filename
    final.parent.mkdir(exist_ok=True)
    files.sync(part)
    part.chmod(0o644)
    part.replace(final)
    note_of(part).unlink(missing_ok=True)
    return final


def _copied(source: Source, url: str, part: Path, report: Report | None) -> str:
    """Copy a local file; returns its hash."""
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        msg = "no such file"
        raise NotHere(msg)
    size = path.stat().st_size
    fits(source, size)
    files.need_space(part.parent, size)
    digest = hashlib.sha256()
    with path.open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(CHUNK):
            digest.update(block)
            writer.write(block)
            if report:
                report(writer.tell(), size)
    return digest.hexdigest()


def _from_drive(url: str, part: Path) -> str:
    """A file of Google Drive, through gdown, which knows its warning pages."""
    if offline():
        msg = "ZOO_OFFLINE is set"
        raise NotHere(msg)
    try:
        import gdown
    except ModuleNotFoundError:
        msg = "needs the package 'gdown': pip install gdown"
        raise NotHere(msg) from None
    try:
        gdown.download(id=url.removeprefix("gdrive:"), output=str(part), quiet=True, resume=True)
    except Exception as error:  # gdown raises many kinds
        raise NotHere(first_line(error, 300)) from None
    if not part.exists():
        msg = "gave no file"
        raise NotHere(msg)
    return files.sha256(part)
