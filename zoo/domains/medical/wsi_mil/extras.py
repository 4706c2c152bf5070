"""Packages that only slide reading needs, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from zoo.errors import ConfigError

_PURPOSE = {
    "openslide": "slide files are read by",
    "cv2": "tissue is found by",
    "PIL": "plain images are read by",
    "defusedxml": "outlines in XML are read by",
    "tifffile": "pyramidal TIFF files are written by",
}


def need(module: str) -> Any:
    """A module of the `pathology` extra.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        what = _PURPOSE.get(module.partition(".")[0], "this needs")
        name = error.name or module
        msg = f"{what} the package '{name}', which is missing: pip install '.[pathology]'"
        raise ConfigError(msg) from None
