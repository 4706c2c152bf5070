"""`zoo publish`: a run's model goes to a model registry, where people load it by name.

Everything is uploaded before the version appears, so that a publisher that dies leaves no version
that cannot be loaded. Whether people get it by the alias is decided in `promotion`.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zoo
from zoo import packing, registry, tracking
from zoo.errors import ConfigError
from zoo.packing import Trained
from zoo.progress import Reporter
from zoo.promotion import CHAMPION, PENDING, PROMOTION, Registry, Verdict
from zoo.store import LONG, asking
from zoo.task import NOTICE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Published:
    """A version in the registry.

    Attributes:
        name: Registered model.
        version: Its version.
        fresh: It was registered just now.
        verdict: Whether it has the alias, and why; None if it was there before and stays as it is.
    """

    name: str
    version: str
    fresh: bool
    verdict: Verdict | None


def publish(
    word: str,
    out: Path,
    reporter: Reporter,
    *,
    uri: str = "",
    alias: str = CHAMPION,
    force: bool = False,
) -> Published:
    """Register a finished run's model and promote it if it is better.

    A run is published once: the second time its version is named, and promoted if `force` asks
    for it or if its promotion was never decided.

    Args:
        word: Run folder, name or MLflow id.
        out: Workspace that holds the runs.
        reporter: Tells what happens.
        uri: Store; none: that of the run.
        alias: What a better version takes.
        force: Promote whatever the comparison says.

    Raises:
        ConfigError: The alias is not one.
        ResumeError: There is no such run, or it is not finished.
        TrackingError: The store cannot be reached or refuses.
        ZooError: The model cannot be packed.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", alias) or re.fullmatch(r"latest|v\d+", alias):
        msg = f"--alias {alias}: should be a word such as champion, not a version"
        raise ConfigError(msg)
    source = packing.opened(word, out)
    store = uri or store_of(source)
    with source.run.lock():
        run_id = tracking.sync(source.run, source.task.config, store)
        with asking(store) as client:
            ensure(client, source)
            place = Registry(client, source.name, alias)
            known = _known(place, source)
        fresh = known is None
        if known is None:
            with tempfile.TemporaryDirectory(prefix="zoo-") as top:
                folder = Path(top) / "model"
                reporter.say(f"packing {source.run.name}")
                packing.pack(source, folder)
                with asking(store, LONG) as client:
                    known = _register(client, source, run_id, folder)
        version = str(known.version)
        with asking(store) as client:
            place = Registry(client, source.name, alias)
            undecided = fresh or known.tags.get(PROMOTION) in (PENDING, "abandoned")
            found = place.decide(version, force) if undecided or force else None
    return Published(source.name, version, fresh, found)


def store_of(source: Trained) -> str:
    """The store of a run: `tracking.uri`, `MLFLOW_TRACKING_URI`, else that of its workspace."""
    # Where the run lies now: a workspace may have been moved. A fold lies two folders deeper.
    places = [source.run.path.resolve().parents[i] for i in (0, 2)]
    out = next((p for p in places if (p / "mlflow.db").is_file()), source.task.config.out)
    return tracking.uri_for(source.task.config, out)


def ensure(client: MlflowClient, source: Trained) -> None:
    """Make the registered model if there is none of that name."""
    from mlflow.exceptions import MlflowException

    entry = registry.find(source.task.config.task)[1]
    notice = f" {NOTICE}" if source.task.medical else ""
    tags = {"zoo.task": source.task.config.task}
    tags |= {"zoo.not_for_diagnosis": "true"} if source.task.medical else {}
    try:
        client.create_registered_model(source.name, tags, f"{entry.summary}{notice}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _known(place: Registry, source: Trained) -> ModelVersion | None:
    """The version that holds the same weights of the same run."""
    for version in place.versions():
        same = version.tags.get("zoo.run") == source.run.name
        if same and version.tags.get("zoo.checkpoint") == _digest(source):
            return version
    return None


def _digest(source: Trained) -> str:
    """Weights and facts of the checkpoint, which its metadata are sealed with."""
    seals: dict[str, Any] = source.held.meta["sha256"]
    return f"{seals['model.safetensors'][:16]}-{seals['meta.json'][:8]}"


def _register(client: MlflowClient, source: Trained, run_id: str, folder: Path) -> ModelVersion:
    """Upload the folder as a model of the run, then register it."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    tags = tags_of(source)
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, "model", run_id, tags, model_type="zoo")
    try:
        # The folder says whose it is, as MLflow's own way of logging would have it.
        described = Model.load(str(folder))
        described.run_id, described.model_id = run_id, logged.model_id
        described.artifact_path = "model"
        described.save(str(folder / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        with contextlib.suppress(Exception):
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    return client.create_model_version(
        source.name,
        logged.artifact_location,
        run_id,
        tags=tags | {PROMOTION: PENDING},
        description=packing.summary(source),
        model_id=logged.model_id,
    )


def tags_of(source: Trained) -> dict[str, str]:
    """What the registry tells of a version."""
    config = source.task.config
    tags = {
        "zoo.task": config.task,
        "zoo.run": source.run.name,
        "zoo.preset": config.preset,
        "zoo.checkpoint": _digest(source),
        "zoo.version": zoo.__version__,
        "zoo.licence": packing.licence_of(source.task)[:1000],
        "zoo.sample_data": str(bool(source.run.info.get("sample"))).lower(),
    }
    if source.task.medical:
        tags["zoo.not_for_diagnosis"] = "true"
    return tags | source.measure.tags()
