"""Weights out of MLflow: `models:/NAME/VERSION`, `models:/NAME@alias`, `runs:/ID[/path]`.

Only what holds weights is downloaded, into a folder that goes when it has been read: the portable
file that `zoo publish` puts into a model, or the checkpoint that a run uploaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.complaints import absent, complaint
from zoo.errors import TrackingError, WeightsError, ZooError
from zoo.privacy import without_credentials
from zoo.resuming import offline
from zoo.store import client_of, location

SCHEMES = ("models:/", "runs:/")
WEIGHTS = "weights.safetensors"
"""The portable file inside of a registered model."""

_CHECKPOINT = ("meta.json", "model.safetensors")
_PLAIN = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_MOST_FILES = 10_000


@contextmanager
def downloaded(word: str, uri: str) -> Iterator[tuple[Path, str]]:
    """The weights of a registered model or of a run, for as long as the context is open.

    Args:
        word: `models:/NAME/VERSION`, `models:/NAME@alias`, `models:/NAME/latest`, or
            `runs:/ID[/path]`.
        uri: The tracking server or database.

    Yields:
        A file or a checkpoint folder, and what to call it.

    Raises:
        WeightsError: There is no such model, version, alias or run, or it holds no weights.
        TrackingError: The store cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-", ignore_cleanup_errors=True) as folder:
        try:
            path, where = _fetched(word, uri, Path(folder))
        except ZooError:
            raise
        except Exception as error:  # a store throws whatever its libraries throw
            place, reason = without_credentials(uri), complaint(error)
            if absent(error):
                msg = f"weights={word}: {reason} (in {place}); `zoo models` lists what there is"
                raise WeightsError(msg) from None
            msg = f"weights={word}: {place} {reason}; tracking.uri= names another store"
            raise TrackingError(msg) from None
        yield path, where


def _fetched(word: str, uri: str, folder: Path) -> tuple[Path, str]:
    if offline() and uri.startswith("http"):
        msg = f"weights={word}: ZOO_OFFLINE is set, so {without_credentials(uri)} is not asked"
        raise WeightsError(msg)
    client = client_of(uri)
    models = word.startswith("models:/")
    places, where = (_of_model if models else _of_run)(word, client)
    for place, inside in places:
        found = _inside(_Store(place, uri), inside, folder)
        if found is not None:
            return found, where
    msg = (
        f"weights={word}: neither {WEIGHTS} nor a checkpoint is in it; `zoo publish` registers "
        "models with their weights, and tracking.checkpoints=true uploads those of a run"
    )
    raise WeightsError(msg)


# -- where a name leads -------------------------------------------------------------------------


def _of_model(word: str, client: Any) -> tuple[list[tuple[str, str]], str]:
    """Artifact folders of a model, each with the path inside that was asked for."""
    name = word.removeprefix("models:/").strip("/")
    if "@" in name:
        name, _, alias = name.partition("@")
        version = str(client.get_model_version_by_alias(name, alias).version)
        where = f"models:/{name}@{alias} (version {version})"
    else:
        name, _, version = name.partition("/")
        if name.startswith("m-") and not version:  # MLflow's own id of a logged model
            return [(str(client.get_logged_model(name).artifact_location), "")], word
        if not name or not version:
            msg = f"weights={word}: write models:/NAME/VERSION or models:/NAME@alias"
            raise WeightsError(msg)
        if version == "latest":
            known = client.search_model_versions(f"name='{_quoted(name)}'")
            if not known:
                msg = f"weights={word}: there is no registered model '{name}'"
                raise WeightsError(msg)
            version = str(max(int(v.version) for v in known))
        where = f"models:/{name}/{version}"
    return [(location(client, name, version), "")], where


def _of_run(word: str, client: Any) -> tuple[list[tuple[str, str]], str]:
    """Artifacts of a run, and the models logged in it."""
    run_id, _, inside = word.removeprefix("runs:/").strip("/").partition("/")
    run = client.get_run(run_id)
    places = [(str(run.info.artifact_uri), inside)]
    outputs = getattr(run, "outputs", None)
    for model in getattr(outputs, "model_outputs", None) or []:
        logged = client.get_logged_model(model.model_id)
        # `runs:/ID/NAME` is how people name the model NAME that was logged in a run.
        if not inside or inside == logged.name:
            places.append((str(logged.artifact_location), ""))
    return places, word


def _quoted(name: str) -> str:
    return name.replace("'", "")


# -- what is inside -----------------------------------------------------------------------------


class _Store:
    """The artifacts below an address of MLflow."""

    def __init__(self, place: str, uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._repository: Any = get_artifact_repository(place, tracking_uri=uri, registry_uri=uri)

    def files(self, inside: str) -> list[str]:
        """Paths of all files at or below a path."""
        found: list[str] = []
        waiting = [inside or None]
        while waiting and len(found) < _MOST_FILES:
            for item in self._repository.list_artifacts(waiting.pop()):
                if ".." not in PurePosixPath(item.path).parts:
                    (waiting if item.is_dir else found).append(item.path)
        if not found and inside:  # a file lists nothing below itself
            parent = str(PurePosixPath(inside).parent)
            beside = self._repository.list_artifacts(None if parent == "." else parent)
            found = [i.path for i in beside if i.path == inside and not i.is_dir]
        return sorted(found)

    def get(self, path: str, folder: Path) -> Path:
        return Path(self._repository.download_artifacts(path, str(folder)))


def _inside(store: _Store, inside: str, folder: Path) -> Path | None:
    """The weights at or below a path, downloaded."""
    if PurePosixPath(inside).name in _CHECKPOINT:  # one of its files stands for the checkpoint
        inside = str(PurePosixPath(inside).parent).removeprefix(".")
    there = store.files(inside)
    for path in there:
        if PurePosixPath(path).name == WEIGHTS:
            return store.get(path, folder)
    whole = [str(PurePosixPath(p).parent) for p in there if PurePosixPath(p).name == _CHECKPOINT[0]]
    whole = [p for p in whole if f"{p}/{_CHECKPOINT[1]}".removeprefix("./") in there]
    if whole:
        # Each upload is of the best weights until then, in a folder named after its step.
        newest = max(whole, key=lambda p: PurePosixPath(p).name)
        got = [store.get(f"{newest}/{n}".removeprefix("./"), folder) for n in _CHECKPOINT]
        return got[0].parent
    plain = [p for p in there if p.endswith(_PLAIN)]
    if len(plain) == 1:
        return store.get(plain[0], folder)
    return None
