"""The Keras-style ResNet-50 of the released model, and timm networks in its place (ours).

Source: the official code (lindawangg/COVID-Net, branch `tf_dataset`), whose ResNet follows Keras
and DELF, not torchvision: TensorFlow's SAME padding in the stem, a max-pool without padding, the
stride on the first convolution of a bottleneck, biases, and a top of 7 x 7 windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.medusa.recompute import (
    convolve,
    norm_add_relu,
    norm_relu_conv,
    norm_relu_pool,
)
from zoo.errors import ConfigError

WIDTH = 64
BLOCKS = (3, 4, 6, 3)
STRIDES = (1, 2, 2, 2)
EXPANSION = 4
TOP = 7
"""Side of the window that the released top averages."""


class ConvNorm(nn.Module):
    """A convolution with bias and its batch normalisation, which the caller applies.

    Args:
        wide_in: Channels in.
        wide_out: Channels out.
        kernel: Side of the kernel.
        padding: Zeros on each side.
    """

    def __init__(self, wide_in: int, wide_out: int, kernel: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide_in, wide_out, kernel, padding=padding)
        # Keras' momentum of 0.99 is PyTorch's 0.01.
        self.norm = nn.BatchNorm2d(wide_out, eps=1e-3, momentum=0.01)
        bias = self.conv.bias
        assert bias is not None
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised convolution (B, C', H, W) of x (B, C, H, W), stride 1."""
        made: Tensor = self.norm(self.convolved(x))
        return made

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        padding = (int(self.conv.padding[0]), int(self.conv.padding[1]))
        return convolve(x, self.conv.weight, self.conv.bias, padding)


