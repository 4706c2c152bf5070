"""Reading the image, the mask and the depth map of a scene, whatever file they lie in.

Depth is read unchanged. Pillow's conversion of a 16-bit map to 8 bits saturates (256 to 65535 all
become 255) and OpenCV's grey flag divides by 256: the two reasons why depth maps are reported as
"all one" or "all black". Masks come with 1 bit, as 0/1, 0/255, palette, colour or JPEG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import scipy.io
from PIL import Image, ImageOps

from zoo import matlab
from zoo.errors import DataError
from zoo.hdf5 import own
from zoo.images import MOST_PIXELS, opened

T = TypeVar("T")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
DEPTH_SUFFIXES = (*IMAGE_SUFFIXES, ".mat")
# Names that depth has in .mat files, in order of preference; else the only matrix is taken.
_VARIABLES = ("smoothedDepth", "rawDepth", "depth", "depthMap", "disparity")
# Channels of a grey map stored as colour may differ by this much where JPEG rounded them.
_GREY_TOLERANCE = 4
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSING = (5, 6, 7, 8)  # its values that swap width and height


@dataclass(frozen=True, eq=False)
class RawDepth:
    """A depth map as stored.

    Attributes:
        values: (H, W), in the file's own type and unit.
        kind: What the file holds: `8-bit`, `16-bit`, `float` or `mat`, for reports.
        zero_is_hole: Whether 0 usually means "not measured" in such a file: sensors write 16-bit
            maps with zeros, while 8-bit maps were scaled and 0 is an end of their range.
    """

    values: np.ndarray
    kind: str
    zero_is_hole: bool


@dataclass(frozen=True)
class Head:
    """What a file's header tells.

    Attributes:
        size: (H, W) in pixels as read: after EXIF rotation for images.
        stored: (H, W) in pixels as stored.
        kind: Pixel type, as `RawDepth.kind` for maps and Pillow's mode otherwise.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    kind: str


def head(path: Path) -> Head:
    """Size and pixel type of an image, mask or depth map, from the header alone.

    Raises:
        DataError: The file is missing or its header is broken.
    """
    if path.suffix.lower() == ".mat":
        shapes = _from_mat(path, _mat_shapes)
        size = shapes[_depth_variable(shapes, path)]
        return Head(size, size, "mat")
    with opened(path) as image:
        stored = (image.height, image.width)
        turned = image.getexif().get(_ORIENTATION) in _TRANSPOSING
        size = stored[::-1] if turned else stored
        return Head(size, stored, _kind(image, path))


def _kind(image: Image.Image, path: Path) -> str:
    if image.mode.startswith("I") or _deep_png(image, path):
        return "16-bit"
    return "float" if image.mode == "F" else "8-bit" if image.mode != "1" else "1-bit"


