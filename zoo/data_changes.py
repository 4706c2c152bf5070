"""Whether the data of a resumed run are still those it began with, and what to note if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import ResumeError
from zoo.runs import Run

Rows = Sequence[Mapping[str, Any]]
Changes = dict[str, tuple[str | None, str | None]]


def changed(run: Run, now: Rows) -> Changes:
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
    return judge(run.name, list(changed(run, now)), force)


def judge(name: str, splits: Sequence[str], force: bool) -> str:
    """Stop if splits changed, unless that is wanted.

    Args:
        name: The run.
        splits: Those that changed.
        force: Whether it is wanted.

    Returns:
        A warning if they changed and `force` is set, else nothing.

    Raises:
        ResumeError: They changed.
    """
    if not splits:
        return ""
    names = ", ".join(splits)
    if not force:
        msg = (
            f"run {name}: the data changed since it began ({names}); start a new run, or go "
            "on all the same with --force, which the run then tells"
        )
        raise ResumeError(msg)
    return f"the data changed since {name} began ({names}); going on because of --force"


def note(run: Run, now: Rows, step: int) -> None:
    """Write into a run that its data changed after `step`; nothing if they did not."""
    found = changed(run, now)
    if found:
        write(run, {"step": step}, found, inputs=[dict(row) for row in now])


def write(run: Run, when: Mapping[str, int], found: Changes, **also: Any) -> None:
    """Add a change to those that a run tells.

    Args:
        run: The run.
        when: After which `step`, or in a cross-validation after how many `trainings`.
        found: As `changed` gives it.
        also: Further entries of run.json, written at the same moment.
    """
    splits = {name: {"was": was, "is": new} for name, (was, new) in found.items()}
    changes = [*run.info.get("data_changes", []), {**when, "splits": splits}]
    run.update(data_changes=changes, **also)


def told(run: Run) -> str:
    """The changes of a run's data in words; empty if there were none."""
    changes = run.info.get("data_changes", [])
    return "; ".join(f"{_when(change)}: {', '.join(change['splits'])}" for change in changes)


def _when(change: Mapping[str, Any]) -> str:
    if "step" in change:
        return f"after step {change['step']}"
    return f"after {change['trainings']} trainings"
