"""The processes of one training, evaluation or prediction as one.

What concerns all of them is decided together: an error in one ends the others with it and is told
once, by the first process; a signal that reaches one stops all after the same step. Alone, every
function here does nothing or gives back what it was given.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo import errors
from zoo.errors import ZooError
from zoo.fabric import Fabric

T = TypeVar("T")
_AT_ONCE = 128  # exit codes of signals: whoever was told to stop does not wait for the others


class Elsewhere(ZooError):
    """Another process tells what went wrong; this one only ends, without a word."""

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Lost(ZooError):
    """Another process ended without saying why."""


class Team:
    """The processes that work together.

    Args:
        fabric: Launched devices.
        fallen: Says which process ended and how, where somebody knows.
        ends: Called in the first process as soon as the work is known to end with an error.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        first: Whether this is the one that writes and speaks.
    """

    def __init__(
        self,
        fabric: Fabric,
        fallen: Callable[[], str] = lambda: "",
        ends: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank, self.size = fabric.global_rank, fabric.world_size
        self.first = self.rank == 0
        self._fallen, self._ends = fallen, ends
        self._device = fabric.device

    # -- one value for all ------------------------------------------------------------------------

    def sums(self, numbers: Sequence[float], *beside: Tensor) -> list[float]:
        """Each number summed over processes; all of them give as many.

        Args:
            numbers: The numbers.
            beside: Tensors that are summed in place meanwhile, of one shape in all processes.
        """
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        with self.reaching():
            reduce = torch.distributed.all_reduce
            for work in [reduce(t, async_op=True) for t in (tensor, *beside)]:
                work.wait()
        found: list[float] = tensor.tolist()
        return found

    def share(self, value: T) -> T:
        """The first process's value, which must be picklable."""
        if self.size == 1:
            return value
        held: list[Any] = [value if self.first else None]
        with self.reaching():
            torch.distributed.broadcast_object_list(held, 0)
        found: T = held[0]
        return found

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order, in the first process; nothing in the others."""
        if self.size == 1:
            return [value]
        held: list[Any] | None = [None] * self.size if self.first else None
        with self.reaching():
            torch.distributed.gather_object(value, held, 0)
        return held or []

    def every(self, value: T) -> list[T]:
        """Every process's value, in order, in all of them."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        with self.reaching():
            torch.distributed.all_gather_object(held, value)
        return held

    def align(self, model: nn.Module, weights: bool = False) -> None:
        """Give every process the buffers (batch statistics) of the first one.

        Args:
            model: The same in all processes.
            weights: Its parameters as well.
        """
        if self.size == 1:
            return
        tensors = [*model.buffers(), *(model.parameters() if weights else ())]
        kinds = {t.dtype for t in tensors}
        for kind in sorted(kinds, key=str):  # a message each costs more than what is in it
            self._send([t.detach() for t in tensors if t.dtype == kind])

    def _send(self, tensors: Sequence[Tensor]) -> None:
        message = torch.cat([t.reshape(-1) for t in tensors])
        with self.reaching():
            torch.distributed.broadcast(message, 0)
        for tensor, part in zip(
            tensors, torch.split(message, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    # -- errors -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Work of each process for itself, after which all go on or none.

        Raises:
            Exception: What was raised in the block: in the first process whichever process it
                was, in the others as `Elsewhere`.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            if isinstance(error, (Lost, Elsewhere)) or _told_to_stop(error):
                raise
            failed = error
        if self.sums([float(failed is not None)])[0]:
            self.fail(failed)

    def fail(self, failed: Exception | None) -> None:
        """End all processes after at least one failed; every process calls it.

        Raises:
            Exception: The first process's own error, else that of the first one that has one.
            Elsewhere: In every other process.
        """
        if self.size == 1 and failed is not None:
            raise failed
        told = [t for t in self.every(_packed(failed, self.rank)) if t is not None]
        self._ends()
        if self.first and failed is not None:
            raise failed
        if self.first:
            raise _unpacked(told[0])
        raise Elsewhere(told[0]["exit_code"]) from failed

    def alike(self, error: ZooError) -> ZooError:
        """An error that every process has found by itself: only the first one tells it."""
        return error if self.first else Elsewhere(error.exit_code)

    @contextlib.contextmanager
    def reaching(self) -> Iterator[None]:
        """Wraps what needs the others.

        Raises:
            Lost: They cannot be reached any more.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _severed(error):
                raise
            told = self._fallen()
            if not told and not self.first:
                raise Elsewhere from error
            msg = f"{told or 'another process'} ended unexpectedly, and so do the others"
            raise Lost(msg) from error


def _told_to_stop(error: Exception) -> bool:
    return isinstance(error, ZooError) and error.exit_code >= _AT_ONCE


def _severed(error: RuntimeError) -> bool:
    """Whether it comes from the connection between processes: gloo has no type of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _packed(error: Exception | None, rank: int) -> dict[str, Any] | None:
    """An error as plain values: an exception itself may hold anything."""
    if error is None:
        return None
    return {
        "rank": rank,
        "kind": type(error).__name__,
        "line": " ".join(str(error).split()) if not isinstance(error, ZooError) else str(error),
        "exit_code": error.exit_code if isinstance(error, ZooError) else 1,
        "system": _plain(error) if isinstance(error, OSError) else None,
        "trace": "".join(traceback.format_exception(error)),
    }


def _plain(error: OSError) -> list[Any]:
    return [error.errno, error.strerror, error.filename and str(error.filename)]


def _unpacked(told: dict[str, Any]) -> Exception:
    kind = getattr(errors, told["kind"], None)
    made: Exception
    if isinstance(kind, type) and issubclass(kind, ZooError):
        made = kind(told["line"])
    elif told["system"] is not None and told["system"][0] is not None:
        made = OSError(*told["system"])
    else:
        made = RuntimeError(f"{told['kind']}: {told['line']}")
    if isinstance(made, ZooError):
        made.exit_code = told["exit_code"]
    made.add_note(f"in process {told['rank']}:\n{told['trace']}")
    return made
