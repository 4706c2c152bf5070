"""What a run takes of the machine: devices, processes, threads, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch

from zoo.config import BaseConfig, TrainerConfig
from zoo.errors import ConfigError, ZooError
from zoo.fabric import Fabric
from zoo.place import Place, place
from zoo.team import Elsewhere, Lost, Team

_sharing = 1  # processes of one training on this machine


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(trainer: TrainerConfig) -> int:
    """Loading processes: as set, else none on up to two cores a process and two on more."""
    if trainer.workers is not None:
        return trainer.workers
    return 0 if cores() // _sharing <= 2 else 2


def set_threads(trainer: TrainerConfig) -> None:
    """Threads of one operation: as set, else what workers leave of this process's cores."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // _sharing - workers_for(trainer)))


def launch(config: BaseConfig) -> Fabric:
    """The device a configuration asks for, in this process alone.

    Raises:
        ConfigError: The machine has not got it.
    """
    trainer = config.trainer
    set_threads(trainer)
    with _asked_for(trainer, 1):
        fabric = Fabric(accelerator=trainer.accelerator, devices=1, precision=trainer.precision)
        fabric.launch()
    return fabric


@contextlib.contextmanager
def together(
    config: BaseConfig, job: Mapping[str, Any], devices: int | None = None
) -> Iterator[tuple[Fabric, Team]]:
    """The devices and processes a configuration asks for, or that torchrun or srun started.

    Args:
        config: Says which devices.
        job: What further processes do if this one has to start them; see `zoo.worker`.
        devices: Processes instead of `trainer.devices`.

    Raises:
        ConfigError: The machine has not got the devices, or fewer processes were started.
        Elsewhere: In all processes but the first, whatever went wrong.
    """
    here = place()
    wanted = config.trainer.devices if devices is None else devices
    if here.size == 1 and wanted == 1:
        fabric = launch(config)
        yield fabric, Team(fabric)
        return
    if here.size > 1 and wanted not in (1, here.local_size):
        msg = (
            f"trainer.devices={wanted}, but {here.local_size} processes were started on this "
            "machine; under torchrun and srun leave trainer.devices out, or set it to 1"
        )
        raise ConfigError(msg)
    with _started(config.trainer, here, wanted, job) as (fabric, team):
        try:
            yield fabric, team
        except (Lost, Elsewhere):
            raise
        except (ZooError, KeyboardInterrupt) as error:
            code = error.exit_code if isinstance(error, ZooError) else 128 + signal.SIGINT
            # What the others do not know of has to be told here.
            if team.first or code < 128:
                raise
            raise Elsewhere(code) from error


@contextlib.contextmanager
def _started(
    trainer: TrainerConfig, here: Place, wanted: int, job: Mapping[str, Any]
) -> Iterator[tuple[Fabric, Team]]:
    global _sharing
    from zoo import crew

    alone = here.size == 1
    port = _free_port() if alone else 0
    here = Place(0, wanted, 0, wanted) if alone else here
    _sharing = max(1, here.local_size)
    set_threads(trainer)
    threads = torch.get_num_threads()
    ours: crew.Crew | None = None
    wait = 5.0
    try:
        with _asked_for(trainer, here.local_size):
            # What cannot be had is told before other processes are started.
            fabric = crew.fabric_of(trainer, here, port)
            ours = crew.Crew(here.size, port, job) if alone else None
            crew.follow(here)
            fabric.launch()
        torch.set_num_threads(threads)  # Fabric has its own idea of them
        fallen = ours.fallen if ours else partial(crew.orphaned, here)
        yield fabric, Team(fabric, fallen, ours.end if ours else lambda: None)
        wait = 60.0
    finally:
        _sharing = 1
        if ours is not None:
            ours.close(wait)
        _part(ours is not None)


def _part(again: bool) -> None:
    """Leave the other processes; gloo's threads must not outlive the interpreter.

    Fabric does it for NCCL at the end of the process, which is too late if others may be started
    `again`.
    """
    connected = torch.distributed.is_initialized()
    if connected and (again or torch.distributed.get_backend() == "gloo"):
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _asked_for(trainer: TrainerConfig, devices: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        msg = (
            f"trainer.accelerator={trainer.accelerator}, trainer.devices={devices}: "
            f"{reason}; `zoo doctor` says what is here"
        )
        raise ConfigError(msg) from error


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
