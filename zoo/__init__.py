"""A model zoo for medical imaging, remote sensing and person re-identification.

`zoo.tasks()` lists the tasks and `zoo.get_task(name)` gives one; nothing heavy is imported here.
"""

from __future__ import annotations

import os

# Both libraries phone home on import unless told not to; the zoo never does so by itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from typing import TYPE_CHECKING, Any

from zoo._version import __version__

if TYPE_CHECKING:
    from torch import nn

    from zoo.registry import TaskEntry
    from zoo.task import Task

__all__ = ["__version__", "get_task", "load", "tasks"]


def tasks() -> dict[str, TaskEntry]:
    """All tasks of the registry by name, the user's own from `ZOO_REGISTRY` included."""
    from zoo import registry

    return registry.tasks()


def get_task(name: str, *overrides: str) -> Task[Any]:
    """The task `name` with its configuration, ready to give splits and models.

    Args:
        name: Task name or alias.
        overrides: `key=value` settings as on the command line.

    Raises:
        ConfigError: The task or a key is unknown, or a value is wrong.
    """
    from zoo import config, registry

    resolved = config.resolve([f"task={name}", *overrides])
    made: Task[Any] = registry.load_object(
        resolved.entry.code or "", f"tasks.{resolved.config.task}.code"
    )(resolved.config)
    return made


def load(name: str, weights: str, *overrides: str) -> nn.Module:
    """A trained model in eval mode.

    Args:
        name: Task name or alias.
        weights: What `weights=` takes: a run, a checkpoint, a weights file, a name of
            `zoo weights list`, `models:/NAME@alias`.
        overrides: `key=value` settings on top of those the weights were trained with.

    Raises:
        ConfigError: The weights are of another task, or a setting is wrong.
        WeightsError: The weights are damaged or do not fit.
        ResumeError: There is no such run.
    """
    from zoo.checkpoint import load_weights
    from zoo.conversion import trained

    made, found, facts = trained([f"task={name}", f"weights={weights}", *overrides])
    model = made.model(facts)
    load_weights(model, found)
    return model.eval()
