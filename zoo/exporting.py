"""Networks that leave the zoo: traced with PyTorch's own operators, written, read back, compared.

A file is kept only if it gives what the network gives, on the task's examples and on other batch
sizes. The ONNX form is in `onnx_file.py`.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from zoo import files
from zoo.errors import ConfigError, ZooError, first_line
from zoo.task import Export, Facts, Task

Part = Literal["served", "network"]
Inputs = dict[str, Tensor]

PT2_TOLERANCE = 1e-5
"""Largest difference of a `.pt2` file, relative to the largest magnitude of an output."""
BATCHES = (1, 3, 5)
"""Batch sizes on which a file is compared, besides those of the task's own examples."""
DESCRIPTION = "zoo.json"
"""Name of the description inside a `.pt2` file."""
_LONGEST = 300  # characters of what a tracer or runtime says


class Named(nn.Module):
    """A module whose inputs have the names of an `Export` and whose outputs are always a tuple.

    Args:
        export: With `module` filled in.

    Raises:
        ValueError: The module gives another number of outputs than the task names, or something
            that is no tensor.
    """

    def __init__(self, export: Export) -> None:
        super().__init__()
        self.network = export.module
        self.outputs = tuple(export.outputs)
        self.dynamic = [export.dynamic.get(name, {}) for name in export.inputs]

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self.run(*inputs)

        # torch.export takes names from the signature; they become those of the file's inputs.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        named = inspect.Signature([inspect.Parameter(n, kind) for n in export.inputs])
        forward.__signature__ = named  # type: ignore[attr-defined]
        self.forward = forward

    def run(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of their names."""
        assert self.network is not None
        self._tie(inputs)
        made = self.network(*inputs)
        outputs = (made,) if isinstance(made, Tensor) else tuple(made)
        if len(outputs) != len(self.outputs) or not all(isinstance(v, Tensor) for v in outputs):
            msg = f"{len(self.outputs)} outputs are named, the module gives {len(outputs)}"
            raise ValueError(msg)
        return outputs

    def _tie(self, inputs: Sequence[Tensor]) -> None:
        """Axes of one name have one size, which a graph has to be told and then holds to."""
        first: dict[str, int] = {}
        for value, axes in zip(inputs, self.dynamic, strict=True):
            for axis, name in axes.items():
                torch._check(value.shape[axis] == first.setdefault(name, value.shape[axis]))


def prepared(task: Task[Any], model: nn.Module, facts: Facts, part: Part = "served") -> Export:
    """What a task exports: its module in eval mode, and inputs on the CPU.

    Args:
        task: Says what its model takes.
        model: With trained weights; is moved to the CPU, put in eval mode, and its parameters
            ask for no gradient any more: whoever loads the file need not turn them off.
        facts: Those stored with the weights.
        part: `served` takes what a consumer has and gives what a consumer wants; `network` is
            the network alone.

    Raises:
        ConfigError: The task cannot be exported; the message says why.
    """
    model.to("cpu").eval()
    made = task.served(model, facts) if part == "served" else task.export(model, facts)
    if made.why_not:
        msg = f"task '{task.config.task}' cannot be exported (part={part}): {made.why_not}"
        raise ConfigError(msg)
    return replace(
        made,
        module=(made.module or model).to("cpu").eval().requires_grad_(False),
        inputs=_on_cpu(made.inputs),
        others=[_on_cpu(inputs) for inputs in made.others],
    )


def _on_cpu(inputs: Mapping[str, Tensor]) -> Inputs:
    return {name: value.detach().cpu() for name, value in inputs.items()}


# -- tracing ------------------------------------------------------------------------------------


def traced(export: Export) -> ExportedProgram:
    """The module as a graph of PyTorch's own operators, which runs without the zoo.

    It takes the inputs in their order, by position, and returns a tuple in the order of
    `export.outputs`, with one output too.

    Args:
        export: As `prepared` gives it.

    Raises:
        ZooError: The module cannot be traced with sizes left open, or needs an operator that is
            not PyTorch's.
    """
    sizes = {
        name: dict.fromkeys(export.dynamic.get(name, {}), Dim.DYNAMIC) for name in export.inputs
    }
    # A size of one would become a constant.
    ones = [size for size, count in sizes_of(export, export.inputs).items() if count < 2]
    inputs = tuple(stretched(export, dict.fromkeys(ones, 2)).values())
    with _definitions(), torch.no_grad():
        try:
            program = torch.export.export(Named(export), inputs, dynamic_shapes=sizes)
        except Exception as error:  # the tracer fails in a hundred ways
            points = [line.strip() for line in str(error).splitlines() if line.startswith("  - ")]
            told = " ".join([first_line(error, _LONGEST), *points[:2]])
            msg = f"the network cannot be traced: {told}"
            raise ZooError(msg) from error
    foreign = sorted(_foreign(program))
    if foreign:
        msg = f"the network needs operators that are not PyTorch's own: {', '.join(foreign)}"
        raise ZooError(msg)
    for node in _nodes(program):
        node.meta.pop("stack_trace", None)  # holds paths of this machine
    program.example_inputs = None  # megabytes that a file would carry along, as a pickle
    return program


@contextmanager
def _definitions() -> Iterator[None]:
    """Blocks run by their definitions: the zoo's own operators would not load elsewhere."""
    before = os.environ.get("ZOO_KERNELS")
    os.environ["ZOO_KERNELS"] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ZOO_KERNELS"]
        else:
            os.environ["ZOO_KERNELS"] = before


def _nodes(program: ExportedProgram) -> Iterator[Node]:
    """Nodes of the graph and of the graphs inside it."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def _foreign(program: ExportedProgram) -> set[str]:
    """Operators that are not PyTorch's own; arithmetic on sizes and control flow are."""
    return {
        str(node.target)
        for node in _nodes(program)
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"
    }


def limits(program: ExportedProgram, export: Export) -> dict[str, tuple[int, int | None]]:
    """Size name -> smallest and largest size the graph takes, for sizes that are not free.

    Args:
        program: From `traced`.
        export: What it was traced from.
    """
    names = dict(zip(program.graph_signature.user_inputs, export.inputs, strict=True))
    found: dict[str, tuple[int, int | None]] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        for axis, size in export.dynamic.get(names[node.name], {}).items():
            symbol = node.meta["val"].shape[axis].node.expr
            bounds = program.range_constraints.get(symbol)
            low = int(bounds.lower) if bounds is not None else 0
            endless = bounds is None or not bounds.upper.is_Integer
            # Two is what the tracer assumes of every size; one is taken as well.
            if low > 2 or not endless:
                found[size] = (low if low > 2 else 1, None if endless else int(bounds.upper))
    return found


# -- what it takes and gives --------------------------------------------------------------------


def outputs_of(export: Export, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the module gives, by name.

    Args:
        export: As `prepared` gives it.
        inputs: By name.

    Raises:
        ValueError: It gives something else than named tensors.
    """
    with torch.no_grad():
        made = Named(export).run(*(inputs[name] for name in export.inputs))
    return dict(zip(export.outputs, made, strict=True))


def described(export: Export) -> dict[str, Any]:
    """Inputs and outputs as JSON.

    Args:
        export: As `prepared` gives it.

    Returns:
        `inputs` and `outputs`, each a list of `name`, `dtype`, `shape` (-1 where it varies),
        `axes` (for each axis the name of its size, None where it is fixed; axes of one name have
        one size) and `about`. An output's axis that varies with a size without being equal to it
        has that size's name in brackets.

    Raises:
        ValueError: The module does not run on any other size.
    """
    outputs = outputs_of(export, export.inputs)
    axes: dict[str, list[str | None]] = {k: [None] * v.dim() for k, v in outputs.items()}
    base = sizes_of(export, export.inputs)
    for name in base:
        other = another(export, name)
        changed = sizes_of(export, other)
        for output, value in outputs_of(export, other).items():
            for axis, (old, new) in enumerate(zip(outputs[output].shape, value.shape, strict=True)):
                if old != new and axes[output][axis] is None:
                    equal = [n for n in changed if (base[n], changed[n]) == (old, new)]
                    axes[output][axis] = equal[0] if equal else f"({name})"
    taken = {
        name: [export.dynamic.get(name, {}).get(axis) for axis in range(value.dim())]
        for name, value in export.inputs.items()
    }
    return {
        "inputs": [_entry(n, v, taken[n], export.about) for n, v in export.inputs.items()],
        "outputs": [_entry(n, v, axes[n], export.about) for n, v in outputs.items()],
    }


def _entry(
    name: str, value: Tensor, axes: Sequence[str | None], about: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": [-1 if a else size for a, size in zip(axes, value.shape, strict=True)],
        "axes": list(axes),
        "about": about.get(name, ""),
    }


def sizes_of(export: Export, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Size name -> size, in the order in which the inputs have them."""
    return {
        size: int(inputs[name].shape[axis])
        for name in export.inputs
        for axis, size in export.dynamic.get(name, {}).items()
    }


def another(export: Export, size: str) -> Inputs:
    """Inputs that differ from the example in one size, or in as few as the task's own do.

    Args:
        export: As `prepared` gives it.
        size: Name of the size.

    Raises:
        ValueError: The module runs on none.
    """
    base = sizes_of(export, export.inputs)
    # Twice as much keeps patches whole, and no stride swallows the difference.
    steps = (base[size], 32, 1)
    candidates = [stretched(export, {size: base[size] + step}) for step in steps]
    candidates += [o for o in map(dict, export.others) if sizes_of(export, o)[size] != base[size]]
    reason = ""
    for inputs in candidates:
        try:
            outputs_of(export, inputs)
        except Exception as error:  # whatever a network says about a size it does not take
            reason = reason or first_line(error, _LONGEST)
            continue
        return inputs
    msg = f"size '{size}' is called dynamic, but the network takes no other: {reason}"
    raise ValueError(msg)


def stretched(export: Export, sizes: Mapping[str, int]) -> Inputs:
    """The example inputs brought to other sizes by repeating them."""
    made = dict(export.inputs)
    for name, axes in export.dynamic.items():
        for axis, size in axes.items():
            if size in sizes:
                index = torch.arange(sizes[size]) % made[name].shape[axis]
                made[name] = made[name].index_select(axis, index)
    return made


# -- comparison ---------------------------------------------------------------------------------


def cases(export: Export) -> Iterator[Inputs]:
    """Inputs on which a file is compared: the task's own, other sizes, random batches."""
    yield dict(export.inputs)
    for other in export.others:
        yield {name: other[name] for name in export.inputs}  # files take them by position
    base = sizes_of(export, export.inputs)
    places = {
        s: {a for axes in export.dynamic.values() for a, n in axes.items() if n == s} for s in base
    }
    batches = [size for size, axes in places.items() if axes == {0}]
    varied = [sizes_of(export, inputs) for inputs in export.others]
    for size in base:
        if size not in batches and all(sizes[size] == base[size] for sizes in varied):
            yield another(export, size)
    rng = torch.Generator().manual_seed(0)
    for count in BATCHES if batches else ():
        yield {
            name: _drawn(value, rng)
            for name, value in stretched(export, dict.fromkeys(batches, count)).items()
        }


def _drawn(value: Tensor, rng: torch.Generator) -> Tensor:
    """Random values in the range of an example, item by item; whole numbers are shuffled."""
    if not value.is_floating_point():
        return value[torch.randperm(len(value), generator=rng)] if value.dim() else value
    if value.numel() and bool((value == value.reshape(-1)[0]).all()):
        return torch.rand(value.shape, generator=rng).to(value.dtype)
    share = torch.rand(len(value), *[1] * (value.dim() - 1), generator=rng).to(value.dtype)
    other = value.flip(tuple(range(value.dim())))
    return value * share + other * (1 - share)


Runner = Callable[[Inputs], Sequence[Tensor]]


def compared(export: Export, runner: Runner, tolerance: float, what: str) -> float:
    """Compare a written file with the module it is of.

    Args:
        export: As `prepared` gives it.
        runner: Runs the file; outputs in their order.
        tolerance: Largest difference, relative to an output's largest magnitude.
        what: What to call the file.

    Returns:
        The largest difference found.

    Raises:
        ZooError: The file cannot be run on some sizes, or differs by more.
    """
    worst = 0.0
    for inputs in cases(export):
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in inputs.items())
        expected = outputs_of(export, inputs)
        try:
            found = runner(inputs)
        except Exception as error:  # a runtime fails in any way
            msg = f"{what} does not run on {shapes}: {first_line(error, _LONGEST)}"
            raise ZooError(msg) from error
        for (name, ours), theirs in zip(expected.items(), found, strict=True):
            difference = _difference(ours, theirs)
            if not difference <= tolerance:
                msg = (
                    f"{what} differs from the network on {shapes}: '{name}' by {difference:.2g}, "
                    f"{tolerance:g} of its largest magnitude is allowed"
                )
                raise ZooError(msg)
            worst = max(worst, difference)
    return worst


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest magnitude; infinite where shapes or NaN differ."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    if not ours.numel():
        return 0.0
    a, b = ours.double(), theirs.double()
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs()).max()
    scale = a[a.isfinite()].abs().max() if bool(a.isfinite().any()) else torch.ones(())
    share = apart / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return float(share.nan_to_num(torch.inf, torch.inf))


