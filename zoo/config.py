"""Configuration: defaults < preset < file < key=value; typed, frozen, with did-you-mean.

OmegaConf merges the layers and pydantic validates the result. Nothing heavy is imported, so a
wrong key is reported before torch is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)

from zoo import registry
from zoo.errors import ConfigError
from zoo.privacy import scrubbed, without_credentials

# Stands in for "${" while OmegaConf holds users' values, so that nothing is interpolated.
_DOLLAR = "\ue000{"
# MLflow's own stores; a plain path is the file store, which MLflow no longer has.
_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


AUTO = 0
"""What `trainer.batch_size=auto` is until a size has been found."""


class Section(BaseModel):
    """Base of every configuration section: frozen, and no key passes unread."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _no_address(value: Any) -> Any:
    """Refuse a web address where a path is asked for: as a path it would lose its slashes."""
    if isinstance(value, str) and re.match(r"[A-Za-z][\w+.\-]+://", value):
        msg = "should be a path on this machine, not an address"
        raise ValueError(msg)
    return value


class DataConfig(Section):
    """What every task's data section has."""

    root: Path | None = Field(
        None, description="data set folder or file; none: the task's sample data set"
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="a broken file stops training, or is skipped and counted"
    )

    @field_validator("root", mode="before")
    @classmethod
    def _here(cls, value: Any) -> Any:
        return _no_address(value)

    @field_validator("root", mode="after")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None


