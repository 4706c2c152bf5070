"""Packages that only slide reading needs, imported when they are needed."""

from __future__ import annotations

from typing import Any

from zoo.extras import optional

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
    purpose = _PURPOSE.get(module.partition(".")[0], "this needs")
    return optional(module, purpose, "pathology")
