"""A volume as a stack of pictures, whatever files it lies in.

A source (NIfTI, DICOM series, arrays) gives voxels in its file's own order and writes labels back
in it. What lies between is here: orientation, voxel size, intensities to [0, 1], channels, classes.

Volumes that train are decoded once and kept in the cache as plain arrays that are mapped, not
read: a compressed volume cannot be read slice by slice, and a training draws slices of all volumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zoo.data import cache_dir, fingerprint, written_once
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.grids import (
    Axis,
    Grid,
    Resampling,
    View,
    check_same_grid,
    view_of,
    voxel_size,
)
from zoo.domains.medical.her_seg.intensities import limits, scaled
from zoo.domains.medical.her_seg.masks import Coding
from zoo.domains.medical.her_seg.stacks import Kind, Prompts
from zoo.errors import ConfigError, DataError
from zoo.task import Finding

# Part of the cache key: raise it whenever voxels are decoded otherwise.
VERSION = 1
_FULL = 65535


class Source(Protocol):
    """The files of one volume.

    Attributes:
        span: Intensities that are black and white by the file's own convention, if it has one.
        coded: Whether labels are class indices already, when read and when written.
    """

    span: tuple[float, float] | None
    coded: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, images before labels."""
        ...

    def look(self) -> list[Finding]:
        """Findings of the heads of its files."""
        ...

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """Shape and affine of `image`, from the head alone."""
        ...

    def image(self) -> Grid:
        """The voxels; with channels, (I, J, K, C)."""
        ...

    def labels(self) -> Grid | None:
        """Label values, uint8 or uint16 of shape (I, J, K), on any grid; None without labels."""
        ...

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """Write (I, J, K) label values in the order and geometry of the image."""
        ...


@dataclass(frozen=True)
class Reading:
    """How voxels become pictures; see the keys of the same names in the configuration."""

    axis: Axis = "axial"
    neighbours: bool = False
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    spacing: tuple[float, float, float] | None = None
    channels: tuple[int, ...] | None = None

    @classmethod
    def of(cls, data: SegData) -> Reading:
        """From the data section."""
        channels = None if data.channels is None else tuple(data.channels)
        return cls(
            data.axis, data.neighbours, data.window, data.percentiles, data.spacing, channels
        )


@dataclass(frozen=True, eq=False)
class Decoded:
    """A volume as pictures.

    Attributes:
        pictures: (S, H, W, C) uint16, 65535 is 1; C from 1 to 3.
        labels: (S, H, W) uint8 class indices, or None.
        spacing: (slice, row, column) in mm, or None.
    """

    pictures: np.ndarray
    labels: np.ndarray | None
    spacing: tuple[float, float, float] | None


