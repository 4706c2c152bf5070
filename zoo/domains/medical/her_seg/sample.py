"""A synthetic data set of pictures with masks, of nuclei, of volumes and of clips, as found.

    images/, masks/, data_split.json    pictures in most kinds of file, read by layout=folders
    nuclei/stage1_train/<id>/{images,masks}    one mask a nucleus, as in Data Science Bowl 2018
    volumes/    NIfTI in nnU-Net's folders
    clips/      frames with masks on every second one

The pictures are what `data.root` left out trains on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.domains.medical.her_seg.sample_pictures import Drawn, draw, draw_nuclei

# Part of the cache key: raise it whenever what is written changes.
VERSION = 1

_PATIENTS = {"train": 20, "valid": 4, "test": 6}  # two pictures each
_SIDES = (96, 112, 128, 144, 160)
_NUCLEI = {"train": 16, "valid": 4, "test": 4}
_ORIENTATION = 0x0112  # EXIF tag
_ROTATED = 6  # its value for pictures to be turned clockwise by 90 degrees for display
Writer = Callable[[Path, np.ndarray], None]


def write(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write the data set.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add files that each have one of the faults found in practice.
    """
    # Imported here: their writers need packages that pictures do without.
    from zoo.domains.medical.her_seg.sample_video import write_clips
    from zoo.domains.medical.her_seg.sample_volumes import write_volumes

    write_pictures(out, seed, defects)
    write_nuclei(out / "nuclei", seed)
    write_volumes(out / "volumes", defects)
    write_clips(out / "clips", defects)


def write_pictures(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write `images`, `masks` and `data_split.json`: 40 pictures to train, 8 and 12 held out.

    Names are `p<patient>_<picture>`; masks have the tail `_mask`, one is a folder of a mask for
    each body, one is empty. The list names half of the files with extension and half without.
    """
    rng = np.random.default_rng([seed, VERSION, 1])
    listed: dict[str, list[str]] = {part: [] for part in _PATIENTS}
    parts = [part for part, count in _PATIENTS.items() for _ in range(count)]
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number in range(2 * len(parts)):
        patient, view = divmod(number, 2)
        stem = f"p{patient:03d}_{view + 1}"
        size = int(rng.choice(_SIDES)), int(rng.choice(_SIDES))
        # Of a square one, files could not tell whether the mask is turned as well.
        size = (_SIDES[0], _SIDES[-1]) if number == _TURNED else size
        made = draw(size, rng, 0 if number == _EMPTY else int(rng.integers(1, 4)))
        picture = _write_picture(out / "images" / stem, made.rgb, number)
        _write_truth(out / "masks", stem, made, number)
        listed[parts[patient]].append(picture.name if number % 2 else stem)
    if defects:
        write_defects(out, listed, rng)
    (out / "data_split.json").write_text(json.dumps(listed, indent=1) + "\n")


def write_nuclei(out: Path, seed: int = 0) -> None:
    """Write `stage1_train/<id>/images/<id>.png` (RGBA), `masks/<hash>.png` and a split list."""
    rng = np.random.default_rng([seed, VERSION, 2])
    listed: dict[str, list[str]] = {}
    for part, count in _NUCLEI.items():
        for number in range(count):
            name = hashlib.sha256(f"nuclei {part} {number}".encode()).hexdigest()
            size = int(rng.choice((96, 112, 128))), int(rng.choice((96, 112, 128)))
            made = draw_nuclei(size, rng, stained=number % 4 == 3)
            folder = out / "stage1_train" / name
            (folder / "images").mkdir(parents=True)
            Image.fromarray(_with_alpha(made.rgb)).save(folder / "images" / f"{name}.png")
            write_objects(folder / "masks", made.objects, name)
            listed.setdefault(part, []).append(f"{name}.png")
    (out / "nuclei_data_split.json").write_text(json.dumps(listed, indent=1) + "\n")


def write_objects(folder: Path, objects: np.ndarray, salt: str = "") -> None:
    """Write each object as a mask file of its own, 0 and 255, named by a hash.

    Args:
        folder: Made if need be.
        objects: (H, W) int, objects numbered from 1.
        salt: Makes names differ between pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, int(objects.max(initial=0)) + 1):
        name = hashlib.sha256(f"{salt} {number}".encode()).hexdigest()
        _grey(folder / f"{name}.png", objects == number)


