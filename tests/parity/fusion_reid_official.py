"""FusionReID at its official sizes: weights made by the rule in the cases, then the conversion."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.golden import Case
from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.convert import convert_official, rename_official
from zoo.domains.reid.fusion_reid.model import HEADS, build_model

_GOLDEN, _KEY = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
_BLOCK = 1 << 18  # values made at once, so that they stay in the cache


def uniform(seed: int, key: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1) of a key, by the rule in the cases."""
    start = (seed * _GOLDEN + zlib.crc32(key.encode()) * _KEY + _GOLDEN) % 2**64
    made = np.empty(count, np.float32)
    steps = np.arange(min(count, _BLOCK), dtype=np.uint64)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        z = steps[:size] + np.uint64((start + begin) % 2**64)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        part = (z >> np.uint64(40)).astype(np.float32)
        np.multiply(part, np.float32(2**-23), out=part)
        np.subtract(part, np.float32(1), out=made[begin : begin + size])
    return made


def ruled(seed: int, key: str, shape: torch.Size) -> Tensor:
    """The tensor of an official key, by the rule in the cases."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    u = uniform(seed, key, max(1, shape.numel()))
    last = key.rpartition(".")[2]
    base, factor = 0.0, 0.1
    if key.endswith("running_mean"):
        pass
    elif key.endswith("running_var"):
        base, factor = 1.0, 0.2
    elif last == "p":
        base, factor = 3.0, 0.3
    elif len(shape) == 3:
        factor = 0.3
    elif len(shape) in (2, 4):
        fan_in = shape.numel() // shape[0]
        factor = ((6 if len(shape) == 4 else 3) / fan_in) ** 0.5
    elif last == "weight":
        base = 0.25 if ".act" in key else 1.0
        if key.endswith("bn3.weight"):
            base, factor = 0.3, 0.03
    if base == 0:
        # A float32 times a float64 factor, rounded once.
        values = np.multiply(u, factor, dtype=np.float64).astype(np.float32)
    elif key.endswith("bn3.weight"):
        values = (0.3 * (1 + 0.1 * u.astype(np.float64))).astype(np.float32)
    else:
        values = (base + factor * u.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(values).view(shape)


_UNITS = {"encode": "SEU", "encode_cnn": "SEU1", "encode_transformer": "SEU2", "fuse": "MFU"}
_UNITS |= {"fuse_cnn": "MUF_RES", "fuse_transformer": "MFU_FORMER"}
_READ = {"key_norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj"}
_HEADS = {"cnn": "resnet", "transformer": "transformer"}


def official_key(ours: str) -> str:
    """The official name of one of our keys: the other direction than the conversion's."""
    top, *rest = ours.split(".")
    if top in ("cnn", "transformer"):
        return ".".join([_HEADS[top], "base", *rest])
    if top == "pool_cnn":
        return "resnet.gap.p"
    if top.startswith("pool_refined"):
        return f"gap_{'r' if top.endswith('cnn') else 'f'}.p"
    if top == "heads":
        part = {"neck": "bottleneck", "classifier": "classifier"}[rest[1]]
        if rest[0] in _HEADS:
            return ".".join([_HEADS[rest[0]], part, rest[2]])
        return f"{part}_{HEADS.index(rest[0]) - 1}.{rest[2]}"
    if top.startswith("refine"):
        names = {"depthwise": "dwconv", "norm1": "bn1", "pointwise": "ptconv", "norm2": "bn2"}
        unit = "res_LRU" if top == "refine_cnn" else "former_LRU"
        return f"{unit}.{names.get(rest[0], rest[0])}.{rest[1]}"
    assert top == "transmission"
    _, layer, unit, *inner = rest
    if unit.startswith("fuse"):
        if inner[0] == "attn":
            inner[1] = _READ[inner[1]]
        inner = ["blocks", "0", *inner]
    return ".".join(["HTM.blocks", layer, _UNITS[unit], *inner])


def official_settings(args: Mapping[str, Any]) -> ReidModel:
    branches = args["branches"]
    return ReidModel.model_validate(
        {
            "cnn": "none" if branches in ("transformer", "vit") else f"resnet{args['resnet']}",
            "transformer": "none" if branches == "resnet" else args["transformer"],
            "input_size": tuple(args["image"]),
            "stride": tuple(args["stride"]),
            "mix": args["mix_dim"],
            "depth": args["htm_layers"],
            "sharing": args["share_pattern"],
            "camera": "camera" if args["sie_camera"] else "none",
            "camera_scale": args["sie_coe"],
            "neck_feature": args["neck_feat"],
        }
    )


def official_size_target(case: Case) -> None:
    info = case.info
    settings, seed, given = official_settings(info["args"]), info["seed"], case.group("input")
    with torch.device("meta"):
        model = build_model(settings, info["num_classes"], info["cameras"]).eval()
    branch = {"resnet": "resnet.", "both": ""}.get(info["args"]["branches"], "transformer.")
    state, checks = {}, dict(info["weight_check"])
    for ours, tensor in model.state_dict().items():
        assert rename_official(official_key(ours)) == ours
        key = official_key(ours).removeprefix(branch)
        state[key] = ruled(seed, key, tensor.shape)
        if key in checks:
            told = checks.pop(key)
            assert state[key].flatten()[: len(told)].tolist() == told
    assert not checks
    # The official transformers carry a classifier that nothing reads.
    unused = 0
    if hasattr(model, "transformer"):
        t2t = settings.transformer.startswith("t2t")
        classes = info["num_classes"] if t2t else 1000
        unused = classes * (model.transformer.dim + 1)
    assert sum(p.numel() for p in model.parameters()) + unused == info["parameters"]
    conversion = convert_official(state)
    assert not conversion.missing
    assert not conversion.dropped
    model.load_state_dict(conversion.state, strict=True, assign=True)
    shape = torch.Size([info["batch"], 3, *settings.input_size])
    x = torch.from_numpy(uniform(seed, "input/x", shape.numel())).view(shape)
    assert x.flatten()[: len(info["input_check"])].tolist() == info["input_check"]
    with torch.no_grad():
        camera = given.get("cam_label")
        case.compare("output/features", model(x / 2 + 0.5, camera))
        case.compare_if_recorded("output/resnet_map_mean", lambda: model.cnn(x).mean((2, 3)))
        case.compare_if_recorded(
            "output/vit_token_mean", lambda: model.transformer(x, camera)[:, 1:].mean(1)
        )


TARGETS = {"whole_official_size": official_size_target}
