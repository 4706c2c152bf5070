"""Official MEDUSA weights under the zoo's names; pure functions, without TensorFlow.

The official code saves TensorFlow checkpoints, whose tensors `weight_files` reads. Names are
matched by their endings, because the prefix of a residual block depends on TensorFlow's version.
Kernels lie as height, width, in, out there, and as out, in, height, width here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zoo import files
from zoo.domains.medical.medusa.backbone import STRIDES, TOP, KerasResNet, last_side
from zoo.domains.medical.medusa.body import LAYERS, WIDTH, Body
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.heads import ScaleHead
from zoo.domains.medical.medusa.weight_files import read_weights
from zoo.errors import WeightsError
from zoo.kernels import BroadcastGate
from zoo.kernels.official import from_tensorflow
from zoo.task import Adoption, Conversion, Facts

FIRST_HEAD = 600
PARTS = {"2a": "reduce", "2b": "spatial", "2c": "expand", "1": "shortcut"}
KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_BLOCK = re.compile(r"(res|bn)([2-5])([a-z])_branch(2[abc]|1)/(\w+)")
_ENDING = re.compile(
    r"(?:^|/)((?:sem/\d+|conv1|bn_conv1|(?:res|bn)[2-5][a-z]_branch(?:2[abc]|1)|final_output)/"
    r"(?:kernel|bias|gamma|beta|moving_mean|moving_variance))(?::0)?(?:/\.ATTRIBUTES/VARIABLE_VALUE)?"
)
_OPTIMISER = re.compile(r"/(?:Adam|Adam_1|Momentum)(?::0)?$|(?:^|/)(?:beta[12]_power|global_step)")


class Sizes(NamedTuple):
    """What official tensors say about their network.

    Attributes:
        heads: Number of scale heads: 4, 1 (`resnet2`) or 0.
        classes: Number of classes K; 0 without a top.
        width: Channels of the backbone's stem; 0 without a backbone.
        blocks: Bottlenecks of the four stages.
        body_width: Channels of the body's first level; 0 without a body.
        places: Side of the grid the top keeps: 2 at 480 pixels.
    """

    heads: int
    classes: int
    width: int
    blocks: tuple[int, int, int, int]
    body_width: int
    places: int

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every parameter and buffer of ours that belongs to such a network."""
        found: dict[str, torch.Size] = {}
        with torch.device("meta"):
            if self.body_width:
                found |= _shapes("body", Body(self.body_width))
            if self.width:
                size = next(n for n in range(32, 4096) if last_side(n) // TOP == self.places)
                net = KerasResNet(self.classes, size, width=self.width, blocks=self.blocks)
                found |= _shapes("backbone", net)
                wide = net.channels[-self.heads :] if self.heads else []
                for index, channels in enumerate(wide):
                    found |= _shapes(f"heads.{index}", ScaleHead(channels))
        return found


def _shapes(prefix: str, module: torch.nn.Module) -> dict[str, torch.Size]:
    return {f"{prefix}.{key}": value.shape for key, value in module.state_dict().items()}


def official_name(key: str) -> str | None:
    """The part of a TensorFlow name that tells the tensor; None for what is no weight of it."""
    if _OPTIMISER.search(key):
        return None
    found = _ENDING.search(key)
    return found[1] if found and found.end() == len(key) else None


def rename_official(key: str) -> str | None:
    """Our name of an official key; None if there is none."""
    name = official_name(key)
    if name is None:
        return None
    layer, _, kind = name.rpartition("/")
    ending = KINDS[kind]
    block = _BLOCK.fullmatch(name)
    if block:
        what, stage, letter, branch, _ = block.groups()
        place = f"stages.{int(stage) - 2}.{ord(letter) - ord('a')}.{PARTS[branch]}"
        return f"backbone.{place}.{'conv' if what == 'res' else 'norm'}.{ending}"
    if layer.startswith("sem/"):
        number = int(layer.removeprefix("sem/"))
        if number >= FIRST_HEAD:
            inner = BroadcastGate.OFFICIAL["medusa"].ours(kind)
            return None if inner is None else f"heads.{number - FIRST_HEAD}.{inner}"
        return f"body.conv{number}.{ending}" if number in LAYERS else None
    if layer == "final_output":
        return f"backbone.classifier.{ending}"
    return f"backbone.stem.{'conv' if layer == 'conv1' else 'norm'}.{ending}"


def convert_tensor(key: str, value: Tensor) -> Tensor:
    """An official tensor in our layout; ours keeps the top's order of places and channels.

    Args:
        key: Its official name.
        value: A kernel (H, W, I, O) or (I, O), or anything of one axis.
    """
    if key.removesuffix(":0").endswith("/kernel"):
        value = from_tensorflow(value)
    return value.contiguous()


def infer_sizes(state: Mapping[str, Tensor]) -> Sizes:
    """The network that official tensors belong to.

    Raises:
        WeightsError: They are those of no MEDUSA network.
    """
    named = {name: value for key, value in state.items() if (name := official_name(key))}
    first, stem, top = (
        named.get(k) for k in ("sem/1/kernel", "conv1/kernel", "final_output/kernel")
    )
    if (first is None and stem is None) or (stem is None) != (top is None):
        absent = [
            k for k in ("sem/1/kernel", "conv1/kernel", "final_output/kernel") if k not in named
        ]
        msg = f"not weights of MEDUSA or of its body: no {', '.join(absent)}"
        if any("layer_with_weights-" in key for key in state):
            msg += "; Keras numbers layers in this kind of file, save it by tf.train.Saver"
        raise WeightsError(msg)
    heads = sum(f"sem/{FIRST_HEAD + i}/kernel" in named for i in range(4))
    body_width = 0 if first is None else first.shape[-1]
    if stem is None or top is None:
        return Sizes(0, 0, 0, (0, 0, 0, 0), body_width, 0)
    width, counts = stem.shape[-1], []
    for stage in range(2, 2 + len(STRIDES)):
        blocks = {b[3] for n in named if (b := _BLOCK.match(n)) and b[2] == str(stage)}
        counts.append(len(blocks))
    places = round((top.shape[0] / (32 * width)) ** 0.5)
    if min(counts) < 1 or not 1 <= places <= 9:
        msg = f"not weights of MEDUSA: blocks of stages 2 to 5 {counts}, top {tuple(top.shape)}"
        raise WeightsError(msg)
    two, three, four, five = counts
    return Sizes(heads, top.shape[-1], width, (two, three, four, five), body_width, places)


def convert_official(state: Mapping[str, Tensor]) -> Conversion:
    """Official tensors under our names.

    A whole network loads strictly into `build_model` of the same sizes; a body alone (the lung
    segmenter) gives keys under `body.`. A top without bias, as in the released graph, gets zeros.

    Args:
        state: TensorFlow's names, with or without `:0` and the prefixes of residual blocks.

    Raises:
        WeightsError: The tensors belong to no MEDUSA network, or contradict each other.
    """
    sizes = infer_sizes(state)
    expected = sizes.shapes()
    made: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    wrong = []
    for key, value in state.items():
        ours = rename_official(key)
        if ours is None or ours not in expected:
            optimiser = _OPTIMISER.search(key) is not None
            dropped[key] = "optimiser state" if optimiser else "no such weight in this network"
            continue
        fitted = convert_tensor(str(official_name(key)), value)
        if ours in made:
            wrong.append(f"two tensors for {official_name(key)}")
        elif fitted.shape != expected[ours]:
            wrong.append(
                f"{key} is {tuple(value.shape)}, here {tuple(fitted.shape)} instead of "
                f"{tuple(expected[ours])}"
            )
        made[ours], renamed[key] = fitted, ours
    if wrong:
        msg = f"weights contradict each other: {'; '.join(wrong[:3])}"
        raise WeightsError(msg)
    for key, shape in expected.items():
        if key.endswith("num_batches_tracked"):
            made[key] = torch.zeros(shape, dtype=torch.long)
    if sizes.classes and "backbone.classifier.bias" not in made:
        made["backbone.classifier.bias"] = torch.zeros(sizes.classes)
    return Conversion(made, renamed, dropped, [key for key in expected if key not in made])


# -- the body's first weights -------------------------------------------------------------------


def load_body_state(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a body from wherever they lie.

    Args:
        path: A run folder of `preset=body`, or a file: ours or an official one (`.safetensors`,
            `.npz`), the lung segmenter's Keras file (`.hdf5`, `.h5`), a TensorFlow checkpoint
            (`.index`).
        expected: The state dict they have to fit.

    Raises:
        WeightsError: There is nothing, it cannot be read, or it is a body of another width.
    """
    found = _run_weights(path) if path.is_dir() else read_weights(path)
    ours = {k.removeprefix("body."): v for k, v in found.items() if k.startswith("body.conv")}
    if not ours and any(re.fullmatch(r"conv\d+\.(weight|bias)", k) for k in found):
        ours = dict(found)
    if not ours:
        converted = convert_official(found).state
        ours = {k.removeprefix("body."): v for k, v in converted.items() if k.startswith("body.")}
    absent = [k for k in expected if k not in ours]
    if absent:
        msg = f"{path}: no weights of the attention body: {', '.join(absent[:3])} missing"
        raise WeightsError(msg)
    for key, value in expected.items():
        if ours[key].shape != value.shape:
            msg = (
                f"{path}: {key} is {tuple(ours[key].shape)}, not {tuple(value.shape)}; is it a "
                f"body of another model.body_width ({WIDTH} as released)?"
            )
            raise WeightsError(msg)
    return {key: ours[key] for key in expected}


def _run_weights(folder: Path) -> dict[str, Tensor]:
    """The chosen weights of a finished run, verified against their hash."""
    try:
        index = json.loads((folder / "checkpoints" / "index.json").read_text())
        step = folder / "checkpoints" / str(index.get("best") or index["last"])
        told = json.loads((step / "meta.json").read_text())["sha256"]["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{folder}: no finished training in this folder; name a run or a weight file"
        raise WeightsError(msg) from error
    weights = step / "model.safetensors"
    if not weights.is_file() or files.sha256(weights) != told:
        msg = f"{weights}: missing or damaged (its hash differs)"
        raise WeightsError(msg)
    return read_weights(weights)


# -- without settings ---------------------------------------------------------------------------

CLASSES = {2: ("negative", "positive"), 3: ("normal", "pneumonia", "COVID-19")}
"""Names of classes in the order of the released models (COVIDx lists of version B and A)."""
RELEASED = (480, 256)
"""Sides in pixels of both inputs of the released model."""
VARIANTS = {4: "resnet1", 1: "resnet2", 0: "resnet0_R"}
"""Number of scale heads -> variant; without heads the image itself is changed in two ways."""


def our_sizes(state: Mapping[str, Tensor]) -> Sizes:
    """What `infer_sizes` tells, of tensors under our names.

    Raises:
        WeightsError: They are those of no MEDUSA network.
    """
    first, stem, top = (
        state.get(k)
        for k in ("body.conv1.weight", "backbone.stem.conv.weight", "backbone.classifier.weight")
    )
    if (first is None and stem is None) or (stem is None) != (top is None):
        msg = "no weights of medusa: neither 'body.conv1.weight' nor 'backbone.stem.conv.weight'"
        raise WeightsError(msg)
    body_width = 0 if first is None else first.shape[0]
    if stem is None or top is None:
        return Sizes(0, 0, 0, (0, 0, 0, 0), body_width, 0)
    counts = [
        len({k.split(".")[3] for k in state if k.startswith(f"backbone.stages.{stage}.")})
        for stage in range(len(STRIDES))
    ]
    two, three, four, five = counts
    heads = sum(f"heads.{i}.conv.weight" in state for i in range(4))
    places = round((top.shape[1] / (32 * stem.shape[0])) ** 0.5)
    return Sizes(heads, top.shape[0], stem.shape[0], (two, three, four, five), body_width, places)


def adopt(state: Mapping[str, Tensor], config: Config) -> Adoption:
    """Settings and facts of a model that comes without any.

    Args:
        state: Under our names: a whole network, or the body alone.
        config: For what no tensor tells: names of classes, side of the body's input, crops.

    Raises:
        WeightsError: It is no model of this task, or has another number of classes.
    """
    sizes = our_sizes(state)
    told = []
    words = [f"model.body_width={sizes.body_width}"] if sizes.body_width else []
    if not sizes.width:
        words += ["optim.objective=body", "optim.select=dice"]
        classes: list[str] = []
        side = config.model.image_size
    else:
        released = sizes.width == 64 and sizes.blocks == (3, 4, 6, 3)
        side = config.model.image_size
        if not config.model.global_pool:
            side = _image_size(sizes.places, side)
        variant = VARIANTS.get(sizes.heads, "resnet1") if sizes.body_width else "backbone_only"
        words += [f"model.variant={variant}", f"model.image_size={side}"]
        words.append(f"model.backbone={'keras_resnet50' if released else 'small'}")
        if not released:
            words += [f"model.width={sizes.width}", f"model.blocks={list(sizes.blocks)}"]
        if variant == "resnet0_R":
            told.append("the file does not tell resnet0_R from resnet0_M; model.variant=… chooses")
        classes = _class_names(sizes.classes, config.data.classes)
        if config.data.classes is None:
            named = ", ".join(classes)
            told.append(f"classes are taken to be {named}; data.classes=[…] renames them")
        told.append("there is no operating point, so no decision stands beside the probabilities")
    facts: Facts = {
        "classes": classes,
        "positive": len(classes) - 1,
        "merge": {},
        "preprocessing": {
            "image_size": side,
            "body_size": config.model.body_size,
            "crop_top": config.data.crop_top,
            "square": config.data.square,
        },
        "confound": "",
    }
    return Adoption(words, facts, told)


def _image_size(places: int, wanted: int) -> int:
    """A side of the backbone's input that gives the top its grid: what is wanted, if that does."""
    fits = [n for n in range(32, 4096) if last_side(n) // TOP == places]
    if not fits:
        msg = f"no weights of medusa: no image gives the top its {places} x {places} places"
        raise WeightsError(msg)
    return next((n for n in (wanted, RELEASED[0], 224) if n in fits), fits[0])


def _class_names(count: int, given: Sequence[str] | None) -> list[str]:
    if given is not None and len(given) != count:
        msg = f"data.classes names {len(given)} classes; the file has {count}"
        raise WeightsError(msg)
    return list(given or CLASSES.get(count) or [f"class {i}" for i in range(count)])
