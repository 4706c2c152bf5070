"""Weights in one file that also says how to use them: task, settings, facts, where they are from.

The file is a safetensors file, which any tool can read. Its metadata have one entry, `zoo`, a JSON
object; a checksum over tensors and that object tells a damaged file from a sound one. Paths of the
machine it was made on never travel.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, get_args

import torch
from pydantic import BaseModel
from torch import Tensor

from zoo import __version__, files, registry
from zoo.errors import ConfigError, WeightsError, first_line
from zoo.task import Facts

FORMAT = 1
"""Raised when a file of before would be read wrongly; older formats stay readable."""

SUFFIX = ".safetensors"
_ENTRY = "zoo"
# How and where a training ran; `weights` and `resume` name other files.
_LOCAL = ("out", "resume", "weights", "tracking")


@dataclass(frozen=True)
class Portable:
    """A weights file with what is needed to use it.

    Attributes:
        path: The file.
        state: Tensors by state_dict key, on the CPU.
        task: Name of the task.
        config: Settings, as `BaseConfig.stored` gives them, without anything local.
        facts: What was learnt from the training data.
        about: Where they are from: source, licence, run, data digests, `zoo` (the version).
    """

    path: Path
    state: dict[str, Tensor]
    task: str
    config: dict[str, Any]
    facts: Facts
    about: dict[str, Any]


def write(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    task: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Path:
    """Write a portable weights file, whole or not at all.

    Args:
        path: Ends in `.safetensors`.
        state: Tensors by state_dict key; ties between them are written out.
        task: Name of the task.
        config: Settings as `BaseConfig.stored` gives them; paths are left out here.
        facts: JSON.
        about: JSON; the version of the zoo is added.

    Returns:
        The path.

    Raises:
        ConfigError: The name has another suffix, or something is no JSON.
        ZooError: The disk has not enough room.
    """
    from safetensors.torch import save_file

    if path.suffix != SUFFIX:
        msg = f"{path}: portable weights are a {SUFFIX} file; give it that suffix"
        raise ConfigError(msg)
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    body = {
        "format": FORMAT,
        "task": task,
        "config": travelling(task, config),
        "facts": dict(facts),
        "about": {"zoo": __version__, **about},
    }
    try:
        body = json.loads(json.dumps(body))  # as a reader will see it: keys are text
    except (TypeError, ValueError) as error:
        msg = f"{path}: settings, facts and notes of weights must be JSON ({error})"
        raise ConfigError(msg) from error
    sealed = json.dumps(body | {"sha256": _seal(body, whole)})
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(v.numel() * v.element_size() for v in whole.values())
    files.need_space(path.parent, int(1.05 * size) + len(sealed) + 1_000_000)
    files.write_whole(path, lambda place: save_file(whole, place, {_ENTRY: sealed}))
    return path


def read(path: Path) -> Portable | None:
    """A portable weights file, verified.

    Returns:
        None for a file of plain tensors.

    Raises:
        WeightsError: The file is missing or damaged, or of a format newer than this zoo.
    """
    from safetensors.torch import load_file

    body = described(path)
    if body is None:
        return None
    try:
        state = load_file(path)
    except Exception as error:  # a file cut short fails in any way
        msg = f"{path}: damaged weights file ({first_line(error)}); fetch it again"
        raise WeightsError(msg) from error
    told = body.pop("sha256", None)
    if told != _seal(body, state):
        msg = f"{path}: damaged weights file (its hash differs); fetch it again"
        raise WeightsError(msg)
    return Portable(path, state, body["task"], body["config"], body["facts"], body["about"])


def described(path: Path) -> dict[str, Any] | None:
    """What a file says of itself, without reading or verifying its tensors.

    Returns:
        `format`, `task`, `config`, `facts`, `about`, `sha256`; None for a file of plain tensors.

    Raises:
        WeightsError: The file is missing or damaged, or of a format newer than this zoo.
    """
    from safetensors import safe_open

    if not path.is_file():
        msg = f"{path}: no such file"
        raise WeightsError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY)
    except Exception as error:  # a damaged header fails in any way
        msg = f"{path}: not a readable safetensors file ({first_line(error)})"
        raise WeightsError(msg) from error
    if text is None:
        return None
    try:
        body = json.loads(text)
        number = body["format"]
        if number > FORMAT:
            msg = f"{path}: weights of format {number} are newer than this zoo; upgrade it"
            raise WeightsError(msg)
        sound = isinstance(body["task"], str) and all(
            isinstance(body[k], dict) for k in ("config", "facts", "about")
        )
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, WeightsError):
            raise
        sound = False
    if not sound:
        msg = f"{path}: damaged weights file (its description); fetch it again"
        raise WeightsError(msg)
    return dict(body)


def _seal(body: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Hash of the description and of every tensor with its name, type and shape."""
    hasher = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for key in sorted(state):
        value = state[key]
        hasher.update(f"\n{key} {value.dtype} {tuple(value.shape)}\n".encode())
        raw: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        hasher.update(raw)
    return hasher.hexdigest()


# -- settings that travel -----------------------------------------------------------------------


def travelling(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings without what is local to a machine: paths, tracking, `out`, `resume`.

    Args:
        task: Its configuration class tells which settings are paths.
        config: As `BaseConfig.stored` gives it.
    """
    try:
        entry = registry.find(task)[1]
        kind = registry.load_object(entry.config or "", f"tasks.{task}.config")
        paths = set(_path_keys(kind))
    except ConfigError:  # a task of another registry: absolute paths are known all the same
        paths = set()
    kept = {k: v for k, v in config.items() if k not in _LOCAL}
    return _without(kept, paths, "")


def _without(node: Mapping[str, Any], paths: set[str], prefix: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in node.items():
        if f"{prefix}{key}" in paths or f"{prefix}{key}" == "data.root":
            continue
        if isinstance(value, Mapping):
            made[key] = _without(value, paths, f"{prefix}{key}.")
        elif not (isinstance(value, str) and len(value) > 1 and PurePath(value).is_absolute()):
            made[key] = value
    return made


def _path_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration class that take a path or several."""
    for name, info in kind.model_fields.items():
        for part in _parts(info.annotation):
            if isinstance(part, type) and issubclass(part, PurePath):
                yield f"{prefix}{name}"
            elif isinstance(part, type) and issubclass(part, BaseModel):
                yield from _path_keys(part, f"{prefix}{name}.")


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and all it is made of: `list[Path] | None` gives `Path` too."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
