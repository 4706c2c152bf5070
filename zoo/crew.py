"""How several processes find each other, and what happens to the others when one falls.

torchrun and srun start processes and end them; with `trainer.devices=N` alone the zoo does both.
Imported only where there are several.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from zoo.fabric import Fabric
from zoo.place import PARENT, Place

# After Fabric, whose import is a lighter one by that module.
from lightning_fabric.plugins.environments.lightning import LightningEnvironment  # isort: skip
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # isort: skip
from lightning_fabric.strategies.ddp import DDPStrategy  # isort: skip

if TYPE_CHECKING:
    from zoo.config import TrainerConfig

# Its banner says nothing that the run does not say.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

_GRACE = 15.0  # seconds to end in good order after another process fell
_LOOK = 0.5


class Together(DDPStrategy):
    """DDP's processes without its wrapping: the trainer wraps loss and model as one.

    A model's parts are also used outside of its forward (centres of a loss, say), which DDP must
    see to know whose gradients to wait for; and evaluation must not wait for other processes.
    """

    def setup_module(self, module: nn.Module) -> Any:
        """The module as it is."""
        return module


class Found(LightningEnvironment):
    """Tells Fabric the place that is known already.

    Args:
        here: This process's place.
        port: Where the first process listens, if it is not in MASTER_PORT.
    """

    def __init__(self, here: Place, port: int = 0) -> None:
        super().__init__()
        self.here, self.port = here, port

    @property
    def creates_processes_externally(self) -> bool:
        """Fabric starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Host of the first process."""
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST")
        if self.port:
            return "127.0.0.1"
        if self.here.slurm and nodes and "MASTER_ADDR" not in os.environ:
            return SLURMEnvironment.resolve_root_node_address(nodes)
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Port of the first process; with SLURM a number that every process can work out."""
        job = os.environ.get("SLURM_JOB_ID", "")
        if self.port:
            return self.port
        if self.here.slurm and "MASTER_PORT" not in os.environ:
            return 15000 + int(job[-4:] or 0) if job.isdecimal() else 15000
        return int(os.environ.get("MASTER_PORT", 12910))

    def world_size(self) -> int:
        """Processes on all machines."""
        return self.here.size

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self.here.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """Number of this process on this machine."""
        return self.here.local_rank

    def node_rank(self) -> int:
        """Number of this machine."""
        return self.here.rank // self.here.local_size


def fabric_of(trainer: TrainerConfig, here: Place, port: int = 0) -> Fabric:
    """Fabric over several processes, not launched yet.

    Phases freeze parts and some parts take no part in a step, so the trainer's DDP looks for
    parameters without gradient.
    """
    return Fabric(
        accelerator=trainer.accelerator,
        devices=here.local_size,
        num_nodes=here.machines,
        precision=trainer.precision,
        strategy=Together(),
        plugins=[Found(here, port)],
    )


class Crew:
    """The other processes of a command that this process started.

    Args:
        size: Processes in all, this one included.
        port: Where this one listens.
        job: What the others do: see `zoo.worker`.

    Attributes:
        ending: Set as soon as this process knows that the work ends, so that nobody interrupts
            it while it puts things in order.
    """

    def __init__(self, size: int, port: int, job: Mapping[str, Any]) -> None:
        self.size = size
        self.ending = False
        self._members: list[subprocess.Popen[str]] = []
        for rank in range(1, size):
            told = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                PARENT: str(os.getpid()),
            }
            member = subprocess.Popen(
                [sys.executable, "-m", "zoo.worker"],
                env=os.environ | told,
                stdin=subprocess.PIPE,
                text=True,
            )
            self._members.append(member)
            assert member.stdin is not None
            # One that ends at once is found by its exit code.
            with contextlib.suppress(BrokenPipeError), member.stdin as words:
                words.write(json.dumps(job))
        threading.Thread(target=self._watch, daemon=True, name="zoo-crew").start()

    def _down(self) -> str:
        """The first process that ended on its own account, in words."""
        for rank, member in enumerate(self._members, 1):
            code = member.poll()
            if code is not None and code != 0 and code < 128:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return f"process {rank} of {self.size} ({how})"
        return ""

    def fallen(self) -> str:
        """Which process ended and how, a moment after it was missed."""
        self.ending = True
        for _ in range(20):
            if self._down():
                break
            time.sleep(0.1)
        return self._down()

    def end(self) -> None:
        """The work ends: how the others do is no longer watched."""
        self.ending = True

    def _watch(self) -> None:
        """End this process if it does not notice by itself: some devices wait for ever."""
        while not self.ending:
            if self._down():
                time.sleep(_GRACE)
                if not self.ending:
                    print(f"error: {self._down()} ended unexpectedly", file=sys.stderr, flush=True)
                    self._stop()
                    os._exit(1)
            time.sleep(_LOOK)

    def _stop(self) -> None:
        for member in self._members:
            if member.poll() is None:
                member.terminate()
        for member in self._members:
            try:
                member.wait(3)
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()

    def close(self, wait: float) -> None:
        """Wait some seconds for the others to end, then end them."""
        self.ending = True
        until = time.monotonic() + wait
        for member in self._members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.wait(max(0.1, until - time.monotonic()))
        self._stop()


def follow(here: Place) -> None:
    """End this process some time after the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == here.parent:
            time.sleep(_LOOK)
        time.sleep(_GRACE)
        os._exit(1)

    if here.parent:
        threading.Thread(target=watch, daemon=True, name="zoo-follow").start()


def orphaned(here: Place) -> str:
    """The first process in words, if it is gone and this is the one to say so."""
    if not here.parent or here.rank != 1:
        return ""
    time.sleep(0.5)  # the connection ends a moment before the process does
    return "" if os.getppid() == here.parent else f"process 0 of {here.size}"
