"""Batches with a set share of the positive class (`BalanceCovidDataset`, COVID-Net's `data.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.data import shuffled_batches


def balanced_batches(
    labels: Sequence[int], positive: int, size: int, share: float, rng: np.random.Generator
) -> list[list[int]]:
    """The batches of an epoch: every negative once, some places given to positives.

    The negatives (all other classes together) are shuffled and cut into batches; in each, the share
    of places, at least one, goes to positives drawn for this batch without replacement. An epoch is
    therefore ceil(negatives / size) batches, and some negatives are left out of it.

    Args:
        labels: Class index of each item.
        positive: Index of the positive class.
        size: Items a batch.
        share: Share of the places for positives; 0 shuffles all items instead.
        rng: Source of all chance, so that the result depends on the epoch alone.

    Returns:
        Item indices of each batch. With no positive or no negative at all: everything, shuffled.
    """
    cases = np.flatnonzero(np.asarray(labels) == positive)
    others = np.flatnonzero(np.asarray(labels) != positive)
    if share == 0 or not len(cases) or not len(others):
        return shuffled_batches(len(labels), size, rng)
    order = rng.permutation(others)
    batches = []
    for start in range(0, len(order), size):
        batch = order[start : start + size].copy()
        count = max(int(len(batch) * share), 1)
        places = rng.choice(len(batch), size=count, replace=False)
        # Fewer positives than places: a tiny data set repeats them.
        batch[places] = rng.choice(cases, size=count, replace=count > len(cases))
        batches.append(batch.tolist())
    return batches
