"""How each recorded target of `her_seg` is run; losses and metrics stand beside it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.kernels.holding import products_by
from tests.parity import her_seg_metrics
from tests.parity.golden import Case
from zoo.domains.medical.her_seg import recompute
from zoo.domains.medical.her_seg.config import SegModel
from zoo.domains.medical.her_seg.convert import convert_official, rename_official
from zoo.domains.medical.her_seg.decoder import MaskDecoder, TwoWayTransformer
from zoo.domains.medical.her_seg.encoder import Encoder, TokenBlock
from zoo.domains.medical.her_seg.layers import LayerNorm2d, MBConv, as_tokens
from zoo.domains.medical.her_seg.losses import probability_loss
from zoo.domains.medical.her_seg.model import HerSegModel, build_model
from zoo.domains.medical.her_seg.prompts import PromptBatch, PromptEncoder
from zoo.domains.medical.her_seg.sam2_neck import FpnNeck
from zoo.kernels import GatedLinearAttention, rotary_table, rotate

M = TypeVar("M", bound=nn.Module)
BLOCK = "image_encoder.layers.1.blocks.0."
STAGES = ((2, 2, 6, 2), (3, 6, 12, 24))


def ours(key: str, prefix: str) -> str | None:
    """Our name within a part of what is `key` in the official part that stands at `prefix`."""
    renamed = rename_official(prefix + key)
    return None if renamed is None else renamed.removeprefix(prefix)


def loaded(case: Case, part: M, prefix: str) -> M:
    """A part with the weights and the mode of a case; every tensor on either side is used."""
    state = {ours(key, prefix): value for key, value in case.group("state").items()}
    state.pop(None, None)
    part.load_state_dict({str(key): value for key, value in state.items()}, strict=True)
    return part.train(case.info["mode"] == "train")


def probe(outputs: Mapping[str, Tensor]) -> Tensor:
    """The loss of parts: means of the outputs times cosines, in alphabetical order."""
    total = torch.zeros((), dtype=next(iter(outputs.values())).dtype)
    for _, out in sorted(outputs.items()):
        wave = torch.arange(out.numel(), dtype=out.dtype).cos().view(out.shape)
        total = total + (out * wave).mean()
    return total


@contextmanager
def forms(*, own: bool) -> Iterator[None]:
    """The forms that large inputs run in, or those of small ones, whatever the size."""
    before = recompute.LARGE
    recompute.LARGE = 0 if own else 2**62
    try:
        with products_by(onednn=own):
            yield
    finally:
        recompute.LARGE = before


Run = Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]


def found_by(
    case: Case, part: nn.Module, prefix: str, run: Run, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Outputs and gradients under the keys of the records, of which some may never be asked for."""
    part = copy.deepcopy(part).to(dtype)
    inputs = {
        k: v.to(dtype if v.is_floating_point() else v.dtype) for k, v in case.group("input").items()
    }
    inputs = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
    made = run(part, inputs)
    found = {f"output/{name}": value.detach() for name, value in made.items()}
    if "output/loss" in case.tensors:
        loss = probe(made)
        found["output/loss"] = loss.detach()
        loss.backward()
        own = {name: parameter.grad for name, parameter in part.named_parameters()}
        for key, recorded in case.group("grad").items():
            kind, _, name = key.partition(".")
            grad = inputs[name].grad if kind == "input" else own[str(ours(name, prefix))]
            found[f"grad/{key}"] = torch.zeros_like(recorded) if grad is None else grad
    buffers = part.state_dict()
    for key in case.group("after"):
        found[f"after/{key}"] = buffers[str(ours(key, prefix))]
    return found


