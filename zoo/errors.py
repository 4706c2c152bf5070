"""The few kinds of failure a user of the zoo meets.

Each error is one sentence that says what is wrong, where, and what to do. Errors are also
catchable as the builtin that fits them, so that library users need not import this module.
"""

from __future__ import annotations

import unicodedata

_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # marks that reverse what follows


def printable(text: str) -> str:
    """Text that any terminal shows as it is: file names may hold what is none.

    Control characters but the line's end, halves of surrogate pairs (bytes that are no UTF-8),
    line separators and marks of direction are written as escapes.
    """
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if c != "\n" and (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or ord(c) in _TURNING)
        else c
        for c in text
    )


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of what a library complains about, short enough for a line of ours.

    Args:
        error: Whose name is told where it says nothing.
        most: Characters.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


class ZooError(Exception):
    """Base of all errors the zoo raises on purpose.

    Attributes:
        exit_code: What the command line exits with: 2 for something the user can mend before
            the run (configuration, data, weights), 1 for a failure during it.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(ZooError, ValueError):
    """A wrong key, value, preset, task or registry entry."""

    exit_code = 2


class DataError(ZooError, ValueError):
    """A data set that is missing, incomplete, broken or leaking between splits."""

    exit_code = 2


class WeightsError(ZooError, ValueError):
    """Weights that cannot be found, trusted or fitted to the model."""

    exit_code = 2


class TrackingError(ZooError, RuntimeError):
    """A tracking store that cannot be reached or read."""


class ResumeError(ZooError, RuntimeError):
    """A run that cannot be continued as asked."""

    exit_code = 2


class TrainingError(ZooError, ArithmeticError):
    """Training that cannot go on: a loss that is not finite, memory that is not there."""
