"""The folder of a model that anybody can load: network, weights, card, results, licence.

It is an MLflow model made from a script and plain files, without a pickle. The network is a graph
of PyTorch's operators, so that neither the zoo nor its dependencies are needed where it is used.
Where a task's model cannot be made into a graph, the zoo's code travels with it and the card says
so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import zoo
from zoo import checkpoint, exporting, files, portable, registry
from zoo.config import resolve
from zoo.errors import ConfigError, ResumeError, ZooError
from zoo.promotion import Measure, measured
from zoo.report import number
from zoo.runs import Run, find
from zoo.task import NOTICE, Export, Facts, Task
from zoo.training import make

_DISTRIBUTION = "zoo-medical-remote-reid"
_SCRIPTS = Path(__file__).parent / "serving_script"
_PINNED = ("torch", "numpy", "mlflow")
_SHORT = 10_000  # numbers of an example above which its JSON is worth shortening


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to be packed.

    Attributes:
        run: Its folder.
        task: With the run's settings.
        model: With the selected weights.
        facts: Stored with them.
        held: The checkpoint they are from.
        measure: What the run is judged by.
    """

    run: Run
    task: Task[Any]
    model: nn.Module
    facts: Facts
    held: checkpoint.Checkpoint
    measure: Measure

    @property
    def name(self) -> str:
        """Name of the registered model: `zoo-<task>`."""
        return f"zoo-{self.task.config.task}"


def opened(word: str, out: Path) -> Trained:
    """A finished run with its model.

    Args:
        word: Run folder, name or MLflow id, or a checkpoint in it.
        out: Workspace that holds the runs.

    Raises:
        ResumeError: There is no such run, or it is not finished.
        ZooError: Its weights are missing or damaged.
    """
    run = find(word, out)
    if "cv" in run.info:
        msg = f"{run.name} is a cross-validation, which has no model; publish one of its folds"
        raise ResumeError(msg)
    if run.status != "finished":
        state = {"failed": "has failed", "running": "still runs"}.get(run.status, "is interrupted")
        msg = f"run {run.name} {state}; what is published is finished: zoo train resume={run.name}"
        raise ResumeError(msg)
    path = Path(word).expanduser()
    named = path if (path / "meta.json").is_file() else None
    held = checkpoint.load(named, weights_only=True) if named else checkpoint.best(run.checkpoints)
    if named and named.resolve() != checkpoint.best(run.checkpoints).path.resolve():
        msg = f"{named} is not the checkpoint whose results the run reports; publish {run.name}"
        raise ResumeError(msg)
    task = make(resolve([], held.meta["config"] | {"resume": None, "weights": None}))
    facts = held.meta["facts"]
    model = task.model(facts)
    checkpoint.load_weights(model, held)
    return Trained(run, task, model.eval(), facts, held, _measure(run, task))


def _measure(run: Run, task: Task[Any]) -> Measure:
    head = f"{task.config.task}-"
    digests = {
        d["name"].removeprefix(head): d["digest"]
        for d in run.info.get("inputs", [])
        if d["context"] == "evaluation"
    }
    return measured(run.results(), digests, task.selection())


# -- the folder ---------------------------------------------------------------------------------


def pack(source: Trained, folder: Path) -> dict[str, Any]:
    """Write the model folder of a run.

    Args:
        source: From `opened`.
        folder: Does not exist yet.

    Returns:
        What the model takes and gives, as in `io.json`.

    Raises:
        ZooError: The written graph differs from the model, or a file holds a pickle.
    """
    parts = folder.parent / f".{folder.name}-parts"
    parts.mkdir(parents=True)
    try:
        return _packed(source, folder, parts)
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _packed(source: Trained, folder: Path, parts: Path) -> dict[str, Any]:
    task, run = source.task, source.run
    try:
        export = exporting.prepared(task, source.model, source.facts, "served")
    except ConfigError as error:
        reason = str(error)
        told: dict[str, Any] = _paths_in(reason)
        example: dict[str, np.ndarray] | None = None
    else:
        reason = ""
        told = exporting.described(export)
        program = exporting.traced(export)
        notes = {"task": task.config.task, "run": run.name, **told}
        exporting.write_pt2(program, export, parts / "model.pt2", notes)
        example = _example(export)
    told |= {"task": task.config.task, "run": run.name}
    told |= {"notice": NOTICE} if task.medical else {}
    files.write_json(parts / "io.json", told)
    _papers(source, told, reason, parts)
    _save(source, parts, folder, told, example)
    no_pickle(folder)
    return told


