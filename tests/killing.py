"""Trainings in forked children that are killed, resumed and compared with an undisturbed one.

Used by the tests of exact resume, and by anything that wants to do the same for longer: `Kill`
says when, `train` runs one child, `survive` kills and resumes until the run is finished.
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

from tests.running import only_run, values
from zoo import checkpoint
from zoo.runs import Run

_MODULES = ("zoo.cli.main", "zoo.training", "zoo.report", "mlflow", "matplotlib.pyplot")


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


def train(words: Sequence[str], log: Path, kill: Kill | None = None) -> int:
    """`zoo train WORDS` in a forked child; returns its exit code, or minus the signal."""
    for name in _MODULES:  # imported once, so that a child starts at once
        importlib.import_module(name)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(words, log, kill)
    if kill is not None and kill.seconds is not None:
        time.sleep(kill.seconds)
        os.kill(child, kill.number)  # our own child, not yet waited for: the id is still its
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _be_child(words: Sequence[str], log: Path, kill: Kill | None) -> None:
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
        if kill is not None and kill.target:
            kill.arm()
        from zoo.cli.main import main

        code = main(["train", *words])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def survive(words: Sequence[str], out: Path, kills: Iterable[Kill]) -> tuple[Run, int]:
    """Train with `resume=auto`, killed at each of `kills`, then to the end.

    Returns:
        The run, and how many of the kills hit.
    """
    log = out.with_suffix(".log")
    words = [*words, f"out={out}", "resume=auto"]
    hits = 0
    for kill in kills:
        code = train(words, log, kill)
        if code == 0:
            break
        assert code in (-kill.number, 128 + kill.number), f"{kill}: exit {code}\n{log.read_text()}"
        hits += 1
        if _finished(out):  # the kill came after the end: resume=auto would rightly begin anew
            code = 0
            break
    else:
        code = train(words, log)
    assert code == 0, log.read_text()
    return only_run(out), hits


def _finished(out: Path) -> bool:
    return any(Run(file.parent).status == "finished" for file in out.glob("*/run.json"))


def outcome(run: Run) -> tuple[bytes, bytes, dict[tuple[str, int], float | None]]:
    """What must not depend on interruptions: last and best weights, and every metric."""
    last = checkpoint.newest_name(run.checkpoints)
    best = checkpoint.best(run.checkpoints).path.name
    assert last is not None
    weights = [(run.checkpoints / n / "model.safetensors").read_bytes() for n in (last, best)]
    return weights[0], weights[1], values(run)


def undisturbed(words: Sequence[str], out: Path) -> tuple[Run, float]:
    """The same training without a kill, and how long it took."""
    begun = time.perf_counter()
    code = train([*words, f"out={out}"], out.with_suffix(".log"))
    assert code == 0, out.with_suffix(".log").read_text()
    return only_run(out), time.perf_counter() - begun


def at_steps(rng: random.Random, total: int, count: int) -> list[Kill]:
    """`count` kills at optimiser steps, spread at random over a training of `total` steps."""
    target = "zoo.engine:Trainer._update"
    # A resumed child counts from its checkpoint, so each kill is a little after the one before.
    return [Kill(target=target, call=rng.randint(2, max(2, total // count))) for _ in range(count)]


def at_times(rng: random.Random, seconds: float, count: int) -> list[Kill]:
    """`count` kills at random times of a training that takes `seconds`."""
    return [Kill(seconds=rng.uniform(0.05, 0.95) * seconds) for _ in range(count)]
