"""Dual mutual learning: position and channel fusion of colour and depth maps of one stage.

Source: arXiv 2501.01648, section III-B and III-C, equations 1 to 23; where the paper leaves a
choice, the options here have our reading as default. Letters: B images, K encoder channels,
C fusion channels, N = H W positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.saliency.rgbd_sod.blocks import ConvBnRelu, ConvPair, initialise, scaled_conv
from zoo.kernels import ChannelAttention, MutualAttention

Gate = Literal["linear", "sigmoid", "bn_relu"]
Fusion = Literal["parallel", "position", "channel", "series", "concat"]


class SpatialGate(nn.Module):
    """One gate a position from the largest and the mean channel, equations 4 and 5.

    Args:
        channels: C.
        activation: `linear`: a plain biased convolution, as in the authors' released spatial
            attention; `sigmoid`: CBAM; `bn_relu`: Table I taken literally.
    """

    def __init__(self, channels: int, activation: Gate = "linear") -> None:
        super().__init__()
        self.activation = activation
        normed = activation == "bn_relu"
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=not normed)
        self.bn = nn.BatchNorm2d(1) if normed else None
        self.proj = ConvBnRelu(channels, channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) of maps (B, C, H, W)."""
        seen = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        gate: Tensor = self.conv(seen)
        if self.bn is not None:
            return functional.relu(self.bn(gate))
        return gate.sigmoid() if self.activation == "sigmoid" else gate

    def forward(self, x: Tensor) -> Tensor:
        """Conv_1(x gate + x) of maps (B, C, H, W)."""
        # The one goes onto the gate, which has a single channel.
        made: Tensor = self.proj(x * (1 + self.gate(x)))
        return made


class ChannelGate(nn.Module):
    """One weight a channel of both maps from their pooled values, equations 13 and 14.

    Args:
        channels: C of each of the two maps.
        reduction: The shared MLP's hidden width is 2 C / reduction, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, 2 * channels // reduction)
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, 2 * channels)
        self.proj = ConvBnRelu(2 * channels, channels, 1)

    def weights(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """(B, 2 C), without activation, of two maps (B, C, H, W)."""
        largest = torch.cat([rgb.amax(dim=(2, 3)), depth.amax(dim=(2, 3))], dim=1)
        mean = torch.cat([rgb.mean(dim=(2, 3)), depth.mean(dim=(2, 3))], dim=1)
        # The second layer is linear: MLP(a) + MLP(b) = fc2(relu a + relu b) + its bias once more.
        hidden = functional.relu(self.fc1(largest)) + functional.relu(self.fc1(mean))
        made: Tensor = self.fc2(hidden)
        return made + self.fc2.bias

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Conv_1 of both maps, channels weighted, (B, C, H, W) each and together."""
        weight = self.proj.conv.weight
        first, second = scaled_conv(weight, (rgb, depth), self.weights(rgb, depth))
        return self.proj.after(first + second)


class DualMutualLearning(nn.Module):
    """Fuses colour and depth of one stage to one map.

    Args:
        encoder_channels: K of both inputs.
        channels: C of the result.
        fusion: `parallel`: both fusions, added; `position` or `channel`: one of them; `series`:
            the position fusion's result is added to both maps before the channel fusion;
            `concat`: the paper's baseline, a plain concatenation.
        spatial_gate: See `SpatialGate`.
        reduction: See `ChannelGate`.
        sqrt_eps: Inside the signed square root.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) then.
    """

    def __init__(
        self,
        encoder_channels: int,
        channels: int,
        *,
        fusion: Fusion = "parallel",
        spatial_gate: Gate = "linear",
        reduction: int = 16,
        sqrt_eps: float = 1e-6,
        l2_axis: Literal["map", "position"] = "map",
        l2_scale: bool = True,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.reduce_rgb = ConvPair(encoder_channels, channels)
        self.reduce_depth = ConvPair(encoder_channels, channels)
        if fusion in ("parallel", "position", "series"):
            self.spatial = SpatialGate(channels, spatial_gate)
            self.position_attention = MutualAttention(
                "signed_sqrt", eps=sqrt_eps, l2_axis=l2_axis, l2_scale=l2_scale
            )
            self.out_position = ConvPair(3 * channels, channels)
        if fusion in ("parallel", "channel", "series"):
            self.channel = ChannelGate(channels, reduction)
            self.channel_attention = ChannelAttention(
                "signed_sqrt", eps=sqrt_eps, l2_axis=l2_axis, l2_scale=l2_scale
            )
            self.out_channel = ConvPair(3 * channels, channels)
        if fusion == "concat":
            self.merge = ConvPair(2 * channels, channels)
        initialise(self)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Maps two (B, K, H, W) to (B, C, H, W)."""
        rgb, depth = self.reduce_rgb(rgb), self.reduce_depth(depth)
        if self.fusion == "concat":
            merged: Tensor = self.merge(torch.cat([rgb, depth], dim=1))
            return merged
        if self.fusion == "channel":
            return self.by_channel(rgb, depth)
        position = self.by_position(rgb, depth)
        if self.fusion == "position":
            return position
        if self.fusion == "series":
            return self.by_channel(rgb + position, depth + position)
        return position + self.by_channel(rgb, depth)

    def by_position(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Position mutual fusion of reduced maps (B, C, H, W), equations 3 to 11."""
        attended = self.position_attention(rgb, depth, self.spatial(rgb + depth))
        made: Tensor = self.out_position(torch.cat(attended, dim=1))
        return made

    def by_channel(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Channel mutual fusion of reduced maps (B, C, H, W), equations 12 to 20."""
        attended = self.channel_attention(rgb, depth, self.channel(rgb, depth))
        made: Tensor = self.out_channel(torch.cat(attended, dim=1))
        return made
