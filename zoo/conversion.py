"""From weights without settings to weights that can be used: names, sizes, facts.

An official checkpoint says neither how its inputs were prepared nor what its classes are called.
What its tensors tell is read from them (`Task.adopt`), what only a training set tells is fitted
from one, and all of it is written beside the tensors (`portable`). Nothing is filled in silently.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import files, portable, registry
from zoo.checkpoint import Checkpoint
from zoo.config import resolve
from zoo.errors import ConfigError, WeightsError, ZooError
from zoo.origins import Origin, asked, find
from zoo.states import read_state
from zoo.task import Adoption, Conversion, Facts, Task

HEAD = re.compile(r"(^|[._])classifiers?\.")
"""Keys of what depends on the classes alone: without them a file still starts a training."""

_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Ready:
    """Weights under our names with what is needed to use them.

    Attributes:
        task: With settings that fit the tensors.
        state: Every tensor the file gives, and what follows from settings and facts.
        facts: As they travel with weights of ours.
        conversion: Names as they were and are.
        missing: Keys the model needs and the file does not have: it is of use in a training only.
        added: Keys that were not in the file and follow from settings and facts.
        told: Lines on what was assumed.
    """

    task: Task[Any]
    state: dict[str, Tensor]
    facts: Facts
    conversion: Conversion
    missing: list[str]
    added: list[str]
    told: list[str] = field(default_factory=list)


def trained(pairs: Sequence[str]) -> tuple[Task[Any], Checkpoint, Facts]:
    """A task with the model of `weights=`, for evaluation and prediction.

    The settings the weights were trained with are the base; `key=value` words go on top, so that
    preprocessing travels with the weights.

    Returns:
        The task, the weights as a checkpoint, and their facts. The checkpoint's `meta` also has
        `about` (where they are from) and `told` (lines on what was assumed of plain tensors).

    Raises:
        ConfigError: `weights=` is missing, a word is wrong, or plain tensors need more than they
            tell.
        ZooError: The weights cannot be found or read.
    """
    from zoo.training import make

    words = dict(p.partition("=")[::2] for p in pairs)
    named = words.get("weights")
    if not named:
        msg = (
            "weights= is missing: a run, its MLflow id, a checkpoint, a weights file, a name of "
            "`zoo weights list`, or models:/NAME@alias"
        )
        raise ConfigError(msg)
    origin = find(named, *asked(pairs), lambda file: first_task(pairs).read(file))
    if "task" in words and origin.task and registry.find(words["task"])[0] != origin.task:
        msg = f"weights={named} are of task '{origin.task}', not '{words['task']}'"
        raise ConfigError(msg)
    if origin.plain:
        ready = adopted(pairs, origin)
        task, state, facts = ready.task, ready.state, ready.facts
        missing, told = ready.missing, ready.told
    else:
        task = make(resolve(list(pairs), {**origin.config, "resume": None}))
        state, facts = dict(origin.state), origin.facts or {}
        missing, told = list(origin.about.get("missing", ())), []
    if missing:
        msg = (
            f"weights={named}: {len(missing)} weights are not in it ({', '.join(missing[:3])}, …); "
            "such a file is to start a training from: zoo train weights=…"
        )
        raise WeightsError(msg)
    meta = {
        **{k: v for k, v in origin.about.items() if k in ("step", "epoch")},
        "task": task.config.task,
        "config": dict(origin.config),
        "facts": facts,
        "about": dict(origin.about),
        "told": told,
    }
    return task, Checkpoint(origin.path, meta, state, {}), facts


def renamed(
    task: Task[Any], state: Mapping[str, Tensor], where: str
) -> tuple[Conversion, Adoption]:
    """Tensors under our names, from official ones or ours, and what they tell.

    Raises:
        WeightsError: They are neither, or contradict each other.
        ConfigError: They do not tell enough of their sizes.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        conversion = task.convert(bare)
    except (WeightsError, ConfigError) as error:
        try:
            adoption = task.adopt(bare)
        except (WeightsError, ConfigError):
            msg = f"{where}: {error}"
            raise WeightsError(msg) from error
        return Conversion(bare, {key: key for key in bare}, {}, []), adoption
    try:
        return conversion, task.adopt(conversion.state)
    except (WeightsError, ConfigError) as error:
        msg = f"{where}: {error}"
        raise type(error)(msg) from error


