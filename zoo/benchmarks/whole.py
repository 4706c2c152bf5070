"""What the benchmarks of whole tasks share: the task's modules, and both passes timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from zoo import registry
from zoo.benchmarks.costs import saved_megabytes
from zoo.benchmarks.harness import Form, Row, rows

Run = Callable[[], Tensor]


def part_of(task: str, name: str) -> ModuleType:
    """A module of a task's folder, which is where the registry's entry points.

    Args:
        task: As the registry names it.
        name: `config`, `model`, `plain` …
    """
    folder = (registry.built(task)[1].code or "").partition(":")[0].rpartition(".")[0]
    return import_module(f"{folder}.{name}")


def forward(run: Run) -> None:
    """The forward pass alone."""
    with torch.no_grad():
        run()


def both(run: Run) -> None:
    """Forward and backward, from the sum of what comes out."""
    torch.autograd.backward(run().sum())


def passes(
    task: str,
    case: str,
    runs: Mapping[str, Run],
    model: nn.Module,
    device: torch.device,
    rounds: int,
    errors: Mapping[str, float] | None = None,
) -> list[Row]:
    """Rows of the forward pass, and of forward and backward with what is saved between them.

    Args:
        task: As the registry names it.
        case: In words.
        runs: Name -> run; the first is the plain form.
        model: Whose parameters are left out of memory, and whose gradients are dropped.
        device: Where to run.
        rounds: How often each form is timed.
        errors: Error against float64 by form, if it was measured.
    """
    found = []
    saved = {name: saved_megabytes(run, model) for name, run in runs.items()}
    for mode, how in (("fwd", forward), ("fwd+bwd", both)):
        forms: dict[str, Form] = {name: partial(how, run) for name, run in runs.items()}
        memory = saved if mode == "fwd+bwd" else None
        found += rows(task, case, mode, forms, device, rounds=rounds, memory=memory, errors=errors)
        model.zero_grad(set_to_none=True)
    return found
