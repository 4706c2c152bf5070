"""Augmentation of slices by MONAI; importing MONAI takes seconds, so these tests are few."""

import pickle

import numpy as np
import pytest

from zoo.domains.medical.her_seg.augment_slices import SliceAugmentation

Augmented = tuple[np.ndarray, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def augment() -> SliceAugmentation:
    return SliceAugmentation()


def augmented(
    augment: SliceAugmentation, seed: int, image: np.ndarray, **masks: np.ndarray
) -> Augmented:
    return augment(image, masks, np.random.default_rng(seed))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright block on a grey ground, and its mask."""
    mask = np.zeros((40, 40), np.uint8)
    mask[8:20, 5:17] = 2
    image = np.full((40, 40, 3), 60, np.uint8)
    image[mask > 0] = 200
    return image, mask


def test_chance_comes_from_the_generator_alone(augment: SliceAugmentation) -> None:
    image, mask = scene()
    np.random.seed(1)
    first = [augmented(augment, seed, image, mask=mask) for seed in range(6)]
    np.random.seed(2)
    copy = pickle.loads(pickle.dumps(augment))
    for seed in reversed(range(6)):
        again = augmented(copy, seed, image, mask=mask)
        assert np.array_equal(again[0], first[seed][0])
        assert np.array_equal(again[1]["mask"], first[seed][1]["mask"])
    assert len({shown.tobytes() for shown, _ in first}) > 3


def test_masks_move_with_the_slice_and_keep_their_values(augment: SliceAugmentation) -> None:
    image, mask = scene()
    whole = np.ones_like(mask)
    for seed in range(20):
        shown, moved = augmented(augment, seed, image, mask=mask, valid=whole)
        assert shown.dtype == moved["mask"].dtype == np.uint8
        assert shown.shape == image.shape
        assert set(np.unique(moved["mask"])) == {0, 2}
        inside = shown[moved["mask"] == 2].mean()
        outside = shown[(moved["mask"] == 0) & (moved["valid"] > 0)].mean()
        assert inside > outside + 60
        # What came from outside of the slice is dark, no foreground, and marked.
        assert not moved["mask"][moved["valid"] == 0].any()


def test_neighbouring_slices_change_alike(augment: SliceAugmentation) -> None:
    image, mask = scene()
    for seed in range(20):
        shown, _ = augmented(augment, seed, image, mask=mask)
        assert (shown == shown[..., :1]).all()  # grey stays grey
    image[..., 1] = image[..., 0] // 2
    differ = 0
    for seed in range(20):
        shown, moved = augmented(augment, seed, image, mask=mask)
        block = moved["mask"] == 2
        ratio = shown[block].mean(axis=0) / image[mask == 2].mean(axis=0)
        assert ratio[0] == pytest.approx(ratio[2], abs=0.03)
        differ += abs(ratio[0] - 1) > 0.02
    assert differ > 5
