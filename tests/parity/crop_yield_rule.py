"""Weights of the recorded networks of released size, which follow from the names of the tensors."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.remote_sensing.crop_yield.convert import Sensor, rename_official

GAMMA = 0x9E3779B97F4A7C15
MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def uniform(key: str, count: int, salt: int) -> np.ndarray:
    """`count` numbers in [0, 1) that follow from a key; the rule stands beside the cases."""
    seed = (zlib.crc32(key.encode()) + (salt << 32)) % 2**64
    z = np.arange(count, dtype=np.uint64) + np.uint64(seed * GAMMA % 2**64)
    for shift, factor in MIXES:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def by_rule(key: str, shape: tuple[int, ...], salt: int) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(11)
    count = int(np.prod(shape))
    u = uniform(key, count, salt)
    bound = float(np.sqrt(4.5 / (count / shape[0]))) if len(shape) > 1 else 0.0
    if key.endswith("running_mean"):
        made = -0.3 + 0.6 * u
    elif key.endswith("running_var"):
        made = 0.5 + 1.5 * u
    elif key.endswith(("cls_token", "pos_embedding")):
        made = -1 + 2 * u
    elif key in ("se_block.fc.0.weight", "se.fc.0.weight"):
        made = bound * u
    elif len(shape) > 1:
        made = -bound + 2 * bound * u
    elif key.endswith("bias"):
        made = -0.3 + 0.6 * u
    elif len(shape) == 1 and key.endswith("weight"):
        made = 0.5 + u
    else:
        made = 0.2 + 0.7 * u
    return torch.from_numpy(made.astype(np.float32)).reshape(shape)


def official_names(model: nn.Module, sensor: Sensor) -> dict[str, str]:
    """Official name -> ours, found by trying the names that such a network has."""
    own = set(model.state_dict()) - {"band_mean", "target"}
    ends = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    tried = ["a1", "a2", "cnn_model.operator_weight", "cnn_model.operator_gate.operator_weight"]
    tried += [f"cnn_model.operator_router.operators.learnable.{n}" for n in ("alpha", "scale")]
    tried += ["vit_model.cls_token", "vit_model.pos_embedding"]
    layers = [f"{se}.fc.{i}" for se in ("se", "se_block") for i in (0, 2)]
    layers += [f"cnn_model.convblocks.{i}.{n}" for i in range(6) for n in ("conv", "batchnorm")]
    layers += [f"cnn_model.{part}.{i}" for part in ("dense_layers", "cnn", "fusion")
               for i in range(16)]  # fmt: skip
    layers += [f"vit_model.to_patch_embedding.{i}" for i in (1, 2, 3)]
    layers += ["vit_model.transformer.norm", "vit_model.mlp_head"]
    inner = ("0.norm", "0.to_qkv", "0.to_out.0", "1.net.0", "1.net.1", "1.net.4")
    layers += [f"vit_model.transformer.layers.{i}.{name}" for i in range(6) for name in inner]
    tried += [f"{layer}.{end}" for layer in layers for end in ends]
    pairs = {key: rename_official(key, sensor) for key in tried}
    found = {key: ours for key, ours in pairs.items() if ours in own}
    assert set(found.values()) == own
    return found
