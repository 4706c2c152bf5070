"""Model registries as the commands see them: which one, what is in it, what it complains about."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import promotion, registry
from zoo.complaints import absent, complaint
from zoo.errors import ConfigError, TrackingError, ZooError
from zoo.privacy import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUICK, LONG = 30, 300
"""Seconds a store may take over a question, and over a file."""


def store_for(uri: str, out: Path) -> str:
    """A store to look into: `uri`, `MLFLOW_TRACKING_URI`, else that of the workspace.

    Raises:
        TrackingError: None is named and the workspace has none.
    """
    named = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if named:
        return named
    path = (out / "mlflow.db").resolve()
    if not path.is_file():
        msg = f"{out} has no mlflow.db; name the store by --uri or MLFLOW_TRACKING_URI"
        raise TrackingError(msg)
    return f"sqlite:///{path}"


def client_of(uri: str) -> MlflowClient:
    """A client of a store that gives up after two retries, without bars and without chatter.

    Args:
        uri: The store, for runs and for models.
    """
    # A server that is away must cost seconds, not MLflow's default of many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


@contextlib.contextmanager
def asking(uri: str, seconds: int = QUICK) -> Iterator[MlflowClient]:
    """A client of a store whose complaints are told in one line.

    Args:
        uri: The store.
        seconds: How long it may take over an answer.

    Raises:
        TrackingError: Whatever the store answers, without credentials.
    """
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(seconds)  # what trackers set is meant for single metrics
    try:
        yield client_of(uri)
    except ZooError:
        raise
    except Exception as error:  # a store throws whatever its libraries throw
        msg = f"model registry {without_credentials(uri)}: {complaint(error)}; {_hint(error)}"
        raise TrackingError(msg) from error
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _hint(error: Exception) -> str:
    if absent(error):
        return "`zoo models` lists what there is"
    return "--uri names another store"


def registered(name: str) -> str:
    """Name of the registered model: a task or its alias becomes `zoo-<task>`."""
    with contextlib.suppress(ConfigError):
        return f"zoo-{registry.find(name)[0]}"
    return name


def address_of(word: str) -> str | None:
    """`models:/…` for a task or a registered model; None for anything else, such as a run."""
    if word.startswith("models:/"):
        return word
    stem, _, alias = word.partition("@")
    name = registered(stem)
    return f"models:/{name}@{alias or promotion.CHAMPION}" if name.startswith("zoo-") else None


def listed(uri: str) -> list[dict[str, Any]]:
    """Versions of every registered model of the zoo, one a row."""
    rows = []
    with asking(uri) as client:
        names = [m.name for m in client.search_registered_models(max_results=1000)]
        for name in sorted(n for n in names if n.startswith("zoo-")):
            aliases = client.get_registered_model(name).aliases
            for version in promotion.Registry(client, name).versions():
                measure = promotion.of_tags(version.tags)
                mine = [a for a, v in aliases.items() if str(v) == str(version.version)]
                rows.append(
                    {
                        "model": name,
                        "version": str(version.version),
                        "alias": ", ".join(sorted(mine)),
                        "judged by": measure.shown() if measure else "",
                        "promotion": version.tags.get(promotion.PROMOTION, ""),
                        "run": version.tags.get("zoo.run", ""),
                        "sample data": version.tags.get("zoo.sample_data", ""),
                    }
                )
    return rows


def location(client: MlflowClient, name: str, version: str) -> str:
    """Where the files of a version are; it may point to MLflow's own id of a logged model."""
    place = str(client.get_model_version_download_uri(name, version))
    if place.startswith("models:/m-"):
        return str(client.get_logged_model(place.removeprefix("models:/")).artifact_location)
    return place


def download(client: MlflowClient, address: str, uri: str, place: Path) -> None:
    """Copy a model's folder; not by `mlflow.artifacts`, which asks the store of the process.

    Args:
        client: Of the store.
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: The store.
        place: Folder to fill.

    Raises:
        ConfigError: The address is none of these.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    stem, _, alias = address.removeprefix("models:/").partition("@")
    name, _, number = stem.partition("/")
    if alias:
        number = str(client.get_model_version_by_alias(name, alias).version)
    if not name or not number:
        msg = f"{address}: write models:/NAME@ALIAS or models:/NAME/VERSION"
        raise ConfigError(msg)
    source = location(client, name, number)
    repository: Any = get_artifact_repository(source, tracking_uri=uri, registry_uri=uri)
    repository.download_artifacts("", str(place))
