"""Which images a picture of a split shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def picked(errors: Sequence[float], each: int = 2) -> list[int]:
    """Places of the best, the middle and the worst images, best first, none twice.

    Args:
        errors: Error of each image; of equal ones the first counts as the better.
        each: How many of each kind; fewer where there are fewer images.
    """
    order = [int(i) for i in np.argsort(np.asarray(errors), kind="stable")]
    if len(order) <= 3 * each:
        return order
    start = (len(order) - each) // 2
    return order[:each] + order[start : start + each] + order[-each:]
