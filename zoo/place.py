"""Which process this is among those that were started together.

torchrun, srun and the zoo itself tell each process by environment variables. Nothing heavy is
imported: preparation of data asks as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from zoo.errors import ConfigError

PARENT = "ZOO_PARENT_PROCESS"
"""Set in processes that the zoo starts itself: the id of the process that did."""


@dataclass(frozen=True)
class Place:
    """A process among those of one command.

    Attributes:
        rank: Its number, from 0.
        size: How many there are on all machines.
        local_rank: Its number on this machine.
        local_size: How many are on this machine; 0 if machines differ.
        slurm: Whether srun started them.
        parent: The process of the zoo that started this one; 0 if none did.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    slurm: bool = False
    parent: int = 0

    @property
    def machines(self) -> int:
        """How many machines take part.

        Raises:
            ConfigError: They do not have the same number of processes.
        """
        if not self.local_size or self.size % self.local_size:
            msg = (
                f"{self.size} processes are not spread evenly over the machines; ask for the same "
                "number on each of them"
            )
            raise ConfigError(msg)
        return self.size // self.local_size


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; alone if nobody says otherwise.

    A SLURM step's own number of tasks goes before the job's, of which a step may use a part. The
    script of a SLURM job is one process, however many tasks the job has: srun starts those.

    Raises:
        ConfigError: The variables make no sense.
    """
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        rank, size = _pair(environment, "RANK", "WORLD_SIZE")
        local = _number(environment, "LOCAL_RANK", rank)
        here = _number(environment, "LOCAL_WORLD_SIZE", size)
        return Place(rank, size, local, here, parent=_number(environment, PARENT, 0))
    counts = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    count = next((name for name in counts if environment.get(name)), None)
    script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if not environment.get("SLURM_PROCID") or count is None or script:
        return Place()
    rank, size = _pair(environment, "SLURM_PROCID", count)
    local = _number(environment, "SLURM_LOCALID", rank)
    return Place(rank, size, local, _tasks_here(environment, size), slurm=True)


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environment.get(name)
    return int(text) if text and text.isdecimal() else otherwise


def _pair(environment: Mapping[str, str], first: str, count: str) -> tuple[int, int]:
    try:
        rank, size = int(environment[first]), int(environment[count])
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        told = f"{first}={environment[first]}, {count}={environment[count]}"
        msg = f"{told}: no place among processes; unset them or start with torchrun or srun"
        raise ConfigError(msg)
    return rank, size


def _tasks_here(environment: Mapping[str, str], size: int) -> int:
    """Tasks of this step on each machine: SLURM writes `4`, `4(x2)` or `4,2`; 0 if they differ."""
    told = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    counts = {int(n) for n in re.findall(r"(?:^|,)(\d+)", told or "")} or {size}
    return counts.pop() if len(counts) == 1 else 0
