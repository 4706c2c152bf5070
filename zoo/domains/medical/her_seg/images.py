"""Reading a picture, whatever kind of file it lies in: always upright RGB of 8 bits a channel.

Alpha is dropped as in the official loader and never composited: scikit-image's and other readers'
"as grey" blend it over white. Files of more than 8 bits are scaled by one rule that looks at the
file alone, so that a picture reads the same in training and afterwards.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo import extras
from zoo.domains.medical import dicom
from zoo.errors import DataError
from zoo.images import BROKEN, FORMATS, opened

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Endings of files in which a pixel may come back with another value than it was given.
LOSSY = (".jpg", ".jpeg", ".webp")
# Bits that cameras and scanners give; a file's largest value tells which of them it has.
_DEPTHS = (8, 10, 12, 14, 16)
_ORIENTATION = 0x0112  # EXIF tag
_BITS = 258  # TIFF tag: bits of each channel
_TRANSPOSING = (5, 6, 7, 8)  # its values that swap width and height
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Names that file managers leave in folders.
_NO_DATA = {"thumbs.db", ".ds_store", "desktop.ini"}

Bytes = NDArray[np.uint8]
Window = tuple[float, float]


@dataclass(frozen=True)
class Head:
    """What a file's header tells.

    Attributes:
        size: (H, W) in pixels, upright.
        stored: (H, W) in pixels as stored, before EXIF rotation.
        orientation: EXIF orientation, 1 if there is none.
        frames: Pictures in the file.
        kind: Pillow's mode, `DICOM`, or `16-bit colour`.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    frames: int
    kind: str


def is_image(path: Path) -> bool:
    """Whether a name is that of a picture, and not one that a file manager made."""
    name = path.name.lower()
    if name.startswith(".") or name in _NO_DATA:
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES or path.suffix.lower() in (".dcm", ".dicom")


def head(path: Path) -> Head:
    """Size and kind of a picture or mask, from the header alone.

    Raises:
        DataError: The file is missing or its header is broken.
    """
    if dicom.is_dicom(path):
        dataset = dicom.read(path, pixels=False)
        size = int(dataset.Rows), int(dataset.Columns)
        return Head(size, size, 1, dicom.header_of(dataset).frames, "DICOM")
    if _is_strange_tiff(path):
        values = _by_opencv(path)
        size = values.shape[0], values.shape[1]
        return Head(size, size, 1, 1, f"{values.dtype} colour")
    with opened(path) as image:
        stored = image.height, image.width
        turned = orientation(image)
        size = stored[::-1] if turned in _TRANSPOSING else stored
        kind = "16-bit colour" if _is_deep(image, path) else image.mode
        return Head(size, stored, turned, frames_of(image), kind)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 if there is none.

    A PNG is not decoded to look for one behind its pixels, as Pillow would.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1) or 1)


def frames_of(image: Image.Image) -> int:
    """Pictures in a file; the second one of a camera's JPEG (MPO) is a preview."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def one_picture(path: Path, frames: int) -> None:
    """Refuse a file that holds several.

    Raises:
        DataError: It does.
    """
    if frames > 1:
        msg = (
            f"{path}: holds {frames} pictures; save each as a file of its own, or read them as a "
            "volume or clip (data.layout)"
        )
        raise DataError(msg)


def read_image(
    path: Path, like: tuple[int, int] | None = None, window: Window | None = None
) -> Bytes:
    """A picture, upright, in colour.

    Grey becomes three equal channels; alpha is dropped; palettes, CMYK and the like become RGB.
    Values of more than 8 bits are divided by the largest value of the smallest usual bit depth
    (10, 12, 14, 16) that holds the file's largest one; floats are taken as they are if they lie in
    [0, 1], else stretched from smallest to largest.

    Args:
        path: The file.
        like: (H, W) of the mask. Where it equals the stored size and not the upright one, the mask
            was drawn on the pixels as stored, and the picture is left as stored too.
        window: Values of files of more than 8 bits that become 0 and 255, instead of that rule.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The file is missing, broken or holds several pictures.
    """
    if dicom.is_dicom(path):
        return np.repeat(dicom.read_uint8(path)[0][..., None], 3, axis=2)
    if _is_strange_tiff(path):
        return _colour(to_bytes(_by_opencv(path), window))
    with opened(path) as image:
        one_picture(path, frames_of(image))
        if _is_deep(image, path):
            return _colour(to_bytes(_by_opencv(path), window))
        image = upright(image, like)
        if image.mode.startswith("I") or image.mode == "F":
            return _colour(to_bytes(np.asarray(image), window))
        if image.mode in ("LA", "La"):  # the way to RGB would be the same, but not for "La"
            return _colour(np.asarray(image)[..., 0])
        if image.mode == "RGBA":
            return np.ascontiguousarray(np.asarray(image)[..., :3])
        if image.mode == "LAB":
            msg = f"{path}: is stored as LAB; save it as RGB"
            raise DataError(msg)
        return np.asarray(image.convert("RGB"))


def upright(image: Image.Image, like: tuple[int, int] | None) -> Image.Image:
    """The picture as its EXIF orientation says, unless `like` is its size as stored only."""
    turned = orientation(image)
    stored = (image.height, image.width)
    as_stored = turned in _TRANSPOSING and like == stored and stored[0] != stored[1]
    return image if turned == 1 or as_stored else ImageOps.exif_transpose(image)


def to_bytes(values: np.ndarray, window: Window | None = None) -> Bytes:
    """Whole numbers of up to 16 bits, or floats, as (H, W, …) uint8; see `read_image`."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        wide = np.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(wide.min(initial=0.0)), float(wide.max(initial=0.0))
    if window is not None:
        low, high = window
    elif values.dtype.kind == "f":
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (float(wide.min()), high)
    elif low >= 0:
        high = float(next(2**bits - 1 for bits in (*_DEPTHS, 32) if high < 2**bits))
        low = 0.0
    scaled = (wide - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(np.rint(scaled * 255), 0, 255), np.uint8)


