"""Reading tiles in processes of their own, so that reading and encoding overlap.

Nothing here needs torch: a reading process starts quickly and stays small. Each opens slides for
itself, since an open slide must not cross a fork, and keeps the one it read last.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.settings import TileSettings
from zoo.domains.medical.wsi_mil.slides import open_slide
from zoo.domains.medical.wsi_mil.stats import tile_statistics
from zoo.domains.medical.wsi_mil.tiling import Plan, Scale, TileReader, plan_tiles
from zoo.errors import DataError, ZooError

T = TypeVar("T")
_MOST = 8
# Parcels in the making for each process beside those of a batch that waits to be fetched.
_AHEAD = 2
_PARCEL = 8


def default_workers() -> int:
    """One a core this process may use, 8 at most."""
    return min(_MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


class Readers:
    """Reading processes, or none at all; a context manager that ends them.

    Args:
        workers: Processes; 0 reads in the caller's own.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Not forked: torch's and OpenSlide's threads and locks would not survive it.
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_begin
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        _forget()

    def plan(self, path: Path, settings: TileSettings) -> Callable[[], Plan]:
        """Start to segment a slide and lay its grid; call the result to wait for the plan.

        Raises:
            DataError: When called: as `plan_tiles`.
            ZooError: When called: a reading process died.
        """
        return self.start(_plan, path, settings)

    def tiles(
        self,
        path: Path,
        mpp: float | None,
        scale: Scale,
        coords: np.ndarray,
        *,
        batch_size: int,
        statistics: bool = False,
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Batches of tiles in the order of `coords`, read ahead of their use.

        Args:
            path: The slide.
            mpp: As in `open_slide`.
            scale: Sizes of a tile.
            coords: (N, 2) level-0 corners.
            batch_size: Tiles a batch.
            statistics: Give the statistics of the tiles in place of their pixels.

        Yields:
            (B, size, size, 3) uint8, or (B, 42) float32; and how many tiles of them had to be read
            from a smaller level.

        Raises:
            DataError: A tile cannot be read.
            ZooError: A reading process died.
        """
        # Small parcels pass between processes faster than large ones, and share out better.
        size = min(batch_size, _PARCEL) if self.workers else batch_size
        total = len(coords)
        parts = [
            (begin, coords[i : min(i + size, begin + batch_size)])
            for begin in range(0, total, batch_size)
            for i in range(begin, min(begin + batch_size, total), size)
        ]
        ahead = (_AHEAD + -(-batch_size // size)) * self.workers
        ready: deque[Callable[[], tuple[np.ndarray, int]]] = deque()
        held: list[tuple[np.ndarray, int]] = []
        for number in range(len(parts) + ahead):
            if number < len(parts):
                ready.append(self.start(_read, path, mpp, scale, parts[number][1], statistics))
            if number < ahead or not ready:
                continue
            held.append(ready.popleft()())
            taken = number - ahead
            if taken + 1 == len(parts) or parts[taken + 1][0] != parts[taken][0]:
                pixels = [part for part, _ in held]
                joined = np.concatenate(pixels) if len(pixels) > 1 else pixels[0]
                yield joined, sum(coarser for _, coarser in held)
                held = []

    def start(self, act: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Start any work on slides; call the result to wait for it. Without processes it runs then.

        Args:
            act: A function of a module, so that it travels.
            *arguments: What it is called with.

        Raises:
            ZooError: A reading process died.
        """
        if self._pool is None:
            return lambda: act(*arguments)
        try:
            return _waiting(self._pool.submit(act, *arguments))
        except BrokenProcessPool:
            raise _died() from None


def _waiting(future: Future[T]) -> Callable[[], T]:
    def wait() -> T:
        try:
            return future.result()
        except BrokenProcessPool:
            raise _died() from None

    return wait


def _died() -> ZooError:
    return ZooError(
        "a reading process died, perhaps for want of memory; lower data.tiles.workers or "
        "data.tiles.batch_size and run again: finished slides are kept"
    )


# -- in the reading processes ---------------------------------------------------------------------

_open: dict[tuple[Any, ...], TileReader] = {}


def _begin() -> None:
    """One thread a process, no Ctrl-C of its own, and an end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    need("cv2").setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _plan(path: Path, settings: TileSettings) -> Plan:
    with _naming(path), open_slide(path, settings.mpp) as slide:
        return plan_tiles(slide, settings)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let whatever goes wrong with a slide name the slide: one must not end a night's work."""
    try:
        yield
    except ZooError:
        raise
    except Exception as error:  # libraries raise all sorts at an odd file
        lines = str(error).strip().splitlines() or ["no reason given"]
        msg = f"{path}: cannot be processed ({type(error).__name__}: {lines[0][:160]})"
        raise DataError(msg) from None


def _read(
    path: Path, mpp: float | None, scale: Scale, coords: np.ndarray, statistics: bool
) -> tuple[np.ndarray, int]:
    key = (path, mpp, scale)
    try:
        with _naming(path):
            if key not in _open:
                _forget()
                _open[key] = TileReader(path, mpp, scale)
            reader = _open[key]
            before = reader.rescued
            tiles = reader(coords)
            found = tile_statistics(tiles) if statistics else tiles
    except BaseException:
        _forget()
        raise
    return found, reader.rescued - before


def _forget() -> None:
    while _open:
        _open.popitem()[1].close()