# -- pictures -----------------------------------------------------------------------------------

# Which picture has which trait, by number; the others go through the usual kinds in turn.
_EMPTY, _JPEG, _TURNED, _OBJECTS = 5, 2, 9, 7


def _write_picture(path: Path, rgb: np.ndarray, number: int) -> Path:
    """Write one picture and return the file; `path` has no suffix yet."""
    if number in (_JPEG, _TURNED):
        path = path.with_name(path.name + ".jpg")
        image, exif = Image.fromarray(rgb), Image.Exif()
        if number == _TURNED:  # a camera held upright stores the picture lying
            image, exif[_ORIENTATION] = Image.fromarray(np.rot90(rgb)), _ROTATED
        image.save(path, quality=92, exif=exif)
        return path
    path = path.with_name(path.name + ".png")
    kind = number % 4
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    Image.fromarray((rgb, grey, _with_alpha(rgb), rgb)[kind]).save(path)
    return path


def _with_alpha(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], axis=2)


def _write_truth(folder: Path, stem: str, made: Drawn, number: int) -> None:
    if number == _OBJECTS:
        write_objects(folder / f"{stem}_mask", made.objects, stem)
        return
    kinds: Sequence[Writer] = (_grey, _ones, _rgb, _rgba, _palette, _one_bit, _jpeg, _grey)
    suffix = ".jpg" if kinds[number % 8] is _jpeg else ".png"
    kinds[number % 8](folder / f"{stem}_mask{suffix}", made.objects > 0)


def _grey(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def _ones(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(path)


def _rgb(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2)).save(path)


def _rgba(path: Path, mask: np.ndarray) -> None:
    grey = np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2)
    Image.fromarray(_with_alpha(grey)).save(path)


def _palette(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(path)


def _one_bit(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


def _jpeg(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, quality=75)


# -- defects ------------------------------------------------------------------------------------


def write_defects(out: Path, listed: dict[str, list[str]], rng: np.random.Generator) -> None:
    """Add pictures to `images`, `masks` and the list, each named after what is wrong with it.

    Args:
        out: A folder written by `write_pictures`.
        listed: Part -> names; what is added joins them.
        rng: Where the pictures come from.
    """
    names = ("no_mask", "other_size", "cut_off", "damaged", "empty_file", "no_image", "several")
    for name in names:
        stem, made = f"bad_{name}", draw((112, 96), rng, 2)
        picture, mask = out / "images" / f"{stem}.png", out / "masks" / f"{stem}_mask.png"
        Image.fromarray(made.rgb).save(picture)
        truth = made.objects > 0
        if name != "no_mask":
            _grey(mask, truth[:-8] if name == "other_size" else truth)
        _spoil(picture, name)
        listed["train"].append(picture.name)
    listed["train"].append("bad_missing.png")
    # What trains and tests at once, under another name.
    listed["test"].append("bad_twin.png")
    (out / "images" / "bad_twin.png").write_bytes((out / "images" / "p000_1.png").read_bytes())
    (out / "masks" / "bad_twin_mask.png").write_bytes(
        (out / "masks" / "p000_1_mask.png").read_bytes()
    )
    for folder in ("images", "masks"):
        (out / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (out / folder / "._p000_1.png").write_bytes(b"\x00\x05\x16\x07")


def _spoil(path: Path, name: str) -> None:
    body = path.read_bytes()
    if name == "cut_off":
        path.write_bytes(body[: len(body) // 3])
    elif name == "damaged":
        middle = len(body) // 2
        flipped = bytes(b ^ 0x5A for b in body[middle : middle + 64])
        path.write_bytes(body[:middle] + flipped + body[middle + 64 :])
    elif name == "empty_file":
        path.write_bytes(b"")
    elif name == "no_image":
        path.write_text("<html>404 not found</html>\n")
    elif name == "several":
        with Image.open(path) as image:
            image.save(
                path, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)]
            )
