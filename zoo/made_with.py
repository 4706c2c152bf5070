"""Settings written down beside what they made, so that nothing of other settings mixes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import DataError


def other_settings(place: Path, wanted: Mapping[str, Any], what: str) -> list[str]:
    """Where the settings of now differ from those that made what is there.

    Args:
        place: JSON file of the settings that made it.
        wanted: Those of now, JSON.
        what: What was made, for the message: features, histograms.

    Returns:
        `key=was (now is)` by key; empty where they are the same.

    Raises:
        DataError: The file is missing or damaged, so nobody knows what made the rest.
    """
    try:
        have: Any = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        have = None
    if not isinstance(have, dict):
        msg = f"{place}: is missing or damaged, and there are {what}; name another out"
        raise DataError(msg)
    return [
        f"{k}={have.get(k)} (now {wanted.get(k)})"
        for k in sorted(have.keys() | wanted.keys())
        if have.get(k) != wanted.get(k)
    ]
