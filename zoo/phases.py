"""Which parts of a model train and which rest, from one phase of a training to the next."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from zoo.errors import TrainingError
from zoo.task import Phase
from zoo.team import Team


class Phases:
    """Sets gradients and modes of a model to what a phase says.

    Args:
        model: As Fabric set it up. What trains now may train in every phase, no more than that.
        optimisers: Names of the task's optimisers.
        task: The task's name, for errors.
        team: The processes, which all enter a phase at the same step.

    Attributes:
        now: The phase entered last; None: everything trains.
    """

    def __init__(self, model: Any, optimisers: Collection[str], task: str, team: Team) -> None:
        self._model, self._names, self._task, self._team = model, tuple(optimisers), task, team
        self._plain: nn.Module = model.module
        self._trainable = {n: p.requires_grad for n, p in self._plain.named_parameters()}
        self.now: Phase | None = None

    @property
    def stepping(self) -> tuple[str, ...]:
        """Names of the optimisers that step now."""
        return self.now.step if self.now else self._names

    def enter(self, phase: Phase | None) -> None:
        """Let a phase begin, or go on; called before each step, for evaluation changes modes.

        Raises:
            TrainingError: It names what the model has not.
        """
        new = phase != self.now
        if new:
            if phase is not None:
                self._check(phase)
            self._team.align(self._model)  # statistics of what rests from now on
        self._model.train()
        for prefix in phase.still if phase else ():
            self._plain.get_submodule(prefix).eval()
        if not new:
            return
        frozen = phase.frozen if phase else ()
        for name, parameter in self._plain.named_parameters():
            inside = any(name == f or name.startswith(f + ".") for f in frozen)
            parameter.requires_grad_(self._trainable[name] and not inside)
        self.now = phase

    def _check(self, phase: Phase) -> None:
        """Make sure a phase names what there is: a wrong prefix would silently train everything."""
        modules = {name for name, _ in self._plain.named_modules()}
        parameters = {name for name, _ in self._plain.named_parameters()}
        wrong = [f"optimiser '{n}'" for n in phase.step if n not in self._names]
        wrong += [f"module '{n}'" for n in phase.still if n not in modules]
        wrong += [f"module '{n}'" for n in phase.frozen if n not in modules | parameters]
        if wrong:
            msg = f"task '{self._task}': a phase names what the model has not: "
            raise self._team.alike(TrainingError(msg + ", ".join(wrong)))
