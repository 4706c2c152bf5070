"""Commands of the zoo in several processes.

`forked` plays torchrun: it forks this process after the imports, tells each child its place, and
gives back how each ended. `started` runs a real torchrun, or a command with `trainer.devices=N`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODULES = ("zoo.cli.main", "zoo.training", "zoo.inference", "zoo.crew", "zoo.report")
Hook = Callable[[int], None]

QUIET = ["tracking.enabled=false"]
CPU = "trainer.accelerator=cpu"
BAGS = ["task=stub_bags", "trainer.epochs=2"]
UPDATE = "zoo.engine:Trainer._update"


@dataclass(frozen=True)
class Ended:
    """How the processes of one command ended.

    Attributes:
        codes: Exit code of each, minus the signal if one killed it.
        out: What each said.
        err: What each complained of.
    """

    codes: list[int]
    out: list[str]
    err: list[str]

    @property
    def errors(self) -> list[str]:
        """Error lines of all of them."""
        return [line for text in self.err for line in text.splitlines() if "error:" in line]

    def told(self) -> str:
        """Everything, for a failing test."""
        both = zip(self.codes, self.out, self.err, strict=True)
        return "\n".join(f"--- {i}: {c}\n{o}\n{e}" for i, (c, o, e) in enumerate(both))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def forked(
    words: Sequence[str | Path],
    size: int,
    folder: Path,
    hook: Hook | None = None,
    seconds: float = 120,
) -> Ended:
    """`zoo WORDS` in `size` forked processes that think torchrun started them.

    Args:
        words: The command.
        size: How many.
        folder: For what they say.
        hook: Called in each child with its number, before the command.
        seconds: All are killed after these, and the test fails.
    """
    for name in _MODULES:  # imported once, so that the children start at once
        importlib.import_module(name)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    sys.stdout.flush()
    sys.stderr.flush()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _be(rank, size, port, [str(w) for w in words], folder, hook)
        children.append(child)
    codes = _wait(children, seconds)
    texts = [[(folder / f"{kind}{r}").read_text() for r in range(size)] for kind in ("out", "err")]
    ended = Ended(codes, *texts)
    assert None not in codes, f"they hang\n{ended.told()}"
    return ended


def _wait(children: Sequence[int], seconds: float) -> list[Any]:
    codes: dict[int, Any] = dict.fromkeys(children)
    until = time.monotonic() + seconds
    while None in codes.values() and time.monotonic() < until:
        for child in [c for c, code in codes.items() if code is None]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for child in [c for c, code in codes.items() if code is None]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return list(codes.values())


def _be(rank: int, size: int, port: int, words: list[str], folder: Path, hook: Hook | None) -> None:
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for stream, kind, fd in ((sys.stdout, "out", 1), (sys.stderr, "err", 2)):
            file = os.open(folder / f"{kind}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, fd)
            setattr(sys, f"std{kind}", os.fdopen(os.dup(file), "w", buffering=1))
            del stream
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update({k: str(v) for k, v in told.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if hook is not None:
            hook(rank)
        from zoo.cli.main import main

        code = main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def trained(out: Path, said: Path, *words: str, size: int = 2, hook: Hook | None = None) -> Ended:
    return forked(["train", *words, f"out={out}"], size, said, hook)


# -- what hooks do ------------------------------------------------------------------------------


def noting(file: Path) -> Hook:
    """Write down the items of every batch that is trained on: one line a forward pass."""

    def hook(rank: int) -> None:
        from zoo.stepping import Stepper

        inner = Stepper._turn

        def noted(self: Any, group: Any, turn: int, stream: Any, forward: Any, tally: Any) -> Any:
            real = turn * self.team.size + self.team.rank < len(group)

            def seen(loss: Any, batch: Any, names: list[str], number: int) -> Any:
                at = forward.__self__.at
                row = {"rank": rank, "epoch": at.epoch, "step": at.step, "turn": turn}
                row |= {"real": real, "names": names}
                with file.open("a") as out:
                    out.write(json.dumps(row) + "\n")
                return forward(loss, batch, names, number)

            return inner(self, group, turn, stream, seen, tally)

        Stepper._turn = noted  # type: ignore[method-assign]

    return hook


def noted(file: Path) -> list[dict[str, Any]]:
    """What `noting` wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def seen_in(file: Path) -> dict[int, Counter[str]]:
    """How often each item was trained on in each epoch, padding left out."""
    found: dict[int, Counter[str]] = {}
    for row in noted(file):
        if row["real"]:
            found.setdefault(row["epoch"], Counter()).update(row["names"])
    return found


def once(epochs: int) -> dict[int, Counter[str]]:
    """What `seen_in` finds of a training of the stub's bags that missed and doubled nothing."""
    return {e: Counter(f"train{i:02d}" for i in range(16)) for e in range(epochs)}


def at_call(rank: int, target: str, call: int, act: Callable[[], None]) -> Hook:
    """In one process, do something before the n-th call of `module:Class.function`."""

    def hook(here: int) -> None:
        if here != rank:
            return
        module, _, path = target.partition(":")
        *parents, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for part in parents:
            owner = getattr(owner, part)
        inner, calls = getattr(owner, name), 0

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                act()
            return inner(*args, **options)

        setattr(owner, name, counted)

    return hook


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def all_of(*hooks: Hook) -> Hook:
    """Several hooks, one after the other."""

    def hook(rank: int) -> None:
        for one in hooks:
            one(rank)

    return hook


# -- real programs ------------------------------------------------------------------------------


def zoo_command(size: int = 0) -> list[str]:
    """The words before those of a command: under torchrun if `size` is given."""
    program = [sys.executable, "-c", "from zoo.cli.main import run; run()"]
    if not size:
        return program
    file = Path(__file__).parent / "program.py"
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={size}", str(file),
    ]  # fmt: skip


@contextlib.contextmanager
def started(
    words: Sequence[str | Path], size: int = 0, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A real program in a process group of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        [*zoo_command(size), *(str(w) for w in words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
