"""How each recorded target of `medusa` is run: the network here, data and metrics beside it."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.parity import medusa_data, medusa_metrics
from tests.parity.golden import Case
from zoo.domains.medical.medusa.backbone import Bottleneck, KerasResNet
from zoo.domains.medical.medusa.body import Body
from zoo.domains.medical.medusa.config import MedusaModel
from zoo.domains.medical.medusa.convert import (
    convert_official,
    convert_tensor,
    rename_official,
)
from zoo.domains.medical.medusa.heads import ScaleHead
from zoo.domains.medical.medusa.losses import weighted_cross_entropy
from zoo.domains.medical.medusa.model import Medusa, build_model

NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
VARIANTS = {"resnet1": "resnet1", "resnet2": "resnet2", "resnet0_r": "resnet0_R"}
VARIANTS |= {"resnet0_m": "resnet0_M"}
SINGLE = ("sem/34", "final_output")  # layers behind which no rectifier halves the variance


def regenerated(case: Case) -> dict[str, Tensor]:
    """The weights of a case by its rule, verified against every recorded sum."""
    made = {}
    for key, told in case.info["weight_keys_and_checksums"].items():
        rng = np.random.default_rng([case.info["seed"], zlib.crc32(key.encode())])
        z = rng.standard_normal(told["shape"]).astype(np.float32)
        layer, _, kind = key.rpartition("/")
        if kind == "kernel":
            share = (1 if layer in SINGLE else 2) / np.prod(told["shape"][:-1])
            value = z * np.float32(np.sqrt(share))
        elif kind == "gamma":
            last = layer.endswith("branch2c")
            value = np.float32(0.3 if last else 1) + np.float32(0.05 if last else 0.1) * z
        elif kind == "moving_variance":
            value = np.exp(np.float32(0.2) * z)
        else:
            value = np.float32(0.1) * z
        wide = value.astype(np.float64)
        assert np.isclose(wide.sum(), told["sum"], rtol=1e-5, atol=1e-4), key
        assert np.isclose(np.abs(wide).sum(), told["abs_sum"], rtol=1e-6), key
        made[key] = torch.from_numpy(value)
    return made


# -- comparing within tolerances told in words --------------------------------------------------


def stated(words: str, name: str, default: float | None = None) -> float:
    """The number behind a word of a tolerance, such as 2e-5 in `atol 2e-5, rtol 1e-4`."""
    found = re.search(rf"{re.escape(name)}\s*{NUMBER}", words)
    if found is None and default is not None:
        return default
    assert found is not None, f"no '{name}' in '{words}'"
    return float(found[1])


def ours_in_their_layout(value: Tensor) -> Tensor:
    """NHWC of an NCHW result."""
    return value.detach().permute(0, 2, 3, 1) if value.dim() == 4 else value.detach()


def output(case: Case, key: str, ours: Tensor, tolerance: str = "outputs") -> None:
    """Compares a result, given in our layout."""
    words = case.info["tolerance"][tolerance]
    torch.testing.assert_close(
        ours_in_their_layout(ours),
        case.tensors[key],
        atol=stated(words, "atol"),
        rtol=stated(words, "rtol", 0.0),
        msg=lambda text: f"{case.path.stem}: {key}: {text}",
    )
    case.open.discard(key)


def gradient(case: Case, key: str, ours: Tensor | None, theirs: Tensor) -> None:
    """Compares a gradient, both in one layout, against the largest entry."""
    assert ours is not None, key
    assert ours.shape == theirs.shape, key
    words = case.info["tolerance"]["gradients"]
    cosine = re.search(rf"cosine >= {NUMBER}", words)
    if cosine is not None:
        found = functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
        assert found >= float(cosine[1]), f"{case.path.stem}: {key}: cosine {found}"
    share = stated(words, "max abs error <=")
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    assert worst <= share, f"{case.path.stem}: {key}: {worst:.2e} of the maximum"
    case.open.discard(key)


# -- parts --------------------------------------------------------------------------------------


def block_target(case: Case) -> None:
    info, inputs = case.info, case.group("input")
    inner = info["filters"][0]
    assert info["filters"] == [inner, inner, inner * 4]
    assert info["batch_norm"] == {"eps": 1e-3, "momentum_keras": 0.99}
    project = info["target"] == "block_projection"
    block = Bottleneck(info["in_channels"], inner, info["stride"], project=project)
    state = {local(key): convert_tensor(key, value) for key, value in case.group("state").items()}
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    block.train(info["mode"] == "train")
    x = inputs["x"].permute(0, 3, 1, 2).requires_grad_()
    y = block(x)
    (y * inputs["cotangent"].permute(0, 3, 1, 2)).sum().backward()
    output(case, "output/y", y)
    for key, value in case.group("output/updated").items():
        ours = block.state_dict()[local(key)]
        torch.testing.assert_close(ours, value, atol=1e-5, rtol=1e-5)
        case.open.discard(f"output/updated/{key}")
    part_gradients(case, block, {"x": x})


def local(key: str) -> str:
    """Our name of a block's tensor, from the block on."""
    return str(rename_official(key)).split(".", 4)[4]


