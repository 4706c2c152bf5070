"""What brings both branches together: local refinement, encoding, fusion, transmission.

FusionReID's names and ours: Local Refinement Unit (`LocalRefinement`), Shared Encoding Unit
(`EncodingUnit`), Mutual Fusion Unit (`FusionUnit`), Heterogenous Transmission Module
(`TransmissionLayer`, stacked in `Transmission`). Letters: B images, N tokens, D mixed width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.reid.fusion_reid.vit import Block, Mlp
from zoo.kernels import QueryPool
from zoo.kernels.products import linear

HEADS = 12
"""Attention heads of encoding and fusion units."""
SHARED_ENCODING = (0, 3)
SHARED_FUSION = (2, 3)
"""Sharing patterns in which both branches have one encoding unit, or one fusion unit."""


class LocalRefinement(nn.Module):
    """Depthwise and pointwise convolution, each with batch norm and a PReLU of one parameter.

    A 1 x 1 depthwise convolution, as released, is a factor and a shift for each channel and is
    computed as such; in eval mode both norms go into the convolutions.

    Args:
        into: Input channels C.
        out: Output channels.
        kernel: Of the depthwise convolution, which has no padding.
        depthwise: Whether there is one.
    """

    def __init__(self, into: int, out: int, kernel: int = 1, depthwise: bool = True) -> None:
        super().__init__()
        self.depthwise: nn.Conv2d | None = None
        if depthwise:
            self.depthwise = nn.Conv2d(into, into, kernel, groups=into)
            self.norm1 = nn.BatchNorm2d(into)
            self.act1 = nn.PReLU()
        self.pointwise = nn.Conv2d(into, out, 1)
        self.norm2 = nn.BatchNorm2d(out)
        self.act2 = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, out, H - kernel + 1, W - kernel + 1).

        Raises:
            ValueError: The map is smaller than the kernel.
        """
        if self.depthwise is not None:
            _fits(x, self.depthwise.kernel_size[0])
            weight, shift = self.depthwise.weight, self.depthwise.bias
            assert shift is not None  # it is made with one
            if not self.training:
                weight, shift = _folded(weight, shift, self.norm1)
            x = _by_channel(x, weight, shift)
            x = self.act1(self.norm1(x) if self.training else x)
        weight, shift = self.pointwise.weight, self.pointwise.bias
        assert shift is not None  # likewise
        if not self.training:
            weight, shift = _folded(weight, shift, self.norm2)
        # One product over all cells: a convolution of few images takes a slow way on one thread.
        cells = linear(x.permute(0, 2, 3, 1), weight.flatten(1), shift)
        x = cells.permute(0, 3, 1, 2)
        return cast(Tensor, self.act2(self.norm2(x) if self.training else x))


def _fits(x: Tensor, kernel: int) -> None:
    """Refuses a map that the depthwise kernel does not fit into.

    Raises:
        ValueError: It does not.
    """
    if kernel > min(x.shape[2:]):
        msg = (
            f"a refinement kernel of {kernel} is larger than the map of {x.shape[2]} x "
            f"{x.shape[3]}; take a smaller model.lru_kernel or larger images"
        )
        raise ValueError(msg)


