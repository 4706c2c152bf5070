"""Picture files through Pillow: which kinds are let in, and one line for each way to be broken."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from zoo.errors import DataError

# What Pillow is let try, whatever a file is called: it would hand PostScript to Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# Pixels above which a file is taken for a decompression bomb (Pillow's own limit only warns).
MOST_PIXELS = 100_000_000
# What Pillow raises at files that are cut off or damaged.
BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


@contextmanager
def opened(
    path: Path,
    source: IO[bytes] | None = None,
    *,
    most: int = MOST_PIXELS,
    too_many: str = "are too many; cut it in parts or shrink it",
) -> Iterator[Image.Image]:
    """A picture, open for as long as it is read.

    Args:
        path: The file, also for messages.
        source: Its content, where it was read already.
        most: Pixels from which it is refused.
        too_many: How the message about too many pixels ends.

    Raises:
        DataError: It is missing, empty, no plain file, broken, too large or no picture.
    """
    try:
        if source is None and path.exists() and not path.is_file():  # a pipe would be waited for
            msg = f"{path}: is no plain file"
            raise DataError(msg)
        with _quietly(path if source is None else source) as image:
            if 0 in image.size:
                msg = f"{path}: has no pixels; export or copy it again"
                raise DataError(msg)
            if image.width * image.height > most:
                msg = f"{path}: {image.width} x {image.height} pixels {too_many}"
                raise DataError(msg)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        msg = f"{path}: there is no such file"
        raise DataError(msg) from None
    except UnidentifiedImageError:
        empty = source is None and path.stat().st_size == 0
        told = "the file is empty" if empty else "is no image that can be read"
        msg = f"{path}: {told}; export or copy it again"
        raise DataError(msg) from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"{path}: the image is broken ({reason[:120]}); copy the file again"
        raise DataError(msg) from None


def _quietly(source: Path | IO[bytes]) -> Image.Image:
    """`Image.open` without Pillow's warning of large pictures: they are refused in a line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=FORMATS)
