"""A synthetic data set in the layout NJU2K and NLPR are handed around in: small and learnable.

Every scene holds two equally coloured ellipses of which only the nearer is annotated, so that
colour alone does not tell, and a near patch of the same size in the colours of the background that
is not annotated, so that depth alone does not either. Backgrounds are textured and recede upwards.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.io
from PIL import Image
from scipy import ndimage

# Part of the cache key: raise it whenever what is written changes.
VERSION = 1

DepthFormat = Literal["png", "jpg", "bmp", "png16", "mat"]
MaskFormat = Literal["png", "1bit", "01", "jpg", "palette", "rgb"]

_TRAIN = 320
_TEST = {"SAMPLE": 48, "SAMPLE-BRIGHT": 32}
_SIDES = (96, 112, 128, 144, 160)
# The training folder's depth files, in turn: as sets are joined from several sources.
_FORMATS: tuple[DepthFormat, ...] = ("png", "jpg", "png", "png16", "png", "bmp", "png", "mat")
_NEAREST, _FARTHEST = 500, 4000  # millimetres in 16-bit maps
_MAT_HEADER = b"MATLAB 5.0 MAT-file, written by a sample data set"


@dataclass(frozen=True, eq=False)
class SampleScene:
    """A synthetic scene.

    Attributes:
        stem: Name of its files.
        rgb: (H, W, 3) uint8.
        depth: (H, W) float64 in [0, 1], 0 near.
        holes: (H, W) bool, 2 to 5 % of the pixels, for formats of sensors.
        mask: (H, W) bool, the annotated ellipse.
        twin: (H, W) bool, the ellipse of the same colour that is far.
        patch: (H, W) bool, the patch that is as near and as large as the object.
    """

    stem: str
    rgb: np.ndarray
    depth: np.ndarray
    holes: np.ndarray
    mask: np.ndarray
    twin: np.ndarray
    patch: np.ndarray


def scenes(count: int, seed: int = 0, prefix: str = "sample") -> list[SampleScene]:
    """Draw scenes of mixed sizes and orientations.

    Args:
        count: How many.
        seed: Seeds everything; scenes of another prefix are others.
        prefix: Begin of the stems.
    """
    rng = np.random.default_rng([seed, VERSION, *prefix.encode()])
    return [_scene(f"{prefix}_{i:04d}_left", rng) for i in range(count)]


def write(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write the data set: `RGBD_for_train` and two sets in `RGBD_for_test`.

    Depth of the training folder comes in every format; zeros in its 16-bit files are holes. The
    second test set has disparity, in which near is bright.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add scenes named `defect_…` that each have one of the traits and faults found in
            practice.
    """
    train = out / "RGBD_for_train"
    write_pairs(train, scenes(_TRAIN, seed, "train"), formats=_FORMATS)
    for name, count in _TEST.items():
        write_pairs(
            out / "RGBD_for_test" / name,
            scenes(count, seed, name.lower()),
            near_bright=name.endswith("BRIGHT"),
        )
    if defects:
        write_defects(train, scenes(12, seed, "defect"))


