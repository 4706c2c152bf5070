"""How a training begins: from `key=value` words to a new run, or to one that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zoo import runs
from zoo.config import AUTO, BaseConfig, Resolved, resolve
from zoo.errors import ResumeError
from zoo.place import place
from zoo.runs import Run

# A resumed run may differ in these; anything else would make it another experiment.
_FREE = ("trainer.", "tracking.", "predict.", "out", "resume", "data.root")
_FIXED = ("trainer.batch_size", "trainer.accumulate", "trainer.precision")


@dataclass
class Start:
    """How a training begins: a new run, or one that goes on.

    Attributes:
        resolved: The settings.
        run: The run that goes on.
        note: What to tell first.
        force: Go on although the data changed.
    """

    resolved: Resolved
    run: Run | None = None
    note: str = ""
    force: bool = False


def begin(pairs: Sequence[str], force: bool = False) -> Start:
    """Resolve `key=value` words, and find the run that `resume=` names.

    Args:
        pairs: The words.
        force: Go on with a run although its data changed.

    Raises:
        ConfigError: A key or value is wrong.
        ResumeError: The run does not exist, is finished, or was made with other settings.
    """
    words = dict(p.partition("=")[::2] for p in pairs)
    named = words.get("resume") or None
    if named is None or named == "auto":
        resolved = resolve(pairs)
        if resolved.config.resume != "auto":
            return Start(resolved)
        run = runs.unfinished(resolved.config)
        if run is None:
            note = "resume=auto: no unfinished run with these settings; a new one begins"
            return Start(resolved, note=note)
        return Start(_of_size(resolved, resolve([], run.config()).config), run, force=force)
    out = Path(words.get("out") or "runs")
    run = runs.find(named, out)
    if "cv" in run.info:
        msg = f"{run.name} is a cross-validation; continue it with zoo cv resume={run.name}"
        raise ResumeError(msg)
    before = resolve([], run.config())
    resolved = _of_size(resolve(list(pairs), run.config()), before.config)
    if place().size > 1 and "trainer.devices" not in words:
        # torchrun says how many there are now; how many began the run does not matter.
        resolved = replace(resolved, config=resolved.config.over(1))
    _same_experiment(run, before.config, resolved.config)
    return Start(resolved, run, force=force)


def _of_size(resolved: Resolved, before: BaseConfig) -> Resolved:
    """With the batch size that was found before, where `auto` asks for one."""
    if resolved.config.trainer.batch_size != AUTO:
        return resolved
    return replace(resolved, config=resolved.config.resized(before.trainer.batch_size))


def _same_experiment(run: Run, old: BaseConfig, new: BaseConfig) -> None:
    was, now = old.flat(), new.flat()
    changed = [
        k
        for k in sorted(set(was) | set(now))
        if was.get(k) != now.get(k) and (k in _FIXED or not k.startswith(_FREE))
    ]
    if changed:
        shown = ", ".join(f"{k} ({was.get(k)} -> {now.get(k)})" for k in changed)
        msg = f"run {run.name} cannot be resumed with other settings: {shown}; start a new run"
        raise ResumeError(msg)
    if run.status == "finished" and new.trainer.epochs <= old.trainer.epochs:
        msg = f"run {run.name} is finished; raise trainer.epochs to train it further"
        raise ResumeError(msg)
