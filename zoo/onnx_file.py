"""The ONNX form of an exported network, checked by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from zoo.errors import ZooError, first_line
from zoo.exporting import Inputs, compared, write_named
from zoo.extras import optional
from zoo.task import Export

OPSET = 20
"""Version of ONNX's operators, which onnxruntime reads since 1.17."""
TOLERANCE = 1e-4
"""Largest difference, relative to an output's largest magnitude: another runtime's sums."""
NOTES = "zoo"
"""Key of the description in the file's metadata."""
_PURPOSE = "ONNX files are made by"
_LONGEST = 300  # characters of what the translator or the runtime says


def write_onnx(
    program: ExportedProgram, export: Export, path: Path, notes: Mapping[str, Any]
) -> float:
    """Write a traced network as one ONNX file.

    Args:
        program: From `exporting.traced`.
        export: What it was traced from.
        path: The file; it appears when it was compared, or not at all.
        notes: JSON that goes into the file's metadata.

    Returns:
        The largest difference from the module, relative to the largest magnitude of an output.

    Raises:
        ConfigError: A package is missing.
        ZooError: The network has no ONNX form, is too large for one file, or the file differs
            from the module; nothing is left.
    """
    runtime = packages()
    made = _translated(program, export)
    _plain(made.model, export, notes)
    worst = 0.0

    def write(place: Path) -> None:
        nonlocal worst
        made.save(place, external_data=False)
        session = _session(runtime, place)

        def run(inputs: Inputs) -> Sequence[Tensor]:
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            return [torch.from_numpy(value) for value in found]

        worst = compared(export, run, TOLERANCE, path.name)

    try:
        write_named(path, program, write)
    except (ValueError, RuntimeError) as error:  # more than protobuf's 2 GB
        if isinstance(error, ZooError):
            raise
        msg = f"{path.name} cannot be written: {first_line(error, _LONGEST)}"
        raise ZooError(msg) from error
    return worst


def packages() -> Any:
    """The runtime, once all that is needed is there.

    Raises:
        ConfigError: A package is missing; the message holds the command that installs it.
    """
    for package in ("onnx", "onnxscript"):
        optional(package, _PURPOSE, "export")
    return optional("onnxruntime", _PURPOSE, "export")


def _translated(program: ExportedProgram, export: Export) -> Any:
    with _quiet():
        try:
            return torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(export.inputs),
                output_names=list(export.outputs),
                optimize=True,
                verbose=False,
            )
        except Exception as error:  # the translator fails in a hundred ways
            reason = first_line(error.__cause__ or error, _LONGEST)
            msg = f"the network has no ONNX form: {reason}"
            raise ZooError(msg) from error


def _plain(model: Any, export: Export, notes: Mapping[str, Any]) -> None:
    """Sizes get their names; what tells of this machine (source paths of each node) goes."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, size in export.dynamic.get(value.name, {}).items():
            names[str(value.shape[axis])] = size
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = type(value.shape)([_renamed(size, names) for size in value.shape])
        value.doc_string = export.about.get(value.name, "")
        value.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
    model.metadata_props.clear()
    model.metadata_props[NOTES] = json.dumps(dict(notes))
    model.doc_string = None


def _renamed(size: Any, names: Mapping[str, str]) -> int | str:
    """A fixed size, or an expression such as `4*s12` with our names in it."""
    if isinstance(size, int):
        return size
    return re.sub(r"\b[su]\d+\b", lambda found: names.get(found[0], found[0]), str(size))


def _session(runtime: Any, path: Path) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a runtime fails in any way
        msg = f"onnxruntime does not take the file: {first_line(error, _LONGEST)}"
        raise ZooError(msg) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The translator talks about its progress, about parts of torch it has no use for."""
    loud = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
