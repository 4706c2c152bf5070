"""ImageNet weights of ResNets and PVTv2 under the zoo's names.

GL-DMNet itself was never released, so these are the only official weights it starts from:
torchvision's ResNet for both encoders, and the blocks and norms of PVTv2-B2, under the names of
its authors (whai362/PVT, `pvt_v2_b2.pth`) or of timm (`pvt_v2_b2`). Patch embeddings and
classifiers have no place here: GL-DMNet's own embeddings keep the resolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zoo.domains.saliency.rgbd_sod.config import Config, RgbdModel
from zoo.domains.saliency.rgbd_sod.model import GLDMNet, build_model
from zoo.domains.saliency.rgbd_sod.split import DEVIATION, MEAN
from zoo.errors import WeightsError
from zoo.states import read_state
from zoo.task import Adoption, Conversion, Facts

Kind = Literal["resnet", "pvt_official", "pvt_timm"]
TELLING: dict[Kind, str] = {
    "resnet": "layer1.0.conv1.weight",
    "pvt_official": "block1.0.attn.q.weight",
    "pvt_timm": "stages.0.blocks.0.attn.q.weight",
}
"""A key that only this kind of file has."""
WORDS: dict[Kind, str] = {
    "resnet": "a torchvision ResNet",
    "pvt_official": "PVTv2 under its authors' names",
    "pvt_timm": "PVTv2 under timm's names",
}
ENCODERS = ("encoder_rgb", "encoder_depth")
COUNTER = "num_batches_tracked"  # older torchvision files have none, and nothing reads it

# Stage numbers start at 1 in official keys and at 0 in timm's and ours.
OFFICIAL = [
    (r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.(\w+)", "blocks.{1}.mlp.dwconv.{2}"),
    (r"block(\d)\.(\d+)\.(.+)", "blocks.{1}.{2}"),
    (r"norm(\d)\.(\w+)", "norm.{1}"),
    (r"patch_embed(\d)\.(.+)", "patch_embed.{1}"),
]
"""Official key -> what follows the stage's number in ours."""
TIMM = [
    (r"stages\.(\d)\.blocks\.(\d+)\.(.+)", "blocks.{1}.{2}"),
    (r"stages\.(\d)\.norm\.(\w+)", "norm.{1}"),
    (r"stages\.(\d)\.downsample\.(.+)", "patch_embed.{1}"),
    (r"patch_embed()\.(.+)", "patch_embed.{1}"),
]
"""The same for timm's keys, whose first patch embedding is outside of the stages."""


def rename_pvt(key: str, kind: Kind, root: str = "transformer") -> str | None:
    """Our name of a PVTv2 key, `<root>.<stage>.…`; None for the classifier.

    Args:
        key: Official or timm key.
        kind: Which of the two.
        root: `transformer` in GL-DMNet, `stages` in `pvt.PvtPyramid`.
    """
    official = kind == "pvt_official"
    for pattern, ours in OFFICIAL if official else TIMM:
        match = re.fullmatch(pattern, key)
        if match:
            stage = int(match[1] or 0) - official
            return f"{root}.{stage}.{ours.format(*match.groups())}"
    return None


def recognise(state: Mapping[str, Tensor]) -> Kind:
    """Which of the three kinds of file a state dict is.

    Raises:
        WeightsError: It is none of them.
    """
    for kind, key in TELLING.items():
        if key in state:
            return kind
    known = "; ".join(f"{WORDS[kind]} ('{key}')" for kind, key in TELLING.items())
    msg = f"none of the weights that can be converted ({known}); the first key is '{_first(state)}'"
    raise WeightsError(msg)


def convert_resnet(state: Mapping[str, Tensor], settings: RgbdModel) -> Conversion:
    """A torchvision ResNet for both encoders.

    Args:
        state: Tensors under torchvision's keys.
        settings: The network it is for.

    Returns:
        `renamed` has one entry a tensor, with both of our names where there are two encoders;
        `missing` is what the encoders need and the file does not have.

    Raises:
        WeightsError: The network has no ResNet, or another one.
    """
    if settings.backbone == "small":
        msg = "the backbone 'small' takes no ResNet weights; set model.backbone=resnet50"
        raise WeightsError(msg)
    found = "resnet50" if "layer1.0.conv3.weight" in state else "resnet18"
    if found != settings.backbone:
        msg = f"weights of {found} or its like, but model.backbone is {settings.backbone}"
        raise WeightsError(msg)
    encoders = ENCODERS[:1] if settings.share_encoders else ENCODERS
    named = {key: [f"{e}.{key}" for e in encoders] for key in state if not key.startswith("fc.")}
    return _converted(state, named, settings, encoders, "GL-DMNet has no classifier")


