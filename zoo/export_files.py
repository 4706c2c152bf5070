"""What `zoo export` writes: a network or its weights as one file, and beside it what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch

from zoo import __version__, exporting, files, onnx_file, portable
from zoo.checkpoint import Checkpoint, load_weights
from zoo.conversion import trained
from zoo.errors import ConfigError, ZooError
from zoo.packing import licence_of
from zoo.runs import Run
from zoo.task import NOTICE, Facts, Task

SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "safetensors": portable.SUFFIX}


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: The file; its description is at `path` + `.json`.
        told: The description.
        lines: What to tell.
    """

    path: Path
    told: Mapping[str, Any]
    lines: Sequence[str] = field(default_factory=tuple)


def export(pairs: Sequence[str], form: str, part: str = "", to: Path | None = None) -> Exported:
    """Write the model of `weights=` as one file for use elsewhere.

    Args:
        pairs: `weights=` and settings that go on top of the stored ones.
        form: `pt2`, `onnx` or `safetensors`.
        part: `served` (as it is where nothing is said) or `network`; weights are the network's.
        to: The file; None: named after task and weights, in the working directory.

    Raises:
        ConfigError: A word is wrong, the task cannot be exported, or a package is missing.
        ZooError: Weights cannot be found or read, or the file differs from the network.
    """
    if form not in SUFFIXES:
        msg = f"format={form}: one of {', '.join(SUFFIXES)} is needed"
        raise ConfigError(msg)
    parts = get_args(exporting.Part)
    allowed = ("network",) if form == "safetensors" else parts
    chosen = part or allowed[0]
    if chosen not in allowed:
        msg = f"part={part}: {form} is written of {' or '.join(allowed)}"
        raise ConfigError(msg)
    if to is not None and to.suffix != SUFFIXES[form]:
        msg = f"to={to}: a {form} file ends in {SUFFIXES[form]}"
        raise ConfigError(msg)
    if to is not None:  # before minutes of work
        files.check_place(to, f"to={to}")
        files.check_place(description_of(to), f"to={to}")
    task, found, facts = trained(pairs)
    path = to or Path(f"{_stem(task, found)}-{chosen}{SUFFIXES[form]}")
    told = _about(task, found, facts, form, chosen)
    lines = [str(line) for line in found.meta.get("told", ())]
    if form == "safetensors":
        _weights(path, task, found, facts, told)
    else:
        told, more = _graph(path, task, found, facts, told)
        lines += more
    told |= {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    files.write_json(description_of(path), told)
    return Exported(path, told, lines)


def description_of(path: Path) -> Path:
    """The JSON file beside an exported one."""
    return path.with_name(path.name + ".json")


def _graph(
    path: Path, task: Task[Any], found: Checkpoint, facts: Facts, told: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Trace, write and compare; the description with what was found, and lines to tell."""
    onnx = told["format"] == "onnx"
    if onnx:
        onnx_file.packages()  # before minutes of work
    model = task.model(facts)
    load_weights(model, found)
    made = exporting.prepared(task, model, facts, cast(exporting.Part, told["part"]))
    sides = exporting.described(made)
    program = exporting.traced(made)
    limits = exporting.limits(program, made)
    notes = {**told, **sides, **({"limits": limits} if limits else {})}
    write = onnx_file.write_onnx if onnx else exporting.write_pt2
    tolerance = onnx_file.TOLERANCE if onnx else exporting.PT2_TOLERANCE
    worst = write(program, made, path, notes)
    seen = [exporting.sizes_of(made, inputs) for inputs in exporting.cases(made)]
    sizes = {name: sorted({sizes[name] for sizes in seen}) for name in seen[0]}
    compared = ", ".join(f"{k} {' '.join(map(str, v))}" for k, v in sizes.items())
    lines = [
        f"compared with the network at {compared or 'its one size'}: largest difference "
        f"{worst:.2g} of an output's largest magnitude (allowed {tolerance:g})",
        *(
            f"works for {name} from {low} to {high or 'any'}"
            for name, (low, high) in limits.items()
        ),
    ]
    checked = {"difference": worst, "tolerance": tolerance, "sizes": sizes}
    return notes | {"compared": checked}, lines


def _weights(
    path: Path, task: Task[Any], found: Checkpoint, facts: Facts, told: Mapping[str, Any]
) -> None:
    """Write the weights with settings and facts, and read them back."""
    known = {"licence": told["licence"], "results": told["metrics"]}
    about = known | dict(found.meta.get("about", {}))
    config = task.config.stored()
    portable.write(
        path, found.model, task=task.config.task, config=config, facts=facts, about=about
    )
    again = portable.read(path)
    same = again is not None and all(
        torch.equal(again.state[key], value.cpu()) for key, value in found.model.items()
    )
    if not same:
        path.unlink(missing_ok=True)
        msg = f"{path} was not written as it should be; try another disk"
        raise ZooError(msg)


def _about(
    task: Task[Any], found: Checkpoint, facts: Facts, form: str, part: str
) -> dict[str, Any]:
    """What a consumer should know, without anything of this machine."""
    about = found.meta.get("about", {})
    run = _run_of(found)
    told: dict[str, Any] = {
        "format": form,
        "part": part,
        "task": task.config.task,
        "weights": run.name if run else str(about.get("run") or about.get("source") or ""),
        "classes": facts.get("classes"),
        "licence": str(about.get("licence") or licence_of(task)),
        "metrics": run.results() if run else dict(about.get("results", {})),
        "sample_data": bool(run.info.get("sample")) if run else None,
        "notice": NOTICE if task.medical else None,
        "versions": {"zoo": __version__, "torch": torch.__version__},
        "opset": onnx_file.OPSET if form == "onnx" else None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _run_of(found: Checkpoint) -> Run | None:
    """The run folder whose checkpoint it is."""
    folder = found.path.parent
    if folder.name == "checkpoints" and (folder.parent / "run.json").is_file():
        return Run(folder.parent)
    return None


def _stem(task: Task[Any], found: Checkpoint) -> str:
    """A file name after the weights, with the task in front."""
    run = _run_of(found)
    name = run.name if run else found.path.name.partition(".")[0]
    name = re.sub(r"[^\w\-]+", "-", name).strip("-") or "weights"
    return name if name.startswith(task.config.task) else f"{task.config.task}-{name}"
