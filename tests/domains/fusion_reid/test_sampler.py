from collections import Counter

import numpy as np
import pytest

from tests.parity.fusion_reid_data import has_the_properties
from zoo.data import order_rng
from zoo.domains.reid.fusion_reid.sampler import identity_batches, most_items, persons_of
from zoo.errors import ConfigError

COUNTS = [5, 9, 4, 2, 7, 12, 1, 6, 8, 4]
LABELS = [person for person, n in enumerate(COUNTS) for _ in range(n)]


def epoch(
    labels: list[int] = LABELS, size: int = 12, instances: int = 4, number: int = 0
) -> list[list[int]]:
    return identity_batches(labels, size, instances, order_rng(1, number))


@pytest.mark.parametrize(("size", "instances"), [(12, 4), (8, 4), (6, 2), (20, 2), (9, 3)])
def test_every_batch_is_p_identities_of_k_images(size: int, instances: int) -> None:
    for number in range(20):
        batches = epoch(size=size, instances=instances, number=number)
        assert batches
        has_the_properties(batches, LABELS, size, instances)


def test_the_order_of_items_is_of_no_account() -> None:
    mixed = np.random.default_rng(3).permutation(LABELS).tolist()
    has_the_properties(epoch(mixed), mixed, 12, 4)


def test_small_identities_are_repeated() -> None:
    labels = [0] * 2 + [1] * 8
    (batch,) = epoch(labels, 8)
    drawn = Counter(i for i in batch if labels[i] == 0)
    assert sum(drawn.values()) == 4
    assert drawn.keys() <= {0, 1}


def test_a_pure_function_of_the_epoch() -> None:
    assert epoch(number=3) == epoch(number=3)
    assert epoch(number=3) != epoch(number=4)


def test_over_epochs_every_image_is_used() -> None:
    seen = {i for number in range(60) for batch in epoch(number=number) for i in batch}
    assert seen == set(range(len(LABELS)))


def test_identities_are_drawn_evenly() -> None:
    """Of twenty identities of one group each, four are drawn: whichever."""
    labels = [p for p in range(20) for _ in range(4)]
    first = Counter(
        labels[i] for number in range(300) for i in epoch(labels, 16, number=number)[0][::4]
    )
    assert len(first) == 20
    assert max(first.values()) < 2.2 * min(first.values())


def test_indices_are_plain_integers() -> None:
    assert all(type(i) is int for batch in epoch() for i in batch)


@pytest.mark.parametrize(("size", "instances"), [(10, 4), (4, 4), (3, 4), (18, 16)])
def test_a_batch_that_is_no_multiple(size: int, instances: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size={size} is no multiple of data.instances"):
        epoch(size=size, instances=instances)
    assert persons_of(128, 16) == 8


def test_too_few_identities() -> None:
    with pytest.raises(ConfigError, match="the training split only 10; lower"):
        epoch(size=44)


def test_the_most_an_epoch_can_hold() -> None:
    assert most_items(LABELS, 4) == 56
    assert most_items(["a", "a", "b"], 2) == 4
    longest = max(sum(map(len, epoch(number=n))) for n in range(50))
    assert longest <= 56
