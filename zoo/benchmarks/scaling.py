"""Samples a second of one process and of two, over trainings that are run as a user runs them.

Each process has one thread, so that two of them have what two cores give. A training is started
anew for every number of processes; what is counted is the speed of its epochs but the first, in
which caches fill. Measure on an idle machine: on a busy one two processes also get twice the share.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from zoo.benchmarks.harness import Row, device_name, quantile, versions
from zoo.errors import ZooError
from zoo.runs import every

_TASKS = ("wsi_mil", "medusa")
_PROGRAM = "from zoo.cli.main import run; run()"


def _speeds(task: str, processes: int, kind: str, epochs: int) -> list[float]:
    """Samples a second of each epoch of a training but the first.

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
            msg = f"{task} with {processes} processes: {done.stderr.strip()}"
            raise ZooError(msg)
        (run,) = every(Path(folder))
        name = "time/samples_per_second"
        return [row["values"][name] for row in run.metrics() if name in row["values"]][1:]


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Milliseconds a sample with one and two processes; `speed` is the gain over one.

    Args:
        device: Kind of device; each process takes one.
        quick: Few epochs, one task.
    """
    epochs, rounds = (4, 1) if quick else (6, 3)
    made = []
    for task in _TASKS[:1] if quick else _TASKS:
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):  # in turn: other work on the machine comes and goes
            for processes, speeds in found.items():
                speeds += _speeds(task, processes, device.type, epochs)
        one = statistics.median(found[1])
        for processes, speeds in found.items():
            rate = statistics.median(speeds)
            times = [1e3 / speed for speed in speeds]
            case = f"{rate:.4g} samples/s, {rate / one / processes:.0%} of {processes} x one"
            made.append(
                Row(
                    "scaling",
                    f"{task}, sample data: {case}",
                    f"{processes} process" + ("es" if processes > 1 else ""),
                    "fwd+bwd",
                    device_name(device),
                    statistics.median(times),
                    quantile(times, 0.1),
                    quantile(times, 0.9),
                    rate / one,
                    versions=versions(),
                )
            )
    return made
