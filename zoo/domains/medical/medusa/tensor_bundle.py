"""TensorFlow's checkpoint files, read without TensorFlow.

A checkpoint is a sorted table of names (`<prefix>.index`) and raw tensors (`<prefix>.data-…`).
Layout of the table: LevelDB's table format (doc/table_format.md of google/leveldb); of its values:
`BundleEntryProto` in tensorflow/core/protobuf/tensor_bundle.proto. The table's checksums are
verified; of the tensors the sizes are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import WeightsError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5
"""Bytes behind a block: its compression and a checksum."""

TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""TensorFlow's number of a type -> numpy's name. Others (strings, say) are left out."""


class Entry(NamedTuple):
    """Where a tensor lies.

    Attributes:
        kind: TensorFlow's number of its type.
        shape: Its shape.
        shard: Which data file.
        offset: First byte in it.
        size: Number of bytes.
        sliced: Whether it is cut over several entries, as partitioned variables are.
    """

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    sliced: bool


def read_bundle(index: Path) -> dict[str, Tensor]:
    """Names and tensors of a TensorFlow checkpoint.

    Args:
        index: The file `<prefix>.index`; the data files lie beside it.

    Raises:
        WeightsError: A file is missing, cut short or damaged, or is compressed or big-endian.
    """
    prefix = index.with_suffix("")
    entries = dict(_table(index))
    shards = _header(entries.pop(b"", b""), index)
    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        entry = _entry(value)
        if entry.kind not in TYPES or entry.sliced:
            continue
        path = Path(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
        if not path.is_file():
            msg = f"{path}: no such file; a checkpoint needs its data beside {index.name}"
            raise WeightsError(msg)
        kind = np.dtype(TYPES[entry.kind])
        fits = entry.offset + entry.size <= path.stat().st_size
        if not fits or entry.size != kind.itemsize * math.prod(entry.shape):
            msg = f"{path}: cut short or damaged at {name.decode(errors='replace')}"
            raise WeightsError(msg)
        raw = np.fromfile(path, kind, math.prod(entry.shape), offset=entry.offset)
        found[name.decode()] = torch.from_numpy(raw.reshape(entry.shape))
    return found


# -- the table ----------------------------------------------------------------------------------


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a table file."""
    data = path.read_bytes()
    if len(data) < FOOTER or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        msg = f"{path}: not the index of a TensorFlow checkpoint, or cut short"
        raise WeightsError(msg)
    footer = data[-FOOTER:]
    _, at = _varint(footer, _varint(footer, 0)[1])  # the first handle is of a block of statistics
    for _, handle in _block(data, _handle(footer, at), path):
        yield from _block(data, _handle(handle, 0), path)


def _handle(data: bytes, at: int) -> tuple[int, int]:
    offset, at = _varint(data, at)
    size, _ = _varint(data, at)
    return offset, size


def _block(data: bytes, handle: tuple[int, int], path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key repeats the beginning of the one before."""
    offset, size = handle
    body, trailer = data[offset : offset + size], data[offset + size : offset + size + TRAILER]
    whole = len(body) == size and len(trailer) == TRAILER
    if not whole or _masked(body + trailer[:1]) != struct.unpack("<I", trailer[1:])[0]:
        msg = f"{path}: damaged (a checksum differs)"
        raise WeightsError(msg)
    if trailer[0] != 0:
        msg = f"{path}: its table is compressed, which is not read; save it again without"
        raise WeightsError(msg)
    (restarts,) = struct.unpack("<I", body[-4:])
    at, key, end = 0, b"", size - 4 * (restarts + 1)
    while at < end:
        shared, at = _varint(body, at)
        own, at = _varint(body, at)
        length, at = _varint(body, at)
        key = key[:shared] + body[at : at + own]
        yield key, body[at + own : at + own + length]
        at += own + length


@cache
def _steps() -> list[int]:
    """CRC-32C of every byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _masked(data: bytes) -> int:
    """CRC-32C as LevelDB stores it, rotated and shifted."""
    steps, crc = _steps(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ steps[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# -- the values ---------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a protocol buffer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        else:
            length = 8 if kind == 1 else 4
        yield tag >> 3, data[at : at + length]
        at += length


def _header(value: bytes, path: Path) -> int:
    """Number of data files, as the entry without a name says."""
    told = dict(_fields(value))
    if told.get(2, 0) != 0:
        msg = f"{path}: written on a big-endian machine, which is not read"
        raise WeightsError(msg)
    shards = told.get(1, 0)
    if not isinstance(shards, int) or shards < 1:
        msg = f"{path}: names no data files, so it is no TensorFlow checkpoint"
        raise WeightsError(msg)
    return shards


def _entry(value: bytes) -> Entry:
    numbers, shape, sliced = {1: 0, 3: 0, 4: 0, 5: 0}, [], False
    for number, field in _fields(value):
        if isinstance(field, int):
            numbers[number] = field
        elif number == 2:
            dims = [inner for n, inner in _fields(field) if n == 2]
            sizes = [dict(_fields(d)).get(1, 0) for d in dims if isinstance(d, bytes)]
            shape = [size for size in sizes if isinstance(size, int)]
        elif number == 7:
            sliced = True
    return Entry(numbers[1], tuple(shape), numbers[3], numbers[4], numbers[5], sliced)
