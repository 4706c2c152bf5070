"""Official HER-Seg and Segment Anything weights under the zoo's names; pure functions.

Two kinds of HER-Seg files exist: a trained model (`MHRMedSeg`, 379 tensors) and the encoder
distilled from Segment Anything (`PFD`: `image_encoder.*` and `neck.*`). They expect images scaled
differently: trained models by ImageNet's deviation, the distilled encoder by the mean (its code
overwrites the one with the other). Which it is travels with the weights, in `normalise.*`.
Rotary tables are recomputed, never stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.domains.medical.her_seg.config import Config, SegModel
from zoo.domains.medical.her_seg.model import (
    MASKS,
    MEAN,
    SCALES,
    HerSegModel,
    Scaling,
    build_model,
)
from zoo.errors import WeightsError
from zoo.kernels import GatedLinearAttention, QueryPool
from zoo.kernels.gated_linear_attention import is_rotary_table
from zoo.states import read_state
from zoo.task import Adoption, Conversion, Facts

BLOCK = r"(image_encoder\.layers\.\d+\.blocks\.\d+\.)"
RENAMES = [
    *GatedLinearAttention.OFFICIAL["her_seg"].renames(BLOCK, r"\1attn."),
    # Every attention of the decoder has these names, that among the tokens too.
    *QueryPool.OFFICIAL["her_seg"].renames(r"(mask_decoder\.transformer\..+\.)", r"\1"),
]
"""Official key -> ours, where they differ."""
TABLE = re.compile(BLOCK + r"attn\.rope\.rotations")
TELLING = "image_encoder.patch_embed.proj.weight"
ENCODER = ("image_encoder.", "neck.")
DECODER = ("prompt_encoder.", "mask_decoder.")
COUNTER = "num_batches_tracked"
# What Segment Anything has and HER-Seg has not, or in another size.
SAM_LEFT = {
    "image_encoder.": "HER-Seg has its own encoder",
    "mask_decoder.iou_prediction_head.": "HER-Seg predicts no quality",
}


def rename_official(key: str) -> str | None:
    """Our name of an official key, `module.` in front or not; None for a rotary table."""
    key = key.removeprefix("module.")
    if TABLE.fullmatch(key):
        return None
    for pattern, ours in RENAMES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, ours, key)
    return key


def infer_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the network that official or our tensors belong to, as settings of `SegModel`.

    Args:
        state: Without `module.`.

    Raises:
        WeightsError: They are not those of HER-Seg.
    """
    first = state.get(TELLING)
    if first is None or first.dim() != 4 or first.shape[0] % 24:
        msg = f"not weights of HER-Seg: no '{TELLING}' of a width that 24 divides"
        if "image_encoder.pos_embed" in state:
            msg += "; these are Segment Anything's, for model.sam_weights"
        raise WeightsError(msg)
    blocks: dict[int, set[int]] = {}
    for key in state:
        found = re.match(r"image_encoder\.layers\.(\d+)\.blocks\.(\d+)\.", key)
        if found:
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    depths = tuple(len(blocks[i]) for i in sorted(blocks))
    if len(depths) != 4:
        msg = f"not weights of HER-Seg: an encoder of {len(depths)} stages instead of 4"
        raise WeightsError(msg)
    made: dict[str, Any] = {"dim": first.shape[0], "depths": depths}
    neck, mlp = (
        state.get(key)
        for key in ("neck.0.weight", "mask_decoder.transformer.layers.0.mlp.lin1.weight")
    )
    if neck is not None:
        made["decoder_dim"] = neck.shape[0]
    if mlp is not None:
        made["decoder_mlp"] = mlp.shape[0]
    return made


def expected_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each of our tensors for the network that a state dict belongs to.

    Raises:
        WeightsError: It is not HER-Seg.
    """
    settings = SegModel().model_copy(update=infer_settings(state))
    tokens = state.get("mask_decoder.mask_tokens.weight")
    masks = MASKS if tokens is None else tokens.shape[0]
    with torch.device("meta"):
        model = build_model(settings, 1 if masks <= MASKS else masks - 1)
    return {key: value.shape for key, value in model.state_dict().items()}


def convert_official(state: Mapping[str, Tensor]) -> Conversion:
    """Official tensors under our names.

    A trained model loads strictly into `build_model` of the same sizes. The distilled encoder
    gives `image_encoder.*`, `neck.*` and its own scaling of images; the rest is `missing`.

    Args:
        state: Official keys, with or without `module.` in front.

    Raises:
        WeightsError: The tensors are not those of HER-Seg, or contradict each other.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    expected = expected_shapes(bare)
    made: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    wrong = []
    for key, value in state.items():
        ours = rename_official(key)
        if ours is None:
            check_table(key, value)
            dropped[key] = "rotary tables are recomputed"
        elif ours not in expected:
            dropped[key] = "no such weight in this network"
        elif value.shape != expected[ours]:
            wrong.append(f"{key} is {tuple(value.shape)}, here {tuple(expected[ours])}")
        else:
            made[ours], renamed[key] = value, ours
    if wrong:
        msg = f"weights contradict each other: {'; '.join(wrong[:3])}"
        raise WeightsError(msg)
    if "normalise.pixel_scale" not in made:
        whole = any(key.startswith("mask_decoder.") for key in bare)
        made |= scaling_tensors("imagenet" if whole else "official_eval")
    for key, shape in expected.items():
        if key.endswith(COUNTER):
            made.setdefault(key, torch.zeros(shape, dtype=torch.long))
    return Conversion(made, renamed, dropped, [key for key in expected if key not in made])


