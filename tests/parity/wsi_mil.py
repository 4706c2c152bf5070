"""How each recorded target of `wsi_mil` is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity.golden import Case
from zoo.domains.medical.decisions import binary_auc, confusion_matrix
from zoo.domains.medical.wsi_mil import losses, metrics
from zoo.domains.medical.wsi_mil.convert import (
    convert_official,
    convert_tensor,
    infer_sizes,
    rename_official,
)
from zoo.domains.medical.wsi_mil.model import MilModel, MilOutput, build_model
from zoo.domains.medical.wsi_mil.parts import (
    BagAttention,
    BranchAttention,
    Classifier,
    DimReduction,
    SkipReduction,
)
from zoo.domains.medical.wsi_mil.schedule import lr_factor
from zoo.kernels import GatedAttentionPool

ARCHS = {"acmil_ga": "acmil_ga", "acmil_mha": "acmil_mha", "abmil": "abmil", "mha": "mha"}
OPTIONS = {
    "D": "attention",
    "n_token": "branches",
    "n_masked_patch": "masked",
    "mask_drop": "mask_drop",
    "droprate": "classifier_dropout",
}
OFFICIAL_DEFAULTS = {"branches": 1, "masked": 0, "mask_drop": 0.0}


def build(case: Case, arch: str) -> MilModel:
    """The model a case describes, with the recorded weights in it."""
    conf, kwargs = case.info["args"]["conf"], case.info["args"]["kwargs"]
    assert conf.keys() <= {"D_feat", "D_inner", "n_class", "n_token"}, conf
    options = OFFICIAL_DEFAULTS | {OPTIONS[name]: value for name, value in kwargs.items()}
    training = case.info["mode"].startswith("train")
    model = build_model(
        arch,
        conf["D_feat"],
        conf["D_inner"],
        conf["n_class"],
        dropout=0.0 if training else 0.1,  # recorded without; in eval it must not matter
        **options,
    )
    state = case.group("state")
    sizes, conversion = convert_official(state)
    assert not conversion.missing
    assert not conversion.dropped
    named = (conf["D_feat"], conf["D_inner"], conf["n_class"], options["branches"])
    assert sizes[:5] == (arch, *named)
    assert sizes == infer_sizes({f"module.{key}": value for key, value in state.items()})
    model.load_state_dict(conversion.state)
    return model.train(training)


def draws(inputs: dict[str, Tensor], prefix: str = "") -> list[Tensor] | None:
    """Recorded STKIM draws of one slide, (M, K, k): one tensor for GA, one a branch for MHA."""
    start = f"{prefix}stkim_rand."
    found = sorted((k for k in inputs if k.startswith(start)), key=lambda k: int(k.split(".")[-1]))
    if not found:
        return None
    each = [inputs[key] for key in found]
    return [each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each, dim=1)]


def mha_draws(inputs: dict[str, Tensor], prefix: str = "") -> list[Tensor] | None:
    """The same where one branch alone leaves a single tensor too."""
    single = f"{prefix}stkim_rand.1" not in inputs and f"{prefix}stkim_rand.0" in inputs
    return [inputs[f"{prefix}stkim_rand.0"].unsqueeze(1)] if single else draws(inputs, prefix)


def model_target(case: Case) -> None:
    arch = ARCHS[case.info["target"]]
    model, inputs = build(case, arch), case.group("input")
    features = inputs["features"].squeeze(0).requires_grad_()
    given = (mha_draws if arch == "acmil_mha" else draws)(inputs)
    output = model(features, draws=given)
    loss = losses.mil_losses(output, inputs["label"])
    loss.total.backward()
    results = {
        "sub_logits": output.branch_logits.squeeze(0),
        "slide_logits": output.logits,
        "attn_raw": output.attention,
        "attn_softmax": output.attention.softmax(-1),
        "masked": output.attention <= -1e9,
        **{f"loss_{name}": value for name, value in loss._asdict().items()},
    }
    for name, value in results.items():
        case.compare_if_recorded(f"output/{name}", lambda value=value: value)
    if case.group("grad"):
        gradients(case, model, features)


def gradients(case: Case, model: MilModel, features: Tensor) -> None:
    """Every recorded gradient, and none where the official model has none."""
    case.skip("grad/", "gradients_that_are_rounding_noise")
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key, recorded in case.group("grad").items():
        if f"grad/{key}" not in case.open:
            ours.pop(str(rename_official(key)))
            continue
        name = rename_official(key)
        gradient = features.grad if key == "features" else ours.pop(str(name))
        assert gradient is not None, key
        shape = (1, *gradient.shape) if key in ("features", "q") else gradient.shape
        assert shape == recorded.shape, key
        case.compare(f"grad/{key}", gradient.view(shape))
    stray = [name for name, value in ours.items() if value is not None and value.any()]
    assert not stray, f"gradients the official model does not have: {stray}"


def bag_feature_target(case: Case) -> None:
    arch = case.info["target"].removesuffix("_bag_feature")
    model, inputs = build(case, arch), case.group("input")
    features = inputs["features"].squeeze(0)
    given = (mha_draws if arch == "acmil_mha" else draws)(inputs)
    case.compare("output/bag_feat", model.bag_feature(features))
    case.compare("output/bag_feat_masked", model.bag_feature(features, masked=True, draws=given))


def modules_target(case: Case) -> None:
    inputs = case.group("input")
    for name, args in case.info["args"].items():
        module = part(name, args)
        fill(module, case.group(f"state/{name}"), name)
        if name.startswith("mha"):
            for query in (key for key in inputs if key.startswith("q")):
                stem = name if query == "q" else f"{name}_{query}"
                if f"output/{stem}_feat" in case.tensors:
                    found, attention = module(inputs[query].squeeze(0), inputs["x"])
                    case.compare(f"output/{stem}_feat", found.squeeze(0))
                    case.compare(f"output/{stem}_attn_raw", attention)
        elif isinstance(module, BagAttention):
            weights = inputs["bag_attn"].squeeze(1)
            case.compare(f"output/{name}", module.from_weights(weights, inputs["x"]))
        elif isinstance(module, GatedAttentionPool):
            case.compare(f"output/{name}", module.gated_logits(inputs["x"]).mT)
        else:
            wide = isinstance(module, DimReduction)
            case.compare(f"output/{name}", module(inputs["wide" if wide else "x"]))


def part(name: str, args: dict[str, Any]) -> nn.Module:
    """The module of ours that an official one of that name corresponds to."""
    if name.startswith("dimreduction1"):
        assert args["n_channels"] == args["m_dim"]
        return SkipReduction(args["m_dim"])
    if name.startswith("dimreduction"):
        return DimReduction(args["n_channels"], args["m_dim"], args.get("numLayer_Res", 0))
    if name.startswith("attention_gated"):
        return GatedAttentionPool(args["L"], args["D"], args["K"])
    if name.startswith("classifier"):
        rate = args.get("droprate", 0.0)
        return Classifier(args["n_channels"], args["n_classes"], rate).eval()
    sizes = (args["embedding_dim"], args["num_heads"])
    if name.startswith("bag_mha"):
        return BagAttention(*sizes).eval()
    if name.startswith("mha"):
        return BranchAttention(*sizes, downsample=args.get("downsample_rate", 1)).eval()
    msg = f"no module of ours is known for '{name}'"
    raise AssertionError(msg)


def fill(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Loads official weights of a lone part, using the renames it has inside a model."""
    places = {"dimreduction": "reduce", "attention_gated": "pool", "classifier": "slide_classifier"}
    places |= {"bag_mha": "bag", "mha": "attention"}
    stems = {"attention_gated": "attention", "bag_mha": "bag_attention", "mha": "attention"}
    kind = next(kind for kind in places if name.startswith(kind))
    stem = stems.get(kind, kind)
    renamed = {
        str(rename_official(f"{stem}.{key}")).removeprefix(places[kind] + "."): value
        for key, value in state.items()
    }
    module.load_state_dict(renamed)


