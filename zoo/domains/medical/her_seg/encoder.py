"""HER-Seg's image encoder (CE-Encoder): one scale, two convolutional and ten token blocks.

Source: arXiv 2504.06205 and its code (xq141839/HER-Seg, class LGViT). A token block mixes by dual
gated linear attention: a bottleneck gates the values before, SiLU gates the result after. The
attention is `zoo.kernels.GatedLinearAttention`, whose rotary table is made for the grid at hand
and is no state, so weights trained at one image size serve any other.

Letters: B images of H x W pixels, C channels, N = h w tokens row by row, h = H / 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.domains.medical.her_seg.layers import DropPath, MBConv, Mlp, as_maps, as_tokens
from zoo.domains.medical.her_seg.recompute import SILU, act_linear, is_small, norm_linears
from zoo.kernels import GatedLinearAttention, gated_linear_attention
from zoo.kernels.gated_linear_attention.reference import (
    gated_linear_attention as written_out,
)
from zoo.kernels.products import linear

PATCH = 16


class TokenBlock(nn.Module):
    """Dual gated linear attention and an MLP, each behind a LayerNorm and around a residual.

    Args:
        dim: C, a multiple of 4 and of the heads.
        heads: Of the attention.
        mlp_ratio: Hidden width of the MLP over C.
        drop_path: Probability of leaving a branch out; both branches draw on their own.

    Raises:
        ValueError: The heads do not divide C, or 4 does not.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float = 2.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GatedLinearAttention(dim, heads)
        self.out_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens (B, N, C) of a grid (None: a square) to the same."""
        mixed = self._mixed(x, grid)
        x = self.drop_path.add(x, linear(mixed, self.out_proj.weight, self.out_proj.bias))
        return self.drop_path.add(x, self.mlp.after(self.norm2, x))

    def _mixed(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """The attention of norm1(x), without keeping norm1(x) and the gated bottleneck."""
        attn, lepe = self.attn, self.attn.lepe
        if grid is None:
            side = int(x.shape[1] ** 0.5 + 0.5)
            grid = (side, side)
        layers = (attn.qk, attn.up, cast(nn.Linear, attn.gate))
        both, hidden, gate = norm_linears(x, self.norm1, layers)
        q, k = both.chunk(2, dim=-1)
        v = act_linear(hidden, attn.down, SILU)
        # Of few tokens the definition is the fastest form.
        few = x.device.type == "cpu" and is_small(x)
        attend = written_out if few else gated_linear_attention
        return attend(q, k, v, gate, lepe.weight, lepe.bias, grid, attn.heads)


class Stage(nn.Module):
    """Blocks of one kind; the official code calls it a layer.

    Args:
        blocks: In their order.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class PatchEmbed(nn.Module):
    """Patches of the image as tokens, by a convolution whose stride is its size.

    Args:
        channels: Of the image.
        dim: C.
        size: Side of a patch in pixels.
    """

    def __init__(self, channels: int, dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, size, stride=size)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) to maps (B, C, h, w)."""
        maps: Tensor = self.proj(image)
        return maps.contiguous(memory_format=torch.channels_last)


class Encoder(nn.Module):
    """The image encoder: patches, a stage of `MBConv`, three stages of `TokenBlock`.

    Args:
        dim: C.
        depths: Blocks of the four stages.
        heads: Attention heads of the four stages; the first number is not used.
        mlp_ratio: Hidden widths over C.
        drop_path: Stochastic depth of the last block, rising linearly over all blocks; the first
            stage has none, as published.
        patch: Side of a patch in pixels.
        channels: Of the image.
        checkpointing: Whether token blocks are computed again in the backward pass instead of
            keeping what they need for it.
    """

    def __init__(
        self,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        *,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.1,
        patch: int = PATCH,
        channels: int = 3,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, dim, patch)
        total = sum(depths)
        rates = [drop_path * i / max(1, total - 1) for i in range(total)]
        stages = [Stage([MBConv(dim, dim, mlp_ratio) for _ in range(depths[0])])]
        first = depths[0]
        for depth, count in zip(depths[1:], heads[1:], strict=True):
            own = rates[first : first + depth]
            stages.append(Stage([TokenBlock(dim, count, mlp_ratio, rate) for rate in own]))
            first += depth
        self.layers = nn.ModuleList(stages)
        self.patch, self.checkpointing = patch, checkpointing
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens of an image.

        Raises:
            ValueError: The image is not (B, C, H, W) of whole patches.
        """
        channels = self.patch_embed.proj.in_channels
        if image.dim() != 4 or image.shape[1] != channels:
            msg = f"images should be (B, {channels}, H, W), got {tuple(image.shape)}"
            raise ValueError(msg)
        height, width = image.shape[2], image.shape[3]
        if height % self.patch or width % self.patch or not height * width:
            msg = f"image sides should be multiples of {self.patch} pixels, got {height} x {width}"
            raise ValueError(msg)
        return height // self.patch, width // self.patch

    def forward(self, image: Tensor) -> Tensor:
        """Tokens of normalised images.

        Args:
            image: (B, 3, H, W).

        Returns:
            (B, N, C), without a last normalisation, as published.

        Raises:
            ValueError: The image is not made of whole patches.
        """
        grid = self.grid(image)
        maps = self.patch_embed(image)
        stages = [cast(Stage, stage) for stage in self.layers]
        for block in stages[0].blocks:
            maps = block(maps)
        tokens = as_tokens(maps)
        for stage in stages[1:]:
            for block in stage.blocks:
                if self.checkpointing and torch.is_grad_enabled():
                    tokens = checkpoint(block, tokens, grid, use_reentrant=False)
                else:
                    tokens = block(tokens, grid)
        return tokens


__all__ = ["PATCH", "Encoder", "PatchEmbed", "Stage", "TokenBlock", "as_maps"]
