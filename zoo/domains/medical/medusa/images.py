"""Radiographs as the two inputs of MEDUSA: decoding, cropping, resizing (COVID-Net, `data.py`).

Decoding is OpenCV's own, as in the official code, since its choices are part of the recipe:
channels in the order blue, green, red; orientation tags of JPEG obeyed; alpha dropped; the grey
input read from the file a second time, which for colour files is not what a conversion of the
colour image gives (PNG truncates, JPEG has its luma stored).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import extras
from zoo.domains.medical import dicom
from zoo.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg")
PREVIEW = 192
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_TAIL = 4096
# More than any radiograph has; a header may claim anything.
_MOST_PIXELS = 36 * 10**6
# Marker codes of JPEG that begin a frame, whose header has the size (ITU T.81, table B.1).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Marker codes of JPEG without a length: TEM, restarts, start of image.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
# Rows compared at a time, so that a large picture needs no second one beside it.
_BAND = 256
# A 16-bit file that uses fewer levels than these turns nearly black when its low byte is dropped.
_LEAST_16_BIT = 1 << 13

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Raster:
    """A decoded radiograph.

    Attributes:
        grey: (H, W) uint8.
        colour: (H, W, 3) uint8 in the order blue, green, red; None where all three are `grey`.
        meta: `sex`, `age` (years), `view` from a DICOM header, as far as known.
    """

    grey: Bytes
    colour: Bytes | None = None
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preprocessing:
    """How a radiograph becomes the two inputs; travels with the weights.

    Attributes:
        image_size: Side S of the backbone's input in pixels.
        body_size: Side T of the body's input in pixels.
        crop_top: Share of rows cut from the top; 0 for MEDUSA.
        square: Whether the centre square is cut out; False for MEDUSA.
    """

    image_size: int
    body_size: int
    crop_top: float = 0.0
    square: bool = False


@dataclass(frozen=True)
class Prepared:
    """The two inputs before scaling to float.

    Attributes:
        image: (S, S) uint8, or (S, S, 3) in the order blue, green, red.
        semantic: (T, T) uint8.
        mask: (T, T) uint8, 1 inside the lungs, where there is a mask.
        preview: (h, w) uint8, what the inputs show at its own aspect, at most 192 pixels long.
        meta: As `Raster.meta`.
    """

    image: Bytes
    semantic: Bytes
    mask: Bytes | None
    preview: Bytes
    meta: Mapping[str, str] = field(default_factory=dict)


def opencv() -> Any:
    """OpenCV, as `zoo.extras` gives it.

    Raises:
        ConfigError: It is not installed.
    """
    return extras.opencv("images are read by", "medical")


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image or a DICOM file."""
    return path.suffix.lower() in ENDINGS or dicom.is_dicom(path)


def sample_of(path: Path) -> int:
    """Size and a checksum of first and last bytes in one number; looks whether the file is whole.

    Cheap enough for every file before each training; `load` finds the rest.

    Raises:
        DataError: The file is missing, empty, of no known format, or breaks off.
    """
    _look_plain(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_TAIL)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise DataError(msg) from None
    _look_whole(path, head, tail)
    return size << 32 | zlib.crc32(tail, zlib.crc32(head))


