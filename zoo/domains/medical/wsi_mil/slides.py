"""Opening slides: OpenSlide for slide formats, PIL for plain images, one interface over both.

Positions are always (x, y) in level-0 pixels, whatever the level that is read, as in OpenSlide.
What a scanner left out, and what lies beyond the edge, has the slide's background colour: OpenSlide
hands it out transparent, and dropping the alpha channel would make it black.

An open slide must not cross a fork: every worker opens its own.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from zoo.domains.medical.wsi_mil.extras import need
from zoo.errors import DataError

WHITE = (255, 255, 255)
PLAIN = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
"""Endings of files that may be plain images; tiled TIFF goes to OpenSlide all the same."""
# How TIFF (also with 64-bit offsets), PNG, JPEG and BMP files begin.
_BEGINNINGS = (b"II*", b"II+", b"MM\0*", b"MM\0+", b"\x89PNG", b"\xff\xd8", b"BM")
_HEAD = 4
SCANNED = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".dcm")
"""Endings of slide formats that OpenSlide reads, besides tiled TIFF."""

# Micrometres per pixel outside of this are no microscopy: 72 dpi of a camera would be 353.
_PLAUSIBLE = (0.02, 20.0)
# Upper bound of micrometres per pixel -> magnification, as TRIDENT has it.
_MAGNIFICATIONS = ((0.16, 80.0), (0.2, 60.0), (0.3, 40.0), (0.6, 20.0), (1.2, 10.0), (2.4, 5.0))
_UNIT_UM = {2: 25400.0, 3: 10000.0}  # TIFF ResolutionUnit: inch, centimetre
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


class Slide(ABC):
    """An open slide; a context manager that closes it.

    Attributes:
        path: The file.
        name: File name without its ending.
        dimensions: (width, height) at level 0.
        level_dimensions: (width, height) of every level.
        level_downsamples: Factor of every level against level 0.
        mpp: Micrometres per level-0 pixel, as the file says or the caller gave; None if unknown.
        power: Objective power the file states, None if it states none.
        background: RGB colour of what was not scanned.
        bounds: (x, y, width, height) of the scanned part in level-0 pixels; the whole slide where
            the file does not say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.dimensions: tuple[int, int] = (0, 0)
        self.level_dimensions: tuple[tuple[int, int], ...] = ()
        self.level_downsamples: tuple[float, ...] = ()
        self.mpp: float | None = None
        self.power: float | None = None
        self.background: tuple[int, int, int] = WHITE
        self.bounds: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def magnification(self) -> float | None:
        """Magnification of level 0: from `mpp` by TRIDENT's bins, else the objective power."""
        if self.mpp is not None:
            return magnification_of(self.mpp)
        return self.power

    def best_level(self, downsample: float, tolerance: float = 0.01) -> int:
        """The smallest level that still has at least the resolution of `downsample`.

        Args:
            downsample: Factor against level 0.
            tolerance: Share by which a level may be coarser: scanners write 4.0002 for 4.
        """
        limit = downsample * (1 + tolerance)
        fitting = [i for i, d in enumerate(self.level_downsamples) if d <= limit]
        return max(fitting, key=lambda i: self.level_downsamples[i]) if fitting else 0

    def read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """A rectangle of the slide.

        Args:
            x: Left edge in level-0 pixels; may lie outside of the slide.
            y: Top edge in level-0 pixels.
            level: Level to read from.
            size: (width, height) in pixels of that level.

        Returns:
            (height, width, 3) uint8, background colour where there is no image.

        Raises:
            DataError: The file is damaged there, or it has no such level.
        """
        if not 0 <= level < len(self.level_dimensions):
            have = len(self.level_dimensions)
            msg = f"{self.path}: no level {level}; the slide has levels 0 to {have - 1}"
            raise DataError(msg)
        try:
            return self._read(int(x), int(y), level, (int(size[0]), int(size[1])))
        except DataError:
            raise
        except Exception as error:  # OpenSlide and codecs raise what they like on damaged files
            msg = (
                f"{self.path}: cannot be read at ({x}, {y}), level {level} "
                f"({_reason(error)}); the file is damaged or incomplete, copy it again"
            )
            raise DataError(msg) from None

    def thumbnail(self, longest: int) -> tuple[np.ndarray, float]:
        """The whole slide made small.

        Args:
            longest: Longest side of the result in pixels; a smaller slide stays as it is.

        Returns:
            (h, w, 3) uint8, and the factor from its pixels to level-0 pixels.

        Raises:
            DataError: The file is damaged, or has no level small enough to be read whole.
        """
        image_of = need("PIL.Image")
        width, height = self.dimensions
        factor = max(1.0, max(width, height) / longest)
        level = self.best_level(factor)
        if math.prod(self.level_dimensions[level]) > LARGEST_WHOLE:
            msg = (
                f"{self.path}: level {level} of {self.level_dimensions[level]} pixels is too large "
                "to be shown whole; write a pyramid (vips tiffsave --tile --pyramid)"
            )
            raise DataError(msg)
        whole = self.read(0, 0, level, self.level_dimensions[level])
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        if size == (whole.shape[1], whole.shape[0]):
            return whole, factor
        small = image_of.fromarray(whole).resize(size, image_of.Resampling.BOX)
        return np.array(small), factor

    @abstractmethod
    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        """As `read`, errors as they come."""

    @abstractmethod
    def close(self) -> None:
        """Release the file; nothing can be read afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


LARGEST_WHOLE = 10**8
"""Pixels of a level that is read in one piece at most."""


class ScannedSlide(Slide):
    """A slide in a format that OpenSlide reads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle = need("openslide").OpenSlide(str(path))
        properties = self._handle.properties
        self.dimensions = self._handle.dimensions
        self.level_dimensions = self._handle.level_dimensions
        self.level_downsamples = tuple(float(d) for d in self._handle.level_downsamples)
        self.mpp = _stated_mpp(properties)
        self.power = _stated_power(properties)
        self.background = _colour(properties.get("openslide.background-color"))
        self.bounds = _bounds(properties, self.dimensions)

    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        region = np.asarray(self._handle.read_region((x, y), level, size))
        return _composited(region, self.background)

    def close(self) -> None:
        """Release the file; see `Slide.close`."""
        self._handle.close()


