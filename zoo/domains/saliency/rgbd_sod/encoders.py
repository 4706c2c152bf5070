"""The two encoders: ResNets under torchvision's names, or a small plain one.

Paper, section III-A: two ResNet-50 without their classifier, one for colour and one for depth
(repeated to three channels), each giving maps at strides 4, 8, 16 and 32.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.domains.saliency.rgbd_sod.blocks import ConvBnRelu, initialise

Backbone = Literal["resnet50", "resnet18", "small"]
CHANNELS = {"resnet50": (256, 512, 1024, 2048), "resnet18": (64, 128, 256, 512)}
"""Channels of a ResNet's four maps."""


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without pooling and classifier, under torchvision's key names.

    Args:
        name: `resnet50` (v1.5, stride on the 3 x 3) or `resnet18`.
    """

    def __init__(self, name: Literal["resnet50", "resnet18"] = "resnet50") -> None:
        super().__init__()
        from torchvision.models import resnet18, resnet50

        whole = (resnet50 if name == "resnet50" else resnet18)(weights=None)
        self.channels = CHANNELS[name]
        self.conv1, self.bn1, self.relu, self.maxpool = (
            whole.conv1,
            whole.bn1,
            whole.relu,
            whole.maxpool,
        )
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3, self.layer4 = whole.layer3, whole.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, 3, H, W) to four maps of `channels` at strides 4, 8, 16 and 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        made = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            made.append(x)
        return made


class SmallEncoder(nn.Module):
    """Four plain stages of two 3 x 3 blocks, for people without a GPU; ours, in no paper.

    The first stage halves twice, each later one once, and doubles the channels.

    Args:
        width: Channels of the first stage.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**i for i in range(4))
        stages, into = [], 3
        for i, out in enumerate(self.channels):
            second = ConvBnRelu(out, out, 3, stride=2 if i == 0 else 1)
            stages.append(nn.Sequential(ConvBnRelu(into, out, 3, stride=2), second))
            into = out
        self.stages = nn.ModuleList(stages)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, 3, H, W) to four maps of `channels` at strides 4, 8, 16 and 32."""
        made = []
        for stage in self.stages:
            x = stage(x)
            made.append(x)
        return made


def build_encoder(backbone: Backbone, width: int) -> ResNetEncoder | SmallEncoder:
    """One encoder with random weights.

    Args:
        backbone: Which one.
        width: Channels of the small one's first stage.
    """
    return SmallEncoder(width) if backbone == "small" else ResNetEncoder(backbone)
