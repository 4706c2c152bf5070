"""What is segmented as a whole: an image, a volume or a clip, as an ordered stack of pictures.

Everything after reading (prediction, metrics, pictures) sees this one form; the readers of files,
volumes and video implement it, lazily, so that a long clip is never held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

Kind = Literal["image", "volume", "clip"]


@dataclass(frozen=True)
class Prompts:
    """Where the thing is, in pixels (x right, y down) of the picture they belong to.

    Attributes:
        points: (N, 3) float32: x, y, label (1 inside, 0 outside).
        boxes: (M, 4) float32: left, top, right, bottom.
        mask: (H, W) float32 in [0, 1], a rough mask, or None.
    """

    points: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray | None = None


class Stack(Protocol):
    """A picture or an ordered row of pictures with what is known of them.

    Attributes:
        id: Name of the image, volume or clip.
        group: Patient, volume or clip: what must not be in two splits.
        kind: What it is; an image has one picture.
    """

    id: str
    group: str
    kind: Kind

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Pixel size: (row, column) of an image, (slice, row, column) of a volume, in mm.

        None where files tell none; distances are then in pixels.
        """
        ...

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1], at its own resolution."""
        ...

    def truth(self, index: int) -> np.ndarray | None:
        """(H, W) uint8 class indices (0 is background), or None where there is no mask."""
        ...

    def instances(self, index: int) -> np.ndarray | None:
        """(H, W) int32 numbered objects (0 is background), where the data set has them."""
        ...

    def prompts(self, index: int) -> Prompts | None:
        """Prompts of a picture, if some were given."""
        ...

    def write(self, out: Path, labels: Callable[[int], np.ndarray]) -> list[Path]:
        """Write predicted class indices in the form of what was read.

        Args:
            out: Folder, made if need be.
            labels: Index -> (H, W) uint8 class indices of that picture.

        Returns:
            The files: a mask image at the original size, a volume in the original geometry, a
            mask for each frame and a video.
        """
        ...


Stacks = Sequence[Stack]
