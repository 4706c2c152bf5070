"""A published model as MLflow loads it: torch, numpy and mlflow, without the zoo.

Beside it lie `model.pt2` (the network with its preparation, as a graph of PyTorch's operators) and
`io.json` (names, types and sizes of what it takes and gives). Whatever the model cannot take is
refused in one short line: over REST that line is the whole answer, never the array.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

_TOGETHER, _NUMBERS = 32, 2_000_000
"""Rows of a table that go through the network at once, and numbers in them."""


class Refused(MlflowException):
    """An input the model cannot take, in one line.

    MLflow's scoring server puts the whole input before the message of an error; this message
    stays as it is.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The line."""
        return self._line

    @message.setter
    def message(self, value: str) -> None:
        """Keeps the line."""


# -- the file ---------------------------------------------------------------------------------


def opened(path: Path) -> torch.nn.Module:
    """The network in a `.pt2` file.

    Raises:
        MlflowException: The file holds pickled objects, which could run code.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if _pickled(archive, name):
                msg = f"{path.name} holds pickled objects ({name}) and is not loaded"
                raise MlflowException(msg, error_code=INVALID_PARAMETER_VALUE)
    module: torch.nn.Module = torch.export.load(path).module()
    return module


def _pickled(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether a member is, or announces, something that torch would read by pickle."""
    folder, _, file = name.rpartition("/")
    if folder.endswith("sample_inputs"):
        return archive.getinfo(name).file_size > 0
    if "/aotinductor" in name or file.startswith(("custom_obj_", "opaque_obj_")):
        return True
    if file.endswith("_config.json"):
        entries = json.loads(archive.read(name)).get("config", {}).values()
        return any(entry.get("use_pickle") for entry in entries)
    return folder.endswith(("weights", "constants")) and file.endswith((".pt", ".pth", ".pkl"))


# -- what it takes ----------------------------------------------------------------------------


def _numbers(value: Any) -> Any:
    """Nested lists of tables read from files, where arrays hold arrays."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_numbers(v) for v in value]
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _shown(entry: Mapping[str, Any]) -> str:
    """An input as a person reads it: features (instances, 64) float32."""
    sizes = [a or str(n) for a, n in zip(entry["axes"], entry["shape"], strict=True)]
    return f"{entry['name']} ({', '.join(sizes)}) {entry['dtype']}"


def array_of(value: Any, entry: Mapping[str, Any]) -> np.ndarray:
    """One input as the array the network takes, or a line that says why not.

    Args:
        value: Array, tensor or nested lists.
        entry: Its entry in `io.json`.

    Raises:
        Refused: Its type, axes or sizes are others, or a number is not finite.
    """
    name, wanted = entry["name"], np.dtype(entry["dtype"])
    try:
        given = np.asarray(_numbers(value))
    except (ValueError, TypeError):
        msg = f"'{name}' is not one array: its rows differ in length; should be {_shown(entry)}"
        raise Refused(msg) from None
    fits = {"f": "fiu", "i": "iu", "u": "iu"}.get(wanted.kind, wanted.kind)
    if given.dtype.kind not in fits and not (wanted.kind in "iu" and _whole(given)):
        what = {"U": "text", "S": "text", "O": "mixed values"}.get(given.dtype.kind)
        msg = f"'{name}' holds {what or given.dtype.name}; should be {_shown(entry)}"
        raise Refused(msg)
    if given.ndim != len(entry["shape"]):
        msg = f"'{name}' has {given.ndim} axes {_size(given.shape)}; should be {_shown(entry)}"
        raise Refused(msg)
    for have, need in zip(given.shape, entry["shape"], strict=True):
        if (have != need and need != -1) or have == 0:
            msg = f"'{name}' has the sizes {_size(given.shape)}; should be {_shown(entry)}"
            raise Refused(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        made = np.ascontiguousarray(given, dtype=wanted)
    _finite(name, made)
    return made


def _whole(given: np.ndarray) -> bool:
    """Whether floating-point numbers, as JSON may have them, are whole ones."""
    if given.dtype.kind != "f":
        return False
    return bool((np.abs(given) < 2**53).all() and (given == np.round(given)).all())


def _finite(name: str, made: np.ndarray) -> None:
    if made.dtype.kind != "f" or np.isfinite(made).all():
        return
    first = np.argwhere(~np.isfinite(made))[0]
    kind = "NaN" if np.isnan(made[tuple(first)]) else "an infinite value"
    msg = f"'{name}' holds {kind}, first at {_size(first)}"
    raise Refused(msg)


def _size(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(str(int(n)) for n in sizes[:8]) + ("" if len(sizes) < 9 else ", …") + ")"


def checked(
    given: Mapping[Any, Any], entries: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """All inputs by name, in the network's order.

    Raises:
        Refused: One is missing, unknown or wrong, or two disagree about a size.
    """
    names = [e["name"] for e in entries]
    takes = "the model takes " + " and ".join(_shown(e) for e in entries)
    missing = [n for n in names if n not in given]
    unknown = [str(k)[:40] for k in given if k not in names]
    if missing or unknown:
        what = f"input '{missing[0]}' is missing" if missing else f"unknown input '{unknown[0]}'"
        msg = f"{what}; {takes}"
        raise Refused(msg)
    made = {e["name"]: array_of(given[e["name"]], e) for e in entries}
    sizes: dict[str, tuple[int, str]] = {}
    for entry in entries:
        for axis, size in zip(entry["axes"], made[entry["name"]].shape, strict=True):
            if axis is None:
                continue
            known, owner = sizes.setdefault(axis, (size, entry["name"]))
            if known != size:
                msg = f"'{entry['name']}' has {size} for {axis}, '{owner}' has {known}"
                raise Refused(msg)
    return made


# -- the model --------------------------------------------------------------------------------


class Scorer(PythonModel):
    """Named arrays to named arrays, a table to a table."""

    def load_context(self, context: Any) -> None:
        """Read the network and what it takes and gives."""
        told = json.loads(Path(context.artifacts["io.json"]).read_text(encoding="utf-8"))
        self.inputs: list[dict[str, Any]] = told["inputs"]
        self.outputs: list[dict[str, Any]] = told["outputs"]
        self.network = opened(Path(context.artifacts["model.pt2"]))
        firsts = {(e["axes"] or [None])[0] for e in (*self.inputs, *self.outputs)}
        self.batched = len(firsts) == 1 and None not in firsts
        if told.get("notice"):
            logging.getLogger("zoo").warning(told["notice"])

    # MLflow derives a signature from any other hint; ours stands in MLmodel.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> Any:
        """Run the network.

        Args:
            context: MLflow's; unused.
            model_input: Arrays by name gives arrays by name. A table with a column an input, one
                item a row, gives a table with a column an output. A list of dictionaries gives a
                list of dictionaries. A single input needs no name.
            params: Unused.

        Raises:
            Refused: The input does not fit; the message is one line.
        """
        given: Any = model_input
        if isinstance(given, pd.DataFrame):
            columns = [e["name"] for e in self.outputs]
            made = self._items(given.to_dict(orient="records"))
            return pd.DataFrame(made, index=given.index, columns=columns)
        if isinstance(given, Mapping):
            return self._run(checked(given, self.inputs))
        if isinstance(given, list) and given and all(isinstance(r, Mapping) for r in given):
            return self._items(given)
        if len(self.inputs) == 1:
            return self._run(checked({self.inputs[0]["name"]: given}, self.inputs))
        msg = "inputs have names: " + " and ".join(_shown(e) for e in self.inputs)
        raise Refused(msg)

    def _run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with torch.inference_mode():
                made = self.network(*(torch.from_numpy(v) for v in arrays.values()))
        except (RuntimeError, AssertionError, ValueError) as error:
            sizes = ", ".join(f"{k} {_size(v.shape)}" for k, v in arrays.items())
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            msg = f"the model does not take these sizes: {sizes} ({first})"
            raise Refused(msg) from None
        outputs = (made,) if isinstance(made, torch.Tensor) else made
        names = [e["name"] for e in self.outputs]
        return {k: v.numpy() for k, v in zip(names, outputs, strict=True)}

    def _items(self, rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
        """One item a row: its inputs come without the batch's axis where there is one."""
        found: list[dict[str, Any]] = []
        for at, group in self._groups(rows):
            try:
                found += self._group(group)
            except Refused as error:
                where = f"row {at}" if len(group) == 1 else f"rows {at} to {at + len(group) - 1}"
                msg = f"{where}: {error.message}"
                raise Refused(msg) from None
        return found

    def _groups(
        self, rows: Sequence[Mapping[Any, Any]]
    ) -> Iterator[tuple[int, list[Mapping[Any, Any]]]]:
        """Neighbouring rows of the same sizes, a few at once, with the number of the first."""
        group: list[Mapping[Any, Any]] = []
        before: Any = None
        for number, row in enumerate(rows):
            sizes = {k: _sizes_of(v) for k, v in row.items()}
            each = sum(math.prod(s) for s in sizes.values())
            most = min(_TOGETHER, _NUMBERS // max(1, each)) if self.batched else 1
            if group and (sizes != before or len(group) >= most):
                yield number - len(group), group
                group = []
            group.append(row)
            before = sizes
        if group:
            yield len(rows) - len(group), group

    def _group(self, rows: list[Mapping[Any, Any]]) -> list[dict[str, Any]]:
        if not self.batched:
            made = self._run(checked(rows[0], self.inputs))
            alone = {e["name"] for e in self.outputs if e["shape"][:1] == [1]}
            return [{k: _cell(v[0] if k in alone else v) for k, v in made.items()}]
        joined = {k: [_numbers(row[k]) for row in rows] for k in rows[0]}
        made = self._run(checked(joined, self.inputs))
        return [{k: _cell(v[i]) for k, v in made.items()} for i in range(len(rows))]


def _sizes_of(value: Any) -> tuple[int, ...]:
    """Sizes along the first entries: enough to see which rows can go together."""
    sizes = []
    while isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and len(value):
        sizes.append(len(value))
        value = value[0]
    return tuple(sizes)


def _cell(value: Any) -> Any:
    """A number as a number, more as an array."""
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else array


mlflow.models.set_model(Scorer())
