"""Trainings that are killed and resumed: what the soak script of the package does, for tests."""

from zoo.benchmarks.killing import (
    Kill,
    at_steps,
    at_times,
    ended,
    outcome,
    start,
    survive,
    train,
    undisturbed,
)

__all__ = [
    "Kill",
    "at_steps",
    "at_times",
    "ended",
    "outcome",
    "start",
    "survive",
    "train",
    "undisturbed",
]
