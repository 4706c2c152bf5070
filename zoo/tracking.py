"""Metrics to the run folder first, and from there to MLflow.

`Metrics` appends to metrics.jsonl in the training process. `Mirror` is one thread that replays
the file into MLflow in order and stores how far it came, so a tracking server that goes away
loses nothing: `sync` replays the rest whenever it is back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import data_changes, files
from zoo.complaints import complaint
from zoo.config import BaseConfig
from zoo.errors import TrackingError
from zoo.privacy import scrubbed, without_credentials
from zoo.runs import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "ceph")
_RETRY_SECONDS = 10.0
_BATCH = 1000  # metrics MLflow takes in one request


@dataclass(frozen=True)
class DataInput:
    """A split as MLflow's run page shows it."""

    name: str
    digest: str
    context: str
    source: str
    items: int


class Metrics:
    """Writes metrics.jsonl: one line a call, one value for ever for a name and step.

    After a resume the steps since the checkpoint are run again with the same numbers; what the
    file has already is not written twice.

    Args:
        run: The run to write to.
    """

    def __init__(self, run: Run) -> None:
        self._path = run.metrics_file
        self._known: set[tuple[str, int]] = set()
        if self._path.exists():
            self._mend()
        for row in run.metrics():
            self._known.update((name, row["step"]) for name in row["values"])
        self._file = self._path.open("a", encoding="utf-8")

    def _mend(self) -> None:
        body = self._path.read_bytes()
        whole = body[: body.rfind(b"\n") + 1]
        if whole != body:  # killed in the middle of a line
            files.write_bytes(self._path, whole)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at an optimiser step; names are `<split>/<snake_case>`."""
        fresh = {k: float(v) for k, v in values.items() if (k, step) not in self._known}
        if not fresh:
            return
        self._known.update((k, step) for k in fresh)
        row = {
            "step": step,
            "time": int(time.time() * 1000),
            "values": {k: v if math.isfinite(v) else None for k, v in fresh.items()},
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def uri_for(config: BaseConfig, out: Path) -> str:
    """Where the run is tracked: `tracking.uri`, `MLFLOW_TRACKING_URI`, else `<out>/mlflow.db`."""
    return (
        config.tracking.uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{(out / 'mlflow.db').resolve()}"
    )


def network_warning(uri: str) -> str:
    """A warning if `uri` is a SQLite file on a network file system, where locks are unreliable."""
    if not uri.startswith("sqlite:///"):
        return ""
    import psutil

    path = Path(uri.removeprefix("sqlite:///")).resolve()
    best = ""
    kind = ""
    for part in psutil.disk_partitions(all=True):
        inside = path.is_relative_to(part.mountpoint)
        if inside and len(part.mountpoint) > len(best):
            best, kind = part.mountpoint, part.fstype
    if kind in _NETWORK_FILE_SYSTEMS:
        return (
            f"{path} is on a network file system ({kind}), where SQLite may lock up; "
            "set tracking.uri to a server or to a local file"
        )
    return ""


class _State:
    """How far MLflow has come, in tracking.json beside the run."""

    def __init__(self, run: Run) -> None:
        self.path = run.path / "tracking.json"
        self.values: dict[str, Any] = {"run_id": None, "lines": 0, "artifacts": {}, "closed": None}
        with contextlib.suppress(OSError, ValueError):
            self.values |= json.loads(self.path.read_text())

    def put(self, **values: Any) -> None:
        self.values |= values
        files.write_json(self.path, self.values)


class _Scrub(logging.Filter):
    """Takes credentials out of what libraries log on their own account."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = scrubbed(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = scrubbed(logging.Formatter().formatException(record.exc_info))
        return True


_SCRUB = _Scrub()


def _quieten() -> None:
    names = ("", "mlflow", "alembic", "urllib3", "sqlalchemy")
    for handler in [h for name in names for h in logging.getLogger(name).handlers]:
        handler.addFilter(_SCRUB)  # adding it twice changes nothing


