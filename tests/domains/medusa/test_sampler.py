import numpy as np
import pytest

from zoo.data import order_rng
from zoo.domains.medical.medusa.sampler import balanced_batches

LABELS = [1 if i % 7 == 0 else 0 for i in range(70)]  # 10 positives, 60 negatives


def epoch(
    labels: list[int] = LABELS,
    positive: int = 1,
    size: int = 16,
    share: float = 0.5,
    number: int = 0,
) -> list[list[int]]:
    return balanced_batches(labels, positive, size, share, order_rng(0, number))


def test_an_epoch_is_the_negatives_in_batches() -> None:
    batches = epoch()
    assert [len(b) for b in batches] == [16, 16, 16, 12]
    for batch in batches:
        positives = [i for i in batch if LABELS[i]]
        assert len(positives) == max(int(len(batch) * 0.5), 1)
        assert len(set(positives)) == len(positives)  # without replacement within the batch
    negatives = [i for batch in batches for i in batch if not LABELS[i]]
    assert len(set(negatives)) == len(negatives)


@pytest.mark.parametrize(("share", "count"), [(0.3, 4), (0.5, 8), (0.01, 1), (0.99, 10)])
def test_share_is_truncated_and_at_least_one(share: float, count: int) -> None:
    batches = epoch(share=share, size=16)
    found = sum(LABELS[i] for i in batches[0])
    assert found == (15 if share == 0.99 else count)


def test_positions_are_random() -> None:
    places = [tuple(LABELS[i] for i in b) for n in range(20) for b in epoch(number=n)[:3]]
    assert len(set(places)) > 40
    assert 0.35 < np.mean([p[0] for p in places]) < 0.65


def test_fewer_positives_than_places_are_repeated() -> None:
    labels = [0] * 20 + [1, 1]
    batches = balanced_batches(labels, 1, 10, 0.5, order_rng(0, 0))
    assert all(sum(labels[i] for i in b) == 5 for b in batches)


def test_a_pure_function_of_the_epoch() -> None:
    assert epoch(number=3) == epoch(number=3)
    assert epoch(number=3) != epoch(number=4)


def test_three_classes_have_normal_and_pneumonia_as_negatives() -> None:
    labels = [0] * 30 + [1] * 10 + [2] * 10
    batches = epoch(labels, positive=2, size=8)
    assert len(batches) == 5
    assert all(sum(labels[i] == 2 for i in b) == 4 for b in batches)
    used = {labels[i] for b in batches for i in b}
    assert used == {0, 1, 2}


def test_share_0_takes_every_item_once() -> None:
    batches = epoch(share=0)
    assert sorted(i for b in batches for i in b) == list(range(70))
    assert [len(b) for b in batches] == [16, 16, 16, 16, 6]


@pytest.mark.parametrize("labels", [[0] * 9, [1] * 9, [-1] * 9])
def test_one_class_only_is_shuffled(labels: list[int]) -> None:
    assert sorted(i for b in epoch(labels, size=4) for i in b) == list(range(9))


def test_batches_of_one() -> None:
    """A batch of one is always a positive: int(1 * 0.5) is 0, and at least one is put in."""
    assert all(LABELS[b[0]] for b in epoch(size=1))
