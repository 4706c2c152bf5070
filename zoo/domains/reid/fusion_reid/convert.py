"""Official FusionReID checkpoints under the zoo's names.

The published code (924973292/FusionReID) saves plain state dicts of the whole model or of one
branch. No trained weights were released, so these are checkpoints that users trained with it.
ImageNet's weights for the branches are in `backbones.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.domains.reid.fusion_reid import t2t, vit
from zoo.domains.reid.fusion_reid.backbones import COUNTER
from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.model import FusionReID
from zoo.domains.reid.fusion_reid.resnet import DEPTHS, ResNet
from zoo.domains.reid.fusion_reid.t2t import T2TViT
from zoo.domains.reid.fusion_reid.vit import (
    PATCH,
    TokenEncoder,
    Variant,
    VisionTransformer,
    patch_grid,
)
from zoo.errors import WeightsError
from zoo.kernels import QueryPool
from zoo.task import Adoption, Conversion, Facts

Kind = Literal["both", "cnn", "transformer"]

HEAD_NAMES = {"1": "refined_cnn", "2": "refined_transformer"}
HEAD_NAMES |= {"3": "fused_cnn", "4": "fused_transformer"}
BRANCHES = {"resnet": "cnn", "transformer": "transformer"}
REFINEMENT = {"res_LRU": "refine_cnn", "former_LRU": "refine_transformer"}
REFINED = {"dwconv": "depthwise", "bn1": "norm1", "ptconv": "pointwise", "bn2": "norm2"}
UNITS = {"SEU": "encode", "SEU1": "encode_cnn", "SEU2": "encode_transformer", "MFU": "fuse"}
UNITS |= {"MUF_RES": "fuse_cnn", "MFU_FORMER": "fuse_transformer"}  # spelt so in the release
UNUSED = re.compile(r"transformer\.base\.(fc|head)\.(weight|bias)")


def rename_official(key: str) -> str | None:
    """Our name of an official key of the whole model; None where there is no place for it.

    Older versions of the published code call `HTM` `mix`; both are known.
    """
    top, _, rest = key.partition(".")
    if top in BRANCHES:
        return _branch(BRANCHES[top], rest)
    if top in REFINEMENT:
        part, _, leaf = rest.partition(".")
        return f"{REFINEMENT[top]}.{REFINED.get(part, part)}.{leaf}"
    if top in ("gap_r", "gap_f"):
        return f"pool_refined_{'cnn' if top == 'gap_r' else 'transformer'}.{rest}"
    if top in ("HTM", "mix"):
        return _unit(rest)
    match = re.fullmatch(r"(classifier|bottleneck)_([1-4])", top)
    if match:
        part = "classifier" if match[1] == "classifier" else "neck"
        return f"heads.{HEAD_NAMES[match[2]]}.{part}.{rest}"
    return None


def _branch(name: str, rest: str) -> str | None:
    """A key below `resnet.` or `transformer.`."""
    part, _, leaf = rest.partition(".")
    if part == "base":
        unused = name == "transformer" and leaf.partition(".")[0] in ("fc", "head")
        return None if unused else f"{name}.{leaf}"
    if part == "gap" and name == "cnn":
        return f"pool_cnn.{leaf}"
    if part in ("classifier", "bottleneck"):
        return f"heads.{name}.{'neck' if part == 'bottleneck' else part}.{leaf}"
    return None


def _unit(rest: str) -> str | None:
    """A key below `HTM.`."""
    match = re.fullmatch(r"blocks\.(\d+)\.(\w+?)\.(.+)", rest)
    if match is None or match[2] not in UNITS:
        return None
    layer, unit, inner = match[1], UNITS[match[2]], match[3]
    if unit.startswith("fuse"):
        inner = rename_fusion_unit(inner)
    return f"transmission.layers.{layer}.{unit}.{inner}"


def rename_fusion_unit(key: str) -> str:
    """Our name of a key inside an official Mutual Fusion Unit."""
    key = key.removeprefix("blocks.0.")
    part, _, inner = key.partition(".")
    ours = QueryPool.OFFICIAL["fusion_reid"].ours(inner) if part == "attn" else None
    return key if ours is None else f"attn.{ours}"


def recognise(state: Mapping[str, Tensor]) -> Kind:
    """Whether official tensors are a whole model, a ResNet alone or a transformer alone.

    Raises:
        WeightsError: They are none of these.
    """
    if any(key.startswith(("resnet.base.", "res_LRU.")) for key in state):
        return "both"
    if "base.conv1.weight" in state:
        return "cnn"
    if "base.cls_token" in state:
        return "transformer"
    first = next(iter(state), "")
    msg = (
        "no checkpoint of FusionReID: keys such as 'resnet.base.conv1.weight' or "
        f"'base.cls_token' expected, the first one is '{first}'"
    )
    raise WeightsError(msg)


def convert_official(state: Mapping[str, Tensor]) -> Conversion:
    """An official checkpoint's tensors under our names.

    Args:
        state: Tensors under the official keys; a prefix `module.` is dropped.

    Returns:
        `missing` is what a model of these sizes also has; for another number of identities or
        another set of cameras leave the classifiers or `transformer.sie_embed` out.

    Raises:
        WeightsError: The tensors are of another model, or contradict each other.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    kind = recognise(state)
    root = {"both": "", "cnn": "resnet.", "transformer": "transformer."}[kind]
    made: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key, value in state.items():
        ours = rename_official(root + key)
        if ours is None:
            unused = UNUSED.fullmatch(root + key)
            dropped[key] = "ImageNet classes, never used" if unused else "no such weight here"
        else:
            made[ours], renamed[key] = value, ours
    expected = {k: tuple(v.shape) for k, v in skeleton(made).state_dict().items()}
    for key in [k for k, ours in renamed.items() if ours not in expected]:
        del made[renamed.pop(key)]
        dropped[key] = "no such weight here"
    wrong = [
        f"{key} is {tuple(made[ours].shape)} instead of {expected[ours]}"
        for key, ours in renamed.items()
        if tuple(made[ours].shape) != expected[ours]
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = f"weights contradict each other: {'; '.join(wrong[:3])}{more}"
        raise WeightsError(msg)
    missing = [key for key in expected if key not in made and not key.endswith(COUNTER)]
    return Conversion(made, renamed, dropped, missing)


# -- sizes ----------------------------------------------------------------------------------------


def skeleton(state: Mapping[str, Tensor]) -> FusionReID:
    """A model on the meta device with the sizes that tensors under our names have.

    Raises:
        WeightsError: A tensor that tells a size is missing.
    """
    with torch.device("meta"):
        cnn = _cnn(state) if any(k.startswith("cnn.") for k in state) else None
        encoder = None
        if any(k.startswith("transformer.") for k in state):
            encoder = _transformer(state)
        heads = [v for k, v in state.items() if k.endswith("classifier.weight")]
        more = _mixing(state) if cnn is not None and encoder is not None else {}
        classes = heads[0].shape[0] if heads else 1
        return FusionReID(cnn, encoder, classes, (PATCH, PATCH), **more)


def _of(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        msg = f"incomplete weights: there is no tensor for our '{key}'"
        raise WeightsError(msg)
    return state[key]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Members of a numbered list."""
    start = len(prefix)
    return len({k[start:].partition(".")[0] for k in state if k.startswith(prefix)})


def _cnn(state: Mapping[str, Tensor]) -> ResNet:
    layers = [_count(state, f"cnn.layer{stage}.") for stage in (1, 2, 3, 4)]
    return ResNet(layers, _of(state, "cnn.conv1.weight").shape[0])


def _transformer(state: Mapping[str, Tensor]) -> TokenEncoder:
    first = "transformer.blocks.0."
    hidden, dim = _of(state, f"{first}mlp.fc1.weight").shape
    variant = Variant(
        dim,
        _count(state, "transformer.blocks."),
        1,  # their number shapes nothing
        hidden / dim,
        f"{first}attn.qkv.bias" in state,
    )
    tokens = _of(state, "transformer.pos_embed").shape[1] - 1
    side = state.get("transformer.sie_embed")
    more: dict[str, Any] = {"cameras": 0 if side is None else side.shape[0]}
    joined = "transformer.tokens_to_token."
    if not any(k.startswith(joined) for k in state):
        return VisionTransformer(variant, (PATCH - 1 + tokens, PATCH), (1, 1), **more)
    inner = _of(state, f"{joined}attention1.proj.weight").shape[0]
    kind = "performer" if f"{joined}attention1.w" in state else "transformer"
    return T2TViT(variant, (PATCH * tokens, PATCH), inner, kind, **more)


def _mixing(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the model that say how the branches are mixed."""
    units = {key.split(".")[3] for key in state if key.startswith("transmission.layers.")}
    patterns = {(True, False): 0, (False, False): 1, (False, True): 2, (True, True): 3}
    encodes = any(u.startswith("encode") for u in units)
    fuses = any(u.startswith("fuse") for u in units)
    depthwise = state.get("refine_cnn.depthwise.weight")
    return {
        "mix": _of(state, "refine_cnn.pointwise.weight").shape[0],
        "depth": _count(state, "transmission.layers."),
        "sharing": patterns["encode" in units, "fuse" in units],
        "mode": 0 if encodes == fuses else 1 if encodes else 2,
        "kernel": 1 if depthwise is None else depthwise.shape[2],
        "depthwise": depthwise is not None,
    }


# -- without settings ---------------------------------------------------------------------------

SIZES = ((256, 128), (384, 128))
OPTIONS = {"mode": "htm_mode", "kernel": "lru_kernel", "depthwise": "lru_depthwise"}
"""Argument of the model -> setting, where they differ."""
STRIDES = ((12, 12), (16, 16))
"""Image sizes and strides of the published models."""


def adopt(state: Mapping[str, Tensor], config: ReidModel) -> Adoption:
    """Settings and facts of a model that comes without any.

    Args:
        state: Under our names.
        config: Image size and stride, which only the number of tokens tells.

    Raises:
        WeightsError: It is no FusionReID, or no known size gives its number of tokens.
    """
    if not any(k.startswith("heads.") and k.endswith(".neck.weight") for k in state):
        msg = f"no weights of fusion_reid: no 'heads.….neck.weight', but '{next(iter(state), '')}'"
        raise WeightsError(msg)
    cnn = any(k.startswith("cnn.") for k in state)
    transformer = any(k.startswith("transformer.") for k in state)
    words, size = [], config.input_size
    if cnn:
        words += _cnn_words(state)
    if transformer:
        more, size = _transformer_words(state, config)
        words += more
    if cnn and transformer:
        words += [f"model.{OPTIONS.get(k, k)}={str(v).lower()}" for k, v in _mixing(state).items()]
    else:
        words.append(f"model.{'transformer' if cnn else 'cnn'}=none")
    side = state.get("transformer.sie_embed")
    cameras = 0 if side is None else side.shape[0]
    words.append(f"model.camera={'camera' if cameras else 'none'}")
    people = next((len(v) for k, v in state.items() if k.endswith("classifier.weight")), 1)
    facts: Facts = {
        "identities": [f"identity {i}" for i in range(people)],
        "cameras": [f"camera {i}" for i in range(max(1, cameras))],
        "domain": "",
        "input_size": list(size),
    }
    told = []
    if cameras:
        told.append(
            f"the file does not name its {cameras} cameras: every image takes their mean embedding"
        )
    return Adoption(words, facts, told)


def _cnn_words(state: Mapping[str, Tensor]) -> list[str]:
    if "cnn.conv1.weight" not in state:
        msg = "weights of OSNet tell too little; keep the run's checkpoint or a portable file"
        raise WeightsError(msg)
    layers = tuple(_count(state, f"cnn.layer{stage}.") for stage in (1, 2, 3, 4))
    width = state["cnn.conv1.weight"].shape[0]
    for name, depths in DEPTHS.items():
        if depths == layers and (name == "small" or width == 64):
            small = [f"model.width={width}"] if name == "small" else []
            return [f"model.cnn={name}", *small]
    msg = f"no ResNet of ours has {layers} blocks of {width} channels"
    raise WeightsError(msg)


def _transformer_words(
    state: Mapping[str, Tensor], config: ReidModel
) -> tuple[list[str], tuple[int, int]]:
    """Kind, image size and stride of the transformer, and the size."""
    dim = _of(state, "transformer.pos_embed").shape[2]
    blocks = _count(state, "transformer.blocks.")
    tokens = state["transformer.pos_embed"].shape[1] - 1
    joined = any(k.startswith("transformer.tokens_to_token.") for k in state)
    bias = "transformer.blocks.0.attn.qkv.bias" in state
    known: Mapping[str, Variant] = t2t.VARIANTS if joined else vit.VARIANTS
    kind = next(
        (n for n, v in known.items() if (v.dim, v.depth, v.bias) == (dim, blocks, bias)), "small"
    )
    words = [f"model.transformer={kind}"]
    if kind == "small":
        words += [f"model.dim={dim}", f"model.blocks={blocks}"]
    for size in (config.input_size, *SIZES):
        for stride in (config.stride, *STRIDES):
            rows, columns = t2t.token_grid(size) if joined else patch_grid(size, stride)
            if rows * columns == tokens:
                words.append(f"model.input_size=[{size[0]},{size[1]}]")
                return [*words, f"model.stride=[{stride[0]},{stride[1]}]"], size
    msg = f"no known image size gives {tokens} tokens; set model.input_size and model.stride"
    raise WeightsError(msg)
