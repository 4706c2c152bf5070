"""Reading HDF5 files of other people: what they store themselves, and nothing they point at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from zoo.errors import DataError, first_line

_MOST = 160
# Sizes above which a data set that is a hundred times smaller in the file is taken for a bomb, or
# for one whose values were never written: features, pictures and volumes pack far less well.
_LARGE, _RATIO = 2**28, 100


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; a failure inside of the block names the file.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, truncated or not HDF5.
    """
    if not path.is_file():
        told = "is no plain file" if path.exists() else "no such file"
        msg = f"{path}: {told}"
        raise DataError(msg)
    try:
        # Locks fail on many network file systems and guard nothing here: we only read.
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        told = first_line(error, _MOST)
        msg = f"{path}: cannot be read as HDF5 ({told}); copy it again or make it anew"
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


def own(dataset: h5py.Dataset, where: str) -> h5py.Dataset:
    """A data set whose values the file itself stores, and as many as it claims.

    Args:
        dataset: Not yet read.
        where: File and name, for the message.

    Raises:
        DataError: Its values lie in other files, or it claims far more than the file holds.
    """
    if dataset.is_virtual or dataset.external:
        msg = f"{where} takes its values from other files, which is refused"
        raise DataError(msg)
    if dataset.shape is None:
        msg = f"{where} is empty"
        raise DataError(msg)
    claimed, stored = int(dataset.nbytes), int(dataset.id.get_storage_size())
    if claimed > _LARGE and claimed > _RATIO * stored:
        msg = (
            f"{where} claims {claimed / 1e9:.1f} GB, of which the file holds {stored / 1e6:.1f} MB;"
            " it is damaged or made to fill the memory"
        )
        raise DataError(msg)
    return dataset
