"""Video files by PyAV: every frame once, in order, at its own time; and videos written.

A first pass decodes the file and notes the time stamp of each frame, so that the count is that of
the frames there are and not what a header claims; it is kept in the cache. Frames are then decoded
when they are asked for, one after the other or from the key frame before. A video's rotation, which
telephones and endoscopy towers write beside the pixels, is applied.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from zoo import files
from zoo.data import cache_dir, fingerprint
from zoo.errors import DataError
from zoo.extras import optional

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mjpeg")
# Part of the cache key: raise it whenever more is noted.
_VERSION = 1
_KEPT = 4  # decoded frames: a picture is asked for again with its neighbours
# Frames a second of clips that tell no times.
USUAL_RATE = 10


@dataclass(frozen=True)
class Index:
    """What the first pass noted.

    Attributes:
        stamps: Time stamp of each frame in units of `base`, in the order of display.
        base: Seconds of a unit: numerator and denominator.
        size: (H, W) upright.
        rotation: Degrees counter-clockwise by which stored frames are turned for display.
        seekable: Whether every frame has a time stamp of its own.
    """

    stamps: list[int]
    base: tuple[int, int]
    size: tuple[int, int]
    rotation: int
    seekable: bool


def pyav() -> Any:
    """The library.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    return optional("av", "video files are read by", "medical")


