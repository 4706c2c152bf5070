"""Reading HDF5 files of other people: what they store themselves, and nothing they point at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from zoo.errors import DataError

_MOST = 160


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; a failure inside of the block names the file.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, truncated or not HDF5.
    """
    if not path.is_file():
        msg = f"{path}: no such file"
        raise DataError(msg)
    try:
        # Locks fail on many network file systems and guard nothing here: we only read.
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        msg = f"{path}: cannot be read as HDF5 ({lines[0][:_MOST]}); copy it again or make it anew"
        raise DataError(msg) from None


def holds(node: h5py.Group, name: str, where: str) -> bool:
    """Whether a group stores `name` itself.

    Args:
        node: The group, or the file.
        name: Of a group or data set in it.
        where: File and place, for the message.

    Raises:
        DataError: It is a link to another place or file, which is refused.
    """
    key = name.encode()
    if not node.id.links.exists(key):  # unlike `in`, also true of a link that leads nowhere
        return False
    kind = node.id.links.get_info(key).type
    if kind != h5py.h5l.TYPE_HARD:
        told = "an external link" if kind == h5py.h5l.TYPE_EXTERNAL else "a soft link"
        msg = f"{where}: '{name}' is {told}; only what the file itself holds is read"
        raise DataError(msg)
    return True
