"""Damage to the arrays in files: other types, other shapes, NaN, links to other files."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image

from tests.mutating.headers import READ, datasets
from tests.mutating.place import Damage, Place

_TYPES: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda a: a.astype(np.complex64),
    "bool": lambda a: a.astype(bool),
    "int8": lambda a: a.astype(np.int8),
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(">f4"),
    "int64": lambda a: a.astype(np.int64),
    "huge values": lambda a: np.full(a.shape, 3e38, np.float32),
    "negative": lambda a: -np.abs(a.astype(np.float32)) - 1,
    "scalar": lambda a: a.ravel()[0] if a.size else np.float32(0),
    "flat": lambda a: a.ravel(),
    "axis more": lambda a: a[None],
    "transposed": lambda a: a.T,
    "nothing": lambda a: a[:0],
    "one row less": lambda a: a[:-1],
    "text": lambda a: np.full(a.shape[:1], b"text"),
}


def _changed(values: np.ndarray, name: str) -> Any:
    if values.dtype.kind not in "biuf":
        return np.arange(len(values) if values.ndim else 1)
    with np.errstate(all="ignore"):
        return np.asarray(_TYPES[name](values))


def _spoilt(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wide = values.astype(np.float32)
    wide.ravel()[rng.integers(wide.size)] = (np.nan, np.inf, -np.inf)[rng.integers(3)]
    return wide


def _h5(place: Place, rng: np.random.Generator) -> tuple[Path, str] | None:
    path = place.pick(rng, ".h5", ".mat")
    if path is None or not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        names = datasets(file)
    # By what they are for, so that many counties or slides count once.
    last = sorted({n.rpartition("/")[2] for n in names})
    chosen = last[rng.integers(len(last))]
    alike = [n for n in names if n.rpartition("/")[2] == chosen]
    return path, alike[rng.integers(len(alike))]


def h5_type(place: Place, rng: np.random.Generator) -> Damage | None:
    found = _h5(place, rng)
    if found is None:
        return None
    path, name = found
    kind = sorted(_TYPES)[rng.integers(len(_TYPES))]

    def change(target: Path) -> None:
        with h5py.File(target, "r+") as file:
            attributes = dict(file[name].attrs)
            values = _changed(file[name][()], kind)
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)

    place.edit(path, change)
    return Damage(f"HDF5: {kind}", [path], note=name)


def h5_structure(place: Place, rng: np.random.Generator) -> Damage | None:
    """A data set becomes a group, or a link to another place or file."""
    found = _h5(place, rng)
    if found is None:
        return None
    path, name = found
    kinds = sorted(_STRUCTURES)
    kind = kinds[rng.integers(len(kinds))]
    other = place.secret(path)

    def change(target: Path) -> None:
        with h5py.File(target, "r+") as file:
            old = file[name]
            values, attributes = old[()], dict(old.attrs)
            del file[name]
            _STRUCTURES[kind](file, name, values, other)
            if kind in ("virtual", "external storage"):
                file[name].attrs.update(attributes)

    place.edit(path, change)
    # Attributes and names that nobody reads may be what they like.
    told = name.rpartition("/")[2] in READ
    outward = kind in ("external link", "virtual", "external storage")
    return Damage(f"HDF5: {kind}", [path], told and outward, told and outward, outward, name)


def _external(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file[name] = h5py.ExternalLink(os.path.relpath(other, Path(file.filename).parent), name)


def _virtual(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(str(other), name, values.shape, values.dtype)
    file.create_virtual_dataset(name, layout)


def _storage(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    kind = values.dtype if values.dtype.kind in "biuf" else np.dtype("u1")
    file.create_dataset(name, values.shape, kind, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def _soft(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file["elsewhere"] = values
    file[name] = h5py.SoftLink("/elsewhere")


def _looped(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file[name] = h5py.SoftLink(f"/{name}")


def _group(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file.create_group(name)


def _cycle(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file[name] = file["/"]


def _nothing(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    """The data set is gone."""


def _null(file: h5py.File, name: str, values: np.ndarray, other: Path) -> None:
    file[name] = h5py.Empty("f4")


_STRUCTURES: dict[str, Callable[[h5py.File, str, np.ndarray, Path], None]] = {
    "external link": _external,
    "virtual": _virtual,
    "external storage": _storage,
    "soft link": _soft,
    "link to itself": _looped,
    "group": _group,
    "cycle": _cycle,
    "missing": _nothing,
    "null space": _null,
}


def not_finite(place: Place, rng: np.random.Generator) -> Damage | None:
    """One number of the features, histograms or voxels is NaN or infinite."""
    path = place.pick(rng, ".h5", ".npz", ".pt", ".nii.gz")
    if path is None:
        return None
    kind = place.kind(path)
    name = ""
    if kind == ".h5":
        with h5py.File(path, "r") as file:
            names = [n for n in datasets(file) if n.rpartition("/")[2] in ("features", "feat")]
        if not names:
            return None
        name = names[rng.integers(len(names))]

        def change(target: Path) -> None:
            with h5py.File(target, "r+") as file:
                values = _spoilt(file[name][()], rng)
                del file[name]
                file[name] = values

        place.edit(path, change)
    elif kind == ".npz":
        arrays = _arrays(path)
        name = next((n for n in arrays if arrays[n].dtype.kind == "f" and arrays[n].size), "")
        if not name:
            return None
        place.write(path, _npz(arrays | {name: _spoilt(arrays[name], rng)}))
    elif kind == ".pt":
        tensor = torch.load(path, weights_only=True).numpy()
        buffer = io.BytesIO()
        torch.save(torch.from_numpy(_spoilt(tensor, rng)), buffer)
        place.write(path, buffer.getvalue())
    else:
        place.write(path, _nifti_floats(path, rng))
    return Damage("not finite", [path], told=kind != ".nii.gz", strict=True, note=name)


def _nifti_floats(path: Path, rng: np.random.Generator) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    values = _spoilt(np.asarray(image.dataobj), rng)
    return gzip.compress(nibabel.Nifti1Image(values, image.affine).to_bytes(), 1)


def nifti_type(place: Place, rng: np.random.Generator) -> Damage | None:
    import nibabel

    path = place.pick(rng, ".nii.gz")
    if path is None:
        return None
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    values, affine = np.asarray(image.dataobj), image.affine
    rgb = np.zeros(values.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    forms: dict[str, tuple[np.ndarray, Any]] = {
        "complex": (values.astype(np.complex64), affine),
        "RGB": (rgb, affine),
        "four axes": (np.stack([values] * 2, -1), affine),
        "two axes": (values[..., 0], affine),
        "five axes": (values[..., None, None], affine),
        "nothing": (values[:0], affine),
        "affine of zeros": (values, affine),
        "affine of NaN": (values, affine),
        "no affine": (values, None),
        "other size": (values[1:], affine),
        "float64": (values.astype(np.float64) * 1e300, affine),
    }
    names = sorted(forms)
    name = names[rng.integers(len(names))]
    with np.errstate(all="ignore"):
        body = bytearray(nibabel.Nifti1Image(*forms[name]).to_bytes())
    if name.startswith("affine of"):  # nibabel itself would not write them
        number = np.nan if name.endswith("NaN") else 0.0
        struct.pack_into("<hh12f", body, 252, 0, 1, *[0.0] * 12)  # codes of qform and sform
        struct.pack_into("<12f", body, 280, *[number] * 12)
    place.write(path, gzip.compress(bytes(body), 1))
    return Damage(f"NIfTI: {name}", [path])


# -- npz, tensors, pictures ---------------------------------------------------------------------


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as body:
        return {name: body[name] for name in body.files}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class _Runs:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def npz_type(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng, ".npz")
    if path is None:
        return None
    arrays = _arrays(path)
    name = sorted(arrays)[rng.integers(len(arrays))]
    kinds = [*sorted(_TYPES), "missing", "pickled", "no archive", "name that leads out"]
    kind = kinds[rng.integers(len(kinds))]
    if kind == "missing":
        del arrays[name]
    elif kind == "pickled":
        arrays[name] = np.array([_Runs(place.outside / "run")], object)
    elif kind not in _TYPES:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("../../x.npy" if "out" in kind else "readme", b"text")
        place.write(path, out.getvalue())
        return Damage(f"npz: {kind}", [path], told=True, strict=True)
    else:
        arrays[name] = _changed(arrays[name], kind)
    place.write(path, _npz(arrays))
    pickled = kind == "pickled"
    return Damage(f"npz: {kind}", [path], strict=pickled, sealed=pickled, note=name)


def tensor_type(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng, ".pt")
    if path is None:
        return None
    tensor = torch.load(path, weights_only=True)
    forms: dict[str, Any] = {
        "dictionary": {"features": tensor},
        "list": [tensor, tensor],
        "integers": tensor.long(),
        "three axes": tensor[None, None],
        "nothing": tensor[:0],
        "complex": tensor.to(torch.complex64),
        "sparse": tensor.float().to_sparse(),
        "string": "features",
        "quantised": tensor.to(torch.bfloat16),
        "expanded": torch.zeros(1, 1).expand(1_000_000, 100_000),
        "meta": tensor.to("meta"),
        "code": _Runs(place.outside / "run"),
    }
    names = sorted(forms)
    name = names[rng.integers(len(names))]
    buffer = io.BytesIO()
    torch.save(forms[name], buffer)
    place.write(path, buffer.getvalue())
    code = name == "code"
    return Damage(f"tensor: {name}", [path], told=code, strict=code, sealed=code)


def plain_pickle(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng, ".pt", ".npz", ".mat")
    if path is None:
        return None
    place.write(path, pickle.dumps(_Runs(place.outside / "run")))
    return Damage("pickle that runs code", [path], told=True, strict=True, sealed=True)


def picture_type(place: Place, rng: np.random.Generator) -> Damage | None:
    """A picture of another mode, size or number of frames under the same name."""
    path = place.pick(rng, ".png", ".jpg", ".bmp", ".tif")
    if path is None:
        return None
    try:
        with Image.open(path) as opened:
            image = opened.convert("L")
    except OSError:
        return None
    values = np.asarray(image)
    forms: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "16 bit": (Image.fromarray(values.astype(np.uint16) * 257), "PNG", {}),
        "1 bit": (image.convert("1"), "PNG", {}),
        "palette": (image.convert("P"), "PNG", {}),
        "transparent": (image.convert("LA"), "PNG", {}),
        "CMYK": (image.convert("CMYK"), "JPEG", {}),
        "float TIFF": (Image.fromarray(values.astype(np.float32) * np.nan), "TIFF", {}),
        "32 bit": (Image.fromarray(values.astype(np.int32) - 2_000_000_000), "TIFF", {}),
        "one pixel": (image.resize((1, 1)), "PNG", {}),
        "one row": (image.resize((300, 1)), "PNG", {}),
        "GIF of two frames": (image, "GIF", {"save_all": True, "append_images": [image.rotate(9)]}),
        "other size": (image.resize((image.width + 7, max(1, image.height - 5))), "PNG", {}),
        "black": (Image.new("L", image.size), "PNG", {}),
    }
    names = sorted(forms)
    name = names[rng.integers(len(names))]
    made, kind, options = forms[name]
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    place.write(path, buffer.getvalue())
    return Damage(f"picture: {name}", [path])


ARRAYS = (
    *(h5_type, h5_type, h5_structure, h5_structure, h5_structure, not_finite, not_finite),
    *(nifti_type, npz_type, npz_type, tensor_type, plain_pickle, picture_type, picture_type),
)
