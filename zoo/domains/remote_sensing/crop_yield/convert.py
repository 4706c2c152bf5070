"""Released DFYP weights under the zoo's names; pure functions.

A released file (`modis/2009.pth`, `sentinel2/corn.pth`) is a pickled dict of the weights, losses
and arrays of predictions. It is read with an allow-list: tensors, plain containers and NumPy's
arrays. The band means of the MODIS networks are in none of them; they follow from the histograms
of the years before the predicted one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.modis import BINS, STRIDES, DFYPNet, ModisConvNet
from zoo.domains.remote_sensing.crop_yield.operators import OperatorRouter
from zoo.domains.remote_sensing.crop_yield.plain import kernels
from zoo.domains.remote_sensing.crop_yield.sentinel import SentinelConvNet, SentinelDFYPNet
from zoo.domains.remote_sensing.crop_yield.vit import ViT
from zoo.errors import WeightsError
from zoo.states import unpickled, unwrapped
from zoo.task import Adoption, Conversion

Sensor = Literal["modis", "sentinel2"]
TELLING: dict[Sensor, str] = {
    "modis": "cnn_model.convblocks.0.conv.weight",
    "sentinel2": "cnn_model.cnn.0.weight",
}
"""A key that only this network has."""

VIT_RENAMES = [
    (r"pos_embedding", r"positions"),
    (r"cls_token", r"class_token"),
    (r"to_patch_embedding\.1\.(\w+)", r"embedding.norm_in.\1"),
    (r"to_patch_embedding\.2\.(\w+)", r"embedding.linear.\1"),
    (r"to_patch_embedding\.3\.(\w+)", r"embedding.norm_out.\1"),
    (r"transformer\.norm\.(\w+)", r"norm.\1"),
    (r"transformer\.layers\.(\d+)\.0\.norm\.(\w+)", r"blocks.\1.attention.norm.\2"),
    (r"transformer\.layers\.(\d+)\.0\.to_qkv\.(\w+)", r"blocks.\1.attention.qkv.\2"),
    (r"transformer\.layers\.(\d+)\.0\.to_out\.0\.(\w+)", r"blocks.\1.attention.out.\2"),
    (r"transformer\.layers\.(\d+)\.1\.net\.0\.(\w+)", r"blocks.\1.mlp.norm.\2"),
    (r"transformer\.layers\.(\d+)\.1\.net\.1\.(\w+)", r"blocks.\1.mlp.up.\2"),
    (r"transformer\.layers\.(\d+)\.1\.net\.4\.(\w+)", r"blocks.\1.mlp.down.\2"),
    (r"mlp_head\.(\w+)", r"head.\1"),
]
"""Whole key of the released transformer -> ours, as regular expressions."""

RENAMES: dict[Sensor, list[tuple[str, str]]] = {
    "modis": [
        (r"a1", r"cnn_share"),
        (r"a2", r"vit_share"),
        (r"se_block\.fc\.0\.weight", r"rca.reduce.weight"),
        (r"se_block\.fc\.2\.weight", r"rca.expand.weight"),
        (r"cnn_model\.operator_weight", r"cnn.router.blend"),
        (r"cnn_model\.operator_router\.operators\.learnable\.(alpha|scale)", r"cnn.router.\1"),
        (r"cnn_model\.convblocks\.(\d+)\.conv\.(\w+)", r"cnn.blocks.\1.conv.\2"),
        (r"cnn_model\.convblocks\.(\d+)\.batchnorm\.(\w+)", r"cnn.blocks.\1.norm.\2"),
        (r"cnn_model\.dense_layers\.(\d+)\.(\w+)", r"cnn.dense.\1.\2"),
    ],
    "sentinel2": [
        (r"a1", r"cnn_share"),
        (r"a2", r"vit_share"),
        (r"se\.fc\.0\.weight", r"rca.reduce.weight"),
        (r"se\.fc\.2\.weight", r"rca.expand.weight"),
        (r"cnn_model\.operator_gate\.operator_weight", r"cnn.gate.blend"),
    ],
}
"""Whole released key -> ours; the Sentinel-2 layers that a Sequential numbers are below."""

SEQUENTIAL = {"cnn": ("convs", (0, 4, 8, 12)), "fusion": ("fusion", (0, 3, 6))}
"""Part of the Sentinel-2 convolutional branch -> our name and the numbers of its layers."""

_KERNEL = re.compile(
    r"cnn_model\.operator_(?:router\.operators|gate)\.(?:(sobel|scharr)|learnable)\."
    r"(?:(sobel|scharr|kernel|[a-z_]+)_)?([xy])"
)
BLOCK = r"vit\.blocks\.(\d+)\."
_COUNTER = "num_batches_tracked"
_OWN = ("band_mean", "target")
"""Buffers of ours that no released file has."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a released file holds.

    Attributes:
        state: Tensors under the released keys.
        arrays: `test_pred`, `test_real`, `test_years`, `train_loss` and the like: a file is its
            own check, since it stores its predictions.
    """

    state: dict[str, Tensor]
    arrays: dict[str, np.ndarray]


def load_official(path: Path | str) -> OfficialCheckpoint:
    """Reads a released checkpoint, or a bare state dict, without running anything in it.

    Raises:
        WeightsError: The file is missing, broken, or holds anything but tensors, plain
            containers and NumPy arrays; the message names what was refused.
    """
    content = unpickled(path, _numpy_types(), "NumPy arrays")
    whole = content if isinstance(content, dict) else {}
    state = unwrapped(content)
    if not all(isinstance(v, Tensor) for v in state.values()):
        msg = f"{path}: neither a state dict nor a dict with 'state_dict'"
        raise WeightsError(msg)
    if not state:
        msg = f"{path}: holds no weights"
        raise WeightsError(msg)
    others = whole.items() if state is not content else ()
    arrays = {k: np.asarray(v) for k, v in others if isinstance(v, (np.ndarray, list, float))}
    return OfficialCheckpoint({str(k): v for k, v in state.items()}, arrays)


def _numpy_types() -> list[Any]:
    """What NumPy's own pickles name, under the old module name and the new one."""
    core: Any = np._core  # type: ignore[attr-defined]  # private, but it is what pickles name
    rebuild, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    old = "numpy.core.multiarray"
    named = [(rebuild, f"{old}._reconstruct"), (scalar, f"{old}.scalar")]
    return [rebuild, scalar, np.ndarray, np.dtype, *kinds, *named]


