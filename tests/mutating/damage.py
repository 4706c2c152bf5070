"""Damage that any file can take: cut, flipped, emptied, renamed, swapped, linked, replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.mutating.place import IMAGES, TEXT, Damage, Place

Kind = Callable[[Place, np.random.Generator], Damage | None]

_NAMES = (
    "größe-图像-صورة",
    "e\u0301 combining",
    "😀",
    "with space and 'quotes\"",
    "-rf",
    "100%s{0}$HOME",
    "a;b,c|d",
    "line\nbreak",
    "\x1b[31mred",
    "dots...",
    "\u202egnp",
    "not\udcff\udcfeutf",
)
_FOREIGN = (
    b"<html><body>404 Not Found</body></html>\n",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\x00" * 40,
    b"PK\x03\x04" + b"\x00" * 60,
    b"\x89HDF\r\n\x1a\n" + b"\xff" * 200,
    b"\x89PNG\r\n\x1a\n" + b"\x00" * 100,
    b"\xff\xd8\xff\xe0" + b"\x00" * 100,
    b"II*\x00\x08\x00\x00\x00" + b"\xff" * 100,
    b"%PDF-1.7\n" + b"x" * 50,
    b"\x00" * 4096,
)


def truncated(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    body = path.read_bytes()
    keep = int(len(body) * rng.uniform(0, 0.8))
    place.write(path, body[:keep])
    binary = path.suffix not in TEXT
    return Damage("truncated", [path], told=binary, strict=binary, note=f"{keep} of {len(body)}")


def flipped_header(place: Place, rng: np.random.Generator) -> Damage | None:
    return _flipped(place, rng, "bits flipped in the header", 96)


def flipped_body(place: Place, rng: np.random.Generator) -> Damage | None:
    return _flipped(place, rng, "bits flipped", None)


def _flipped(place: Place, rng: np.random.Generator, kind: str, head: int | None) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    body = bytearray(path.read_bytes())
    end = len(body) if head is None else min(head, len(body))
    if not end:
        return None
    places = rng.integers(end, size=int(rng.integers(1, 9)))
    for where in places:
        body[where] ^= 1 << int(rng.integers(8))
    place.write(path, bytes(body))
    return Damage(kind, [path], note=f"bytes {places.tolist()} of {len(body)}")


def emptied(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    place.write(path, b"")
    return Damage("emptied", [path], told=True, strict=True)


def removed(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    path.unlink()
    return Damage("removed", [path])


def renamed(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    name = _NAMES[rng.integers(len(_NAMES))]
    target = path.with_name(f"{name}{path.suffix}")
    path.rename(target)
    return Damage("renamed", [path, target], note=repr(name))


def renamed_long(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    kind = "".join(path.suffixes[-2:])
    target = path.with_name("n" * (255 - len(kind)) + kind)
    path.rename(target)
    return Damage("renamed to 255 letters", [path, target])


def other_suffix(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    suffixes = (".png", ".jpg", ".h5", ".csv", ".mat", ".dcm", ".npz", ".PNG", ".bak", "", ".pt")
    target = path.with_suffix(suffixes[rng.integers(len(suffixes))])
    if target.exists():
        return None
    path.rename(target)
    return Damage("other suffix", [path, target], note=target.suffix)


def swapped(place: Place, rng: np.random.Generator) -> Damage | None:
    first, second = place.pick(rng), place.pick(rng)
    if first is None or second is None or first == second:
        return None
    bodies = first.read_bytes(), second.read_bytes()
    place.write(first, bodies[1])
    place.write(second, bodies[0])
    kinds = {place.kind(first), place.kind(second)}
    foreign = len(kinds) > 1 and not kinds <= set(IMAGES) and not kinds <= {*TEXT}
    return Damage("swapped", [first, second], told=foreign, strict=foreign)


def replaced(place: Place, rng: np.random.Generator) -> Damage | None:
    """By a file of another type; of a text file any text may be right."""
    path = place.pick(rng)
    if path is None:
        return None
    which = int(rng.integers(len(_FOREIGN)))
    place.write(path, _FOREIGN[which])
    told = which > 1 or path.suffix not in TEXT
    return Damage("replaced by another type", [path], told=told, strict=told, note=f"{which}")


def noise(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    place.write(path, rng.bytes(int(rng.integers(1, 5000))))
    return Damage("random bytes", [path], told=True, strict=True)


# -- what stands where a file should ------------------------------------------------------------


def link_loop(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    other = path.with_name("loop" + path.suffix)
    path.unlink()
    path.symlink_to(other.name)
    other.symlink_to(path.name)
    return Damage("link loop", [path], told=True)


def folder_loop(place: Place, rng: np.random.Generator) -> Damage | None:
    folders = sorted({p.parent for p in place.files})
    folder = folders[rng.integers(len(folders))]
    (folder / "again").symlink_to(place.root, target_is_directory=True)
    return Damage("folder that links to the root", [folder / "again"])


def dangling(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    path.unlink()
    path.symlink_to("nowhere" + path.suffix)
    return Damage("dangling link", [path], told=True)


def pipe(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    path.unlink()
    os.mkfifo(path)
    return Damage("named pipe", [path], told=True)


def folder_for_file(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    path.unlink()
    path.mkdir()
    return Damage("folder instead of a file", [path])


def file_for_folder(place: Place, rng: np.random.Generator) -> Damage | None:
    folders = sorted({p.parent for p in place.files} - {place.root})
    if not folders:
        return None
    folder = folders[rng.integers(len(folders))]
    shutil.rmtree(folder)
    folder.write_bytes(b"no folder\n")
    return Damage("file instead of a folder", [folder])


def unreadable(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None or os.geteuid() == 0:
        return None  # root may read anything
    place.write(path, path.read_bytes())
    path.chmod(0)
    return Damage("no permission", [path], told=True, strict=True)


def doubled(place: Place, rng: np.random.Generator) -> Damage | None:
    """A copy under another name, as file managers make them."""
    path = place.pick(rng)
    if path is None:
        return None
    target = path.with_name(f"{path.stem} (1){path.suffix}")
    shutil.copyfile(path, target)
    return Damage("copy beside it", [path, target])


def appended(place: Place, rng: np.random.Generator) -> Damage | None:
    path = place.pick(rng)
    if path is None:
        return None
    place.write(path, path.read_bytes() + rng.bytes(int(rng.integers(1, 600))))
    return Damage("bytes appended", [path])


ANY: tuple[Kind, ...] = (
    *(truncated, truncated, flipped_header, flipped_header, flipped_body, flipped_body),
    *(emptied, removed, renamed, renamed, renamed_long, other_suffix, swapped, swapped),
    *(replaced, replaced, noise, link_loop, folder_loop, dangling, pipe, folder_for_file),
    *(file_for_folder, unreadable, doubled, appended),
)


def outside_of(place: Place, path: Path) -> str:
    """The way from a folder of the data set to a file outside of it."""
    return os.path.relpath(place.secret(path), path.parent)
