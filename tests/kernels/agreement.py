"""Holding a path of a block to its definition: the rule, poisoned inputs and guarded outputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

EPS = {torch.float64: 1e-11, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 8e-4}
GUARD, SENTINEL = 64, 123.0


def path(name: str) -> Any:
    """A context in which blocks run on a path."""

    @contextmanager
    def chosen() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOO_KERNELS", name)
            yield

    return chosen()


def poisoned(x: Tensor) -> Tensor:
    """The matrices x as the middle of larger ones that hold NaN everywhere else."""
    *lead, rows, columns = x.shape
    buffer = torch.full((*lead, rows + 5, columns + 7), float("nan"), dtype=x.dtype)
    inside = buffer[..., 2 : 2 + rows, 3 : 3 + columns]
    inside.copy_(x)
    return inside


@contextmanager
def _filled() -> Iterator[None]:
    """`torch.empty` and its relatives give NaN, as PyTorch's deterministic mode has it."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that have no such form: none is needed here
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextmanager
def guarded() -> Iterator[None]:
    """Uninitialised memory starts as NaN, that of `new_empty` between guards nothing may touch."""
    made: list[Tensor] = []

    def new_empty(self: Tensor, *size: Any, **options: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        options.setdefault("dtype", self.dtype)
        count = prod(shape)
        buffer = torch.full((count + 2 * GUARD,), SENTINEL, **options)
        made.append(buffer)
        inside = buffer[GUARD : GUARD + count]
        return (inside.fill_(float("nan")) if inside.is_floating_point() else inside).view(shape)

    with pytest.MonkeyPatch.context() as patch, _filled():
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        yield
    assert made
    for buffer in made:
        assert (buffer[:GUARD] == SENTINEL).all()
        assert (buffer[-GUARD:] == SENTINEL).all()


def hold(
    found: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype,
    scales: Mapping[str, float] | None = None,
) -> None:
    """The rule: error <= 3 x error of plain PyTorch in that dtype + eps x scale, by tensor.

    Args:
        found: Outputs and gradients of the path.
        plain: The same of the definition in the same dtype.
        exact: The same of the definition in float64.
        dtype: Of the inputs.
        scales: Size of what was summed where a result may be a sum that cancels.
    """
    assert found.keys() == plain.keys() == exact.keys()
    for name, true in exact.items():
        assert found[name].dtype == plain[name].dtype, name
        mine, other = found[name].double(), plain[name].double()
        assert mine.shape == true.shape, name
        finite = torch.isfinite(true)
        assert torch.equal(mine[~finite], true[~finite]), name  # lse of empty bags
        if not finite.any():
            continue
        error = (mine - true)[finite].abs().max().item()
        allowed = (other - true)[finite].abs().max().item()
        scale = max(true[finite].abs().max().item(), (scales or {}).get(name, 0.0))
        limit = 3 * allowed + EPS[dtype] * scale
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e} (plain {allowed:.2e})"
