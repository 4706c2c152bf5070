"""Layers of HER-Seg's encoder and neck: normalisation of maps, inverted residual, MLP.

Names of parameters follow the official code (xq141839/HER-Seg, Apache-2.0), which takes the
inverted residual from TinyViT. What a layer keeps for the gradient is decided in `recompute.py`.

Letters: B images, C channels, h x w cells, N = h w tokens row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.her_seg.recompute import (
    GELU,
    act_linear,
    convolve,
    norm_add_gelu,
    norm_gelu_conv,
    norm_linears,
)


def as_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, C) as maps (B, C, h, w), channels last in memory: a view."""
    return torch.unflatten(tokens, 1, grid).permute(0, 3, 1, 2)


def as_tokens(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) as tokens (B, N, C); a view if channels lie last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


class LayerNorm2d(nn.Module):
    """Normalises over the channels of each pixel, with biased variance (Segment Anything).

    Args:
        channels: C.
        eps: Added to the variance under the root.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def rows(self, x: Tensor) -> Tensor:
        """The same for tokens (..., C)."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, h, w); fastest where channels lie last in memory."""
        return self.rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: leaves a branch out for some samples, and scales what stays.

    Args:
        rate: Probability of leaving out.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate:.4g}"

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """X plus the branch, which each sample keeps or leaves out."""
        if self.rate == 0 or not self.training:
            return x + branch
        kept = 1 - self.rate
        mask = branch.new_empty(branch.shape[0], *[1] * (branch.dim() - 1)).bernoulli_(kept)
        return torch.addcmul(x, branch, mask.div_(kept))


class ConvNorm(nn.Module):
    """A convolution without bias `c` and its batch normalisation `bn`, applied one by one.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        size: Side of the kernel.
        groups: Of the convolution.
        gamma: First weight of the normalisation.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int = 1, groups: int = 1, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.bn.weight, gamma)


class MBConv(nn.Module):
    """Inverted residual with the activation after the sum.

    1 x 1 to the hidden width, depthwise 3 x 3, 1 x 1 back, each with batch normalisation; GELU
    after the first, the second and the sum.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out; the same, because there is a shortcut.
        expansion: Hidden width over `inputs`.
        drop_path: Probability of leaving the branch out.

    Raises:
        ValueError: The shortcut has another width than the result.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: float = 2.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if inputs != outputs:
            msg = f"a residual block keeps its width, got {inputs} and {outputs} channels"
            raise ValueError(msg)
        hidden = int(inputs * expansion)
        self.conv1 = ConvNorm(inputs, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs, gamma=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to the same."""
        y = convolve(x, self.conv1.c)
        y = norm_gelu_conv(y, self.conv1.bn, self.conv2.c)
        y = norm_gelu_conv(y, self.conv2.bn, self.conv3.c)
        if self.drop_path.rate and self.training:
            return functional.gelu(self.drop_path.add(x, self.conv3.bn(y)))
        return norm_add_gelu(y, self.conv3.bn, x)


class Mlp(nn.Module):
    """Two layers with an exact GELU between.

    Args:
        dim: C.
        hidden: Width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def after(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """The MLP of norm(x): (..., C) to the same."""
        (hidden,) = norm_linears(x, norm, [self.fc1])
        return act_linear(hidden, self.fc2, GELU)
