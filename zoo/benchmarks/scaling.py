"""Samples a second of one process and of two, over trainings that are run as a user runs them.

Each process has one thread, so that two of them have what two cores give. A training is started
anew for every number of processes; what is counted is the speed of its epochs but the first, in
which caches fill. Beside them stands what no training of two processes can do without: one message
with as many bytes as the model has gradients, between two processes that do nothing else. Measure
on an idle machine: on a busy one two processes also get twice the share.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from zoo.benchmarks.harness import Row, device_name, quantile, versions
from zoo.errors import ZooError
from zoo.runs import every

_TASKS = ("wsi_mil", "medusa")
_PROGRAM = "from zoo.cli.main import run; run()"
_MESSAGES = 200


@dataclass
class _Case:
    """What was found of a task.

    Attributes:
        speeds: Number of processes -> samples a second of each epoch.
        batch: Samples a step and process.
        numbers: How many numbers all gradients are.
        messages: Milliseconds of each bare message.
    """

    speeds: dict[int, list[float]] = field(default_factory=lambda: {1: [], 2: []})
    batch: int = 0
    numbers: int = 0
    messages: list[float] = field(default_factory=list)

    def rate(self, processes: int) -> float:
        """Samples a second."""
        return statistics.median(self.speeds[processes])

    def step(self, processes: int) -> float:
        """Milliseconds a step."""
        return 1e3 * self.batch * processes / self.rate(processes)


def _train(task: str, processes: int, kind: str, epochs: int, found: _Case) -> None:
    """Train, and note the samples a second of each epoch but the first.

    Raises:
        ZooError: The training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-c", _PROGRAM, "train", f"task={task}"),
            *(f"trainer.devices={processes}", f"trainer.accelerator={kind}", f"out={folder}"),
            *(f"trainer.epochs={epochs}", "trainer.workers=0", "trainer.threads=1"),
            *(f"trainer.eval_every={epochs}", f"trainer.checkpoint_every={10**9}"),
            *("tracking.enabled=false", "--quiet"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"task={task} trainer.devices={processes}: {done.stderr.strip()}"
            raise ZooError(msg)
        (run,) = every(Path(folder))
        name = "time/samples_per_second"
        rows = [row["values"][name] for row in run.metrics() if name in row["values"]]
        found.speeds[processes] += rows[1:]
        trainer = run.config()["trainer"]
        found.batch = trainer["batch_size"] * trainer["accumulate"]
        found.numbers = run.info["parameters"]["trainable"]


def _talk(rank: int, meeting: str, kind: str, numbers: int, pipe: Any) -> None:
    """One of two processes: sends messages, and the first one tells how long each took."""
    torch.set_num_threads(1)
    backend = "nccl" if kind == "cuda" else "gloo"
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{meeting}",
        timeout=timedelta(seconds=60),
        rank=rank,
        world_size=2,
    )
    message = torch.zeros(numbers, device=device)
    times = []
    for _ in range(_MESSAGES):
        begun = time.perf_counter()
        torch.distributed.all_reduce(message)
        if kind == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - begun))
    torch.distributed.destroy_process_group()
    if rank == 0:
        pipe.send(times[_MESSAGES // 10 :])


def _messages(kind: str, numbers: int) -> list[float]:
    """Milliseconds of all-reduces of so many float32 numbers between two processes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        both = [
            context.Process(target=_talk, args=(rank, f"{folder}/meet", kind, numbers, there))
            for rank in (0, 1)
        ]
        for process in both:
            process.start()
        there.close()
        try:
            times: list[float] = here.recv()
        except EOFError:
            msg = "two processes cannot talk to each other here; `zoo doctor` says what is here"
            raise ZooError(msg) from None
        finally:
            for process in both:
                process.join()
    return times


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Milliseconds a sample with one and two processes, and of one bare message.

    `speed` is the gain over one process; for the message it is how often it fits into a step of
    two.

    Args:
        device: Kind of device; each process takes one.
        quick: Few epochs, one task.

    Raises:
        ZooError: A training failed, or two processes cannot talk to each other.
    """
    epochs, rounds = (4, 1) if quick else (6, 3)
    made = []
    for task in _TASKS[:1] if quick else _TASKS:
        found = _Case()
        for _ in range(rounds):  # in turn: other work on the machine comes and goes
            for processes in found.speeds:
                _train(task, processes, device.type, epochs, found)
            found.messages += _messages(device.type, found.numbers)
        made += _rows(task, found, device)
    return made


def _rows(task: str, found: _Case, device: torch.device) -> list[Row]:
    made = []
    one = found.rate(1)
    for processes, speeds in found.speeds.items():
        rate = found.rate(processes)
        case = (
            f"{rate:.4g} samples/s, {rate / one / processes:.0%} of {processes} x one; "
            f"a step is {found.step(processes):.3g} ms"
        )
        form = f"{processes} process" + ("es" if processes > 1 else "")
        times = [1e3 / speed for speed in speeds]
        made.append(_row(task, case, form, "fwd+bwd", times, rate / one, device))
    alone = statistics.median(found.messages)
    case = (
        f"{4 * found.numbers / 1e6:.3g} MB of gradients between two idle processes, "
        f"{alone / found.step(2):.0%} of their step"
    )
    share = found.step(2) / alone
    made.append(_row(task, case, "bare all-reduce", "message", found.messages, share, device))
    return made


def _row(
    task: str,
    case: str,
    form: str,
    mode: str,
    times: Sequence[float],
    speed: float,
    device: torch.device,
) -> Row:
    return Row(
        "scaling",
        f"{task}, sample data: {case}",
        form,
        mode,
        device_name(device),
        statistics.median(times),
        quantile(times, 0.1),
        quantile(times, 0.9),
        speed,
        versions=versions(),
    )
