"""Reading MATLAB files of version 5 to 7: numbers, text and cells, and nothing they cannot hold.

scipy's compiled reader trusts sizes and types in the file: one flipped bit in a table of cells ends
the process with a segmentation fault, which no handler catches. Here every size is compared with
the bytes there are. The format is that of "MAT-File Format" (The MathWorks), chapter 1. Version 4
goes to scipy, which reads it in Python; version 7.3 is HDF5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import DataError

# Types of elements, and of arrays by their class.
_NUMBERS: Mapping[int, str] = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_CLASSES: Mapping[int, str] = {
    **{6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2"},
    **{12: "i4", 13: "u4", 14: "i8", 15: "u8", 1: "cell", 4: "text"},
}
_TEXTS: Mapping[int, str] = {
    **{1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"},
}
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX, _LOGICAL = 0x0800, 0x0200
_DEEPEST = 4  # cells in cells
_PEEK = 4096  # bytes that hold the head of any variable
# Bytes a variable may unpack to; and how many times its size in the file, from a size on.
_MOST, _LARGE, _RATIO = 2**31, 2**28, 100


@dataclass(frozen=True)
class Variable:
    """A variable, not yet read.

    Attributes:
        shape: As MATLAB has it.
        kind: numpy's name of its type, `text`, `cell` or `other` for what is not read.
    """

    shape: tuple[int, ...]
    kind: str
    _path: Path
    _order: str
    _body: bytes
    _packed: bool

    def values(self) -> Any:
        """An array, a string, or for cells an object array of these.

        Raises:
            DataError: The file is damaged, or the variable is of another kind.
        """
        if self.kind == "other":
            msg = f"{self._path}: a variable of {self.shape} is neither numbers, text nor cells"
            raise DataError(msg)
        with _told(self._path):
            body = _unpacked(self._body, self._order) if self._packed else self._body
            return _array(body, self._order, 0)


def variables(path: Path) -> dict[str, Variable]:
    """Name -> variable; only their heads are looked at.

    Args:
        path: A file of version 5 to 7.

    Raises:
        DataError: The file is missing, damaged or of another version.
    """
    if not path.is_file():
        msg = f"{path}: there is no such file"
        raise DataError(msg)
    with _told(path), path.open("rb") as file:
        mark = file.read(128)[126:]
        order = {b"IM": "<", b"MI": ">"}.get(mark, "")
        if not order:
            msg = "no mark of version 5"
            raise ValueError(msg)
        found = {}
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            body = file.read(min(size, _MOST))
            if len(body) != size:
                msg = "it breaks off"
                raise ValueError(msg)
            packed = kind == _COMPRESSED
            if packed:
                head = zlib.decompressobj().decompress(body, _PEEK)[8:]
            elif kind == _MATRIX:
                head = body
            else:
                continue
            name, shape, code, _ = _head(head, order)
            shown = code if code in ("text", "cell", "other") else np.dtype(code).name
            found[name] = Variable(shape, shown, path, order, body, packed)
        return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns what a damaged file raises into one line with its name."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, struct.error, zlib.error, MemoryError) as error:
        told = " ".join(str(error).split())[:120] or type(error).__name__
        msg = f"{path}: cannot be read as a MATLAB file ({told})"
        raise DataError(msg) from None


def _unpacked(body: bytes, order: str) -> bytes:
    unpack = zlib.decompressobj()
    kind, size = struct.unpack(f"{order}II", unpack.decompress(body, 8))
    if kind != _MATRIX or size > _MOST or (size > _LARGE and size > _RATIO * len(body)):
        msg = f"{size / 1e9:.1f} GB in {len(body) / 1e6:.1f} MB"
        raise ValueError(msg)
    found = unpack.decompress(unpack.unconsumed_tail, size)
    unpack.decompress(unpack.unconsumed_tail, 1)  # at the end lies a sum of what came before
    if len(found) != size or not unpack.eof:
        msg = "it breaks off"
        raise ValueError(msg)
    return found


def _element(body: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Type and content of the element at a place, and where the next one begins."""
    first, second = struct.unpack_from(f"{order}II", body, at)
    if first >> 16:  # small: type and size in the first word, content in the second
        kind, size, start, after = first & 0xFFFF, first >> 16, at + 4, at + 8
    else:
        kind, size, start = first, second, at + 8
        after = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(body) or (first >> 16 and size > 4):
        msg = f"an element of {size} bytes does not fit"
        raise ValueError(msg)
    return kind, body[start : start + size], after


def _head(body: bytes, order: str) -> tuple[str, tuple[int, ...], str, int]:
    """Name, shape and type of a matrix, and where its content begins."""
    _, flags, at = _element(body, 0, order)
    (word,) = struct.unpack_from(f"{order}I", flags)
    kind, raw, at = _element(body, at, order)
    shape = tuple(int(n) for n in np.frombuffer(raw, f"{order}i4")) if kind == 5 else ()
    if len(shape) < 2 or min(shape) < 0:
        msg = f"a variable of shape {shape}"
        raise ValueError(msg)
    _, name, at = _element(body, at, order)
    code = _CLASSES.get(word & 0xFF, "other")
    if word & _COMPLEX:
        code = "other"
    elif word & _LOGICAL and code == "u1":
        code = "?"
    return name.decode("utf-8", "replace"), shape, code, at


def _array(body: bytes, order: str, depth: int) -> Any:
    if not body and depth:  # an empty cell
        return np.empty((0, 0))
    _, shape, code, at = _head(body, order)
    count = math.prod(shape)
    if code == "cell":
        return _cells(body, at, order, shape, depth)
    if code == "other":
        msg = "a variable that is neither numbers, text nor cells"
        raise ValueError(msg)
    kind, content, _ = _element(body, at, order) if count else (0, b"", 0)
    if code == "text":
        if count and kind not in _TEXTS:
            msg = f"text of type {kind}"
            raise ValueError(msg)
        coding = _TEXTS.get(kind, "utf-8")
        wide = coding in ("utf-16", "utf-32")
        return content.decode(coding + ("-le" if order == "<" else "-be") * wide)
    each = np.dtype(_NUMBERS.get(kind, "V0")).itemsize
    if count and (not each or len(content) != count * each):
        msg = f"{count} numbers of type {kind} in {len(content)} bytes"
        raise ValueError(msg)
    stored = np.frombuffer(content, order + _NUMBERS[kind]) if count else np.empty(0)
    return stored.astype(code).reshape(shape, order="F")


def _cells(body: bytes, at: int, order: str, shape: tuple[int, ...], depth: int) -> np.ndarray:
    count = math.prod(shape)
    if depth >= _DEEPEST or count > len(body) // 8:
        msg = f"{count} cells in {len(body)} bytes"
        raise ValueError(msg)
    found = np.empty(count, object)
    for i in range(count):
        kind, inner, at = _element(body, at, order)
        if kind != _MATRIX:
            msg = f"a cell of type {kind}"
            raise ValueError(msg)
        found[i] = _array(inner, order, depth + 1)
    return found.reshape(shape, order="F")
