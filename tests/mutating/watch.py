"""What a trial may not do: hang, fill the memory, open files that are none of its business."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_OPENED = 0x20  # IN_OPEN
_ROOM = 2 * 2**30


class Hung(BaseException):
    """A trial took too long; no handler of `Exception` catches it."""


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise `Hung` in the block after some seconds."""

    def rang(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, rang)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again, where a library swallowed the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Opened:
    """Notices that anything in a folder is opened, by whatever library."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        self._works = self._fd >= 0
        if self._works:
            libc.inotify_add_watch(self._fd, os.fsencode(folder), _OPENED)

    def any(self) -> bool:
        """Whether something was opened since the last call."""
        if not self._works:
            return False
        try:
            return bool(os.read(self._fd, 65_536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        if self._works:
            os.close(self._fd)


def _status(name: str) -> int:
    """A size of this process in bytes, 0 where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


class Memory:
    """The most memory a block takes beyond what was taken before it.

    Address space is limited in the block, so that a bomb ends in MemoryError and not in the end
    of the machine.
    """

    def __init__(self) -> None:
        self.grown = 0

    def __enter__(self) -> Memory:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        self._before = _status("VmRSS")
        self._limits = resource.getrlimit(resource.RLIMIT_AS)
        size = _status("VmSize")
        if size:
            resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, self._limits[1]))
        return self

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._limits)
        self.grown = _status("VmHWM") - self._before
