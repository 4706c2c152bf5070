"""What a training starts from: weights of a run, a checkpoint, a registered name or a file.

Everything whose name and shape fit is taken; a head for other classes begins anew. What was taken
and what was not is told, since a training that silently began at random looks like one that did
not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo import checkpoint, registry, runs, weights
from zoo.config import BaseConfig
from zoo.errors import WeightsError
from zoo.states import read_state
from zoo.task import Task

LEAST = 0.5
"""Share of a model's parameters that must be taken: less is another model's file."""

_SUFFIXES = {".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar", ".torch"}


@dataclass(frozen=True)
class Origin:
    """Weights and where they are from.

    Attributes:
        state: Tensors under the task's names.
        where: What to call them.
        config: Settings they were trained with, empty if nobody wrote them down.
        dropped: Keys of a file that have no place in the model, with the reason.
    """

    state: Mapping[str, Tensor]
    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """What a model took.

    Attributes:
        loaded: Keys whose tensors were taken.
        reshaped: Key -> (shape in the file, shape in the model): these begin anew.
        missing: Keys of the model that the file does not have.
        unused: Keys of the file that the model does not have.
        share: Share of the model's parameters that was taken.
    """

    loaded: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: list[str]
    unused: list[str]
    share: float


def origin_of(word: str, task: Task[Any], own: Collection[str]) -> Origin:
    """The weights that `weights=` names.

    Args:
        word: `TASK/NAME` or `backbone/NAME` of the registry, a file, a checkpoint or run folder,
            a run's name or MLflow id.
        task: Converts official files.
        own: Names in the model's state dict, by which a file of our own is known.

    Raises:
        ZooError: There are no such weights, or they cannot be read.
    """
    path = Path(word).expanduser()
    if path.is_file():
        return _of_file(path, task, own)
    known = word.partition("/")[0] in {"backbone", *registry.tasks()} and not path.exists()
    if known and "/" in word:
        return _of_file(weights.pull(word).path, task, own)
    if path.suffix in _SUFFIXES and not path.exists():
        msg = f"weights={word}: no such file"
        raise WeightsError(msg)
    found = held_by(word, task.config.out)
    theirs = found.meta.get("task")
    if theirs != task.config.task:
        msg = f"weights={word} are of task '{theirs}', not '{task.config.task}'"
        raise WeightsError(msg)
    return Origin(found.model, found.path.parent.parent.name, found.meta.get("config", {}))


def held_by(word: str, out: Path) -> checkpoint.Checkpoint:
    """The weights a run, run id or checkpoint folder holds.

    Raises:
        ZooError: There are none, or they are damaged.
    """
    path = Path(word).expanduser()
    if (path / "meta.json").is_file():
        return checkpoint.load(path, weights_only=True)
    return checkpoint.best(runs.find(word, out).checkpoints)


def _of_file(path: Path, task: Task[Any], own: Collection[str]) -> Origin:
    """A file of plain tensors, under the task's own names or under official ones."""
    state = read_state(path)
    if 2 * len(state.keys() & set(own)) >= len(state):
        return Origin(state, path.name)
    found = task.convert(state)
    return Origin(found.state, path.name, {}, found.dropped)


def take(model: nn.Module, origin: Origin) -> Taken:
    """Put what fits into a model.

    Raises:
        WeightsError: So little fits that the weights must be another model's.
    """
    own = model.state_dict()
    fits = {k: v for k, v in origin.state.items() if k in own and own[k].shape == v.shape}
    reshaped = {
        k: (tuple(v.shape), tuple(own[k].shape))
        for k, v in origin.state.items()
        if k in own and k not in fits
    }
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(n for k, n in sizes.items() if k in fits) / max(1, sum(sizes.values()))
    if share < LEAST:
        msg = (
            f"weights={origin.where}: only {share:.0%} of the model's parameters are in it; it is "
            f"of another model or other sizes{_first(reshaped)}"
        )
        raise WeightsError(msg)
    model.load_state_dict(fits, strict=False)
    return Taken(
        sorted(fits),
        reshaped,
        sorted(set(own) - set(origin.state)),
        [*sorted(set(origin.state) - set(own)), *origin.dropped],
        share,
    )


def lines(taken: Taken, origin: Origin, config: BaseConfig) -> list[str]:
    """What to tell of it, a few lines."""
    told = [f"weights {origin.where}: {taken.share:.1%} of the parameters taken"]
    for key, (theirs, ours) in list(taken.reshaped.items())[:6]:
        told.append(f"  begins anew: {key} is {_size(ours)}, was {_size(theirs)}")
    for what, keys in (("not in the file", taken.missing), ("not used", taken.unused)):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            told.append(f"  {what}: {', '.join(keys[:4])}{more}")
    told += [f"  trained with {line}" for line in _differing(origin.config, config)]
    return told


def _differing(theirs: Mapping[str, Any], config: BaseConfig) -> list[str]:
    """Settings of data and model that were others when the weights were trained."""
    if not theirs:
        return []
    mine = config.stored()
    found = []
    for part in ("data", "model"):
        was, now = theirs.get(part, {}), mine.get(part, {})
        found += [
            f"{part}.{k}={was[k]}, now {now[k]}"
            for k in was
            if k in now and was[k] != now[k] and k != "root"
        ]
    return found[:8]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "a number"


def _first(reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    for key, (theirs, ours) in reshaped.items():
        return f", such as {key}: {_size(theirs)} in the file, {_size(ours)} in the model"
    return ""
