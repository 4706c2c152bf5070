"""DFYP for MODIS histograms: nine bands, 32 eight-day steps, 32 bins.

Source: DFYP (arXiv 2507.05849) and its released code. The plane is not a map: rows are time,
columns are bins of a histogram.

Letters: B county-years, T steps, K bins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield.chance import relu_dropout
from zoo.domains.remote_sensing.crop_yield.operators import (
    OperatorRouter,
    ResolutionAwareAttention,
)
from zoo.domains.remote_sensing.crop_yield.vit import ViT

BANDS = 9
BINS = 32
STRIDES = (1, 2, 1, 2, 1, 2)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `same` padding: ceil(size / stride) results.

    Where the padding of an axis is odd, the additional zeros are below and right.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', ceil(H / s), ceil(W / s)) of x (B, C, H, W)."""
        sides = zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in sides]
        rows, columns = total
        half = (rows // 2, columns // 2)
        if rows % 2 or columns % 2:
            around = (half[1], columns - half[1], half[0], rows - half[0])
            x, half = functional.pad(x, around), (0, 0)
        return functional.conv2d(x, self.weight, self.bias, self.stride, half)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU, dropout.

    Args:
        into: Channels that come in.
        out: Channels that go out.
        stride: Of the convolution.
        p: Dropout.
        kernel: Side of the kernel.
    """

    def __init__(self, into: int, out: int, stride: int, p: float, kernel: int = 3) -> None:
        super().__init__()
        self.p = p
        self.conv = SameConv2d(into, out, kernel, stride)
        self.norm = nn.BatchNorm2d(out)
        _kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, ceil(H / stride), ceil(W / stride)) of x (B, into, H, W)."""
        return relu_dropout(self.norm(self.conv(x)), self.p, self.training)


class ModisConvNet(nn.Module):
    """Operator router, convolutions, and dense layers without anything between them.

    Dense layers in a row are one affine map. Unless the last hidden layer is asked for, their
    product is taken first, in training as well: one row instead of a matrix a sample, and
    autograd's gradients of both factors are those of the layers.

    Args:
        router: Chooses and blends edges.
        steps: T.
        channels: Of the convolutions; every second one halves the plane.
        dense: Widths of the hidden dense layers.
        p: Dropout of the convolutions.
        bands: Bands that come in.
        bins: K.
        strides: Of the convolutions.
    """

    def __init__(
        self,
        router: OperatorRouter,
        steps: int,
        channels: Sequence[int],
        dense: Sequence[int],
        p: float,
        bands: int = BANDS,
        bins: int = BINS,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__()
        self.router = router
        into = (bands, *channels[:-1])
        self.blocks = nn.ModuleList(
            ConvBlock(i, o, s, p) for i, o, s in zip(into, channels, strides, strict=True)
        )
        high, wide = steps, bins
        for stride in strides:
            high, wide = -(-high // stride), -(-wide // stride)
        widths = [channels[-1] * high * wide, *dense, 1]
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        for layer in self.dense:
            _kaiming(layer)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The dense layers as one: weight (1, inputs) and bias (1)."""
        first, *others = self.dense
        weight, bias = _parameters(first)
        if others:
            (top, total), *below = [_parameters(layer) for layer in reversed(others)]
            # From the last layer down, so that every product is a row times a matrix.
            for own, shift in [*below, (weight, bias)]:
                total = total + top @ shift
                top = top @ own
            weight, bias = top, total
        return weight, bias

    def maps(self, x: Tensor, years: Tensor | None) -> Tensor:
        """The last convolution's result, flattened: (B, inputs of the dense layers)."""
        x = self.router(x, years)
        if x.device.type == "cpu":
            # oneDNN and batch statistics are quicker with channels last.
            x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)

    def last_dense(self, x: Tensor, years: Tensor | None = None) -> Tensor:
        """What the last dense layer reads, (B, its inputs): for a Gaussian process, say."""
        x = self.maps(x, years)
        for layer in list(self.dense)[:-1]:
            x = layer(x)
        return x

    def forward(self, x: Tensor, years: Tensor | None = None) -> Tensor:
        """Predictions (B, 1) of x (B, bands, T, K) and years (B,)."""
        return functional.linear(self.maps(x, years), *self.folded())


class DFYPNet(nn.Module):
    """Channel attention, then convolutions with edge operators and a ViT, and a learnt sum.

    Args:
        cnn: The convolutional branch.
        vit: The transformer branch.
        bands: Bands that come in.
        rca_hidden: Hidden units of the channel attention.
        rca_pool: Its pooling.
        band_mean: (bands,) training means that are taken off; None: zeros.
        target: Mean and deviation of the training targets, which the sum of the branches is
            scaled back by; (0, 1) as released.
    """

    band_mean: Tensor
    target: Tensor

    def __init__(
        self,
        cnn: ModisConvNet,
        vit: ViT,
        *,
        bands: int = BANDS,
        rca_hidden: int = 1,
        rca_pool: Literal["max", "mean"] = "max",
        band_mean: Sequence[float] | None = None,
        target: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        mean = torch.zeros(bands) if band_mean is None else torch.tensor(band_mean)
        self.register_buffer("band_mean", mean.float())
        self.register_buffer("target", torch.tensor(target))
        self.rca = ResolutionAwareAttention(bands, rca_hidden, rca_pool)
        self.cnn, self.vit = cnn, vit
        self.cnn_share = nn.Parameter(torch.tensor(0.5))
        self.vit_share = nn.Parameter(torch.tensor(0.5))

    def centred(self, x: Tensor) -> Tensor:
        """Histograms (B, bands, T, K) without the training means."""
        return x - self.band_mean.to(x.dtype).view(-1, 1, 1)

    def band_attention(self, x: Tensor) -> Tensor:
        """Factor of every band, (B, bands), in (0, 1), of histograms as stored."""
        return self.rca.factors(self.centred(x))

    def attention_alive(self, x: Tensor) -> Tensor:
        """Share of the attention's hidden units above 0, a scalar, of histograms as stored."""
        return self.rca.alive(self.centred(x))

    def operators_of(self, years: Sequence[int]) -> list[str]:
        """Name of the operator the router takes for each year."""
        return list(self.cnn.router.operators_of(years))

    def branches(self, x: Tensor, years: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predictions (B, 1) of convolutions and transformer before they are summed."""
        z = self.rca(self.centred(x))
        return self.cnn(z, years), self.vit(z)

    def forward(self, x: Tensor, years: Tensor | None = None) -> Tensor:
        """Yields.

        Args:
            x: (B, bands, T, K) histogram shares in [0, 1] as stored.
            years: (B,) harvest years, which choose operators; None: the default operator.

        Returns:
            (B,) bushels/acre.

        Raises:
            ValueError: x has another shape.
        """
        bands = self.band_mean.shape[0]
        if x.dim() != 4 or x.shape[1] != bands:
            msg = f"histograms (B, {bands}, T, K) expected, got {tuple(x.shape)}"
            raise ValueError(msg)
        c, v = self.branches(x, years)
        both = self.cnn_share * c + self.vit_share * v
        return self.target[0] + self.target[1] * both[:, 0]


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        msg = f"{layer} has no weight and bias"
        raise TypeError(msg)
    return weight, bias


def _kaiming(layer: nn.Module) -> None:
    """Uniform weights by the inputs' number, as released; no bias at first."""
    weight, bias = _parameters(layer)
    nn.init.kaiming_uniform_(weight)
    nn.init.zeros_(bias)