class PlainImage(Slide):
    """An image of one level that is held in memory: TIFF without tiles, PNG, JPEG."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._pixels, self.mpp = _decoded(path)
        height, width = self._pixels.shape[:2]
        self.dimensions = (width, height)
        self.level_dimensions = (self.dimensions,)
        self.level_downsamples = (1.0,)
        self.bounds = (0, 0, width, height)

    def _read(self, x: int, y: int, level: int, size: tuple[int, int]) -> np.ndarray:
        width, height = size
        out = np.empty((height, width, 3), np.uint8)
        out[:] = self.background
        left, top = max(x, 0), max(y, 0)
        part = self._pixels[top : max(y + height, 0), left : max(x + width, 0)]
        if part.size:
            out[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] = part
        return out

    def close(self) -> None:
        """Release the memory; see `Slide.close`."""
        self._pixels = np.empty((0, 0, 3), np.uint8)


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide or a plain image.

    Args:
        path: The file.
        mpp: Micrometres per level-0 pixel of a slide that does not state them; a slide that does
            keeps its own.

    Raises:
        DataError: The file is missing, damaged, or in no format that is known.
        ConfigError: A package is missing.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"{path}: no such slide file"
        raise DataError(msg)
    slide = _opened(path)
    if slide.mpp is None:
        slide.mpp = mpp
    return slide


def _opened(path: Path) -> Slide:
    openslide = need("openslide")
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor is not None:
            return ScannedSlide(path)
    except openslide.OpenSlideError as error:
        msg = f"{path}: cannot be opened as a slide ({_reason(error)}); copy it again"
        raise DataError(msg) from None
    if path.suffix.lower() in PLAIN:
        return PlainImage(path)
    if path.suffix.lower() in SCANNED:
        msg = f"{path}: OpenSlide finds no slide in it; it is damaged or cut off, copy it again"
        raise DataError(msg)
    msg = (
        f"{path}: neither OpenSlide nor PIL knows this format; formats "
        f"are {' '.join((*SCANNED, *PLAIN))}"
    )
    raise DataError(msg)


def is_slide(path: Path) -> bool:
    """Whether a file is meant as a slide or image: by its ending and its first bytes.

    A damaged one counts: a slide that is passed over in silence would be missing from the
    features, while opening it says what is wrong.
    """
    ending = path.suffix.lower()
    if ending not in (*SCANNED, *PLAIN) or path.name.startswith(".") or not path.is_file():
        return False
    if ending == ".dcm":  # most DICOM files are no slides
        openslide = need("openslide")
        try:
            return openslide.OpenSlide.detect_format(str(path)) is not None
        except openslide.OpenSlideError:
            return True
    if ending in SCANNED:
        return True
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return not head or head.startswith(_BEGINNINGS)


def magnification_of(mpp: float) -> float | None:
    """The magnification that micrometres per pixel stand for, by TRIDENT's bins.

    Returns:
        80, 60, 40, 20, 10 or 5; None from 2.4 um per pixel on.
    """
    return next((power for limit, power in _MAGNIFICATIONS if mpp < limit), None)


def _composited(region: np.ndarray, background: Sequence[int]) -> np.ndarray:
    """(h, w, 4) uint8 with straight alpha, laid over the background colour."""
    alpha = region[..., 3]
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(region[..., :3])
    share = alpha[..., None].astype(np.float32) / 255
    mixed = region[..., :3] * share + np.asarray(background, np.float32) * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def _decoded(path: Path) -> tuple[np.ndarray, float | None]:
    """(h, w, 3) uint8 of an image on white, and its micrometres per pixel if it states them."""
    image_of = need("PIL.Image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", image_of.DecompressionBombWarning)
            image = image_of.open(path)
        with image:
            if image.mode not in _EIGHT_BIT:
                msg = f"{path}: pixels are '{image.mode}', not 8 bits a channel; convert the image"
                raise DataError(msg)
            mpp = _tag_mpp(getattr(image, "tag_v2", {}))
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                return _composited(np.asarray(image.convert("RGBA")), WHITE), mpp
            return np.asarray(image.convert("RGB")), mpp
    except DataError:
        raise
    except image_of.DecompressionBombError:
        msg = (
            f"{path}: too large to be held in memory as a plain image; write a pyramid "
            "(vips tiffsave --tile --pyramid) and use that"
        )
        raise DataError(msg) from None
    except Exception as error:  # decoders fail on damaged files in any way
        msg = f"{path}: cannot be read as an image ({_reason(error)}); copy it again"
        raise DataError(msg) from None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _plausible(values: Sequence[float | None]) -> float | None:
    """The mean of the directions, None if it is no microscope's resolution."""
    known = [v for v in values if v is not None]
    mean = sum(known) / len(known) if known else 0.0
    return mean if _PLAUSIBLE[0] <= mean <= _PLAUSIBLE[1] else None


