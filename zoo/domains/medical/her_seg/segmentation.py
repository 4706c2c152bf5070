"""DICOM segmentations (SEG): frames of segments laid onto the grid of the series they belong to.

Read are BINARY and FRACTIONAL segmentations (a fraction of one half counts, inclusive) and
LABELMAP ones, on the same planes and pixels as the series; a segment's number is its label value.
Overlapping segments are refused: a voxel has one class. DICOM PS3.3 A.51, C.8.20.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.domains.medical import dicom
from zoo.errors import DataError

_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_ALIKE = 1e-3  # of direction cosines and of pixel sizes in mm
_OFF = 0.1  # share of a voxel by which a frame may lie beside the series' grid


@dataclass(frozen=True)
class Frame:
    """How a plane lies in space, in DICOM's axes (left, back, head) and mm.

    Attributes:
        position: Centre of the first pixel.
        across: Direction in which columns follow one another.
        down: Direction in which rows follow one another.
        spacing: Between rows, between columns.
        size: Rows, columns.
    """

    position: np.ndarray
    across: np.ndarray
    down: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def of(cls, position: Any, orientation: Any, spacing: Any, size: tuple[int, int]) -> Frame:
        """From the values of a header.

        Raises:
            ValueError: They have other lengths, or the directions are none.
            TypeError: They are missing.
        """
        where, way, apart = (
            _numbers(v, n) for v, n in ((position, 3), (orientation, 6), (spacing, 2))
        )
        across, down = way[:3], way[3:]
        straight = abs(np.linalg.norm(across) - 1) + abs(np.linalg.norm(down) - 1)
        if straight + abs(across @ down) > 0.01 or apart.min() <= 0 or min(size) < 1:
            msg = "directions are not at right angles, or a pixel has no size"
            raise ValueError(msg)
        return cls(where, across, down, (float(apart[0]), float(apart[1])), size)

    @property
    def normal(self) -> np.ndarray:
        """Direction at right angles to the plane."""
        return np.cross(self.across, self.down)

    def parallel(self, other: Frame) -> bool:
        """Whether both have the same directions, pixel size and number of pixels."""
        turned = np.abs(self.across - other.across).max(), np.abs(self.down - other.down).max()
        scaled = np.abs(np.subtract(self.spacing, other.spacing)).max()
        return max(*turned, scaled) < _ALIKE and self.size == other.size


def _numbers(values: Any, count: int) -> np.ndarray:
    found = np.array([float(v) for v in values])
    if found.shape != (count,) or not np.isfinite(found).all():
        msg = f"{count} numbers were expected"
        raise ValueError(msg)
    return found


def referenced_series(path: Path) -> str:
    """UID of the series a segmentation belongs to, or ""."""
    dataset = dicom.read(path, pixels=False)
    try:
        found: Any = dataset.ReferencedSeriesSequence
        return str(found[0].SeriesInstanceUID)
    except (AttributeError, IndexError, TypeError):
        return ""


def read_segmentation(path: Path, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Segment numbers on the grid of a series.

    Args:
        path: The file.
        shape: (columns, rows, slices) of the series.
        affine: (4, 4) from (column, row, slice) to mm in RAS+.

    Returns:
        uint8 or uint16 of that shape; 0 where there is no segment.

    Raises:
        DataError: The file is damaged, of another kind, lies on another grid, or segments overlap.
    """
    dataset = dicom.read(path)
    kind = str(dataset.get("SegmentationType", "")).upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        msg = f"{path}: is no DICOM segmentation that can be read ({kind or 'no type'})"
        raise DataError(msg)
    labels = np.zeros(shape, np.uint16)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, frame, plane in _frames(dataset, kind):
                k = _slice_of(frame, shape, affine, path)
                here = labels[:, :, k]
                drawn = plane.T
                if number is None:
                    np.maximum(here, drawn, out=here)
                    continue
                if (here[drawn] > 0).any():
                    msg = f"{path}: segments overlap; a voxel has one class, write them apart"
                    raise DataError(msg)
                here[drawn] = number
    except DataError:
        raise
    except _FAULTS as error:
        msg = f"{path}: the segmentation is damaged or incomplete ({type(error).__name__})"
        raise DataError(msg) from None
    return labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels


def _frames(dataset: Any, kind: str) -> Iterator[tuple[int | None, Frame, np.ndarray]]:
    """Segment number (None in a label map), place and pixels (rows, columns) of each frame."""
    size = int(dataset.Rows), int(dataset.Columns)
    pixels = dataset.pixel_array.reshape(-1, *size)
    shared = dataset.get("SharedFunctionalGroupsSequence", [None])[0]
    half = float(dataset.get("MaximumFractionalValue", 1)) / 2
    for group, plane in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        way = _group(group, shared, "PlaneOrientationSequence").ImageOrientationPatient
        spacing = _group(group, shared, "PixelMeasuresSequence").PixelSpacing
        frame = Frame.of(position, way, spacing, size)
        if kind == "LABELMAP":
            yield None, frame, plane
            continue
        segment = _group(group, shared, "SegmentIdentificationSequence")
        drawn = plane >= half if kind == "FRACTIONAL" else plane > 0
        yield int(segment.ReferencedSegmentNumber), frame, drawn


def _group(own: Any, shared: Any, name: str) -> Any:
    """An entry of a frame, or of all frames."""
    for place in (own, shared):
        if place is not None and place.get(name):
            return place[name].value[0]
    msg = f"no {name}"
    raise AttributeError(msg)


def _slice_of(frame: Frame, shape: tuple[int, int, int], affine: np.ndarray, path: Path) -> int:
    """Which slice of the series a frame lies on."""
    body = affine.copy()
    body[:2] *= -1  # to DICOM's axes
    at = np.linalg.solve(body[:3, :3], frame.position - body[:3, 3])
    k = round(float(at[2]))
    across = np.abs(body[:3, 0] - frame.across * frame.spacing[1]).max()
    down = np.abs(body[:3, 1] - frame.down * frame.spacing[0]).max()
    beside = np.abs(at - (0, 0, k)).max()
    if (
        max(across, down) > _ALIKE
        or beside > _OFF
        or not 0 <= k < shape[2]
        or frame.size != (shape[1], shape[0])
    ):
        msg = f"{path}: a frame lies on another grid than the series; resample it onto that grid"
        raise DataError(msg)
    return k
