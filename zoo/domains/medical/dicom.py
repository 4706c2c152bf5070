"""DICOM files of medical tasks: headers, stored and rescaled values, 8-bit pictures.

Names, ids and other header text of a patient stay in memory. Nothing here puts them into a message:
errors name the file and the fault only, and warnings of pydicom, which quote values, are held back.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ConfigError, DataError
from zoo.extras import optional

if TYPE_CHECKING:
    from pydicom import Dataset

FRONTAL = ("AP", "PA")
_ENDINGS = (".dcm", ".dicom", ".dic", ".ima")
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
# More than any radiograph has; a header may claim anything.
_MOST_PIXELS = 36 * 10**6
# What the deflated part of a file may unpack to, in bytes: such a picture of 32 bit.
_MOST_UNPACKED = 4 * _MOST_PIXELS
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# Pixels windowed at a time: in between each takes some 40 bytes.
_AT_ONCE = 1 << 21
# What pydicom and the decoders raise on files that are not what they say.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Header:
    """What tasks use of a DICOM header.

    Attributes:
        patient: PatientID, else PatientName, else "". In memory only: to be put through
            `zoo.privacy.alias` before it is shown, stored or logged. The UIDs likewise.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        number: InstanceNumber, 0 if unknown.
        modality: CR, DX, CT …
        view: ViewPosition in capitals: PA, AP, LL …
        sex: M, F, O or "".
        age: Whole years in digits, or "".
        photometric: MONOCHROME1 (bright is low) or MONOCHROME2, or a colour space.
        frames: Number of frames, 1 for a plain image.
    """

    patient: str = field(repr=False)
    study: str = field(repr=False)
    series: str = field(repr=False)
    instance: str = field(repr=False)
    number: int
    modality: str
    view: str
    sex: str
    age: str
    photometric: str
    frames: int


def pydicom() -> Any:
    """The library.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    return optional("pydicom", "DICOM files are read by", "medical")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its ending or by the four letters after its preamble."""
    if path.suffix.lower() in _ENDINGS:
        return True
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read(path: Path, *, pixels: bool = True) -> Dataset:
    """Read a file.

    Args:
        path: The file.
        pixels: Read the pixel data too; without, a header takes about a millisecond.

    Raises:
        DataError: There is no such file, it is not DICOM, holds no image, or breaks off.
        ConfigError: pydicom is missing.
    """
    library = pydicom()
    if path.exists() and not path.is_file():
        msg = f"{path}: is no plain file"
        raise DataError(msg)
    try:
        with _quiet():
            _look_unpacked(path)
            dataset: Dataset = library.dcmread(path, stop_before_pixels=not pixels)
            # Elements are decoded on access; a header that breaks off must be told here.
            _ = header_of(dataset)
    except DataError:
        raise
    except library.errors.InvalidDicomError:
        msg = f"{path}: not a DICOM file (no DICM mark after the preamble)"
        raise DataError(msg) from None
    except FileNotFoundError:
        msg = f"{path}: no such file"
        raise DataError(msg) from None
    except (*_FAULTS, library.errors.BytesLengthException) as error:
        msg = f"{path}: the DICOM file breaks off or is damaged ({type(error).__name__})"
        raise DataError(msg) from None
    if "Rows" not in dataset:
        msg = f"{path}: the DICOM file holds no image, or breaks off in its header"
        raise DataError(msg)
    return dataset


def _look_unpacked(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than a radiograph (PS3.5 A.5), a bomb.

    pydicom unpacks it whole, whatever is wanted of it.
    """
    with path.open("rb") as file:
        head = file.read(1 << 17)
        if _DEFLATED not in head:
            return
        # The group of file meta information begins with its length; what follows is deflated.
        (length,) = struct.unpack_from("<I", head, 140)
        file.seek(144 + length)
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        rest = file.read(1 << 16)
        while rest and not inflate.eof:
            size += len(inflate.decompress(rest, 1 << 20))
            if size > _MOST_UNPACKED:
                msg = f"{path}: unpacks to more than any radiograph has; export it again"
                raise DataError(msg)
            rest = inflate.unconsumed_tail or file.read(1 << 16)


