"""FusionReID's ResNet: bottleneck blocks as in torchvision behind another stem.

Differences from torchvision's network, which the official weights need: no ReLU after the stem's
batch norm, a 2 x 2 max pool without padding instead of 3 x 3, and a choice of the last stage's
stride. Parameter names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTHS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "small": (1, 1, 1, 1),
}
"""Blocks of the four stages."""
EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions beside a shortcut.

    Args:
        into: Input channels.
        width: Channels of the 3 x 3 convolution; the output has four times as many.
        stride: Of the 3 x 3 convolution and of the shortcut.
        project: Whether the shortcut is a 1 x 1 convolution with batch norm.
    """

    def __init__(self, into: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(into, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if project:
            shortcut = nn.Conv2d(into, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, into, H, W) to (B, 4 width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y = y + (x if self.downsample is None else self.downsample(x))
        return functional.relu(y, inplace=True)


class ResNet(nn.Module):
    """The convolutional branch: an image in, its last map out.

    Args:
        layers: Blocks of the four stages.
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many inside.
        last_stride: Stride of the last stage: 1 keeps a sixteenth of the image's size.
    """

    def __init__(self, layers: Sequence[int], width: int = 64, last_stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        into, strides = width, (1, 2, 2, last_stride)
        for stage, (blocks, stride) in enumerate(zip(layers, strides, strict=True)):
            inner = width << stage
            made = []
            for number in range(blocks):
                made.append(Bottleneck(into, inner, 1 if number else stride, project=number == 0))
                into = inner * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.channels = into
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, channels, H / 16, W / 16), or / 32 with the last stride 2."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.max_pool2d(self.bn1(self.conv1(x)), 2, 2)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
