import numpy as np
import pytest
import torch

from tests.domains.her_seg.picture_files import disc, picture
from zoo.domains.medical.her_seg.geometry import (
    PADDING,
    mask_to_square,
    place,
    resized,
    to_square,
)


def test_squash_fills_the_square() -> None:
    square, placement = to_square(picture(disc((40, 20))), 32, "squash")
    assert square.shape == (32, 32, 3)
    assert placement.valid().all()


def test_letterbox_keeps_the_aspect_ratio_and_pads_right_or_below() -> None:
    square, placement = to_square(np.full((40, 20, 3), 9, np.uint8), 32, "letterbox")
    assert placement.inner == (32, 16)
    assert (square[:, :16] == 9).all()
    assert (square[:, 16:] == PADDING).all()
    assert placement.valid().sum() == 32 * 16
    wide, _ = to_square(np.full((20, 40, 3), 0.25, np.float32), 32, "letterbox")
    assert wide.dtype == np.float32
    np.testing.assert_allclose(wide[20], np.array(PADDING)[None] / 255 + np.zeros((32, 1)))


def test_tiles_keep_the_resolution() -> None:
    image = picture(disc((24, 20)))
    square, placement = to_square(image, 32, "tiles")
    np.testing.assert_array_equal(square[:24, :20], image)
    assert placement.inner == (24, 20)
    with pytest.raises(ValueError, match="larger than the square"):
        place((40, 20), 32, "tiles")


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [(50, 30), (30, 50), (17, 90), (64, 64), (3, 3)])
def test_a_mask_comes_back_to_where_it_was(fit: str, size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = ((rows > size[0] // 3) & (columns < size[1] // 2)).astype(np.uint8)
    placement = place(size, 64, fit)  # type: ignore[arg-type]
    logits = torch.from_numpy(mask_to_square(mask, placement)).float()[None] * 2 - 1
    back = placement.back(logits)
    assert back.shape == (1, *size)
    wrong = (back[0].numpy() > 0) != mask.astype(bool)
    # Pixels of one line each where a side was made smaller.
    assert wrong.sum() <= sum(size) * max(1.0, max(size) / 64)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_low_resolution_logits_come_back_too(fit: str) -> None:
    placement = place((40, 20), 64, fit)  # type: ignore[arg-type]
    ramp = torch.linspace(0, 1, 16)[None, :, None].expand(1, 16, 16)
    back = placement.back(ramp)[0, :, 5]
    assert back.shape == (40,)
    straight = (torch.arange(40) + 0.5) / 40 * 16 / 15 - 0.5 / 15
    np.testing.assert_allclose(back[2:-2], straight[2:-2], atol=1e-4)


def test_padding_does_not_leak_into_what_comes_back() -> None:
    placement = place((40, 20), 64, "letterbox")
    logits = torch.full((1, 64, 64), -100.0)
    logits[:, :, :32] = 5.0
    assert placement.back(logits).min() == 5


def test_points_follow_the_picture() -> None:
    placement = place((40, 20), 64, "letterbox")
    moved = placement.points(np.array([[20, 40], [10, 10]]))
    np.testing.assert_allclose(moved, [[32, 64], [16, 16]])
    placement = place((40, 20), 64, "squash")
    np.testing.assert_allclose(placement.points(np.array([20.0, 40.0])), [64, 64])


def test_resizing_floats_and_bytes_agree() -> None:
    image = picture(disc((40, 20)))
    small = resized(image, (13, 31))
    assert small.dtype == np.uint8
    floats = resized(image.astype(np.float32), (13, 31))
    assert np.abs(floats - small).max() < 1.01
    numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
    np.testing.assert_array_equal(resized(numbers, (6, 8), nearest=True)[::2, ::2], numbers)