class _Sender:
    """Brings MLflow up to date with a run folder; every method may be repeated safely."""

    def __init__(self, run: Run, config: BaseConfig, uri: str, inputs: Sequence[DataInput]) -> None:
        # A server that is away must cost seconds, not MLflow's default of many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        _quieten()
        self.run, self.config, self.uri, self.inputs = run, config, uri, inputs
        self.state = _State(run)
        known = self.state.values.get("uri")
        if known and known != without_credentials(uri):  # another store has none of it yet
            self.state.values |= {"run_id": None, "lines": 0, "artifacts": {}, "closed": None}
        self.client: MlflowClient = MlflowClient(uri)
        self._bytes = 0
        self._waiting: list[dict[str, Any]] = []

    def ensure(self) -> str:
        """Create the MLflow run if there is none yet, with params, tags and data inputs."""
        if self.state.values["run_id"]:
            return str(self.state.values["run_id"])
        experiment = self._experiment()
        # A process killed right after creating the run left it behind; it is taken up again.
        left = self.client.search_runs([experiment], f"tags.`zoo.run` = '{self.run.name}'")
        created = left[0] if left else self._create(experiment)
        run_id = str(created.info.run_id)
        self._params(run_id, set(left[0].data.params) if left else set())
        self._inputs(run_id)
        self.state.put(
            run_id=run_id,
            uri=without_credentials(self.uri),
            **{k: self.state.values[k] for k in ("lines", "artifacts", "closed")},
        )
        return run_id

    def _create(self, experiment: str) -> Any:
        name = self.config.tracking.name or self.run.name
        return self.client.create_run(experiment, run_name=name, tags=self._tags())

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.experiment or f"zoo-{self.config.task}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite:")
            place = (self.config.out / "artifacts").resolve().as_uri() if local else None
            try:
                # The kind makes MLflow's pages open with charts of training, not with traces.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return str(self.client.create_experiment(name, place, tags=kind))
            except MlflowException:  # another run created it in between
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            msg = f"MLflow experiment '{name}' is deleted; restore it or set tracking.experiment"
            raise TrackingError(msg)
        return str(found.experiment_id)

    def _tags(self) -> dict[str, str]:
        info = self.run.info
        environment = info.get("environment", {})
        tags = {
            "zoo.task": self.config.task,
            "zoo.preset": self.config.preset,
            "zoo.run": self.run.name,
            "zoo.sample_data": str(bool(info.get("sample"))).lower(),
            "mlflow.source.name": "zoo",
            "mlflow.note.content": str(info.get("origin", "")),
        }
        tags |= {f"zoo.version.{k}": v for k, v in environment.get("versions", {}).items()}
        git = environment.get("git", {})
        if git:
            tags |= {
                "mlflow.source.git.commit": git["commit"],
                "mlflow.source.git.repoURL": git["remote"],
                "zoo.git_dirty": str(git["dirty"]).lower(),
            }
        if info.get("mlflow_parent"):
            tags["mlflow.parentRunId"] = info["mlflow_parent"]
        return tags | dict(self.config.tracking.tags)

    def _params(self, run_id: str, known: set[str]) -> None:
        from mlflow.entities import Param

        # A param can be set once only; a longer training of the same run keeps its first ones.
        flat = self.config.flat()
        params = [Param(k, str(v)[:6000]) for k, v in flat.items() if k not in known]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])

    def _inputs(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=d.name,
                    digest=d.digest,
                    source_type="local",
                    source=json.dumps({"uri": d.source}),
                    profile=json.dumps({"items": d.items}),
                ),
                [InputTag("mlflow.data.context", d.context)],
            )
            for d in self.inputs
        ]
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def metrics(self) -> None:
        """Replay what metrics.jsonl has beyond the stored line."""
        from mlflow.entities import Metric

        run_id = self.ensure()
        self._read()
        while self._waiting:
            batch: list[Metric] = []
            taken = 0
            for row in self._waiting:
                if batch and len(batch) + len(row["values"]) > _BATCH:
                    break
                for name, value in row["values"].items():
                    number = math.nan if value is None else value
                    batch.append(Metric(name, number, row["time"], row["step"]))
                taken += 1
            for start in range(0, len(batch), _BATCH):
                self.client.log_batch(run_id, metrics=batch[start : start + _BATCH])
            del self._waiting[:taken]
            self.state.put(lines=int(self.state.values["lines"]) + taken)

    def _read(self) -> None:
        """Take up the whole lines that were appended to metrics.jsonl since the last time."""
        if not self.run.metrics_file.exists():
            return
        first = self._bytes == 0
        with self.run.metrics_file.open("rb") as file:
            file.seek(self._bytes)
            body = file.read()
        whole = body[: body.rfind(b"\n") + 1]
        self._bytes += len(whole)
        rows = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        self._waiting += rows[int(self.state.values["lines"]) :] if first else rows

    def artifacts(self) -> None:
        """Upload configuration, pictures, report and, on demand, the best checkpoint."""
        run_id = self.ensure()
        paths = [self.run.path / n for n in ("config.yaml", "report.html", "metrics.jsonl")]
        paths += self.run.pictures()
        if self.config.tracking.checkpoints:
            from zoo.checkpoint import marked

            index = marked(self.run.checkpoints)
            name = index.get("best") or index.get("last")
            if name:
                paths += sorted((self.run.checkpoints / name).iterdir())
        sent = dict(self.state.values["artifacts"])
        for path in paths:
            if not path.is_file():
                continue
            key, digest = str(path.relative_to(self.run.path)), files.sha256(path)
            if sent.get(key) != digest:
                folder = str(Path(key).parent)
                self.client.log_artifact(run_id, str(path), None if folder == "." else folder)
                sent[key] = digest
                self.state.put(artifacts=sent)

    def close(self) -> None:
        """Bring the MLflow run to the state of the run folder."""
        run_id = self.ensure()
        self.metrics()
        self.artifacts()
        status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}.get(
            self.run.status, "RUNNING"
        )
        if self.state.values["closed"] != status:
            if status == "RUNNING":
                self.client.update_run(run_id, status=status)
            else:
                self.client.set_terminated(run_id, status=status)
            self.state.put(closed=status)

    def reopen(self) -> None:
        """Mark a resumed run as running again."""
        run_id = self.ensure()
        self.client.update_run(run_id, status="RUNNING")
        self.mark_changes()
        self.state.put(closed=None)

    def mark_changes(self) -> None:
        """Tell that the run's data changed, if they did."""
        changes = data_changes.told(self.run)
        if changes:
            run_id = self.ensure()
            self._inputs(run_id)
            self.client.set_tag(run_id, "zoo.data_changed", changes)


