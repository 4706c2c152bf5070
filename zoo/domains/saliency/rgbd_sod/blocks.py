"""Layers that encoders, fusion and decoder share.

Table I of the paper: every convolution block is a convolution, batch normalisation and a ReLU.
A 1 x 1 convolution of concatenated maps is the sum of 1 x 1 convolutions of the maps, and it
commutes with bilinear resizing and with a scale per channel: the functions here use that, so that
neither the concatenation nor the scaled nor the enlarged maps are ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBnRelu(nn.Module):
    """Convolution without bias, batch normalisation, ReLU: the paper's Conv_k.

    Args:
        into: Input channels.
        out: Output channels.
        kernel: Odd size k; the map keeps its size at stride 1.
        stride: Of the convolution.
    """

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, into, H, W) to (B, out, H / stride, W / stride)."""
        return self.after(self.conv(x))

    def after(self, convolved: Tensor) -> Tensor:
        """What follows the convolution, for callers that compute it themselves."""
        # In place: batch normalisation keeps its input, so only one of the two maps stays.
        return functional.relu(self.bn(convolved), inplace=True)


class ConvPair(nn.Sequential):
    """Conv_1 to the new width, then Conv_3: the pair that closes almost every block."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(ConvBnRelu(into, out, 1), ConvBnRelu(out, out, 3))

    def after(self, convolved: Tensor) -> Tensor:
        """What follows the first convolution, for callers that compute it themselves."""
        made: Tensor = self[1](cast(ConvBnRelu, self[0]).after(convolved))
        return made

    @property
    def first(self) -> Tensor:
        """(out, into, 1, 1) weight of the first convolution."""
        return cast(ConvBnRelu, self[0]).conv.weight


def upsample(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (B, C, h, w) to `size`; `x` itself if it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def split_weight(weight: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """The columns of a (C, sum of C_k, 1, 1) weight that belong to each of maps (B, C_k, ...)."""
    ends = list(accumulate(x.shape[1] for x in maps))
    return [weight[:, end - x.shape[1] : end] for x, end in zip(maps, ends, strict=True)]


def joined_conv(
    weight: Tensor, maps: Sequence[Tensor], size: tuple[int, int], align_corners: bool = False
) -> Tensor:
    """1 x 1 convolution of the concatenation of maps enlarged to `size`, computed before both.

    Args:
        weight: (C, sum of C_k, 1, 1).
        maps: (B, C_k, h_k, w_k) each.
        size: Height and width of the result.
        align_corners: Of the bilinear enlargement.

    Returns:
        (B, C, *size).
    """
    parts = zip(maps, split_weight(weight, maps), strict=True)
    each = [upsample(functional.conv2d(x, w), size, align_corners) for x, w in parts]
    return torch.stack(each).sum(0) if len(each) > 2 else sum(each[1:], each[0])


def scaled_conv(weight: Tensor, maps: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    """1 x 1 convolution of each map's channels after a scale per image and channel.

    The scale goes into a weight of each image's own.

    Args:
        weight: (C, sum of C_k, 1, 1).
        maps: (B, C_k, h_k, w_k) each.
        scale: (B, sum of C_k).

    Returns:
        One (B, C, h_k, w_k) a map; their sum, once of one size, is the convolution of the
        concatenation.
    """
    own = weight.flatten(1) * scale.unsqueeze(1)
    ends = list(accumulate(x.shape[1] for x in maps))
    made = []
    for x, end in zip(maps, ends, strict=True):
        flat = own[:, :, end - x.shape[1] : end] @ x.flatten(2)
        made.append(flat.view(x.shape[0], -1, *x.shape[2:]))
    return made


def initialise(module: nn.Module) -> None:
    """Kaiming normal (fan out) for every convolution below `module`, 1 and 0 for its norms."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
