"""Reads registry.yaml, the one list of tasks, presets, weights and published figures.

No torch, no mlflow and no task code is imported here, so listing stays instant. Entries point to
their code by dotted name (`package.module:Class`), which is imported when a task is used.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from zoo.errors import ConfigError

PATH = Path(__file__).with_name("registry.yaml")
Dotted = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Paper(_Entry):
    """The publication a system comes from."""

    title: str
    venue: str = ""
    url: str


class Preset(_Entry):
    """A named set of overrides on the task's defaults."""

    summary: str
    set: dict[str, Any] = Field(default_factory=dict)


class Published(_Entry):
    """A figure from a publication, never one of ours."""

    model: str = ""
    dataset: str
    metric: str
    value: float | str
    source: str


class Score(_Entry):
    """A figure of ours, with what reproduces it."""

    dataset: str
    metric: str
    value: float
    command: str


class Weights(_Entry):
    """Weights that can be pulled, or that a person has to fetch."""

    summary: str
    urls: list[str] = Field(default_factory=list)
    by_hand: str = Field(default="", description="what the user must do where no address serves")
    file: str = Field(default="", description="file name; none: that of the first address")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")] | None = Field(
        default=None, description="all of it, or its first digits where only those are published"
    )
    size: int | None = Field(default=None, gt=0, description="bytes")
    format: Literal["safetensors", "pth", "npz", "hdf5", "folder"]
    licence: str
    source: str
    use: str = Field(description="the key=value that takes the file")
    preset: str = "paper"
    scores: list[Score] = Field(default_factory=list)

    @model_validator(mode="after")
    def _reachable(self) -> Weights:
        if not self.urls and not self.by_hand:
            msg = "needs urls, or by_hand with what the user must do"
            raise ValueError(msg)
        if not self.urls and not self.file:
            msg = "needs file where there are no urls"
            raise ValueError(msg)
        return self

    @property
    def filename(self) -> str:
        """What the file is called."""
        return self.file or self.urls[0].partition("@")[0].rpartition("/")[2]


class TaskEntry(_Entry):
    """One task. Without `code` it is announced, not built."""

    title: str
    domain: str
    summary: str
    system: str
    paper: Paper
    aliases: list[Name] = Field(default_factory=list)
    config: Dotted | None = None
    code: Dotted | None = None
    extras: list[str] = Field(default_factory=list)
    card: str | None = None
    presets: dict[Name, Preset] = Field(default_factory=dict)
    published: list[Published] = Field(default_factory=list)
    scores: list[Score] = Field(default_factory=list)
    weights: dict[str, Weights] = Field(default_factory=dict)
    folder: Path = Field(default=PATH.parent, exclude=True)

    @property
    def built(self) -> bool:
        """Whether the task can be trained in this version."""
        return self.code is not None and self.config is not None

    def card_text(self) -> str:
        """The model card, or an empty string for an announced task."""
        return (self.folder / self.card).read_text(encoding="utf-8") if self.card else ""


class _Registry(_Entry):
    format: Literal[1]
    tasks: dict[Name, TaskEntry]
    backbones: dict[Name, Weights] = Field(default_factory=dict)


@lru_cache(maxsize=4)
def _parsed(path: Path) -> _Registry:
    """Read and validate one registry file.

    Raises:
        ConfigError: The file is missing, is not YAML, or has a wrong entry; every wrong entry is
            named by its path in the file.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"registry {path}: cannot be read ({error.strerror or error})"
        raise ConfigError(msg) from error
    except yaml.YAMLError as error:
        msg = f"registry {path}: not valid YAML ({' '.join(str(error).split())})"
        raise ConfigError(msg) from error
    try:
        return _Registry.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(p) for p in e['loc']) or '(top level)'}: {e['msg']}"
            for e in error.errors()
        ]
        msg = f"registry {path}: " + "; ".join(lines)
        raise ConfigError(msg) from error


def _read(path: Path) -> dict[str, TaskEntry]:
    tasks = _parsed(path).tasks
    return {k: v.model_copy(update={"folder": path.parent}) for k, v in tasks.items()}


@lru_cache(maxsize=4)
def _load(extra: str | None) -> dict[str, TaskEntry]:
    tasks = _read(PATH)
    if extra:
        path = Path(extra).expanduser()
        own = _read(path)
        for name, entry in own.items():
            if name in tasks:
                msg = f"registry {path}: task '{name}' is already in the zoo; choose another name"
                raise ConfigError(msg)
            tasks[name] = entry
        # The user named the file, so the code beside it is theirs to run; it goes last, because
        # a user's module must not shadow an installed package.
        folder = str(path.resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)
    _check_names(tasks)
    return tasks


def _check_names(tasks: dict[str, TaskEntry]) -> None:
    seen: dict[str, str] = {}
    for name, entry in tasks.items():
        for label in (name, *entry.aliases):
            if label in seen:
                msg = f"registry: '{label}' names both '{seen[label]}' and '{name}'"
                raise ConfigError(msg)
            seen[label] = name


def tasks() -> dict[str, TaskEntry]:
    """All tasks by name, the user's own from `ZOO_REGISTRY` included."""
    return dict(_load(os.environ.get("ZOO_REGISTRY") or None))


def weights() -> dict[str, Weights]:
    """All weights by name: `TASK/NAME`, and `backbone/NAME` for what several tasks start from."""
    found = {f"{task}/{name}": w for task, e in tasks().items() for name, w in e.weights.items()}
    extra = os.environ.get("ZOO_REGISTRY")
    for path in (PATH, *([Path(extra).expanduser()] if extra else [])):
        found |= {f"backbone/{name}": w for name, w in _parsed(path).backbones.items()}
    return found


def find(name: str) -> tuple[str, TaskEntry]:
    """The task called `name`, by its own name or an alias.

    Raises:
        ConfigError: No task has that name; the message has the nearest one.
    """
    known = tasks()
    labels = {label: task for task, e in known.items() for label in (task, *e.aliases)}
    if name in labels:
        return labels[name], known[labels[name]]
    near = difflib.get_close_matches(name, labels, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"tasks are: {', '.join(known)}"
    msg = f"unknown task '{name}'; {hint}"
    raise ConfigError(msg)


def built(name: str) -> tuple[str, TaskEntry]:
    """Like `find`, for a task that can be used.

    Raises:
        ConfigError: The task is unknown or only announced.
    """
    task, entry = find(name)
    if not entry.built:
        ready = ", ".join(n for n, e in tasks().items() if e.built)
        msg = f"task '{task}' is announced but not built in this version; built tasks: {ready}"
        raise ConfigError(msg)
    return task, entry


def load_object(dotted: str, where: str) -> Any:
    """Import `package.module:Name`.

    Raises:
        ConfigError: The module or the name in it does not exist; `where` names the entry.
    """
    module, _, name = dotted.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise  # a dependency of the task is missing, which is another message
        msg = f"registry entry {where}: module '{module}' not found"
        raise ConfigError(msg) from error
    except AttributeError as error:
        msg = f"registry entry {where}: module '{module}' has no '{name}'"
        raise ConfigError(msg) from error
