"""Checkpoints: atomic, hashed, loadable without pickle.

A checkpoint is a folder `step-00000120` with `model.safetensors` (weights), `state.pt` (optimisers
and counters, readable with `weights_only=True`) and `meta.json` (format, task, configuration,
facts, hashes). It appears by a rename and so is either whole or not there; `index.json` beside it
names the newest and the best. A file whose hash is wrong is never used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo import files
from zoo.errors import ResumeError, WeightsError, first_line

FORMAT = 1
_LEAST_FREE = 1_000_000  # bytes; a disk with less counts as full
_MODEL, _STATE, _META, _INDEX = "model.safetensors", "state.pt", "meta.json", "index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and verified.

    Attributes:
        path: Its folder.
        meta: `format`, `task`, `config`, `facts`, `step`, `epoch`, `sha256`.
        model: Weights by state_dict key.
        state: Optimisers and counters; empty when only the weights were asked for.
    """

    path: Path
    meta: dict[str, Any]
    model: dict[str, Tensor]
    state: dict[str, Any]


def _separate(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors asks; tied weights are copied."""
    seen: set[int] = set()
    out = {}
    for key, tensor in model.items():
        value = tensor.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        out[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return out


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_size(v) for v in value)
    return 64


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    state: dict[str, Any],
    meta: dict[str, Any],
) -> Path:
    """Write checkpoint `step` below `folder`.

    Args:
        folder: The run's `checkpoints` folder.
        step: Optimiser steps done; names the checkpoint.
        model: Weights by state_dict key.
        state: Tensors, numbers, strings, lists and dicts of these only.
        meta: JSON that describes the model; hashes and format are added here.

    Raises:
        ZooError: The disk has not enough room; nothing is left behind.
        OSError: Writing failed; nothing is left behind either.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = _separate(model)
    files.need_space(folder, int(1.05 * (_size(weights) + _size(state))) + 1_000_000)
    final = folder / f"step-{step:08d}"
    fresh = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    stale = folder / f".stale-{final.name}-{secrets.token_hex(4)}"
    try:
        _write(fresh / _MODEL, lambda p: save_file(weights, p))
        _write(fresh / _STATE, lambda p: torch.save(state, p))
        hashes = {}
        for name in (_MODEL, _STATE):
            files.sync(fresh / name)
            hashes[name] = files.sha256(fresh / name)
        body = {"format": FORMAT, "step": step, **meta}
        files.write_json(fresh / _META, body | {"sha256": hashes | {_META: _seal(body)}})
        files.sync(fresh)
        fresh.chmod(0o755)
        if final.exists():  # written again after a resume; the old one may be the broken one
            final.rename(stale)
        fresh.rename(final)
        files.sync(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if stale.exists() and not final.exists():
            stale.rename(final)
        raise
    clean(folder)
    return final


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Let a library write a file; whatever its writer raises becomes an OSError with the reason.

    safetensors and torch write by code of their own, which reports a full disk as an error of
    theirs.
    """
    try:
        write(path)
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)", str(error))
        full = shutil.disk_usage(path.parent).free < _LEAST_FREE
        code = int(number[1]) if number else errno.ENOSPC if full else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


def amend(path: Path, facts: Mapping[str, Any]) -> None:
    """Replace the facts of a checkpoint; the rest of it stays as it is.

    Args:
        path: The checkpoint's folder.
        facts: All facts, as JSON.

    Raises:
        WeightsError: The checkpoint is damaged.
    """
    meta = load(path, weights_only=True).meta
    hashes = dict(meta.pop("sha256"))
    body = meta | {"facts": dict(facts)}
    files.write_json(path / _META, body | {"sha256": hashes | {_META: _seal(body)}})


def _seal(body: Mapping[str, Any]) -> str:
    """Hash of the metadata themselves: a flipped digit in the facts would predict nonsense."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def clean(folder: Path) -> None:
    """Remove what an interrupted writer left behind."""
    for pattern in (".writing-*", ".stale-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def mark(folder: Path, *, last: str, best: str | None) -> None:
    """Name the newest and the best checkpoint in `index.json`."""
    files.write_json(folder / _INDEX, {"last": last, "best": best})


def marked(folder: Path) -> dict[str, str | None]:
    """What `index.json` says; empty if there is none yet."""
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(index, dict):
        return {}
    return {k: v for k, v in index.items() if v is None or isinstance(v, str)}


def prune(folder: Path, keep: int, best: str | None, last: str | None = None) -> None:
    """Remove all but the `keep` newest checkpoints and the best.

    Args:
        folder: The run's `checkpoints` folder.
        keep: How many to keep.
        best: Name of the one that is kept whatever its age.
        last: The newest sound one. Those after it, which a resume found damaged, neither count
            nor are removed: training writes them anew.
    """
    there = sorted(folder.glob("step-*"))
    for path in [p for p in there if last is None or p.name <= last][:-keep]:
        if path.name != best:
            # Renamed first, so that a half-removed folder is never taken for a checkpoint.
            gone = path.with_name(f".stale-{path.name}-{secrets.token_hex(4)}")
            path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def load(path: Path, *, weights_only: bool = False) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Args:
        path: The folder `step-…`.
        weights_only: Leave the optimiser state unread.

    Raises:
        WeightsError: A file is missing, was changed since it was written, or has a format newer
            than this version knows.
    """
    try:
        meta = json.loads((path / _META).read_text())
    except (OSError, ValueError) as error:
        msg = f"checkpoint {path}: {_META} cannot be read ({error}); use another checkpoint"
        raise WeightsError(msg) from error
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        msg = f"checkpoint {path}: {_META} is damaged; use another checkpoint"
        raise WeightsError(msg)
    if meta["format"] > FORMAT:
        msg = f"checkpoint {path}: format {meta['format']} is newer than this zoo; upgrade it"
        raise WeightsError(msg)
    hashes = meta.get("sha256")
    body = {k: v for k, v in meta.items() if k != "sha256"}
    if not isinstance(hashes, dict) or hashes.get(_META) != _seal(body):
        msg = f"checkpoint {path}: {_META} is damaged (its hash differs); use another checkpoint"
        raise WeightsError(msg)
    for name in (_MODEL,) if weights_only else (_MODEL, _STATE):
        file = path / name
        if not file.is_file():
            msg = f"checkpoint {path}: {name} is missing; use another checkpoint"
            raise WeightsError(msg)
        if files.sha256(file) != hashes.get(name):
            msg = f"checkpoint {path}: {name} is damaged (its hash differs); use another checkpoint"
            raise WeightsError(msg)
    try:
        model = load_file(path / _MODEL)
        state = {} if weights_only else torch.load(path / _STATE, weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        msg = f"checkpoint {path}: cannot be read ({first_line(error, 300)})"
        raise WeightsError(msg) from error
    return Checkpoint(path, meta, model, state)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is sound, and a line for each newer one that is not."""
    notes: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return load(path), notes
        except WeightsError as error:
            notes.append(str(error))
    return None, notes


def best(folder: Path) -> Checkpoint:
    """The weights of the best checkpoint, or of the newest if none was marked best.

    Raises:
        WeightsError: The best one is damaged.
        ResumeError: There is no checkpoint at all.
    """
    index = marked(folder)
    name = index.get("best") or index.get("last")
    if name and (folder / name).is_dir():
        return load(folder / name, weights_only=True)
    found, notes = newest(folder)
    if found is None:
        msg = f"{folder}: no checkpoint" + (f" ({'; '.join(notes)})" if notes else "")
        raise ResumeError(msg)
    return found


def newest_name(folder: Path) -> str | None:
    """Name of the newest checkpoint folder, sound or not."""
    found = sorted(folder.glob("step-*"))
    return found[-1].name if found else None


def load_weights(model: nn.Module, found: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        WeightsError: Keys or shapes do not fit; the message names some.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(found.model))
    extra = sorted(set(found.model) - set(own))
    shapes = [
        f"{k} is {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in found.model.items()
        if k in own and v.shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"missing {', '.join(missing[:3])}" if missing else "",
            f"unknown {', '.join(extra[:3])}" if extra else "",
            "; ".join(shapes[:3]),
        ]
        msg = f"{found.path} does not fit the model: " + "; ".join(p for p in parts if p)
        raise WeightsError(msg)
    model.load_state_dict(found.model)
