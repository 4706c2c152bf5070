"""MEDUSA: one attention body draws a map, four heads bring it to the scales of a backbone.

Source: Aboutalebi et al., "MEDUSA: multi-scale encoder-decoder self-attention deep neural network
architecture for medical image analysis", arXiv 2110.06063; every detail follows the official code
(lindawangg/COVID-Net, branch `tf_dataset`). The plain forms of the same network are in `plain.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.medusa.backbone import KerasResNet, thin
from zoo.domains.medical.medusa.body import Body
from zoo.domains.medical.medusa.config import MedusaModel
from zoo.domains.medical.medusa.convert import load_body_state
from zoo.domains.medical.medusa.features import TimmBackbone, load_features
from zoo.domains.medical.medusa.heads import ScaleHead

HEADED = {"resnet1": (0, 1, 2, 3), "resnet2": (3,)}
"""Scales with a head in each variant that has any."""


class MedusaOutput(NamedTuple):
    """Logits and where the model attended.

    Attributes:
        logits: (B, K).
        body_map: (B, 1, T, T) in (0, 1); None without a body.
        scale_maps: For each head (B, 1, h, w): the mean over channels of the magnitude of what
            it added to the gate's one. Without heads the map as it acted on the image.
    """

    logits: Tensor
    body_map: Tensor | None
    scale_maps: tuple[Tensor, ...]


class Medusa(nn.Module):
    """The classifier: `body`, `heads` and `backbone` with its top `classifier`.

    Args:
        settings: The configuration's section `model`.
        classes: Number of classes K.

    Raises:
        ConfigError: The settings contradict each other.
    """

    def __init__(self, settings: MedusaModel, classes: int) -> None:
        super().__init__()
        self.variant = settings.variant
        self.body = Body(settings.body_width) if self.variant != "backbone_only" else None
        self.backbone: KerasResNet | TimmBackbone
        if settings.backbone in ("keras_resnet50", "small"):
            self.backbone = KerasResNet(
                classes,
                settings.image_size,
                width=settings.width,
                blocks=settings.blocks,
                global_pool=settings.global_pool,
            )
        else:
            self.backbone = TimmBackbone(settings.backbone, classes)
        self.scales = HEADED.get(self.variant, ())
        self.heads = nn.ModuleList(
            ScaleHead(
                self.backbone.channels[scale],
                activation=settings.head_activation,
                grid=settings.resize,
                zero=settings.head_init == "zero",
            )
            for scale in self.scales
        )
        # Channels last in memory: what convolution libraries are fastest with.
        self.to(memory_format=torch.channels_last)

    @property
    def cam_layer(self) -> nn.Module:
        """The module whose output (B, C, h, w) the top pools: where Grad-CAM looks."""
        return self.backbone.last

    @overload
    def forward(
        self, image: Tensor, semantic: Tensor | None = None, body_map: Tensor | None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        image: Tensor,
        semantic: Tensor | None = None,
        body_map: Tensor | None = None,
        return_maps: bool = False,
    ) -> Tensor | MedusaOutput: ...

    def forward(
        self,
        image: Tensor,
        semantic: Tensor | None = None,
        body_map: Tensor | None = None,
        return_maps: bool = False,
    ) -> Tensor | MedusaOutput:
        """Class logits of radiographs.

        Args:
            image: (B, 3, S, S) in [0, 1], blue before red.
            semantic: (B, 1, T, T), zero mean and unit deviation each; not read if `body_map` is
                given.
            body_map: (B, 1, T, T) that the body has drawn before; None: it draws it now.
            return_maps: Whether the maps are wanted too.

        Returns:
            (B, K) logits, or `MedusaOutput`.

        Raises:
            ValueError: An input is missing or of another shape.
        """
        if image.dim() != 4 or image.shape[1] != 3:
            msg = f"images should be (B, 3, H, W), got {tuple(image.shape)}"
            raise ValueError(msg)
        level = self._level(semantic, body_map)
        maps: list[Tensor] = []
        if self.variant.startswith("resnet0") and level is not None:
            size = image.shape[2:]
            large = functional.interpolate(level, size, mode="bilinear", align_corners=True)
            image = image * large + image if self.variant == "resnet0_R" else image * large
            maps.append(large)
        x = self.backbone.first(image)
        heads = dict(zip(self.scales, self.heads, strict=True))
        for scale, stride in enumerate(self.backbone.strides):
            head = heads.get(scale)
            if isinstance(head, ScaleHead):
                if return_maps and level is not None:
                    acted = head.attention(level, (x.shape[2], x.shape[3]))
                    maps.append(acted.abs().mean(1, keepdim=True))
                x = head(x, level, stride)
            else:
                x = thin(x, stride)
            x = self.backbone.after(scale, x, thinned=True)
        logits = self.backbone.classify(x)
        return MedusaOutput(logits, level, tuple(maps)) if return_maps else logits

    def _level(self, semantic: Tensor | None, body_map: Tensor | None) -> Tensor | None:
        """The body's map, drawn now unless it is given."""
        if self.body is None or body_map is not None:
            return body_map if self.body is not None else None
        if semantic is None:
            msg = "either the body's input or its map is needed"
            raise ValueError(msg)
        made: Tensor = self.body(semantic)
        return made


def build_model(settings: MedusaModel, classes: int) -> Medusa:
    """The network of the settings with fresh weights; no file is read.

    Args:
        settings: The configuration's section `model`.
        classes: Number of classes K.

    Raises:
        ConfigError: The settings contradict each other.
    """
    return Medusa(settings, classes)


def build_body(settings: MedusaModel) -> Body:
    """The attention body alone, with fresh weights.

    Args:
        settings: The configuration's section `model`.
    """
    return Body(settings.body_width).to(memory_format=torch.channels_last)


def load_initial(model: Medusa, settings: MedusaModel) -> list[str]:
    """Read what a training begins from: `model.body_init` and `model.backbone_init`.

    Args:
        model: Is changed in place.
        settings: Those it was built with.

    Returns:
        One line on each file that was read.

    Raises:
        WeightsError: A file is missing, cannot be read, or fits another network.
    """
    told = []
    if settings.body_init is not None and model.body is not None:
        path = settings.body_init.expanduser()
        load_body(model.body, path)
        told.append(f"body starts from {path.name}")
    if settings.backbone_init is not None and isinstance(model.backbone, TimmBackbone):
        path = settings.backbone_init.expanduser()
        load_features(model.backbone, settings.backbone, path)
        told.append(f"backbone starts from {path.name}")
    return told


def load_body(body: Body, path: Path) -> None:
    """Fill a body from a run of `preset=body` or a weight file of any known kind.

    Args:
        body: Is changed in place.
        path: See `convert.load_body_state`.

    Raises:
        WeightsError: The file is missing, cannot be read, or holds a body of another width.
    """
    body.load_state_dict(load_body_state(path, expected=body.state_dict()))