def thin(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th row and column of (B, C, H, W): all that a 1 x 1 convolution reads."""
    if stride == 1:
        return x
    return x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with a shortcut; the stride sits on the first.

    Args:
        wide_in: Channels in.
        inner: Channels of the first two convolutions; the third has four times as many.
        stride: Of the first convolution and the shortcut's.
        project: Whether the shortcut is a convolution; needed where shapes change.
    """

    def __init__(self, wide_in: int, inner: int, stride: int = 1, *, project: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.reduce = ConvNorm(wide_in, inner)
        self.spatial = ConvNorm(inner, inner, 3, 1)
        self.expand = ConvNorm(inner, EXPANSION * inner)
        self.shortcut = ConvNorm(wide_in, EXPANSION * inner) if project else None

    def forward(self, x: Tensor, thinned: bool = False) -> Tensor:
        """The block's output.

        Args:
            x: (B, C, H, W), or every `stride`-th row and column of it if `thinned`.
            thinned: Whether it is.

        Returns:
            (B, 4 * inner, ceil(H / stride), ceil(W / stride)).
        """
        x = x if thinned else thin(x, self.stride)
        y = norm_relu_conv(self.reduce.convolved(x), self.reduce.norm, self.spatial.conv)
        y = norm_relu_conv(y, self.spatial.norm, self.expand.conv)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return norm_add_relu(y, self.expand.norm, shortcut)


class Stage(nn.Sequential):
    """Bottlenecks at one scale.

    Args:
        wide_in: Channels in.
        inner: Inner channels of its blocks.
        blocks: How many.
        stride: Of the first.
    """

    def __init__(self, wide_in: int, inner: int, blocks: int, stride: int) -> None:
        first = Bottleneck(wide_in, inner, stride, project=True)
        super().__init__(first, *(Bottleneck(EXPANSION * inner, inner) for _ in range(blocks - 1)))
        self.stride = stride

    def forward(self, x: Tensor, thinned: bool = False) -> Tensor:
        """Runs the blocks; for `thinned` see `Bottleneck`."""
        for index, block in enumerate(self):
            x = block(x, thinned and index == 0)
        return x


def same_padding(size: int, kernel: int = 7, stride: int = 2) -> tuple[int, int]:
    """Zeros before and after an axis under TensorFlow's SAME rule."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Stem(ConvNorm):
    """7 x 7 convolution of stride 2, SAME padding, rectifier, 3 x 3 max-pool of stride 2, VALID.

    Args:
        width: Channels out.
    """

    def __init__(self, width: int) -> None:
        super().__init__(3, width, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) of images (B, 3, H, W) in [0, 1]; 480 pixels give 119."""
        rows, columns = same_padding(x.shape[2]), same_padding(x.shape[3])
        x = functional.pad(x, (*columns, *rows)).contiguous(memory_format=torch.channels_last)
        z = functional.conv2d(x, self.conv.weight, self.conv.bias, 2)
        return norm_relu_pool(z, self.norm, 3, 2)


def last_side(image_size: int) -> int:
    """Side of the last stage's map for an image's side."""
    side = (-(-image_size // 2) - 3) // 2 + 1
    for stride in STRIDES:
        side = -(-side // stride)
    return side


class KerasResNet(nn.Module):
    """The backbone of the released model, with its top.

    Args:
        classes: Number of classes K.
        image_size: Side of the images in pixels, which the released top is tied to.
        width: Channels of stem and first stage.
        blocks: Bottlenecks of the four stages.
        global_pool: Average all places, so that any image size will do.

    Attributes:
        channels: Of the four scales that heads act on, finest first.
        strides: Of the stage behind each: what it reads of the scale.

    Raises:
        ConfigError: The image is too small for the released top.
    """

    def __init__(
        self,
        classes: int,
        image_size: int = 480,
        *,
        width: int = WIDTH,
        blocks: Sequence[int] = BLOCKS,
        global_pool: bool = False,
    ) -> None:
        super().__init__()
        self.global_pool, self.image_size = global_pool, image_size
        places = 1 if global_pool else (last_side(image_size) // TOP) ** 2
        if places < 1:
            msg = (
                f"model.image_size={image_size} leaves {last_side(image_size)} x "
                f"{last_side(image_size)} places at the last stage and the released top averages "
                f"{TOP} x {TOP}; use 197 pixels or more, or model.global_pool=true"
            )
            raise ConfigError(msg)
        self.stem = Stem(width)
        self.stages = nn.ModuleList()
        self.channels, self.strides = [], list(STRIDES)
        wide = width
        for index, (count, stride) in enumerate(zip(blocks, STRIDES, strict=True)):
            inner = width * 2**index
            self.channels.append(wide)
            self.stages.append(Stage(wide, inner, count, stride))
            wide = EXPANSION * inner
        self.classifier = nn.Linear(places * wide, classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def first(self, image: Tensor) -> Tensor:
        """The stem's output, which the first head acts on, of images (B, 3, H, W) in [0, 1]."""
        made: Tensor = self.stem(image)
        return made

    def after(self, scale: int, x: Tensor, thinned: bool = False) -> Tensor:
        """The stage that follows scale 0 to 3; for `thinned` see `Bottleneck`."""
        made: Tensor = self.stages[scale](x, thinned)
        return made

    @property
    def last(self) -> nn.Module:
        """The module whose output `classify` takes."""
        return self.stages[-1]

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the last stage's map (B, C, h, w).

        Raises:
            ValueError: The map is not of the size that the released top was built for.
        """
        if self.global_pool:
            made: Tensor = self.classifier(x.mean((2, 3)))
            return made
        pooled = functional.avg_pool2d(x, TOP) if min(x.shape[2:]) >= TOP else x[:, :, :0, :0]
        flat = pooled.permute(0, 2, 3, 1).flatten(1)  # places before channels, as TensorFlow does
        if flat.shape[1] != self.classifier.in_features:
            msg = (
                f"this top was built for images of {self.image_size} pixels a side; resize to "
                "that, or build the model with global_pool"
            )
            raise ValueError(msg)
        made = self.classifier(flat)
        return made
