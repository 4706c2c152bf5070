"""NIfTI volumes: read with every fault told in one line, written back with the original header.

nibabel does the reading and writing: it keeps the header (form codes, units, voxel type) as it is,
which MONAI's loader does not.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo import files
from zoo.domains.medical.her_seg.grids import Grid, check_affine, check_same_grid, view_of
from zoo.errors import DataError
from zoo.extras import optional
from zoo.task import Finding

SUFFIXES = (".nii.gz", ".nii")
# More bytes than any volume of one patient has; a header may claim anything.
_MOST_BYTES = 2**33
# From this size on an image (not a label map, which packs that well) that is so many times smaller
# in its file holds next to nothing: it is damaged, or made to fill the memory.
_LARGE, _RATIO = 2**28, 300
_FAULTS = (
    ArithmeticError,
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
# Label files that were rescaled on storage come back as 0.99999.
_WHOLE = 1e-3


@dataclass(frozen=True)
class Head:
    """What a NIfTI header tells.

    Attributes:
        shape: (I, J, K) or (I, J, K, C) voxels.
        affine: (4, 4) from voxel to mm in RAS+.
        image: The opened image; its voxels are read on demand.
    """

    shape: tuple[int, ...]
    affine: np.ndarray = field(repr=False, compare=False)
    image: Any = field(repr=False, compare=False)


def is_nifti(path: Path) -> bool:
    """Whether a name ends as NIfTI files do."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """The name without `.nii.gz` or `.nii`."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def nibabel() -> Any:
    """The library.

    Raises:
        ConfigError: It is not installed; the message holds the command that installs it.
    """
    return optional("nibabel", "NIfTI files are read by", "medical")


def read_head(path: Path) -> Head:
    """Open a file and check what its header says.

    A fourth axis of length 1 is dropped; a picture of one plane is a volume of one slice.

    Raises:
        DataError: The file is missing, no NIfTI or damaged; it has no voxels, more than four
            axes or voxels that are no numbers; or it doesn't say how it lies in space.
        ConfigError: nibabel is missing.
    """
    library = nibabel()
    if not path.is_file():
        msg = f"{path}: no such file"
        raise DataError(msg)
    try:
        image = library.load(path)
    except (library.filebasedimages.ImageFileError, library.spatialimages.HeaderDataError):
        msg = f"{path}: is no NIfTI file, or is damaged in its header; copy or export it again"
        raise DataError(msg) from None
    except _FAULTS as error:
        msg = f"{path}: cannot be read as NIfTI ({_reason(error)}); copy it again"
        raise DataError(msg) from None
    if not isinstance(image, library.Nifti1Pair):
        msg = f"{path}: is not NIfTI but {type(image).__name__}; convert it to .nii.gz"
        raise DataError(msg)
    shape = _shape(image, path)
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        msg = (
            f"{path}: has no affine (sform_code and qform_code are 0), so its orientation is "
            "unknown; write it anew with the affine of the scan it was made from"
        )
        raise DataError(msg)
    affine = np.asarray(image.affine, np.float64)
    check_affine(affine, path)
    return Head(shape, affine, image)


def _shape(image: Any, path: Path) -> tuple[int, ...]:
    stored = tuple(int(n) for n in image.shape)
    told = " x ".join(map(str, stored)) or "none"
    if not stored or min(stored) < 1:
        msg = f"{path}: the volume has no voxels ({told}); export it again"
        raise DataError(msg)
    shape = stored
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape = (*shape, 1, 1)[:3] if len(shape) < 3 else shape
    if len(shape) > 4:
        msg = f"{path}: has {len(shape)} axes ({told}) where a volume has 3, or 4 with channels"
        raise DataError(msg)
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        msg = f"{path}: voxels of type {kind} are no numbers; write one number a voxel"
        raise DataError(msg)
    if int(np.prod([float(n) for n in shape])) * kind.itemsize > _MOST_BYTES:
        msg = f"{path}: the header claims {told} voxels, more than any volume has"
        raise DataError(msg)
    return shape


def check_packed(head: Head, path: Path) -> None:
    """Refuse an image whose voxels cannot be in so small a file.

    Raises:
        DataError: It claims hundreds of times what the file holds.
    """
    claimed = int(np.prod([float(n) for n in head.shape])) * head.image.get_data_dtype().itemsize
    stored = path.stat().st_size
    if claimed > _LARGE and claimed > _RATIO * stored:
        msg = (
            f"{path}: claims {claimed / 1e9:.1f} GB of voxels in a file of {stored / 1e6:.1f} MB; "
            "copy or export it again"
        )
        raise DataError(msg)


def read_values(head: Head, path: Path) -> np.ndarray:
    """The voxels as float32 (floats and scaled integers) or as stored, of `head.shape`.

    Raises:
        DataError: The file is cut off or damaged.
    """
    try:
        values = np.asanyarray(head.image.dataobj)
    except _FAULTS as error:
        msg = f"{path}: the voxels cannot be read ({_reason(error)}); copy it again"
        raise DataError(msg) from None
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinite then, as other values may be
            values = values.astype(np.float32, copy=False)
    shaped: np.ndarray = values.reshape(head.shape)
    return shaped


def read_labels(head: Head, path: Path) -> np.ndarray:
    """Label values, whole numbers from 0, of shape (I, J, K).

    Integers stored as floats (as in BraTS) are taken as integers.

    Raises:
        DataError: The file is cut off, has channels, or a value is negative, no whole number or
            above 65535.
    """
    if len(head.shape) != 3:
        told = " x ".join(map(str, head.shape))
        msg = f"{path}: labels of {told} voxels where a volume has 3 axes; write one value a voxel"
        raise DataError(msg)
    return whole_numbers(read_values(head, path), path)


