"""What `weights=` may name, and reading it: runs, checkpoints, files, registries.

| word | what it is |
|---|---|
| `runs/NAME`, `NAME`, an MLflow id | a run of this workspace: its best checkpoint |
| `…/step-00000120` | a checkpoint folder, or its `model.safetensors` |
| `FILE` | portable weights, plain tensors, somebody's checkpoint |
| `TASK/NAME`, `backbone/NAME`, a name of yours | the registry and the cache |
| `models:/NAME/VERSION`, `models:/NAME@alias`, `runs:/ID[/path]` | MLflow |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from zoo import checkpoint, portable, registered, registry, runs, weights
from zoo.config import BaseConfig, TrackingConfig
from zoo.errors import ConfigError, WeightsError
from zoo.states import read_state
from zoo.task import Facts
from zoo.tracking import uri_for

Reader = Callable[[Path], Mapping[str, Tensor]]

_SUFFIXES = {".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar", ".torch"}
_SUFFIXES |= {".npz", ".hdf5", ".h5", ".index"}


@dataclass(frozen=True)
class Origin:
    """Weights and what is known of them.

    Attributes:
        state: Tensors, under our names where there are settings, else as they were stored.
        where: What to call them.
        path: The file or folder that was read.
        task: Whose they are; empty where the file does not say.
        config: Settings they were trained with; empty where the file does not say.
        facts: What travels with them; None where the file does not say.
        about: Where they are from: run, step, source, licence.
        dropped: Keys of the file that have no place in the model, with the reason.
    """

    state: Mapping[str, Tensor]
    where: str
    path: Path
    task: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether nothing but tensors is known."""
        return self.facts is None


def find(word: str, out: Path, uri: str, read: Reader = read_state) -> Origin:
    """The weights that a word names, read and verified.

    Args:
        word: See the table above.
        out: The workspace whose runs are looked at.
        uri: The tracking server or database that `models:/` and `runs:/` are about.
        read: Reads files that are not the zoo's own, such as `Task.read`.

    Raises:
        ZooError: There are no such weights, or they cannot be read or trusted.
    """
    if word.startswith(registered.SCHEMES):
        return _of_mlflow(word, out, uri, read)
    path = Path(word).expanduser()
    if (path / "meta.json").is_file():
        return _of_checkpoint(checkpoint.load(path, weights_only=True))
    if _is_file(path):
        return _of_file(path, path.name, read)
    cached = _of_cache(word, path)
    if cached is not None:
        return _of_file(cached, word, read)
    if path.suffix in _SUFFIXES and not path.exists():
        msg = f"weights={word}: no such file"
        raise WeightsError(msg)
    return _of_checkpoint(checkpoint.best(runs.find(word, out).checkpoints))


def asked(pairs: Sequence[str]) -> tuple[Path, str]:
    """The workspace and the tracking store that `key=value` words are about.

    Raises:
        ConfigError: `tracking.uri=` is no address of a store.
    """
    words = dict(p.partition("=")[::2] for p in pairs)
    out = Path(words.get("out") or "runs").expanduser()
    try:
        tracking = TrackingConfig(uri=words.get("tracking.uri") or None)
    except ValidationError as error:
        msg = f"tracking.uri={words['tracking.uri']}: {error.errors()[0]['msg']}"
        raise ConfigError(msg) from None
    return out, uri_for(BaseConfig.model_construct(task="", preset="", tracking=tracking), out)


def _is_file(path: Path) -> bool:
    """A file; TensorFlow names a checkpoint by the common beginning of its files."""
    return path.is_file() or path.with_name(path.name + ".index").is_file()


def _of_cache(word: str, path: Path) -> Path | None:
    """The file of a name in the registry, or of one that the user added."""
    if path.exists():
        return None
    head, slash, _ = word.partition("/")
    if slash and (head == "backbone" or _is_task(head)):
        return weights.pull(word).path
    item = weights.held(word)
    return None if item is None else item.path


def _is_task(name: str) -> bool:
    known = registry.tasks()
    return name in known or any(name in entry.aliases for entry in known.values())


def _of_mlflow(word: str, out: Path, uri: str, read: Reader) -> Origin:
    if word.startswith("runs:/") and word.count("/") == 1:
        name = word.removeprefix("runs:/")
        mine = [run for run in runs.every(out) if run.mlflow_id == name]
        if len(mine) == 1:  # a run of this workspace has its checkpoints at hand
            return _of_checkpoint(checkpoint.best(mine[0].checkpoints))
    with registered.downloaded(word, uri) as (path, where):
        if path.is_dir():
            found_there = checkpoint.load(path, weights_only=True)
            return _of_checkpoint(found_there, where)
        try:
            return _of_file(path, where, read)
        except WeightsError as error:  # the folder it was downloaded to says nothing to anybody
            raise WeightsError(str(error).replace(str(path), where)) from error


def _of_checkpoint(found: checkpoint.Checkpoint, where: str = "") -> Origin:
    meta = found.meta
    run = found.path.parent.parent.name
    about = {"run": where or run, "step": meta.get("step"), "epoch": meta.get("epoch")}
    return Origin(
        found.model,
        where or run,
        found.path,
        str(meta.get("task", "")),
        meta.get("config", {}),
        meta.get("facts", {}),
        about,
    )


def _of_file(path: Path, where: str, read: Reader) -> Origin:
    if path.name == "model.safetensors" and path.with_name("meta.json").is_file():
        return _of_checkpoint(checkpoint.load(path.parent, weights_only=True))
    if path.suffix == portable.SUFFIX:
        own = portable.read(path)
        if own is not None:
            return Origin(own.state, where, path, own.task, own.config, own.facts, own.about)
    return Origin(read(path), where, path)
