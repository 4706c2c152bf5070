"""Gradients of one optimiser step: forward and backward over batches dealt to processes.

A step takes `accumulate` batches of every process. The processes exchange a few numbers: whether
one failed or was told to stop, and the losses. A small model's gradients go with them; those of a
large one follow, while its last backward pass is still under way. An error or a signal in one
process therefore never leaves another waiting.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from zoo.averaging import Averages, small
from zoo.errors import TrainingError
from zoo.loader import Feed
from zoo.task import Batch, Task
from zoo.team import Team

# PyTorch renamed it; the former name warns.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"


class Stream:
    """Batches of a feed; one can be looked at before its turn."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._items: Iterator[tuple[list[str], Batch | None]] = iter(feed)
        self._ahead: deque[tuple[list[str], Batch | None, list[str]]] = deque()
        self._good: tuple[list[str], Batch] | None = None

    def _read(self) -> tuple[list[str], Batch | None, list[str]]:
        names, batch = next(self._items)
        lines = list(self._feed.skipped)
        self._feed.skipped.clear()
        return names, batch, lines

    def take(self) -> tuple[list[str], Batch | None, list[str]]:
        """The next batch: names, the batch or None if all of it is broken, lines on what is."""
        names, batch, lines = self._ahead.popleft() if self._ahead else self._read()
        if batch is not None:
            self._good = names, batch
        return names, batch, lines

    def substitute(self) -> tuple[list[str], Batch]:
        """Some readable batch, for a process that has to take part but has none for this turn.

        Raises:
            TrainingError: Nothing this process has in the epoch can be read.
        """
        while self._good is None:
            try:
                self._ahead.append(self._read())
            except StopIteration:
                msg = "no batch of this process can be read in this epoch; look at the data"
                raise TrainingError(msg) from None
            names, batch, _ = self._ahead[-1]
            if batch is not None:
                self._good = names, batch
        return self._good


def dealt(groups: Sequence[Sequence[list[int]]], team: Team) -> tuple[list[list[int]], int]:
    """This process's batches of each step, and how many all of them repeat with no weight.

    Batches stay whole. A short last group is filled up with its first batch, whose weight is then
    zero, so that every process has something to do.
    """
    mine: list[list[int]] = []
    repeated = 0
    for group in groups:
        missing = -len(group) % team.size
        repeated += missing
        mine += [*group, *[group[0]] * missing][team.rank :: team.size]
    return mine, repeated


@dataclass
class Tally:
    """What one step gave; after the exchange, in all processes together.

    Attributes:
        losses: Mean of each part over the batches of the step.
        items: Items trained on.
        missed: Batches of which nothing could be read.
        waited: Seconds this process waited for data.
        broken: Lines on broken items; those of all processes in the first one.
        skipped: How many items were broken.
        names: Items of this process's batches.
    """

    losses: dict[str, float] = field(default_factory=dict)
    items: int = 0
    missed: int = 0
    waited: float = 0.0
    broken: list[str] = field(default_factory=list)
    skipped: int = 0
    names: list[str] = field(default_factory=list)