def read_rgb(path: Path, like: tuple[int, int] | None = None) -> np.ndarray:
    """A colour image, upright: the EXIF orientation is applied.

    Args:
        path: The file.
        like: (H, W) of the depth map. Where it equals the stored size and the upright one differs,
            the map was made from the pixels as stored, and the image is left as stored too.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The file is missing or broken.
    """
    with opened(path) as image:
        turned = image.getexif().get(_ORIENTATION) in _TRANSPOSING
        stored = (image.height, image.width)
        if not (turned and like == stored and stored[0] != stored[1]):
            image = ImageOps.exif_transpose(image)
        if _kind(image, path) in ("16-bit", "float"):  # a grey photograph of more than 8 bits
            values = np.asarray(image)
            if not np.isfinite(values).all():
                msg = f"{path}: holds values that are not finite; save the image as 8 bit"
                raise DataError(msg)
            return np.repeat(_to_bytes(values)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    top = float(values.max(initial=0))
    full = 65535.0 if values.dtype.kind in "iu" and top > 255 else max(top, 1.0)
    return np.clip(np.rint(values / full * 255), 0, 255).astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """An annotation as foreground or not.

    Values 0 and 1 count as they are; otherwise foreground is what is above 128 of 255, strictly,
    so that JPEG ringing falls out. A palette of greys counts by its greys; of a coloured palette
    every entry but the first is foreground. Colour is averaged to grey.

    Returns:
        (H, W) bool.

    Raises:
        DataError: The file is missing or broken.
    """
    with opened(path) as image:
        if image.mode == "1":
            return np.asarray(image).copy()
        if image.mode == "P":
            colours = np.asarray(image.convert("RGB"))
            if (colours != colours[..., :1]).any():
                return np.asarray(image) > 0
            values = colours[..., 0]
        elif _kind(image, path) in ("16-bit", "float"):
            values = np.asarray(image)
            if values.max(initial=0) > 255:
                values = values / 257  # 65535 is 255
        else:
            values = np.asarray(image.convert("L"))
    return np.asarray(values > 0 if values.max(initial=0) <= 1 else values > 128)


def read_depth(path: Path) -> RawDepth:
    """A depth map, unchanged.

    Read are 8 and 16-bit PNG, BMP, JPEG, TIFF (float as well) and the first known variable, or the
    only matrix, of a `.mat` file of any version. Grey stored as three equal channels is averaged.

    Raises:
        DataError: The file is missing, broken, or a coloured picture of depth rather than depth.
    """
    if path.suffix.lower() == ".mat":
        matrices = _from_mat(path, _matrices)
        return RawDepth(matrices[_depth_variable(matrices, path)], "mat", zero_is_hole=True)
    with opened(path) as image:
        kind = _kind(image, path)
        if _deep_png(image, path):
            values = _deep_colour(path)
        elif image.mode == "P":
            values = np.asarray(image.convert("RGB"))
        elif image.mode in ("LA", "RGBA", "La", "RGBa"):
            values = np.asarray(image)[..., :-1]
        elif image.mode in ("1", "CMYK", "YCbCr", "HSV", "LAB"):
            values = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
        else:
            values = np.asarray(image)
    return RawDepth(_one_channel(values, path), kind, zero_is_hole=kind in ("16-bit", "float"))


def _deep_png(image: Image.Image, path: Path) -> bool:
    """Whether this is a 16-bit colour PNG, of which Pillow would keep 8 bits."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
        return False
    with path.open("rb") as file:
        return file.read(25)[-1] == 16  # bits a channel, in the first chunk


def _deep_colour(path: Path) -> np.ndarray:
    import cv2

    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        msg = f"{path}: cannot be read; copy the file again"
        raise DataError(msg)
    return np.asarray(values[..., :3])


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 2:
        return values
    wide = values.astype(np.float64)
    spread = wide.max(axis=2) - wide.min(axis=2)
    if values.shape[2] > 1 and float(np.quantile(spread, 0.99)) > _GREY_TOLERANCE:
        msg = (
            f"{path}: the depth map is coloured; colours cannot be turned back into depth, get "
            "the grey map"
        )
        raise DataError(msg)
    return np.asarray(np.rint(wide.mean(axis=2))).astype(values.dtype)


def _from_mat(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` gives; every way in which the file can be broken becomes one line."""
    try:
        return read(path)
    except DataError:
        raise
    except FileNotFoundError:
        msg = f"{path}: there is no such file"
        raise DataError(msg) from None
    except Exception as error:  # scipy raises nearly anything at a damaged file
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        msg = f"{path}: cannot be read as a MATLAB file ({reason})"
        raise DataError(msg) from None


def _depth_variable(names: Iterable[str], path: Path) -> str:
    have = list(names)
    known = [name for name in _VARIABLES if name in have]
    if known or len(have) == 1:
        return (known or have)[0]
    msg = (
        f"{path}: expected one matrix of depth, or one named {', '.join(_VARIABLES)}; found "
        f"{', '.join(have) or 'none'}"
    )
    raise DataError(msg)


def _is_map(shape: tuple[int, ...], kind: str) -> bool:
    return kind.startswith(("int", "uint", "single", "double", "float")) and (
        len(shape) == 2 and min(shape) > 1
    )


def _modern(path: Path) -> bool:
    """Whether a MATLAB file is of version 7.3, which is HDF5."""
    with path.open("rb") as file:
        return b"MATLAB 7.3" in file.read(128)


def _version_4(path: Path) -> bool:
    """Whether a MATLAB file begins as those of version 4 do: with a small number."""
    with path.open("rb") as file:
        start = file.read(128)
    return 0 in start[:4] and start[126:] not in (b"IM", b"MI")


def _mat_shapes(path: Path) -> dict[str, tuple[int, int]]:
    """(H, W) of each matrix, without reading it."""
    if _modern(path):
        with h5py.File(path) as file:
            return {name: (d.shape[1], d.shape[0]) for name, d in _datasets(file, path).items()}
    if _version_4(path):
        found = [(n, tuple(s), k) for n, s, k in scipy.io.whosmat(path, appendmat=False)]
    else:
        found = [(n, v.shape, v.kind) for n, v in matlab.variables(path).items()]
    maps = {name: (shape[0], shape[1]) for name, shape, kind in found if _is_map(shape, kind)}
    for name, (height, width) in maps.items():
        if height * width > MOST_PIXELS:
            msg = f"{path}: '{name}' claims {width} x {height} pixels, which are too many"
            raise DataError(msg)
    return maps


def _matrices(path: Path) -> dict[str, np.ndarray]:
    """Each matrix, (H, W)."""
    if _modern(path):
        with h5py.File(path) as file:  # which stores matrices by column
            return {name: np.asarray(d[()]).T for name, d in _datasets(file, path).items()}
    names = list(_mat_shapes(path))
    if _version_4(path):
        content: Mapping[str, Any] = scipy.io.loadmat(path, appendmat=False, variable_names=names)
        return {name: np.asarray(content[name]) for name in names}
    found = matlab.variables(path)
    return {name: found[name].values() for name in names}


def _datasets(file: h5py.File, path: Path) -> dict[str, Any]:
    """The matrices of a version 7.3 file; storage that points at other files is refused."""
    found = {}
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            msg = f"{path}: '{name}' points at another place; links are refused"
            raise DataError(msg)
        item = file[name]
        if not isinstance(item, h5py.Dataset) or not _is_map(item.shape, item.dtype.name):
            continue
        found[name] = own(item, f"{path}: '{name}'")
    return found


def resized(values: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """`values` at another size: bilinear with antialiasing, or by nearest pixel.

    Args:
        values: (H, W, 3) uint8, (H, W) uint8 or (H, W) float32.
        size: (height, width) wanted.
        nearest: For masks.
    """
    if values.shape[:2] == size:
        return values
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize(size[::-1], how))


def thumbnail(values: np.ndarray, longest: int) -> np.ndarray:
    """`values` (uint8) made smaller so that no side exceeds `longest`; never larger."""
    height, width = values.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return values
    return resized(values, (max(1, round(height * factor)), max(1, round(width * factor))))
