"""Extracted features: kept by content while the weights rest, and written for others to use.

A feature depends on the weights, on how the image is prepared and on the image's bytes (and its
camera, where the network is told it). It is found again by these alone, whatever the file is
called: a second evaluation runs no network, and one that was stopped goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo import files
from zoo.data import cache_dir, fingerprint
from zoo.errors import DataError

_FORMAT = 1  # raised whenever the same weights and settings give other features
_WAIT = 30.0  # seconds for another process to finish its write
_MANY = 500  # sqlite takes a limited number of parameters
_INSERT = "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)"
T = TypeVar("T")
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def digest_of(model: nn.Module) -> str:
    """Hexadecimal SHA-256 of all parameters and buffers of a model, with their names and dtypes."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(memoryview(raw.numpy()))
    return found.hexdigest()


def key_of(content: str, camera: int | None = None, view: int | None = None) -> str:
    """Key of an image's feature: hash of its bytes, and what else the network is told about it."""
    return "/".join([content, *(str(-1 if n is None else n) for n in (camera, view))])


class FeatureCache:
    """Features by content below the zoo's cache, for one set of weights and settings.

    Each set has its own SQLite file, which several processes may read and write and which a kill
    leaves whole: what `put` returned from is there, what it did not is not. A cache that cannot
    be read or written costs time, never the run: `trouble` says what happened.

    Args:
        weights: `digest_of` the model.
        settings: Whatever else changes a feature: input size, flip averaging, dtype, precision.
        folder: Where the files lie; none: below `zoo.data.cache_dir()`.
    """

    def __init__(
        self, weights: str, settings: Mapping[str, Any], folder: Path | None = None
    ) -> None:
        name = fingerprint([_FORMAT, weights, dict(settings)])
        base = folder if folder is not None else cache_dir() / "features"
        self.path = base / f"fusion_reid-{name}.sqlite"
        self.trouble = ""

    def get(self, contents: Sequence[str]) -> list[Tensor | None]:
        """The (D,) feature of each key, None where there is none yet.

        Args:
            contents: Keys by `key_of`; a bare content hash will do where nothing else counts.
        """
        wanted = list(dict.fromkeys(contents))

        def look(database: sqlite3.Connection) -> dict[str, Tensor]:
            found = {}
            for first in range(0, len(wanted), _MANY):
                part = wanted[first : first + _MANY]
                marks = ",".join("?" * len(part))
                rows = database.execute(
                    f"SELECT content, dtype, width, body FROM features WHERE content IN ({marks})",
                    part,
                )
                for key, *stored in rows:
                    if (feature := _tensor(*stored)) is not None:
                        found[key] = feature
            return found

        known = self._run(look) if self.path.exists() else None
        return [(known or {}).get(key) for key in contents]

    def put(self, contents: Sequence[str], features: Tensor) -> None:
        """Keeps features; ones that are not finite are not kept.

        Args:
            contents: N keys.
            features: (N, D) float16, float32 or float64.

        Raises:
            ValueError: There are not as many features as keys, or of another dtype.
        """
        dtype = str(features.dtype).removeprefix("torch.")
        if features.dim() != 2 or len(features) != len(contents) or dtype not in _DTYPES:
            msg = (
                f"put: {len(contents)} keys need ({len(contents)}, D) floating point features, "
                f"got {features.dtype} {tuple(features.shape)}"
            )
            raise ValueError(msg)
        known = features.detach().cpu().contiguous()
        good = torch.isfinite(known).all(dim=1).tolist()
        rows = [
            (key, dtype, known.shape[1], row.numpy().tobytes())
            for key, row, fine in zip(contents, known, good, strict=True)
            if fine
        ]
        self._run(lambda d: d.executemany(_INSERT, rows))

    def note(self) -> str:
        """What the cache holds and takes, as a line for the user."""
        count = 0
        if self.path.exists():
            count = (
                self._run(lambda d: d.execute("SELECT count(*) FROM features").fetchone()[0]) or 0
            )
        size = self.path.stat().st_size if self.path.exists() else 0
        line = f"features of {count} images are kept in {self.path} ({size / 1e6:.1f} MB)"
        return line + (f"; {self.trouble}" if self.trouble else "")

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` gives, in one transaction; None and a word in `trouble` if it cannot."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (
                contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT)) as database,
                database,
            ):
                database.execute(
                    "CREATE TABLE IF NOT EXISTS features "
                    "(content TEXT PRIMARY KEY, dtype TEXT, width INTEGER, body BLOB)"
                )
                return work(database)
        except (sqlite3.OperationalError, OSError) as error:
            # Locked, full, not to be written: what is in it may be good later.
            self.trouble = f"the feature cache was not used: {error}"
        except sqlite3.DatabaseError as error:
            self.trouble = f"the feature cache was damaged and begins anew: {error}"
            with contextlib.suppress(OSError):
                self.path.unlink()
        return None


def _tensor(dtype: str, width: int, body: bytes) -> Tensor | None:
    kind = _DTYPES.get(dtype)
    if kind is None or len(body) != width * kind.itemsize:
        return None
    return torch.frombuffer(bytearray(body), dtype=kind)


# -- files for others ---------------------------------------------------------------------------

_KIND = "zoo-embeddings-1"
_COLUMNS = ("ids", "persons", "cameras", "roles", "paths")


@dataclass(frozen=True)
class Embeddings:
    """Features with the names of what they were extracted from; rows belong together.

    Attributes:
        features: (N, D) float32 or float16, as the network gave them (not normalised).
        ids: (N,) unique names.
        persons: (N,) identities, empty where unknown.
        cameras: (N,) cameras, empty where unknown.
        roles: (N,) `query` or `gallery`.
        paths: (N,) files, relative to the data folder.
        info: What they come from: task, weights, settings.
    """

    features: Tensor
    ids: Sequence[str]
    persons: Sequence[str]
    cameras: Sequence[str]
    roles: Sequence[str]
    paths: Sequence[str]
    info: Mapping[str, str] = field(default_factory=dict)


def write_embeddings(path: Path, found: Embeddings) -> None:
    """Writes a safetensors file: the tensor `features`, and the rest as JSON in its metadata.

    Raises:
        ValueError: The columns differ in length.
    """
    columns = {name: [str(v) for v in getattr(found, name)] for name in _COLUMNS}
    lengths = {len(found.features), *(len(values) for values in columns.values())}
    if len(lengths) != 1 or found.features.dim() != 2:
        msg = f"embeddings: (N, D) features and columns of N names expected, got {sorted(lengths)}"
        raise ValueError(msg)
    metadata = {"kind": _KIND, "info": json.dumps(dict(found.info))}
    metadata |= {name: json.dumps(values) for name, values in columns.items()}
    tensors = {"features": found.features.detach().cpu().contiguous()}
    files.write_whole(path, partial(save_file, tensors, metadata=metadata))


def read_embeddings(path: Path) -> Embeddings:
    """Reads what `write_embeddings` wrote.

    Raises:
        DataError: The file is missing, broken or of another kind, or does not fit together.
    """
    if not path.is_file():
        msg = f"{path}: there is no such file of embeddings"
        raise DataError(msg)
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("kind") != _KIND or "features" not in opened.keys():  # noqa: SIM118
                msg = (
                    f"{path}: holds no embeddings; `zoo predict predict.features=true` writes them"
                )
                raise DataError(msg)
            features = opened.get_tensor("features")
    except (SafetensorError, OSError) as error:
        msg = f"{path}: cannot be read as safetensors ({error}); write it again"
        raise DataError(msg) from None
    columns = {name: _column(path, metadata, name, len(features)) for name in _COLUMNS}
    if len(set(columns["ids"])) != len(columns["ids"]):
        msg = f"{path}: two embeddings have the same id"
        raise DataError(msg)
    if features.dim() != 2 or not bool(torch.isfinite(features).all()):
        msg = f"{path}: features must be (N, D) finite numbers, got {tuple(features.shape)}"
        raise DataError(msg)
    return Embeddings(features, **columns, info=_parsed(path, metadata, "info", dict))


def _column(path: Path, metadata: Mapping[str, str], name: str, length: int) -> list[str]:
    values: list[str] = _parsed(path, metadata, name, list)
    if len(values) != length or not all(isinstance(v, str) for v in values):
        msg = f"{path}: {length} embeddings, but {len(values)} names in its {name}"
        raise DataError(msg)
    return list(values)


def _parsed(path: Path, metadata: Mapping[str, str], name: str, kind: type) -> Any:
    try:
        value = json.loads(metadata.get(name, ""))
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, kind):
        msg = f"{path}: its metadata have no readable {name}"
        raise DataError(msg)
    return value
