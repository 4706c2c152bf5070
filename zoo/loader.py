"""Feeds batches of a split to the loop, from this process or from workers.

A batch is named by (epoch, indices), and each item gets a generator of its own, so the order in
which workers finish, their number, and where an epoch was interrupted change nothing.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.data import item_rng
from zoo.errors import DataError, ZooError
from zoo.task import Batch, Split

_LOOK_EVERY = 0.5  # seconds
_HOST = torch.device("cpu")  # on which items are read


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Seed the global generators: Python's, NumPy's, and torch's of the host and of a device.

    torch.manual_seed keeps a traceback for each kind of device that may be opened later, which
    takes longer than reading a small image.

    Args:
        seed: At least 0.
        device: The one that draws numbers; none: all there are.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    kind = device.type if device is not None else ""
    if kind not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if kind == "cuda":
        torch.cuda.manual_seed(seed)


class _Items(Dataset[Any]):
    def __init__(self, split: Split, seed: int, epoch: int, on_error: str) -> None:
        self.split, self.seed, self.epoch, self.on_error = split, seed, epoch, on_error

    def __getitem__(self, index: int) -> tuple[int, Batch | None, str]:
        rng = item_rng(self.seed, self.epoch, index)
        name = self.split.ids[index]
        # Libraries that draw from global generators get numbers of this item, whoever reads it.
        reseed(int(rng.integers(2**63)), _HOST)
        try:
            return index, self.split.item(index, rng), ""
        except MemoryError:  # says nothing about the file, so it is never skipped
            raise
        except Exception as error:  # libraries raise all sorts at a broken file
            line = " ".join(str(error).split())
            if not isinstance(error, (ZooError, OSError, ValueError)):
                line = f"{type(error).__name__}: {line}"
            if name not in line:
                line = f"'{name}': {line}"
            if self.on_error == "skip":
                return index, None, line
            raise DataError(line) from error


class _Join:
    def __init__(self, split: Split) -> None:
        self.split = split

    def __call__(
        self, items: list[tuple[int, Batch | None, str]]
    ) -> tuple[list[str], Batch | None, list[str]]:
        good = [(i, item) for i, item, _ in items if item is not None]
        broken = [line for _, _, line in items if line]
        names = [self.split.ids[i] for i, _ in good]
        return names, self.split.collate([item for _, item in good]) if good else None, broken


class _Leash:
    """Ends a loading process soon after the process it loads for is gone.

    A worker of torch's looks for its parent while it waits for work only. One that has a large
    batch to hand over waits for ever, with its memory, once SIGKILL has taken the reader.
    """

    def __init__(self) -> None:
        self._parent = os.getpid()

    def __call__(self, worker: int) -> None:
        parent = os.getppid()  # not the training itself if a server forks the workers
        if parent == 1 != self._parent:
            os._exit(1)
        threading.Thread(target=self._watch, args=(parent,), daemon=True).start()

    def _watch(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os._exit(1)


class Feed:
    """Batches of one epoch, in the order given.

    Args:
        split: Where items come from.
        batches: Item indices of each batch.
        seed: The run's seed.
        epoch: Seeds the items together with `seed`.
        workers: Loading processes; 0 loads in this one.
        on_error: `raise` stops at a broken item, `skip` leaves it out and counts it.

    Attributes:
        skipped: One line for each item that was left out.
    """

    def __init__(
        self,
        split: Split,
        batches: Sequence[Sequence[int]],
        *,
        seed: int,
        epoch: int,
        workers: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        pin: bool = False,
    ) -> None:
        self.skipped: list[str] = []
        self._count = len(batches)
        self._loader: DataLoader[Any] = DataLoader(
            _Items(split, seed, epoch, on_error),
            batch_sampler=[list(b) for b in batches],
            collate_fn=_Join(split),
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_Leash() if workers else None,
            # The loader draws a base seed for its workers from the global generator.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[list[str], Batch | None]]:
        stream = iter(self._loader)
        try:
            for names, batch, broken in stream:
                self.skipped.extend(broken)
                yield names, batch
        except DataError as error:
            # Workers hand errors over with their traceback as text; only the line is for users.
            raise DataError(_last_line(str(error))) from error
        finally:
            # Left to the garbage collector, each worker is waited for in vain for five seconds.
            getattr(stream, "_shutdown_workers", lambda: None)()


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else text
    return last.partition("DataError: ")[2] or last
