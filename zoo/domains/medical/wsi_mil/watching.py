"""Progress over slides with the time left: a bar on a terminal, a line a slide elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from zoo.progress import clock


class Watch:
    """Tells how far a run over slides is.

    Args:
        total: Slides to do.
        prefix: Put before every line, to tell processes apart.
    """

    def __init__(self, total: int, prefix: str = "") -> None:
        self._total, self._prefix = total, prefix
        self._console = Console(highlight=False, soft_wrap=True)
        self._begun = time.perf_counter()
        self._done = 0
        self._tiles = 0
        self._bar: Progress | None = None
        if self._console.is_terminal and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(f"{self._prefix}{line}", markup=False)

    def begin(self, slide: str) -> None:
        """A slide begins."""
        if self._bar is not None:
            self._bar.update(self._task, description=slide, note=self._note(0, 0))

    def step(self, done: int, total: int) -> None:
        """`done` of `total` tiles of the slide are encoded."""
        if self._bar is not None:
            share = self._done + done / max(total, 1)
            self._bar.update(self._task, completed=share, note=self._note(done, total))

    def end(self, line: str, tiles: int) -> None:
        """The slide is done; `line` says what became of it."""
        self._done += 1
        self._tiles += tiles
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note(0, 0))
        self.say(f"[{self._done}/{self._total}] {line}; {self._left(self._done)}")

    def _note(self, done: int, total: int) -> str:
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        share = self._done + done / max(total, 1)
        return (
            f"{self._done}/{self._total} slides, {(self._tiles + done) / seconds:.0f} tiles/s, "
            f"{self._left(share)}"
        )

    def _left(self, share: float) -> str:
        if share <= 0:
            return "time left unknown"
        seconds = time.perf_counter() - self._begun
        return f"{clock(round(seconds / share * (self._total - share)))} left"
