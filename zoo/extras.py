"""Packages that only some data need: imported when they are needed, or asked for in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from zoo.errors import ConfigError

_PACKAGES = {"cv2": "opencv-python-headless", "PIL": "pillow"}
"""Module -> package, where their names differ."""


def optional(module: str, purpose: str, extra: str) -> Any:
    """A module of one of the zoo's extras.

    Args:
        module: Dotted name.
        purpose: What it is for, as the beginning of a sentence: "video files are read by".
        extra: The extra of the zoo that brings it.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        name = _PACKAGES.get(missing, missing)
        msg = f"{purpose} the package '{name}', which is missing: pip install '.[{extra}]'"
        raise ConfigError(msg) from None


def opencv(purpose: str, extra: str) -> Any:
    """OpenCV, with its own threads off: its pool does not survive the fork of a worker process.

    Args:
        purpose: As of `optional`.
        extra: Likewise.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    cv2 = optional("cv2", purpose, extra)
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    return cv2
