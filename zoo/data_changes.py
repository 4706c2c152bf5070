"""Whether the data of a resumed run are still those it began with, and what to note if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ResumeError
from zoo.runs import Run

Rows = Sequence[Mapping[str, Any]]


def changed(run: Run, now: Rows) -> dict[str, tuple[str | None, str | None]]:
    """Splits that differ from those a run began with: name -> (digest then, digest now).

    Args:
        run: The run to go on with.
        now: Its data inputs as they are now: `name` and `digest`.
    """
    old = {str(row["name"]): str(row["digest"]) for row in run.info.get("inputs", [])}
    new = {str(row["name"]): str(row["digest"]) for row in now}
    names = [*old, *(name for name in new if name not in old)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def accept(run: Run, now: Rows, force: bool) -> str:
    """Stop if the data changed, unless that is wanted.

    Returns:
        A warning if they changed and `force` is set, else nothing.

    Raises:
        ResumeError: They changed.
    """
    found = changed(run, now)
    if not found:
        return ""
    names = ", ".join(found)
    if not force:
        msg = (
            f"run {run.name}: the data changed since it began ({names}); start a new run, or go "
            "on all the same with --force, which the run then tells"
        )
        raise ResumeError(msg)
    return f"the data changed since {run.name} began ({names}); going on because of --force"


def note(run: Run, now: Rows, step: int) -> None:
    """Write into a run that its data changed after `step`; nothing if they did not."""
    found = changed(run, now)
    if found:
        change = {
            "step": step,
            "splits": {name: {"was": was, "is": new} for name, (was, new) in found.items()},
        }
        run.update(
            inputs=[dict(row) for row in now],
            data_changes=[*run.info.get("data_changes", []), change],
        )


def told(run: Run) -> str:
    """The changes of a run's data in words; empty if there were none."""
    changes = run.info.get("data_changes", [])
    return "; ".join(f"after step {c['step']}: {', '.join(c['splits'])}" for c in changes)
