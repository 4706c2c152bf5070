"""What a run takes of the machine: devices, processes, threads, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric

from zoo.config import BaseConfig, TrainerConfig
from zoo.errors import ConfigError


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(trainer: TrainerConfig) -> int:
    """Loading processes: as set, else none on up to two cores and two on more."""
    if trainer.workers is not None:
        return trainer.workers
    return 0 if cores() <= 2 else 2


def set_threads(trainer: TrainerConfig) -> None:
    """Threads of one operation: as set, else what workers leave of the cores."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() - workers_for(trainer)))


def launch(config: BaseConfig) -> Fabric:
    """Start the processes and devices a configuration asks for.

    Raises:
        ConfigError: The machine has not got them.
    """
    trainer = config.trainer
    set_threads(trainer)
    try:
        fabric = Fabric(
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            precision=trainer.precision,
            strategy=_strategy(trainer.devices),
        )
        fabric.launch()
    except (RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        msg = (
            f"trainer.accelerator={trainer.accelerator}, trainer.devices={trainer.devices}: "
            f"{reason}; `zoo doctor` says what is here"
        )
        raise ConfigError(msg) from error
    return fabric


def _strategy(devices: int) -> str:
    """How processes share gradients, if there are several.

    Phases freeze parts and some parts (prompt paths, heads nobody asked for) take no part in a
    step, so the parameters without gradient are looked for.
    """
    outside = max(int(os.environ.get(n) or 1) for n in ("WORLD_SIZE", "SLURM_NTASKS"))
    return "ddp_find_unused_parameters_true" if max(devices, outside) > 1 else "auto"


@contextlib.contextmanager
def on_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Let `act` handle SIGTERM and Ctrl-C; outside of the main thread nothing changes."""

    def handle(number: int, _: FrameType | None) -> None:
        act(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for which in (signal.SIGTERM, signal.SIGINT):
            before[which] = signal.signal(which, handle)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