def _look_plain(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        msg = f"{path}: is no plain file"
        raise DataError(msg)


def _look_whole(path: Path, head: bytes, tail: bytes) -> None:
    if not head:
        msg = f"{path}: the file is empty"
        raise DataError(msg)
    if head.startswith(_PNG):
        whole = b"IEND" in tail
    elif head.startswith(_JPEG):
        whole = b"\xff\xd9" in tail
    elif head[128:132] == b"DICM":
        return
    else:
        msg = f"{path}: neither PNG, JPEG nor DICOM by its first bytes"
        raise DataError(msg)
    if not whole:
        msg = f"{path}: the image file breaks off; copy or download it again"
        raise DataError(msg)


def load(path: Path, box: tuple[int, int, int, int] | None = None) -> Raster:
    """Decode a PNG, JPEG or DICOM file.

    Args:
        path: The file.
        box: (xmin, ymin, xmax, ymax) in pixels to cut out, ends exclusive (RICORD's list).

    Raises:
        DataError: The file is missing, damaged, no radiograph, or smaller than the box.
        ConfigError: A library is missing.
    """
    if dicom.is_dicom(path):
        pixels, header = dicom.read_uint8(path)
        meta = {"sex": header.sex, "age": header.age, "view": header.view}
        raster = Raster(pixels, None, meta)
    else:
        raster = _decode(path)
    if box is None:
        return raster
    left, top, right, bottom = box
    height, width = raster.grey.shape
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        msg = f"{path}: the listed box {box} does not fit into {width} x {height} pixels"
        raise DataError(msg)
    return _cut(raster, top, bottom, left, right)


def _decode(path: Path) -> Raster:
    cv2 = opencv()
    _look_plain(path)
    try:
        body = path.read_bytes()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise DataError(msg) from None
    _look_whole(path, body[:_TAIL], body[-_TAIL:])
    _look_size(path, body)
    coded = np.frombuffer(body, np.uint8)
    if body.startswith(_PNG) and body[24:25] == b"\x10":
        _refuse_dark_16_bit(path, cv2, coded)
    colour = _imdecode(path, cv2, coded, cv2.IMREAD_COLOR)
    if _is_grey(colour):
        return Raster(np.ascontiguousarray(colour[..., 0]))
    return Raster(_imdecode(path, cv2, coded, cv2.IMREAD_GRAYSCALE), colour)


def _is_grey(colour: Bytes) -> bool:
    bands = (colour[top : top + _BAND] for top in range(0, len(colour), _BAND))
    return all((band == band[..., :1]).all() for band in bands)


def _look_size(path: Path, body: bytes) -> None:
    """Refuse headers that claim more than a radiograph has: OpenCV would make room for it."""
    width, height = _png_size(body) if body.startswith(_PNG) else _jpeg_size(body)
    if width * height > _MOST_PIXELS:
        msg = f"{path}: the header claims {width} x {height} pixels, more than any radiograph has"
        raise DataError(msg)


def _png_size(body: bytes) -> tuple[int, int]:
    """Width and height in pixels, (0, 0) without a header; what is damaged is told by decoding."""
    if len(body) < 24 or body[12:16] != b"IHDR":
        return 0, 0
    width, height = struct.unpack_from(">II", body, 16)
    return width, height


def _jpeg_size(body: bytes) -> tuple[int, int]:
    """As `_png_size`: of the first frame, found as decoders find it, over whatever lies between."""
    at = 2
    while True:
        at = body.find(b"\xff", at)
        if at < 0 or at + 9 > len(body):
            return 0, 0
        code = body[at + 1]
        if code in _FRAMES:
            height, width = struct.unpack_from(">HH", body, at + 5)
            return width, height
        if code == 0xFF:  # padding before a marker
            at += 1
        elif code == 0 or code in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(body[at + 2 : at + 4], "big")


def _imdecode(path: Path, cv2: Any, coded: Bytes, how: int) -> Bytes:
    try:
        image: Bytes | None = cv2.imdecode(coded, how)
    except cv2.error:
        image = None
    if image is None:
        msg = f"{path}: the image cannot be decoded; copy or download it again"
        raise DataError(msg)
    return image


def _refuse_dark_16_bit(path: Path, cv2: Any, coded: Bytes) -> None:
    """OpenCV reads 16-bit files by their high byte, which is empty where only 12 bits are used."""
    most = int(_imdecode(path, cv2, coded, cv2.IMREAD_ANYDEPTH).max())
    if most < _LEAST_16_BIT:
        msg = (
            f"{path}: 16-bit image with values up to {most} only; as 8 bit it would have "
            f"{most // 256 + 1} grey levels; spread its values over 16 bit or save it as 8 bit"
        )
        raise DataError(msg)


def load_mask(paths: tuple[Path, ...], shape: tuple[int, int]) -> Bytes:
    """The union of mask files (left and right lung may be two), 1 inside, at an image's size.

    Args:
        paths: One or two mask images; inside is above half of the format's range.
        shape: (H, W) of the radiograph.

    Raises:
        DataError: A file is damaged, holds nothing, or has other proportions than the image.
    """
    cv2 = opencv()
    whole = np.zeros(shape, np.uint8)
    for path in paths:
        grey = _decode(path).grey
        # Masks are drawn with 1, 128 or 255 inside.
        inside = (grey > grey.max() // 2).astype(np.uint8)
        if not inside.any():
            msg = f"{path}: the mask is empty"
            raise DataError(msg)
        if abs(inside.shape[0] * shape[1] / (inside.shape[1] * shape[0]) - 1) > 0.05:
            size = f"{inside.shape[1]} x {inside.shape[0]}"
            msg = f"{path}: a mask of {size} pixels for an image of {shape[1]} x {shape[0]}"
            raise DataError(msg)
        if inside.shape != shape:
            inside = cv2.resize(inside, shape[::-1], interpolation=cv2.INTER_NEAREST)
        whole |= inside
    return whole


def prepare(raster: Raster, how: Preprocessing, mask: Bytes | None = None) -> Prepared:
    """Crop and resize to both inputs, as the official evaluation does (COVID-Net, `data.py`).

    Resizing is OpenCV's bilinear on 8 bit, without keeping the aspect and without antialiasing.

    Args:
        raster: The radiograph.
        how: Sizes and crops.
        mask: (H, W) uint8 of the radiograph's size.
    """
    cv2 = opencv()
    raster, mask = _cropped(raster, how, mask)
    preview = _preview(cv2, raster.grey)
    source = raster.grey if raster.colour is None else raster.colour
    side = (how.body_size, how.body_size)
    if mask is not None:
        mask = cv2.resize(mask, side, interpolation=cv2.INTER_NEAREST)
    return Prepared(
        image=cv2.resize(source, (how.image_size, how.image_size)),
        semantic=cv2.resize(raster.grey, side),
        mask=mask,
        preview=preview,
        meta=raster.meta,
    )


def _cropped(raster: Raster, how: Preprocessing, mask: Bytes | None) -> tuple[Raster, Bytes | None]:
    height, width = raster.grey.shape
    top = int(how.crop_top * height)
    bottom, left, right = height, 0, width
    if how.square:
        side = min(height - top, width)
        top += int((height - top - side) / 2)
        left = int((width - side) / 2)
        bottom, right = top + side, left + side
    if (top, bottom, left, right) == (0, height, 0, width):
        return raster, mask
    return _cut(raster, top, bottom, left, right), (
        None if mask is None else mask[top:bottom, left:right]
    )


def _cut(raster: Raster, top: int, bottom: int, left: int, right: int) -> Raster:
    colour = None if raster.colour is None else raster.colour[top:bottom, left:right]
    # A copy, so that what is cut away does not stay in memory.
    grey = np.ascontiguousarray(raster.grey[top:bottom, left:right])
    return Raster(grey, None if colour is None else np.ascontiguousarray(colour), raster.meta)


def _preview(cv2: Any, grey: Bytes) -> Bytes:
    height, width = grey.shape
    scale = PREVIEW / max(height, width, PREVIEW)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: Bytes = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return small


def as_input(image: Bytes) -> NDArray[np.float32]:
    """(S, S) or (S, S, 3) uint8 as (3, S, S) float32 in [0, 1]; grey is repeated."""
    planes = image[None].repeat(3, axis=0) if image.ndim == 2 else image.transpose(2, 0, 1)
    scaled: NDArray[np.float32] = planes.astype(np.float32) / np.float32(255)
    return scaled


def standardised(semantic: Bytes) -> NDArray[np.float32]:
    """(T, T) uint8 as (1, T, T) float32 of zero mean and unit population deviation.

    Computed in float64. An image of one value, for which the official code gives NaN, gives zeros.
    """
    values = semantic.astype(np.float64)
    deviation = values.std()
    values = (values - values.mean()) / (deviation if deviation > 0 else 1e-6)
    single: NDArray[np.float32] = values.astype(np.float32)[None]
    return single


def relative(path: Path, root: Path) -> str:
    """A path as seen from `root`, with forward slashes."""
    return os.path.relpath(path, root).replace(os.sep, "/")
