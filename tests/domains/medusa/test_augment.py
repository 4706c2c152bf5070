import math

import numpy as np
import pytest
from scipy import ndimage

from zoo.data import item_rng
from zoo.domains.medical.medusa import augment
from zoo.domains.medical.medusa.images import Raster

from .writers import picture


def chest(shape: tuple[int, int] = (64, 56)) -> np.ndarray:
    """Smooth, and black towards the border, where libraries fade out differently."""
    smooth = ndimage.gaussian_filter(picture(shape=shape).astype(float), 1.5)
    fade = [np.clip(np.minimum(i := np.arange(n), i[::-1]) / 8, 0, 1) for n in shape]
    return (smooth * np.outer(*fade)).astype(np.uint8)


class Draws:
    """A generator whose draws are written down."""

    def __init__(self, *given: object) -> None:
        self.given = list(given)

    def take(self, *_: object, **__: object) -> object:
        return self.given.pop(0)

    random = uniform = integers = take


def aligned_draws(
    shear: float | None = None,
    along_x: bool = True,
    degrees: float | None = None,
    shift: tuple[float, float] | None = None,
    grey: tuple[int, float] | None = None,
    flip: bool = False,
) -> Draws:
    apply = np.array([shear is None, degrees is None, shift is None, grey is None, not flip])
    return Draws(
        np.where(apply, 0.9, 0.1),
        0.1 if along_x else 0.9,
        shear or 0.0,
        degrees or 0.0,
        shift or (0.0, 0.0),
        grey[0] if grey else 0,
        grey[1] if grey else 1.0,
    )


def moved(draws: Draws, image: np.ndarray) -> np.ndarray:
    return augment.aligned(Raster(image), None, draws)[0].grey  # type: ignore[arg-type]


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image.astype(float), [y, x], order=1, cval=0)


@pytest.fixture
def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:64, 0:56].astype(float)
    return x, y


def largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def test_shear_is_about_the_corner(grid: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = grid
    image = chest()
    along_x = moved(aligned_draws(shear=0.1), image)
    along_y = moved(aligned_draws(shear=-0.12, along_x=False), image)
    assert largest(along_x - sampled(image, x + 0.1 * y, y)) <= 2
    assert largest(along_y - sampled(image, x, y - 0.12 * x)) <= 2


def test_rotation_is_about_the_centre_and_counterclockwise(
    grid: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = grid
    image = chest()
    made = moved(aligned_draws(degrees=5), image)
    c, s = math.cos(math.radians(5)), math.sin(math.radians(5))
    u, v = x - 27.5, y - 31.5
    assert largest(made - sampled(image, c * u - s * v + 27.5, s * u + c * v + 31.5)) <= 2
    # A bright spot to the right of the centre moves up.
    spot = np.zeros((64, 56), np.uint8)
    spot[30:34, 46:50] = 255
    assert ndimage.center_of_mass(moved(aligned_draws(degrees=5), spot))[0] < 31


def test_translation_is_in_pixels_of_the_file(grid: tuple[np.ndarray, np.ndarray]) -> None:
    image = chest()
    made = moved(aligned_draws(shift=(10.0, -3.0)), image)
    np.testing.assert_array_equal(made[:-3, 10:], image[3:, :-10])
    assert not made[:, :10].any()


def test_steps_are_made_in_their_order(grid: tuple[np.ndarray, np.ndarray]) -> None:
    """Shear, rotation, translation one after another, as the official code resamples them."""
    image = chest()
    steps = image
    for draws in (
        aligned_draws(shear=0.1),
        aligned_draws(degrees=-4),
        aligned_draws(shift=(3.4, 2.2)),
    ):
        steps = moved(draws, steps)
    once = moved(aligned_draws(shear=0.1, degrees=-4, shift=(3.4, 2.2)), image)
    difference = np.abs(steps.astype(float) - once)[8:-8, 8:-8]
    assert difference.mean() < 1.5
    other = moved(aligned_draws(shift=(3.4, 2.2)), image)
    other = moved(aligned_draws(shear=0.1), moved(aligned_draws(degrees=-4), other))
    assert np.abs(other.astype(float) - once)[8:-8, 8:-8].mean() > difference.mean()


def test_grey_values_are_shifted_then_scaled_and_truncated() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    made = moved(aligned_draws(grey=(-10, 1.1)), image).ravel()
    ideal = np.clip(np.float32(1.1) * (np.arange(256, dtype=np.float32) - 10), 0, 255)
    np.testing.assert_array_equal(made, ideal.astype(np.uint8))
    assert made[5] == 0
    assert made[255] == 255


def test_flip_and_all_planes_alike() -> None:
    image = chest()
    np.testing.assert_array_equal(moved(aligned_draws(flip=True), image), image[:, ::-1])
    colour = np.stack([image, image, image], axis=-1)
    mask = (image > 120).astype(np.uint8)
    rng = item_rng(3, 1, 4)
    made, outline = augment.aligned(Raster(image, colour, {"sex": "F"}), mask, rng)
    assert made.colour is not None
    assert outline is not None
    for plane in range(3):
        np.testing.assert_array_equal(made.colour[..., plane], made.grey)
    assert made.meta == {"sex": "F"}
    assert set(np.unique(outline)) <= {0, 1}


def test_the_mask_moves_with_the_image() -> None:
    image = np.zeros((64, 56), np.uint8)
    image[20:40, 15:30] = 200
    for index in range(12):
        made, outline = augment.aligned(
            Raster(image), (image > 0).astype(np.uint8), item_rng(0, 0, index)
        )
        assert outline is not None
        agree = ((made.grey > 90) == (outline > 0)).mean()
        assert agree > 0.97, index


def test_ranges_of_the_aligned_form() -> None:
    drawn = [augment._aligned_draws(100, 80, item_rng(0, 0, i)) for i in range(4000)]
    shifts = np.array([d[1] for d in drawn])
    scales = np.array([float(d[2]) for d in drawn])
    flips = np.array([d[3] for d in drawn])
    assert shifts.min() == -10
    assert shifts.max() == 9
    assert 0.9 <= scales.min() < 0.905
    assert 1.095 < scales.max() <= 1.1
    assert (scales == 1).mean() == pytest.approx(0.5, abs=0.04)
    assert flips.mean() == pytest.approx(0.5, abs=0.04)
    matrices = np.array([d[0] for d in drawn])
    still = (matrices == np.eye(3)).all(axis=(1, 2))
    assert still.mean() == pytest.approx(1 / 8, abs=0.03)
    # Only shear changes the angle between the axes; the area never changes.
    area = matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
    np.testing.assert_allclose(area, 1, atol=1e-12)
    skew = np.abs(np.einsum("ni,ni->n", matrices[:, :2, 0], matrices[:, :2, 1]))
    assert 0.14 < skew.max() < 0.16
    pure = skew < 1e-12
    turned = np.degrees(np.arctan2(matrices[pure, 1, 0], matrices[pure, 0, 0]))
    assert 4.9 < turned.max() <= 5
    plain = (matrices[:, :2, :2] == np.eye(2)).all(axis=(1, 2))
    assert 19 < np.abs(matrices[plain, :2, 2]).max() <= 20


# -- legacy -------------------------------------------------------------------------------------


def test_squeeze_pads_the_middle() -> None:
    image = np.full((100, 100), 200, np.uint8)
    narrow = augment.squeeze(image, Draws(0.1, 0.9))  # type: ignore[arg-type]
    assert (narrow[:, 5:95] == 200).all()
    assert not narrow[:, :5].any()
    assert not narrow[:, 95:].any()
    low = augment.squeeze(image, Draws(0.29, 1.1))  # type: ignore[arg-type]
    assert (low[5:95] == 200).all()  # int(100 / 1.1) = 90 rows
    assert not low[:5].any()
    assert not low[95:].any()
    assert augment.squeeze(image, Draws(0.3)) is image  # type: ignore[arg-type]


def test_keras_geometry() -> None:
    """Against scipy's resampling with the matrix put together as Keras does, in rows, columns."""
    side = 64
    image = chest((side, side))
    angle, down, right, zoom_down, zoom_right = math.radians(8), 3.0, -5.0, 0.9, 1.12
    c, s = math.cos(angle), math.sin(angle)
    keras = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    keras = keras @ np.array([[1, 0, down], [0, 1, right], [0, 0, 1.0]])
    keras = keras @ np.diag([zoom_down, zoom_right, 1])
    o = side / 2 + 0.5
    to = np.array([[1, 0, o], [0, 1, o], [0, 0, 1.0]])
    keras = to @ keras @ np.linalg.inv(to)
    expected = ndimage.affine_transform(
        image.astype(float), keras[:2, :2], keras[:2, 2], order=1, mode="constant"
    )
    matrix = augment.keras_matrix(side, angle, down, right, zoom_down, zoom_right)
    made = augment._warp(image, matrix)
    assert largest(made - expected) <= 2
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(swap @ matrix @ swap, keras, atol=1e-12)


def test_legacy_brightness_and_flip() -> None:
    image = chest((32, 32))
    draws = Draws(0.9, 0.0, np.zeros(2), np.ones(2), 0.1, 1.1)
    made = augment.legacy(image, draws)  # type: ignore[arg-type]
    expected = np.clip(image.astype(np.float32) * np.float32(1.1), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(made, expected[:, ::-1])


def test_legacy_keeps_shape_and_planes_alike() -> None:
    image = chest((48, 48))
    for index in range(6):
        grey = augment.legacy(image, item_rng(0, 0, index))
        colour = augment.legacy(np.stack([image] * 3, axis=-1), item_rng(0, 0, index))
        assert grey.shape == (48, 48)
        for plane in range(3):
            np.testing.assert_array_equal(colour[..., plane], grey)


def test_all_chance_is_handed_in() -> None:
    image = chest()
    np.random.seed(0)
    first = augment.aligned(Raster(image), None, item_rng(1, 2, 3))[0].grey
    square = augment.legacy(image[:48, :48], item_rng(1, 2, 3))
    np.random.seed(1)
    again = augment.aligned(Raster(image), None, item_rng(1, 2, 3))[0].grey
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(square, augment.legacy(image[:48, :48], item_rng(1, 2, 3)))
    others = [augment.aligned(Raster(image), None, item_rng(1, 2, i))[0].grey for i in range(4, 9)]
    assert any((first != other).any() for other in others)
