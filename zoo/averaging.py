"""Mean gradients of a small model over processes, in the same exchange as a step's few numbers.

DDP sends gradients in several messages while others are still being computed, which pays for large
models. A small one has nothing to send meanwhile, and each message costs a wait for the slowest
process: there one message after the backward pass is the better way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.team import Team

MOST = 1 << 20
"""Bytes of gradients up to which there is one message: what DDP sends first is as large."""


def small(model: nn.Module) -> bool:
    """Whether all gradients of a model are at most `MOST` bytes."""
    sizes = (p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return sum(sizes) <= MOST


class Averages:
    """Replaces gradients by their mean over processes.

    Args:
        model: The same in all processes; it begins with the first one's weights and buffers.
        team: The processes.
    """

    def __init__(self, model: nn.Module, team: Team) -> None:
        self._parameters, self._team = list(model.parameters()), team
        team.align(model, weights=True)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Numbers summed over processes; gradients are means of all of them afterwards.

        A parameter that has a gradient in some processes gets one in all, with zeros for the
        others. One without any is left without, so that its optimiser passes it by.
        """
        taking = [p for p in self._parameters if p.requires_grad]
        if not taking:
            return self._team.sums(numbers)
        parts = [_flat(p) for p in taking]
        there = parts[0].new_tensor([p.grad is not None for p in taking])
        message = torch.cat([*parts, there])
        found = self._team.sums(numbers, message)
        *means, there = torch.split(message, [*(p.numel() for p in taking), len(taking)])
        for parameter, mean, count in zip(taking, means, there.tolist(), strict=True):
            if count:
                _put(parameter, mean.view_as(parameter).div_(self._team.size))
        return found


def _flat(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    return parameter.new_zeros(parameter.numel()) if grad is None else grad.reshape(-1)


def _put(parameter: nn.Parameter, mean: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = mean.to(parameter.dtype)
    else:
        parameter.grad.copy_(mean)
