"""The vision transformer of both networks: pre-norm blocks over square patches.

Source: Dosovitskiy et al., "An image is worth 16x16 words" (ICLR 2021), in the layout of the
package vit-pytorch, which the released code of DFYP follows. Attention goes through PyTorch's
scaled dot product; on a CPU that has no dropout of its own, so in training it is written out. Where
the head reads the class token alone, the last layer computes nothing else.

Letters: B pictures, C channels, H x W pixels, N tokens, D token width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield.chance import dropout, fuses


def attend(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """softmax(q k^T / sqrt(size)) v, with dropout of the weights.

    Args:
        q: (B, heads, M, size).
        k: (B, heads, N, size).
        v: (B, heads, N, size).
        p: Share of the weights that is dropped, in [0, 1).
    """
    if p == 0 or q.device.type != "cpu" or not fuses(q):
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1)
    return dropout(weights, p, training=True) @ v


class Attention(nn.Module):
    """Self-attention with its norm in front.

    Args:
        dim: D.
        heads: Number of heads.
        head_size: Width of each; heads * head_size need not be D.
        p: Dropout of the weights and of the result.
    """

    def __init__(self, dim: int, heads: int, head_size: int, p: float) -> None:
        super().__init__()
        self.heads, self.p, self.inner = heads, p, heads * head_size
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * self.inner, bias=False)
        single = heads == 1 and head_size == dim
        self.out: nn.Linear | None = None if single else nn.Linear(self.inner, dim)

    def _by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        """What is added to x.

        Args:
            x: (B, N, D).
            first_only: Only for the first token.

        Returns:
            (B, N, D) or (B, 1, D).
        """
        p = self.p if self.training else 0.0
        x = self.norm(x)
        if first_only:
            q = functional.linear(x[:, :1], self.qkv.weight[: self.inner])
            k, v = functional.linear(x, self.qkv.weight[self.inner :]).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = attend(self._by_head(q), self._by_head(k), self._by_head(v), p)
        joined = mixed.transpose(1, 2).flatten(2)
        return joined if self.out is None else dropout(self.out(joined), p, self.training)


class FeedForward(nn.Module):
    """Two linear layers with the exact GELU between, their norm in front.

    Args:
        dim: D.
        hidden: Width between the layers.
        p: Dropout after each layer.
    """

    def __init__(self, dim: int, hidden: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to x (B, N, D)."""
        hidden = functional.gelu(self.up(self.norm(x)))
        hidden = dropout(hidden, self.p, self.training)
        return dropout(self.down(hidden), self.p, self.training)


class Block(nn.Module):
    """Attention, then feed-forward, each added to what came in.

    Args:
        dim: D.
        heads: Number of heads.
        head_size: Width of each.
        mlp: Hidden width.
        p: Dropout.
    """

    def __init__(self, dim: int, heads: int, head_size: int, mlp: int, p: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, head_size, p)
        self.mlp = FeedForward(dim, mlp, p)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        """Tokens (B, N, D), or the first alone (B, 1, D)."""
        x = (x[:, :1] if first_only else x) + self.attention(x, first_only)
        made: Tensor = x + self.mlp(x)
        return made


class PatchEmbedding(nn.Module):
    """Patches to tokens: norm, linear layer, norm.

    Args:
        channels: C.
        patch: Side of a patch.
        dim: D.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm_in = nn.LayerNorm(channels * patch * patch)
        self.linear = nn.Linear(channels * patch * patch, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of x (B, C, H, W), row by row; in a patch the channel runs fastest.

        Raises:
            ValueError: H or W is no multiple of the patch.
        """
        p, (high, wide) = self.patch, x.shape[2:]
        if high % p or wide % p:
            msg = f"{high} x {wide} cannot be cut into patches of {p} x {p}"
            raise ValueError(msg)
        cut = torch.unflatten(torch.unflatten(x, 3, (wide // p, p)), 2, (high // p, p))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        made: Tensor = self.norm_out(self.linear(self.norm_in(patches)))
        return made


class ViT(nn.Module):
    """Tokens of patches and a class token through pre-norm blocks.

    Args:
        channels: C.
        patches: Largest number of patches a picture has; pictures with fewer use the first
            positions.
        patch: Side of a patch.
        dim: D.
        depth: Number of blocks.
        heads: Heads of each.
        head_size: Width of a head.
        mlp: Hidden width of the feed-forward layers.
        outputs: Numbers predicted.
        p: Dropout within blocks.
        embedding_p: Dropout after the embedding.
        pool: The head reads the class token (`cls`) or the mean of all tokens (`mean`).
    """

    def __init__(
        self,
        channels: int,
        patches: int,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        head_size: int,
        mlp: int,
        outputs: int,
        p: float,
        embedding_p: float = 0.0,
        pool: Literal["cls", "mean"] = "cls",
    ) -> None:
        super().__init__()
        self.pool, self.embedding_p = pool, embedding_p
        self.embedding = PatchEmbedding(channels, patch, dim)
        self.positions = nn.Parameter(torch.randn(1, patches + 1, dim))
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, head_size, mlp, p) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, (B, D), of x (B, C, H, W).

        Raises:
            ValueError: There are more patches than positions, or sides do not fit the patch.
        """
        x = self.embedding(x)
        count = x.shape[1] + 1
        if count > self.positions.shape[1]:
            msg = f"{count - 1} patches, but positions for {self.positions.shape[1] - 1}"
            raise ValueError(msg)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = dropout(x + self.positions[:, :count], self.embedding_p, self.training)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block(x, first_only=number == last and self.pool == "cls")
        x = self.norm(x)
        return x.mean(dim=1) if self.pool == "mean" else x[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Predictions (B, outputs) of x (B, C, H, W)."""
        made: Tensor = self.head(self.features(x))
        return made
