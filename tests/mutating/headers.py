"""Headers that claim gigapixels, files that unpack to hundreds of megabytes."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.mutating.place import Damage, Place

_SIDES = ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (1_000_000, 1), (30_000, 30_000), (0, 0))
_SIZE = 5 * 2**26  # bytes a bomb unpacks to: enough to be seen, little enough to be made soon
# Data sets that every adapter of such files reads.
READ = ("features", "feat", "coords", "data", "depth")


def huge(place: Place, rng: np.random.Generator) -> Damage | None:
    """The header of a picture, volume or array claims far more than the file holds."""
    path = place.pick(rng, *_HEADERS)
    if path is None:
        return None
    width, height = _SIDES[rng.integers(len(_SIDES))]
    body = bytearray(path.read_bytes())
    if not _HEADERS[place.kind(path)](body, width, height):
        return None
    whole = bytes(body)
    # JPEG's data end where they end: one row of any width is a picture.
    told = height != 1 or path.suffix not in (".jpg", ".jpeg")
    place.write(path, gzip.compress(whole, 1) if path.suffix == ".gz" else whole)
    return Damage("huge header", [path], told, strict=True, note=f"{width} x {height}")


def _png(body: bytearray, width: int, height: int) -> bool:
    if body[:4] != b"\x89PNG":
        return False
    body[16:24] = struct.pack(">II", width, height)
    body[29:33] = struct.pack(">I", zlib.crc32(body[12:29]))
    return True


def _jpeg(body: bytearray, width: int, height: int) -> bool:
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        at = body.find(marker)
        if at > 0:
            body[at + 5 : at + 9] = struct.pack(">HH", min(height, 65_500), min(width, 65_500))
            return True
    return False


def _bmp(body: bytearray, width: int, height: int) -> bool:
    body[18:26] = struct.pack("<ii", width, height)
    return True


def _tiff(body: bytearray, width: int, height: int) -> bool:
    """Width (256) and length (257) of the first directory of a little-endian TIFF."""
    if body[:4] != b"II*\x00":
        return False
    (at,) = struct.unpack_from("<I", body, 4)
    (count,) = struct.unpack_from("<H", body, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", body, entry)
        if tag in (256, 257):
            struct.pack_into("<HHII", body, entry, tag, 4, 1, width if tag == 256 else height)
    return True


def _nifti(body: bytearray, width: int, height: int) -> bool:
    plain = bytearray(gzip.decompress(bytes(body)))
    struct.pack_into("<hh", plain, 42, min(width, 32_767), min(height, 32_767))
    body[:] = plain
    return True


def _dicom(body: bytearray, width: int, height: int) -> bool:
    """Rows (0028,0010) and Columns (0028,0011) of explicit little endian."""
    found = False
    for tag, side in ((b"\x28\x00\x10\x00US", height), (b"\x28\x00\x11\x00US", width)):
        at = body.find(tag)
        if at > 0:
            struct.pack_into("<H", body, at + 8, min(side, 65_535))
            found = True
    return found


def _npz(body: bytearray, width: int, height: int) -> bool:
    """Every array of the archive claims another shape."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bytes(body))) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, _npy_header("<f8", (width, height)) + old.read(name)[128:])
    body[:] = out.getvalue()
    return True


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    told = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + told.ljust(117).encode() + b"\n"


_HEADERS: dict[str, Callable[[bytearray, int, int], bool]] = {
    ".png": _png,
    ".jpg": _jpeg,
    ".jpeg": _jpeg,
    ".bmp": _bmp,
    ".tif": _tiff,
    ".nii.gz": _nifti,
    ".dcm": _dicom,
    ".npz": _npz,
}


# -- bombs --------------------------------------------------------------------------------------


def bomb(place: Place, rng: np.random.Generator) -> Damage | None:
    """A small file that is sound and unpacks to far more."""
    path = place.pick(rng, *_BOMBS)
    if path is None:
        return None
    kind = place.kind(path)
    made = place.shared / f"bomb{kind}"
    if not made.exists():
        _BOMBS[kind](made, path)
    path.unlink()
    os.link(made, path)
    return Damage("bomb", [path], told=True, strict=True)


def _png_bomb(out: Path, like: Path) -> None:
    side = 12_000
    packed = zlib.compressobj(1)
    row = bytes(1 + side)
    data = b"".join(packed.compress(row * 500) for _ in range(side // 500)) + packed.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    out.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in chunks
        )
    )


def _nifti_bomb(out: Path, like: Path) -> None:
    """As many voxels as the header says, all air."""
    head = bytearray(gzip.decompress(like.read_bytes())[:352])
    struct.pack_into("<hhh", head, 42, 1024, 1024, _SIZE >> 21)
    struct.pack_into("<hh", head, 70, 4, 16)  # int16
    with gzip.open(out, "wb", 6) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(_SIZE // 64))


def _npz_bomb(out: Path, like: Path) -> None:
    with (
        zipfile.ZipFile(like) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist()[1:]:
            new.writestr(name, old.read(name))
        with new.open(old.namelist()[0], "w", force_zip64=True) as file:
            file.write(_npy_header("<f4", (_SIZE // 4 // 9216, 9, 32, 32)))
            for _ in range(64):
                file.write(bytes(_SIZE // 64))


def _pt_bomb(out: Path, like: Path) -> None:
    """A tensor file, which is a zip, with its numbers deflated."""
    with (
        zipfile.ZipFile(like) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
                continue
            with new.open(name, "w", force_zip64=True) as file:
                for _ in range(64):
                    file.write(bytes(_SIZE // 64))


def _dicom_bomb(out: Path, like: Path) -> None:
    """A radiograph of the deflated transfer syntax with far more pixels than any has."""
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    data = pydicom.dcmread(like)
    data.Rows = data.Columns = 9_000
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelData = bytes(2 * data.Rows * data.Columns)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(out)


_BOMBS: dict[str, Callable[[Path, Path], None]] = {
    ".png": _png_bomb,
    ".nii.gz": _nifti_bomb,
    ".npz": _npz_bomb,
    ".pt": _pt_bomb,
    ".dcm": _dicom_bomb,
}


def h5_bomb(place: Place, rng: np.random.Generator) -> Damage | None:
    """A data set of HDF5 whose chunks were never written claims gigabytes, or unpacks to them."""
    path = place.pick(rng, ".h5", ".mat")
    if path is None or not h5py.is_hdf5(path):
        return None
    name = ""

    def change(target: Path) -> None:
        nonlocal name
        with h5py.File(target, "r+") as file:
            names = datasets(file)
            name = names[rng.integers(len(names))]
            old = file[name]
            size = (2_000_000_000, *old.shape[1:])
            kind = old.dtype
            del file[name]
            chunks = (min(1000, size[0]), *size[1:])
            file.create_dataset(name, size, kind, chunks=chunks, compression="gzip")

    place.edit(path, change)
    told = name.rpartition("/")[2] in READ
    return Damage("huge HDF5 data set", [path], told, strict=True, note=name)


def datasets(file: h5py.File) -> list[str]:
    """Names of all data sets of a file."""
    found: list[str] = []
    file.visititems(lambda name, node: found.append(name) if hasattr(node, "shape") else None)
    return found


HEADERS = (huge, huge, bomb, h5_bomb)
