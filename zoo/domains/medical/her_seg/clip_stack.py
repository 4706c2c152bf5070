"""Clips: frame folders and video files as ordered stacks of pictures, read frame by frame.

Frames of a folder are in natural order of their names (frame2 before frame10). Masks may be sparse:
a frame without one is predicted and not scored. Masks of a video file are pictures called by the
number of their frame (from 0; from 1 where a number equals the count of frames, as ffmpeg writes
them), or a second video of as many frames.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from zoo import files
from zoo.data import cache_dir, fingerprint
from zoo.domains.medical.her_seg.images import head, read_image
from zoo.domains.medical.her_seg.masks import Coding, Values, read_mask
from zoo.domains.medical.her_seg.stacks import Kind, Prompts
from zoo.domains.medical.her_seg.video_file import USUAL_RATE, VideoFile, VideoWriter
from zoo.domains.medical.her_seg.writers import grey_levels, outlined, write_mask
from zoo.errors import DataError
from zoo.task import Finding

# Part of the cache key: raise it whenever masks are read otherwise.
_VERSION = 1


class Frames(Protocol):
    """The pictures of a clip."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What they lie in."""
        ...

    def __len__(self) -> int:
        """Number of frames."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every frame."""
        ...

    def names(self) -> list[str]:
        """A name for each frame, as its mask is called."""
        ...

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        ...

    def times(self) -> tuple[list[int], Fraction]:
        """Time stamps and the seconds of a unit."""
        ...

    def close(self) -> None:
        """Let go of what is open or kept."""
        ...


