"""Which radiographs maps are made of, beside the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.task import Batch


@dataclass(frozen=True)
class Look:
    """For which radiographs maps are made, and which.

    Attributes:
        pictured: Ids whose maps are kept for pictures; None: all.
        measured: Ids whose maps are compared with a lung mask where there is one; None: all.
        maps: Keep body and scale maps.
        gradcam: Make Grad-CAM, which costs another forward pass.
    """

    pictured: frozenset[str] | None = frozenset()
    measured: frozenset[str] | None = frozenset()
    maps: bool = True
    gradcam: bool = True

    def at(self, batch: Batch) -> list[int]:
        """Places in a batch that maps are made of."""
        return [
            i
            for i, name in enumerate(batch["ids"])
            if self.shows(name) or (self.measures(name) and bool(batch["has_mask"][i]))
        ]

    def shows(self, name: str) -> bool:
        """Whether a radiograph's maps are kept."""
        return self.pictured is None or name in self.pictured

    def measures(self, name: str) -> bool:
        """Whether a radiograph's maps are compared with its mask."""
        return self.measured is None or name in self.measured


def as_bytes(heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A map in [0, 1] as uint8, which is enough for a picture."""
    made: NDArray[np.uint8] = np.rint(255 * np.clip(heat, 0, 1)).astype(np.uint8)
    return made
