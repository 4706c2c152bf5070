"""Runs side by side: settings that differ, results with their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.config import resolve
from zoo.errors import ConfigError
from zoo.runs import Run


def differences(found: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of settings that differ, and rows of results.

    With two runs a column holds the second minus the first.

    Raises:
        ConfigError: Fewer than two runs, or runs of different tasks.
    """
    if len(found) < 2:
        msg = "compare needs two runs or more"
        raise ConfigError(msg)
    kinds = {r.info["task"] for r in found}
    if len(kinds) > 1:
        msg = f"the runs are of different tasks: {', '.join(sorted(kinds))}"
        raise ConfigError(msg)
    flats = [resolve([], r.config()).config.flat() for r in found]
    keys = dict.fromkeys(k for flat in flats for k in flat)
    settings = [
        {"setting": k} | {r.name: str(f.get(k)) for r, f in zip(found, flats, strict=True)}
        for k in keys
        if len({str(f.get(k)) for f in flats}) > 1
    ]
    data = [{d["name"]: d["digest"] for d in r.info.get("inputs", [])} for r in found]
    settings += [
        {"setting": f"data digest of {n}"}
        | {r.name: d.get(n, "") for r, d in zip(found, data, strict=True)}
        for n in dict.fromkeys(k for d in data for k in d)
        if len({d.get(n) for d in data}) > 1
    ]
    scores = [r.results() for r in found]
    names = dict.fromkeys(k for s in scores for k in s)
    results: list[dict[str, Any]] = []
    for name in names:
        values = [s.get(name) for s in scores]
        row: dict[str, Any] = {"metric": name}
        row |= {r.name: v for r, v in zip(found, values, strict=True)}
        if len(values) == 2:
            first, second = values
            row["difference"] = None if first is None or second is None else second - first
        results.append(row)
    return settings, results