def convert_pvt(state: Mapping[str, Tensor], settings: RgbdModel) -> Conversion:
    """Blocks and norms of PVTv2 for the transformer stages, from official or timm names.

    Args:
        state: Tensors under official or timm keys.
        settings: The network it is for.

    Raises:
        WeightsError: The file is none of the two, the network has no transformer, or tensors
            have other shapes than its stages.
    """
    if settings.transformer == "none":
        msg = "the network has no transformer; set model.transformer=pvt_v2_b2"
        raise WeightsError(msg)
    kind = recognise(state)
    named = {}
    for key in state:
        ours = rename_pvt(key, kind)
        if ours is not None and ".patch_embed." not in ours:
            named[key] = [ours]
    prefixes = tuple(f"transformer.{i}.{part}" for i in range(4) for part in ("blocks", "norm"))
    why = "GL-DMNet has its own patch embeddings and no classifier"
    return _converted(state, named, settings, prefixes, why)


def convert_any(state: Mapping[str, Tensor], settings: RgbdModel | None = None) -> Conversion:
    """Whichever of the three kinds of file a state dict is, under our names.

    Args:
        state: Tensors under official keys; a prefix `module.` is dropped.
        settings: The network it is for; None: the paper's.

    Raises:
        WeightsError: It is none of the three, or does not fit the network.
    """
    settings = RgbdModel() if settings is None else settings
    state = {key.removeprefix("module."): value for key, value in state.items()}
    convert = convert_resnet if recognise(state) == "resnet" else convert_pvt
    return convert(state, settings)


