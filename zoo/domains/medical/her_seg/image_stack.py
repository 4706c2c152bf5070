"""One picture as a stack of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from zoo import files
from zoo.data import plain_name
from zoo.domains.medical.her_seg.cases import Classes
from zoo.domains.medical.her_seg.images import Bytes
from zoo.domains.medical.her_seg.objects import merge
from zoo.domains.medical.her_seg.pictures import Picture, Reader
from zoo.domains.medical.her_seg.stacks import Kind, Prompts

# Colours of classes in written masks, background first; further classes repeat them.
COLOURS = (
    *((0, 0, 0), (230, 75, 53), (77, 187, 213), (0, 160, 135), (60, 84, 136)),
    *((243, 155, 127), (132, 145, 180), (145, 209, 194), (220, 180, 0), (126, 97, 72)),
)


class ImageStack:
    """A picture and its mask, decoded when they are asked for and kept while the stack lives.

    Args:
        picture: Its files.
        reader: How they are read.
        prompts: Where things are, in pixels of the picture as it is displayed.

    Attributes:
        id: The picture's.
        group: The picture's.
        kind: `image`.
        spacing: None: picture files tell no size of a pixel that can be relied on.
    """

    def __init__(self, picture: Picture, reader: Reader, prompts: Prompts | None = None) -> None:
        self.id = picture.id
        self.group = picture.group
        self.kind: Kind = "image"
        self.spacing: tuple[float, ...] | None = None
        self.files = picture
        self._reader = reader
        self._prompts = prompts
        self._image: Bytes | None = None
        self._truth: Bytes | None = None
        self._objects: np.ndarray | None = None

    def __len__(self) -> int:
        """1."""
        return 1

    def decoded(self) -> Bytes:
        """(H, W, 3) uint8, upright.

        Raises:
            DataError: The file is broken; the message names it.
        """
        if self._image is None:
            self._image = self._reader.image(self.files)
        return self._image

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1].

        Raises:
            DataError: The file is broken; the message names it.
        """
        return self.decoded().astype(np.float32) / 255

    def _size(self) -> tuple[int, int]:
        image = self.decoded()
        return image.shape[0], image.shape[1]

    def truth(self, index: int) -> np.ndarray | None:
        """(H, W) uint8 class indices, or None.

        Raises:
            DataError: A mask is broken, of another size, or holds an unknown value.
        """
        if self._truth is None and self.files.labelled:
            if self.files.how == "objects":
                self._truth = (self._merged() > 0).astype(np.uint8)
            else:
                self._truth = self._reader.truth(self.files, self._size())
        return self._truth

    def instances(self, index: int) -> np.ndarray | None:
        """(H, W) int32 numbered objects, where there is a mask for each.

        Raises:
            DataError: A mask is broken or of another size.
        """
        return self._merged() if self.files.how == "objects" else None

    def _merged(self) -> np.ndarray:
        if self._objects is None:
            self._objects = merge(self.files.masks, self._size()).objects
        return self._objects

    def prompts(self, index: int) -> Prompts | None:
        """The prompts given."""
        return self._prompts

    def write(self, out: Path, labels: Callable[[int], np.ndarray]) -> list[Path]:
        """Write `<id>.png` at the picture's size; folders in the id are made.

        One class: 8-bit grey, 0 and 255. Several: a palette image whose index is the class.

        Args:
            out: Folder, made if need be.
            labels: 0 -> (H, W) uint8 class indices.
        """
        parts = [plain_name(part, "a picture's name") for part in self.id.split("/")]
        path = out.joinpath(*parts[:-1], f"{parts[-1]}.png")
        image = as_image(labels(0), self._reader.coding.classes)
        files.write_whole(path, lambda fresh: image.save(fresh, format="PNG"))
        return [path]


def as_image(labels: np.ndarray, classes: Classes) -> Image.Image:
    """Class indices (H, W) uint8 as a picture that programs read back exactly.

    Returns:
        Grey 0 and 255 for one class; else with a palette, the index being the class.
    """
    values = np.ascontiguousarray(labels, np.uint8)
    if len(classes.names) == 1:
        return Image.fromarray((values > 0).astype(np.uint8) * 255)
    image = Image.fromarray(values, mode="P")
    table = [*COLOURS, *(COLOURS[1:] * (255 // (len(COLOURS) - 1) + 1))][:256]
    image.putpalette([channel for colour in table for channel in colour])
    return image