def check(case: Case, part: nn.Module, prefix: str, run: Run) -> None:
    """Outputs, their loss, all recorded gradients, and the buffers after a training step.

    Some records are further from the exact values than their tolerance: they change by more than it
    with the instruction set (the official operations give `mask_decoder_prompted` bit by bit with
    AVX2 and miss it with AVX-512). There ours must be as near to the float64 result as they are.
    """
    exact: dict[str, Tensor] = {}
    for own in (False, True):
        with forms(own=own):
            found = found_by(case, part, prefix, run, torch.float32)
        for key, value in found.items():
            if key.startswith("after/"):
                torch.testing.assert_close(value, case.tensors[key], rtol=1e-5, atol=1e-6)
                continue
            try:
                case.compare(key, value)
            except AssertionError:
                exact = exact or found_by(case, part, prefix, run, torch.float64)
                error, recorded = (
                    float((x.double() - exact[key]).abs().max()) for x in (value, case.tensors[key])
                )
                if error > recorded:
                    raise
                case.open.discard(key)


# -- encoder ------------------------------------------------------------------------------------


def layer_norm_target(case: Case) -> None:
    part = loaded(case, LayerNorm2d(case.info["args"]["num_channels"]), "")
    check(case, part, "", lambda part, given: {"y": part(given["x"])})


def rope_target(case: Case) -> None:
    height, width, channels = case.info["args"]["shape"]
    cos, sin = rotary_table((height, width), channels)
    case_table = case.tensors["state/rotations"].flatten(0, 1)
    torch.testing.assert_close(torch.stack([cos, sin], -1), case_table, rtol=1e-5, atol=1e-6)
    x = case.tensors["input/x"]
    case.compare("output/y", rotate(x.flatten(1, 2), cos, sin).view_as(x))


def linear_attention_target(case: Case) -> None:
    args = case.info["args"]
    grid = tuple(args["input_resolution"])
    part = GatedLinearAttention(args["dim"], args["num_heads"], gate=False)
    loaded(case, part, f"{BLOCK}attn.")
    check(case, part, f"{BLOCK}attn.", lambda part, given: {"y": part(given["x"], grid)})


def block_target(case: Case) -> None:
    args = case.info["args"]
    grid = tuple(args["input_resolution"])
    part = TokenBlock(
        args["dim"], args["num_heads"], args.get("mlp_ratio", 4.0), args.get("drop_path", 0.0)
    )
    loaded(case, part, BLOCK)
    check(case, part, BLOCK, lambda part, given: {"y": part(given["x"], grid)})


def mbconv_target(case: Case) -> None:
    args = case.info["args"]
    assert args["activation"] == "GELU"
    part = MBConv(args["in_chans"], args["out_chans"], args["expand_ratio"], args["drop_path"])
    loaded(case, part, BLOCK)
    check(case, part, BLOCK, lambda part, given: {"y": part(given["x"])})


def encoder_target(case: Case) -> None:
    args = case.info["args"]
    assert case.tensors["input/x"].shape[2:] == (args["img_size"], args["img_size"])
    part = Encoder(
        args["embed_dim"],
        args.get("depths", STAGES[0]),
        args.get("num_heads", STAGES[1]),
        mlp_ratio=args.get("mlp_ratio", 2.0),
        drop_path=args.get("drop_path_rate", 0.1),
        patch=args.get("patch_size", 16),
        channels=args.get("in_chans", 3),
    )
    loaded(case, part, "image_encoder.")
    check(case, part, "image_encoder.", lambda part, given: {"tokens": part(given["x"])})


# -- prompts and decoder ------------------------------------------------------------------------


def prompt_target(case: Case) -> None:
    args, inputs = case.info["args"], case.group("input")
    part = PromptEncoder(args["embed_dim"], args["mask_in_chans"])
    loaded(case, part, "prompt_encoder.")
    grid, size = tuple(args["image_embedding_size"]), tuple(args["input_image_size"])
    points = {"points": inputs["points"], "labels": inputs["labels"]}
    boxes = {"boxes": inputs["boxes"].view(len(inputs["boxes"]), -1, 4)}
    given = {
        "none": PromptBatch(),
        "points": PromptBatch(**points),
        "boxes": PromptBatch(**boxes),
        "masks": PromptBatch(mask=inputs["masks"]),
        "all": PromptBatch(**points, **boxes, mask=inputs["masks"]),
    }
    case.compare("output/dense_pe", part.dense_pe(grid))
    for name, prompts in given.items():
        sparse, dense = part(prompts, size, grid)
        case.compare_if_recorded(f"output/{name}.sparse", lambda found=sparse: found)
        case.compare_if_recorded(f"output/{name}.dense", lambda found=dense: found)


