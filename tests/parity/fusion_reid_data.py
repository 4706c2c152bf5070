"""How the recorded erasing, file names and batches of `fusion_reid` are run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tests.parity.golden import Case
from zoo.domains.reid.fusion_reid.images import erased_box
from zoo.domains.reid.fusion_reid.names import DISTRACTOR, JUNK, form_of, parse
from zoo.domains.reid.fusion_reid.sampler import identity_batches, most_items


def names_target(case: Case) -> None:
    rule = case.info["defaults"]
    assert rule["max_count"] == 1
    for recorded in case.info["erasing"]:
        rng = random.Random(recorded["seed"])
        for box in recorded["top_left_height_width"]:
            ours = erased_box(
                tuple(recorded["size"]),
                recorded["probability"],
                rng,
                area=(rule["min_area"], rule["max_area"]),
                aspect=(rule["min_aspect"], rule["max_aspect"]),
                attempts=rule["attempts"],
            )
            assert ours == (box if box is None else tuple(box))
    for told in case.info["names"]:
        said = parse(told["name"], form_of(told["name"]) or "market1501")
        assert said is not None, told
        person = {JUNK: -1, DISTRACTOR: 0}.get(said.person)
        assert (int(said.person) if person is None else person) == told["pid"]
        assert int(said.camera) - 1 == told["cam_index"]


def sampler_target(case: Case) -> None:
    info = case.info
    size, instances = info["batch_size"], info["num_instances"]
    labels = np.repeat(np.arange(len(info["counts"])), info["counts"]).tolist()
    assert most_items(labels, instances) == info["declared_length"]
    for order in info["epochs"]:
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        has_the_properties(batches, labels, size, instances)
    for seed in range(20):
        ours = identity_batches(labels, size, instances, np.random.default_rng(seed))
        has_the_properties(ours, labels, size, instances)


def has_the_properties(
    batches: Sequence[Sequence[int]], labels: Sequence[int], size: int, instances: int
) -> None:
    """What the case calls the contract; the order is the generator's."""
    counts = Counter(labels)
    used: Counter[int] = Counter()
    groups: Counter[int] = Counter()
    for batch in batches:
        assert len(batch) == size
        cut = [batch[i : i + instances] for i in range(0, size, instances)]
        people = [{labels[i] for i in group} for group in cut]
        assert all(len(one) == 1 for one in people)
        assert len(set.union(*people)) == size // instances
        used.update(batch)
        groups.update(next(iter(one)) for one in people)
    for index, times in used.items():
        assert times == 1 or counts[labels[index]] < instances
    room = {person: max(1, n // instances) for person, n in counts.items()}
    assert all(groups[person] <= room[person] for person in room)
    # It ends only when too few identities have a group left.
    assert sum(groups[person] < room[person] for person in room) < size // instances
    assert sum(map(len, batches)) <= most_items(labels, instances)


TARGETS = {
    "erasing_and_names": names_target,
    "identity_sampler": sampler_target,
}
