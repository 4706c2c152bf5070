"""Progress on a terminal by rich, as plain lines elsewhere, or not at all."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from zoo.privacy import scrubbed


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = task.fields.get("left")
        return Text("" if seconds is None else f"{clock(seconds)} left", style="cyan")


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Reporter:
    """Tells a person what a run is doing.

    Args:
        quiet: Say nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.silent = quiet
        self.console = Console(quiet=self.silent, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self.console.is_terminal and not self.silent and sys.stdout.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[note]}"),
                _Left(),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def hush(self) -> None:
        """Say nothing from now on: of several processes only the first one speaks."""
        self.silent = self.console.quiet = True
        self._bar = None

    def say(self, line: str) -> None:
        """One line."""
        self.console.print(scrubbed(line), markup=False)

    def warn(self, line: str) -> None:
        """One line that should not be overlooked."""
        self.console.print(f"warning: {scrubbed(line)}", style="yellow", markup=False)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Start a bar of `total` steps."""
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(title, total=total, completed=done, note="", left=None)

    def step(self, done: int, note: str = "", left: float | None = None) -> None:
        """Move the bar."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=note, left=left)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


class Pace:
    """Speed and time left of a loop, and how much of it waited for data."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.items = 0
        self.waited = 0.0
        self.steps = 0

    def add(self, items: int, waited: float) -> None:
        """Count one step of `items` items that waited `waited` seconds for data."""
        self.items += items
        self.waited += waited
        self.steps += 1

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begun

    def summary(self) -> dict[str, float]:
        """Items a second and the share of time spent waiting for data."""
        seconds = max(self.seconds, 1e-9)
        return {
            "time/samples_per_second": self.items / seconds,
            "time/data_wait_share": min(1.0, self.waited / seconds),
        }

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` further steps will take."""
        return self.seconds / self.steps * steps if self.steps else None


def figures_line(values: Mapping[str, float], names: tuple[str, ...] = ()) -> str:
    """`name value` pairs on one line; all values, or those named."""
    chosen = {k: values[k] for k in names if k in values} if names else values
    return "  ".join(f"{k} {v:.4g}" for k, v in chosen.items())