def recognise(state: Mapping[str, Tensor]) -> Sensor:
    """Which of the two networks released keys belong to.

    Raises:
        WeightsError: Neither.
    """
    for sensor, key in TELLING.items():
        if key in state:
            return sensor
    first = next(iter(state), "nothing")
    msg = f"not weights of DFYP: neither {' nor '.join(TELLING.values())} is there, but '{first}'"
    raise WeightsError(msg)


def rename_official(key: str, sensor: Sensor) -> str | None:
    """Our name of a released key; None for what has no place here."""
    inner = key.removeprefix("vit_model.")
    table, start = (VIT_RENAMES, "vit.") if inner != key else (RENAMES[sensor], "")
    for pattern, ours in table:
        match = re.fullmatch(pattern, inner)
        if match:
            return start + match.expand(ours)
    layer = re.fullmatch(r"cnn_model\.(cnn|fusion)\.(\d+)\.(\w+)", key)
    if layer and sensor == "sentinel2":
        name, numbers = SEQUENTIAL[layer[1]]
        if int(layer[2]) in numbers:
            return f"cnn.{name}.{numbers.index(int(layer[2]))}.{layer[3]}"
    return None


def _check_kernel(key: str, value: Tensor) -> bool:
    """Whether a key is a fixed kernel of an operator, with the values that are built in here.

    Raises:
        WeightsError: It is a kernel with other values.
    """
    found = _KERNEL.fullmatch(key)
    name = (found[1] or found[2]) if found else None
    if found is None or name not in ("sobel", "scharr"):
        return False
    expected = kernels(name)[0 if found[3] == "x" else 1]
    if value.shape[-2:] != (3, 3) or not torch.equal(value.float(), expected.expand_as(value)):
        msg = f"{key} is not the kernel of the released {name} operator"
        raise WeightsError(msg)
    return True


def build_like(state: Mapping[str, Tensor], sensor: Sensor) -> nn.Module:
    """A network, without memory for weights, of the sizes that tensors under our names have.

    Heads cannot be read from shapes; the network has one of full width, which has the same shapes.

    Raises:
        WeightsError: A tensor that tells a size is missing.
    """
    try:
        with torch.device("meta"):
            vit = _vit_like(state)
            hidden = len(state["rca.reduce.weight"])
            if sensor == "sentinel2":
                return SentinelDFYPNet(SentinelConvNet("sobel", 0.5), vit, rca_hidden=hidden)
            channels, strides, dense, steps = _modis_sizes(state)
            bands = state["cnn.blocks.0.conv.weight"].shape[1]
            net = ModisConvNet(
                OperatorRouter(), steps, channels, dense[:-1], 0.5, bands, strides=strides
            )
            return DFYPNet(net, vit, bands=bands, rca_hidden=hidden)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        msg = f"incomplete weights of DFYP: {error} is missing"
        raise WeightsError(msg) from error


def _modis_sizes(
    state: Mapping[str, Tensor],
) -> tuple[list[int], Sequence[int], list[int], int]:
    """Channels and strides of the blocks, widths of the dense layers, steps of the season."""
    count = _count(state, r"cnn\.blocks\.(\d+)\.")
    channels = [len(state[f"cnn.blocks.{i}.conv.weight"]) for i in range(count)]
    strides = (STRIDES * count)[:count]
    layers = _count(state, r"cnn\.dense\.(\d+)\.")
    dense = [len(state[f"cnn.dense.{i}.weight"]) for i in range(layers)]
    wide = BINS
    for stride in strides:
        wide = -(-wide // stride)
    rows = state["cnn.dense.0.weight"].shape[1] // (channels[-1] * wide)
    # The number of steps is rounded up to what gives that many rows.
    return channels, strides, dense, rows * int(np.prod(strides))


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for key in state if (found := re.match(pattern, key))})