class Mirror:
    """The thread that keeps MLflow up to date while a run trains.

    Args:
        run: The run folder to mirror.
        config: Its configuration.
        uri: The tracking store.
        inputs: The splits, shown as data set inputs.

    Attributes:
        trouble: Why the store could not be reached the last time; empty when all is well.
    """

    def __init__(self, run: Run, config: BaseConfig, uri: str, inputs: Sequence[DataInput]) -> None:
        self.trouble = ""
        self._args = (run, config, uri, inputs)
        self._wake, self._end = threading.Event(), threading.Event()
        self._monitor: Any = None
        self._thread = threading.Thread(target=self._work, name="zoo-mlflow", daemon=True)

    def start(self) -> None:
        """Begin mirroring."""
        self._thread.start()

    def poke(self) -> None:
        """Tell the thread that there are new metrics."""
        self._wake.set()

    def close(self, timeout: float = 60.0) -> None:
        """Replay what is left, upload the artifacts, and end the thread."""
        self._end.set()
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self.trouble = self.trouble or "the tracking store does not answer"

    def _work(self) -> None:
        sender: _Sender | None = None
        while True:
            try:
                if sender is None:
                    sender = _Sender(*self._args)
                    sender.reopen()
                    self._watch(sender)
                if self._end.is_set():
                    if self._monitor is not None:
                        self._monitor.finish()
                    sender.close()
                    self.trouble = ""
                    return
                sender.metrics()
                self.trouble = ""
            except Exception as error:  # whatever a store throws, training must go on
                self.trouble = f"{without_credentials(self._args[2])}: {complaint(error)}"
                if self._end.is_set():
                    return
                self._end.wait(_RETRY_SECONDS)
                continue
            self._wake.wait()
            self._wake.clear()

    def _watch(self, sender: _Sender) -> None:
        if not self._args[1].tracking.system_metrics:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        make: Any = SystemMetricsMonitor  # untyped upstream
        self._monitor = make(sender.ensure(), tracking_uri=sender.uri, resume_logging=True)
        self._monitor.start()


def sync(run: Run, config: BaseConfig, uri: str) -> str:
    """Replay into MLflow whatever it has not got yet of a run folder.

    Returns:
        The run's id in MLflow.

    Raises:
        TrackingError: The store cannot be reached or refuses.
    """
    inputs = [DataInput(**d) for d in run.info.get("inputs", [])]
    try:
        sender = _Sender(run, config, uri, inputs)
        sender.mark_changes()
        sender.close()
        return sender.ensure()
    except Exception as error:
        if isinstance(error, TrackingError):
            raise
        msg = (
            f"tracking store {without_credentials(uri)}: {complaint(error)}; "
            "try `zoo runs sync` later"
        )
        raise TrackingError(msg) from error


def as_rows(inputs: Sequence[DataInput]) -> list[dict[str, Any]]:
    """Data inputs as JSON for run.json, from which `sync` reads them."""
    return [asdict(d) for d in inputs]