def is_video(path: Path) -> bool:
    """Whether a name is that of a video file."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class VideoFile:
    """The frames of a video file.

    Args:
        path: The file; it is opened when frames are asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index: Index | None = None
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._reader: Iterator[tuple[int, np.ndarray]] | None = None
        self._next = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: a worker process opens the file itself."""
        return {**self.__dict__, "_reader": None, "_kept": OrderedDict(), "_next": 0}

    def index(self) -> Index:
        """Times, size and rotation of the frames; the first call may decode the file.

        Raises:
            DataError: The file is missing, has no video, breaks off, or changes its size.
        """
        if self._index is None:
            if not self.path.is_file():
                msg = f"{self.path}: no such file"
                raise DataError(msg)
            stat = self.path.stat()
            stamp = str(self.path.resolve()), stat.st_size, stat.st_mtime_ns
            kept = cache_dir() / "her_seg" / "videos" / f"{fingerprint([_VERSION, *stamp])}.json"
            self._index = _kept_index(kept)
            if self._index is None:
                self._index = self._scan()
                with suppress(OSError):  # a cache that cannot be written costs time only
                    files.write_json(kept, asdict(self._index))
        return self._index

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.index().stamps)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upright frames."""
        return self.index().size

    def names(self) -> list[str]:
        """A name for each frame: its number from 0."""
        return [f"{i:06d}" for i in range(len(self))]

    def times(self) -> tuple[list[int], Fraction]:
        """Time stamp of each frame from 0, and the seconds of a unit."""
        index = self.index()
        first = index.stamps[0]
        return [s - first for s in index.stamps], Fraction(*index.base)

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, upright.

        Raises:
            DataError: The file breaks off or was changed since its frames were counted.
        """
        if number in self._kept:
            return self._kept[number]
        if not 0 <= number < len(self):
            msg = f"{self.path}: frame {number} of {len(self)}"
            raise IndexError(msg)
        if self._reader is None or not self._next <= number < self._next + 32:
            self._reader = self._decoded(number)
        for found, picture in self._reader:
            self._next = found + 1
            self._kept[found] = picture
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            if found == number:
                return picture
        msg = f"{self.path}: frame {number} is not there any more; was the file changed?"
        raise DataError(msg)

    def close(self) -> None:
        """Let go of the file and of decoded frames."""
        self._reader = None
        self._kept.clear()

    def _decoded(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number, frame) from `start` on: from the key frame before it, else from the first."""
        index = self.index()
        number_of = {stamp: i for i, stamp in enumerate(index.stamps)}
        if start and index.seekable:
            with _opened(self.path) as (container, stream):
                container.seek(index.stamps[start], stream=stream, backward=True)
                found = container.decode(stream)
                first = next(found, None)
                # A seek may go too far, or to where frames lean on others that were not decoded.
                if first is not None and number_of.get(first.pts, start + 1) <= start:
                    for frame in chain([first], found):
                        if frame.is_corrupt:
                            break
                        number = number_of.get(frame.pts, -1)
                        if number >= start:
                            start = number + 1
                            yield number, self._upright(frame)
                    else:
                        return
        with _opened(self.path) as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                if number >= start:
                    yield number, self._upright(frame)

    def _upright(self, frame: Any) -> np.ndarray:
        picture = np.rot90(frame.to_ndarray(format="rgb24"), self.index().rotation // 90)
        return np.ascontiguousarray(picture)

    def _scan(self) -> Index:
        stamps: list[int | None] = []
        shape: tuple[int, int] | None = None
        rotation = 0
        with _opened(self.path) as (container, stream):
            base = Fraction(stream.time_base or Fraction(1, USUAL_RATE))
            rate = stream.average_rate or USUAL_RATE
            for frame in container.decode(stream):
                size = frame.height, frame.width
                if frame.is_corrupt or (shape is not None and size != shape):
                    told = "is damaged" if frame.is_corrupt else "has another size than the first"
                    msg = f"{self.path}: frame {len(stamps)} {told}; convert the video again"
                    raise DataError(msg)
                shape = size
                rotation = int(frame.rotation)
                stamps.append(frame.pts)
        if shape is None:
            msg = f"{self.path}: holds no frame that can be decoded; copy it again"
            raise DataError(msg)
        if rotation % 90:
            msg = f"{self.path}: is turned by {rotation} degrees; convert it upright"
            raise DataError(msg)
        sound = [s for s in stamps if s is not None]
        seekable = len(sound) == len(stamps) and all(a < b for a, b in pairwise(sound))
        if not seekable:  # a stream without times: frames follow one another at its rate
            step = Fraction(1, 1) / Fraction(rate)
            base, sound = step, list(range(len(stamps)))
        size = shape[::-1] if rotation % 180 else shape
        return Index(sound, (base.numerator, base.denominator), size, rotation % 360, seekable)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream; every fault becomes one line."""
    library = pyav()
    try:
        with library.open(str(path)) as container:
            if not container.streams.video:
                msg = f"{path}: has no video stream"
                raise DataError(msg)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (library.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or type(error).__name__
        msg = f"{path}: cannot be read as video ({reason}); copy or convert it again"
        raise DataError(msg) from None


def _kept_index(path: Path) -> Index | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        size, base = body["size"], body["base"]
        return Index(
            [int(s) for s in body["stamps"]],
            (int(base[0]), int(base[1])),
            (int(size[0]), int(size[1])),
            int(body["rotation"]),
            bool(body["seekable"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


class VideoWriter:
    """An MP4 that is filled frame by frame; to be used as a context.

    H.264 where the library can write it, else MPEG-4. Odd sizes are padded by one pixel.

    Args:
        path: The file; written directly, so let `zoo.files.write_whole` choose it.
        size: (H, W) of the frames.
        base: Seconds of a unit of the time stamps.
        quality: Constant rate factor of H.264: 18 is hard to tell from the original.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], base: Fraction, quality: int = 18
    ) -> None:
        library = pyav()
        self._frame = library.VideoFrame.from_ndarray
        self._base = base
        self._size = size
        self._container = library.open(str(path), "w", format="mp4")
        try:
            library.codec.Codec("libx264", "w")
            codec, options = "libx264", {"crf": str(quality), "preset": "veryfast"}
        except library.codec.codec.UnknownCodecError:
            codec, options = "mpeg4", {"qscale:v": "3"}
        stream = self._container.add_stream(codec, options=options)
        stream.height, stream.width = (n + n % 2 for n in size)
        stream.pix_fmt = "yuv420p"
        stream.time_base = base
        stream.codec_context.time_base = base
        self._stream = stream

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(whole=error is None)

    def close(self, *, whole: bool = True) -> None:
        """Write what is still held back, and the end of the file."""
        try:
            if whole:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def add(self, picture: np.ndarray, stamp: int) -> None:
        """Append a frame.

        Args:
            picture: (H, W, 3) uint8.
            stamp: Its time in units of `base`, larger than the one before.
        """
        height, width = self._size
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._frame(np.ascontiguousarray(even), format="rgb24")
        frame.pts, frame.time_base = stamp, self._base
        self._container.mux(self._stream.encode(frame))
