"""FusionReID's forward pass written out as published, on the same modules, for comparison.

Keys and values of all tokens are formed, attention is two products with a softmax between them,
linear layers are PyTorch's own, the 1 x 1 depthwise convolution is a grouped convolution, pooling
takes its exponent as a tensor, and maps lie in PyTorch's usual layout. Tests hold the network to
this form, and the benchmark measures how much is saved. Letters: B images, N tokens, D token width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.reid.fusion_reid.fusion import (
    EncodingUnit,
    FusionUnit,
    LocalRefinement,
    Transmission,
    TransmissionLayer,
)
from zoo.domains.reid.fusion_reid.heads import GeM
from zoo.domains.reid.fusion_reid.model import FusionReID
from zoo.domains.reid.fusion_reid.resnet import Bottleneck, ResNet
from zoo.domains.reid.fusion_reid.vit import Block, Mlp, SelfAttention, TokenEncoder

Pair = tuple[Tensor, Tensor]


def forward(model: FusionReID, image: Tensor, camera: Tensor | None = None) -> dict[str, Tensor]:
    """Features (B, width) of a model with both branches, by the name of their head.

    Args:
        model: Whose weights and mode are used.
        image: (B, 3, H, W) in [0, 1].
        camera: (B,) index of the camera, or None.
    """
    mean, deviation = (image.new_tensor(v).view(1, 3, 1, 1) for v in model.normalise)
    x = (image - mean) / deviation
    cells = resnet(cast(ResNet, model.cnn), x)
    tokens = encoder(model.transformer, x, camera)
    again = torch.unflatten(tokens[:, 1:].transpose(1, 2), 2, model.transformer.grid)
    refined = refine(model.refine_cnn, cells), refine(model.refine_transformer, again.contiguous())
    made = {
        "cnn": pool(cast(GeM, model.pool_cnn), cells),
        "transformer": tokens[:, 0],
        "refined_cnn": pool(model.pool_refined_cnn, refined[0]),
        "refined_transformer": pool(model.pool_refined_transformer, refined[1]),
    }
    sequences = refined[0].flatten(2).transpose(1, 2), refined[1].flatten(2).transpose(1, 2)
    queries = made["refined_cnn"], made["refined_transformer"]
    passed = transmission(model.transmission, queries, sequences)
    if len(model.transmission.layers):
        made |= {"fused_cnn": passed[0], "fused_transformer": passed[1]}
    return made


# -- branches -------------------------------------------------------------------------------------


def resnet(net: ResNet, x: Tensor) -> Tensor:
    """The last map, in the usual memory layout."""
    x = functional.max_pool2d(net.bn1(_conv(net.conv1, x)), 2, 2)
    for stage in (1, 2, 3, 4):
        for block in cast(nn.Sequential, net.get_submodule(f"layer{stage}")):
            x = bottleneck(cast(Bottleneck, block), x)
    return x


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution with its weight in the usual layout."""
    return functional.conv2d(x, layer.weight.contiguous(), None, layer.stride, layer.padding)


def bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    """One residual block."""
    y = functional.relu(block.bn1(_conv(block.conv1, x)), inplace=True)
    y = functional.relu(block.bn2(_conv(block.conv2, y)), inplace=True)
    y = block.bn3(_conv(block.conv3, y))
    if block.downsample is not None:
        x = block.downsample[1](_conv(cast(nn.Conv2d, block.downsample[0]), x))
    return functional.relu(y + x, inplace=True)


def encoder(transformer: TokenEncoder, x: Tensor, camera: Tensor | None) -> Tensor:
    """All tokens (B, 1 + N, D)."""
    x = transformer.embed(x, camera, None)
    for block in transformer.blocks:
        x = encode(cast(Block, block), x)
    return cast(Tensor, transformer.norm(x))


def encode(block: Block, x: Tensor) -> Tensor:
    """One transformer block."""
    x = x + block.drop(attention(block.attn, block.norm1(x)))
    return x + cast(Tensor, block.drop(mlp(block.mlp, block.norm2(x))))


