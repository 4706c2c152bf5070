"""Crops as files and as the network's input: decoding, resizing, augmentation.

The steps and their order are FusionReID's (`datasets/make_dataloader.py`): resize without keeping
the aspect, mirror, pad with black, crop, scale to [0, 1], erase. Resizing is Pillow's, which its
numbers were made with; mirroring, padding and cropping are slices. Erasing follows timm's
`RandomErasing` in mode `pixel`, which albumentations' `Erasing` does not: that one draws the shape
from what fits, and fills with 8-bit noise.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.errors import DataError
from zoo.images import opened

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]

# Of the erased box: share of the image, height over width, attempts to make it fit.
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)
ATTEMPTS = 10
# Pixels above which a file is taken for a decompression bomb (Pillow's own limit only warns).
_MOST_PIXELS = 50_000_000
_TOO_MANY = "are no crop of a person"
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image after resizing.

    Attributes:
        flip: Chance that it is mirrored.
        pad: Black pixels on every side before a window of the old size is cut at random.
        erase: Chance that a box is filled with noise.
    """

    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: It cannot be read or is empty.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        msg = f"{path}: is no plain file"
        raise DataError(msg)
    try:
        body = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise DataError(msg) from None
    if not body:
        msg = f"{path}: the file is empty"
        raise DataError(msg)
    return body


def decode(body: bytes, path: Path) -> Bytes:
    """An image file's content as RGB, upright: grey, palette and CMYK too, orientation obeyed.

    Args:
        body: The content.
        path: Where it is from, for messages.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: It is no image, or breaks off.
    """
    with opened(path, io.BytesIO(body), most=_MOST_PIXELS, too_many=_TOO_MANY) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            # More than 8 bits of grey: Pillow's conversion would saturate.
            values = np.asarray(upright).astype(np.float64)
            if not np.isfinite(values).all():
                msg = f"{path}: holds values that are not finite; save the crop as 8 bit"
                raise DataError(msg)
            scale = 257.0 if values.max(initial=0) > 255 else 1.0
            grey = np.clip(np.rint(values / scale), 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def load(path: Path) -> Bytes:
    """`decode` of a file.

    Raises:
        DataError: As `read_bytes` and `decode`.
    """
    return decode(read_bytes(path), path)


def content_hash(body: bytes) -> str:
    """Hexadecimal SHA-256 of a file's content: what features are kept under."""
    return hashlib.sha256(body).hexdigest()


def resized(image: Bytes, size: tuple[int, int], how: Literal["bicubic", "bilinear"]) -> Bytes:
    """Resize without keeping the aspect, antialiased, as torchvision does with Pillow images.

    Args:
        image: (h, w, 3) uint8.
        size: (H, W) in pixels.
        how: Filter; FusionReID trains with bicubic and tests with bilinear.
    """
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), _FILTERS[how]))


def unit(image: Bytes) -> Floats:
    """(H, W, 3) uint8 as (3, H, W) float32 in [0, 1]."""
    planes: Floats = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    planes /= np.float32(255)
    return planes


def augmented(image: Bytes, how: Augmentation, rng: np.random.Generator) -> Floats:
    """Mirror, pad, crop, scale and erase an image that has the input's size.

    Noise is drawn from N(0, 1) in the range the network sees, (x - 0.5) / 0.5; here it is 0.5 +
    0.5 N(0, 1), which leaves [0, 1].

    Args:
        image: (H, W, 3) uint8.
        how: Chances and padding.
        rng: Source of all chance.

    Returns:
        (3, H, W) float32.
    """
    height, width = image.shape[:2]
    if rng.random() < how.flip:
        image = image[:, ::-1]
    if how.pad:
        border = ((how.pad, how.pad), (how.pad, how.pad), (0, 0))
        top, left = rng.integers(0, 2 * how.pad + 1, size=2)
        image = np.pad(image, border)[top : top + height, left : left + width]
    planes = unit(image)
    # A stream of its own: the rule is written for Python's generator.
    box = erased_box((height, width), how.erase, random.Random(int(rng.integers(2**63))))
    if box is not None:
        top, left, high, wide = box
        noise = rng.standard_normal((3, high, wide), dtype=np.float32)
        planes[:, top : top + high, left : left + wide] = 0.5 + 0.5 * noise
    return planes


def erased_box(
    size: tuple[int, int],
    chance: float,
    rng: random.Random,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    attempts: int = ATTEMPTS,
) -> Box | None:
    """The box of random erasing (Zhong et al., 2017, algorithm 1, as timm's `RandomErasing`).

    A box that does not fit into the image is drawn again.

    Args:
        size: (H, W) in pixels.
        chance: That there is a box at all.
        rng: Source of all chance.
        area: Smallest and largest share of the image, uniform.
        aspect: Smallest and largest height over width, uniform in their logarithm.
        attempts: How often a box is drawn.

    Returns:
        (top, left, height, width) in pixels, or None.
    """
    if rng.random() > chance:
        return None
    height, width = size
    slim, tall = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(attempts):
        pixels = rng.uniform(*area) * height * width
        shape = math.exp(rng.uniform(slim, tall))
        high = round(math.sqrt(pixels * shape))
        wide = round(math.sqrt(pixels / shape))
        if high < height and wide < width:
            top = rng.randint(0, height - high)
            left = rng.randint(0, width - wide)
            return top, left, high, wide
    return None
