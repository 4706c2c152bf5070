"""Cascade reconstruction decoder: four maps of logits from transformer and fusion maps.

Source: arXiv 2501.01648, section III-E, equations 25 to 30; squeeze-and-excitation after Hu et
al. (CVPR 2018). Letters: B images, D decoder channels; stage 0 is the finest here, stage 1 in
the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.saliency.rgbd_sod.blocks import (
    ConvBnRelu,
    ConvPair,
    initialise,
    joined_conv,
    scaled_conv,
    upsample,
)

LOGIT_BIAS = -2.0
"""Start of the logits: a foreground share of 0.12, between the 4 and 17 % of real images."""


class SqueezeExcitation(nn.Module):
    """Scale of each channel from the channels' means.

    Args:
        channels: Of the maps; the hidden width is a sixteenth of it, at least 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, means: Tensor) -> Tensor:
        """Scales (B, C) of means (B, C)."""
        hidden = functional.relu(self.fc1(means[..., None, None]))
        made: Tensor = self.fc2(hidden).sigmoid().flatten(1)
        return made


class Attend(nn.Module):
    """What the deeper stages tell a stage: CC(SE(concatenation of them, enlarged)), equation 26.

    Means, scales and the first convolution are computed on the small maps: bilinear enlargement
    by a whole factor keeps the mean, and commutes with the rest.

    Args:
        deeper: Number of deeper stages.
        channels: D.
        align_corners: Of the enlargement; with it the mean is not kept and is taken after it.
    """

    def __init__(self, deeper: int, channels: int, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.se = SqueezeExcitation(deeper * channels)
        self.conv = ConvPair(deeper * channels, channels)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (B, D, h_k, w_k) of deeper stages to (B, D, *size)."""
        scale = self.se(torch.cat([self.mean(x, size) for x in maps], dim=1))
        small = scaled_conv(self.conv.first, maps, scale)
        each = [upsample(x, size, self.align_corners) for x in small]
        made: Tensor = self.conv.after(sum(each[1:], each[0]))
        return made

    def mean(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Channel means (B, D) of a map after its enlargement to `size`."""
        whole = size[0] % x.shape[2] == 0 and size[1] % x.shape[3] == 0
        if self.align_corners or not whole:
            x = upsample(x, size, self.align_corners)
        return x.mean(dim=(2, 3))


class CascadeDecoder(nn.Module):
    """Reduces each stage, lets deeper stages attend to finer ones, merges from coarse to fine.

    Args:
        widths: Channels of each stage's maps together (transformer and fusion).
        channels: D.
        align_corners: Of every bilinear enlargement.
    """

    def __init__(
        self, widths: Sequence[int], channels: int = 64, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        stages = len(widths)
        self.reduce = nn.ModuleList(ConvPair(width, channels) for width in widths)
        self.attend = nn.ModuleList(
            Attend(stages - 1 - i, channels, align_corners) for i in range(stages - 1)
        )
        self.merge = nn.ModuleList(
            ConvPair(channels * (1 if i == stages - 1 else 2), channels) for i in range(stages)
        )
        self.head = nn.ModuleList(
            nn.Sequential(ConvBnRelu(channels, channels, 3), nn.Conv2d(channels, 1, 1))
            for _ in range(stages)
        )
        self._initialise()

    def _initialise(self) -> None:
        initialise(self)
        linear = [cast(nn.Sequential, head)[1] for head in self.head]
        for part in self.modules():
            if isinstance(part, SqueezeExcitation):
                linear += [part.fc1, part.fc2]
        # Linear layers in kind, with their own start: by fan out, logits of a single channel would
        # start with a deviation of ten, and their bias would mean nothing.
        for layer in linear:
            cast(nn.Conv2d, layer).reset_parameters()
        for head in self.head:
            nn.init.constant_(head.get_parameter("1.bias"), LOGIT_BIAS)

    def forward(
        self, stages: Sequence[Sequence[Tensor]], size: tuple[int, int], side: bool
    ) -> list[Tensor]:
        """Decodes.

        Args:
            stages: The maps of each stage, finest first, that are concatenated.
            size: Height and width of the logits.
            side: Whether all stages give logits; otherwise the finest alone.

        Returns:
            Logits (B, 1, *size), finest stage first.
        """
        reduced = [self._reduced(i, maps) for i, maps in enumerate(stages)]
        last = len(reduced) - 1
        merged: Tensor = self.merge[last](reduced[last])
        made = [self._logits(last, merged, size)] if side or last == 0 else []
        for i in range(last - 1, -1, -1):
            own = reduced[i]
            shape = (own.shape[2], own.shape[3])
            told = self.attend[i](reduced[i + 1 :], shape)
            refined = own * (told + 1)
            pair = cast(ConvPair, self.merge[i])
            joined = joined_conv(pair.first, (refined, merged), shape, self.align_corners)
            merged = pair.after(joined)
            if side or i == 0:
                made.insert(0, self._logits(i, merged, size))
        return made

    def _reduced(self, stage: int, maps: Sequence[Tensor]) -> Tensor:
        pair = cast(ConvPair, self.reduce[stage])
        size = (maps[0].shape[2], maps[0].shape[3])
        return pair.after(joined_conv(pair.first, maps, size))

    def _logits(self, stage: int, merged: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(self.head[stage](merged), size, self.align_corners)
