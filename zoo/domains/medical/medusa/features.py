"""Networks of timm in the backbone's place (ours, not in the paper): `backbone=<timm name>`.

The pieces of a timm network between its feature levels are run one by one, so that scale heads can
act between them. Images are normalised as the network's own weights expect.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, WeightsError, first_line

SCALES = 4


class TimmBackbone(nn.Module):
    """A timm network cut at its feature levels, with global pooling and a linear top.

    Args:
        name: timm's name, such as `resnet50` or `convnext_tiny`.
        classes: Number of classes K.

    Attributes:
        channels: Of the four levels that heads act on, finest first.
        strides: 1 for each: every pixel of a level is read.

    Raises:
        ConfigError: timm does not know the name, or the network has no four levels in a row.
    """

    features: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.features = _cut(name)
        levels = list(self.features.return_layers)
        places = [list(self.features).index(level) + 1 for level in levels]
        bounds = [0, *places[:SCALES], len(self.features)]
        names = list(self.features)
        self._pieces = [names[a:b] for a, b in pairwise(bounds)]
        wide = [int(c) for c in self.features.feature_info.channels()]
        self.channels, self.strides = wide[:SCALES], [1] * SCALES
        self.classifier = nn.Linear(wide[-1], classes)
        nn.init.zeros_(self.classifier.bias)
        own = self.features.default_cfg
        mean, std = (torch.tensor(own[key]).view(-1, 1, 1) for key in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def _run(self, piece: int, x: Tensor) -> Tensor:
        for name in self._pieces[piece]:
            x = self.features[name](x)
        return x

    def first(self, image: Tensor) -> Tensor:
        """The finest level of images (B, 3, H, W) in [0, 1], blue before red."""
        x = (image.flip(1) - self.mean) / self.std  # these networks know red before blue
        return self._run(0, x.contiguous(memory_format=torch.channels_last))

    def after(self, scale: int, x: Tensor, thinned: bool = False) -> Tensor:
        """What follows level `scale`, up to the next or to the end."""
        return self._run(scale + 1, x)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the last level, pooled over all places."""
        made: Tensor = self.classifier(x.mean((2, 3)))
        return made

    @property
    def last(self) -> nn.Module:
        """The module whose output `classify` takes."""
        made: nn.Module = self.features[list(self.features)[-1]]
        return made


def _cut(name: str, **options: Any) -> Any:
    """A timm network as a list of its levels."""
    import timm
    from timm.models import FeatureListNet

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.partition('_')[0]}*")[:5])
        msg = f"model.backbone='{name}': timm has no such network" + (
            f"; it has {near}" * bool(near)
        )
        raise ConfigError(msg)
    try:
        made = timm.create_model(name, features_only=True, pretrained=bool(options), **options)
    except (RuntimeError, AssertionError, AttributeError) as error:
        if options:
            raise
        msg = f"model.backbone='{name}': timm cannot give its feature levels ({first_line(error)})"
        raise ConfigError(msg) from error
    levels: Any = made.return_layers if isinstance(made, FeatureListNet) else ()
    if len(levels) < SCALES or getattr(made.output_fmt, "value", "") != "NCHW":
        msg = (
            f"model.backbone='{name}': scale heads need {SCALES} levels that run one after the "
            "other, such as those of resnet50, resnet18, convnext_tiny or regnety_008"
        )
        raise ConfigError(msg)
    return made


def load_features(backbone: TimmBackbone, name: str, path: Path) -> None:
    """Fill a timm backbone from a weight file of the whole network, as timm publishes it.

    Args:
        backbone: Is changed in place; its top stays as it is.
        name: timm's name of the network.
        path: A safetensors file, or one of `torch.save` that holds tensors only.

    Raises:
        WeightsError: The file is missing, unsafe, or belongs to another network.
    """
    if not path.is_file():
        msg = f"model.backbone_init: {path}: no such file"
        raise WeightsError(msg)
    filled = []
    for seed in (0, 1):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = _cut(name, pretrained_cfg_overlay={"file": str(path)})
        except Exception as error:  # broken files fail in any way
            msg = f"model.backbone_init: {path}: not weights of {name} ({first_line(error)})"
            raise WeightsError(msg) from error
        filled.append(net.state_dict())
    # timm leaves at random what a file does not hold: there, two networks differ.
    bare = [key for key, value in filled[0].items() if not torch.equal(value, filled[1][key])]
    if bare:
        msg = f"model.backbone_init: {path}: not weights of {name} (no {bare[0]})"
        raise WeightsError(msg)
    backbone.features.load_state_dict(filled[0])