def transformer(args: Mapping[str, int]) -> TwoWayTransformer:
    return TwoWayTransformer(
        args["depth"],
        args["embedding_dim"],
        args["num_heads"],
        args["mlp_dim"],
        args.get("attention_downsample_rate", 2),
    )


def two_way_target(case: Case) -> None:
    prefix = "mask_decoder.transformer."
    part = loaded(case, transformer(case.info["args"]), prefix)

    def run(part: TwoWayTransformer, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image = given["image_embedding"]
        grid = (image.shape[2], image.shape[3])
        cells, pe = as_tokens(image), as_tokens(given["image_pe"])
        queries, keys = part(cells, pe, given["tokens"], grid)
        return {"queries": queries, "keys": keys}

    check(case, part, prefix, run)


def mask_decoder_target(case: Case) -> None:
    args = case.info["args"]
    part = MaskDecoder(
        transformer(args["transformer"]), args["transformer_dim"], args["num_multimask_outputs"]
    )
    loaded(case, part, "mask_decoder.")
    wanted = None if case.info["multimask_output"] else 1
    names = ("image_embeddings", "image_pe", "sparse", "dense")

    def run(part: MaskDecoder, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"low_res_masks": part(*(given[name] for name in names), wanted)}

    check(case, part, "mask_decoder.", run)


def neck_target(case: Case) -> None:
    args, positions = case.info["args"], case.info["args"]["position_encoding"]
    assert positions["type"] == "sine"
    assert positions["num_pos_feats"] == args["d_model"]
    part = FpnNeck(
        args["d_model"],
        args["backbone_channel_list"],
        args.get("fpn_top_down_levels"),
        args.get("fpn_interp_model", "bilinear"),
        args.get("fuse_type", "sum"),
        normalise=positions.get("normalize", True),
        temperature=positions.get("temperature", 10000),
    )
    loaded(case, part, "")

    def run(part: FpnNeck, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features, places = part([given[f"x{i}"] for i in range(len(given))])
        made = {f"feat{i}": x for i, x in enumerate(features)}
        return made | {f"pos{i}": x for i, x in enumerate(places)}

    check(case, part, "", run)


# -- whole model --------------------------------------------------------------------------------


def regenerated(case: Case) -> dict[str, Tensor]:
    """The official state dict of a case by its recipe, verified against every recorded sum."""
    made = {}
    for key in case.info["keys_in_order"]:
        shape = case.info["shapes"][key]
        if key.endswith("rotations"):
            cos, sin = rotary_table((shape[0], shape[1]), 2 * shape[2])
            made[key] = torch.stack([cos, sin], dim=-1).view(shape)
        elif key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(3)
        else:
            made[key] = drawn(key, shape, case.info["seed"])
        total, size = case.info["weight_sums"][key]
        wide = made[key].double()
        # Tables are ours, whose angles may be rounded otherwise.
        near = 1e-4 if key.endswith("rotations") else 1e-9
        assert math.isclose(wide.sum(), total, rel_tol=near, abs_tol=near * max(size, 1)), key
        assert math.isclose(wide.abs().sum(), size, rel_tol=near), key
    return made


def drawn(key: str, shape: list[int], seed: int) -> Tensor:
    """A tensor of the recipe: PCG64 seeded by the hash of seed and key."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "little")
    r = np.random.Generator(np.random.PCG64(number)).standard_normal(shape)
    if key.endswith("running_mean"):
        r = 0.3 * r
    elif key.endswith("running_var"):
        r = 0.5 + np.abs(r)
    elif key.endswith("gaussian_matrix"):
        pass
    elif r.ndim == 1:
        r = 1 + 0.25 * r if key.endswith("weight") else 0.2 * r
    elif r.ndim == 2 and shape[0] <= 3:
        r = 0.5 * r
    else:
        r = r / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(r.astype(np.float32))


def whole_target(case: Case) -> None:
    """The published network, or the same at other widths, from an official state dict."""
    args = case.info["args"]
    sizes = {"dim": args["dim"], "image_size": args["img_size"]}
    for name, option in (("width", "dim"), ("heads", "heads"), ("mlp", "mlp")):
        if f"decoder_{name}" in args:
            sizes[f"decoder_{option}"] = args[f"decoder_{name}"]
    official = case.group("state") or regenerated(case)
    conversion = convert_official(official)
    assert not conversion.missing
    assert all("rotations" in key for key in conversion.dropped)
    assert len(conversion.renamed) + len(conversion.dropped) == len(official)
    for own in (False, True):
        model = build_model(SegModel(**sizes))
        model.load_state_dict(conversion.state, strict=True)
        with forms(own=own):
            whole_run(case, model.train(case.info["mode"] == "train"))


def whole_run(case: Case, model: HerSegModel) -> None:
    """Everything recorded of a whole model, in one form."""
    x, target = (case.tensors[f"input/{name}"].clone() for name in ("x", "target"))
    x.requires_grad_()
    low = model.segment(x)
    logits = functional.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False)
    case.compare("output/logits", logits)
    loss = probability_loss(logits.sigmoid(), target)
    case.compare("output/loss", loss.total)
    case.compare_if_recorded("output/iou_soft", lambda: loss.iou)
    inner_outputs(case, model, x)
    loss.total.backward()
    gradients(case, model, x)
    gradient_sums(case, model)
    buffers = model.state_dict()
    for key, value in case.group("after").items():
        torch.testing.assert_close(buffers[str(ours(key, ""))], value, rtol=1e-5, atol=1e-6)


def gradients(case: Case, model: HerSegModel, x: Tensor) -> None:
    """Recorded gradients; one that we never ask for has to be zero there."""
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key, recorded in case.group("grad").items():
        kind, _, name = key.partition(".")
        found = x.grad if kind == "input" else own[str(ours(name, ""))]
        case.compare(f"grad/{key}", torch.zeros_like(recorded) if found is None else found)


def inner_outputs(case: Case, model: HerSegModel, x: Tensor) -> None:
    if "output/encoder_tokens" not in case.tensors:
        return
    with torch.no_grad():
        tokens = model.image_encoder(x)
        case.compare("output/encoder_tokens", tokens)
        case.compare("output/neck_embedding", model.neck.embed(tokens, model.image_encoder.grid(x)))


def gradient_sums(case: Case, model: HerSegModel) -> None:
    """Sum and absolute sum of every parameter's gradient."""
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    told = case.info.get("param_grad_sums", {})
    never = [grad for key, grad in own.items() if key not in {ours(k, "") for k in told}]
    assert not told or not any(grad is not None and grad.any() for grad in never)
    near = case.info["tolerance"]["rtol"]
    for key, (total, size) in told.items():
        grad = own[str(ours(key, ""))]
        wide = torch.zeros(1).double() if grad is None else grad.double()
        limit = near * size + 1e-7
        assert abs(float(wide.abs().sum()) - size) <= limit, key
        assert abs(float(wide.sum()) - total) <= limit, key


TARGETS: dict[str, Callable[[Case], None]] = {
    "dla_block": block_target,
    "encoder": encoder_target,
    "layer_norm_2d": layer_norm_target,
    "linear_attention": linear_attention_target,
    "mask_decoder": mask_decoder_target,
    "mbconv": mbconv_target,
    "prompt_encoder": prompt_target,
    "rope_2d": rope_target,
    "sam2_fpn_neck": neck_target,
    "two_way_transformer": two_way_target,
    "whole_model": whole_target,
    "whole_model_width": whole_target,
    **her_seg_metrics.TARGETS,
}
