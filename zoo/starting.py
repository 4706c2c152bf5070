"""What a training starts from: weights of a run, a checkpoint, a registered name or a file.

Everything whose name and shape fit is taken; a head for other classes begins anew. What was taken
and what was not is told, since a training that silently began at random looks like one that did
not; so is how inputs are prepared, which must not change unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo import origins
from zoo.config import BaseConfig
from zoo.errors import ConfigError, WeightsError
from zoo.origins import Origin
from zoo.task import Facts, Task
from zoo.tracking import uri_for

LEAST = 0.5
"""Share of a model's parameters that must be taken: less is another model's file."""
WHOLE = 0.9
"""Share of a file's values that fit if it is a part of the model, such as an encoder."""

_LEARNT = ("running_mean", "running_var", "num_batches_tracked")
_MOST_TOLD = 8
_LONGEST = 100  # characters of a fact that is told


@dataclass(frozen=True)
class Taken:
    """What a model took.

    Attributes:
        loaded: Keys whose tensors were taken.
        reshaped: Key -> (shape in the file, shape in the model): these begin anew.
        missing: Keys of the model that the file does not have.
        unused: Keys of the file that the model does not have.
        share: Share of the model's parameters that was taken.
        fixed: Buffers that are no statistics (means and scales of inputs, say) and were replaced
            by other values of the file.
    """

    loaded: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: list[str]
    unused: list[str]
    share: float
    fixed: list[str]


def origin_of(word: str, task: Task[Any], own: Collection[str]) -> Origin:
    """The weights that `weights=` names, under our names.

    Args:
        word: See `origins`.
        task: Reads and converts official files.
        own: Names in the model's state dict, by which a file of our own is known.

    Raises:
        ZooError: There are no such weights, or they cannot be read.
    """
    out = task.config.out
    found = origins.find(word, out, uri_for(task.config, out), task.read)
    if found.task and found.task != task.config.task:
        msg = f"weights={word} are of task '{found.task}', not '{task.config.task}'"
        raise WeightsError(msg)
    if not found.plain or 2 * len(found.state.keys() & set(own)) >= len(found.state):
        return found
    conversion = task.convert(found.state)
    return replace(found, state=conversion.state, dropped=conversion.dropped)


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
    used = _values(fits) / max(1, _values(origin.state))
    if share < LEAST and used < WHOLE:
        msg = (
            f"weights={origin.where}: only {share:.0%} of the model's parameters are in it; it is "
            f"of another model or other sizes{_first(reshaped)}"
        )
        raise WeightsError(msg)
    fixed = [
        k
        for k, v in fits.items()
        if k not in sizes and not k.endswith(_LEARNT) and not torch.equal(v, own[k].cpu())
    ]
    model.load_state_dict(fits, strict=False)
    return Taken(
        sorted(fits),
        reshaped,
        sorted(set(own) - set(origin.state)),
        [*sorted(set(origin.state) - set(own)), *origin.dropped],
        share,
        sorted(fixed),
    )


def _values(state: Mapping[str, Tensor]) -> int:
    return sum(v.numel() for v in state.values())


def lines(taken: Taken, origin: Origin, task: Task[Any], facts: Facts) -> list[str]:
    """What to tell of it, a few lines."""
    told = [f"weights {origin.where}: {taken.share:.1%} of the parameters taken"]
    for key, (theirs, ours) in list(taken.reshaped.items())[:6]:
        told.append(f"  begins anew: {key} is {_size(ours)}, was {_size(theirs)}")
    for what, keys in (
        ("not in the file", taken.missing),
        ("not used", taken.unused),
        ("kept as in the file", taken.fixed),
    ):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            told.append(f"  {what}: {', '.join(keys[:4])}{more}")
    if origin.plain:
        return told + [f"  {line}" for line in _in_force(origin, task, facts)]
    differing = [*_differing(origin.config, task.config), *_other_facts(origin.facts or {}, facts)]
    return told + [f"  trained with {line}" for line in differing]


def _in_force(origin: Origin, task: Task[Any], facts: Facts) -> list[str]:
    """How inputs are prepared where the file does not say, and which settings it asks for."""
    told = []
    prepared = task.preparation(facts)
    if prepared:
        told.append(f"the file does not say how inputs were prepared; in force: {prepared}")
    try:
        words = task.adopt(origin.state).words
    except (ConfigError, WeightsError):  # a backbone, say, tells nothing of the whole
        return told
    mine = task.config.flat()
    for word in words:
        key, _, value = word.partition("=")
        if key in mine and _plainly(mine[key]) != _plainly(value):
            told.append(f"the file looks like {word}, in force: {_plainly(mine[key])}")
    return told[:_MOST_TOLD]


def _plainly(value: Any) -> str:
    """A setting as it is written in a word, whatever its type."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace(" ", "").replace('"', "")


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
    return found[:_MOST_TOLD]


def _other_facts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Short facts (classes, sizes, how inputs are scaled) that are others now."""
    pairs = [(k, json.dumps(theirs[k]), json.dumps(ours[k])) for k in theirs if k in ours]
    short = [(k, a, b) for k, a, b in pairs if a != b and max(len(a), len(b)) <= _LONGEST]
    return [f"{k} {was}, now {now}" for k, was, now in short][:_MOST_TOLD]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape) or "a number"


def _first(reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    for key, (theirs, ours) in reshaped.items():
        return f", such as {key}: {_size(theirs)} in the file, {_size(ours)} in the model"
    return ""