def _colour(values: Bytes) -> Bytes:
    if values.ndim == 3 and values.shape[2] >= 3:
        return np.ascontiguousarray(values[..., :3])
    grey = values if values.ndim == 2 else values[..., 0]
    return np.repeat(grey[..., None], 3, axis=2)


def _is_deep(image: Image.Image, path: Path) -> bool:
    """Whether a PNG or TIFF in colour has 16 bits a channel, of which Pillow would keep 8."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, (8,))  # type: ignore[attr-defined]
        return bool(max(bits) > 8)
    if image.format != "PNG":
        return False
    with path.open("rb") as file:
        return file.read(25)[-1] == 16  # bits a channel, in the first chunk


def _is_strange_tiff(path: Path) -> bool:
    """Whether this is a TIFF that Pillow cannot read: colours as floats, say."""
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return False
    except UnidentifiedImageError:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*")
    except BROKEN:
        return False


def _by_opencv(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) of a file in its own type, channels red, green, blue."""
    cv2 = opencv()
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        msg = f"{path}: is no picture that can be read; export or copy it again"
        raise DataError(msg)
    return np.asarray(values if values.ndim == 2 else values[..., 2::-1])


def opencv() -> Any:
    """OpenCV, as `zoo.extras` gives it.

    Raises:
        ConfigError: It is not installed.
    """
    return extras.opencv("this kind of file is read by", "medical")


def fingerprint_of(path: Path) -> int:
    """Size and a checksum of first and last bytes in one number: cheap enough for every file.

    Raises:
        DataError: The file is missing or empty.
    """
    if path.exists() and not path.is_file():
        msg = f"{path}: is no plain file"
        raise DataError(msg)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
            file.seek(max(0, size - 4096))
            end = file.read()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise DataError(msg) from None
    if not size:
        msg = f"{path}: the file is empty; export or copy it again"
        raise DataError(msg)
    return size << 32 | zlib.crc32(end, zlib.crc32(start))


def look_whole(path: Path) -> None:
    """Decode a file that does not end as its format says; others are taken for whole.

    Raises:
        DataError: It breaks off.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(max(0, path.stat().st_size - 4096))
        end = file.read()
    marks = {_PNG[:4]: b"IEND", _JPEG: b"\xff\xd9"}
    mark = next((m for begin, m in marks.items() if start.startswith(begin)), b"")
    if mark not in end:
        with opened(path) as image:
            image.load()


def images_in(folder: Path) -> list[Path]:
    """Pictures right in a folder, sorted by name.

    Links that lead nowhere are among them: passed over, they would be missing in silence.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        return sorted(p for p in folder.iterdir() if is_image(p) and not p.is_dir())
    except OSError as error:
        msg = f"{folder}: cannot be listed ({error.strerror})"
        raise DataError(msg) from None


def stems(paths: Sequence[Path]) -> dict[str, Path]:
    """Stem -> file.

    Raises:
        DataError: Two files have the same stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem, path)
        if other is not path:
            msg = f"{path} and {other.name} have the same stem; delete or rename one of them"
            raise DataError(msg)
    return found