def attention(layer: SelfAttention, x: Tensor) -> Tensor:
    """Self-attention with all weights formed."""
    images, count, width = x.shape
    parts = _linear(layer.qkv, x).reshape(images, count, 3, layer.heads, width // layer.heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(-2, -1)) * layer.scale).softmax(-1)
    return _linear(layer.proj, (weights @ v).transpose(1, 2).reshape(images, count, width))


def mlp(layer: Mlp, x: Tensor) -> Tensor:
    """Both layers of an MLP."""
    return _linear(layer.fc2, functional.gelu(_linear(layer.fc1, x)))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer by PyTorch's choice of library."""
    return functional.linear(x, layer.weight, layer.bias)


# -- fusion ---------------------------------------------------------------------------------------


def pool(layer: GeM, x: Tensor) -> Tensor:
    """Generalised mean with its exponent as a tensor."""
    powers = x.clamp(min=layer.floor).pow(layer.p)
    return functional.avg_pool2d(powers, x.shape[2:]).pow(1.0 / layer.p).flatten(1)


def refine(unit: LocalRefinement, x: Tensor) -> Tensor:
    """Both convolutions with their norms and activations one after the other."""
    if unit.depthwise is not None:
        x = unit.act1(unit.norm1(unit.depthwise(x)))
    return cast(Tensor, unit.act2(unit.norm2(unit.pointwise(x))))


def encoding(unit: EncodingUnit, x: Tensor) -> Tensor:
    """All tokens of an encoding unit."""
    for block in unit.blocks:
        x = encode(cast(Block, block), x)
    return cast(Tensor, unit.norm(x))


def fusion(unit: FusionUnit, query: Tensor, tokens: Tensor) -> Tensor:
    """A fusion unit with the keys and values of all tokens."""
    pool, given = unit.attn, unit.norm1(query)
    norm = pool.key_norm
    keys = pool.key(tokens if norm is None else norm(tokens))
    images, _, width = keys.shape
    split = (images, -1, pool.heads, width // pool.heads)
    q = pool.query(given).reshape(split).permute(0, 2, 1, 3)
    k = keys.reshape(split).permute(0, 2, 1, 3)
    v = pool.value(tokens).reshape(split).permute(0, 2, 1, 3)
    weights = ((q @ k.transpose(-2, -1)) * (width // pool.heads) ** -0.5).softmax(-1)
    query = query + pool.out((weights @ v).transpose(1, 2).reshape(images, width))
    return query + mlp(unit.mlp, unit.norm2(query))


def layer(module: TransmissionLayer, queries: Pair, tokens: Pair) -> Pair:
    """A transmission layer on whole sequences."""
    sequences = [torch.cat([q.unsqueeze(1), t], 1) for q, t in zip(queries, tokens, strict=True)]

    def both(kind: str) -> list[nn.Module]:
        names = [kind] * 2 if hasattr(module, kind) else [f"{kind}_cnn", f"{kind}_transformer"]
        return [module.get_submodule(name) for name in names]

    def encoded() -> list[Tensor]:
        units = [cast(EncodingUnit, unit) for unit in both("encode")]
        return [encoding(unit, s) for unit, s in zip(units, sequences, strict=True)]

    def fused() -> Pair:
        units = [cast(FusionUnit, unit) for unit in both("fuse")]
        first, second = sequences
        return (
            fusion(units[0], first[:, 0], second[:, 1:]),
            fusion(units[1], second[:, 0], first[:, 1:]),
        )

    if module.mode in (0, 1):
        sequences = encoded()
    if module.mode == 1:
        return sequences[0][:, 0], sequences[1][:, 0]
    made = fused()
    if module.mode == 3:
        sequences = [torch.cat([q.unsqueeze(1), t], 1) for q, t in zip(made, tokens, strict=True)]
        sequences = encoded()
        return sequences[0][:, 0], sequences[1][:, 0]
    return made


def transmission(module: Transmission, queries: Pair, tokens: Pair) -> Pair:
    """All transmission layers."""
    for part in module.layers:
        queries = layer(cast(TransmissionLayer, part), queries, tokens)
    return queries