def read_header(path: Path) -> Header:
    """The header alone; errors as `read`."""
    return header_of(read(path, pixels=False))


def read_uint8(path: Path) -> tuple[NDArray[np.uint8], Header]:
    """A radiograph as an 8-bit picture with bright bones, and its header.

    Returns:
        (H, W) uint8 as `to_uint8` gives it, and the header.

    Raises:
        DataError: As `read` and `to_uint8`, with the file's name.
        ConfigError: pydicom or the decoder of the file's compression is missing.
    """
    dataset = read(path)
    try:
        with _quiet():
            return to_uint8(dataset), header_of(dataset)
    except DataError as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from None


def header_of(dataset: Dataset) -> Header:
    """The header of a data set that has been read."""
    view = _text(dataset, "ViewPosition").upper()
    sex = _text(dataset, "PatientSex").upper()
    return Header(
        patient=_text(dataset, "PatientID") or _text(dataset, "PatientName"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        number=_whole(dataset, "InstanceNumber", 0),
        modality=_text(dataset, "Modality").upper(),
        view=view,
        sex=sex if sex in ("M", "F", "O") else "",
        age=years(_text(dataset, "PatientAge")),
        photometric=_text(dataset, "PhotometricInterpretation").upper(),
        frames=_whole(dataset, "NumberOfFrames", 1),
    )


def years(text: str) -> str:
    """An age as whole years in digits: `062Y`, `62`, `50+` and `8M` give 62, 62, 50 and 0.

    Value representation AS of DICOM PS3.5: three digits and D, W, M or Y; practice adds others.
    """
    found = re.fullmatch(r"\s*(\d{1,3})(?:\.\d+)?\s*([DWMY]?)\+?\s*", text, re.IGNORECASE)
    if found is None:
        return ""
    share = {"D": 365, "W": 52, "M": 12}.get(found[2].upper(), 1)
    return str(int(found[1]) // share)


def stored(dataset: Dataset) -> NDArray[Any]:
    """The (H, W) values of a one-frame monochrome image as stored.

    Raises:
        DataError: Colour, several frames, no pixel data, or pixel data that break off.
        ConfigError: The decoder of the compression is missing.
    """
    header = header_of(dataset)
    if header.photometric not in _MONOCHROME or _whole(dataset, "SamplesPerPixel", 1) != 1:
        kind = header.photometric or "no photometric interpretation"
        msg = f"{kind}: only MONOCHROME1 and MONOCHROME2 images are radiographs"
        raise DataError(msg)
    if header.frames != 1:
        msg = f"{header.frames} frames; a radiograph has one, export the frame as a file"
        raise DataError(msg)
    if _whole(dataset, "Rows", 0) * _whole(dataset, "Columns", 0) > _MOST_PIXELS:
        msg = "the header claims more pixels than any radiograph has"
        raise DataError(msg)
    if "PixelData" not in dataset:
        msg = "no pixel data; the file is a header only, or breaks off"
        raise DataError(msg)
    try:
        with _quiet():
            values: NDArray[Any] = dataset.pixel_array
    except _FAULTS as error:
        if "missing dependencies" in str(error):
            name = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "its compression")
            msg = f"{name} needs a decoder that is missing: pip install '.[medical]'"
            raise ConfigError(msg) from None
        msg = f"the pixel data break off or cannot be decoded ({type(error).__name__})"
        raise DataError(msg) from None
    if values.ndim != 2:
        msg = f"pixel data of shape {values.shape} where one plane was expected"
        raise DataError(msg)
    return values


def rescaled(dataset: Dataset) -> NDArray[Any]:
    """Stored values after the modality LUT or rescale slope and intercept (PS3.3 C.11.1).

    Returns:
        (H, W); float64 where slope and intercept were applied, else as stored. Hounsfield units
        for CT.

    Raises:
        DataError: As `stored`, or a modality LUT that cannot be applied.
    """
    return _rescaled(stored(dataset), dataset)


def _rescaled(values: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    from pydicom.pixels import apply_modality_lut

    try:
        with _quiet():
            return apply_modality_lut(values, dataset)
    except _FAULTS as error:
        msg = f"its modality LUT or rescale values cannot be applied ({type(error).__name__})"
        raise DataError(msg) from None


def to_uint8(dataset: Dataset) -> NDArray[np.uint8]:
    """A radiograph as an 8-bit picture: bright is dense, whatever the file's convention.

    The rule of the public RICORD preparation: 8-bit data are taken as they are. Others go through
    the modality LUT, the VOI LUT (preferred) or the first window, then min to max is spread over
    0 to 255 and truncated. MONOCHROME1 is inverted last: a window is given in stored polarity. Two
    departures, both where the original goes wrong: negative values are not wrapped to 16 bit, and
    an image of one value gives zeros.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: As `rescaled`, or a window that cannot be applied.
    """
    inverted = header_of(dataset).photometric == "MONOCHROME1"
    values = stored(dataset)
    if values.dtype == np.uint8:
        return 255 - values if inverted else values.copy()
    # In bands of rows, twice: for the range, then for the picture. A whole one takes too much.
    rows = max(1, _AT_ONCE // values.shape[1])
    bands = [slice(top, top + rows) for top in range(0, len(values), rows)]
    negative = bool(values.min() < 0)
    shown = _shown(values[bands[0]], dataset, negative)
    ranges = [(shown.min(), shown.max())]
    for band in bands[1:]:
        shown = _shown(values[band], dataset, negative)
        ranges.append((shown.min(), shown.max()))
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    picture = np.zeros(values.shape, np.uint8)
    if low == high:
        return picture
    for band in bands:
        if len(bands) > 1:
            shown = _shown(values[band], dataset, negative)
        spread = (shown - low) / (high - low)
        if inverted:
            spread = 1.0 - spread
        picture[band] = (255.0 * spread).astype(np.uint8)
    return picture


def _shown(values: NDArray[Any], dataset: Dataset, negative: bool) -> NDArray[np.float64]:
    """Stored values, rescaled and windowed; `negative`: whether any of the image is."""
    scaled = _whole_numbers(_rescaled(values, dataset), dataset, negative)
    shown = _windowed(scaled, dataset).astype(np.float64)
    if not np.isfinite(shown).all():
        msg = "its rescale values or window give values that are not finite"
        raise DataError(msg)
    return shown


def _whole_numbers(values: NDArray[Any], dataset: Dataset, negative: bool) -> NDArray[Any]:
    """Values that a rescale by 1 and 0 made float are integers again, as lookup tables need."""
    same = dataset.get("RescaleSlope", 1) == 1 and dataset.get("RescaleIntercept", 0) == 0
    if values.dtype != np.float64 or not same:
        return values
    whole: NDArray[Any] = values.astype(np.int32 if negative else np.uint16)
    return whole


def _windowed(values: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    from pydicom.pixels import apply_voi_lut

    try:
        with _quiet():
            table = _byte_table(dataset)
            if table is not None:
                first, entries = table
                index = np.clip(np.floor(values).astype(np.int64) - first, 0, len(entries) - 1)
                looked_up: NDArray[Any] = entries[index]
                return looked_up
            return apply_voi_lut(values, dataset, index=0)
    except _FAULTS as error:
        msg = f"its window or VOI LUT cannot be applied ({type(error).__name__})"
        raise DataError(msg) from None


def _byte_table(dataset: Dataset) -> tuple[int, NDArray[np.int64]] | None:
    """First value and entries of a VOI LUT with 8-bit entries, in which pydicom wraps indices."""
    items = dataset.get("VOILUTSequence")
    if not items or int(items[0].LUTDescriptor[2]) != 8:
        return None
    count, first = int(items[0].LUTDescriptor[0]) or 2**16, int(items[0].LUTDescriptor[1])
    entries = items[0].LUTData
    if isinstance(entries, bytes):
        # One byte an entry, or (more often) one entry in two bytes.
        entries = np.frombuffer(entries, np.uint8 if len(entries) < 2 * count else "<u2")
    return first, np.asarray(entries, np.int64)[:count]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of pydicom, which quote header values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _whole(dataset: Dataset, name: str, otherwise: int) -> int:
    try:
        return int(dataset.get(name, otherwise) or otherwise)
    except (TypeError, ValueError):
        return otherwise
