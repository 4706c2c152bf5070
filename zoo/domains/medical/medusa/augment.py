"""Augmentation of radiographs: the two forms the official code has had.

`aligned` is that of the later data class (COVID-Net, branch `tf_dataset`, `augmentations.py`): both
inputs come from one augmented radiograph. `legacy` is that of the 0.983 run: only the backbone's
image is changed, so that in training map and image are out of line, flips included.

Geometry is one warp each. The official code resamples after every step, which blurs more and cuts
off what a later step would have brought back; ranges, centres and order are its.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zoo.domains.medical.medusa.images import Bytes, Raster, opencv

_SHEAR = 0.15
_ROTATION_ALIGNED, _ROTATION_LEGACY = 5.0, 10.0
_SHIFT_PIXELS, _SHIFT_SHARE = 20.0, 0.1
_GREY_SHIFT, _GREY_SCALE = 10, 0.1
_SQUEEZE_CHANCE, _SQUEEZE = 0.3, 0.1
_ZOOM = (0.85, 1.15)
_BRIGHTNESS = (0.9, 1.1)

Matrix = NDArray[np.float64]


def aligned(
    raster: Raster, mask: Bytes | None, rng: np.random.Generator
) -> tuple[Raster, Bytes | None]:
    """Shear, rotation, translation, grey values, flip, each with chance one half, in that order.

    Shear by up to 0.15 in x or y from the top left corner, rotation by up to 5 degrees about the
    centre, translation by up to 20 pixels of the file, grey values + [-10, 10) then x [0.9, 1.1].

    Args:
        raster: The radiograph at the size of its file.
        mask: (H, W) lung mask, moved along.
        rng: Source of all chance; the number of draws does not depend on what is drawn.
    """
    height, width = raster.grey.shape
    matrix, shift, scale, flip = _aligned_draws(height, width, rng)
    grey, colour = raster.grey, raster.colour
    if not np.array_equal(matrix, np.eye(3)):
        grey = _warp(grey, matrix)
        colour = None if colour is None else _warp(colour, matrix)
        mask = None if mask is None else _warp(mask, matrix, nearest=True)
    if shift != 0 or scale != 1:
        levels = np.clip(scale * (np.arange(256, dtype=np.float32) + shift), 0, 255)
        table = levels.astype(np.uint8)
        grey, colour = table[grey], None if colour is None else table[colour]
    if flip:
        grey = np.ascontiguousarray(grey[:, ::-1])
        colour = None if colour is None else np.ascontiguousarray(colour[:, ::-1])
        mask = None if mask is None else np.ascontiguousarray(mask[:, ::-1])
    return Raster(grey, colour, raster.meta), mask


def _aligned_draws(
    height: int, width: int, rng: np.random.Generator
) -> tuple[Matrix, int, np.float32, bool]:
    """Matrix from output to input pixels, grey shift and scale, flip."""
    apply = rng.random(5) < 0.5
    along_x = rng.random() < 0.5
    strength = rng.uniform(-_SHEAR, _SHEAR)
    angle = math.radians(rng.uniform(-_ROTATION_ALIGNED, _ROTATION_ALIGNED))
    right, down = rng.uniform(-_SHIFT_PIXELS, _SHIFT_PIXELS, size=2)
    shift = int(rng.integers(-_GREY_SHIFT, _GREY_SHIFT))
    scale = np.float32(rng.uniform(1 - _GREY_SCALE, 1 + _GREY_SCALE))
    matrix = np.eye(3)
    if apply[0]:
        matrix[(0, 1) if along_x else (1, 0)] = strength
    if apply[1]:
        matrix = matrix @ _rotation(angle, (width - 1) / 2, (height - 1) / 2)
    if apply[2]:
        matrix = matrix @ _translation(-right, -down)
    if not apply[3]:
        shift, scale = 0, np.float32(1)
    return matrix, shift, scale, bool(apply[4])


def legacy(image: Bytes, rng: np.random.Generator) -> Bytes:
    """Squeeze, then Keras' random affine transform, flip and brightness, on the resized image.

    Args:
        image: (S, S) or (S, S, 3) uint8.
        rng: Source of all chance.
    """
    image = squeeze(image, rng)
    side = image.shape[0]
    angle = math.radians(rng.uniform(-_ROTATION_LEGACY, _ROTATION_LEGACY))
    down, right = rng.uniform(-_SHIFT_SHARE, _SHIFT_SHARE, size=2) * side
    zoom_down, zoom_right = rng.uniform(*_ZOOM, size=2)
    flip = rng.random() < 0.5
    brightness = rng.uniform(*_BRIGHTNESS)
    moved = _warp(image, keras_matrix(side, angle, down, right, zoom_down, zoom_right))
    if flip:
        moved = moved[:, ::-1]
    # Pillow's brightness, which Keras uses, blends with black and cuts off above 255.
    table = np.clip(np.arange(256, dtype=np.float32) * np.float32(brightness), 0, 255)
    return np.ascontiguousarray(table.astype(np.uint8)[moved])


def squeeze(image: Bytes, rng: np.random.Generator) -> Bytes:
    """With chance 0.3 change the aspect ratio by up to 10 % and pad with black (`data.py`).

    Args:
        image: (S, S) or (S, S, 3) uint8.
        rng: Gives one number in [0, 1) and, if that is below 0.3, the ratio.

    Returns:
        An image of the same shape.
    """
    if rng.random() >= _SQUEEZE_CHANCE:
        return image
    cv2 = opencv()
    side = image.shape[0]
    ratio = rng.uniform(1 - _SQUEEZE, 1 + _SQUEEZE)
    # OpenCV takes width first: a ratio below 1 makes the image narrower, above 1 lower.
    width, height = (int(side * ratio), side) if ratio <= 1 else (side, int(side / ratio))
    left, top = (side - width) // 2, (side - height) // 2
    padded: Bytes = cv2.copyMakeBorder(
        cv2.resize(image, (width, height)),
        top,
        side - height - top,
        left,
        side - width - left,
        cv2.BORDER_CONSTANT,
        value=(0, 0, 0),
    )
    return padded


def keras_matrix(
    side: int, angle: float, down: float, right: float, zoom_down: float, zoom_right: float
) -> Matrix:
    """Output to input pixels (x, y, 1) of Keras' `apply_affine_transform` on a square image.

    Rotation by `angle` radians, then shifts in pixels, then zoom, about the point S/2 + 1/2 that
    Keras had taken for the centre up to TensorFlow 2.8.
    """
    turned = _rotation(angle, 0.0, 0.0).T
    zoomed = np.diag([zoom_right, zoom_down, 1.0])
    centre = side / 2 + 0.5
    moved = turned @ _translation(right, down) @ zoomed
    about: Matrix = _translation(centre, centre) @ moved @ _translation(-centre, -centre)
    return about


def _translation(right: float, down: float) -> Matrix:
    return np.array([[1.0, 0.0, right], [0.0, 1.0, down], [0.0, 0.0, 1.0]])


def _rotation(angle: float, x: float, y: float) -> Matrix:
    """From output to input: the picture turns counterclockwise by `angle` radians about (x, y)."""
    c, s = math.cos(angle), math.sin(angle)
    turned = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    about: Matrix = _translation(x, y) @ turned @ _translation(-x, -y)
    return about


def _warp(image: Bytes, matrix: Matrix, nearest: bool = False) -> Bytes:
    """Bilinear with zeros outside; `matrix` leads from output to input pixels."""
    cv2 = opencv()
    height, width = image.shape[:2]
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    moved: Bytes = cv2.warpAffine(
        image, matrix[:2], (width, height), flags=how | cv2.WARP_INVERSE_MAP, borderValue=0
    )
    return moved
