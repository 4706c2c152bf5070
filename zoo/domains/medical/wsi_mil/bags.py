"""Reading one bag of instance features, whatever file it lies in, and refusing what is unsafe.

A bag is N feature vectors of one slide with, where the layout has them, the position of each tile
and a label of each instance. Files come from other people's machines: HDF5 links and storage that
point at other files are refused, and `.pt` files are read as plain tensors or not at all.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from zoo.errors import DataError
from zoo.hdf5 import holds, opened, own

FEATURES = ("features", "feat")
INSTANCES = ("labels", "patch_labels")
# Extraction settings worth keeping; everything else (paths, slide names) stays in the file.
_SETTINGS = {
    "patch_size": "patch_size",
    "patch_size_level0": "patch_size_level0",
    "patch_level": "patch_level",
    "downsample": "downsample",
    "step_size": "step_size",
    "overlap": "overlap",
    "level0_magnification": "level0_magnification",
    "target_magnification": "target_magnification",
    "magnification": "target_magnification",
    "target_mpp": "target_mpp",
    "mpp": "mpp",
    "given_mpp": "given_mpp",
    "contour_fn": "contour_fn",
    "use_padding": "use_padding",
    "min_patches": "min_patches",
    "encoder": "encoder",
    "encoder_name": "encoder",
    "patch_encoder": "encoder",
}
_ENCODER = ("weights", "sha256", "size", "mean", "std", "options")
_TISSUE = ("sthresh", "mthresh", "close", "use_otsu", "a_t", "a_h", "max_n_holes", "level")
_SETTINGS |= {f"encoder_{k}": f"encoder_{k}" for k in _ENCODER}
_SETTINGS |= {f"seg_{k}": f"seg_{k}" for k in (*_TISSUE, "fallback")}
_SAMPLED_ROWS = 8
_FARTHEST = 2**40  # level-0 pixels, far beyond any slide


@dataclass(frozen=True, eq=False)
class Bag:
    """The content of a bag.

    Attributes:
        features: (N, F), float16 or float32 as stored, finite.
        coords: (N, 2) int64, (x, y) of each tile's top-left corner in level-0 pixels, or None
            where the layout has none.
        instances: (N,) int64 instance labels, or None.
    """

    features: np.ndarray
    coords: np.ndarray | None = None
    instances: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of memory the bag takes."""
        parts = (self.features, self.coords, self.instances)
        return sum(p.nbytes for p in parts if p is not None)


@dataclass(frozen=True)
class Peek:
    """What can be told of a bag without reading all of it.

    Attributes:
        count: Instances N.
        width: Features F of an instance.
        sample: Hash of some evenly spread rows; the same for the same values in another layout.
        settings: How the features were extracted, as far as the files say.
    """

    count: int
    width: int
    sample: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BagFile(ABC):
    """Where one bag lies; small, so that it travels to worker processes.

    Attributes:
        id: Slide name without extension.
        path: The file.
        settings: Extraction settings that folder and file names tell.
    """

    id: str
    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def where(self) -> str:
        """The bag's place in a message."""
        return str(self.path)

    @abstractmethod
    def peek(self) -> Peek:
        """Look at shapes and some rows.

        Raises:
            DataError: The file is missing, broken, empty or unsafe; the message names it.
        """

    @abstractmethod
    def read(self) -> Bag:
        """Read and check every value.

        Raises:
            DataError: As `peek`, or a feature is not finite.
        """

    def label(self) -> str | None:
        """The label stored with the features, if the layout stores one."""
        return None


