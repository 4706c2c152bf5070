"""What is written besides the masks: outlines over the picture, numbered objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image
from scipy import ndimage

from zoo import files
from zoo.data import plain_name
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.figures import draw_overlay, palette
from zoo.domains.medical.her_seg.objects import numbered
from zoo.domains.medical.her_seg.previews import Panel, Previewer
from zoo.domains.medical.her_seg.stacks import Stack
from zoo.domains.medical.her_seg.surface import outline
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A line of one pixel is lost on a large picture.
_PIXELS_A_LINE = 600
_DPI = 110


class Wanted(Protocol):
    """What `records.Looking` knows that is needed here."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    @property
    def config(self) -> Config:
        """All settings."""
        ...


def write_extras(
    out: Path, stack: Stack, labels: Callable[[int], np.ndarray], wanted: Wanted
) -> list[Path]:
    """Write what `predict.overlay` and `predict.instances` ask for.

    Args:
        out: Folder.
        stack: What was segmented.
        labels: Index -> (H, W) uint8 predicted class indices.
        wanted: Classes and settings.

    Returns:
        `<id>-overlay.png`: outlines over the image at its own size, a volume's three planes, or a
        few frames; `<id>-objects.png` of an image, or a folder of them for a clip.

    Raises:
        ConfigError: Numbered objects of a volume are asked for.
    """
    predict = wanted.config.predict
    written: list[Path] = []
    stem = _stem(out, stack.id)
    if predict.instances:
        written += _write_objects(stem, stack, labels)
    if predict.overlay:
        path = stem.with_name(f"{stem.name}-overlay.png")
        if stack.kind == "image":
            pixels = outlined(stack.picture(0), labels(0), stack.truth(0))
            _save(path, Image.fromarray(pixels))
        else:
            figure = draw_overlay(_panels(stack, labels, wanted), wanted.classes)
            _save_figure(path, figure)
        written.append(path)
    return written


def _stem(out: Path, name: str) -> Path:
    """Where files of a stack go, without an ending; folders in its id stay folders."""
    return out.joinpath(*(plain_name(part, "a name of the data set") for part in name.split("/")))


def _save(path: Path, image: Image.Image) -> None:
    files.write_whole(path, lambda fresh: image.save(fresh, format="PNG"))


def _save_figure(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    files.write_whole(path, partial(figure.savefig, dpi=_DPI))


def _panels(stack: Stack, labels: Callable[[int], np.ndarray], wanted: Wanted) -> Sequence[Panel]:
    reading = wanted.config.data
    preview = Previewer(stack, reading.axis, reading.neighbours)
    for index in range(len(stack)):
        if preview.wants(index):
            preview.add(index, stack.picture(index), labels(index), stack.truth(index))
    return preview.panels()


def _write_objects(stem: Path, stack: Stack, labels: Callable[[int], np.ndarray]) -> list[Path]:
    if stack.kind == "volume":
        msg = "predict.instances: objects are numbered in images and frames, not in volumes"
        raise ConfigError(msg)
    written = []
    for index in range(len(stack)):
        objects = numbered(labels(index))
        # 16 bits, since programs show 32-bit PNG files wrongly or not at all.
        image = Image.fromarray(objects.clip(0, 65535).astype(np.uint16))
        name = f"{stem.name}-objects"
        path = stem.with_name(f"{name}.png")
        if stack.kind == "clip":
            path = stem.with_name(name) / f"{index:05d}.png"
        _save(path, image)
        written.append(path)
    return written


def outlined(
    picture: np.ndarray, labels: np.ndarray, truth: np.ndarray | None = None
) -> np.ndarray:
    """A picture with the outlines of its masks.

    Args:
        picture: (H, W, 3) float32 in [0, 1].
        labels: (H, W) uint8 predicted class indices, drawn in their classes' colours.
        truth: Likewise, drawn in white below them.

    Returns:
        (H, W, 3) uint8.
    """
    pixels: np.ndarray = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    wide = max(1, round(max(picture.shape[:2]) / _PIXELS_A_LINE))
    for masks, colours in ((truth, None), (labels, palette())):
        if masks is None:
            continue
        for c in np.unique(masks[masks > 0]):
            line = outline(masks == c)
            if wide > 1:
                line = ndimage.binary_dilation(line, iterations=wide - 1)
            pixels[line] = (255, 255, 255) if colours is None else colours[(c - 1) % len(colours)]
    return pixels
