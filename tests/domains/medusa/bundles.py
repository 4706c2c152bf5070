"""Writes TensorFlow checkpoints as `tf.train.Saver` does, for tests: table and raw tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.domains.medical.medusa.tensor_bundle import MAGIC, _masked

KINDS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]], restart: int = 16) -> bytes:
    """A block with shared beginnings of keys, without its trailer."""
    body, restarts, before = bytearray(), [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        else:
            restarts.append(len(body))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body += key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(body) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    endian: int = 0,
    kind: int | None = None,
    packed: int = 0,
) -> Path:
    """Writes `<prefix>.index` and its one data file.

    Args:
        prefix: Common beginning of both names.
        tensors: Names and values.
        endian: 1 claims another byte order.
        kind: Claims another type for every tensor.
        packed: Claims a compression of the table.
    """
    data, entries = bytearray(), []
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        raw = value.tobytes()
        dims = b"".join(text(2, number(1, n)) for n in np.shape(tensors[name]))
        told = number(1, KINDS[value.dtype.name] if kind is None else kind) + text(2, dims)
        told += number(4, len(data)) + number(5, len(raw))
        told += varint(6 << 3 | 5) + struct.pack("<I", _masked(raw[:8]))
        entries.append((name.encode(), told))
        data += raw
    header = number(1, 1) + number(2, endian) + text(3, number(1, 1))
    entries.insert(0, (b"", header))
    file, handles = bytearray(), []

    def put(body: bytes) -> bytes:
        at, trailer = len(file), bytes([packed])
        file.extend(body + trailer + struct.pack("<I", _masked(body + trailer)))
        return varint(at) + varint(len(body))

    for at in range(0, len(entries), 40):
        part = entries[at : at + 40]
        handles.append((part[-1][0] + b"\x00", put(block(part))))
    statistics = put(block([]))
    footer = statistics + put(block(handles, 1))
    file += footer.ljust(40, b"\x00") + struct.pack("<Q", MAGIC)
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(bytes(file))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(bytes(data))
    return index