@dataclass(frozen=True)
class H5Bag(BagFile):
    """A bag in HDF5: a file of its own (CLAM, TRIDENT) or a group of one file (ACMIL).

    Attributes:
        group: Group that holds the bag; empty for the file's root.
        companion: File of the tile coordinates (`patches/…`), whose attributes tell the tile
            size; its coordinates serve when the feature file has none.
    """

    group: str = ""
    companion: Path | None = None

    @property
    def where(self) -> str:
        """File, and group if there is one."""
        return f"{self.path}:/{self.group}" if self.group else str(self.path)

    def peek(self) -> Peek:
        """Shapes, some rows and attributes; see `BagFile.peek`."""
        with opened(self.path) as file:
            node = self._node(file)
            features = self._features(node)
            count, width = self._shape(features)
            settings = dict(self.settings) | _settings(file, node, features)
            coords = self._own_coords(node, count)
            if coords is not None:
                settings |= _settings(coords)
            rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_ROWS)).astype(np.int64))
            flat = features[0, rows] if features.ndim == 3 else features[rows]
        if self.companion is not None:
            with opened(self.companion) as file:
                inner = _dataset(file, "coords", str(self.companion))
                settings = _settings(file, *([] if inner is None else [inner])) | settings
        if coords is None:
            self._companion_coords(count)
        return Peek(count, width, _sample_hash(flat, count), _with_level0(settings))

    def read(self) -> Bag:
        """Features, coordinates and instance labels; see `BagFile.read`."""
        with opened(self.path) as file:
            node = self._node(file)
            stored = self._features(node)
            count, width = self._shape(stored)
            features = stored[()].reshape(count, width)
            own = self._own_coords(node, count)
            coords = None if own is None else _coords(own[()], count, self.where)
            instances = None
            for name in INSTANCES:
                values = _dataset(node, name, self.where)
                if values is not None:
                    instances = _instances(values, count, self.where)
                    break
        if coords is None:
            coords = self._companion_coords(count)
        return Bag(_finite(features, self.where), coords, instances)

    def label(self) -> str | None:
        """Attribute `label` of the bag's group."""
        with opened(self.path) as file:
            value = self._node(file).attrs.get("label")
        return None if value is None else plain_label(_scalar(value))

    def _node(self, file: h5py.File) -> h5py.Group:
        if not self.group:
            return file
        if not holds(file, self.group, self.where) or not isinstance(file[self.group], h5py.Group):
            msg = f"{self.path}: no group '{self.group}'"
            raise DataError(msg)
        return file[self.group]

    def _features(self, node: h5py.Group) -> h5py.Dataset:
        for name in FEATURES:
            found = _dataset(node, name, self.where)
            if found is not None:
                if found.dtype.kind != "f":
                    msg = f"{self.where}: '{name}' is {found.dtype}, not floating-point features"
                    raise DataError(msg)
                return found
        have = ", ".join(sorted(node)[:5]) or "nothing"
        msg = f"{self.where}: no data set 'features' or 'feat'; the file holds {have}"
        raise DataError(msg)

    def _shape(self, features: h5py.Dataset) -> tuple[int, int]:
        return bag_shape(features.shape, self.where)

    def _own_coords(self, node: h5py.Group, count: int) -> h5py.Dataset | None:
        coords = _dataset(node, "coords", self.where)
        if coords is not None:
            _check_coords(coords.shape, count, self.where)
        return coords

    def _companion_coords(self, count: int) -> np.ndarray:
        if self.companion is None:
            msg = (
                f"{self.where}: no data set 'coords' beside the features; extract the features "
                "again or add it"
            )
            raise DataError(msg)
        with opened(self.companion) as file:
            coords = _dataset(file, "coords", str(self.companion))
            if coords is None:
                msg = f"{self.where}: no data set 'coords', nor in {self.companion}"
                raise DataError(msg)
            _check_coords(coords.shape, count, str(self.companion))
            return _coords(coords[()], count, str(self.companion))


