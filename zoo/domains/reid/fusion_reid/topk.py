"""The smallest numbers of each row, with equal numbers in the order of their place."""

from __future__ import annotations

import torch
from torch import Tensor


def smallest(values: Tensor, count: int) -> Tensor:
    """Places of the `count` smallest numbers of each row, smallest first.

    The same as the beginning of a stable argsort, without sorting the rows.

    Args:
        values: (n, M), without NaN.
        count: How many; all of them where M is smaller.

    Returns:
        (n, min(count, M)) int64.
    """
    count = min(count, values.shape[1])
    found = values.topk(count, dim=1, largest=False)
    places = found.indices
    # topk may take any of the numbers that equal the last one it takes.
    edge = found.values[:, -1:]
    crowded = (values <= edge).sum(dim=1) > count
    for row in crowded.nonzero()[:, 0].tolist():
        places[row] = values[row].sort(stable=True).indices[:count]
    places = places.sort(dim=1).values
    order = values.gather(1, places).sort(dim=1, stable=True).indices
    return places.gather(1, order)


def blocks(total: int, width: int, megabytes: int = 48) -> list[tuple[int, int]]:
    """Bounds of blocks of rows of `width` float32 numbers that fit into some memory."""
    size = max(16, megabytes * 2**20 // (4 * max(1, width)))
    return [(first, min(first + size, total)) for first in range(0, total, size)]


def unit_rows(features: Tensor) -> Tensor:
    """Rows of unit length, in float32 at least."""
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.nn.functional.normalize(wide, dim=1)
