"""Broadcast gates: MEDUSA's scale heads, and the resample against one of an expanded map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.harness import Row, can_compile, rows
from zoo.kernels import BroadcastGate, broadcast_gate, legacy_resize
from zoo.kernels.broadcast_gate import reference

Gate = Callable[..., Tensor]
_COMPILED = 256
"""Channels of the cases that torch.compile is asked for, which takes its time."""


def _forward(gate: Gate, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        gate(*inputs)


def _both(gate: Gate, inputs: list[Tensor]) -> None:
    torch.autograd.grad(gate(*inputs).sum(), inputs)


def head(module: BroadcastGate, resize: Callable[[Tensor, tuple[int, int]], Tensor]) -> Gate:
    """MEDUSA's head with another resize, written out as in the paper."""

    def gate(x: Tensor, level: Tensor) -> Tensor:
        made: Tensor = x + x * module.conv(resize(level, (x.shape[2], x.shape[3])))
        return made

    return gate


def expanded(x: Tensor, level: Tensor) -> Tensor:
    """A pixel gate that expands its map before it resamples it."""
    wide = level.expand(-1, x.shape[1], -1, -1)
    return x * reference.legacy_resize(wide, (x.shape[2], x.shape[3])).sigmoid()


def once(x: Tensor, level: Tensor) -> Tensor:
    """The same with one channel until the product."""
    return broadcast_gate(x, legacy_resize(level, (x.shape[2], x.shape[3])))


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times heads and gates.

    Args:
        device: Where to run.
        quick: Fewer sizes and rounds.
    """
    found: list[Row] = []
    rounds = 30 if device.type == "cuda" else 3 if quick else 7
    modes: dict[str, Callable[..., Any]] = {"fwd": _forward, "fwd+bwd": _both}

    def measure(case: str, forms: dict[str, Gate], inputs: list[Tensor]) -> None:
        for mode, one in modes.items():
            runs = {name: partial(one, gate, inputs) for name, gate in forms.items()}
            found.extend(rows("broadcast_gate", case, mode, runs, device, rounds=rounds))

    for channels, side in ((512, 60),) if quick else ((64, 119), (256, 119), (512, 60), (1024, 30)):
        x = torch.rand(1, channels, side, side, device=device).requires_grad_()
        level = torch.rand(1, 1, 256, 256, device=device).requires_grad_()
        module = BroadcastGate(channels).to(device)
        forms: dict[str, Gate] = {"eager": head(module, reference.legacy_resize), "torch": module}
        if channels == _COMPILED and not quick and can_compile(device):
            forms["compile"] = torch.compile(forms["eager"], dynamic=False)
        measure(f"scale head, 1 x {channels} x {side} x {side}", forms, [x, level])
    for channels, side in ((256, 28),) if quick else ((256, 56), (256, 28), (512, 7)):
        x = torch.rand(4, channels, side, side, device=device).requires_grad_()
        level = torch.rand(4, 1, 64, 64, device=device).requires_grad_()
        gates: dict[str, Gate] = {"eager, map expanded": expanded, "torch": once}
        if channels == _COMPILED and side == 28 and not quick and can_compile(device):
            gates["compile"] = torch.compile(expanded, dynamic=False)
        measure(f"pixel gate, 4 x {channels} x {side} x {side}", gates, [x, level])
    return found