def losses_target(case: Case) -> None:
    inputs = case.group("input")
    for stem in case.names("input", "attn_raw"):
        names = ("slide_logits", "sub_logits", "attn_raw")
        slide, sub, attention = (inputs[f"{stem}.{n}"].clone().requires_grad_() for n in names)
        output = MilOutput(slide, sub.unsqueeze(0), attention)
        loss = losses.mil_losses(output, inputs[f"{stem}.label"])
        loss.total.backward()
        for name, value in loss._asdict().items():
            case.compare(f"output/{stem}.loss_{name}", value)
        case.compare(f"output/{stem}.neg_entropy", losses.neg_entropy(attention)[0])
        scores = losses.heatmap_scores(attention, first_map_only=True)
        case.compare(f"output/{stem}.heatmap_scores", scores)
        for name, tensor in zip(names, (slide, sub, attention), strict=True):
            key = f"grad/{stem}.{name}"
            if key in case.tensors:
                assert tensor.grad is not None
                case.compare(key, tensor.grad)
            else:
                assert tensor.grad is None or not tensor.grad.any(), key


def metrics_target(case: Case) -> None:
    inputs = case.group("input")
    for stem in case.names("input", "prob"):
        probabilities, labels = inputs[f"{stem}.prob"].numpy(), inputs[f"{stem}.label"].numpy()
        classes = probabilities.shape[1]
        table = confusion_matrix(labels, probabilities.argmax(1), classes)
        case.compare(f"output/{stem}.auroc_macro", metrics.auc(labels, probabilities, "zero"))
        case.compare(f"output/{stem}.f1_micro", metrics.f1_micro(table))
        case.compare(f"output/{stem}.f1_macro", metrics.f1_macro(table))
        case.compare(f"output/{stem}.acc1", 100 * metrics.accuracy(table))
        case.compare(f"output/{stem}.bal_acc", metrics.balanced_accuracy(table, "zero"))
        if classes == 2:
            area = binary_auc(labels, probabilities[:, 1])
            case.compare_if_recorded(f"output/{stem}.auroc_binary", lambda area=area: area)
            score = float(metrics.f1_per_class(table)[1])
            case.compare_if_recorded(f"output/{stem}.f1_binary", lambda score=score: score)


