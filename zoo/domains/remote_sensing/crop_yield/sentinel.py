"""DFYP for Sentinel-2: all pictures of a county's season to production and yield.

Source: DFYP (arXiv 2507.05849) and its released code. Pictures are averaged over, so neither their
order nor the places of the grid cells matter. Counties have from a few to several hundred pictures;
they pass both branches a chunk at a time, and with `recompute` a chunk's transformer and first
layers are computed again in the backward pass instead of being stored. Dropout is then drawn again
from the same state, so that the gradients are those of one pass.

Letters: B counties, P pictures of all of them, H x W pixels.
"""

from __future__ import annotations

import itertools
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.domains.remote_sensing.crop_yield.chance import dropout
from zoo.domains.remote_sensing.crop_yield.operators import (
    Operator,
    OperatorGate,
    ResolutionAwareAttention,
)
from zoo.domains.remote_sensing.crop_yield.pooling import conv_relu_mean, conv_relu_pool
from zoo.domains.remote_sensing.crop_yield.vit import ViT

COLOURS = 3
OUTPUTS = 2
WIDTHS = (32, 64, 128, 128)
FUSION = (128, 64)
CONV_DROPOUT = 0.25
"""Of the second to fourth convolution, whatever the rest of the network has."""


class SentinelConvNet(nn.Module):
    """Edge gate and four convolutions a picture, then three linear layers a county.

    Args:
        operator: `sobel` or `scharr`.
        p: Dropout of the linear layers; 0 switches that of the convolutions off as well.
    """

    def __init__(self, operator: Operator, p: float) -> None:
        super().__init__()
        self.p, self.conv_p = p, CONV_DROPOUT if p else 0.0
        self.gate = OperatorGate(operator)
        into = (COLOURS, *WIDTHS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(into, WIDTHS, strict=True)
        )
        widths = (WIDTHS[-1], *FUSION, OUTPUTS)
        self.fusion = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(widths))
        _kaiming(self)

    def _conv(self, number: int) -> nn.Conv2d:
        return cast("nn.Conv2d", self.convs[number])

    def first(self, z: Tensor) -> Tensor:
        """Gate and first convolution: (P, 32, H // 2, W // 2) of z (P, 3, H, W)."""
        z = self.gate(z)
        if z.device.type == "cpu":
            z = z.contiguous(memory_format=torch.channels_last)
        return conv_relu_pool(z, self._conv(0), 0.0, self.training)

    def rest(self, x: Tensor) -> Tensor:
        """The other convolutions and the mean over the plane: (P, 128)."""
        for number in (1, 2):
            x = conv_relu_pool(x, self._conv(number), self.conv_p, self.training)
        return conv_relu_mean(x, self._conv(3), self.conv_p, self.training)

    def features(self, z: Tensor) -> Tensor:
        """One vector a picture, (P, 128), of z (P, 3, H, W)."""
        return self.rest(self.first(z))

    def head(self, mean: Tensor) -> Tensor:
        """Predictions (B, 2) of the counties' mean vectors (B, 128)."""
        x = dropout(mean, self.p, self.training)
        *hidden, last = self.fusion
        for layer in hidden:
            x = dropout(functional.relu(layer(x)), self.p, self.training)
        made: Tensor = last(x)
        return made


