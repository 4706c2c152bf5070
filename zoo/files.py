"""Writing files so that they are whole or not there: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, ZooError


def cache_dir() -> Path:
    """The zoo's cache: `ZOO_CACHE`, else `~/.cache/zoo` (or below `XDG_CACHE_HOME`).

    Raises:
        ConfigError: `ZOO_CACHE` is a file, or below one.
    """
    own = os.environ.get("ZOO_CACHE")
    if own:
        path = Path(own).expanduser()
        check_place(path, f"ZOO_CACHE={own}", folder=True)
        return path
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zoo"


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, body: bytes) -> None:
    """Replace `path` by `body` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by UTF-8 `text` in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file that then takes `path`'s place.

    For libraries (h5py, matplotlib, pandas) that insist on opening a path themselves. The
    temporary name keeps the suffix, by which they choose a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(fd)
    fresh = Path(name)
    try:
        write(fresh)
        sync(fresh)
        fresh.chmod(0o644)
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def check_place(path: Path, word: str, folder: bool = False) -> None:
    """Make sure that a file or folder may be made where a user wants it, before any work.

    Args:
        path: Its place; folders above it need not exist yet.
        word: What the user wrote, for the message: `to=model.pt2`.
        folder: Whether it becomes a folder; one that is there already is fine.

    Raises:
        ConfigError: A folder lies there and a file is to be made, or a file lies in the way.
    """
    if not folder and path.is_dir():
        msg = f"{word}: is a folder; name a file"
        raise ConfigError(msg)
    there = path if folder else path.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        msg = f"{word}: {there} is a file, not a folder; name another place"
        raise ConfigError(msg)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that the functions above give to a file not yet whole."""
    return re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name) is not None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need_space(folder: Path, size: int) -> None:
    """Make sure that `size` bytes fit below `folder`.

    Raises:
        ZooError: They do not; nothing has been written.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        msg = (
            f"{folder}: {size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free; "
            "make room and resume"
        )
        raise ZooError(msg)