def _vit_like(state: Mapping[str, Tensor]) -> ViT:
    dim = state["vit.positions"].shape[-1]
    channels = state["rca.reduce.weight"].shape[1]
    inner = len(state["vit.blocks.0.attention.qkv.weight"]) // 3
    # One head as wide as a token has no output layer; two halves have the same shapes otherwise.
    heads = 2 if inner == dim and "vit.blocks.0.attention.out.weight" in state else 1
    return ViT(
        channels,
        state["vit.positions"].shape[-2] - 1,
        patch=round((state["vit.embedding.linear.weight"].shape[1] / channels) ** 0.5),
        dim=dim,
        depth=_count(state, BLOCK),
        heads=heads,
        head_size=inner // heads,
        mlp=len(state["vit.blocks.0.mlp.up.weight"]),
        outputs=len(state["vit.head.weight"]),
        p=0.0,
    )


def convert_official(state: Mapping[str, Tensor]) -> Conversion:
    """Released tensors under our names, for either sensor.

    Class token and positions may have two axes, as recent vit-pytorch writes them, or three. The
    fixed kernels of the operators are compared with ours and left out. `missing` names what ours
    has besides: MODIS band means, and the scale of targets, which is 0 and 1.

    Args:
        state: Tensors under released keys; a prefix `module.` is dropped.

    Raises:
        WeightsError: The tensors are not DFYP's, a kernel has other values, or shapes contradict
            each other.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    sensor = recognise(state)
    made: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key, value in state.items():
        ours = rename_official(key, sensor)
        if ours is None:
            fixed = _check_kernel(key, value)
            dropped[key] = "constant kernel, built in" if fixed else "no place in this network"
            continue
        if ours in ("vit.positions", "vit.class_token"):
            value = value.reshape(1, -1, value.shape[-1])
        made[ours], renamed[key] = value, ours
    expected = {k: v.shape for k, v in build_like(made, sensor).state_dict().items()}
    wrong = [
        f"{key} is {tuple(made[ours].shape)}, not {tuple(expected[ours])}"
        for key, ours in renamed.items()
        if ours in expected and made[ours].shape != expected[ours]
    ]
    wrong += [f"{key} has no place" for key, ours in renamed.items() if ours not in expected]
    if wrong:
        msg = f"weights contradict each other: {'; '.join(wrong[:3])}"
        raise WeightsError(msg)
    missing = [k for k in expected if k not in made and not k.endswith(_COUNTER)]
    absent = [k for k in missing if k not in _OWN]
    if absent:
        msg = f"incomplete weights of DFYP: {', '.join(absent[:3])} missing"
        raise WeightsError(msg)
    return Conversion(made, renamed, dropped, missing)


# -- without settings ---------------------------------------------------------------------------


def adopt(state: Mapping[str, Tensor], config: Config) -> Adoption:
    """Settings of a network that comes without any; its facts need a training set.

    Args:
        state: Under our names; a released file lacks the scale of targets.
        config: Head sizes, which no tensor tells.

    Raises:
        WeightsError: It is no network of this task.
    """
    if "rca.reduce.weight" not in state or "vit.positions" not in state:
        first = next(iter(state), "nothing")
        msg = f"no weights of crop_yield: neither RCA nor ViT is there, but '{first}'"
        raise WeightsError(msg)
    modis = "cnn.dense.0.weight" in state
    build_like(state, "modis" if modis else "sentinel2")  # it is whole
    inner = len(state["vit.blocks.0.attention.qkv.weight"]) // 3
    head = config.model.head_size or (64 if modis else 32)
    head = inner if inner % head else head
    patch = round((state["vit.embedding.linear.weight"].shape[1] / (9 if modis else 3)) ** 0.5)
    words = [
        f"data.sensor={'modis' if modis else 'sentinel2'}",
        f"model.rca_hidden={len(state['rca.reduce.weight'])}",
        f"model.dim={state['vit.positions'].shape[-1]}",
        f"model.depth={_count(state, BLOCK)}",
        f"model.heads={inner // head}",
        f"model.head_size={head}",
        f"model.mlp={len(state['vit.blocks.0.mlp.up.weight'])}",
        f"model.patch={patch}",
    ]
    told = []
    if modis:
        channels, _, dense, steps = _modis_sizes(state)
        words += [f"model.channels={channels}", f"model.dense={dense[0]}", f"data.steps={steps}"]
        if "band_mean" not in state:
            words.append("model.routing=per_sample")  # as the released networks were trained
        learnt = "band means, county yields and the predicted year (data.year) are in no such file"
    else:
        words.append(
            f"data.image_size={round((state['vit.positions'].shape[-2] - 1) ** 0.5) * patch}"
        )
        if "target" not in state:
            words.append("data.input_scaling=official")
            told.append("pictures stay at 0..255, as the released networks were trained")
        learnt = "county yields and the crop (data.crop) are in no such file"
    return Adoption(words, {}, told, learnt)