def schedule_target(case: Case) -> None:
    inputs = case.group("input")
    for index, config in enumerate(case.info["configs"]):
        rates = [factor(config, float(at)) * config["lr"] for at in inputs[f"{index}.epoch"]]
        case.compare(f"output/{index}.lr", torch.from_numpy(np.array(rates)))


def factor(config: dict[str, Any], position: float) -> float:
    return lr_factor(
        position,
        epochs=config["train_epoch"],
        warmup_epochs=config["warmup_epoch"],
        minimum=config["min_lr"] / config["lr"],
    )


def train_target(case: Case) -> None:
    arch = case.info["target"].removeprefix("train_")
    model, inputs = build(case, arch), case.group("input")
    optimiser, schedule = case.info["optimiser"], case.info["schedule"]
    assert optimiser["name"] == "AdamW"
    settings = {name: value for name, value in optimiser.items() if name != "name"}
    adam = torch.optim.AdamW(model.parameters(), lr=schedule["lr"], **settings)
    rows, rates = [], []
    for step in sorted(int(stem) for stem in case.names("input", "features")):
        rates.append(schedule["lr"] * factor(schedule, step / schedule["batches_per_epoch"]))
        adam.param_groups[0]["lr"] = rates[-1]
        given = (mha_draws if arch == "acmil_mha" else draws)(inputs, f"{step}.")
        output = model(inputs[f"{step}.features"].squeeze(0), draws=given)
        loss = losses.mil_losses(output, inputs[f"{step}.label"])
        adam.zero_grad()
        loss.total.backward()
        adam.step()
        rows.append(torch.stack(list(loss)))
    case.compare("output/losses", torch.stack(rows))
    case.compare("output/lr", torch.tensor(rates, dtype=torch.float64))
    case.skip("output/final.", "not_reproducible")
    state = model.state_dict()
    for key in case.group("state"):
        if f"output/final.{key}" in case.open:
            recorded = case.tensors[f"output/final.{key}"]
            name = str(rename_official(key))
            assert convert_tensor(name, recorded).shape == state[name].shape
            case.compare(f"output/final.{key}", state[name].view(recorded.shape))


TARGETS = {
    "acmil_ga": model_target,
    "acmil_mha": model_target,
    "abmil": model_target,
    "mha": model_target,
    "acmil_ga_bag_feature": bag_feature_target,
    "acmil_mha_bag_feature": bag_feature_target,
    "modules": modules_target,
    "losses": losses_target,
    "metrics": metrics_target,
    "lr_schedule": schedule_target,
    "train_acmil_ga": train_target,
    "train_acmil_mha": train_target,
}
