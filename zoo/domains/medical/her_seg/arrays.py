"""Volumes that are arrays: Synapse as TransUNet ships it, numbered picture slices, TIFF stacks.

None of them says how it lies in space: the slices are shown as they are and distances are in
pixels.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo import files, hdf5
from zoo.domains.medical.her_seg.cases import only, sorted_paths
from zoo.domains.medical.her_seg.grids import Grid
from zoo.domains.medical.her_seg.images import IMAGE_SUFFIXES, frames_of, read_image
from zoo.domains.medical.her_seg.masks import Coding, read_mask
from zoo.domains.medical.her_seg.nifti import whole_numbers
from zoo.domains.medical.her_seg.volume_stack import indices
from zoo.domains.medical.her_seg.writers import write_mask
from zoo.errors import DataError, first_line
from zoo.images import opened
from zoo.task import Finding

# Labels 1 to 8 of TransUNet's preprocessing of the Synapse (BTCV) abdominal CT, in its order.
SYNAPSE = (
    *("aorta", "gallbladder", "left_kidney", "right_kidney"),
    *("liver", "pancreas", "spleen", "stomach"),
)
_SLICE = re.compile(r"(?P<case>case\d+)_slice(?P<index>\d+)\.npz", re.IGNORECASE)
_VOLUME = re.compile(r"(?P<case>case\d+)\.npy\.h5", re.IGNORECASE)
# Intensities were clipped to [-125, 275] HU and scaled to [0, 1] when the files were made.
_SYNAPSE_SPAN = (0.0, 1.0)
_MOST_BYTES = 2**28  # that a slice may unpack to
# What reading a damaged archive raises; zipfile gives up on unknown compression with the last two.
_FAULTS = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
)


class NpzSource:
    """The slices of a case, one `.npz` with `image` and `label` each.

    Args:
        slices: The files, in order.
    """

    span: tuple[float, float] | None = _SYNAPSE_SPAN
    coded = False

    def __init__(self, slices: tuple[Path, ...]) -> None:
        self.files = slices

    def look(self) -> list[Finding]:
        """What is wrong with the first slice."""
        try:
            self.place()
        except DataError as error:
            return [Finding("error", str(error))]
        return []

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """(S, H, W) and no affine."""
        return (len(self.files), *read_npz(self.files[0])["image"].shape), None

    def image(self) -> Grid:
        """(S, H, W) intensities."""
        return Grid(self._all("image"), None)

    def labels(self) -> Grid | None:
        """(S, H, W) label values."""
        if "label" not in read_npz(self.files[0]):
            return None
        return Grid(whole_numbers(self._all("label"), self.files[0]), None)

    def _all(self, name: str) -> np.ndarray:
        planes: list[np.ndarray] = []
        for path in self.files:
            found = read_npz(path)
            if name not in found or (planes and found[name].shape != planes[0].shape):
                msg = f"{path}: '{name}' is not of the size of the other slices; make it anew"
                raise DataError(msg)
            planes.append(found[name])
        return np.stack(planes)

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """`<name>.npz` with `label`, (S, H, W)."""
        return [write_npz(out / f"{name}.npz", values)]


class H5Source:
    """A volume in HDF5 with `image` and, if there are labels, `label`.

    Args:
        path: The file.
        span: Intensities that are black and white, if the data set fixes them.
    """

    coded = False

    def __init__(self, path: Path, span: tuple[float, float] | None = None) -> None:
        self.files: tuple[Path, ...] = (path,)
        self.span = span or (_SYNAPSE_SPAN if _VOLUME.fullmatch(path.name) else None)

    def look(self) -> list[Finding]:
        """What is wrong with the file."""
        try:
            shape, _ = self.place()
            with hdf5.opened(self.files[0]) as file:
                if hdf5.holds(file, "label", str(self.files[0])):
                    own = tuple(self._node(file, "label").shape)
                    if own != shape:
                        msg = f"labels of {own} voxels for an image of {shape}"
                        return [Finding("error", msg, str(self.files[0]))]
        except DataError as error:
            return [Finding("error", str(error))]
        return []

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """(S, H, W) and no affine."""
        with hdf5.opened(self.files[0]) as file:
            return _checked(self._node(file, "image").shape, self.files[0]), None

    def image(self) -> Grid:
        """(S, H, W) intensities."""
        with hdf5.opened(self.files[0]) as file:
            return Grid(np.asarray(self._node(file, "image")[()], np.float32), None)

    def labels(self) -> Grid | None:
        """(S, H, W) label values."""
        path = self.files[0]
        with hdf5.opened(path) as file:
            if not hdf5.holds(file, "label", str(path)):
                return None
            return Grid(whole_numbers(np.asarray(self._node(file, "label")[()]), path), None)

    def _node(self, file: Any, name: str) -> Any:
        path = self.files[0]
        if not hdf5.holds(file, name, str(path)):
            msg = f"{path}: holds no '{name}'; expected 'image' and 'label' of (slices, H, W)"
            raise DataError(msg)
        node = file[name]
        if not hasattr(node, "shape") or node.dtype.kind not in "iufb":
            msg = f"{path}: '{name}' is no array of numbers"
            raise DataError(msg)
        return hdf5.own(node, f"{path}: '{name}'")

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """`<name>.npz` with `label`, (S, H, W)."""
        return [write_npz(out / f"{name}.npz", values)]


class SlicesSource:
    """Numbered pictures of one size, or one TIFF of many pages, as the slices of a volume.

    Args:
        images: Picture files in order, or a single TIFF stack.
        labels: Their masks in the same order, or None.
        coding: What mask values mean; the labels given are class indices then.
    """

    span: tuple[float, float] | None = None
    coded = True

    def __init__(
        self, images: tuple[Path, ...], labels: tuple[Path, ...] | None, coding: Coding
    ) -> None:
        self.images = images
        self.masks = labels
        self.coding = coding
        self.files = (*images, *(labels or ()))
        if len(images) > 1:
            self.span = (0.0, 255.0)

    def look(self) -> list[Finding]:
        """What is wrong with the first picture."""
        try:
            self.place()
        except DataError as error:
            return [Finding("error", str(error))]
        return []

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """(S, H, W) and no affine."""
        if len(self.images) == 1:
            return _pages(self.images[0]).shape[:3], None
        return (len(self.images), *read_image(self.images[0]).shape[:2]), None

    def image(self) -> Grid:
        """(S, H, W) of grey pictures and TIFF stacks, (S, H, W, 3) of coloured pictures."""
        if len(self.images) == 1:
            return Grid(_pages(self.images[0]), None)
        found = _stacked({p: read_image(p) for p in self.images})
        grey = (found == found[..., :1]).all()
        return Grid(found[..., 0] if grey else found, None)

    def labels(self) -> Grid | None:
        """(S, H, W) class indices."""
        if self.masks is None:
            return None
        if len(self.masks) == 1 and len(self.images) == 1:
            values = whole_numbers(_pages(self.masks[0]), self.masks[0])
            full = values.max(initial=0)
            # A stack of 0 and 255 is a mask by brightness, one of small numbers a label map.
            if not self.coding.named and full == 255:
                values = (values > 127).astype(np.uint8)
            return Grid(indices(self.coding, values, self.masks[0]), None)
        return Grid(_stacked({p: read_mask(p, self.coding) for p in self.masks}), None)

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """A mask a slice, named as the slice; a single class is written as 255."""
        if len(self.images) == 1:
            stem = self.images[0].stem
            paths = [out / name / f"{stem}_{i:04d}.png" for i in range(len(values))]
        else:
            paths = [out / name / f"{p.stem}.png" for p in self.images]
        for path, plane in zip(paths, values, strict=True):
            write_mask(path, plane, self.coding.classes)
        return paths


def _stacked(planes: Mapping[Path, np.ndarray]) -> np.ndarray:
    first = next(iter(planes.values()))
    for path, plane in planes.items():
        if plane.shape != first.shape:
            told = [" x ".join(map(str, p.shape[:2])) for p in (plane, first)]
            msg = f"{path}: {told[0]} pixels where the first slice has {told[1]}; make them alike"
            raise DataError(msg)
    return np.stack(list(planes.values()))


def _pages(path: Path) -> np.ndarray:
    """(S, H, W) of a TIFF with several grey pages, in its own type."""
    planes: list[np.ndarray] = []
    with opened(path) as image:
        for index in range(frames_of(image)):
            image.seek(index)
            plane = np.asarray(image)
            if plane.ndim != 2 or (planes and plane.shape != planes[0].shape):
                msg = f"{path}: page {index} is no grey picture of the size of the first page"
                raise DataError(msg)
            planes.append(plane.copy())
    return np.stack(planes)


def is_tiff_stack(path: Path) -> bool:
    """Whether a file is a TIFF of several pages."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with opened(path) as image:
            return frames_of(image) > 1
    except DataError:
        return False


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """`image` and, if it is there, `label` of a slice.

    Raises:
        DataError: The file is broken or holds other things.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        msg = f"{path}: is no plain file"
        raise DataError(msg)
    try:
        with zipfile.ZipFile(path) as archive:
            large = [i.filename for i in archive.infolist() if i.file_size > _MOST_BYTES]
        if large:
            msg = f"{path}: '{large[0]}' is larger than any slice; make it anew"
            raise DataError(msg)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as body:
            found = {name: np.asarray(body[name]) for name in ("image", "label") if name in body}
    except DataError:
        raise
    except _FAULTS as error:
        msg = f"{path}: cannot be read as npz ({first_line(error, 120)}); make it anew"
        raise DataError(msg) from None
    if "image" not in found or any(a.ndim != 2 or not a.size for a in found.values()):
        msg = f"{path}: expected 'image' and 'label', each (H, W)"
        raise DataError(msg)
    if len({a.shape for a in found.values()}) > 1:
        msg = f"{path}: image of {found['image'].shape} and label of {found['label'].shape} pixels"
        raise DataError(msg)
    return found


def write_npz(path: Path, values: np.ndarray) -> Path:
    """Write label values as `label`; the file appears by a rename."""

    def save(fresh: Path) -> None:
        np.savez_compressed(fresh, label=values)

    files.write_whole(path, save)
    return path


def _checked(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape) < 1:
        msg = f"{path}: an image of {tuple(shape)}; expected (slices, rows, columns)"
        raise DataError(msg)
    return tuple(shape)


def is_synapse(root: Path) -> bool:
    """Whether a folder has TransUNet's Synapse files."""
    return any(synapse_train(root)) or any(synapse_test(root))


def synapse_train(root: Path) -> dict[str, tuple[Path, ...]]:
    """Case -> its slices, of `train_npz`.

    Raises:
        DataError: A slice number is missing.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in (root / "train_npz").glob("*.npz") if (root / "train_npz").is_dir() else ():
        match = _SLICE.fullmatch(path.name)
        if match:
            found.setdefault(match["case"], {})[int(match["index"])] = path
    for case, slices in found.items():
        lost = sorted(set(range(min(slices), max(slices) + 1)) - set(slices))
        if lost:
            told = only([str(n) for n in lost])
            msg = f"{root / 'train_npz'}: {case} lacks slice {told}; copy the folder again"
            raise DataError(msg)
    return {c: tuple(s[i] for i in sorted(s)) for c, s in sorted(found.items())}


def synapse_test(root: Path) -> dict[str, Path]:
    """Case -> its volume, of `test_vol_h5`."""
    folder = root / "test_vol_h5"
    paths = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    return {m["case"]: p for p in paths if (m := _VOLUME.fullmatch(p.name))}


def slice_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in natural order: 2.png stands before 10.png."""
    kept = [
        p
        for p in folder.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    ]
    return tuple(sorted_paths(kept))
