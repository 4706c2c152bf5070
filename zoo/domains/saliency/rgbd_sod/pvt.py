"""PVTv2: stages that keep a map's size (GL-DMNet's transformer embedding), and the pyramid.

Sources: Wang et al., "PVT v2: Improved baselines with pyramid vision transformer" (arXiv
2106.13797) and its released configuration; GL-DMNet, section III-D, for the use as plug-ins.
Letters: B images, E token width, N = H W tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

RATIOS = (8, 4, 2, 1)
"""Spatial reduction of keys and values in the four stages."""
EXPANSIONS = (8, 8, 4, 4)
"""Hidden width of the MLP over the token width in the four stages."""
BLOCK_EPS = 1e-6  # of norm1, norm2 and the stage's norm
EMBED_EPS = 1e-5  # after the spatial reduction and in patch embeddings


def as_tokens(x: Tensor) -> Tensor:
    """(B, N, E) of a map (B, E, H, W)."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, E, H, W), channels last in memory, of tokens (B, N, E); no copy."""
    return tokens.view(tokens.shape[0], *size, -1).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Overlapping embedding: a convolution with bias, then a layer norm.

    With stride 1 it keeps the resolution, which is how GL-DMNet's stages are read; PVTv2 itself
    starts with 7 x 7 at stride 4 and goes on with 3 x 3 at stride 2.

    Args:
        into: Input channels.
        width: Token width E.
        kernel: Odd size of the convolution.
        stride: Of the convolution.
    """

    def __init__(self, into: int, width: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv2d(into, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=EMBED_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, E) of a map (B, into, H, W), and the height and width of their grid."""
        x = self.proj(x)
        return self.norm(as_tokens(x)), (x.shape[2], x.shape[3])


class ReducedAttention(nn.Module):
    """Self-attention with keys and values of a map reduced `ratio` times in each direction.

    The reduction is a convolution with kernel = stride = `ratio`: rows and columns beyond a
    multiple of it make no keys, as in PVTv2. A map smaller than `ratio` is filled up with zeros
    to one cell, so that there is always a key.

    Args:
        width: Token width E.
        heads: Attention heads.
        ratio: Spatial reduction; 1 for none.

    Raises:
        ValueError: The width is no multiple of the heads.
    """

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        if width % heads:
            msg = f"token width {width} should be a multiple of the {heads} heads"
            raise ValueError(msg)
        self.heads, self.ratio = heads, ratio
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if ratio > 1:
            self.sr = nn.Conv2d(width, width, ratio, ratio)
            self.norm = nn.LayerNorm(width, eps=EMBED_EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Attends over tokens (B, N, E) of a grid of `size`; returns the same shape."""
        query = self._heads(self.q(x))
        key, value = self.kv(self.reduced(x, size)).chunk(2, dim=-1)
        made = functional.scaled_dot_product_attention(query, self._heads(key), self._heads(value))
        mixed: Tensor = self.proj(made.transpose(1, 2).flatten(2))
        return mixed

    def reduced(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The tokens that keys and values are made of."""
        if self.ratio == 1:
            return x
        grid = as_map(x, size)
        down, right = (max(0, self.ratio - side) for side in size)
        if down or right:
            grid = functional.pad(grid, (0, right, 0, down))
        made: Tensor = self.norm(as_tokens(self.sr(grid)))
        return made

    def _heads(self, x: Tensor) -> Tensor:
        """(B, heads, N, E / heads): heads are the slow index of E."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class ConvMlp(nn.Module):
    """MLP with a depthwise 3 x 3 convolution in it, which carries the position.

    Args:
        width: Token width E.
        hidden: Hidden width.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps tokens (B, N, E) of a grid of `size` to the same shape."""
        made: Tensor = self.dwconv(as_map(self.fc1(x), size))
        out: Tensor = self.fc2(functional.gelu(as_tokens(made)))
        return out


class PvtBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)).

    Args:
        width: Token width E.
        heads: Attention heads.
        ratio: Spatial reduction of keys and values.
        hidden: Hidden width of the MLP.
        drop_path: Chance that a branch is left out for an image in training.
    """

    def __init__(
        self, width: int, heads: int, ratio: int, hidden: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attn = ReducedAttention(width, heads, ratio)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.mlp = ConvMlp(width, hidden)
        self.drop = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps tokens (B, N, E) of a grid of `size` to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x), size))
        x = x + self.drop(self.mlp(self.norm2(x), size))
        return x


class PvtStage(nn.Module):
    """Patch embedding, blocks and norm of one stage: a map in, a map out.

    Args:
        width: Token width E.
        heads: Attention heads.
        ratio: Spatial reduction of keys and values.
        expansion: Hidden width of the MLPs over E.
        drop_paths: Drop path of each block; their number is the depth.
        patch_embed: None feeds the map's pixels as tokens, which then needs E channels.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ratio: int,
        expansion: int,
        drop_paths: Sequence[float],
        patch_embed: PatchEmbed | None = None,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(
            PvtBlock(width, heads, ratio, expansion * width, rate) for rate in drop_paths
        )
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPS)
        initialise_pvt(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, E, H', W'), of the same size unless the embedding strides."""
        if self.patch_embed is None:
            tokens, size = as_tokens(x), (x.shape[2], x.shape[3])
        else:
            tokens, size = self.patch_embed(x)
        for block in self.blocks:
            tokens = block(tokens, size)
        return as_map(self.norm(tokens), size)


class PvtPyramid(nn.Module):
    """The whole of PVTv2 without its classifier: an image in, four maps out.

    Args:
        widths: Token widths E of the stages.
        heads: Attention heads of the stages.
        depths: Blocks of the stages.
        drop_path: Of the last block; it rises linearly from 0.
        channels: Of the image.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (1, 2, 5, 8),
        depths: Sequence[int] = (3, 4, 6, 3),
        drop_path: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        embeds = [
            PatchEmbed(into, width, 3 if i else 7, 2 if i else 4)
            for i, (into, width) in enumerate(zip((channels, *widths[:-1]), widths, strict=True))
        ]
        self.stages = nn.ModuleList(make_stages(widths, heads, depths, drop_path, embeds))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels, H, W) to four maps at strides 4, 8, 16 and 32."""
        made = []
        for stage in self.stages:
            x = stage(x)
            made.append(x)
        return made


def make_stages(
    widths: Sequence[int],
    heads: Sequence[int],
    depths: Sequence[int],
    drop_path: float,
    embeds: Sequence[PatchEmbed | None],
) -> list[PvtStage]:
    """The four stages of PVTv2 with the reductions and expansions of B1 to B5.

    Args:
        widths: Token widths E.
        heads: Attention heads.
        depths: Blocks.
        drop_path: Of the last block; it rises linearly from 0 over all blocks.
        embeds: Patch embeddings, None for a stage without.
    """
    total = sum(depths)
    rates = [drop_path * i / max(1, total - 1) for i in range(total)]
    made = []
    for i, depth in enumerate(depths):
        own, rates = rates[:depth], rates[depth:]
        made.append(PvtStage(widths[i], heads[i], RATIOS[i], EXPANSIONS[i], own, embeds[i]))
    return made


def initialise_pvt(module: nn.Module) -> None:
    """PVTv2's own initialisation: linear layers normal 0.02, convolutions by fan out.

    The official code truncates the former at 2, a hundred deviations, which never happens.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
