"""Identity-balanced batches, P identities of K images each (`RandomIdentitySampler`, FusionReID).

The batch-hard triplet loss (Hermans et al., 2017, section 2) needs K of each identity in a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from zoo.errors import ConfigError


def identity_batches(
    labels: Sequence[int], size: int, instances: int, rng: np.random.Generator
) -> list[list[int]]:
    """The batches of an epoch.

    The images of each identity are shuffled and cut into groups of K; an identity with fewer than K
    is filled by drawing K with replacement; a remainder is left out of this epoch. Then P
    identities that still have a group are drawn again and again, each giving its next group, until
    fewer than P are left.

    Args:
        labels: Class index of each item.
        size: Items a batch, P x K.
        instances: K.
        rng: Source of all chance, so that the result depends on the epoch alone.

    Returns:
        Item indices of each batch, those of an identity side by side.

    Raises:
        ConfigError: Size is no multiple of K of at least 2 K, or there are too few identities.
    """
    count = persons_of(size, instances)
    groups = _groups(labels, instances, rng)
    if len(groups) < count:
        msg = (
            f"a batch of trainer.batch_size={size} with data.instances={instances} holds {count} "
            f"identities, the training split only {len(groups)}; lower trainer.batch_size"
        )
        raise ConfigError(msg)
    open_ = sorted(groups)
    batches = []
    while len(open_) >= count:
        drawn = [open_[i] for i in rng.choice(len(open_), size=count, replace=False)]
        batches.append([index for person in drawn for index in groups[person].pop()])
        open_ = [person for person in open_ if groups[person]]
    return batches


def persons_of(size: int, instances: int) -> int:
    """P of a batch of P x K.

    Raises:
        ConfigError: Size is no multiple of K, or a batch would hold one identity only.
    """
    if size % instances or size < 2 * instances:
        msg = (
            f"trainer.batch_size={size} is no multiple of data.instances={instances} that holds "
            "two identities or more"
        )
        raise ConfigError(msg)
    return size // instances


def _groups(
    labels: Sequence[int], instances: int, rng: np.random.Generator
) -> dict[int, list[list[int]]]:
    """Class index -> its groups of K item indices."""
    order = np.argsort(np.asarray(labels), kind="stable")
    people, starts = np.unique(np.asarray(labels)[order], return_index=True)
    groups = {}
    for person, items in zip(people.tolist(), np.split(order, starts[1:]), strict=True):
        if len(items) < instances:
            groups[person] = [rng.choice(items, size=instances).tolist()]
        else:
            mixed = rng.permutation(items)[: len(items) // instances * instances]
            groups[person] = mixed.reshape(-1, instances).tolist()
    return groups


def most_items(labels: Sequence[Hashable], instances: int) -> int:
    """Upper limit of the items of an epoch, remainders left out and small identities filled.

    The epoch itself may be shorter: it ends when fewer than P identities have a group left. The
    official code declares this number as its length.
    """
    counts = Counter(labels).values()
    return sum(max(n, instances) // instances * instances for n in counts)
