"""Run folders: what a training leaves on disk, and how one is found again.

A run is `<out>/<task>-<time>-<id>/` with `run.json` (state), `config.yaml`, `metrics.jsonl`,
`checkpoints/`, `records/`, `figures/` and `report.html`. The folder is the truth; MLflow holds a
copy of it.
"""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from zoo import files
from zoo.config import BaseConfig, to_yaml
from zoo.errors import ConfigError, ResumeError, ZooError
from zoo.privacy import without_credentials

Status = Literal["running", "interrupted", "failed", "finished"]
_PACKAGES = ("torch", "lightning-fabric", "mlflow-skinny", "numpy", "triton", "h5py", "timm")


class Run:
    """One run folder.

    Args:
        path: The folder.

    Raises:
        ZooError: It holds no readable `run.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read run.json again.

        Raises:
            ZooError: It cannot be read.
        """
        try:
            info = json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError) as error:
            msg = f"{self.path} is not a run folder: run.json cannot be read"
            raise ZooError(msg) from error
        if not isinstance(info, dict) or "status" not in info:
            msg = f"{self.path} is not a run folder: run.json is damaged"
            raise ZooError(msg)
        self.info = info

    # -- folders --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The folder's name, which names the run everywhere."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """Every metric, one JSON object a line: step, metric name, value, time."""
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    def pictures(self) -> list[Path]:
        """The pictures, without what an interrupted writer left behind."""
        return sorted(p for p in self.figures.glob("*.png") if not p.name.startswith("."))

    # -- state ----------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """`running`, `interrupted`, `failed` or `finished`."""
        return str(self.info["status"])

    def update(self, **values: Any) -> None:
        """Change entries of run.json, atomically."""
        self.info |= values
        files.write_json(self.path / "run.json", self.info)

    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was started with."""
        path = self.path / "config.yaml"
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(getattr(error, "problem", None) or error)
            msg = f"{path}: cannot be read ({reason.splitlines()[0]}); start a new run"
            raise ResumeError(msg) from error
        if not isinstance(loaded, dict):
            msg = f"{path}: holds no settings; start a new run"
            raise ResumeError(msg)
        return loaded

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line is left out."""
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def adopt(self, config: BaseConfig) -> None:
        """Go on with `config`, which may differ where a resumed run is free (more epochs)."""
        text = _recipe(config)
        if text != (self.path / "config.yaml").read_text():
            files.write_text(self.path / "config.yaml", text)
            self.update(fingerprint=config.fingerprint())

    @property
    def mlflow_id(self) -> str | None:
        """The run's id in MLflow, once it has one."""
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self.path / "tracking.json").read_text())["run_id"])
        return None

    def results(self) -> dict[str, float]:
        """The metrics of the finished run's test splits, by full name."""
        return dict(self.info.get("results") or {})

    def tidy(self) -> None:
        """Remove temporary files of a process that was killed; only under the lock."""
        for path in self.path.rglob(".*"):
            if files.is_temporary(path) and path.is_file():
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing.

        Raises:
            ResumeError: Another process is writing to it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            with lock:
                yield
        except Timeout as error:
            msg = f"run {self.name}: another process is working on it; wait until it ends"
            raise ResumeError(msg) from error


def _recipe(config: BaseConfig) -> str:
    """The configuration without `resume`, which says how a run began and not what it is."""
    return to_yaml(config.model_copy(update={"resume": None}))


def create(config: BaseConfig, extra: Mapping[str, Any], folder: Path | None = None) -> Run:
    """Make a new run folder with its configuration.

    Args:
        config: Resolved configuration; `config.out` is the workspace.
        extra: Further entries of run.json, for instance the data digests.
        folder: Where to make it instead of directly below the workspace (a fold of `zoo cv`).

    Raises:
        ConfigError: No folder can be made there.
    """
    parent = folder or config.out
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = parent / f"{config.task}-{stamp}-{secrets.token_hex(3)}"
    try:
        path.mkdir(parents=True)
        files.write_text(path / "config.yaml", _recipe(config))
        files.write_json(
            path / "run.json",
            {
                "format": 1,
                "task": config.task,
                "preset": config.preset,
                "seed": config.seed,
                "status": "running",
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "fingerprint": config.fingerprint(),
                "environment": environment(),
                **extra,
            },
        )
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        msg = f"out={config.out}: no run folder can be made there ({error.strerror or error})"
        raise ConfigError(msg) from error
    return Run(path)


def every(out: Path) -> list[Run]:
    """All runs below a workspace, folds of cross-validations included, newest last."""
    found = []
    for pattern in ("*/run.json", "*/folds/*/run.json"):
        for file in out.glob(pattern):
            with contextlib.suppress(ZooError):
                found.append(Run(file.parent))
    return sorted(found, key=lambda r: (r.info.get("created", ""), r.name))


def find(word: str, out: Path) -> Run:
    """The run that `word` names: a folder, a folder name or its end, or an MLflow run id.

    Raises:
        ZooError: None or several match.
    """
    path = Path(word).expanduser()
    if (path / "run.json").is_file():
        return Run(path)
    if path.name in ("model.safetensors", "report.html") or path.name.startswith("step-"):
        for parent in path.parents:
            if (parent / "run.json").is_file():
                return Run(parent)
    runs = every(out)
    hits = [r for r in runs if word in (r.name, r.mlflow_id)]
    hits = hits or [r for r in runs if len(word) >= 4 and r.name.endswith(word)]
    if len(hits) == 1:
        return hits[0]
    if hits:
        msg = f"'{word}' names several runs: {', '.join(r.name for r in hits)}"
    else:
        near = ", ".join(r.name for r in runs[-3:]) or "none yet"
        msg = f"no run '{word}' (folder, name or MLflow id) in {out}; newest runs: {near}"
    raise ResumeError(msg)


def unfinished(config: BaseConfig) -> Run | None:
    """The newest run with the same configuration that did not finish.

    One with another `trainer.devices` is the same experiment as well, and taken if there is none
    with this one. Cross-validations and their folds are left to `zoo cv`.
    """
    begun = [
        r
        for r in every(config.out)
        if r.status != "finished" and not {"cv", "parent"} & set(r.info)
    ]
    mine = config.fingerprint()
    same = [r for r in begun if mine in (r.info.get("fingerprint"), r.info.get("auto_batch_size"))]
    same = same or [r for r in begun if same_but_for_devices(r, config)]
    return same[-1] if same else None


def same_but_for_devices(run: Run, config: BaseConfig) -> bool:
    """Whether a run has these settings, `trainer.devices` left aside."""
    try:
        devices = int(run.config()["trainer"]["devices"])
    except (ResumeError, KeyError, TypeError, ValueError):
        return False  # damaged, and perhaps not even of this task
    known = (run.info.get("fingerprint"), run.info.get("auto_batch_size"))
    return config.over(devices).fingerprint() in known


# -- where and with what a run was made ---------------------------------------------------------


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Versions, machine and, inside a checkout, the commit (credentials stripped)."""
    versions = {"python": platform.python_version()}
    for name in ("zoo-medical-remote-reid", *_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    info: dict[str, Any] = {"versions": versions, "platform": platform.platform()}
    top = _git("rev-parse", "--show-toplevel")
    # An installed zoo may lie inside somebody else's repository; that commit says nothing.
    if top and Path(top).resolve() == Path(__file__).resolve().parent.parent:
        info["git"] = {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain")),
            "remote": without_credentials(_git("remote", "get-url", "origin")),
        }
    return info
