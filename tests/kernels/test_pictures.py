"""Resizing as Pillow does it, in whole numbers, and pictures that are none in [0, 1]."""

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from zoo.kernels.pictures import nan_unless_unit, resized, resized_bytes

SIZES = [
    ((97, 101), (64, 48)),
    ((31, 17), (96, 64)),
    ((40, 900), (64, 64)),
    ((1, 1), (32, 16)),
    ((64, 200), (64, 48)),
    ((61, 29), (61, 29)),
    ((128, 64), (256, 128)),
]


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


def as_input(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("size", "wanted"), SIZES, ids=str)
def test_bytes_are_pillow_s_to_the_bit(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = picture(size)
    expected = Image.fromarray(image).resize(wanted[::-1], Image.Resampling.BILINEAR)
    found = resized_bytes(as_input(image), wanted)
    torch.testing.assert_close(found, as_input(np.asarray(expected)), rtol=0, atol=0)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow takes rows first")
def test_of_tall_pictures_a_level_may_be_one_off() -> None:
    image = picture((700, 256))
    expected = Image.fromarray(image).resize((128, 256), Image.Resampling.BILINEAR)
    apart = (resized_bytes(as_input(image), (256, 128)) - as_input(np.asarray(expected))).abs()
    assert apart.max() == pytest.approx(1 / 255, abs=1e-6)
    assert (apart > 0).float().mean() < 0.3


@pytest.mark.parametrize(("size", "wanted"), SIZES, ids=str)
def test_floats_are_pillow_s_to_rounding(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).random(size).astype(np.float32)
    expected = Image.fromarray(plane).resize(wanted[::-1], Image.Resampling.BILINEAR)
    found = resized(torch.from_numpy(plane)[None, None], wanted)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(np.array(expected)), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("value", "fits"), [(0.0, True), (1.2, True), (-0.1, True), (2.0, False), (-1.0, False)]
)
def test_only_pictures_in_the_unit_range_have_an_answer(value: float, fits: bool) -> None:
    images = torch.full((2, 3, 4, 5), 0.5)
    images[1, 2, 3, 4] = value
    added = nan_unless_unit(images)
    assert added.shape == (2, 1, 1, 1)
    assert added[0] == 0
    assert bool(added[1].isnan()) != fits


def test_a_picture_with_nan_has_no_answer() -> None:
    assert nan_unless_unit(torch.full((1, 1, 2, 2), float("nan"))).isnan().all()


def test_one_graph_serves_all_sizes() -> None:
    class Resize(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return resized_bytes(image, (32, 16)) + nan_unless_unit(image)

    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Resize(), (torch.rand(2, 3, 50, 20),), dynamic_shapes=(sizes,))
    for shape in ((1, 3, 7, 90), (3, 3, 32, 16), (1, 3, 9, 5)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(program.module()(image), Resize()(image))