def whole_numbers(values: np.ndarray, path: object) -> np.ndarray:
    """Label values as uint8 or uint16.

    Raises:
        DataError: A value is negative, no whole number or above 65535.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iufb":
        msg = f"{path}: labels of type {values.dtype} are no numbers"
        raise DataError(msg)
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            near = np.abs(values - rounded) <= _WHOLE  # False for what is not a number
        if not near.all():
            strange = float(values[~near].flat[0])
            msg = (
                f"{path}: label value {strange:.4g} is no whole number; labels must be resampled "
                "by nearest neighbour"
            )
            raise DataError(msg)
        values = rounded
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 65535:
        msg = f"{path}: label value {int(low if low < 0 else high)} is outside of 0 to 65535"
        raise DataError(msg)
    return values.astype(np.uint8 if high < 256 else np.uint16)


def write_like(path: Path, values: np.ndarray, head: Head) -> None:
    """Write whole numbers with the header of the image they belong to.

    Shape, affine, form codes, units and text stay; voxel type, scaling and display range become
    those of the labels. Header extensions, which describe the image, are left out.

    Args:
        path: Ends in .nii or .nii.gz; appears by a rename.
        values: (I, J, K) uint8 or uint16.
        head: Of the image.
    """
    stored = tuple(head.image.shape)
    if int(np.prod(stored)) == values.size:  # axes of length 1 that reading dropped or added
        values = values.reshape(stored)
    header = head.image.header.copy()
    header.extensions.clear()
    header.set_data_dtype(values.dtype)
    header["cal_min"] = header["cal_max"] = 0
    # The affine is the header's own, so nibabel leaves its form codes alone.
    labels = type(head.image)(values, head.image.affine, header)
    labels.header.set_slope_inter(1, 0)
    _write(path, labels)


def write_new(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write whole numbers as a new NIfTI file in mm.

    Args:
        path: Ends in .nii or .nii.gz; appears by a rename.
        values: (I, J, K) uint8 or uint16.
        affine: (4, 4) from voxel to mm in RAS+.
    """
    labels = nibabel().Nifti1Image(values, affine)
    labels.header.set_xyzt_units("mm")
    labels.set_sform(affine, code=1)
    # A quaternion cannot hold the shear of a tilted gantry; the sform can.
    body = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    labels.set_qform(affine, code=1 if np.allclose(body.T @ body, np.eye(3), atol=1e-4) else 0)
    _write(path, labels)


def _write(path: Path, image: Any) -> None:
    body = image.to_bytes()
    # No time stamp: the same labels make the same file.
    files.write_bytes(path, gzip.compress(body, 6, mtime=0) if path.suffix == ".gz" else body)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines and len(lines[0]) < 120 else type(error).__name__).strip(". ")


class NiftiSource:
    """A volume in NIfTI files: one with all channels, or one a channel.

    Args:
        images: The files, in the order of the channels; none where they are missing.
        label: Label volume, or None.
        channels: Channels a four-axis file must have; None: four axes are refused.
        any_channels: A four-axis file may have any number of channels (the user chose some).
    """

    span: tuple[float, float] | None = None
    coded = False

    def __init__(
        self,
        images: Sequence[Path],
        label: Path | None = None,
        channels: int | None = None,
        any_channels: bool = False,
    ) -> None:
        self.images = tuple(images)
        self.label = label
        self.files = (*self.images, *((label,) if label is not None else ()))
        self._channels = channels
        self._any = any_channels

    def look(self) -> list[Finding]:
        """What is wrong with the heads of the files."""
        try:
            self._heads()
            if self.label is not None:
                head = read_head(self.label)
                first = read_head(self.images[0])
                check_same_grid(_canonical(first), _canonical(head), self.label, self.images[0])
        except DataError as error:
            return [Finding("error", str(error))]
        return []

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """Shape and affine, from the heads."""
        heads = self._heads()
        count = len(heads)
        return (*heads[0].shape[:3], *((count,) if count > 1 else ())), heads[0].affine

    def image(self) -> Grid:
        """The voxels as float32 or as stored."""
        heads = self._heads()
        found = [read_values(h, p) for h, p in zip(heads, self.images, strict=True)]
        values = found[0] if len(found) == 1 else np.stack(found, axis=-1)
        return Grid(values, heads[0].affine)

    def labels(self) -> Grid | None:
        """Label values on the grid of the label file."""
        if self.label is None:
            return None
        head = read_head(self.label)
        return Grid(read_labels(head, self.label), head.affine)

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """`<name>.nii.gz` with the header of the first image."""
        path = out / f"{name}.nii.gz"
        write_like(path, values, read_head(self.images[0]))
        return [path]

    def _heads(self) -> list[Head]:
        if not self.images:
            msg = f"{self.label}: labels without an image; add it as <name>_0000.nii.gz"
            raise DataError(msg)
        heads = [read_head(path) for path in self.images]
        for head, path in zip(heads, self.images, strict=True):
            check_packed(head, path)
        for head, path in zip(heads, self.images, strict=True):
            if len(head.shape) == 4 and len(heads) == 1 and (self._any or self._fits(head)):
                continue
            if len(head.shape) == 4:
                told = " x ".join(map(str, head.shape))
                msg = (
                    f"{path}: has four axes ({told}) where one volume was expected; split it, or "
                    "choose what is shown by data.channels=[0]"
                )
                raise DataError(msg)
            if path != self.images[0]:
                check_same_grid(_canonical(heads[0]), _canonical(head), path, self.images[0])
        return heads

    def _fits(self, head: Head) -> bool:
        return self._channels is not None and head.shape[3] == self._channels


def _canonical(head: Head) -> tuple[tuple[int, ...], np.ndarray]:
    view = view_of(head.affine, "axial")
    return view.shape(head.shape), view.affine(head.affine, head.shape)