@dataclass(frozen=True)
class TensorBag(BagFile):
    """A `.pt` file that holds one tensor (N, F) and nothing else."""

    def peek(self) -> Peek:
        """Shape and some rows, mapped rather than read; see `BagFile.peek`."""
        tensor = self._load()
        rows = np.unique(np.linspace(0, len(tensor) - 1, min(len(tensor), _SAMPLED_ROWS)))
        flat = _array(tensor[torch.from_numpy(rows.astype(np.int64))])
        sample = _sample_hash(flat, len(tensor))
        return Peek(len(tensor), tensor.shape[1], sample, _with_level0(dict(self.settings)))

    def read(self) -> Bag:
        """The features; see `BagFile.read`."""
        return Bag(_finite(np.array(_array(self._load())), self.where))

    def _load(self) -> torch.Tensor:
        if not self.path.is_file():
            msg = f"{self.path}: no such file"
            raise DataError(msg)
        try:
            value = self._tensor()
        except pickle.UnpicklingError:
            msg = (
                f"{self.path}: is not a file of plain tensors; other pickled content is refused "
                "because loading it could run code"
            )
            raise DataError(msg) from None
        except Exception as error:  # a damaged pickle fails in any way the unpickler can
            msg = f"{self.path}: cannot be read as a tensor ({reason(error)})"
            raise DataError(msg) from None
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            msg = f"{self.path}: holds {type(value).__name__}, expected one dense tensor (N, F)"
            raise DataError(msg)
        if value.device.type != "cpu":
            msg = f"{self.path}: tensor on '{value.device}', which holds no values; write it again"
            raise DataError(msg)
        if not value.is_floating_point():
            msg = f"{self.path}: tensor is {value.dtype}, not floating-point features"
            raise DataError(msg)
        held = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > held:  # a view that repeats its values: a few bytes would fill a memory
            msg = (
                f"{self.path}: tensor claims {value.numel()} values, of which the file holds "
                f"{held}; write it again with .contiguous()"
            )
            raise DataError(msg)
        return value.detach().reshape(bag_shape(value.shape, self.where))

    def _tensor(self) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of the format before torch 1.6 cannot be mapped
            return torch.load(self.path, map_location="cpu", weights_only=True)


@dataclass(frozen=True, eq=False)
class TableBag(BagFile):
    """The rows of one bag in a table, held in memory.

    Attributes:
        features: (N, F) float32.
        instances: (N,) int64 instance labels, or None.
        bag_label: The label its rows agree on, or None.
    """

    features: np.ndarray
    instances: np.ndarray | None = None
    bag_label: str | None = None

    @property
    def where(self) -> str:
        """Table and bag."""
        return f"{self.path}, bag '{self.id}'"

    def peek(self) -> Peek:
        """Shape and some rows; see `BagFile.peek`."""
        count, width = bag_shape(self.features.shape, self.where)
        rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_ROWS)).astype(np.int64))
        return Peek(count, width, _sample_hash(self.features[rows], count), dict(self.settings))

    def read(self) -> Bag:
        """The bag; see `BagFile.read`."""
        return Bag(_finite(self.features, self.where), None, self.instances)

    def label(self) -> str | None:
        """The label its rows agree on."""
        return self.bag_label


def reason(error: BaseException) -> str:
    """The first line of an error's text, kept short."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def bag_shape(shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """(N, F) of features shaped (N, F) or (1, N, F).

    Raises:
        DataError: Another shape, or no instances.
    """
    shown = tuple(int(s) for s in shape)
    if len(shown) == 3 and shown[0] == 1:
        shown = shown[1:]
    if len(shown) != 2:
        msg = f"{where}: features have shape {shown}, expected (N, F)"
        raise DataError(msg)
    if 0 in shown:
        msg = f"{where}: the bag is empty, features have shape {shown}; leave the slide out"
        raise DataError(msg)
    return shown


def plain_label(value: Any) -> str:
    """A label as text: 1, 1.0, "1.0" and b"1" are all "1"."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.strip()
    # A leading zero makes it a name: "01" stays as it is.
    return str(int(float(text))) if re.fullmatch(r"-?(0|[1-9]\d*)(\.0*)?", text) else text