class VolumeStack:
    """A volume as an ordered row of slices; a `zoo.domains.medical.her_seg.stacks.Stack`.

    Args:
        name: Its id.
        group: Patient.
        source: The files.
        reading: How voxels become pictures.
        coding: Which label value is which class.
    """

    kind: Kind = "volume"

    def __init__(
        self, name: str, group: str, source: Source, reading: Reading, coding: Coding
    ) -> None:
        self.id = name
        self.group = group
        self.source = source
        self.reading = reading
        self.coding = coding
        self._decoded: Decoded | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the voxels: a worker process maps or reads them itself."""
        return {**self.__dict__, "_decoded": None}

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """(slice, row, column) in mm, or None."""
        return self.decoded().spacing

    def __len__(self) -> int:
        """Number of slices."""
        return int(self.decoded().pictures.shape[0])

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]: the slice three times, its neighbours, or the channels."""
        pictures = self.decoded().pictures
        if self.reading.neighbours:
            last = len(pictures) - 1
            near = [pictures[min(max(index + d, 0), last), ..., 0] for d in (-1, 0, 1)]
        else:
            count = pictures.shape[-1]
            near = [pictures[index, ..., min(c, count - 1)] for c in range(3)]
        out: np.ndarray = np.stack(near, axis=-1).astype(np.float32)
        out /= _FULL
        return out

    def truth(self, index: int) -> np.ndarray | None:
        """(H, W) uint8 class indices, or None where there is no label file."""
        labels = self.decoded().labels
        return None if labels is None else np.array(labels[index])

    def instances(self, index: int) -> np.ndarray | None:
        """None: volumes have no numbered objects."""
        return None

    def prompts(self, index: int) -> Prompts | None:
        """None: files of this kind hold none; `predict.prompts` may name some."""
        return None

    def write(self, out: Path, labels: Callable[[int], np.ndarray]) -> list[Path]:
        """Write class indices as a label volume in the geometry of the file that was read.

        Each class is written as the first of its values in label files.

        Args:
            out: Folder, made if need be.
            labels: Index -> (H, W) class indices of that slice.
        """
        found = np.stack([labels(i) for i in range(len(self))])
        as_is = self.source.coded or self.coding.invert
        values = found if as_is else self.coding.classes.as_written(found)
        view, shape, before = _place(*self.source.place(), self.reading)
        if self.reading.spacing is not None and before is not None:
            values = _resampling(shape, before, self.reading).back(values)
        return self.source.write(out, self.id, view.back(values))

    def foreground(self) -> list[bool]:
        """Whether each slice holds foreground; [] without labels. Kept in the cache."""
        kept = self._kept(write=True)
        if kept is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):  # damaged: look again
                body = json.loads((kept / "index.json").read_text(encoding="utf-8"))
                return [bool(f) for f in body["foreground"]]
        return _foreground(self.decoded())

    def decoded(self) -> Decoded:
        """The pictures and labels: mapped from the cache if they are kept there, else read.

        Raises:
            DataError: A file is broken, or image and labels don't belong together.
        """
        if self._decoded is None:
            kept = self._kept(write=False)
            self._decoded = (_mapped(kept) if kept is not None else None) or self._decode()
        return self._decoded

    def seen(self) -> bool:
        """Whether these very files were read without fault before."""
        return self._kept(write=False) is not None

    def _decode(self) -> Decoded:
        return decode(self.source, self.reading, self.coding)

    def _kept(self, write: bool) -> Path | None:
        """The folder of the decoded volume in the cache, if it is or can be there."""
        stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in self._real()]
        key = fingerprint([VERSION, stamps, repr(self.reading), repr(self.coding)])
        folder = cache_dir() / "her_seg" / "volumes" / key
        if folder.is_dir():
            return folder
        if not write:
            return None
        found = self.decoded()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder.parent).free < 4 * found.pictures.nbytes:
                return None
            written_once(folder, lambda fresh: _keep(fresh, found))
        except OSError:  # a cache that cannot be written costs time, not the training
            return None
        self._decoded = None
        return folder

    def _real(self) -> Sequence[Path]:
        missing = next((f for f in self.source.files if not f.exists()), None)
        if missing is not None:
            msg = f"{missing}: no such file"
            raise DataError(msg)
        return self.source.files


def decode(source: Source, reading: Reading, coding: Coding) -> Decoded:
    """Read a volume and turn it into pictures.

    Raises:
        DataError: A file is broken, or image and labels don't belong together.
        ConfigError: The reading asks for what the files cannot give.
    """
    where = source.files[0]
    grid = source.image()
    view, shape, spacing = _place(grid.values.shape, grid.affine, reading)
    values = _channels(grid.values, reading, where)
    ends = limits(values, reading.window, source.span, reading.percentiles, where)
    stack = view.stack(values)
    labels = _labels(source, grid, view, reading, coding)
    if reading.spacing is not None and spacing is not None:
        change = _resampling(shape, spacing, reading)
        resampled = np.clip(change.image(scaled(stack, ends)), 0, 1)
        labels = None if labels is None else change.labels(labels)
        return Decoded(np.rint(resampled * _FULL).astype(np.uint16), labels, _wanted(reading))
    pictures = np.empty(stack.shape, np.uint16)
    for index, plane in enumerate(stack):  # one by one: a volume may be large
        pictures[index] = np.rint(scaled(plane, ends) * _FULL)
    return Decoded(pictures, labels, spacing)