def part_gradients(case: Case, part: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Every recorded gradient of a block or head; noise where batch statistics undo a bias."""
    ours = dict(part.named_parameters())
    for key, recorded in case.group("grad").items():
        if key in inputs:
            found = inputs[key].grad
            assert found is not None
            gradient(case, f"grad/{key}", ours_in_their_layout(found), recorded)
            continue
        name = local(key) if "_branch" in key else f"conv.{str(rename_official(key))[13:]}"
        own = ours[name].grad
        assert own is not None, key
        if part.training and key.startswith("res") and key.endswith("bias"):
            rounding(own, recorded, case.tensors[f"grad/{key[:-4]}kernel"])
            case.open.discard(f"grad/{key}")
        else:
            gradient(case, f"grad/{key}", own, convert_tensor(key, recorded))


def rounding(ours: Tensor, theirs: Tensor, kernel: Tensor) -> None:
    """A bias in front of batch statistics has no effect: both gradients are rounding noise."""
    for value in (ours, theirs):
        assert float(value.abs().max()) <= 1e-4 * float(kernel.abs().max())


def head_target(case: Case) -> None:
    inputs, state = case.group("input"), case.group("state")
    x, level = (inputs[k].permute(0, 3, 1, 2).requires_grad_() for k in ("x", "body_map"))
    head = ScaleHead(x.shape[1])
    head.load_state_dict(
        {
            str(rename_official(k)).removeprefix("heads.0."): convert_tensor(k, v)
            for k, v in state.items()
        }
    )
    y = head(x, level)
    (y * inputs["cotangent"].permute(0, 3, 1, 2)).sum().backward()
    size = (x.shape[2], x.shape[3])
    output(case, "output/y", y)
    output(case, "output/attention", head.attention(level, size))
    output(case, "output/resized_map", head.resized(level, size))
    part_gradients(case, head, {"x": x, "body_map": level})


def body_target(case: Case) -> None:
    inputs = case.group("input")
    conversion = convert_official(regenerated(case))
    assert not conversion.missing
    assert not conversion.dropped
    body = Body()
    body.load_state_dict({k.removeprefix("body."): v for k, v in conversion.state.items()})
    semantic = inputs["semantic"].permute(0, 3, 1, 2).requires_grad_()
    found = body(semantic)
    (found * inputs["cotangent"].permute(0, 3, 1, 2)).sum().backward()
    output(case, "output/body_map", found)
    for key, recorded in case.group("grad").items():
        if key == "semantic":
            assert semantic.grad is not None
            gradient(case, f"grad/{key}", ours_in_their_layout(semantic.grad), recorded)
        else:
            name = str(rename_official(key)).removeprefix("body.")
            own = body.get_parameter(name).grad
            gradient(case, f"grad/{key}", own, convert_tensor(key, recorded))


# -- whole networks -----------------------------------------------------------------------------


def whole_target(case: Case) -> None:
    info, inputs = case.info, case.group("input")
    model = official(case)
    semantic = inputs["semantic"].permute(0, 3, 1, 2).requires_grad_()
    image = inputs["image_u8"].permute(0, 3, 1, 2).float() / 255
    assert list(image.shape[2:]) == info["image_size"]
    found = model(image, semantic, return_maps=True)
    labels = inputs["labels_onehot"].argmax(1)
    loss = weighted_cross_entropy(found.logits, labels, sample_weights=inputs["sample_weights"])
    output(case, "output/logits", found.logits, "logits")
    output(case, "output/probabilities", found.logits.softmax(1), "logits")
    output(case, "output/loss", loss.reshape(1), "loss")
    near = "body_map" if "body_map" in info["tolerance"] else "logits"
    output(case, "output/body_map", found.body_map, near)
    state = model.state_dict()
    for key in case.group("output/updated"):
        ours = state[str(rename_official(key))]
        output(case, f"output/updated/{key}", ours, "updated_running_stats")
    if case.group("grad"):
        loss.backward()
        whole_gradients(case, model, semantic)


def official(case: Case) -> Medusa:
    """The network of a case with its weights, through the conversion of official names."""
    info = case.info
    kind = info["target"].removeprefix("whole_")
    side, body_side = info["image_size"][0], info["semantic_size"][0]
    settings = MedusaModel(variant=VARIANTS[kind], image_size=side, body_size=body_side)
    model = build_model(settings, info["classes"])
    assert isinstance(model.backbone, KerasResNet)
    weights = regenerated(case)
    conversion = convert_official(weights)
    assert not conversion.missing
    assert not conversion.dropped
    assert len(conversion.renamed) == len(weights)
    model.load_state_dict(conversion.state, strict=True)
    return model.train(info["mode"] == "train")


def whole_gradients(case: Case, model: Medusa, semantic: Tensor) -> None:
    """Recorded gradients, and the length of the gradient of every parameter."""
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    lengths: dict[str, Any] = case.info["grad_l2_per_parameter"]
    training = model.training
    assert sorted(str(rename_official(k)) for k in lengths) == sorted(ours)
    for key, recorded in case.group("grad").items():
        if key == "input_semantic":
            assert semantic.grad is not None
            gradient(case, f"grad/{key}", ours_in_their_layout(semantic.grad), recorded)
        elif training and undone(key):
            own = ours[str(rename_official(key))]
            assert own is not None
            limit = 1e-4 * lengths[key[:-4] + "kernel"]
            assert max(float(own.norm()), float(recorded.norm())) <= limit, key
            case.open.discard(f"grad/{key}")
        else:
            own = ours[str(rename_official(key))]
            gradient(case, f"grad/{key}", own, convert_tensor(key, recorded))
    words = case.info["tolerance"]["gradients"]
    near = 0.05 if training else stated(words, "rtol")
    for key, length in lengths.items():
        if not (training and undone(key)):
            own = ours[str(rename_official(key))]
            assert own is not None
            assert abs(float(own.norm()) - length) <= near * length, (
                f"{key}: {own.norm()}, {length}"
            )


def undone(key: str) -> bool:
    """Whether batch statistics undo the parameter: a bias in front of a normalisation."""
    return key.endswith("bias") and key.startswith(("res", "conv1"))


TARGETS = {
    "block_projection": block_target,
    "block_identity": block_target,
    "head": head_target,
    "body": body_target,
    **{f"whole_{name}": whole_target for name in VARIANTS},
    **medusa_data.TARGETS,
    **medusa_metrics.TARGETS,
}