# -- the file -----------------------------------------------------------------------------------


def write_pt2(
    program: ExportedProgram, export: Export, path: Path, notes: Mapping[str, Any]
) -> float:
    """Write a traced network as a `.pt2` file that `torch.export.load` reads.

    Args:
        program: From `traced`.
        export: What it was traced from.
        path: The file; it appears when it was compared, or not at all.
        notes: JSON that goes into the file as `zoo.json`.

    Returns:
        The largest difference from the module, relative to the largest magnitude of an output.

    Raises:
        ZooError: The file differs from the module; nothing is left.
    """
    worst = 0.0

    def write(place: Path) -> None:
        nonlocal worst
        extra = {DESCRIPTION: json.dumps(dict(notes))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # views of one tensor are written out; it is compared
            torch.export.save(program, place, extra_files=extra)
        module = torch.export.load(place).module()

        def run(inputs: Inputs) -> Sequence[Tensor]:
            with torch.no_grad():
                made: Sequence[Tensor] = module(*inputs.values())
            return made

        worst = compared(export, run, PT2_TOLERANCE, path.name)

    write_named(path, program, write)
    return worst


def write_named(path: Path, program: ExportedProgram, write: Callable[[Path], None]) -> None:
    """As `files.write_whole`, for formats that put the name of their file into the file.

    Raises:
        ZooError: The disk has not enough room for the program's weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [*program.state_dict.values(), *program.constants.values()]
    size = sum(v.numel() * v.element_size() for v in held if isinstance(v, Tensor))
    files.need_space(path.parent, int(1.05 * size) + 5_000_000)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        write(fresh)
        files.sync(fresh)
        fresh.replace(path)