class _Whole(nn.Module):
    """Model and loss as one module.

    DDP has to see where the loss comes from, which is not the model's forward alone: centres and
    other parts may be used beside it.
    """

    def __init__(self, task: Task[Any], model: nn.Module) -> None:
        super().__init__()
        self.inner = model.module
        self._parts = (task, model)  # hidden: its parameters are those of `inner`
        # DDP warns of what it calls a needless search if every parameter has a part in the loss.
        self.idle = nn.Parameter(torch.zeros((), device=next(model.parameters()).device))

    def forward(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        task, model = self._parts
        parts = task.loss(model, batch, rng)
        # Only the loss is followed backward; what only a logged part needs gets no gradient.
        return {k: v if k == "loss" else v.detach() for k, v in parts.items()}


class Stepper:
    """Makes gradients of steps, alone or with other processes.

    Args:
        task: Gives the loss.
        model: As Fabric set it up.
        team: The processes.

    Attributes:
        stop: Signal that any process got, as of the last exchange.
        late: Whether the first process found it is time for a checkpoint, as of the last exchange.
    """

    def __init__(self, task: Task[Any], model: nn.Module, team: Team) -> None:
        self.team = team
        self.stop: int | None = None
        self.late = False
        self._names: dict[Any, list[str]] = {}
        self._loss: Callable[..., dict[str, Tensor]] = lambda batch, rng: task.loss(
            model, batch, rng
        )
        self._several: DistributedDataParallel | None = None
        self._sums: Callable[[Sequence[float]], list[float]] = team.sums
        if team.size > 1:
            _same_everywhere(model, team)
        if team.size > 1 and small(model):
            self._sums = Averages(model, team).sums
        elif team.size > 1:
            device = next(model.parameters()).device
            # Statistics follow the first process where they are used: `Team.align`.
            options: dict[str, Any] = {_BUFFERS: False}
            with team.reaching():
                self._several = DistributedDataParallel(
                    _Whole(task, model),
                    device_ids=None if device.type == "cpu" else [device],
                    find_unused_parameters=True,
                    **options,
                )
            self._loss = self._several

    def gradients(
        self,
        group: Sequence[list[int]],
        stream: Stream,
        forward: Callable[[Callable[..., dict[str, Tensor]], Batch, list[str], int], Any],
        backward: Callable[[Tensor], None],
        asked: Callable[[], tuple[int | None, bool]],
        phase: Any,
    ) -> Tally:
        """Leave the mean gradient of a group's batches on the parameters.

        Args:
            group: Item indices of every batch of the step, over all processes.
            stream: This process's batches, in order.
            forward: `(loss, batch, names, turn)` -> the loss tensor and every part as a number.
            backward: Takes a weighted loss.
            asked: The signal this process got, and whether a checkpoint is due.
            phase: What trains; steps of one phase give the same parts of the loss.
        """
        size = self.team.size
        turns = math.ceil(len(group) / size)
        tally, failed, last = Tally(), None, None
        try:
            for turn in range(turns):
                final = turn == turns - 1
                with contextlib.nullcontext() if final else self._apart():
                    last = self._turn(group, turn, stream, forward, tally)
                    if last is not None and not (final and self._several):
                        backward(last)
        except Exception as error:
            if size == 1:
                raise
            failed = error
        if size > 1:
            self._exchange(tally, failed, asked, phase)
        if last is not None and self._several:
            with self.team.reaching():
                backward(last)
        return tally

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Within it, gradients add up in this process alone."""
        return self._several.no_sync() if self._several else contextlib.nullcontext()

    def _turn(
        self,
        group: Sequence[list[int]],
        turn: int,
        stream: Stream,
        forward: Callable[..., Any],
        tally: Tally,
    ) -> Tensor | None:
        """One batch: its weighted loss, None if there is nothing to follow backward."""
        size = self.team.size
        begun = time.perf_counter()
        names, batch, lines = stream.take()
        tally.waited += time.perf_counter() - begun
        real = turn * size + self.team.rank < len(group)
        tally.broken += lines if real else []
        if batch is None:
            tally.missed += real
            if size == 1:
                return None
            # It takes part all the same, with a weight of zero.
            names, batch = stream.substitute()
            real = False
        loss, values = forward(self._loss, batch, names, turn)
        tally.items += len(names) if real else 0
        tally.names += names
        weight = size / len(group) if real else 0.0
        for name, value in values.items():
            tally.losses[name] = tally.losses.get(name, 0.0) + value * weight / size
        return loss * weight if loss.requires_grad else None

    def _exchange(
        self,
        tally: Tally,
        failed: Exception | None,
        asked: Callable[[], tuple[int | None, bool]],
        phase: Any,
    ) -> None:
        """Make a process's tally that of all, or end all if one failed."""
        if phase not in self._names:
            every = self.team.every(sorted(tally.losses))
            self._names[phase] = sorted({name for names in every for name in names})
        names = self._names[phase]
        new = set(tally.losses) - set(names)
        if new and failed is None:
            msg = (
                f"the loss has the part '{min(new)}' in some steps only; several processes need "
                "the same parts in every step of a phase"
            )
            failed = TrainingError(msg)
        number, late = asked()
        flags = [failed is not None, number == signal.SIGTERM, number == signal.SIGINT, late]
        counts = [tally.items, tally.missed, len(tally.broken)]
        mine = [float(n) for n in (*flags, *counts, *(tally.losses.get(n, 0.0) for n in names))]
        bad, term, interrupt, time_up, items, missed, broken, *losses = self._sums(mine)
        if bad:
            self.team.fail(failed)
        self._decide(term, interrupt, time_up)
        tally.items, tally.missed, tally.skipped = int(items), int(missed), int(broken)
        tally.losses = dict(zip(names, losses, strict=True))
        if broken:
            told = self.team.gather(tally.broken)
            tally.broken = [line for lines in told for line in lines]

    def _decide(self, term: float, interrupt: float, late: float) -> None:
        self.stop = signal.SIGTERM if term else signal.SIGINT if interrupt else None
        self.late = bool(late)

    def agree(self, number: int | None, late: bool) -> None:
        """Between steps: which signal came anywhere, and whether it is time for a checkpoint."""
        if self.team.size == 1:
            self.stop, self.late = number, late
            return
        flags = (number == signal.SIGTERM, number == signal.SIGINT, late)
        self._decide(*self.team.sums([float(f) for f in flags]))


def _same_everywhere(model: nn.Module, team: Team) -> None:
    """Make sure that all processes train the same model.

    Raises:
        TrainingError: They do not.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    first, *others = team.every(shapes)
    for rank, other in enumerate(others, 1):
        if other != first:
            name = next(n for n in [*first, *other] if first.get(n) != other.get(n))
            msg = (
                f"the model of process {rank} is not that of process 0: '{name}' is "
                f"{other.get(name, 'not there')} and {first.get(name, 'not there')}; give all "
                "machines the same data and settings"
            )
            raise team.alike(TrainingError(msg))