def _stated_mpp(properties: Mapping[str, str]) -> float | None:
    """From OpenSlide's own figure, Aperio's, or the TIFF resolution."""
    for names in (("openslide.mpp-x", "openslide.mpp-y"), ("aperio.MPP",)):
        found = _plausible([_number(properties.get(name)) for name in names])
        if found is not None:
            return found
    unit = {"inch": 2, "centimeter": 3}.get(properties.get("tiff.ResolutionUnit", ""))
    tags = {
        _X_RESOLUTION: properties.get("tiff.XResolution"),
        _Y_RESOLUTION: properties.get("tiff.YResolution"),
        _RESOLUTION_UNIT: unit,
    }
    return _tag_mpp(tags)


def _tag_mpp(tags: Mapping[int, Any]) -> float | None:
    """Micrometres per pixel from TIFF's resolution tags."""
    unit = _UNIT_UM.get(tags.get(_RESOLUTION_UNIT) or 0)
    rates = [_number(tags.get(key)) for key in (_X_RESOLUTION, _Y_RESOLUTION)]
    if unit is None:
        return None
    return _plausible([unit / rate if rate else None for rate in rates])


def _stated_power(properties: Mapping[str, str]) -> float | None:
    names = ("openslide.objective-power", "aperio.AppMag")
    return next((n for name in names if (n := _number(properties.get(name)))), None)


def _colour(text: str | None) -> tuple[int, int, int]:
    try:
        value = int(text or "FFFFFF", 16)
    except ValueError:
        return WHITE
    return (value >> 16) & 255, (value >> 8) & 255, value & 255


def _bounds(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The scanned part, cut to the slide; the whole slide where it is not stated or empty."""
    try:
        x, y, width, height = (
            int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height")
        )
    except (KeyError, ValueError):
        return (0, 0, *size)
    left, top = max(0, x), max(0, y)
    right, bottom = min(size[0], x + width), min(size[1], y + height)
    if right <= left or bottom <= top:
        return (0, 0, *size)
    return left, top, right - left, bottom - top


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
