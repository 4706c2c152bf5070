"""Salience maps as files: from probabilities at the network's size to 8-bit pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from zoo import files
from zoo.data import plain_name
from zoo.domains.saliency.rgbd_sod.images import thumbnail


def resized(probability: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size, bilinear without corner alignment.

    Args:
        probability: (h, w) in [0, 1].
        size: Height and width wanted.
    """
    return functional.interpolate(
        probability[None, None].float(), size, mode="bilinear", align_corners=False
    )[0, 0]


def to_bytes(probability: Tensor, minmax: bool = False) -> np.ndarray:
    """A map as (h, w) uint8, 255 for probability 1.

    Args:
        probability: (h, w) in [0, 1].
        minmax: Stretch the map to 0..255 first, as published map folders are; a constant map
            stays as it is.
    """
    values = probability.double().cpu().numpy()
    low, high = values.min(), values.max()
    if minmax and high > low:
        values = (values - low) / (high - low)
    return np.asarray(np.rint(values * 255), np.uint8)


def write_map(out: Path, name: str, values: np.ndarray) -> list[Path]:
    """Write one map as an 8-bit grey PNG and return the file.

    Args:
        out: Folder of the predictions.
        name: `<set>/<stem>`; the set becomes a folder, so that the result can be scored as any
            other method's folder.
        values: (h, w) uint8.
    """
    from PIL import Image

    parts = [plain_name(part, "a prediction's name") for part in name.split("/")]
    path = out.joinpath(*parts[:-1], f"{parts[-1]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, lambda p: Image.fromarray(values).save(p, format="PNG"))
    return [path]


def pictures(
    rgb: np.ndarray, depth: np.ndarray, truth: np.ndarray | None, maps: Sequence[Tensor]
) -> dict[str, np.ndarray]:
    """Small pictures of an image for the report, all uint8.

    Args:
        rgb: (h, w, 3) small image.
        depth: (h, w) small depth.
        truth: (H, W) annotation, if there is one.
        maps: The four maps (S, S) in [0, 1], finest first.

    Returns:
        `preview_rgb`, `preview_depth`, `preview_maps` (4, h, w) and, with a truth,
        `preview_truth`.
    """
    size = (rgb.shape[0], rgb.shape[1])
    found = {
        "preview_rgb": rgb,
        "preview_depth": depth,
        "preview_maps": np.stack([to_bytes(resized(m, size)) for m in maps]),
    }
    if truth is not None:
        found["preview_truth"] = thumbnail(truth, max(size))
    return found
