"""The colour histogram: HSV as another library has it, stripes, what it can tell apart."""

import colorsys

import numpy as np
import pytest
import torch

from zoo.domains.reid.fusion_reid.baseline import (
    BINS,
    STRIPES,
    WIDTH,
    colour_histogram,
    hue_saturation_value,
)


def test_hsv_is_that_of_the_standard_library() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.2, 0.7, 1.0])] * 3)
    pixels = torch.cat([corners, torch.rand(200, 3)])
    found = hue_saturation_value(pixels.T[None, :, :, None])[0, :, :, 0].T
    expected = [colorsys.rgb_to_hsv(*rgb) for rgb in pixels.tolist()]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_every_pixel_counts_once_in_its_stripe() -> None:
    image = torch.zeros(1, 3, 60, 20)
    image[0, 0, 30:] = 1.0  # the lower half is red
    squares = colour_histogram(image).square().reshape(STRIPES, -1)
    torch.testing.assert_close(squares.sum(dim=1), torch.full((STRIPES,), 1 / STRIPES))
    assert (squares > 0).sum() == STRIPES
    black, red = 0, (BINS[1] * BINS[2]) - 1
    assert squares[:3, black].min() > 0
    assert squares[3:, red].min() > 0


@pytest.mark.parametrize("size", [(128, 64), (256, 128), (50, 31), (6, 4)], ids=str)
def test_any_size_gives_unit_length(size: tuple[int, int]) -> None:
    found = colour_histogram(torch.rand(3, 3, *size))
    assert found.shape == (3, WIDTH)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_resizing_changes_little_and_another_coat_much() -> None:
    rng = torch.Generator().manual_seed(0)
    coats = torch.rand(2, 3, 6, 1, generator=rng).repeat_interleave(22, 2).expand(-1, -1, -1, 64)
    large = torch.nn.functional.interpolate(coats, (264, 128), mode="bilinear")
    small, big = colour_histogram(coats), colour_histogram(large)
    assert (small - big).norm(dim=1).max() < 0.3
    assert (small[0] - small[1]).norm() > 1.0