class SentinelDFYPNet(nn.Module):
    """Channel attention, then convolutions with an edge gate and a ViT, and a learnt sum.

    Args:
        cnn: The convolutional branch.
        vit: The transformer branch.
        chunk: Pictures a pass; a matter of memory, not of results.
        recompute: Compute the transformer and the first layers of a chunk again in the backward
            pass: less memory, a little more time.
        rca_hidden: Hidden units of the channel attention.
        rca_pool: Its pooling.
        target: Means and deviations of both training targets, which the sum of the branches is
            scaled back by; None: 0 and 1, as released.
    """

    target: Tensor

    def __init__(
        self,
        cnn: SentinelConvNet,
        vit: ViT,
        *,
        chunk: int = 8,
        recompute: bool = True,
        rca_hidden: int = 1,
        rca_pool: Literal["max", "mean"] = "mean",
        target: tuple[tuple[float, float], tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.chunk, self.recompute = chunk, recompute
        self.register_buffer("target", torch.tensor(target or ((0.0, 0.0), (1.0, 1.0))))
        self.rca = ResolutionAwareAttention(COLOURS, rca_hidden, rca_pool)
        self.cnn, self.vit = cnn, vit
        _kaiming(self.rca)
        _kaiming(self.vit)
        self.cnn_share = nn.Parameter(torch.full((OUTPUTS,), 0.5))
        self.vit_share = nn.Parameter(torch.full((OUTPUTS,), 0.5))

    def band_attention(self, pictures: Tensor) -> Tensor:
        """Factor of every colour, (P, 3), in (0, 1)."""
        return self.rca.factors(pictures)

    def attention_alive(self, pictures: Tensor) -> Tensor:
        """Share of the attention's hidden units above 0, a scalar."""
        return self.rca.alive(pictures)

    @property
    def operator(self) -> str:
        """Name of the operator the gate applies."""
        return self.cnn.gate.operator

    def _first(self, pictures: Tensor) -> Tensor:
        return self.cnn.first(self.rca(pictures))

    def _tokens(self, pictures: Tensor) -> Tensor:
        return self.vit.features(self.rca(pictures))

    def picture_features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches' vectors, (P, 128) and (P, D), of pictures (P, 3, H, W)."""
        if torch.compiler.is_compiling():
            z = self.rca(pictures)
            return self.cnn.features(z), self.vit.features(z)
        again = self.recompute and torch.is_grad_enabled()
        maps, tokens = [], []
        for part in torch.split(pictures, self.chunk):
            # Either way chance is drawn in the same order.
            if again:
                begun = checkpoint(self._first, part, use_reentrant=False)
                tokens.append(checkpoint(self._tokens, part, use_reentrant=False))
            else:
                z = self.rca(part)
                begun = self.cnn.first(z)
                tokens.append(self.vit.features(z))
            maps.append(self.cnn.rest(begun))
        return torch.cat(maps), torch.cat(tokens)

    def branches(self, pictures: Tensor, cu_pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, 2) of convolutions and transformer before they are summed."""
        maps, tokens = self.picture_features(pictures)
        counts = cu_pictures.diff()
        c = self.cnn.head(county_mean(maps, counts))
        return c, self.vit.head(county_mean(tokens, counts))

    def forward(self, pictures: Tensor, cu_pictures: Tensor) -> Tensor:
        """Production and yield.

        Args:
            pictures: (P, 3, H, W), normalised; the first county's, then the second's, and so on.
            cu_pictures: (B + 1,) whole numbers: county b has pictures cu[b] to cu[b + 1] - 1.

        Returns:
            (B, 2) natural logs of production and yield.

        Raises:
            ValueError: Shapes or counts do not fit.
        """
        _check(pictures, cu_pictures)
        c, v = self.branches(pictures, cu_pictures)
        return self.target[0] + self.target[1] * (self.cnn_share * c + self.vit_share * v)


class OneCounty(nn.Module):
    """The network on one county, whose pictures are all there is to say of it.

    Args:
        network: For any number of counties.
    """

    def __init__(self, network: SentinelDFYPNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """Natural logs (1, 2) of production and yield of pictures (P, 3, H, W), normalised."""
        count = torch.full((1,), pictures.shape[0], dtype=torch.int64, device=pictures.device)
        made: Tensor = self.network(pictures, torch.cat([torch.zeros_like(count), count]))
        return made


def county_mean(x: Tensor, counts: Tensor) -> Tensor:
    """Means over each county's pictures.

    Args:
        x: (P, F), the pictures of county after county.
        counts: (B,) pictures of each.

    Returns:
        (B, F).
    """
    if torch.compiler.is_compiling():  # ONNX has no repetition that is told its size
        places = torch.arange(x.shape[0], device=x.device)
        owner = (places[:, None] >= counts.cumsum(0)).sum(1)
    else:
        owner = torch.repeat_interleave(counts, output_size=x.shape[0])
    total = x.new_zeros(counts.shape[0], x.shape[1]).index_add(0, owner, x)
    return total / counts[:, None].to(x.dtype)


def _check(pictures: Tensor, cu_pictures: Tensor) -> None:
    if pictures.dim() != 4 or pictures.shape[1] != COLOURS or cu_pictures.dim() != 1:
        msg = (
            f"pictures (P, 3, H, W) and boundaries (B + 1,) expected, got "
            f"{tuple(pictures.shape)} and {tuple(cu_pictures.shape)}"
        )
        raise ValueError(msg)
    if torch.compiler.is_compiling():
        return
    bounds = cu_pictures.tolist()
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    if not rising or bounds[0] != 0 or bounds[-1] != len(pictures):
        msg = f"boundaries rise from 0 to {len(pictures)} (a picture a county at least): {bounds}"
        raise ValueError(msg)


def _kaiming(part: nn.Module) -> None:
    """Uniform weights by the inputs' number and no bias in every layer, as released."""
    for layer in part.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