def write_pairs(
    folder: Path,
    made: Sequence[SampleScene],
    *,
    rgb: str = "RGB",
    depth: str = "depth",
    mask: str = "GT",
    formats: Sequence[DepthFormat] = ("png",),
    masks: Sequence[MaskFormat] = ("png",),
    near_bright: bool = False,
    tail: str = "",
) -> None:
    """Write scenes as three folders of one file a scene.

    Args:
        folder: Where the three folders are made.
        made: The scenes.
        rgb: Name of the folder of images; JPEG.
        depth: Name of the folder of depth maps.
        mask: Name of the folder of annotations; empty writes none.
        formats: Formats of the depth maps, in turn.
        masks: Formats of the annotations, in turn.
        near_bright: Write depth as disparity: near is bright.
        tail: Added to the stems of depth maps, such as `_Depth`.
    """
    for name in filter(None, (rgb, depth, mask)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(made):
        Image.fromarray(scene.rgb).save(folder / rgb / f"{scene.stem}.jpg", quality=92)
        kind = formats[i % len(formats)]
        write_depth(folder / depth / f"{scene.stem}{tail}", scene, kind, near_bright=near_bright)
        if mask:
            write_mask(folder / mask / scene.stem, scene.mask, masks[i % len(masks)])


def write_depth(
    path: Path, scene: SampleScene, kind: DepthFormat, *, near_bright: bool = False
) -> None:
    """Write a depth map; `path` has no suffix yet. 16-bit kinds have holes of value 0."""
    unit = 1 - scene.depth if near_bright else scene.depth
    if kind in ("png16", "mat"):
        raw = np.rint(_NEAREST + unit * (_FARTHEST - _NEAREST)).astype(np.uint16)
        raw[scene.holes] = 0
        if kind == "png16":
            Image.fromarray(raw).save(path.with_name(path.name + ".png"))
        else:
            write_mat(path.with_name(path.name + ".mat"), raw)
        return
    image = Image.fromarray(np.rint(unit * 255).astype(np.uint8))
    # Formats without loss have no quality and pass it over.
    image.save(path.with_name(f"{path.name}.{kind}"), quality=95)


def write_mat(path: Path, values: np.ndarray, name: str = "rawDepth") -> None:
    """Write a matrix as a MATLAB file whose bytes do not depend on the hour."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {name: values}, do_compression=True)
    # The first 116 bytes are a text in which scipy notes the time.
    path.write_bytes(_MAT_HEADER.ljust(116) + buffer.getvalue()[116:])


def write_mask(path: Path, mask: np.ndarray, kind: MaskFormat) -> None:
    """Write an annotation; `path` has no suffix yet."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    if kind == "jpg":
        grey.save(path.with_name(path.name + ".jpg"), quality=60)
        return
    if kind == "1bit":
        grey = grey.convert("1", dither=Image.Dither.NONE)
    elif kind == "01":
        grey = Image.fromarray(mask.astype(np.uint8))
    elif kind == "rgb":
        grey = grey.convert("RGB")
    elif kind == "palette":
        grey = Image.fromarray(mask.astype(np.uint8))
        grey.putpalette([0, 0, 0, 128, 0, 0])
    grey.save(path.with_name(path.name + ".png"))


# -- drawing ------------------------------------------------------------------------------------


def _scene(stem: str, rng: np.random.Generator) -> SampleScene:
    size = int(rng.choice(_SIDES)), int(rng.choice(_SIDES))
    mask, twin, patch = _ellipses(size, rng)
    ground = _luminous(rng, 90, 165)
    # The ellipses differ in brightness too: colour augmentation may take all saturation away.
    sign = 1 if ground.mean() < 128 else -1
    body = np.clip(ground + sign * rng.uniform(55, 80) + rng.uniform(-35, 35, 3), 8, 247)
    picture = ground + 24 * (_noise(size, 5, rng) + 0.6 * _noise(size, 16, rng))[..., None]
    surface = body + 14 * _noise(size, 12, rng)[..., None]
    picture = np.where((mask | twin)[..., None], surface, picture)
    picture = ndimage.gaussian_filter(picture, (0.5, 0.5, 0)) + rng.normal(0, 3, picture.shape)
    rows = np.linspace(1, 0, size[0])[:, None]
    far = 0.55 + 0.35 * rows * rng.uniform(0.4, 1) + 0.04 * _noise(size, 6, rng)
    near = rng.uniform(0.08, 0.3)
    depth = np.where(mask, near, far)
    depth = np.where(patch, near + rng.uniform(-0.03, 0.03), depth)
    depth = depth + rng.normal(0, 0.006, size)
    return SampleScene(
        stem,
        np.clip(np.rint(picture), 0, 255).astype(np.uint8),
        np.clip(depth, 0, 1),
        _holes(size, rng),
        mask,
        twin,
        patch,
    )


def _luminous(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """A muted colour whose mean lies in a range, (3,)."""
    tint = rng.uniform(-30, 30, 3)
    return np.asarray(rng.uniform(low, high) + tint - tint.mean())


def _noise(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) smooth noise of deviation about 1, `cells` bumps along a side."""
    coarse = rng.normal(0, 1.4, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def _ellipses(size: tuple[int, int], rng: np.random.Generator) -> list[np.ndarray]:
    """Three ellipses of one area that do not touch, each (H, W) bool."""
    area = rng.uniform(0.035, 0.085) * size[0] * size[1]
    while True:
        found: list[np.ndarray] = []
        taken = np.zeros(size, bool)
        for _ in range(60):
            shape, room = _ellipse(size, area, rng)
            if not (room & taken).any():
                found.append(shape)
                taken |= room
            if len(found) == 3:
                return found
        area *= 0.9  # they do not fit: a little smaller


def _ellipse(
    size: tuple[int, int], area: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipse inside of the image, and the same with a margin."""
    ratio, angle = rng.uniform(0.65, 1.5), rng.uniform(0, np.pi)
    long, short = np.sqrt(area / np.pi * ratio), np.sqrt(area / np.pi / ratio)
    reach = max(long, short) + 2
    y, x = (rng.uniform(reach, side - reach) for side in size)
    rows, columns = np.ogrid[: size[0], : size[1]]
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    shape = (u / long) ** 2 + (v / short) ** 2 <= 1
    return shape, (u / (long + 3)) ** 2 + (v / (short + 3)) ** 2 <= 1


def _holes(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool: blobs of 2 to 5 % of the pixels."""
    field = _noise(size, 14, rng)
    return np.asarray(field > np.quantile(field, 1 - rng.uniform(0.02, 0.05)))


# -- defects ------------------------------------------------------------------------------------


def write_defects(folder: Path, made: Sequence[SampleScene]) -> None:
    """Add one scene for each trait or fault, named after it.

    Args:
        folder: A training folder that has `RGB`, `depth` and `GT`.
        made: Twelve scenes.
    """
    names = (
        *("no_depth", "constant", "empty_mask", "1bit", "01", "jpeg_mask", "suffix", "size"),
        *("truncated", "turned", "coloured", "no_mask"),
    )
    oblong = next(s for s in made if s.mask.shape[0] != s.mask.shape[1])
    for name, scene in zip(names, made, strict=True):
        if name == "turned":
            scene = oblong
        stem = f"defect_{name}"
        Image.fromarray(scene.rgb).save(folder / "RGB" / f"{stem}.jpg", quality=92)
        masks: dict[str, MaskFormat] = {"1bit": "1bit", "01": "01", "jpeg_mask": "jpg"}
        mask = np.zeros_like(scene.mask) if name == "empty_mask" else scene.mask
        if name != "no_mask":
            write_mask(folder / "GT" / stem, mask, masks.get(name, "png"))
        _defective_depth(folder / "depth", name, stem, scene)
    broken = folder / "RGB" / "defect_truncated.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 3])
    for name in ("RGB", "depth", "GT"):
        (folder / name / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def _defective_depth(folder: Path, name: str, stem: str, scene: SampleScene) -> None:
    grey = np.rint(scene.depth * 255).astype(np.uint8)
    path = folder / f"{stem}.png"
    if name == "no_depth":
        return
    if name == "suffix":
        path = folder / f"{stem}_Depth.png"
    elif name == "constant":
        grey = np.full_like(grey, 128)
    elif name == "size":
        grey = grey[:-3, :-2]
    elif name == "turned":
        grey = np.rot90(grey)
    elif name == "coloured":
        coloured = np.stack([grey, 255 - grey, grey // 2], axis=2)
        Image.fromarray(coloured).save(path)
        return
    Image.fromarray(np.ascontiguousarray(grey)).save(path)
