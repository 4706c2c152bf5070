"""OSNet from torchreid as the light baseline, in the shape of FusionReID's convolutional branch.

Source: Zhou et al., "Omni-scale feature learning for person re-identification" (arXiv 1905.00953),
in the implementation of the package torchreid (MIT). Importing that takes seconds, so this module
is imported only when OSNet is asked for.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation that torchreid's OSNet weights were trained with."""


class OSNetMaps(nn.Module):
    """OSNet up to its last map.

    Args:
        net: torchreid's network; its pooling, last layer and classifier are left out.
    """

    PARTS = ("conv1", "maxpool", "conv2", "conv3", "conv4", "conv5")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for name in self.PARTS:
            self.add_module(name, net.get_submodule(name))
        self.channels = int(cast(Any, net).feature_dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, C, H / 16, W / 16)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for name in self.PARTS:
            x = self.get_submodule(name)(x)
        return x


class OSNetPool(nn.Module):
    """Mean over the map, then OSNet's own layer with batch norm and ReLU.

    Args:
        net: torchreid's network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.fc = net.get_submodule("fc")

    def forward(self, x: Tensor) -> Tensor:
        """Pools a map (B, C, H, W) to (B, 512)."""
        made: Tensor = self.fc(x.mean((2, 3)))
        return made

    def shares(self, x: Tensor) -> Tensor:
        """How strongly each cell of a map (B, C, H, W) is activated: (B, H, W), sum 1."""
        cells = x.abs().mean(1)
        return cells / cells.sum((1, 2), keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny)


def build(name: str) -> tuple[OSNetMaps, OSNetPool]:
    """Map and pooling of `osnet_x1_0` or `osnet_x0_25`, with random weights.

    Raises:
        ConfigError: torchreid or something it imports is not installed.
    """
    with warnings.catch_warnings():
        # torchreid tells at import that its Cython evaluator was not compiled; it is not used.
        warnings.simplefilter("ignore")
        try:
            osnet = import_module("torchreid.reid.models.osnet")
        except ImportError as error:
            msg = (
                f"model.cnn={name} needs the package '{error.name}' (torchreid and what it "
                "imports): pip install '.[reid]'"
            )
            raise ConfigError(msg) from error
    net: nn.Module = getattr(osnet, name)(num_classes=1, pretrained=False, loss="triplet")
    return OSNetMaps(net), OSNetPool(net)
