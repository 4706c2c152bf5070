"""Both networks written out as released, on the same parameters: what tests and timings compare to.

All three operators on the whole batch and then a choice, kernels as depthwise convolutions,
padding as a copy, attention with its matrices in memory, every token in every layer, PyTorch's own
dropout, pictures in chunks of which nothing is computed again.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield.modis import ConvBlock, DFYPNet, ModisConvNet
from zoo.domains.remote_sensing.crop_yield.operators import (
    EPS,
    GRAY,
    OPERATORS,
    STENCILS,
    OperatorRouter,
    ResolutionAwareAttention,
)
from zoo.domains.remote_sensing.crop_yield.sentinel import SentinelConvNet, SentinelDFYPNet
from zoo.domains.remote_sensing.crop_yield.vit import Block, ViT


def kernels(name: str) -> tuple[Tensor, Tensor]:
    """The two kernels (3, 3) of `sobel` or `scharr`, across columns and across rows."""
    c, e = STENCILS[name]
    across = torch.tensor([[-c, 0, c], [-e, 0, e], [-c, 0, c]])
    return across, across.T


def magnitude(x: Tensor, across: Tensor, down: Tensor, eps: float) -> Tensor:
    """Edges (B, C, H, W) by two depthwise convolutions."""
    channels = x.shape[1]
    gx, gy = (
        functional.conv2d(x, k.to(x).expand(channels, 1, 3, 3), padding=1, groups=channels)
        for k in (across, down)
    )
    return torch.sqrt(gx**2 + gy**2 + eps)


def plain_operator(router: OperatorRouter, x: Tensor, name: str) -> Tensor:
    """One operator of the router on x (B, C, H, W), the learnable one by its mixed kernels."""
    if name != "learnable":
        return magnitude(x, *kernels(name), EPS[name])
    a = torch.sigmoid(router.alpha)
    pairs = zip(kernels("sobel"), kernels("scharr"), strict=True)
    mixed = [a * s.to(x) + (1 - a) * t.to(x) for s, t in pairs]
    scaled = [k / k.abs().max() for k in mixed]
    return magnitude(x, scaled[0], scaled[1], EPS[name]) * torch.sigmoid(router.scale)


def plain_router(router: OperatorRouter, x: Tensor, years: Tensor | None) -> Tensor:
    """Blended edges (B, C, H, W); every operator sees every sample."""
    made = {name: plain_operator(router, x, name) for name in OPERATORS}
    routed = torch.zeros_like(x)
    names = [router.default] * len(x) if years is None else router.operators_of(years.tolist())
    for name in OPERATORS:
        rows = torch.tensor([own == name for own in names], device=x.device)
        routed[rows] = made[name][rows]
    return router.blend * routed + (1 - router.blend) * x


def plain_rca(rca: ResolutionAwareAttention, x: Tensor) -> Tensor:
    """Channels (B, C, H, W) times their factors."""
    pool = functional.adaptive_max_pool2d if rca.pool == "max" else functional.adaptive_avg_pool2d
    pooled = pool(x, 1).flatten(1)
    factors = torch.sigmoid(rca.expand(functional.relu(rca.reduce(pooled))))
    return x * factors[:, :, None, None].expand_as(x)


def plain_block(block: ConvBlock, x: Tensor) -> Tensor:
    """Padding, convolution, batch normalisation, ReLU and dropout one after the other."""
    conv, around = block.conv, []
    for n, k, s in reversed(list(zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True))):
        total = max(0, (-(-n // s) - 1) * s + k - n)
        around += [total // 2, total - total // 2]
    x = functional.conv2d(functional.pad(x, around), conv.weight, conv.bias, conv.stride)
    return functional.dropout(functional.relu(block.norm(x)), block.p, block.training)


def plain_cnn(cnn: ModisConvNet, z: Tensor, years: Tensor | None) -> Tensor:
    """Predictions (B, 1) of the convolutional branch, dense layers one after the other."""
    x = plain_router(cnn.router, z, years)
    for block in cnn.blocks:
        x = plain_block(cast("ConvBlock", block), x)
    x = x.flatten(1)
    for layer in cnn.dense:
        x = layer(x)
    return x


def plain_transformer_block(block: Block, x: Tensor) -> Tensor:
    """All tokens through a block, with the attention matrices in memory."""
    own, p, on = block.attention, block.attention.p, block.training
    q, k, v = own.qkv(own.norm(x)).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (own.heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    mixed = functional.dropout(weights, p, on) @ v
    joined = mixed.transpose(1, 2).flatten(2)
    x = x + (joined if own.out is None else functional.dropout(own.out(joined), p, on))
    mlp = block.mlp
    hidden = functional.dropout(functional.gelu(mlp.up(mlp.norm(x))), p, on)
    return x + functional.dropout(mlp.down(hidden), p, on)


def plain_vit_features(vit: ViT, x: Tensor) -> Tensor:
    """What the head reads, (B, D)."""
    part, p = vit.embedding, vit.embedding.patch
    b, c, h, w = x.shape
    cut = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
    x = part.norm_out(part.linear(part.norm_in(cut.reshape(b, -1, p * p * c))))
    x = torch.cat([vit.class_token.repeat(b, 1, 1), x], dim=1) + vit.positions[:, : x.shape[1] + 1]
    x = functional.dropout(x, vit.embedding_p, vit.training)
    for block in vit.blocks:
        x = plain_transformer_block(cast("Block", block), x)
    x = vit.norm(x)
    return x.mean(dim=1) if vit.pool == "mean" else x[:, 0]


def plain_modis(model: DFYPNet, x: Tensor, years: Tensor | None = None) -> Tensor:
    """Yields (B,) of `DFYPNet`; see its `forward`."""
    z = plain_rca(model.rca, model.centred(x))
    c, v = plain_cnn(model.cnn, z, years), model.vit.head(plain_vit_features(model.vit, z))
    both: Tensor = model.cnn_share * c + model.vit_share * v
    return model.target[0] + model.target[1] * both[:, 0]


def plain_gate(cnn: SentinelConvNet, x: Tensor) -> Tensor:
    """The gate (B, 3, H, W), its gray picture from three scaled colours."""
    gray = sum(share * x[:, i : i + 1] for i, share in enumerate(GRAY))
    name = cnn.gate.operator
    edges = magnitude(cast("Tensor", gray), *kernels(name), EPS[name]).expand_as(x)
    return cnn.gate.blend * edges + (1 - cnn.gate.blend) * x


def plain_picture_features(cnn: SentinelConvNet, z: Tensor) -> Tensor:
    """One vector a picture, (P, 128): convolution, ReLU, dropout, pooling one after the other."""
    x = plain_gate(cnn, z)
    for number, conv in enumerate(cnn.convs):
        x = functional.relu(conv(x))
        if number:
            x = functional.dropout(x, cnn.conv_p, cnn.training)
        if number < len(cnn.convs) - 1:
            x = functional.max_pool2d(x, 2)
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)


def _mlp(layers: nn.ModuleList, x: Tensor, p: float, on: bool) -> Tensor:
    x = functional.dropout(x, p, on)
    *hidden, last = layers
    for layer in hidden:
        x = functional.dropout(functional.relu(layer(x)), p, on)
    made: Tensor = last(x)
    return made


def plain_sentinel(model: SentinelDFYPNet, pictures: Tensor, cu_pictures: Tensor) -> Tensor:
    """Logs (B, 2) of `SentinelDFYPNet`; see its `forward`."""
    z = plain_rca(model.rca, pictures)
    parts: Any = torch.split(z, model.chunk)
    maps = torch.cat([plain_picture_features(model.cnn, part) for part in parts])
    tokens = torch.cat([plain_vit_features(model.vit, part) for part in parts])
    bounds = cu_pictures.tolist()
    rows = list(itertools.pairwise(bounds))
    maps, tokens = (torch.stack([x[a:b].mean(dim=0) for a, b in rows]) for x in (maps, tokens))
    c = _mlp(model.cnn.fusion, maps, model.cnn.p, model.training)
    both: Tensor = model.cnn_share * c + model.vit_share * model.vit.head(tokens)
    return model.target[0] + model.target[1] * both