class TrainerConfig(Section):
    """How training runs; the same for every task."""

    epochs: int = Field(50, ge=1, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(
        1, description="items a step and process; auto (zoo train): as many as memory holds"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged a step")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; none: off")
    clip_value: float | None = Field(None, gt=0, description="largest gradient entry; none: off")
    eval_every: int = Field(1, ge=1, description="epochs between validations")
    log_every: int = Field(10, ge=1, description="steps between logged training losses")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="device kind")
    devices: int = Field(1, ge=1, description="processes, one a device")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = Field(
        "32-true", description="arithmetic of the forward pass"
    )
    workers: int | None = Field(
        None, ge=0, description="data loading processes; none: 0 on two cores, else 2"
    )
    threads: int | None = Field(
        None, ge=1, description="threads of one operation; none: cores - workers"
    )
    checkpoint_every: str | None = Field(
        None, description="'500' steps or '10m' minutes between checkpoints; none: every epoch"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept beside the best")

    @field_validator("batch_size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if value == "auto":
            return AUTO
        if isinstance(value, int) and value < 1:
            msg = "should be at least 1, or auto"
            raise ValueError(msg)
        return value

    @field_serializer("batch_size")
    def _size_shown(self, value: int) -> int | str:
        return "auto" if value == AUTO else value

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _interval(cls, value: Any) -> str | None:
        if value is None:
            return None
        text = str(value).strip()
        if not re.fullmatch(r"[1-9]\d*|\d*\.?\d+m", text):
            msg = "should be a number of steps ('500') or of minutes ('10m')"
            raise ValueError(msg)
        return text


class TrackingConfig(Section):
    """Where the run is recorded besides its own folder."""

    enabled: bool = Field(True, description="record the run in MLflow as well")
    uri: str | None = Field(
        None, description="tracking server; none: MLFLOW_TRACKING_URI, else <out>/mlflow.db"
    )
    experiment: str | None = Field(None, description="experiment name; none: zoo-<task>")
    name: str | None = Field(None, description="run name; none: the run folder's name")
    tags: dict[str, str] = Field(default_factory=dict, description="extra tags")
    checkpoints: bool = Field(False, description="upload the best checkpoint to MLflow")
    system_metrics: bool = Field(True, description="record processor and memory use in MLflow")

    @field_validator("uri", mode="after")
    @classmethod
    def _store(cls, value: str | None) -> str | None:
        if value is not None and value.partition(":")[0].partition("+")[0] not in _STORES:
            msg = "should be a tracking server or database, such as http://… or sqlite:///…"
            raise ValueError(msg)
        return value


class PredictConfig(Section):
    """What `zoo predict` and `zoo eval` write."""

    out: Path | None = Field(None, description="folder for predictions; none: in the run folder")
    dense: bool = Field(True, description="write dense outputs (attention, masks, maps)")
    foreign: list[Path] | None = Field(
        None,
        description="folders of other methods' outputs to score, DIR or [A,B]; no model",
    )

    @field_validator("foreign", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value

    @field_validator("foreign", mode="after")
    @classmethod
    def _homes(cls, value: list[Path] | None) -> list[Path] | None:
        if value is not None and not value:
            msg = "should name at least one folder"
            raise ValueError(msg)
        return value and [path.expanduser() for path in value]


class BaseConfig(Section):
    """The sections every task has; a task's own class narrows data, model, optim and predict."""

    task: str = Field(description="task name, see `zoo list`")
    preset: str = Field(description="named set of settings, see `zoo info TASK`")
    seed: int = Field(1, ge=0, description="seeds order, augmentation, initial weights, dropout")
    out: Path = Field(Path("runs"), description="workspace that holds runs and mlflow.db")
    data: DataConfig = Field(default_factory=DataConfig, description="data set")
    model: Section = Field(default_factory=Section, description="network")
    optim: Section = Field(default_factory=Section, description="optimiser and schedule")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig, description="training loop")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="records")
    predict: PredictConfig = Field(default_factory=PredictConfig, description="outputs")
    resume: str | None = Field(None, description="'auto', a run folder or an MLflow run id")
    weights: str | None = Field(None, description="run, checkpoint or weights to start from")

    @field_validator("out", mode="before")
    @classmethod
    def _here(cls, value: Any) -> Any:
        return _no_address(value)

    def stored(self) -> dict[str, Any]:
        """The configuration as JSON types, without credentials: what is written down."""
        body: dict[str, Any] = _bare(self.model_dump(mode="json"))
        return body

    def flat(self) -> dict[str, Any]:
        """`stored` as dotted key -> value, in the order of the fields."""
        return dict(_flatten(self.stored()))

    def resized(self, batch_size: int) -> Self:
        """The same settings with another `trainer.batch_size`."""
        trainer = self.trainer.model_copy(update={"batch_size": batch_size})
        return self.model_copy(update={"trainer": trainer})

    def over(self, devices: int) -> Self:
        """The same settings with another `trainer.devices`."""
        trainer = self.trainer.model_copy(update={"devices": devices})
        return self.model_copy(update={"trainer": trainer})

    def fingerprint(self) -> str:
        """Hash of what determines the result; where it is stored and tracked does not."""
        body = self.model_dump(mode="json", exclude={"out", "tracking", "resume", "predict"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Resolved:
    """A validated configuration and how it came about."""

    config: BaseConfig
    entry: registry.TaskEntry
    sample: bool

    @property
    def origin(self) -> str:
        """One line on preset and data, the first thing a run says."""
        data = "the sample data set" if self.sample else f"data {self.config.data.root}"
        return f"{self.config.task}, preset {self.config.preset}, {data}"


def _bare(node: Any) -> Any:
    """`node` with the credentials taken out of every address in it."""
    if isinstance(node, str):
        return without_credentials(node) if "://" in node else node
    if isinstance(node, dict):
        return {k: _bare(v) for k, v in node.items()}
    return [_bare(v) for v in node] if isinstance(node, list) else node


def _flatten(
    node: Mapping[str, Any], prefix: str = "", whole: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; what lies below a key in `whole` is one value, dots and all."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" not in whole:
            yield from _flatten(value, f"{prefix}{key}.", whole)
        else:
            yield f"{prefix}{key}", value


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field, looking through `X | None`."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def keys(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every dotted key of a configuration class with description and default.

    A key that ends in `.*` takes any key below it.
    """
    for name, info in config.model_fields.items():
        inner = _section(info.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")
            continue
        origin = getattr(info.annotation, "__origin__", None)
        yield (
            f"{prefix}{name}" + (".*" if origin is dict else ""),
            info.description or "",
            None if info.is_required() else info.get_default(call_default_factory=True),
        )


def _unknown(given: Sequence[str], config: type[BaseModel]) -> dict[str, str]:
    """A line for each dotted key that the class does not have."""
    known = [key for key, _, _ in keys(config)]
    exact = {k.removesuffix(".*") for k in known}
    open_ = tuple(k[:-1] for k in known if k.endswith(".*"))
    lines = {}
    for key in given:
        if key in exact or key.startswith(open_):
            continue
        below = sorted(k for k in exact if k.startswith(key + "."))
        if below:
            lines[key] = f"'{key}' is a section, not a value; its keys: {', '.join(below)}"
            continue
        near = difflib.get_close_matches(key, exact, n=1, cutoff=0.6) or [
            k for k in exact if k.rpartition(".")[2] == key.rpartition(".")[2]
        ]
        hint = f"did you mean '{near[0]}'?" if near else "see `zoo config` for all keys"
        lines[key] = f"unknown key '{key}'; {hint}"
    return lines


def _task_hint(word: str) -> str:
    try:
        return f"; did you mean 'task={registry.find(word)[0]}'?"
    except ConfigError:
        return ""


def parse(pairs: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Turn `key=value` words into dotted keys and YAML values, plus a line for each wrong one."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][\w.\-]*", key):
            errors.append(f"'{pair}' is not of the form key=value{_task_hint(pair)}")
            continue
        try:
            values[key] = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or "unreadable"
            errors.append(f"{key}: '{text}' is not valid YAML ({reason})")
    return values, errors


def _hide(node: Any) -> Any:
    if isinstance(node, str):
        return node.replace("${", _DOLLAR)
    if isinstance(node, Mapping):
        return {str(k): _hide(v) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [_hide(v) for v in node]
    # Dates and sets are YAML types that no field takes; as text they get a proper message.
    return node if node is None or isinstance(node, (bool, int, float)) else str(node)


def _show(node: Any) -> Any:
    if isinstance(node, str):
        return node.replace(_DOLLAR, "${")
    if isinstance(node, dict):
        return {k: _show(v) for k, v in node.items()}
    return [_show(v) for v in node] if isinstance(node, list) else node


def _nest(flat: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node: Any = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                errors.append(f"'{key}' is set although '{part}' has a value already")
                break
        else:
            node[last] = value
    return tree


def _file(path: Any, errors: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    file = Path(str(path)).expanduser()
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        errors.append(f"config file '{file}' cannot be read ({getattr(error, 'strerror', error)})")
        return {}
    except yaml.YAMLError as error:
        errors.append(f"config file '{file}' is not valid YAML ({' '.join(str(error).split())})")
        return {}
    if body is None:
        return {}
    if not isinstance(body, dict):
        errors.append(f"config file '{file}' holds no mapping of keys to values")
        return {}
    return body


def _validation_lines(error: ValidationError) -> list[str]:
    lines = []
    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"])
        text = e["msg"].removeprefix("Value error, ").removeprefix("Input ")
        given = e.get("input")
        shown = f"={given!r}" if isinstance(given, (str, int, float, bool)) else ""
        lines.append(f"{key}{shown}: {text}" if key else text)
    return lines


def _preset(entry: registry.TaskEntry, name: Any, errors: list[str]) -> dict[str, Any]:
    if isinstance(name, str) and name in entry.presets:
        return entry.presets[name].set | {"preset": name}
    have = ", ".join(entry.presets) or "none"
    errors.append(f"preset={name!r}: the task has no such preset; presets: {have}")
    return {}


def resolve(pairs: Sequence[str], base: Mapping[str, Any] | None = None) -> Resolved:
    """Build the configuration of a run.

    Args:
        pairs: `key=value` words; `task=` is required unless `base` or `config=` has it.
        base: Values below the file and the words, for instance those a run was trained with. A
            base already contains its preset.

    Raises:
        ConfigError: One message that holds every error, one a line.
    """
    words, errors = parse(pairs)
    source = words.pop("config", None)
    body = _file(source, errors)
    given = dict(_flatten(body)) | words
    name = given.get("task", (base or {}).get("task"))
    if name is None:
        # Without a task only the names of the sections are known.
        heads = [k for k in given if k.partition(".")[0] not in BaseConfig.model_fields]
        errors += _unknown(heads, BaseConfig).values()
        errors.append(f"task=NAME is missing; tasks are: {', '.join(registry.tasks())}")
        raise ConfigError(scrubbed("\n".join(errors)))
    try:
        task, entry = registry.built(str(name))
    except ConfigError as error:
        raise ConfigError(scrubbed("\n".join([*errors, str(error)]))) from None
    kind = registry.load_object(entry.config or "", f"tasks.{task}.config")
    whole = [key[:-2] for key, _, _ in keys(kind) if key.endswith(".*")]
    given = dict(_flatten(body, whole=whole)) | words
    wrong = _unknown(list(given), kind)
    errors += [t if key in words else f"{t} (in {source})" for key, t in wrong.items()]
    sample = given.get("data.root", ((base or {}).get("data") or {}).get("root")) is None
    preset = given.get("preset") or (None if base else ("sample" if sample else "paper"))
    layer = _preset(entry, preset, errors) if preset is not None else {}
    # Wrong keys are left out and the rest validated all the same: every error is told at once.
    right = {k: v for k, v in given.items() if k not in wrong}
    tree = _nest(right, errors) | {"task": task}
    if preset is not None:
        tree["preset"] = str(preset)
    merged = OmegaConf.merge(*(OmegaConf.create(_hide(x)) for x in (base or {}, layer, tree)))
    values = _show(OmegaConf.to_container(merged, resolve=False))
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        errors += _validation_lines(error)
    if errors:
        raise ConfigError(scrubbed("\n".join(errors)))
    return Resolved(config, entry, config.data.root is None)


def to_yaml(config: BaseConfig) -> str:
    """The configuration as YAML that `config=FILE` reads back to the same values."""
    return yaml.safe_dump(config.stored(), sort_keys=False, allow_unicode=True)


def choices(config: type[BaseModel], key: str) -> list[str]:
    """The values a key may take, if they are a fixed few; for completion."""
    kind: Any = config
    for part in key.split("."):
        fields: dict[str, Any] = getattr(kind, "model_fields", {})
        info = fields.get(part)
        if info is None:
            return []
        kind = _section(info.annotation) or info.annotation
    if kind is bool:
        return ["true", "false"]
    found = []
    for option in (kind, *get_args(kind)):
        if get_origin(option) is Literal:
            found += [str(v) for v in get_args(option)]
    return found
