"""Bad days of a training, each told in one line: what, in which step, what is kept, what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo import checkpoint
from zoo.config import TrainerConfig
from zoo.errors import TrainingError, ZooError
from zoo.position import Position
from zoo.runs import Run

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENODEV}
_SHORT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|unable to allocate|alloc_failed"
    r"|cannot allocate memory",
    re.IGNORECASE,
)
_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: (\w[\w ]*)|exited)")
_MOST_NAMES = 8


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the device or the machine is not enough."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SHORT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def told(
    trainer: TrainerConfig, run: Run | None = None, at: Position | None = None
) -> Iterator[None]:
    """Turn what machines do to a training into one line; other errors pass.

    Args:
        trainer: The settings that may have to change.
        run: Its folder, for the last good checkpoint; none before there is one.
        at: Where the training is; read when something happens.

    Raises:
        TrainingError: Memory, disk or a loading process failed.
    """
    try:
        yield
    except ZooError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        line = _line(error, trainer, run, at)
        if line is None:
            raise
        raise TrainingError(line) from error


def _line(
    error: RuntimeError | OSError | MemoryError,
    trainer: TrainerConfig,
    run: Run | None,
    at: Position | None,
) -> str | None:
    place = f"in step {at.step + 1} (epoch {at.epoch + 1})" if at else "before the first step"
    go_on = f"; {kept(run)}; continue with resume={run.path}" if run else ""
    if out_of_memory(error):
        return (
            f"out of memory {place} with trainer.batch_size={trainer.batch_size} and "
            f"trainer.precision={trainer.precision}{_asked(error)}; start a new run with a smaller "
            "batch (trainer.batch_size=auto finds one) and trainer.accumulate in its place, or "
            "with trainer.precision=bf16-mixed" + (f"; {kept(run)}" if run else "")
        )
    died = _WORKER.search(str(error))
    if died:
        how = f"was killed ({died[1].strip()})" if died[1] else "ended unexpectedly"
        return (
            f"a loading process {how} {place}, as happens when memory is short; lower "
            f"trainer.workers or trainer.batch_size={trainer.batch_size} if it happens again"
            f"{go_on}"
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = error.filename or (run.path if run else "a file")
        reason = error.strerror or os.strerror(error.errno)
        when = f" after step {at.step}" if at else ""
        return f"{where}: cannot be written{when} ({reason}); make room or mend the disk{go_on}"
    return None


def _asked(error: BaseException) -> str:
    """How much was asked for, where the message has it."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    return f" ({found[1]} more were asked for)" if found else ""


def kept(run: Run) -> str:
    """The last good checkpoint in words."""
    name = checkpoint.newest_name(run.checkpoints)
    return f"last good checkpoint {name}" if name else "there is no checkpoint yet"


def not_finite(
    what: str, run: Run, at: Position, names: Sequence[str], batch: Any = None, step: int = 0
) -> TrainingError:
    """The error for numbers that are none.

    Args:
        what: Which number.
        run: Its folder.
        at: Where the training is.
        names: Items of the batch.
        batch: The batch, in which infinite inputs are looked for.
        step: The step, if it is not the next one.
    """
    bad = poisoned(batch, names)
    if bad:
        items = "; ".join(f"{name} (its '{key}')" for name, key in list(bad.items())[:_MOST_NAMES])
        told, remedy = f"items {', '.join(names[:_MOST_NAMES])}", f"not finite as read: {items}"
        remedy += "; mend these items or leave them out"
    else:
        told = f"items {', '.join(names[:_MOST_NAMES])}" if names else ""
        remedy = "lower the learning rate or look at these items"
    where = f"in step {step or at.step + 1} (epoch {at.epoch + 1}{', ' + told if told else ''})"
    return TrainingError(f"{what} {where}; {kept(run)}; {remedy}")


def poisoned(batch: Any, names: Sequence[str]) -> dict[str, str]:
    """Items of a batch whose inputs are not finite, with the key that holds the first of them.

    Only tensors with one entry an item, and lists of tensors, can be told apart. NaN in a target
    may mean 'unknown': this is asked after a loss has turned out not to be finite.
    """
    found: dict[str, str] = {}
    for key, value in batch.items() if isinstance(batch, Mapping) else ():
        if isinstance(value, Tensor) and value.ndim == 0:
            continue
        if not isinstance(value, (Tensor, list, tuple)) or len(value) != len(names):
            continue
        for name, part in zip(names, value, strict=True):
            floats = isinstance(part, Tensor) and part.is_floating_point()
            if floats and not bool(torch.isfinite(part).all()):
                found.setdefault(name, str(key))
    return found