def check_table(key: str, table: Tensor) -> None:
    """Holds a stored rotary table against ours.

    Args:
        key: Its name, for the message.
        table: (h, w, C / 2, 2): cosine and sine.

    Raises:
        WeightsError: It is another one.
    """
    if not is_rotary_table(table):
        msg = f"{key}: the rotary table {tuple(table.shape)} is not that of HER-Seg"
        raise WeightsError(msg)


def scaling_tensors(scaling: Scaling) -> dict[str, Tensor]:
    """The buffers of a scaling of images, under our names."""
    return {
        "normalise.pixel_mean": torch.tensor(MEAN).view(3, 1, 1),
        "normalise.pixel_scale": torch.tensor(SCALES[scaling]).view(3, 1, 1),
    }


def rescale_patches(state: Mapping[str, Tensor], mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The same function of images that are shifted and scaled otherwise, by the patch embedding.

    W ((x - m) / s) + b is W' ((x - m') / s') + b' with W' = W s' / s and
    b' = b + sum W (m' - m) / s, exactly, since patches are not padded.

    Args:
        state: Our keys, with `normalise.*` telling m and s.
        mean: m' of (3, 1, 1).
        scale: s' of (3, 1, 1).

    Returns:
        The tensors with m' and s'.
    """
    weight, bias = state[TELLING].double(), state[TELLING.replace("weight", "bias")].double()
    old_mean, old_scale = (state[f"normalise.pixel_{x}"].double() for x in ("mean", "scale"))
    if torch.equal(old_mean, mean.double()) and torch.equal(old_scale, scale.double()):
        return dict(state)
    shift = (weight * ((mean.double() - old_mean) / old_scale)).sum(dim=(1, 2, 3))
    made = dict(state)
    made[TELLING] = (weight * (scale.double() / old_scale)).to(state[TELLING].dtype)
    made[TELLING.replace("weight", "bias")] = (bias + shift).to(state[TELLING].dtype)
    return made | {"normalise.pixel_mean": mean, "normalise.pixel_scale": scale}


# -- Segment Anything ---------------------------------------------------------------------------


def convert_sam(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Conversion:
    """Prompt encoder and what fits of the mask decoder of a Segment Anything checkpoint.

    Taken are its attentions, normalisations, tokens, up-sampling and hyper-networks; of several
    mask tokens and hyper-networks those that both have. Its MLPs are eight times as wide.

    Args:
        state: Keys of `sam_vit_*.pth`.
        expected: The state dict they are for.

    Raises:
        WeightsError: It is no Segment Anything checkpoint, or the decoder has another width.
    """
    telling = "mask_decoder.iou_prediction_head.layers.0.weight"
    if telling not in state or "mask_decoder.mask_tokens.weight" not in state:
        msg = f"not weights of Segment Anything: no '{telling}'"
        raise WeightsError(msg)
    width, own = (x["mask_decoder.iou_token.weight"].shape[1] for x in (state, expected))
    if width != own:
        msg = f"Segment Anything's decoder has {width} channels; set model.decoder_dim={width}"
        raise WeightsError(msg)
    lin1 = "mask_decoder.transformer.layers.0.mlp.lin1.bias"
    same_mlp = lin1 in state and state[lin1].shape == expected[lin1].shape
    made: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for key, value in state.items():
        ours = rename_official(key)
        why = next((text for start, text in SAM_LEFT.items() if key.startswith(start)), None)
        if why is None and ".mlp." in key and not same_mlp:
            why = "the MLP has another width"  # its last bias alone would fit, and mean nothing
        if why is not None or ours is None or ours not in expected:
            dropped[key] = why or "no such weight in this network"
            continue
        needed = expected[ours]
        if key == "mask_decoder.mask_tokens.weight":
            shared = min(len(value), len(needed))
            value = torch.cat([value[:shared], needed[shared:].to(value.dtype)])
        if value.shape != needed.shape:
            dropped[key] = f"is {tuple(value.shape)}, here {tuple(needed.shape)}"
            continue
        made[ours], renamed[key] = value, ours
    missing = [k for k in expected if k.startswith(DECODER) and k not in made]
    return Conversion(made, renamed, dropped, missing)


# -- files --------------------------------------------------------------------------------------


def load_encoder(model: HerSegModel, state: Mapping[str, Tensor]) -> str:
    """Puts encoder and neck of official weights (or ours) into a model.

    Args:
        model: Changed in place.
        state: A distilled or a trained model.

    Returns:
        A line to tell.

    Raises:
        WeightsError: They are not HER-Seg's, or of other sizes.
    """
    converted = convert_official(state).state
    normalise = model.normalise
    rescaled = not torch.equal(converted["normalise.pixel_scale"], normalise.pixel_scale.cpu())
    fitted = rescale_patches(converted, normalise.pixel_mean.cpu(), normalise.pixel_scale.cpu())
    needed = {k: v for k, v in model.state_dict().items() if k.startswith(ENCODER)}
    wrong = [k for k, v in needed.items() if k not in fitted or fitted[k].shape != v.shape]
    if wrong:
        sizes = infer_settings(state)
        told = ", ".join(
            f"model.{name}={list(x) if isinstance(x, tuple) else x}"
            for name, x in sizes.items()
            if name != "decoder_mlp"
        )
        msg = f"of other sizes than this network ('{wrong[0]}'); the file has {told}"
        raise WeightsError(msg)
    model.load_state_dict({k: fitted[k] for k in needed}, strict=False)
    how = "; patch embedding rescaled to this network's normalisation" if rescaled else ""
    return f"{len(needed)} tensors of encoder and neck{how}"


def load_sam(model: HerSegModel, state: Mapping[str, Tensor]) -> str:
    """Puts Segment Anything's prompt encoder and what fits of its decoder into a model.

    Args:
        model: Changed in place.
        state: Of `sam_vit_*.pth`.

    Returns:
        A line to tell.

    Raises:
        WeightsError: It is no Segment Anything checkpoint, or the decoder has another width.
    """
    converted = convert_sam(state, model.state_dict())
    model.load_state_dict(converted.state, strict=False)
    return (
        f"{len(converted.state)} tensors of prompt encoder and decoder; "
        f"{len(converted.missing)} of the decoder stay random"
    )


def load_pretrained(model: HerSegModel, settings: SegModel) -> list[str]:
    """Read what a training begins from: `model.encoder_weights` and `model.sam_weights`.

    Args:
        model: Is changed in place.
        settings: Those it was built with.

    Returns:
        One line on each file that was read.

    Raises:
        WeightsError: A file is missing, cannot be read, or fits another network.
    """
    told = []
    for option, load in (("sam_weights", load_sam), ("encoder_weights", load_encoder)):
        path: Path | None = getattr(settings, option)
        if path is None:
            continue
        path = path.expanduser()
        try:
            told.append(f"from {path.name}: {load(model, read_state(path))}")
        except WeightsError as error:
            text = str(error).removeprefix(f"{path}: ")
            msg = f"model.{option}={path}: {text}"
            raise WeightsError(msg) from error
    return told


# -- without settings ---------------------------------------------------------------------------


def adopt(state: Mapping[str, Tensor], config: Config) -> Adoption:
    """Settings and facts of a model that comes without any.

    Args:
        state: Under our names; a distilled encoder has no decoder.
        config: How images meet the model; names of classes.

    Raises:
        WeightsError: It is no model of this task, or has another number of classes.
    """
    sizes = infer_settings(state)
    words = [
        f"model.{name}={list(x) if isinstance(x, tuple) else x}".replace(" ", "")
        for name, x in sizes.items()
    ]
    scale = state.get("normalise.pixel_scale")
    told = []
    if scale is None:
        told.append(f"the file does not tell how images are scaled: {config.model.normalisation}")
    else:
        known = [n for n, s in SCALES.items() if torch.allclose(scale.flatten(), torch.tensor(s))]
        words += [f"model.normalisation={name}" for name in known[:1]]
    tokens = state.get("mask_decoder.mask_tokens.weight")
    masks = MASKS if tokens is None else tokens.shape[0]
    count = 1 if masks <= MASKS else masks - 1
    labels = {k: v for k, v in config.data.labels.items() if k != "background"}
    named = list(labels)
    if named and len(named) != count:
        msg = f"data.labels names {len(named)} classes; the file has {count}"
        raise WeightsError(msg)
    if not named:
        named = ["foreground"] if count == 1 else [f"class {i + 1}" for i in range(count)]
        told.append(f"the file does not name what it segments: {', '.join(named)}")
    values = [v if isinstance(v, list) else [v] for v in labels.values()]
    facts: Facts = {
        "classes": named,
        "values": values or [[] for _ in named],
        "kind": "image",
        "image_size": config.model.image_size,
        "fit": config.data.fit,
    }
    return Adoption(words, facts, told)
