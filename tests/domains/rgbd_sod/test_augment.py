import numpy as np

from zoo.domains.saliency.rgbd_sod.augment import Augmentation
from zoo.domains.saliency.rgbd_sod.sample import SampleScene

AUGMENT = Augmentation()


def augmented(scene: SampleScene, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depth = scene.depth.astype(np.float32)
    return AUGMENT(scene.rgb, depth, scene.mask.astype(np.uint8), np.random.default_rng(seed))


def test_the_three_stay_aligned(made: list[SampleScene]) -> None:
    for seed in range(30):
        scene = made[seed % len(made)]
        rgb, depth, mask = augmented(scene, seed)
        assert rgb.shape == (*depth.shape, 3)
        assert depth.shape == mask.shape
        assert [a.dtype for a in (rgb, depth, mask)] == [np.uint8, np.float32, np.uint8]
        inside, outside = depth[mask > 0], depth[mask == 0]
        # The object is nearer than half of the scene wherever it was moved to.
        assert inside.size > 0
        assert np.median(inside) < 0.35
        assert np.median(outside) > 0.45
        assert (inside < 0.45).mean() > 0.85


def test_sides_shrink_by_at_most_30_of_256(made: list[SampleScene]) -> None:
    for seed in range(60):
        scene = made[seed % len(made)]
        for before, after in zip(scene.mask.shape, augmented(scene, seed)[2].shape, strict=True):
            assert 1 <= before - after <= max(1, before * 30 // 256)


def test_what_a_rotation_brings_in_is_black_far_and_background(made: list[SampleScene]) -> None:
    scene = made[0]
    ones = np.full(scene.mask.shape, 0.25, np.float32)
    full = np.ones(scene.mask.shape, np.uint8)
    turned = 0
    for seed in range(80):
        rgb, depth, mask = AUGMENT(scene.rgb, ones, full, np.random.default_rng(seed))
        np.testing.assert_array_less(0.2499, depth)
        if (mask > 0).all():
            assert np.ptp(depth) < 1e-6
            continue
        turned += 1
        corner = mask == 0
        assert depth[corner].max() == 1
        # Pixels on the border of the turned image are mixed; beyond it all is filled.
        beyond = depth == 1
        assert not mask[beyond].any()
        # Black before the colours were changed: still one grey nearly everywhere.
        greys, counts = np.unique(rgb[beyond], axis=0, return_counts=True)
        assert np.ptp(greys[counts.argmax()]) == 0
        assert counts.max() > 0.6 * beyond.sum()
    assert 6 <= turned <= 28  # a fifth of them, nearly all angles other than 0


def test_half_of_the_items_are_flipped(made: list[SampleScene]) -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    image = np.zeros((64, 64, 3), np.uint8)
    flipped = 0
    for seed in range(200):
        _, depth, _ = AUGMENT(image, ramp, image[..., 0], np.random.default_rng(seed))
        middle = depth[len(depth) // 2]
        flipped += middle[len(middle) // 4] > middle[3 * len(middle) // 4]
    assert 75 < flipped < 125
