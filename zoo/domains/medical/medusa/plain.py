"""The network written out as published, on the same parameters: what tests and timings compare to.

Nothing here is fused, rearranged or recomputed: enlarged maps are enlarged, concatenated ones
concatenated, gates have one value a feature, and PyTorch decides what a backward pass keeps.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.medusa.backbone import (
    Bottleneck,
    ConvNorm,
    KerasResNet,
    same_padding,
)
from zoo.domains.medical.medusa.body import DECODER, ENCODER, Body
from zoo.domains.medical.medusa.heads import ScaleHead
from zoo.domains.medical.medusa.model import Medusa


def plain_body(body: Body, semantic: Tensor) -> Tensor:
    """The map (B, 1, T, U) of `Body` layer by layer."""

    def conv(number: int, x: Tensor) -> Tensor:
        return functional.relu(body.get_submodule(f"conv{number}")(x))

    x, skips = semantic, []
    for first, second in ENCODER:
        x = conv(second, conv(first, x))
        skips.append(x)
        x = functional.max_pool2d(x, 2)
    x = conv(13, x)
    for (first, second, third), skip in zip(DECODER, reversed(skips), strict=True):
        x = conv(first, functional.interpolate(x, scale_factor=2, mode="nearest"))
        x = conv(third, torch.cat([skip, conv(second, x)], dim=1))
    return torch.sigmoid(body.get_submodule("conv34")(x))


def _conv_norm(part: ConvNorm, x: Tensor, stride: int = 1) -> Tensor:
    conv = part.conv
    made: Tensor = part.norm(functional.conv2d(x, conv.weight, conv.bias, stride, conv.padding))
    return made


def plain_bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    """A bottleneck with its stride on the convolutions."""
    y = functional.relu(_conv_norm(block.reduce, x, block.stride))
    y = _conv_norm(block.expand, functional.relu(_conv_norm(block.spatial, y)))
    shortcut = x if block.shortcut is None else _conv_norm(block.shortcut, x, block.stride)
    return functional.relu(y + shortcut)


def plain_head(head: ScaleHead, x: Tensor, level: Tensor) -> Tensor:
    """The head as the official code has it: x + x * a."""
    return x + x * head.attention(level, (x.shape[2], x.shape[3]))


def plain_medusa(model: Medusa, image: Tensor, semantic: Tensor) -> Tensor:
    """Logits (B, K) of `Medusa` with the Keras backbone; see its `forward`."""
    backbone = model.backbone
    if not isinstance(backbone, KerasResNet) or model.body is None:
        msg = "the plain form is that of the published networks with a body"
        raise ValueError(msg)
    level = plain_body(model.body, semantic)
    if model.variant.startswith("resnet0"):
        size = image.shape[2:]
        large = functional.interpolate(level, size, mode="bilinear", align_corners=True)
        image = (image if model.variant == "resnet0_R" else 0) + image * large
    rows, columns = same_padding(image.shape[2]), same_padding(image.shape[3])
    padded = functional.pad(image, (*columns, *rows))
    x = functional.relu(_conv_norm(backbone.stem, padded, 2))
    x = functional.max_pool2d(x, 3, 2)
    heads = dict(zip(model.scales, model.heads, strict=True))
    for scale, stage in enumerate(backbone.stages):
        if scale in heads:
            x = plain_head(cast("ScaleHead", heads[scale]), x, level)
        for block in cast("nn.Sequential", stage):
            x = plain_bottleneck(cast("Bottleneck", block), x)
    return backbone.classify(x)
