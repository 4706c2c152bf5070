"""GL-DMNet's forward pass and losses written out as the paper has them, for comparison.

The same modules and weights as in `model.py`, but every map of the equations is made: N x N
similarities, concatenations, enlarged maps. Tests hold the network to this form, and the benchmark
measures how much it saves. Letters: B images, C channels, N = H W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.saliency.rgbd_sod.decoder import Attend, CascadeDecoder
from zoo.domains.saliency.rgbd_sod.fusion import ChannelGate, DualMutualLearning, SpatialGate
from zoo.domains.saliency.rgbd_sod.model import GLDMNet
from zoo.domains.saliency.rgbd_sod.pvt import PvtBlock, PvtStage, ReducedAttention


def forward(model: GLDMNet, rgb: Tensor, depth: Tensor, return_side: bool = False) -> list[Tensor]:
    """The four maps of logits (B, 1, H, W) of `model`; only the first in eval mode.

    Args:
        model: Whose weights and mode are used.
        rgb: (B, 3, H, W).
        depth: (B, 1, H, W) or (B, 3, H, W).
        return_side: All four in eval mode too.
    """
    if depth.shape[1] == 1:
        depth = depth.repeat(1, 3, 1, 1)
    maps = model.encode(rgb, depth)
    fused = [
        fuse(cast(DualMutualLearning, f), r, d) for f, r, d in zip(model.fusion, *maps, strict=True)
    ]
    joined = fused
    if model.transformer is not None:
        pairs = zip(model.transformer, fused, strict=True)
        embedded = [embed(cast(PvtStage, t), x) for t, x in pairs]
        joined = [torch.cat(pair, dim=1) for pair in zip(embedded, fused, strict=True)]
    return decode(model.decoder, joined, rgb.shape[2:], model.training or return_side)


# -- dual mutual learning -------------------------------------------------------------------------


def signed_sqrt(x: Tensor, eps: float) -> Tensor:
    """The signed square root, sign(x) sqrt(|x| + eps)."""
    return torch.sign(x) * torch.sqrt(torch.abs(x) + eps)


def normalise(x: Tensor, axis: str, scale: bool) -> Tensor:
    """Divides (B, C, N) by its norm over positions (`map`) or channels; times sqrt(N) if asked."""
    made = functional.normalize(x, dim=2 if axis == "map" else 1, eps=1e-12)
    return made * x.shape[2] ** 0.5 if scale else made


def attend(
    similar: Sequence[Tensor], maps: Sequence[Tensor], left: bool, axis: str, scale: bool
) -> list[Tensor]:
    """Normalised products of three maps (B, C, N) with their similarities, on one side."""
    made = [s @ x if left else x @ s for s, x in zip(similar, maps, strict=True)]
    return [normalise(x, axis, scale) for x in made]


def position_fusion(
    rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, axis: str, scale: bool
) -> list[Tensor]:
    """Equations 6 to 11 on (B, C, N), with both N x N similarities in memory."""
    with_rgb = signed_sqrt(fused.transpose(1, 2) @ rgb, eps)
    with_depth = signed_sqrt(fused.transpose(1, 2) @ depth, eps)
    similar = (with_rgb, with_depth, with_rgb + with_depth)
    return attend(similar, (rgb, depth, fused), False, axis, scale)


def channel_fusion(
    rgb: Tensor, depth: Tensor, fused: Tensor, eps: float, axis: str, scale: bool
) -> list[Tensor]:
    """Equations 15 to 20 on (B, C, N)."""
    with_rgb = signed_sqrt(rgb @ fused.transpose(1, 2), eps)
    with_depth = signed_sqrt(depth @ fused.transpose(1, 2), eps)
    similar = (with_rgb, with_depth, with_rgb + with_depth)
    return attend(similar, (rgb, depth, fused), True, axis, scale)


def spatial_gate(gate: SpatialGate, x: Tensor) -> Tensor:
    """Equations 4 and 5."""
    seen = [x.max(dim=1, keepdim=True).values, x.mean(dim=1, keepdim=True)]
    weight = gate.conv(torch.cat(seen, dim=1))
    if gate.activation == "sigmoid":
        weight = torch.sigmoid(weight)
    if gate.bn is not None:
        weight = torch.relu(gate.bn(weight))
    made: Tensor = gate.proj(x * weight + x)
    return made


def channel_gate(gate: ChannelGate, rgb: Tensor, depth: Tensor) -> Tensor:
    """Equations 12 to 14."""
    both = torch.cat([rgb, depth], dim=1)
    flat = both.flatten(2)

    def mlp(pooled: Tensor) -> Tensor:
        made: Tensor = gate.fc2(torch.relu(gate.fc1(pooled)))
        return made

    weight = mlp(flat.max(dim=2).values) + mlp(flat.mean(dim=2))
    made: Tensor = gate.proj(both * weight[:, :, None, None])
    return made


def by_position(part: DualMutualLearning, rgb: Tensor, depth: Tensor) -> Tensor:
    """Position mutual fusion of reduced maps (B, C, H, W)."""
    kept = part.position_attention
    maps = (rgb, depth, spatial_gate(part.spatial, rgb + depth))
    r, d, p = (x.flatten(2) for x in maps)
    found = position_fusion(r, d, p, kept.eps, kept.l2_axis, kept.l2_scale)
    made: Tensor = part.out_position(torch.cat(found, dim=1).view(len(r), -1, *rgb.shape[2:]))
    return made


def by_channel(part: DualMutualLearning, rgb: Tensor, depth: Tensor) -> Tensor:
    """Channel mutual fusion of reduced maps (B, C, H, W)."""
    kept = part.channel_attention
    maps = (rgb, depth, channel_gate(part.channel, rgb, depth))
    r, d, h = (x.flatten(2) for x in maps)
    found = channel_fusion(r, d, h, kept.eps, kept.l2_axis, kept.l2_scale)
    made: Tensor = part.out_channel(torch.cat(found, dim=1).view(len(r), -1, *rgb.shape[2:]))
    return made


def fuse(part: DualMutualLearning, rgb: Tensor, depth: Tensor) -> Tensor:
    """One stage: maps (B, K, H, W) of both encoders to (B, C, H, W)."""
    rgb, depth = part.reduce_rgb(rgb), part.reduce_depth(depth)
    if part.fusion == "concat":
        merged: Tensor = part.merge(torch.cat([rgb, depth], dim=1))
        return merged
    if part.fusion == "channel":
        return by_channel(part, rgb, depth)
    position = by_position(part, rgb, depth)
    if part.fusion == "position":
        return position
    if part.fusion == "series":
        return by_channel(part, rgb + position, depth + position)
    return position + by_channel(part, rgb, depth)


# -- transformer ----------------------------------------------------------------------------------


def embed(stage: PvtStage, x: Tensor) -> Tensor:
    """A PVTv2 stage with its softmax written out."""
    size = (x.shape[2], x.shape[3])
    if stage.patch_embed is None:
        tokens = x.flatten(2).transpose(1, 2)
    else:
        tokens, size = stage.patch_embed(x)
    for part in stage.blocks:
        block = cast(PvtBlock, part)
        tokens = tokens + block.drop(attention(block.attn, block.norm1(tokens), size))
        tokens = tokens + block.drop(block.mlp(block.norm2(tokens), size))
    made: Tensor = stage.norm(tokens).transpose(1, 2)
    return made.reshape(len(x), -1, *size)


def attention(attn: ReducedAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with keys and values of the reduced map."""
    batch, count, width = x.shape
    shape = (batch, -1, attn.heads, width // attn.heads)
    query = attn.q(x).reshape(shape).transpose(1, 2)
    both = attn.kv(attn.reduced(x, size))
    key, value = (y.reshape(shape).transpose(1, 2) for y in both.split(width, dim=2))
    weights = (query @ key.transpose(2, 3) * (width // attn.heads) ** -0.5).softmax(dim=3)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, count, width)
    made: Tensor = attn.proj(mixed)
    return made


# -- decoder --------------------------------------------------------------------------------------


def enlarge(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear resize."""
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def attend_deeper(part: Attend, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Equation 26: all deeper maps enlarged, concatenated, scaled, reduced."""
    joined = torch.cat([enlarge(x, size, part.align_corners) for x in maps], dim=1)
    hidden = torch.relu(part.se.fc1(functional.adaptive_avg_pool2d(joined, 1)))
    made: Tensor = part.conv(joined * torch.sigmoid(part.se.fc2(hidden)))
    return made


def decode(
    decoder: CascadeDecoder, stages: Sequence[Tensor], size: Sequence[int], side: bool
) -> list[Tensor]:
    """Equations 25 to 30 on the concatenated maps of each stage."""
    reduced = [reduce(x) for reduce, x in zip(decoder.reduce, stages, strict=True)]
    last = len(reduced) - 1
    merged = [decoder.merge[last](reduced[last])]
    for i in range(last - 1, -1, -1):
        own = reduced[i]
        refined = attend_deeper(cast(Attend, decoder.attend[i]), reduced[i + 1 :], own.shape[2:])
        refined = refined * own + own
        told = enlarge(merged[0], own.shape[2:], decoder.align_corners)
        merged.insert(0, decoder.merge[i](torch.cat([refined, told], dim=1)))
    heads = zip(decoder.head, merged, strict=True)
    made = [(h, x) for i, (h, x) in enumerate(heads) if side or i == 0]
    return [enlarge(h(x), size, decoder.align_corners) for h, x in made]


# -- losses ---------------------------------------------------------------------------------------


def bce_iou(logits: Sequence[Tensor], mask: Tensor, lambdas: Sequence[float]) -> Tensor:
    """Weighted sum of binary cross entropy and IoU loss of each map, one after the other."""
    total = mask.new_zeros(())
    for weight, level in zip(lambdas, logits, strict=True):
        p = torch.sigmoid(level)
        shared = (p * mask).sum(dim=(1, 2, 3))
        union = p.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) - shared
        iou = (1 - (shared + 1e-6) / (union + 1e-6)).mean()
        total = total + weight * (functional.binary_cross_entropy_with_logits(level, mask) + iou)
    return total