def _dataset(node: h5py.Group, name: str, where: str) -> h5py.Dataset | None:
    """A numeric data set stored in the file itself, None if there is none of that name."""
    if not holds(node, name, where):
        return None
    found = node[name]
    if not isinstance(found, h5py.Dataset):
        msg = f"{where}: '{name}' is a group, expected a data set"
        raise DataError(msg)
    own(found, f"{where}: '{name}'")
    if found.dtype.kind not in "fiub":
        msg = f"{where}: '{name}' is {found.dtype}, expected numbers"
        raise DataError(msg)
    return found


def _scalar(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value; equal pairs (x and y) become one number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    array = np.asarray(value)
    if array.size >= 1 and bool((array == array.flat[0]).all()):
        first = array.flat[0]
        return _scalar(first) if isinstance(first, bytes) else np.asarray(first).item()
    return array.tolist()


def _settings(*nodes: Any) -> dict[str, Any]:
    """Extraction settings among the attributes of HDF5 objects; later objects win."""
    found: dict[str, Any] = {}
    for node in nodes:
        attributes = node.attrs
        have = set(attributes)  # asked once: each question goes to the file
        for key, name in _SETTINGS.items():
            if key in have:
                found[name] = _scalar(attributes[key])
    return found


def _with_level0(settings: dict[str, Any]) -> dict[str, Any]:
    """Add the tile size in level-0 pixels where it follows from size and downsample."""
    if "patch_size_level0" not in settings:
        size, factor = settings.get("patch_size"), settings.get("downsample")
        if settings.get("patch_level") == 0:
            factor = 1
        if isinstance(size, (int, float)) and isinstance(factor, (int, float)):
            settings["patch_size_level0"] = round(size * factor)
    return settings


def _check_coords(shape: tuple[int, ...], count: int, where: str) -> None:
    shown = tuple(int(s) for s in shape)
    if len(shown) == 3 and shown[0] == 1:
        shown = shown[1:]
    if shown != (count, 2):
        msg = f"{where}: {count} instances but coords of shape {shown}, expected ({count}, 2)"
        raise DataError(msg)


def _coords(values: np.ndarray, count: int, where: str) -> np.ndarray:
    _check_coords(values.shape, count, where)
    if not (np.abs(values.astype(np.float64)) < _FARTHEST).all():  # NaN is not below it either
        msg = f"{where}: coords hold values that are not finite or far outside of any slide"
        raise DataError(msg)
    return values.reshape(count, 2).astype(np.int64)


def _instances(stored: h5py.Dataset, count: int, where: str) -> np.ndarray:
    if stored.size != count:
        msg = f"{where}: {count} instances but {stored.size} instance labels"
        raise DataError(msg)
    values = stored[()].reshape(count)
    if not (np.abs(values.astype(np.float64)) < _FARTHEST).all():
        msg = f"{where}: instance labels are no small whole numbers"
        raise DataError(msg)
    return np.asarray(values).astype(np.int64)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values; numpy has no bfloat16, so that becomes float32."""
    if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.numpy()


def _finite(features: np.ndarray, where: str) -> np.ndarray:
    """Features in float16 or float32; a value that is not finite there is refused."""
    if features.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            features = features.astype(np.float32)
    good = np.isfinite(features)
    if not good.all():
        rows = np.flatnonzero(~good.all(axis=1))
        msg = (
            f"{where}: {len(rows)} of {len(features)} instances hold NaN or infinite features "
            f"(first in row {rows[0]}); extract the slide again"
        )
        raise DataError(msg)
    return features


def _sample_hash(rows: np.ndarray, count: int) -> str:
    digest = hashlib.sha256(f"{count}".encode())
    with np.errstate(over="ignore", invalid="ignore"):
        digest.update(np.ascontiguousarray(rows, dtype="<f4").tobytes())
    return digest.hexdigest()[:16]