def _papers(source: Trained, told: Mapping[str, Any], reason: str, parts: Path) -> None:
    """Weights, card, results, report and licence."""
    run, task = source.run, source.task
    portable.write(
        parts / "weights.safetensors",
        source.held.model,
        task=task.config.task,
        config=source.held.meta["config"],
        facts=source.facts,
        about={"run": run.name, "licence": licence_of(task), "digests": source.measure.digests},
    )
    body = {
        "run": run.name,
        "judged_by": {"metric": source.measure.metric, "value": source.measure.value},
        "digests": dict(source.measure.digests),
        "results": run.results(),
        "intervals": run.info.get("intervals", {}),
    }
    files.write_json(parts / "metrics.json", body)
    files.write_text(parts / "card.md", card(source, told, reason))
    files.write_text(parts / "LICENSE", licence_text())
    page = run.path / "report.html"
    if page.is_file():
        shutil.copyfile(page, parts / "report.html")


def _save(
    source: Trained,
    parts: Path,
    folder: Path,
    told: Mapping[str, Any],
    example: dict[str, np.ndarray] | None,
) -> None:
    """Let MLflow write the folder."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    graph = example is not None
    if graph:
        takes, gives = (
            Schema([TensorSpec(np.dtype(e["dtype"]), e["shape"], e["name"]) for e in told[side]])
            for side in ("inputs", "outputs")
        )
        signature = ModelSignature(takes, gives)
        # MLflow then leaves checking to the script: its own messages hold the whole array.
        signature._is_signature_from_type_hint = True
    else:
        signature = ModelSignature(Schema([ColSpec("string", "path")]))
    script = _SCRIPTS / ("serve.py" if graph else "serve_with_zoo.py")
    about = {"zoo": zoo.__version__, "task": source.task.config.task, "run": source.run.name}
    with _quiet():
        pyfunc.save_model(
            path=str(folder),
            python_model=str(script),
            artifacts={p.name: str(p) for p in sorted(parts.iterdir())},
            signature=signature,
            input_example=example,
            pip_requirements=_requirements(source.task, graph),
            code_paths=None if graph else [str(Path(zoo.__file__).parent)],
            metadata={"zoo": about | ({"notice": NOTICE} if source.task.medical else {})},
        )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)
    _forget_places(folder)


def _forget_places(folder: Path) -> None:
    """Take out of MLmodel where its parts lay on this machine; names inside the folder suffice."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = Path(flavor["model_code_path"]).name
    for item in flavor["artifacts"].values():
        item["uri"] = item["path"]
    model.save(str(folder / "MLmodel"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow's hints are for those who write such scripts, not for those who publish."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _requirements(task: Task[Any], graph: bool) -> list[str]:
    """Packages with the versions it was written with."""
    names: list[str] = list(_PINNED)
    if not graph:
        entry = registry.find(task.config.task)[1]
        for text in metadata.requires(_DISTRIBUTION) or []:
            need = re.match(r"[\w.-]+", text)
            extra = re.search(r"extra == ['\"]([\w-]+)['\"]", text)
            if need and (extra is None or extra[1] in entry.extras):
                names.append(need[0])
    pins = {}
    for name in dict.fromkeys(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            pins[name] = metadata.version(name).partition("+")[0]  # +cpu is no release
    return [f"{name}=={version}" for name, version in pins.items()]


def _example(export: Export) -> dict[str, np.ndarray]:
    """The smallest of the task's own inputs."""
    every = [export.inputs, *export.others]
    chosen = min(every, key=lambda inputs: sum(v.numel() for v in inputs.values()))
    return {name: _short(value) for name, value in chosen.items()}


def _short(value: Tensor) -> np.ndarray:
    """Large examples in 1/256, whose decimals are few: the example is stored as JSON."""
    if value.is_floating_point() and value.numel() > _SHORT:
        value = (value * 256).round() / 256
    made: np.ndarray = value.numpy()
    return made


def _paths_in(reason: str) -> dict[str, Any]:
    """What a model that brings the zoo along takes: files, as `zoo predict` does."""
    entry = {"dtype": "string", "shape": [-1], "axes": ["files"]}
    about = "files or folders where the model runs, as `zoo predict input=` takes them"
    return {
        "inputs": [{"name": "path", "about": about, **entry}],
        "outputs": [],
        "with_zoo": reason,
    }


def no_pickle(folder: Path) -> None:
    """Make sure that nothing in a folder is or holds a pickle.

    Raises:
        ZooError: Something does; the message names it.
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inner = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = [
                    i.filename
                    for i in archive.infolist()
                    if i.filename.endswith((".pkl", ".pickle"))
                    or (i.file_size and i.filename.endswith((".pt", ".pth")))
                    or "_obj_" in i.filename
                ]
        if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib") or inner:
            msg = f"{path.relative_to(folder)}: holds a pickle ({', '.join(inner[:2]) or 'whole'})"
            raise ZooError(msg)


# -- papers -------------------------------------------------------------------------------------


def licence_text() -> str:
    """The zoo's licence, as installed or as it lies in the checkout.

    Raises:
        ZooError: It is nowhere to be found.
    """
    found = [f.locate() for f in metadata.files(_DISTRIBUTION) or [] if f.name == "LICENSE"]
    for path in (*map(Path, map(str, found)), Path(__file__).parents[1] / "LICENSE"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    msg = "the zoo's LICENSE is missing; install it again"
    raise ZooError(msg)


def licence_of(task: Task[Any]) -> str:
    """Licence of the zoo, and those of published weights the training started from."""
    own = str(metadata.metadata(_DISTRIBUTION)["License-Expression"] or "MIT")
    known = registry.weights()
    used = [v for v in task.config.flat().values() if isinstance(v, str) and v in known]
    return "; ".join([own, *(f"started from {v} ({known[v].licence})" for v in used)])


def card(source: Trained, told: Mapping[str, Any], reason: str) -> str:
    """What a version is, what it was measured at, and the task's own card."""
    run, task = source.run, source.task
    entry = registry.find(task.config.task)[1]
    sample = bool(run.info.get("sample"))
    intervals = run.info.get("intervals", {})
    rows = [
        f"| {k} | {number(v)} | "
        + (" to ".join(number(x) for x in intervals[k]) if k in intervals else "")
        + " |"
        for k, v in run.results().items()
    ]
    digests = ", ".join(f"{k} {v}" for k, v in source.measure.digests.items())
    lines = [
        f"# {source.name}: {entry.title}",
        "",
        *([NOTICE, ""] if task.medical else []),
        *(["Trained on the synthetic sample data set: it shows that the program works.", ""]
          if sample else []),
        f"Run {run.name}, preset {task.config.preset}, zoo {zoo.__version__}. "
        f"Licence: {licence_of(task)}. Test data: {digests}.",
        "",
        *([f"The network could not be made into a graph, so the zoo's code travels with it: "
           f"{reason}", ""] if reason else []),
        "## What it takes and gives",
        "| | type | sizes | what it is |",
        "|---|---|---|---|",
        *(_row(e) for side in ("inputs", "outputs") for e in told[side]),
        "",
        "## Results of this version",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
        *rows,
        "",
        "---",
        "",
        entry.card_text(),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(entry: Mapping[str, Any]) -> str:
    sizes = [a or str(n) for a, n in zip(entry["axes"], entry["shape"], strict=True)]
    about = str(entry["about"]).replace("|", "\\|").replace("\n", " ")
    return f"| `{entry['name']}` | {entry['dtype']} | ({', '.join(sizes)}) | {about} |"


def summary(source: Trained) -> str:
    """One line for the registry's page."""
    notes = [f"run {source.run.name}", source.measure.shown()]
    if source.run.info.get("sample"):
        notes.append("sample data")
    if source.task.medical:
        notes.append("not for diagnosis")
    return ", ".join(notes)