class FolderFrames:
    """Picture files as frames.

    Args:
        paths: In order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = tuple(paths)
        self._size: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.files)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame, which all others must have."""
        if self._size is None:
            self._size = head(self.files[0]).size
        return self._size

    def names(self) -> list[str]:
        """The stems."""
        return [path.stem for path in self.files]

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
            DataError: The file is broken or of another size than the first.
        """
        picture = read_image(self.files[number])
        if picture.shape[:2] != self.size:
            told = [" x ".join(map(str, s)) for s in (picture.shape[:2], self.size)]
            msg = f"{self.files[number]}: {told[0]} pixels where the clip's frames have {told[1]}"
            raise DataError(msg)
        return picture

    def times(self) -> tuple[list[int], Fraction]:
        """Frames of a folder have no times: ten a second."""
        return list(range(len(self))), Fraction(1, USUAL_RATE)

    def close(self) -> None:
        """Nothing is open."""


class ClipStack:
    """A clip as an ordered row of frames; a `zoo.domains.medical.her_seg.stacks.Stack`.

    Args:
        name: Its id.
        group: What must not be in two splits.
        frames: Its pictures.
        masks: Frame name -> mask file; may be sparse.
        coding: What mask values mean.
        mask_video: Masks as a second video, instead of files.
        each: Write a mask for each frame.
        overlay: Write a video with outlines as well.
    """

    kind: Kind = "clip"
    spacing: tuple[float, ...] | None = None

    def __init__(
        self,
        name: str,
        group: str,
        frames: Frames,
        masks: Mapping[str, Path],
        coding: Coding,
        *,
        mask_video: VideoFile | None = None,
        each: bool = True,
        overlay: bool = True,
    ) -> None:
        self.id = name
        self.group = group
        self.frames = frames
        self.masks = dict(masks)
        self.mask_video = mask_video
        self.coding = coding
        self._each = each
        self._overlay = overlay
        self._by_number: dict[int, Path] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Frames before masks."""
        video = self.mask_video.files if self.mask_video is not None else ()
        return (*self.frames.files, *self.masks.values(), *video)

    @property
    def labelled(self) -> bool:
        """Whether any frame has a mask."""
        return bool(self.masks) or self.mask_video is not None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]."""
        return self.frames.frame(index).astype(np.float32) / 255

    def truth(self, index: int) -> np.ndarray | None:
        """(H, W) uint8 class indices, or None where the frame has no mask.

        Raises:
            DataError: The mask is broken or of another size.
        """
        if self.mask_video is not None:
            return self._of_video(index)
        path = self.numbered().get(index)
        if path is None:
            return None
        labels = read_mask(path, self.coding, self.frames.size)
        if labels.shape != self.frames.size:
            told = [" x ".join(map(str, s)) for s in (labels.shape, self.frames.size)]
            msg = f"{path}: {told[0]} pixels where the frame has {told[1]}; make them alike"
            raise DataError(msg)
        return labels

    def _of_video(self, index: int) -> np.ndarray:
        assert self.mask_video is not None
        video = self.mask_video
        if len(video) != len(self.frames) or video.size != self.frames.size:
            told = f"{len(video)} frames of {' x '.join(map(str, video.size))} pixels"
            want = f"{len(self.frames)} of {' x '.join(map(str, self.frames.size))}"
            msg = f"{video.path}: {told} where the video has {want}; cut them alike"
            raise DataError(msg)
        grey = video.frame(index).max(axis=2)
        return self.coding.indices(Values(grey, None, 255, lossy=True), video.path)

    def numbered(self) -> dict[int, Path]:
        """Frame number -> mask file.

        Raises:
            DataError: A mask belongs to no frame.
        """
        if self._by_number is None:
            self._by_number = matched(self.frames.names(), self.masks, self.frames.files[0])
        return self._by_number

    def instances(self, index: int) -> np.ndarray | None:
        """None: clips have no numbered objects."""
        return None

    def prompts(self, index: int) -> Prompts | None:
        """None: files of this kind hold none; `predict.prompts` may name some."""
        return None

    def close(self) -> None:
        """Let go of open files."""
        self.frames.close()
        if self.mask_video is not None:
            self.mask_video.close()

    def write(self, out: Path, labels: Callable[[int], np.ndarray]) -> list[Path]:
        """Write masks as `<id>/<frame>.png`, `<id>_mask.mp4`, and outlines as `<id>_overlay.mp4`.

        The videos have the times of the frames. In the mask video one class is white; several are
        spread over the greys. It is compressed: the PNG files are the exact ones.

        Args:
            out: Folder, made if need be.
            labels: Index -> (H, W) uint8 class indices of that frame; asked for once, in order.
        """
        mask_path = out / f"{self.id}_mask.mp4"
        written: list[Path] = []
        if self._overlay:
            overlay_path = out / f"{self.id}_overlay.mp4"
            files.write_whole(
                overlay_path,
                lambda over: files.write_whole(
                    mask_path, lambda mask: written.extend(self._fill(out, labels, mask, over))
                ),
            )
            return [*written, mask_path, overlay_path]
        files.write_whole(
            mask_path, lambda mask: written.extend(self._fill(out, labels, mask, None))
        )
        return [*written, mask_path]

    def _fill(
        self, out: Path, labels: Callable[[int], np.ndarray], mask: Path, overlay: Path | None
    ) -> list[Path]:
        stamps, base = self.frames.times()
        size = self.frames.size
        levels = grey_levels(len(self.coding.classes.names))
        written = []
        with ExitStack() as open_files:
            plain = open_files.enter_context(VideoWriter(mask, size, base, quality=8))
            drawn = None
            if overlay is not None:
                drawn = open_files.enter_context(VideoWriter(overlay, size, base))
            for i, (name, stamp) in enumerate(zip(self.frames.names(), stamps, strict=True)):
                found = labels(i)
                if self._each:
                    written.append(out / self.id / f"{name}.png")
                    write_mask(written[-1], found, self.coding.classes)
                plain.add(np.repeat(levels[found][..., None], 3, axis=2), stamp)
                if drawn is not None:
                    drawn.add(outlined(self.frames.frame(i), found), stamp)
        return written

    def foreground(self) -> list[tuple[int, bool]]:
        """(frame, whether it holds foreground) of every frame with a mask; kept in the cache."""
        stamps = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.files]
        key = fingerprint([_VERSION, stamps, repr(self.coding)])
        kept = cache_dir() / "her_seg" / "clips" / f"{key}.json"
        try:
            found = json.loads(kept.read_text(encoding="utf-8"))
            return [(int(i), bool(f)) for i, f in found]
        except (OSError, ValueError, TypeError):
            pass
        numbers: Sequence[int] = sorted(self.numbered())
        if self.mask_video is not None:
            numbers = range(len(self.frames))
        rows = [(i, bool(np.any(self.truth(i)))) for i in numbers]
        with suppress(OSError):  # a cache that cannot be written costs time only
            files.write_json(kept, rows)
        return rows

    def look(self, deep: bool) -> list[Finding]:
        """Findings of its files; deep reads every frame and mask."""
        findings = []
        try:
            size = self.frames.size
            self.numbered()
            if min(size) < 1 or len(self) < 1:
                findings.append(Finding("error", "has no frame", str(self.files[0])))
        except DataError as error:
            return [Finding("error", str(error))]
        if not self.labelled:
            what = "has no masks; it is not trained on and not scored"
            findings.append(Finding("warning", what, str(self.frames.files[0].parent)))
        for index in range(len(self)) if deep else ():
            for read in (self.picture, self.truth):
                try:
                    read(index)
                except DataError as error:
                    findings.append(Finding("error", str(error)))
        self.close()
        return findings


_TAIL = re.compile(r"[_\-. ]*(mask|masks|label|labels|gt|seg|segmentation)$", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def matched(names: Sequence[str], masks: Mapping[str, Path], where: Path) -> dict[int, Path]:
    """Frame number -> mask file: by stem, by stem without a tail, or by the last number.

    Args:
        names: Of the frames.
        masks: Stem -> file.
        where: Of the frames, for messages.

    Raises:
        DataError: A mask belongs to no frame, or two to one.
    """
    index = {name: i for i, name in enumerate(names)}
    found = {stem: index.get(stem, index.get(_TAIL.sub("", stem))) for stem in masks}
    if None in found.values():
        found = _by_number(names, masks)
    result: dict[int, Path] = {}
    for stem, number in found.items():
        if number is None:
            msg = (
                f"{masks[stem]}: no frame of that name in {where.parent}; delete the mask or add it"
            )
            raise DataError(msg)
        if number in result:
            msg = f"{masks[stem]} and {result[number].name} are masks of one frame; delete one"
            raise DataError(msg)
        result[number] = masks[stem]
    return result


def _by_number(names: Sequence[str], masks: Mapping[str, Path]) -> dict[str, int | None]:
    def last(text: str) -> int | None:
        match = _NUMBER.search(text)
        return int(match[1]) if match else None

    frames = {last(name): i for i, name in enumerate(names)}
    numbers = {stem: last(stem) for stem in masks}
    if set(frames) == set(range(len(names))):
        # Frames numbered from 0; masks that ffmpeg wrote begin with 1 and end with the count.
        highest = max((n for n in numbers.values() if n is not None), default=0)
        if highest == len(names) and 0 not in numbers.values():
            numbers = {stem: None if n is None else n - 1 for stem, n in numbers.items()}
    return {stem: None if n is None else frames.get(n) for stem, n in numbers.items()}
