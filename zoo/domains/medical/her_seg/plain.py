"""The network written out as published, on the same parameters: what tests and timings compare to.

Nothing here is fused, folded, batched or recomputed: every cell gets keys, values and queries, the
decoder runs image by image and makes all masks, LayerNorm2d is its formula, and PyTorch decides
what a backward pass keeps.
"""

from __future__ import annotations

from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.her_seg.decoder import (
    POOLS,
    MaskDecoder,
    TwoWayBlock,
    TwoWayTransformer,
)
from zoo.domains.medical.her_seg.encoder import Encoder, Stage, TokenBlock
from zoo.domains.medical.her_seg.layers import ConvNorm, LayerNorm2d, MBConv
from zoo.domains.medical.her_seg.model import HerSegModel, Neck
from zoo.domains.medical.her_seg.prompts import PromptBatch
from zoo.kernels import rotary_table

Grid = tuple[int, int]


def plain_her_seg(model: HerSegModel, image: Tensor, prompts: PromptBatch | None = None) -> Tensor:
    """Logits (B, K, S, S) of `HerSegModel`; see its `forward`."""
    normalised = model.normalise(image)
    grid = model.image_encoder.grid(image)
    embedding = plain_neck(model.neck, plain_encoder(model.image_encoder, normalised), grid)
    size = (image.shape[2], image.shape[3])
    sparse, dense = model.prompt_encoder(prompts, size, grid)
    sparse, dense = (x.expand(len(image), *x.shape[1:]) for x in (sparse, dense))
    pe = model.prompt_encoder.dense_pe(grid)
    each = zip(*(torch.split(x, 1) for x in (embedding, sparse, dense)), strict=True)
    masks = torch.cat([plain_decoder(model.mask_decoder, e, pe, s, d) for e, s, d in each])
    low = masks[:, : model.outputs]
    return functional.interpolate(low, size, mode="bilinear", align_corners=False)


# -- encoder ------------------------------------------------------------------------------------


def plain_encoder(encoder: Encoder, image: Tensor) -> Tensor:
    """Tokens (B, N, C) of normalised images."""
    grid = encoder.grid(image)
    maps: Tensor = encoder.patch_embed.proj(image)
    stages = [cast(Stage, stage) for stage in encoder.layers]
    for block in stages[0].blocks:
        maps = plain_mbconv(cast(MBConv, block), maps)
    tokens = maps.flatten(2).transpose(1, 2)
    for stage in stages[1:]:
        for block in stage.blocks:
            tokens = plain_block(cast(TokenBlock, block), tokens, grid)
    return tokens


def plain_mbconv(block: MBConv, x: Tensor) -> Tensor:
    """An inverted residual, layer by layer."""

    def conv(part: ConvNorm, x: Tensor) -> Tensor:
        made: Tensor = part.bn(part.c(x))
        return made

    y = functional.gelu(conv(block.conv1, x))
    y = functional.gelu(conv(block.conv2, y))
    return functional.gelu(block.drop_path.add(x, conv(block.conv3, y)))


def plain_block(block: TokenBlock, x: Tensor, grid: Grid) -> Tensor:
    """A token block with its attention in the usual steps."""
    u: Tensor = block.norm1(x)
    gate = functional.silu(cast(nn.Linear, block.attn.gate)(u))
    x = block.drop_path.add(x, block.out_proj(plain_attention(block, u, grid) * gate))
    hidden = functional.gelu(block.mlp.fc1(block.norm2(x)))
    return block.drop_path.add(x, block.mlp.fc2(hidden))


def plain_attention(block: TokenBlock, u: Tensor, grid: Grid) -> Tensor:
    """Linear attention before the gate: complex rotation, scaled copies, layouts moved."""
    attn = block.attn
    count, channels = u.shape[1:]
    turns = torch.complex(*rotary_table(grid, channels, u.device, u.dtype))

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2)

    def split(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (attn.heads, -1)).permute(0, 2, 1, 3)

    q, k = attn.qk(u).reshape(*u.shape[:2], 2, channels).unbind(2)
    v = attn.down(functional.silu(attn.up(u)))
    fq, fk = functional.elu(q) + 1.0, functional.elu(k) + 1.0
    share = 1 / (split(fq) @ split(fk).mean(dim=-2, keepdim=True).mT + 1e-6)
    state = (split(turned(fk)).mT * count**-0.5) @ (split(v) * count**-0.5)
    mixed: Tensor = (split(turned(fq)) @ state * share).transpose(1, 2).flatten(2)
    local: Tensor = attn.lepe(v.transpose(1, 2).reshape(u.shape[0], channels, *grid))
    return mixed + local.flatten(2).transpose(1, 2)


