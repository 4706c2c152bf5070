"""Trainings in forked children that are killed, resumed and compared with an undisturbed one.

`Kill` says when, `train` runs one child, `survive` kills and resumes until the run is finished. The
tests of exact resume and `zoo.benchmarks.soak` use it. A child is forked after the imports, which
cost more than a small training.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import checkpoint
from zoo.runs import Run

_MODULES = ("zoo.cli.main", "zoo.training", "zoo.report", "mlflow", "matplotlib.pyplot")


class Lost(RuntimeError):
    """A child ended as it should not have, or left what it should not have left."""


@dataclass(frozen=True)
class Kill:
    """When a child gets a signal: after some seconds, or at the n-th call of a function.

    Attributes:
        seconds: Time after the child began.
        target: `module:Class.function` that counts.
        call: The call of `target` before which the signal is sent, from 1.
        number: The signal.
    """

    seconds: float | None = None
    target: str = ""
    call: int = 1
    number: int = signal.SIGKILL

    def __str__(self) -> str:
        where = f"{self.seconds:.3f} s" if self.target == "" else f"{self.target} #{self.call}"
        return f"{signal.Signals(self.number).name} at {where}"

    def arm(self) -> None:
        """In the child: send the signal to itself at the call."""
        module, _, path = self.target.partition(":")
        *parents, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for part in parents:
            owner = getattr(owner, part)
        inner: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call:
                os.kill(os.getpid(), self.number)
            return inner(*args, **options)

        setattr(owner, name, counted)


def start(
    words: Sequence[str],
    log: Path,
    kill: Kill | None = None,
    before: Callable[[], None] | None = None,
) -> int:
    """Begin `zoo train WORDS` in a forked child; returns its process id.

    Args:
        words: Words of the command line.
        log: What the child prints is added to it.
        kill: When it gets a signal, if it sends it to itself.
        before: Called in the child first.
    """
    for name in _MODULES:  # imported once, so that a child starts at once
        importlib.import_module(name)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(words, log, kill, before)
    return child


def ended(child: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(
    words: Sequence[str],
    log: Path,
    kill: Kill | None = None,
    before: Callable[[], None] | None = None,
) -> int:
    """`zoo train WORDS` in a forked child; returns its exit code, or minus the signal."""
    child = start(words, log, kill, before)
    if kill is not None and kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, kill.number)  # our own child, not yet waited for: the id is still its
    return ended(child)


def _be_child(
    words: Sequence[str], log: Path, kill: Kill | None, before: Callable[[], None] | None
) -> None:
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout = os.fdopen(os.dup(fd), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(fd), "w", buffering=1)
        print(f"--- {' '.join(words)}  {kill or ''}")
        if before is not None:
            before()
        if kill is not None and kill.target:
            kill.arm()
        code = importlib.import_module("zoo.cli.main").main(["train", *words])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def only_run(out: Path) -> Run:
    """The one run of a workspace.

    Raises:
        Lost: There is none, or several.
    """
    found = list(out.glob("*/run.json"))
    if len(found) != 1:
        msg = f"{out}: {len(found)} runs instead of one"
        raise Lost(msg)
    return Run(found[0].parent)


def values(run: Run, *, timed: bool = False) -> dict[tuple[str, int], float | None]:
    """Every metric by name and step.

    Args:
        run: The run.
        timed: With those that measure time, which differ from run to run.

    Raises:
        Lost: A name and step comes twice.
    """
    found: dict[tuple[str, int], float | None] = {}
    for row in run.metrics():
        for name, value in row["values"].items():
            if not timed and name.startswith("time/"):
                continue
            if (name, row["step"]) in found:
                msg = f"{run.name}: {name} twice at step {row['step']}"
                raise Lost(msg)
            found[name, row["step"]] = value
    return found


def survive(words: Sequence[str], out: Path, kills: Iterable[Kill]) -> tuple[Run, int]:
    """Train with `resume=auto`, killed at each of `kills`, then to the end.

    Returns:
        The run, and how many of the kills hit.

    Raises:
        Lost: A child ended otherwise than by its kill, or the last one failed.
    """
    log = out.with_suffix(".log")
    words = [*words, f"out={out}", "resume=auto"]
    hits = 0
    for kill in kills:
        code = train(words, log, kill)
        if code == 0:
            break
        if code not in (-kill.number, 128 + kill.number):
            msg = f"{kill}: exit {code}\n{log.read_text()}"
            raise Lost(msg)
        hits += 1
        if _finished(out):  # the kill came after the end: resume=auto would rightly begin anew
            code = 0
            break
    else:
        code = train(words, log)
    if code != 0:
        raise Lost(log.read_text())
    return only_run(out), hits


def _finished(out: Path) -> bool:
    return any(Run(file.parent).status == "finished" for file in out.glob("*/run.json"))


def outcome(run: Run) -> tuple[bytes, bytes, dict[tuple[str, int], float | None]]:
    """What must not depend on interruptions: last and best weights, and every metric.

    Raises:
        Lost: There is no checkpoint, or a metric comes twice.
    """
    last = checkpoint.newest_name(run.checkpoints)
    if last is None:
        msg = f"{run.name}: no checkpoint"
        raise Lost(msg)
    best = checkpoint.best(run.checkpoints).path.name
    weights = [(run.checkpoints / n / "model.safetensors").read_bytes() for n in (last, best)]
    return weights[0], weights[1], values(run)


def differences(run: Run, reference: Run) -> list[str]:
    """What differs between a run and the undisturbed one, one line each; nothing if all is well."""
    last, best, found = outcome(run)
    expected_last, expected_best, expected = outcome(reference)
    lines = []
    if last != expected_last:
        lines.append("the last weights differ")
    if best != expected_best:
        lines.append("the best weights differ")
    names = sorted({*found, *expected})
    odd = [k for k in names if k not in found or k not in expected or found[k] != expected[k]]
    if odd:
        (name, step), number = odd[0], len(odd)
        mine, theirs = found.get(odd[0]), expected.get(odd[0])
        lines.append(f"{number} metrics differ: {name} at step {step} is {mine}, not {theirs}")
    if run.results() != reference.results():
        lines.append("the results differ")
    rubbish = [p.name for p in run.path.rglob(".*") if p.name != ".lock"]
    if rubbish:
        lines.append(f"left behind: {', '.join(rubbish[:3])}")
    return lines


def undisturbed(words: Sequence[str], out: Path) -> tuple[Run, float]:
    """The same training without a kill, and how long it took in seconds.

    Raises:
        Lost: It failed.
    """
    log = out.with_suffix(".log")
    begun = time.perf_counter()
    if train([*words, f"out={out}"], log) != 0:
        raise Lost(log.read_text())
    return only_run(out), time.perf_counter() - begun


def at_steps(rng: random.Random, total: int, count: int) -> list[Kill]:
    """`count` kills at optimiser steps, spread at random over a training of `total` steps."""
    target = "zoo.engine:Trainer._update"
    # A resumed child counts from its checkpoint, so each kill is a little after the one before.
    return [Kill(target=target, call=rng.randint(2, max(2, total // count))) for _ in range(count)]


def at_times(rng: random.Random, seconds: float, count: int) -> list[Kill]:
    """`count` kills at random times of a training that takes `seconds`."""
    return [Kill(seconds=rng.uniform(0.05, 0.95) * seconds) for _ in range(count)]
