"""Weight files read without TensorFlow and without pickle: names and tensors.

| file | what it is |
|---|---|
| `.safetensors`, `.npz` | dumps keyed as the official checkpoint, or our own weights |
| `.hdf5`, `.h5` | weights or a whole model of Keras: the lung segmenter's `trained_model.hdf5` |
| `.index` + `.data-*` | a TensorFlow checkpoint itself |
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.domains.medical.medusa.body import LAYERS
from zoo.domains.medical.medusa.tensor_bundle import read_bundle
from zoo.errors import WeightsError, first_line


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file.

    Args:
        path: A file of a kind in the table above. A TensorFlow checkpoint is named by its
            `.index` file or by the common beginning of its files.

    Raises:
        WeightsError: There is no such file, it is of another kind, or it is damaged.
    """
    index = path.with_name(path.name + ".index")
    if not path.exists() and index.is_file():
        path = index
    if not path.is_file():
        msg = f"{path}: no such file"
        raise WeightsError(msg)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(_READERS)
        msg = f"{path}: weights are read from {kinds} files; convert this one to one of them"
        raise WeightsError(msg)
    try:
        return reader(path)
    except WeightsError:
        raise
    except Exception as error:  # damaged files fail in any way
        msg = f"{path}: cannot be read ({first_line(error)})"
        raise WeightsError(msg) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(np.array(file[key])) for key in file.files}
    except zipfile.BadZipFile as error:
        msg = f"{path}: not a numpy archive, or cut short"
        raise WeightsError(msg) from error


def _keras(path: Path) -> dict[str, Tensor]:
    """The convolutions of a Keras file in the order of its layers, under official names."""
    import h5py

    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            msg = f"{path}: not a Keras weight file: it lists no layers"
            raise WeightsError(msg)
        found = []
        for layer in _texts(root.attrs["layer_names"]):
            names = _texts(_hard(root, layer, path).attrs.get("weight_names", ()))
            if names:
                group = root[layer]
                found.append({_kind(n): _array(_hard(group, n, path), path) for n in names})
    if len(found) != len(LAYERS) or any(f.keys() != {"kernel", "bias"} for f in found):
        msg = f"{path}: {len(found)} layers with weights; the lung segmenter has {len(LAYERS)}"
        raise WeightsError(msg)
    return {
        f"sem/{number}/{kind}": value
        for number, layer_weights in zip(LAYERS, found, strict=True)
        for kind, value in layer_weights.items()
    }


def _texts(names: Any) -> list[str]:
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _kind(name: str) -> str:
    """`kernel` or `bias` of a name such as `conv2d_1/kernel:0`."""
    return re.sub(r":\d+$", "", name).rpartition("/")[2]


def _hard(group: Any, name: str, path: Path) -> Any:
    """An item of the file itself: links out of it are refused."""
    import h5py

    place = group
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            msg = f"{path}: {name} is named but not there"
            raise WeightsError(msg)
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            msg = f"{path}: {name} lies outside of the file; such links are not followed"
            raise WeightsError(msg)
        place = place[part]
    return place


def _array(item: Any, path: Path) -> Tensor:
    import h5py

    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        msg = f"{path}: {item.name} is no array of this file"
        raise WeightsError(msg)
    return torch.from_numpy(np.asarray(item, dtype=np.float32))


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": _safetensors,
    ".npz": _npz,
    ".hdf5": _keras,
    ".h5": _keras,
    ".index": read_bundle,
}
