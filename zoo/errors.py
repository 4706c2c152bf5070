"""The few kinds of failure a user of the zoo meets.

Each error is one sentence that says what is wrong, where, and what to do. Errors are also
catchable as the builtin that fits them, so that library users need not import this module.
"""

from __future__ import annotations


class ZooError(Exception):
    """Base of all errors the zoo raises on purpose.

    Attributes:
        exit_code: What the command line exits with: 2 for something the user can mend before
            the run (configuration, data, weights), 1 for a failure during it.
    """

    exit_code = 1


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
