"""How each recorded target of `reid` that concerns the model of `fusion_reid` is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.parity import fusion_reid_official
from tests.parity.golden import Case
from zoo.domains.reid.fusion_reid.convert import (
    convert_official,
    rename_fusion_unit,
    rename_official,
)
from zoo.domains.reid.fusion_reid.fusion import (
    EncodingUnit,
    FusionUnit,
    LocalRefinement,
    Transmission,
    TransmissionLayer,
)
from zoo.domains.reid.fusion_reid.heads import GeM
from zoo.domains.reid.fusion_reid.model import HEADS, FusionReID
from zoo.domains.reid.fusion_reid.resnet import ResNet
from zoo.domains.reid.fusion_reid.t2t import T2TViT
from zoo.domains.reid.fusion_reid.vit import (
    Variant,
    VisionTransformer,
    resize_positions,
)

Rename = Callable[[str], str | None]
UNDONE = ("dwconv.bias", "ptconv.bias")
"""Ends of keys of shifts that a batch norm takes out again in training."""
STEM = ("bn1.bias", "cnn.bn1.bias")  # our names; likewise, as no ReLU follows in the stem
SHORT = ("r", "f", "1", "2", "3", "4")
"""What the official code calls the six heads, in our order."""


def below(official: str, ours: str) -> Rename:
    """Renames keys of a part as if they stood below `official` in the whole model."""

    def rename(key: str) -> str | None:
        found = rename_official(f"{official}.{key}")
        return None if found is None else found.removeprefix(f"{ours}.")

    return rename


def load(case: Case, part: nn.Module, rename: Rename, unused: tuple[str, ...] = ()) -> None:
    """Loads the recorded state; only keys that start with `unused` may have no place."""
    renamed = {rename(key): value for key, value in case.group("state").items()}
    given = {
        key: value
        for key, value in renamed.items()
        if key is not None and not key.startswith(unused or "\0")
    }
    part.load_state_dict(given, strict=True)
    part.train(case.info.get("mode") == "train")


def inputs(case: Case, *names: str) -> list[Tensor]:
    """Recorded inputs that take gradients."""
    found = case.group("input")
    return [found[name].requires_grad_() for name in names]


def compare(
    case: Case, part: nn.Module, rename: Rename, given: dict[str, Tensor], **made: Tensor
) -> None:
    """Outputs, the loss of their probes, gradients and batch statistics after the step."""
    for name, value in made.items():
        case.compare(f"output/{name}", value)
    probes = case.group("input")
    if f"probe_{next(iter(made))}" in probes:
        loss = torch.stack([(v * probes[f"probe_{k}"]).sum() for k, v in made.items()]).sum()
        case.compare_if_recorded("output/loss", lambda: loss)
        loss.backward()
        gradients(case, part, rename, given)
    statistics(case, part, rename)


def gradients(
    case: Case, part: nn.Module, rename: Rename, given: dict[str, Tensor] | None = None
) -> None:
    """Every recorded gradient; parameters without a record have none."""
    ours = dict(part.named_parameters())
    seen = set()
    for key in case.group("grad"):
        name = rename(key)
        if key.startswith("input."):
            found = (given or {})[key.removeprefix("input.")].grad
        else:
            assert name is not None, key
            seen.add(name)
            found = ours[name].grad
        assert found is not None, key
        if part.training and (name in STEM or key.endswith(UNDONE)):
            rounding(case, key, found)
        elif part.training and near(case.tensors[f"grad/{key}"], found):
            case.open.discard(f"grad/{key}")
        else:
            case.compare(f"grad/{key}", found)
    if seen:
        idle = [name for name, p in ours.items() if name not in seen and p.grad is not None]
        assert not idle, f"{case.path.stem}: gradients that are not recorded: {idle}"


def near(recorded: Tensor, ours: Tensor) -> bool:
    """Whether gradients agree within float32's reach behind batch statistics.

    Those make sums that cancel: the recorded values themselves are up to 4e-6 of a tensor's largest
    entry from float64's, which breaks the cases' tolerance where an entry is small.
    """
    scale = float(recorded.abs().max())
    return recorded.shape == ours.shape and float((recorded - ours).abs().max()) <= 2e-5 * scale


def rounding(case: Case, key: str, ours: Tensor) -> None:
    """A shift that batch statistics undo has no effect: both gradients are rounding noise."""
    unit, _, layer = key.removesuffix(".bias").rpartition(".")
    beside = {"dwconv": "bn1"}.get(layer, layer)
    weight = case.tensors["grad/" + ".".join(filter(None, [unit, beside, "weight"]))]
    for value in (ours, case.tensors[f"grad/{key}"]):
        assert float(value.abs().max()) <= 1e-4 * float(weight.abs().max()), key
    case.open.discard(f"grad/{key}")


def statistics(case: Case, part: nn.Module, rename: Rename) -> None:
    """Buffers after the step."""
    state = part.state_dict()
    for key in case.group("output"):
        if key.startswith("after."):
            case.compare(f"output/{key}", state[str(rename(key.removeprefix("after.")))])


# -- branches -------------------------------------------------------------------------------------


def variant(args: Mapping[str, Any]) -> Variant:
    return Variant(
        args["embed_dim"],
        args["depth"],
        args["num_heads"],
        args["mlp_ratio"],
        args["qkv_bias"],
        args.get("qk_scale"),
        args["norm_eps"],
    )


def side(args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cameras": args.get("camera", 0),
        "views": args.get("view", 0),
        "side_scale": args["sie_xishu"],
        "drop_path": args.get("drop_path_rate", 0.0),
    }


def vit_target(case: Case) -> None:
    args, given = case.info["args"], case.group("input")
    encoder = VisionTransformer(
        variant(args),
        tuple(args["img_size"]),
        tuple(args["stride_size"]),
        args["patch_size"],
        local=args["local_feature"],
        **side(args),
    )
    rename = below("transformer.base", "transformer")
    load(case, encoder, rename)
    x = given["x"].requires_grad_()
    tokens = encoder(x, given.get("cam_label"), given.get("view_label"))
    case.compare_if_recorded("output/grid", lambda: torch.tensor(encoder.grid))
    compare(case, encoder, rename, {"x": x}, tokens=tokens)


def t2t_target(case: Case) -> None:
    args, given = case.info["args"], case.group("input")
    encoder = T2TViT(
        variant(args),
        tuple(args["img_size"]),
        args["token_dim"],
        args["tokens_type"],
        **side(args),
    )
    rename = below("transformer.base", "transformer")
    table = encoder.pos_embed.detach().clone()
    load(case, encoder, rename)
    # The recorded table is the one that is made here.
    torch.testing.assert_close(table, case.group("state")["pos_embed"], atol=1e-6, rtol=1e-6)
    x = given["x"].requires_grad_()
    case.compare_if_recorded("output/tokens_after_t2t", lambda: encoder.patches(x))
    tokens = encoder(x, given.get("cam_label"), given.get("view_label"))
    compare(case, encoder, rename, {"x": x}, tokens=tokens)


def resnet_target(case: Case) -> None:
    args = case.info["args"]
    net = ResNet(args["layers"], args["base_width"], args["last_stride"])
    rename = below("resnet.base", "cnn")
    load(case, net, rename)
    (x,) = inputs(case, "x")
    assert list(x.shape[2:]) == args["img"]
    compare(case, net, rename, {"x": x}, feat=net(x))


def positions_target(case: Case) -> None:
    given = case.group("input")
    for name in case.group("output"):
        kind, _, size = name.partition("_")
        rows, columns = (int(part) for part in size.split("x"))
        table = given["pos_embed_distilled" if kind == "distilled" else "pos_embed"]
        found = resize_positions(table, (rows, columns), distilled=kind == "distilled")
        case.compare(f"output/{name}", found)


# -- fusion ---------------------------------------------------------------------------------------


def gem_target(case: Case) -> None:
    args = case.info["args"]
    pool = GeM(args["p"], args["eps"])
    load(case, pool, str)
    (x,) = inputs(case, "x")
    y = pool(x)
    compare(case, pool, str, {"x": x}, y=y[..., None, None])
    with torch.no_grad():  # another way of computing the power
        torch.testing.assert_close(pool(x), y.detach(), atol=1e-6, rtol=1e-5)


def lru_target(case: Case) -> None:
    args = case.info["args"]
    unit = LocalRefinement(args["dim"], args["out_dim"], args["kernel"], args["choice"])
    rename = below("res_LRU", "refine_cnn")
    load(case, unit, rename, () if args["choice"] else ("depthwise.", "norm1.", "act1."))
    if not args["choice"]:
        # The official unit has layers that it passes by; their statistics never change.
        untouched = {k: v for k, v in case.group("state").items() if k.startswith("bn1.")}
        for key, value in untouched.items():
            case.compare_if_recorded(f"output/after.{key}", lambda value=value: value)
    (x,) = inputs(case, "x")
    compare(case, unit, rename, {"x": x}, y=unit(x))


def sizes(args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dim": args["embed_dim"],
        "heads": args["num_heads"],
        "ratio": args["mlp_ratio"],
        "bias": args["qkv_bias"],
        "eps": args["norm_eps"],
    }


def seu_target(case: Case) -> None:
    args = case.info["args"]
    unit = EncodingUnit(**sizes(args), depth=args["depth"])
    load(case, unit, str)
    (x,) = inputs(case, "x")
    y = unit(x)
    compare(case, unit, str, {"x": x}, y=y)
    torch.testing.assert_close(unit.first(x)[0], y[:, 0], atol=2e-6, rtol=1e-5)


def mfu_target(case: Case) -> None:
    args = case.info["args"]
    assert args["depth"] == 1  # the official unit breaks its own shapes with more
    unit = FusionUnit(**sizes(args))
    load(case, unit, rename_fusion_unit)
    cls, kv = inputs(case, "cls", "kv")
    y, _ = unit(cls, kv)
    compare(case, unit, rename_fusion_unit, {"cls": cls, "kv": kv}, y=y.unsqueeze(1))


def layer_target(case: Case) -> None:
    args = case.info["args"]
    layer = TransmissionLayer(
        args["embed_dim"], args["share_pattern"], args["mode"], args["num_heads"]
    )
    rename = below("HTM.blocks.0", "transmission.layers.0")
    load(case, layer, rename)
    res, former = inputs(case, "res", "former")
    made = layer((res[:, 0], former[:, 0]), (res[:, 1:], former[:, 1:]))
    compare(
        case,
        layer,
        rename,
        {"res": res, "former": former},
        cls_res=made.cnn.unsqueeze(1),
        cls_former=made.transformer.unsqueeze(1),
    )


def htm_target(case: Case) -> None:
    args = case.info["args"]
    module = Transmission(
        args["embed_dim"], args["depth"], args["share_pattern"], heads=args["num_heads"]
    )
    rename = below("HTM", "transmission")
    load(case, module, rename)
    names = ("cls_res", "cls_former", "res", "former")
    cls_res, cls_former, res, former = inputs(case, *names)
    made = module((cls_res[:, 0], cls_former[:, 0]), (res, former))
    compare(
        case,
        module,
        rename,
        dict(zip(names, (cls_res, cls_former, res, former), strict=True)),
        cls_res=made.cnn.unsqueeze(1),
        cls_former=made.transformer.unsqueeze(1),
    )


# -- whole models ---------------------------------------------------------------------------------


def small_model(case: Case) -> FusionReID:
    """The recorded small network with its recorded weights."""
    args = case.info["args"]
    size = tuple(args["img_size"])
    encoder = VisionTransformer(
        Variant(args["vit_embed_dim"], args["vit_depth"], args["vit_heads"]),
        size,
        tuple(args["stride_size"]),
        cameras=args["camera"],
        side_scale=args["sie_xishu"],
        drop_path=args["drop_path"],
    )
    model = FusionReID(
        ResNet(args["resnet_layers"], args["resnet_base_width"], args["last_stride"]),
        encoder,
        args["num_classes"],
        size,
        mix=args["mix_dim"],
        depth=args["htm_layers"],
        sharing=args.get("share_pattern", 1),
    )
    conversion = convert_official(case.group("state"))
    assert not conversion.missing
    assert all(key.startswith("transformer.base.fc.") for key in conversion.dropped)
    model.load_state_dict(conversion.state, strict=True)
    return model


def small_target(case: Case) -> None:
    model, given = small_model(case), case.group("input")
    if case.info["mode"] == "train":
        small_training(case, model.train(), given)
        return
    features, _ = model.eval().features(given["x"], given.get("cam_label"))
    for short, name in zip(SHORT, HEADS, strict=True):
        key = f"output/feat_{short}_before"
        case.compare_if_recorded(key, lambda name=name: features[name])
    # The same through the public door; halving and doubling again costs a bit of x.
    image = given["x"] / 2 + 0.5
    for after in (False, True):
        model.after_neck = after
        key = f"output/all_{'after' if after else 'before'}"
        case.compare_if_recorded(key, lambda: model(image, given.get("cam_label")))


def small_training(case: Case, model: FusionReID, given: dict[str, Tensor]) -> None:
    assert case.info["loss_args"] == {"no_margin": True, "ls": "on"}
    features, _ = model.features(given["x"], given.get("cam_label"))
    total = torch.zeros(())
    for number, (short, name) in enumerate(zip(SHORT, HEADS, strict=True), 1):
        scores = model.heads[name](features[name])
        loss = functional.cross_entropy(scores, given["target"], label_smoothing=0.1)
        loss = loss + soft_triplet(features[name], given["target"])
        case.compare(f"output/cls_score_{short}", scores)
        case.compare(f"output/global_feat_{short}", features[name])
        case.compare_if_recorded(f"output/loss_{number}", lambda loss=loss: loss)
        total = total + loss
    case.compare("output/loss", total)
    total.backward()
    gradients(case, model, rename_official)
    statistics(case, model, rename_official)


def soft_triplet(features: Tensor, target: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin, written out from the specification."""
    squares = (features.unsqueeze(1) - features.unsqueeze(0)).square().sum(-1)
    distances = squares.clamp(min=1e-12).sqrt()
    same = target.unsqueeze(1) == target
    positive = distances.masked_fill(~same, 0).amax(1)
    negative = distances.masked_fill(same, float("inf")).amin(1)
    return functional.softplus(positive - negative).mean()


TARGETS = {
    "vit": vit_target,
    "t2t_vit": t2t_target,
    "resnet": resnet_target,
    "gem": gem_target,
    "lru": lru_target,
    "seu": seu_target,
    "mfu": mfu_target,
    "htm": htm_target,
    "htm_layer": layer_target,
    "pos_embed_resize": positions_target,
    "whole_small": small_target,
}
TARGETS |= fusion_reid_official.TARGETS
