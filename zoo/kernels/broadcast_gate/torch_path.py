"""The transposed resample as a gather: each coarse cell sums a fixed neighbourhood.

The gradient of a gather is a scatter, which adds in no fixed order on a GPU. Output cells that
read a given input cell stand side by side, so their contributions can be collected instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels.broadcast_gate.reference import legacy_grid


def readers(out: int, of: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which output cells read each input cell, and with what weight.

    Args:
        out: Output size of the resize.
        of: Input size.
        device: Of the result.

    Returns:
        (of, K) output cells and (of, K) float32 weights, 0 where there is no such reader.
    """
    low, high, weight = legacy_grid(out, of, device)
    cell = torch.arange(of, device=device)
    first = torch.searchsorted(low, cell - 1)
    # An input cell is reached from two steps of width out / of, rounded outwards.
    width = min(out, -(-2 * out // of) + 1)
    index = first.unsqueeze(1) + torch.arange(width, device=device)
    inside = index < out
    index = index.clamp_max(out - 1)
    share = torch.where(low[index] == cell.unsqueeze(1), 1 - weight[index], 0.0)
    share = share + torch.where(high[index] == cell.unsqueeze(1), weight[index], 0.0)
    return index, share * inside


def resize_backward(grad: Tensor, height: int, width: int) -> Tensor:
    """Gradient (B, C, height, width) of the input of a legacy resize.

    Args:
        grad: (B, C, H', W') gradient of its output.
        height: Of the input.
        width: Of the input.
    """
    index, share = readers(grad.shape[2], height, grad.device)
    rows = torch.unflatten(grad.index_select(2, index.flatten()), 2, index.shape)
    grad = (rows * share.to(grad.dtype).unsqueeze(2)).sum(dim=3)
    index, share = readers(grad.shape[3], width, grad.device)
    columns = torch.unflatten(grad.index_select(3, index.flatten()), 3, index.shape)
    summed: Tensor = (columns * share.to(grad.dtype)).sum(dim=4)
    return summed
