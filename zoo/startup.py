"""Where the seconds before a training's first step go."""

from __future__ import annotations

import time

_used = False


class Startup:
    """Seconds by phase, from the start of the process to the first step.

    The first one in a process counts from the process's own start, imports included; a further
    training of the same process (cross-validation) counts from here.
    """

    def __init__(self) -> None:
        global _used
        self.seconds: dict[str, float] = {}
        self._last = time.time() if _used else _process_began()
        _used = True

    def mark(self, phase: str) -> None:
        """End a phase here."""
        now = time.time()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + max(0.0, now - self._last)
        self._last = now

    def line(self) -> str:
        """The seconds as one line."""
        parts = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        return f"first step after {sum(self.seconds.values()):.1f} s ({parts})"


def _process_began() -> float:
    import psutil

    return float(psutil.Process().create_time())