def _by_channel(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """Depthwise convolution of (B, C, H, W) by a (C, 1, k, k) weight."""
    if weight.shape[2:] == (1, 1):
        each = (1, -1, 1, 1)
        return torch.addcmul(shift.to(x.dtype).view(each), x, weight.to(x.dtype).view(each))
    return functional.conv2d(x, weight, shift, groups=weight.shape[0])


def _folded(weight: Tensor, shift: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and shift of a convolution and the resting batch norm behind it as one."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # the norms here keep statistics
    assert variance is not None  # likewise
    factor = norm.weight * (variance + norm.eps).rsqrt()
    return weight * factor.view(-1, 1, 1, 1), (shift - mean) * factor + norm.bias


class EncodingUnit(nn.Module):
    """Transformer blocks and a layer norm.

    Args:
        dim: Token width D.
        heads: Attention heads.
        ratio: Hidden width of the MLP over D.
        bias: Whether queries, keys and values have biases.
        eps: Of the layer norms.
        depth: Blocks.
    """

    def __init__(
        self,
        dim: int,
        heads: int = HEADS,
        ratio: float = 4.0,
        bias: bool = False,
        eps: float = 1e-5,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.blocks = nn.ModuleList(Block(dim, heads, ratio, bias, eps=eps) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to the same shape."""
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Token 0 of the result (B, D) and its attention (B, heads, N); others are not made."""
        *before, last = self.blocks
        for block in before:
            x = block(x)
        token, weights = cast(Block, last).first(x)
        return self.norm(token), weights


class FusionUnit(nn.Module):
    """One query token of a branch reads the tokens of the other one.

    Keys see the tokens through a layer norm of their own, values see them as they are. Neither
    is formed: `zoo.kernels.QueryPool` moves both projections to the single query's side.

    Args:
        dim: Token width D.
        heads: Attention heads.
        ratio: Hidden width of the MLP over D.
        bias: Whether query, keys and values have biases.
        eps: Of the layer norms around; that of the keys is 1e-5 always.
    """

    def __init__(
        self,
        dim: int,
        heads: int = HEADS,
        ratio: float = 4.0,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = QueryPool(dim, heads, bias=bias, key_norm=True)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * ratio))

    def forward(self, query: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The new query token.

        Args:
            query: (B, D).
            tokens: (B, N, D) of the other branch.

        Returns:
            (B, D), and the logits (B, N, heads) with which it read the tokens.
        """
        read = self.attn(self.norm1(query).unsqueeze(1), tokens)
        query = query + read.features.squeeze(1)
        return query + self.mlp(self.norm2(query)), read.logits


class Transmitted(NamedTuple):
    """What transmission gives.

    Attributes:
        cnn: (B, D) query token of the convolutional branch.
        transformer: (B, D) of the transformer.
        cnn_shares: (B, N_c) how much each token of the convolutional branch was read, sum 1.
        transformer_shares: (B, N_t) likewise.
    """

    cnn: Tensor
    transformer: Tensor
    cnn_shares: Tensor | None = None
    transformer_shares: Tensor | None = None


class TransmissionLayer(nn.Module):
    """Encoding of both sequences, then each query token reads the other branch's tokens.

    Args:
        dim: Token width D.
        sharing: Which units both branches have in common: 0 encoding, 1 nothing, 2 fusion,
            3 both. Modes 1 to 3 always share the encoding and never the fusion.
        mode: 0 encode, then fuse; 1 encode only; 2 fuse only; 3 fuse, then encode.
        heads: Attention heads.
    """

    def __init__(self, dim: int, sharing: int = 0, mode: int = 0, heads: int = HEADS) -> None:
        super().__init__()
        self.mode = mode
        one_encoder = sharing in SHARED_ENCODING if mode == 0 else True
        one_fusion = sharing in SHARED_FUSION if mode == 0 else False
        if mode != 2 and one_encoder:
            self.encode = EncodingUnit(dim, heads)
        elif mode != 2:
            self.encode_cnn = EncodingUnit(dim, heads)
            self.encode_transformer = EncodingUnit(dim, heads)
        if mode != 1 and one_fusion:
            self.fuse = FusionUnit(dim, heads)
        elif mode != 1:
            self.fuse_cnn = FusionUnit(dim, heads)
            self.fuse_transformer = FusionUnit(dim, heads)

    def forward(
        self, queries: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], shares: bool = False
    ) -> Transmitted:
        """Updates both query tokens; the tokens themselves are the same for every layer.

        Args:
            queries: (B, D) of the convolutional branch and of the transformer.
            tokens: (B, N_c, D) and (B, N_t, D).
            shares: Whether to tell what was read.
        """
        cnn, transformer = queries
        if self.mode in (0, 2):
            mixed = tokens
            if self.mode == 0:
                (cnn, transformer), mixed = self._encoded(queries, tokens)
            return self._fused((cnn, transformer), mixed, shares)
        told: Transmitted | None = None
        if self.mode == 3:
            told = self._fused(queries, tokens, shares)
            cnn, transformer = told.cnn, told.transformer
        made = [
            self.encode.first(torch.cat([q.unsqueeze(1), t], dim=1))
            for q, t in zip((cnn, transformer), tokens, strict=True)
        ]
        if told is not None:
            return told._replace(cnn=made[0][0], transformer=made[1][0])
        read = [_without_query(weights) if shares else None for _, weights in made]
        return Transmitted(made[0][0], made[1][0], *read)

    def _encoded(
        self, queries: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Both sequences through their encoding units, query and tokens apart again."""
        units = _pair(self, "encode")
        made = [
            unit(torch.cat([query.unsqueeze(1), own], dim=1))
            for unit, query, own in zip(units, queries, tokens, strict=True)
        ]
        return (made[0][:, 0], made[1][:, 0]), (made[0][:, 1:], made[1][:, 1:])

    def _fused(
        self, queries: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], shares: bool
    ) -> Transmitted:
        """Each query token reads the tokens of the other branch."""
        units = _pair(self, "fuse")
        cnn, of_transformer = units[0](queries[0], tokens[1])
        transformer, of_cnn = units[1](queries[1], tokens[0])
        if not shares:
            return Transmitted(cnn, transformer)
        read = [logits.softmax(1).mean(2) for logits in (of_cnn, of_transformer)]
        return Transmitted(cnn, transformer, *read)


def _pair(layer: TransmissionLayer, kind: str) -> tuple[nn.Module, nn.Module]:
    """The units of both branches, which may be one."""
    if hasattr(layer, kind):
        one = layer.get_submodule(kind)
        return one, one
    return layer.get_submodule(f"{kind}_cnn"), layer.get_submodule(f"{kind}_transformer")


def _without_query(weights: Tensor) -> Tensor:
    """Attention (B, heads, 1 + N) of token 0 as shares (B, N) of the others."""
    shares = weights.mean(1)[:, 1:]
    return shares / shares.sum(1, keepdim=True)


class Transmission(nn.Module):
    """Layers that pass the query tokens on; every layer reads the same refined tokens.

    Args:
        dim: Token width D.
        depth: Layers.
        sharing: See `TransmissionLayer`.
        mode: Likewise.
        heads: Attention heads.
    """

    def __init__(
        self, dim: int, depth: int, sharing: int = 0, mode: int = 0, heads: int = HEADS
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransmissionLayer(dim, sharing, mode, heads) for _ in range(depth)
        )

    def forward(
        self, queries: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], shares: bool = False
    ) -> Transmitted:
        """The query tokens after the last layer, and what was read in it if asked for."""
        made = Transmitted(*queries)
        for layer in self.layers:
            made = layer((made.cnn, made.transformer), tokens, shares)
        return made
