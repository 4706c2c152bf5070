"""Reading a scene: image, depth map and mask together, with the rule for sizes that differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.domains.saliency.rgbd_sod.images import (
    Head,
    RawDepth,
    head,
    read_depth,
    read_mask,
    read_rgb,
)
from zoo.domains.saliency.rgbd_sod.layouts import Pair
from zoo.errors import DataError

# Files up to this size are hashed whole, of larger ones size, begin, middle and end.
_WHOLE = 128 * 1024
_CHUNK = 16 * 1024


@dataclass(frozen=True, eq=False)
class Scene:
    """What the files of a scene hold, each at its own size.

    Attributes:
        rgb: (H, W, 3) uint8, upright.
        depth: The map as stored, None where there is none.
        mask: (h, w) bool, None where there is none.
    """

    rgb: np.ndarray
    depth: RawDepth | None
    mask: np.ndarray | None


@dataclass(frozen=True)
class Heads:
    """What the headers of a scene's files tell; None where there is no such file."""

    rgb: Head
    depth: Head | None
    mask: Head | None

    @property
    def differ(self) -> bool:
        """Whether a map or mask has to be stretched to its image."""
        return any(h is not None and h.size != self.rgb.size for h in (self.depth, self.mask))


def read_scene(pair: Pair, mismatch: str) -> Scene:
    """Read a scene's files whole.

    Args:
        pair: The files.
        mismatch: What sizes that differ mean: `resize` or `error`.

    Raises:
        DataError: A file is missing or broken, or its size does not fit.
    """
    depth = read_depth(pair.depth) if pair.depth is not None else None
    rgb = read_rgb(pair.rgb, None if depth is None else _size(depth.values))
    mask = read_mask(pair.mask) if pair.mask is not None else None
    if pair.depth is not None and depth is not None:
        agree(pair.rgb, _size(rgb), pair.depth, _size(depth.values), mismatch)
    if pair.mask is not None and mask is not None:
        agree(pair.rgb, _size(rgb), pair.mask, _size(mask), mismatch)
    return Scene(rgb, depth, mask)


def read_heads(pair: Pair, mismatch: str) -> Heads:
    """Read the headers of a scene's files.

    Raises:
        DataError: A file is missing, its header is broken, or its size does not fit.
    """
    rgb = head(pair.rgb)
    depth = head(pair.depth) if pair.depth is not None else None
    mask = head(pair.mask) if pair.mask is not None else None
    if depth is not None and depth.size == rgb.stored:
        rgb = Head(rgb.stored, rgb.stored, rgb.kind)  # the image is left as stored, as in reading
    for path, other in ((pair.depth, depth), (pair.mask, mask)):
        if path is not None and other is not None:
            agree(pair.rgb, rgb.size, path, other.size, mismatch)
    return Heads(rgb, depth, mask)


def _size(values: np.ndarray) -> tuple[int, int]:
    return int(values.shape[0]), int(values.shape[1])


def agree(
    rgb: Path, size: tuple[int, int], other: Path, its: tuple[int, int], mismatch: str
) -> None:
    """Make sure that a map or mask of another size than its image may be stretched to it.

    Args:
        rgb: The image.
        size: Its (H, W).
        other: The map or mask.
        its: Its (H, W).
        mismatch: `resize` or `error`.

    Raises:
        DataError: Sizes differ and `mismatch` is `error`, or one of the two lies on its side.
    """
    if its == size:
        return
    told = f"{other}: {its[1]} x {its[0]} pixels, its image {rgb.name} {size[1]} x {size[0]}"
    if _on_its_side(size, its):
        msg = f"{told}; one of them lies on its side, turn it"
        raise DataError(msg)
    if mismatch == "error":
        msg = f"{told}; set data.mismatch=resize to stretch it"
        raise DataError(msg)


def _on_its_side(size: tuple[int, int], its: tuple[int, int]) -> bool:
    """Whether the sides are swapped, up to the few pixels by which files differ anyway."""
    upright, turned = size[0] / size[1], its[1] / its[0]
    oblong = max(upright, 1 / upright) > 1.05
    return oblong and (upright > 1) == (turned > 1) and abs(upright / turned - 1) < 0.05


def content_hash(path: Path | None) -> str:
    """Hash of a file's size and content, of large files of three pieces of it; '' for None."""
    if path is None:
        return ""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(str(size).encode())
        small = size <= _WHOLE
        for start in [0] if small else [0, size // 2, size - _CHUNK]:
            file.seek(start)
            digest.update(file.read(_WHOLE if small else _CHUNK))
    return digest.hexdigest()[:24]
