"""HER-Seg's mask decoder (ME-Decoder): a two-way transformer of few tokens, and the mask head.

Source: arXiv 2504.06205 as released (xq141839/HER-Seg, `ecm_decoder`), after Segment Anything's
decoder (arXiv 2304.02643). The official code decodes image by image; here a batch is one call.
Neither keys, values nor queries of all N cells are ever made: their projections are moved to the
few tokens (`zoo.kernels.QueryPool`, `zoo.kernels.FewKeyAttention`), which is the same algebra.

Letters: B images, D channels, N = h w cells, T tokens.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.her_seg.layers import LayerNorm2d, as_maps, as_tokens
from zoo.domains.medical.her_seg.mask_head import low_resolution_masks
from zoo.kernels import FewKeyAttention, QueryPool, softmax_pool

POOLS = (5, 9, 13)
"""Sides of the windows of the paper's meta-pooling."""
FOLD_FROM = 256
"""Cells from which on moving projections to the tokens is faster than projecting the cells."""


def meta_pool(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The paper's meta-pooling: x + sum over k of (mean over k x k cells - x), k = 5, 9, 13.

    Windows are cut off at the border. The mean over a window is that of the means over its rows,
    since all rows are cut alike.

    Args:
        tokens: (B, N, D).
        grid: h and w.
    """
    maps = as_maps(tokens, grid)
    made = maps * (1 - len(POOLS))
    for side in POOLS:
        half = side // 2
        rows = functional.avg_pool2d(maps, (1, side), 1, (0, half), count_include_pad=False)
        made = made + functional.avg_pool2d(rows, (side, 1), 1, (half, 0), count_include_pad=False)
    return as_tokens(made)


class TokenAttention(nn.Module):
    """Multi-head attention among the few tokens, written out.

    Args:
        dim: D.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each (B, T, D), to (B, T, D)."""
        parts = (self.query(queries), self.key(keys), self.value(values))
        merged: Tensor = self.out(attend(*parts, self.heads))
        return merged


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of projected (B, T, I), (B, M, I), (B, M, I), heads merged."""
    q, k, v = (torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.mT / sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class TokenToImage(QueryPool):
    """Few tokens attending to many cells; keys see the positions of cells, values do not.

    Args:
        dim: D.
        heads: Number of heads.
        inner: Width I of the projections.
    """

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__(dim, heads, inner=inner)

    def attend(self, queries: Tensor, keyed: Tensor, values: Tensor) -> Tensor:
        """Attended values.

        Args:
            queries: (B, T, D).
            keyed: (B, N, D) cells with their positions.
            values: (B, N, D) cells.

        Returns:
            (B, T, D).
        """
        if not _folds(queries, keyed, self.heads, self.query.out_features):
            parts = (self.query(queries), self.key(keyed), self.value(values))
            merged: Tensor = self.out(attend(*parts, self.heads))
            return merged
        pooled, _ = softmax_pool(self.query_logits(queries, keyed), values)
        return self.project(pooled)


class ImageToToken(FewKeyAttention):
    """Many cells attending to few tokens.

    Args:
        dim: D.
        heads: Number of heads.
        inner: Width I of the projections.
    """

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__(dim, heads, inner=inner)

    def attend(self, keyed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attended values.

        Args:
            keyed: (B, N, D) cells with their positions.
            keys: (B, T, D) tokens.
            values: (B, T, D) tokens.

        Returns:
            (B, N, D).
        """
        if not _folds(keys, keyed, self.heads, self.query.out_features):
            parts = (self.query(keyed), self.key(keys), self.value(values))
            merged: Tensor = self.out(attend(*parts, self.heads))
            return merged
        folded: Tensor = self(keyed, keys, values)
        return folded


def _folds(tokens: Tensor, cells: Tensor, heads: int, inner: int) -> bool:
    """Whether projections move to the tokens: many cells, and less work than projecting them."""
    return cells.shape[1] >= FOLD_FROM and tokens.shape[1] * heads < inner


class DecoderMlp(nn.Module):
    """Two layers with ReLU between.

    Args:
        dim: D.
        hidden: Width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        made: Tensor = self.lin2(self.lin1(x).relu())
        return made


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to cells, MLP, cells to tokens; each with a LayerNorm.

    Args:
        dim: D.
        heads: Number of heads.
        hidden: Width of the MLP.
        downsample: D over the width of the cross attentions.
        first: Whether it is the first block, whose self-attention sees no positions and replaces
            the tokens.
        pooling: Whether cells pass the paper's meta-pooling on both ways (experimental).
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, downsample: int, first: bool, pooling: bool
    ) -> None:
        super().__init__()
        self.self_attn = TokenAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenToImage(dim, heads, dim // downsample)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = DecoderMlp(dim, hidden)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = ImageToToken(dim, heads, dim // downsample)
        self.first, self.pooling = first, pooling

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D) and cells (B, N, D), each looking at the other."""
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + query_pe
            queries = queries + self.self_attn(placed, placed, queries)
        queries = self.norm1(queries)
        keyed = keys + key_pe
        values = meta_pool(keys, grid) if self.pooling else keys
        found = self.cross_attn_token_to_image.attend(queries + query_pe, keyed, values)
        queries = self.norm2(queries + found)
        queries = self.norm3(queries + self.mlp(queries))
        if self.pooling:
            keyed = values + key_pe
        told = self.cross_attn_image_to_token.attend(keyed, queries + query_pe, queries)
        return queries, self.norm4(keys + told)


class TwoWayTransformer(nn.Module):
    """Tokens and cells attending to each other.

    Args:
        depth: Number of blocks.
        dim: D.
        heads: Number of heads.
        hidden: Width of the MLP; 2048 in Segment Anything, 256 here.
        downsample: D over the width of the cross attentions.
        pooling: Whether the blocks have the paper's meta-pooling.
    """

    def __init__(
        self,
        depth: int = 2,
        dim: int = 256,
        heads: int = 8,
        hidden: int = 256,
        downsample: int = 2,
        pooling: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, heads, hidden, downsample, i == 0, pooling) for i in range(depth)
        )
        self.final_attn_token_to_image = TokenToImage(dim, heads, dim // downsample)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, cells: Tensor, key_pe: Tensor, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Runs the blocks.

        Args:
            cells: (B, N, D).
            key_pe: (1 or B, N, D) positions of the cells.
            tokens: (B, T, D), which are their own positions too.
            grid: h and w.

        Returns:
            Tokens (B, T, D) and cells (B, N, D).
        """
        queries, keys = tokens, cells
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe, grid)
        final = self.final_attn_token_to_image
        found = final.attend(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + found), keys


class HyperMlp(nn.Module):
    """A token to the weights of its mask: three layers with ReLU between.

    Args:
        dim: D.
        outputs: Width of the result.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        widths = (dim, dim, dim, outputs)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, outputs)."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        made: Tensor = self.layers[-1](x)
        return made


class MaskDecoder(nn.Module):
    """Image embedding and prompts to masks at a quarter of the image's sides.

    Args:
        transformer: Of width D.
        masks: Number of mask tokens and hyper-networks.
        task_queries: Whether each mask is made from its own token, as the paper draws it; the
            released code makes all from the first token.
    """

    def __init__(
        self,
        transformer: TwoWayTransformer,
        dim: int = 256,
        masks: int = 3,
        task_queries: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            HyperMlp(dim, dim // 8) for _ in range(masks)
        )
        self.task_queries = task_queries

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        masks: int | None = None,
    ) -> Tensor:
        """Low-resolution logits.

        Args:
            embedding: (B, D, h, w); repeated where there are more sets of prompts than images.
            image_pe: (1, D, h, w).
            sparse: (P, T, D) prompt tokens, P = 1 (for all) or one set an image.
            dense: (P, D, h, w) added to the embedding.
            masks: How many of the masks are wanted; None: all.

        Returns:
            (B, masks, 4 h, 4 w).
        """
        grid = (embedding.shape[2], embedding.shape[3])
        sets = max(sparse.shape[0], embedding.shape[0])
        if sets != embedding.shape[0]:
            embedding = embedding.repeat_interleave(sets // embedding.shape[0], dim=0)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat(
            [own.expand(sets, -1, -1), sparse.expand(sets, -1, -1).to(own.dtype)], dim=1
        )
        cells = as_tokens(embedding + dense)
        queries, keys = self.transformer(cells, as_tokens(image_pe), tokens, grid)
        wanted = len(self.output_hypernetworks_mlps) if masks is None else masks
        hyper = torch.stack(
            [
                self.output_hypernetworks_mlps[i](queries[:, i + 1 if self.task_queries else 0])
                for i in range(wanted)
            ],
            dim=1,
        )
        return low_resolution_masks(keys, grid, self.output_upscaling, hyper)


__all__ = [
    "ImageToToken",
    "MaskDecoder",
    "TokenToImage",
    "TwoWayTransformer",
    "attend",
    "meta_pool",
]
