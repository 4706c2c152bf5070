"""What a registered or exported `fusion_reid` does: a crop of any size in, its embedding out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.model import FusionReID
from zoo.kernels.pictures import nan_unless_unit, patchy, resized_bytes
from zoo.task import Export, Facts

_SEED = 1
# Batch, height and width of pictures on which a written file is compared: Market-1501's crops,
# smaller and larger ones.
_FIRST = (2, 128, 64)
_OTHERS = ((1, 61, 29), (3, 301, 140))


class ServedEmbedder(nn.Module):
    """Resizes crops as test images are, and embeds them.

    Args:
        network: In eval mode.
        cameras: Cameras it has embeddings of; 0: it takes none.
        flip_average: Whether the mirror image is embedded as well, for the mean of both.
    """

    def __init__(self, network: FusionReID, cameras: int = 0, flip_average: bool = False) -> None:
        super().__init__()
        self.network, self.cameras, self.flip_average = network, cameras, flip_average

    def forward(self, image: Tensor, camera: Tensor | None = None) -> Tensor:
        """Embeddings of crops.

        Args:
            image: (B, 3, H, W) float in [0, 1], RGB, of any size.
            camera: (B,) int64, the camera's place among the training cameras; any other number
                means that it is unknown.

        Returns:
            (B, D) float, not normalised; NaN for an image that is none in [0, 1].
        """
        known = None
        if camera is not None:
            known = torch.where((camera >= 0) & (camera < self.cameras), camera, -1)
        small = resized_bytes(image, (self.network.size[0], self.network.size[1]))
        made: Tensor = self.network(small, known)
        if self.flip_average:
            made = (made + self.network(small.flip(-1), known)) / 2
        return made + nan_unless_unit(image).flatten(1)


def served(network: FusionReID, facts: Facts, config: Config) -> Export:
    """The embedder with examples of what it takes.

    Args:
        network: Trained.
        facts: `cameras` of the trained model.
        config: Of it; `predict.flip_average` counts.
    """
    cameras = told_cameras(network)
    module = ServedEmbedder(network, cameras, config.predict.flip_average)
    generator = torch.Generator().manual_seed(_SEED)

    def example(shape: Sequence[int]) -> dict[str, Tensor]:
        batch, height, width = shape
        inputs = {"image": patchy((batch, 3, height, width), generator)}
        if cameras:
            inputs["camera"] = torch.arange(batch) - 1  # the first one is unknown
        return inputs

    inputs = example(_FIRST)
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}, "camera": {0: "batch"}}
    return Export(
        inputs=inputs,
        outputs=("embedding",),
        dynamic={name: dynamic[name] for name in inputs},
        module=module,
        others=[example(shape) for shape in _OTHERS],
        about=_about(network, facts, config, cameras),
    )


def told_cameras(network: FusionReID) -> int:
    """Number of cameras the network tells apart; 0 where it needs not be told any."""
    cameras = network.transformer.cameras if "transformer" in network.heads else 0
    return cameras if cameras > 1 else 0


def _about(network: FusionReID, facts: Facts, config: Config, cameras: int) -> dict[str, str]:
    height, width = network.size
    mirrored = ", mean of image and mirror image" if config.predict.flip_average else ""
    told = {
        "image": "crop of one person, axes batch, red green blue, height, width; values 0 to 1 (a "
        f"file's bytes over 255), any size: it is stretched to {height} x {width} here; NaN "
        "comes back for other ranges",
        "embedding": f"{network.width} numbers a crop, not normalised{mirrored}; bring embeddings "
        "to unit length and compare them by Euclidean distance, 0 alike to 2",
    }
    if cameras:
        names = ", ".join(f"{i} {name}" for i, name in enumerate(facts["cameras"]))
        told["camera"] = (
            f"camera that took the crop, by its number in training ({names}); -1 where it is "
            "unknown or another one"
        )
    return {name: told[name] for name in ("image", "camera", "embedding") if name in told}