def _place(
    shape: tuple[int, ...], affine: np.ndarray | None, reading: Reading
) -> tuple[View, tuple[int, int, int], tuple[float, float, float] | None]:
    """View, (S, H, W) and spacing of a grid."""
    if affine is None:
        if reading.axis != "axial" or reading.spacing is not None:
            msg = (
                "data.axis and data.spacing need files that say how they lie in space (NIfTI, "
                "DICOM); leave them out for arrays and picture slices"
            )
            raise ConfigError(msg)
        view = View()
        return view, view.shape(shape), None
    view = view_of(affine, reading.axis)
    a, b, c = (voxel_size(affine)[i] for i in view.order)
    return view, view.shape(shape), (a, b, c)


def _wanted(reading: Reading) -> tuple[float, float, float]:
    """`data.spacing` (right, anterior, superior) as slice, row, column."""
    assert reading.spacing is not None
    view = view_of(np.eye(4), reading.axis)
    a, b, c = (reading.spacing[i] for i in view.order)
    return a, b, c


def _resampling(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], reading: Reading
) -> Resampling:
    return Resampling(shape, spacing, _wanted(reading))


def _channels(values: np.ndarray, reading: Reading, where: Path) -> np.ndarray:
    """(I, J, K, C) with the channels that are shown, 1 to 3."""
    if values.ndim == 3:
        values = values[..., None]
    have = values.shape[3]
    chosen = reading.channels if reading.channels is not None else tuple(range(min(have, 3)))
    if max(chosen) >= have:
        msg = f"{where}: has {have} channels; data.channels counts from 0 and asks for {chosen}"
        raise DataError(msg)
    if reading.neighbours and len(chosen) > 1:
        msg = (
            f"{where}: has {have} channels; data.neighbours shows neighbouring slices of one, "
            "choose it by data.channels=[0]"
        )
        raise DataError(msg)
    return values[..., list(chosen)]


def _labels(
    source: Source, grid: Grid, view: View, reading: Reading, coding: Coding
) -> np.ndarray | None:
    """(S, H, W) class indices on the grid of the image."""
    found = source.labels()
    if found is None:
        return None
    where, image = source.files[-1], source.files[0]
    shape = view.shape(grid.values.shape)
    if grid.affine is None or found.affine is None:
        if found.values.shape != grid.values.shape[:3]:
            msg = f"{where}: labels of {found.values.shape} voxels for an image of {shape}"
            raise DataError(msg)
        own = view
    else:
        own = view_of(found.affine, reading.axis)
        check_same_grid(
            (shape, view.affine(grid.affine, grid.values.shape)),
            (own.shape(found.values.shape), own.affine(found.affine, found.values.shape)),
            where,
            image,
        )
    labels = own.stack(found.values)
    return np.ascontiguousarray(labels if source.coded else indices(coding, labels, where))


def indices(coding: Coding, labels: np.ndarray, where: object) -> np.ndarray:
    """Class indices (uint8) of label values that are numbers, not brightness.

    Raises:
        DataError: There is a value that belongs to no class.
    """
    if coding.named:
        found = coding.classes.indices(labels, where)
    else:
        found = (labels > (coding.threshold or 0)).astype(np.uint8)
    return (found == 0).astype(np.uint8) if coding.invert else found


def _foreground(found: Decoded) -> list[bool]:
    return [] if found.labels is None else [bool(labels.any()) for labels in found.labels]


def _keep(folder: Path, found: Decoded) -> None:
    np.save(folder / "pictures.npy", found.pictures)
    if found.labels is not None:
        np.save(folder / "labels.npy", found.labels)
    body = {"spacing": found.spacing, "foreground": _foreground(found)}
    (folder / "index.json").write_text(json.dumps(body), encoding="utf-8")


def _mapped(folder: Path) -> Decoded | None:
    """What is kept in a folder; None if it was damaged."""
    labels = folder / "labels.npy"
    try:
        spacing = json.loads((folder / "index.json").read_text(encoding="utf-8"))["spacing"]
        return Decoded(
            np.load(folder / "pictures.npy", mmap_mode="r", allow_pickle=False),
            np.load(labels, mmap_mode="r", allow_pickle=False) if labels.is_file() else None,
            None if spacing is None else (spacing[0], spacing[1], spacing[2]),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
