"""Holes of a depth map filled from the nearest measured pixel, in PyTorch's operators alone.

OpenCV's distance transform, which the adapter fills by, walks over the picture pixel by pixel and
cannot be traced. Here all pixels ask at once who their neighbours know, first far away and then
nearer and nearer: jump flooding (Rong and Tan, 2006, "Jump flooding in GPU with applications to
Voronoi diagram and distance transform"), along columns and rows in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Twice as far as they reach no measured pixel is found. Two short jumps at the end mend what the
# long ones missed.
_JUMPS = (*(2**k for k in range(11, -1, -1)), 2, 1)
_UNKNOWN = 1e5  # beyond every picture, in pixels
# Of OpenCV's 5 x 5 mask for Euclidean distance, for steps aside and knight's moves.
_KNIGHT, _DIAGONAL = 2.1969, 1.4
_LATER = 1e-3  # decides between pixels that are equally near, and between those only


def filled_by_nearest(values: Tensor, holes: Tensor) -> Tensor:
    """`values` with each hole's taken from the measured pixel that is nearest to it.

    Of equally near ones that one is taken which OpenCV mostly takes. A hole more than about 4,000
    pixels away from any measured one becomes 1.

    Args:
        values: (B, 1, H, W) float, finite.
        holes: (B, 1, H, W) bool.
    """
    height, width = values.shape[2], values.shape[3]
    device = values.device
    y = torch.arange(height, device=device, dtype=torch.float32).view(1, 1, -1, 1)
    x = torch.arange(width, device=device, dtype=torch.float32).view(1, 1, 1, -1)
    row = torch.where(holes, _UNKNOWN, y)
    column = torch.where(holes, _UNKNOWN, x)
    best = _distance(row - y, column - x)
    for jump in _JUMPS:
        for axis, size in ((2, height), (3, width)):
            places = torch.arange(size, device=device)
            asked = [(places + way).clamp(0, size - 1) for way in (-jump, jump)]
            # Both are asked before either answer counts.
            known = [(row.index_select(axis, a), column.index_select(axis, a)) for a in asked]
            for its_row, its_column in known:
                found = _distance(its_row - y, its_column - x)
                nearer = found < best
                best = torch.where(nearer, found, best)
                row = torch.where(nearer, its_row, row)
                column = torch.where(nearer, its_column, column)
    index = row.long().clamp(max=height - 1) * width + column.long().clamp(max=width - 1)
    taken = values.flatten(2).gather(2, index.flatten(2)).view_as(values)
    return torch.where(best < _UNKNOWN / 2, taken, 1.0)


def _distance(down: Tensor, right: Tensor) -> Tensor:
    """Steps to a pixel, as OpenCV counts them, and a little more if it is met on its way back.

    It goes through a picture in reading order, looking at most a knight's move to the right of the
    rows above, and then back; what it met first stays where distances are equal.

    Args:
        down: Rows to it.
        right: Columns to it.
    """
    rows, columns = down.abs(), right.abs()
    far, near = torch.maximum(rows, columns), torch.minimum(rows, columns)
    flat = far + (_KNIGHT - 2) * near
    steps = torch.maximum(flat, (_KNIGHT - _DIAGONAL) * far + (2 * _DIAGONAL - _KNIGHT) * near)
    first = (down <= 0) & (right + 2 * down <= 0)
    return torch.where(first, steps, steps + _LATER)
