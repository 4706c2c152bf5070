import pickle

import numpy as np
import pytest

from tests.domains.her_seg.picture_files import disc, picture
from zoo.domains.medical.her_seg.augment import (
    STRENGTHS,
    Augmentation,
    Strength,
    cut,
    drawn_prompts,
    fitted,
)

MASK = disc((48, 48), 3).astype(np.uint8)
IMAGE = picture(MASK > 0, 3)
VALID = np.ones_like(MASK)
VALID[:, 40:] = 0


def masks() -> dict[str, np.ndarray]:
    return {"mask": MASK, "valid": VALID}


def moved(strength: Strength, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return Augmentation(strength)(IMAGE, masks(), np.random.default_rng(seed))


def test_nothing_is_changed_without_augmentation() -> None:
    image, others = moved(STRENGTHS["none"])
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(others["mask"], MASK)


def test_official_preset_mirrors_one_picture_in_ten() -> None:
    apply = Augmentation(STRENGTHS["official"])
    turned = 0
    for seed in range(400):
        image, others = apply(IMAGE, masks(), np.random.default_rng(seed))
        if not np.array_equal(image, IMAGE):
            np.testing.assert_array_equal(image, IMAGE[:, ::-1])
            np.testing.assert_array_equal(others["mask"], MASK[:, ::-1])
            np.testing.assert_array_equal(others["valid"], VALID[:, ::-1])
            turned += 1
    assert 20 <= turned <= 65


@pytest.mark.parametrize("seed", range(6))
def test_picture_and_mask_stay_together(seed: int) -> None:
    image, others = moved(STRENGTHS["standard"], seed)
    assert image.shape == IMAGE.shape
    assert image.dtype == others["mask"].dtype == np.uint8
    assert set(np.unique(others["mask"])) <= {0, 1}
    inside = image[others["mask"] > 0].mean()
    outside = image[others["mask"] == 0].mean()
    assert inside > outside + 60


def test_chance_comes_from_the_generator_alone() -> None:
    apply = Augmentation(STRENGTHS["standard"])
    first, _ = apply(IMAGE, masks(), np.random.default_rng(5))
    np.random.seed(0)
    apply(IMAGE, masks(), np.random.default_rng(6))
    again, _ = apply(IMAGE, masks(), np.random.default_rng(5))
    other = pickle.loads(pickle.dumps(apply))  # as in a worker process
    third, _ = other(IMAGE, masks(), np.random.default_rng(5))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize(
    "strength",
    [
        Strength(mirror=1),
        Strength(upset=1),
        Strength(warp=1, shift=0.2, scale=(0.7, 1.4), rotate=40),
    ],
)
def test_spatial_changes_move_pixels_and_masks(strength: Strength) -> None:
    image, others = moved(strength, 2)
    assert not np.array_equal(image, IMAGE)
    assert not np.array_equal(others["mask"], MASK)
    assert set(np.unique(others["valid"])) <= {0, 1}


@pytest.mark.parametrize(
    "strength",
    [Strength(light=1, brightness=0.3, contrast=0.3), Strength(negative=1)],
)
def test_colour_changes_leave_masks(strength: Strength) -> None:
    image, others = moved(strength, 2)
    assert np.abs(image.astype(int) - IMAGE).mean() > 5
    np.testing.assert_array_equal(others["mask"], MASK)


def test_grey_stays_grey_under_colour_changes() -> None:
    strength = Strength(colour=1, saturation=0.5, hue=0.2)
    grey = np.repeat(IMAGE[..., :1], 3, axis=2)
    changed, _ = Augmentation(strength)(grey, masks(), np.random.default_rng(1))
    assert np.ptp(changed.astype(int), axis=2).max() <= 1
    coloured, _ = Augmentation(strength)(IMAGE, masks(), np.random.default_rng(1))
    assert not np.array_equal(coloured, IMAGE)


def test_fitted_has_padding_marked() -> None:
    square = fitted(IMAGE[:24], MASK[:24], 32, "letterbox")
    assert square.image.shape == (32, 32, 3)
    assert square.valid.sum() == 16 * 32
    assert not square.mask[16:].any()


def test_windows_lie_inside_and_are_drawn_toward_foreground() -> None:
    mask = np.zeros((100, 90), np.uint8)
    mask[97, 85] = 1
    image = np.stack([mask] * 3, axis=2)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        window, over = cut(image, mask, 32, 0.67, rng)
        assert window.shape == (32, 32, 3)
        np.testing.assert_array_equal(window[..., 0], over)
        hits += int(over.any())
    assert 28 <= hits <= 56
    assert sum(cut(image, mask, 32, 0.0, rng)[1].any() for _ in range(100)) <= 5
    assert all(cut(image, mask, 32, 1.0, rng)[1].any() for _ in range(10))


def test_the_chosen_pixel_lies_anywhere_in_its_window() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[50, 50] = 1
    rng = np.random.default_rng(0)
    places = [
        np.argwhere(cut(mask[..., None], mask, 32, 1.0, rng)[1])[0].tolist() for _ in range(200)
    ]
    rows, columns = np.array(places).T
    assert (rows.min(), columns.min()) < (4, 4)
    assert min(rows.max(), columns.max()) > 27
    assert len(set(rows.tolist())) > 25
    assert len(set(columns.tolist())) > 25


def test_windows_reach_every_corner_and_small_pictures_stay_whole() -> None:
    image = np.zeros((34, 35, 3), np.uint8)
    corners = np.zeros((34, 35), np.uint8)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = (1, 2, 3, 4)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        seen |= set(np.unique(cut(image, corners, 32, 0.0, rng)[1]).tolist())
    assert seen == {0, 1, 2, 3, 4}
    assert cut(image, corners, 64, 0.5, rng)[1].shape == (34, 35)


def test_points_lie_where_their_labels_say() -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(40):
        points, box = drawn_prompts(MASK, "points", rng)
        assert (box == -1).all()
        used = points[points[:, 2] >= 0]
        counts.add(len(used))
        assert used[0, 2] == 1
        for x, y, label in used:
            assert MASK[int(y), int(x)] == label
    assert counts == {1, 2, 3}


def test_boxes_lie_close_around_the_mask() -> None:
    rows, columns = np.flatnonzero(MASK.any(1)), np.flatnonzero(MASK.any(0))
    tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, box = drawn_prompts(MASK, "boxes", rng)
        assert (points[:, 2] == -1).all()
        assert np.abs(box - tight).max() <= 0.1 * 11 + 1e-6
        assert not np.array_equal(box, tight)


def test_mixed_prompts_are_each_kind_and_none() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        points, box = drawn_prompts(MASK, "mixed", rng)
        kinds.add((bool((points[:, 2] >= 0).any()), bool((box >= 0).all())))
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_empty_masks_have_points_outside_and_no_box() -> None:
    rng = np.random.default_rng(0)
    empty = np.zeros((16, 16), np.uint8)
    points, _ = drawn_prompts(empty, "points", rng)
    assert (points[points[:, 2] >= 0][:, 2] == 0).all()
    assert (drawn_prompts(empty, "boxes", rng)[1] == -1).all()