def plain_layer_norm(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """The formula, over channels-first maps."""
    centred = x - x.mean(dim=1, keepdim=True)
    spread = torch.sqrt(centred.square().mean(dim=1, keepdim=True) + norm.eps)
    return norm.weight.view(-1, 1, 1) * (centred / spread) + norm.bias.view(-1, 1, 1)


def plain_neck(neck: Neck, tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens to maps (B, D, h, w)."""
    first, norm, second, last = neck
    maps = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
    maps = plain_layer_norm(cast(LayerNorm2d, norm), first(maps))
    return plain_layer_norm(cast(LayerNorm2d, last), second(maps))


# -- decoder ------------------------------------------------------------------------------------


def plain_cross(part: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention with all projections."""
    layers = (cast(nn.Linear, getattr(part, name)) for name in ("query", "key", "value"))
    heads = cast(int, part.heads)
    q, k, v = (
        torch.unflatten(layer(x), -1, (heads, -1)).transpose(1, 2)
        for layer, x in zip(layers, (q, k, v), strict=True)
    )
    weights = (q @ k.transpose(2, 3) / sqrt(q.shape[-1])).softmax(dim=-1)
    made: Tensor = cast(nn.Linear, part.out)((weights @ v).transpose(1, 2).flatten(2))
    return made


def plain_pool(cells: Tensor, grid: Grid) -> Tensor:
    """The paper's meta-pooling, window by window."""
    maps = cells.transpose(1, 2).reshape(cells.shape[0], -1, *grid)
    made = maps
    for side in POOLS:
        pooled = functional.avg_pool2d(maps, side, 1, side // 2, count_include_pad=False)
        made = made + (pooled - maps)
    return made.flatten(2).transpose(1, 2)


def plain_two_way(
    block: TwoWayBlock, state: tuple[Tensor, Tensor], pe: Tensor, key_pe: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """One block of the two-way transformer."""
    queries, keys = state
    placed = queries if block.first else queries + pe
    found = plain_cross(block.self_attn, placed, placed, queries)
    queries = block.norm1(found if block.first else queries + found)
    values = plain_pool(keys, grid) if block.pooling else keys
    own = plain_cross(block.cross_attn_token_to_image, queries + pe, keys + key_pe, values)
    queries = block.norm2(queries + own)
    queries = block.norm3(queries + block.mlp(queries))
    told = plain_cross(block.cross_attn_image_to_token, values + key_pe, queries + pe, queries)
    return queries, block.norm4(keys + told)


def plain_transformer(
    part: TwoWayTransformer, cells: Tensor, key_pe: Tensor, tokens: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Tokens and cells after all blocks."""
    state = tokens, cells
    for block in part.layers:
        state = plain_two_way(cast(TwoWayBlock, block), state, tokens, key_pe, grid)
    queries, keys = state
    found = plain_cross(part.final_attn_token_to_image, queries + tokens, keys + key_pe, keys)
    return part.norm_final_attn(queries + found), keys


def plain_decoder(
    decoder: MaskDecoder, embedding: Tensor, pe: Tensor, sparse: Tensor, dense: Tensor
) -> Tensor:
    """All masks (1, M, 4 h, 4 w) of one image."""
    grid = (embedding.shape[2], embedding.shape[3])
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).unsqueeze(0)
    tokens = torch.cat([own, sparse], dim=1)
    cells = (embedding + dense).flatten(2).transpose(1, 2)
    places = pe.flatten(2).transpose(1, 2)
    queries, keys = plain_transformer(decoder.transformer, cells, places, tokens, grid)
    first, norm, _, second, _ = decoder.output_upscaling
    maps = keys.transpose(1, 2).reshape(1, -1, *grid)
    maps = functional.gelu(plain_layer_norm(cast(LayerNorm2d, norm), first(maps)))
    maps = functional.gelu(second(maps))
    which = range(len(decoder.output_hypernetworks_mlps))
    hyper = torch.stack(
        [
            decoder.output_hypernetworks_mlps[i](queries[:, i + 1 if decoder.task_queries else 0])
            for i in which
        ],
        dim=1,
    )
    return torch.unflatten(hyper @ maps.flatten(2), -1, maps.shape[2:])