def adopted(pairs: Sequence[str], origin: Origin, fit: bool = False) -> Ready:
    """Settings and facts for plain tensors; the user's words go on top.

    Args:
        pairs: `key=value` words with `task=`.
        origin: The tensors.
        fit: Fit the facts from the training set of `data.root`.

    Raises:
        ConfigError: A word is wrong, or facts are needed that only a training set tells.
        WeightsError: The tensors are not of this task.
        ZooError: The training set is wrong.
    """
    from zoo.training import make

    words = _with_preset(pairs, origin)
    conversion, adoption = renamed(first_task(pairs, origin), origin.state, origin.where)
    task = make(resolve([*words, *adoption.words, *pairs]))
    adoption = task.adopt(conversion.state)
    told = [f"{origin.where} has no settings; its tensors tell {' '.join(adoption.words)}"]
    told += [f"  {line}" for line in adoption.told]
    facts: Facts = dict(adoption.facts)
    if fit:
        facts |= fitted(task)
        told = told[:1]  # what was assumed is known now
    elif adoption.needs:
        msg = (
            f"{origin.where}: {adoption.needs}; `zoo weights convert task={task.config.task} "
            "from=FILE data.root=DIR` takes them from the training set"
        )
        raise ConfigError(msg)
    state, missing, added = completed(task, facts, conversion, origin.where)
    return Ready(task, state, facts, conversion, missing, added, told)


def first_task(pairs: Sequence[str], origin: Origin | None = None) -> Task[Any]:
    """The task that reads and renames a file, before its sizes are known.

    Raises:
        ConfigError: `task=` is missing or wrong.
    """
    from zoo.training import make

    words = _with_preset(pairs, origin)
    named = [p for p in pairs if p.startswith("task=")]
    if not named:
        whose = f"weights={origin.where}: " if origin else ""
        msg = f"{whose}the file does not say which task it is of; add task=NAME"
        raise ConfigError(msg)
    with contextlib.suppress(ConfigError):
        return make(resolve([*words, *pairs]))
    # A word may be right only together with the sizes that the file tells; then it is judged later.
    return make(resolve([*words, *named]))


def _with_preset(pairs: Sequence[str], origin: Origin | None) -> list[str]:
    """The preset of published weights where the user names none: never the sample's."""
    if any(p.startswith(("preset=", "config=")) for p in pairs):
        return []
    entry = registry.weights().get(origin.where) if origin else None
    if entry is not None:
        return [f"preset={entry.preset}"]
    name = next((p.partition("=")[2] for p in pairs if p.startswith("task=")), "")
    with contextlib.suppress(ConfigError):
        if "paper" in registry.find(name)[1].presets:
            return ["preset=paper"]
    return []


def fitted(task: Task[Any]) -> Facts:
    """The facts of the training set that the settings name.

    Raises:
        ZooError: The data are wrong, or there is no training split.
    """
    from zoo.training import opened

    splits = opened(task)
    if "train" not in splits:
        msg = f"{task.config.data.root}: no training split, so nothing can be fitted from it"
        raise ConfigError(msg)
    facts: Facts = json.loads(json.dumps(task.fit(splits["train"])))
    return facts