def convert_pyramid(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole PVTv2, classifier left out, for `pvt.PvtPyramid`.

    Raises:
        WeightsError: The keys are neither official nor timm's.
    """
    kind = recognise(state)
    renamed = {key: rename_pvt(key, kind, "stages") for key in state}
    return {ours: state[key] for key, ours in renamed.items() if ours is not None}


def load_into(model: GLDMNet, state: Mapping[str, Tensor]) -> Conversion:
    """Loads one official state dict into the parts of a model that it is for.

    Args:
        model: Changed in place.
        state: Tensors under official keys.

    Returns:
        What was loaded (`state`), skipped (`dropped`) and renamed; `missing` is empty.

    Raises:
        WeightsError: A key that those parts need is missing, or does not fit.
    """
    made = convert_any(state, model.settings)
    if made.missing:
        msg = (
            f"incomplete weights: {len(made.missing)} keys are missing, the first is "
            f"'{made.missing[0]}'; take a whole ImageNet checkpoint"
        )
        raise WeightsError(msg)
    model.load_state_dict(made.state, strict=False)
    return made


def load_backbones(model: GLDMNet, settings: RgbdModel) -> list[Conversion]:
    """Loads the files that `model.resnet_weights` and `model.pvt_weights` name, if any.

    Returns:
        A report of each file.

    Raises:
        WeightsError: A file cannot be read, is of the other kind, or does not fit.
    """
    reports = []
    for option, kinds in (("resnet_weights", ("resnet",)), ("pvt_weights", tuple(TELLING)[1:])):
        path: Path | None = getattr(settings, option)
        if path is None:
            continue
        state = read_state(path)
        try:
            kind = recognise(state)
            if kind not in kinds:
                msg = f"these are weights of {WORDS[kind]}"
                raise WeightsError(msg)
            reports.append(load_into(model, state))
        except WeightsError as error:
            msg = f"model.{option}={path}: {str(error).removeprefix(f'{path}: ')}"
            raise WeightsError(msg) from error
    return reports


def _converted(
    state: Mapping[str, Tensor],
    named: Mapping[str, list[str]],
    settings: RgbdModel,
    prefixes: tuple[str, ...],
    why_not: str,
) -> Conversion:
    """The conversion by a table of names, against the shapes of the parts under `prefixes`."""
    bare = settings.model_copy(update={"resnet_weights": None, "pvt_weights": None})
    with torch.device("meta"):
        whole = build_model(bare).state_dict()
    inside = tuple(f"{prefix}." for prefix in prefixes)
    expected = {key: value.shape for key, value in whole.items() if key.startswith(inside)}
    made: dict[str, Tensor] = {}
    renamed, dropped, wrong = {}, {}, []
    for key, value in state.items():
        ours = named.get(key)
        if ours is None:
            dropped[key] = why_not
            continue
        needed = expected.get(ours[0])
        if value.shape != needed:  # a deeper network of the family has parts that ours has not
            there = "absent" if needed is None else tuple(needed)
            wrong.append(f"{key} is {tuple(value.shape)}, ours is {there}")
        # Each encoder has its own copy: tensors that share memory cannot be saved.
        made |= {name: value.clone() if i else value for i, name in enumerate(ours)}
        renamed[key] = ", ".join(ours)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = f"weights of other sizes than the network's: {'; '.join(wrong[:3])}{more}"
        raise WeightsError(msg)
    missing = [key for key in expected if key not in made and not key.endswith(COUNTER)]
    return Conversion(made, renamed, dropped, missing)


def _first(state: Mapping[str, Tensor]) -> str:
    return next(iter(state), "")


# -- without settings ---------------------------------------------------------------------------


def adopt(state: Mapping[str, Tensor], config: Config) -> Adoption:
    """Settings and facts of a GL-DMNet, or of a part of one, that comes without any.

    Args:
        state: Under our names.
        config: For what no tensor tells: image size, how depth is read.

    Raises:
        WeightsError: It is no model of this task.
    """
    tops = {key.partition(".")[0] for key in state}
    if not tops & {"encoder_rgb", "fusion", "transformer", "decoder"}:
        msg = f"no weights of rgbd_sod: the first key is '{_first(state)}'"
        raise WeightsError(msg)
    words = _encoder_words(state, tops)
    stages = [f"transformer.{i}.norm.weight" for i in range(4)]
    if all(key in state for key in stages):
        blocks = [
            {k.split(".")[3] for k in state if k.startswith(f"transformer.{i}.blocks.")}
            for i in range(4)
        ]
        words.append(f"model.depths={[len(b) for b in blocks]}")
        words.append(f"model.embed_dims={[len(state[key]) for key in stages]}")
    elif "fusion" in tops:
        words.append("model.transformer=none")
    fusion = [f"fusion.{i}.reduce_rgb.0.conv.weight" for i in range(4)]
    if all(key in state for key in fusion):
        words.append(f"model.fusion_channels={[len(state[key]) for key in fusion]}")
    decoder = state.get("decoder.reduce.0.0.conv.weight")
    if decoder is not None:
        words.append(f"model.decoder_channels={len(decoder)}")
    data = config.data
    polarity = "near_dark" if data.polarity == "auto" else data.polarity
    facts: Facts = {
        "input_size": config.model.input_size,
        "polarity": {},
        "default_polarity": polarity,
        "depth": data.depth,
        "holes": data.holes,
        "hole_value": data.hole_value,
        "percentile": None if data.percentile is None else list(data.percentile),
        "mean": list(MEAN),
        "deviation": list(DEVIATION),
    }
    told = [f"depth is taken as {polarity}; data.polarity=… changes it"]
    return Adoption(words, facts, told)


def _encoder_words(state: Mapping[str, Tensor], tops: set[str]) -> list[str]:
    if "encoder_rgb" not in tops:
        return []
    words = [f"model.share_encoders={str('encoder_depth' not in tops).lower()}"]
    small = state.get("encoder_rgb.stages.0.0.conv.weight")
    if small is not None:
        return [*words, "model.backbone=small", f"model.width={len(small)}"]
    deep = "encoder_rgb.layer1.0.conv3.weight" in state
    return [*words, f"model.backbone={'resnet50' if deep else 'resnet18'}"]