def completed(
    task: Task[Any], facts: Facts, conversion: Conversion, where: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The state of a model from converted tensors.

    Buffers that follow from settings and facts (means, scales) are the model's own. A part that is
    absent as a whole may be missing, and so may a head; a part with holes may not.

    Returns:
        The state, the keys that are missing, and those that follow from settings and facts.

    Raises:
        WeightsError: A shape differs, or a part has holes.
    """
    model = task.model(facts)
    own = model.state_dict()
    given = {k: v for k, v in conversion.state.items() if k in own}
    wrong = [
        f"{k} is {tuple(v.shape)}, here {tuple(own[k].shape)}"
        for k, v in given.items()
        if v.shape != own[k].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = f"{where}: does not fit these settings and classes: {'; '.join(wrong[:3])}{more}"
        raise WeightsError(msg)
    for key in [k for k in conversion.state if k not in own]:
        conversion.dropped[key] = "no such weight in this network"
    absent = [k for k in own if k not in given]
    added = _following(task, facts, model, absent)
    missing = [k for k in absent if k not in added]
    there = {_part(k) for k in given}
    ours = all(theirs == name for theirs, name in conversion.renamed.items())
    told = set(missing if ours else conversion.missing)
    holes = [k for k in missing if k in told and _part(k) in there and not HEAD.search(k)]
    if holes:
        msg = f"{where}: incomplete weights, {len(holes)} missing: {', '.join(holes[:5])}"
        raise WeightsError(msg)
    return given | {k: own[k] for k in added}, missing, added


def _part(key: str) -> str:
    """The part of a network that a key belongs to: encoder, decoder, heads."""
    return key.partition(".")[0]


def _following(task: Task[Any], facts: Facts, model: nn.Module, absent: Sequence[str]) -> list[str]:
    """Buffers that follow from settings and facts: two fresh models agree on them.

    Statistics of batches are learnt, though every fresh model begins with the same; what belongs
    to a part that is absent as a whole is absent as well.
    """
    parameters = {name for name, _ in model.named_parameters()}
    first = model.state_dict()
    lost = {_part(k) for k in parameters} - {_part(k) for k in first if k not in absent}
    fixed = [
        k
        for k in absent
        if k not in parameters and not k.endswith(_STATISTICS) and _part(k) not in lost
    ]
    if all(k.endswith(_COUNTER) for k in fixed):
        return fixed
    second = task.model(facts).state_dict()
    return [k for k in fixed if torch.equal(first[k], second[k])]


# -- writing it down ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """What `zoo weights convert` did.

    Attributes:
        path: The portable file.
        task: Its task.
        tensors: How many it holds.
        conversion: Names as they were and are, dropped ones with the reason.
        missing: Keys the model needs and the file does not have.
        added: Keys that follow from settings and facts.
        told: Lines on what was assumed.
    """

    path: Path
    task: str
    tensors: int
    conversion: Conversion
    missing: list[str]
    added: list[str]
    told: list[str]

    def lists(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "path": str(self.path),
            "task": self.task,
            "tensors": self.tensors,
            "renamed": self.conversion.renamed,
            "dropped": self.conversion.dropped,
            "missing": self.missing,
            "added": self.added,
            "told": self.told,
        }


def convert(pairs: Sequence[str], source: str, to: Path | None, out: Path, uri: str) -> Converted:
    """Write somebody's weights as a portable file of ours.

    Args:
        pairs: `key=value` words; with `data.root=` the facts are fitted from that training set.
        source: What `weights=` takes.
        to: The file to write; None: `<task>-<name>.safetensors` here.
        out: The workspace whose runs `source` may name.
        uri: The tracking server that `source` may name a model of.

    Raises:
        ConfigError: A word is wrong, or facts are needed that only a training set tells.
        WeightsError: The weights cannot be read, are not of this task, or have holes.
    """
    if to is not None:
        files.check_place(to, f"to={to}")
    first = first_task(pairs)
    origin = find(source, out, uri, first.read)
    name = first.config.task
    if origin.task and origin.task != name:
        msg = f"from={source}: weights of task '{origin.task}', not '{name}'"
        raise WeightsError(msg)
    words = dict(p.partition("=")[::2] for p in pairs)
    if origin.plain:
        ready = adopted(pairs, origin, fit="data.root" in words)
        config, facts, state = ready.task.config.stored(), ready.facts, ready.state
        report = (ready.conversion, ready.missing, ready.added, ready.told)
    else:
        config, facts, state, report = _with_settings(pairs, origin)
    path = to or Path(f"{name}-{_stem(origin)}{portable.SUFFIX}")
    if path.resolve() == origin.path.resolve():
        msg = f"to={path}: would replace the file that is converted; choose another name"
        raise ConfigError(msg)
    about = {**origin.about, **_history(source, origin), "missing": report[1]}
    portable.write(path, state, task=name, config=config, facts=facts, about=about)
    return Converted(path, name, len(state), *report)


def _with_settings(pairs: Sequence[str], origin: Origin) -> Any:
    """Settings, facts and tensors of weights that have them, with the user's words on top.

    Raises:
        ConfigError: A word is wrong.
        WeightsError: The tensors do not fit the settings any more.
    """
    from zoo.training import make

    task = make(resolve(pairs, {**origin.config, "resume": None}))
    facts, state = origin.facts or {}, dict(origin.state)
    same = Conversion(state, {k: k for k in state}, {}, [])
    missing = list(origin.about.get("missing", ()))
    if not missing:
        completed(task, facts, same, origin.where)
    return task.config.stored(), facts, state, (same, missing, [], [])


def _stem(origin: Origin) -> str:
    """A name for the file without suffixes and what file systems dislike."""
    name = origin.path.name.partition(".")[0] if origin.path.is_file() else origin.where
    return re.sub(r"[^\w\-]+", "-", name.rpartition("/")[2]).strip("-") or "weights"


def _history(source: str, origin: Origin) -> dict[str, Any]:
    """Where converted weights are from; no path of this machine."""
    entry = registry.weights().get(origin.where)
    told: dict[str, Any] = {"source": origin.where}
    if entry is not None:
        told |= {"source": f"{source} ({entry.source})", "licence": entry.licence}
    if origin.path.is_file():
        told["original"] = {"file": origin.path.name, "sha256": files.sha256(origin.path)}
    return told


def check(name: str, file: Path) -> None:
    """Whether a file that is to be kept under a registry name is what the task reads.

    Args:
        name: `TASK/NAME` or `backbone/NAME`.
        file: Not in the cache yet.

    Raises:
        WeightsError: It cannot be read, or is not converted.
    """
    head = name.partition("/")[0]
    if head == "backbone":
        read_state(file)
        return
    task = first_task([f"task={head}", f"preset={registry.weights()[name].preset}"])
    try:
        renamed(task, task.read(file), file.name)
    except ZooError as error:
        msg = f"{file} is not {name}: {error}"
        raise WeightsError(msg) from error
