from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import zoo.kernels.flops  # noqa: F401 (registers the operators' counts)
from zoo import files
from zoo.domains.medical.medusa.config import MedusaModel
from zoo.domains.medical.medusa.model import (
    Medusa,
    MedusaOutput,
    build_body,
    build_model,
    load_initial,
)
from zoo.domains.medical.medusa.plain import plain_body, plain_medusa
from zoo.errors import WeightsError

SMALL: dict[str, Any] = {
    "backbone": "small",
    "width": 4,
    "blocks": (2, 1, 1, 1),
    "body_width": 2,
    "image_size": 64,
    "body_size": 32,
    "global_pool": True,
}
VARIANTS = ["resnet1", "resnet2", "resnet0_R", "resnet0_M"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(**changes: Any) -> Medusa:
    return build_model(MedusaModel(**{**SMALL, **changes}), 3)


def inputs(count: int = 3, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 3, 64, 64, dtype=kind), torch.randn(count, 1, 32, 32, dtype=kind)


@pytest.fixture(scope="module")
def released() -> Medusa:
    return build_model(MedusaModel(), 2)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- what the specification states --------------------------------------------------------------


def test_parameters_are_those_of_the_specification(released: Medusa) -> None:
    assert released.body is not None
    assert parameters(released.body) == 5_468_897
    assert parameters(released.heads) == 92_800
    assert parameters(released.backbone) == 23_534_592 + 16_386
    assert parameters(released) == 29_112_675
    statistics = sum(b.numel() for b in released.buffers() if b.is_floating_point())
    assert parameters(released) + statistics == 29_165_795
    smaller = build_model(MedusaModel(image_size=224, body_size=64), 2)
    assert parameters(smaller) + statistics == 29_153_507


def macs(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def test_multiply_adds_are_those_of_the_specification_and_fewer(released: Medusa) -> None:
    image, semantic = torch.zeros(1, 3, 480, 480), torch.zeros(1, 1, 256, 256)
    body = released.body
    assert body is not None
    released.eval()
    assert round(macs(lambda: plain_medusa(released, image, semantic)) / 1e9, 3) == 51.892
    assert round(macs(lambda: plain_body(body, semantic)) / 1e9, 3) == 33.879
    ours = macs(lambda: released(image, semantic))
    assert ours <= 44.8e9
    # Nine products instead of thirty-six for the body's enlarged layers, and no gate where the
    # next stage does not look.
    assert round(ours / 1e9, 2) == 42.22
    assert round(macs(lambda: body(semantic)) / 1e9, 2) == 24.44
    released.train()


def saved(run: Callable[[], Tensor], model: Medusa) -> int:
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = run()
    total = sum(kept.values())
    assert alive.requires_grad
    return total


def test_a_backward_pass_needs_three_quarters_of_the_memory_at_most() -> None:
    model = build_model(MedusaModel(image_size=224, body_size=128), 2)
    image, semantic = torch.rand(1, 3, 224, 224), torch.randn(1, 1, 128, 128)
    ours = saved(lambda: model(image, semantic), model)
    plain = saved(lambda: plain_medusa(model, image, semantic), model)
    assert ours <= 0.70 * plain


# -- one function in two forms ------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_network_equals_its_plain_form(variant: str, training: bool) -> None:
    model = small(variant=variant).double().train(training)
    twin = copy.deepcopy(model)
    image, semantic = inputs(kind=torch.float64)
    image.requires_grad_()
    semantic.requires_grad_()
    ours, theirs = model(image, semantic), plain_medusa(twin, image, semantic)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    label = torch.tensor([0, 2, 1])
    mine = torch.autograd.grad(
        functional.cross_entropy(ours, label), [image, semantic, *model.parameters()]
    )
    others = torch.autograd.grad(
        functional.cross_entropy(theirs, label), [image, semantic, *twin.parameters()]
    )
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8 + 1e-7 * float(b.abs().max()))
    for (key, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


def test_state_keys_do_not_depend_on_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = small(), inputs()
    ours = model.eval()(*given)
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    other = small().eval()
    assert list(other.state_dict()) == list(model.state_dict())
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(*given), ours)
    prefixes = {key.partition(".")[0] for key in model.state_dict()}
    assert prefixes == {"body", "heads", "backbone"}
    assert "backbone.classifier.weight" in model.state_dict()


def test_a_drawn_map_can_be_given_again() -> None:
    model, (image, semantic) = small().eval(), inputs()
    assert model.body is not None
    level = model.body(semantic)
    torch.testing.assert_close(model(image, None, level), model(image, semantic))
    with pytest.raises(ValueError, match="either the body's input or its map"):
        model(image)
    with pytest.raises(ValueError, match=r"images should be \(B, 3, H, W\), got \(3, 64, 64\)"):
        model(image[0], semantic)


@pytest.mark.parametrize("variant", [*VARIANTS, "backbone_only"])
def test_maps_come_with_the_same_logits(variant: str) -> None:
    model, (image, semantic) = small(variant=variant).eval(), inputs()
    found = model(image, semantic, return_maps=True)
    assert isinstance(found, MedusaOutput)
    torch.testing.assert_close(found.logits, model(image, semantic))
    sides = [tuple(m.shape) for m in found.scale_maps]
    expected = {"resnet1": [15, 15, 8, 4], "resnet2": [4], "backbone_only": []}
    assert sides == [(3, 1, n, n) for n in expected.get(variant, [64])]
    assert all(bool((m >= 0).all()) for m in found.scale_maps)
    if variant == "backbone_only":
        assert found.body_map is None
        assert model.body is None
        assert len(model.heads) == 0
    else:
        assert found.body_map is not None
        assert found.body_map.shape == semantic.shape
        assert bool(((found.body_map > 0) & (found.body_map < 1)).all())


@pytest.mark.parametrize("frozen", [("body", "heads"), ("backbone",)])
def test_a_phase_freezes_by_prefix(frozen: tuple[str, ...]) -> None:
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    image, semantic = inputs()
    functional.cross_entropy(model(image, semantic), torch.tensor([0, 1, 2])).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_one_phase_after_the_other_lowers_the_loss() -> None:
    model = small()
    image, semantic = inputs(6)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(24):
        part = ("body", "heads") if step % 3 == 0 else ("backbone",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(part))
        loss = functional.cross_entropy(model(image, semantic), label)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_mixed_precision_is_close_and_has_all_gradients() -> None:
    model, (image, semantic) = small(), inputs()
    exact = model(image, semantic)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(image, semantic)
        loss = functional.cross_entropy(found, torch.tensor([0, 1, 2]))
    loss.backward()
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.1)
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())


def test_network_is_exported_with_any_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    model, given = small().eval(), inputs()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        made = torch.export.export(
            model, given, dynamic_shapes={"image": {0: batch}, "semantic": {0: batch}}
        )
        other = inputs(2)
        torch.testing.assert_close(made.module()(*other), model(*other))
    names = {str(n.target) for n in made.graph.nodes if n.op == "call_function"}
    assert all(name.startswith(("aten", "<built-in", "_operator")) for name in names), names


def test_grad_cam_looks_at_what_the_top_pools() -> None:
    model, (image, semantic) = small().eval(), inputs()
    seen: list[Tensor] = []
    model.cam_layer.register_forward_hook(lambda _, __, out: seen.append(out))
    logits = model(image, semantic)
    torch.testing.assert_close(model.backbone.classify(seen[0]), logits)
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), seen[0])
    assert grad.abs().sum() > 0


def test_modern_network_takes_any_size_and_acts_on_four_scales() -> None:
    settings = MedusaModel(
        backbone="resnet18", resize="half_pixel", head_init="zero", body_width=2, global_pool=True
    )
    model = build_model(settings, 4).eval()
    assert [h.conv.out_channels for h in model.heads] == [64, 64, 128, 256]
    for height, width in ((65, 96), (128, 64)):
        found = model(torch.rand(2, 3, height, width), torch.randn(2, 1, 48, 32), return_maps=True)
        assert found.logits.shape == (2, 4)
        assert [m.shape[2] for m in found.scale_maps] == [-(-height // n) for n in (2, 4, 8, 16)]
    # Heads of zero are the identity: the network is the timm network with a pooled top.
    image = torch.rand(1, 3, 64, 64)
    net: Any = timm.create_model("resnet18", features_only=True, pretrained=False).eval()
    net.load_state_dict(model.backbone.features.state_dict())
    last = net((image.flip(1) - model.backbone.mean) / model.backbone.std)[-1]
    expected = model.backbone.classifier(last.mean((2, 3)))
    torch.testing.assert_close(model(image, torch.randn(1, 1, 32, 32)), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 32}, "width and blocks belong to backbone=small"),
        ({"blocks": (1, 1, 1, 1)}, "width and blocks belong to backbone=small"),
        ({"image_size": 128}, "use 197 or more, or global_pool=true"),
        ({"backbone_init": "x.pth"}, "backbone_init is for timm networks"),
        ({"variant": "backbone_only", "body_init": "x.h5"}, "has no body"),
        ({"backbone": "small", "blocks": (1, 0, 1, 1)}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_told(changes: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MedusaModel(**changes)


# -- what a training begins from ----------------------------------------------------------------


def finished_run(folder: Path, settings: MedusaModel) -> dict[str, Tensor]:
    """A run folder of the body's objective, as the engine leaves it."""
    step = folder / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    state = {f"body.{k}": v.contiguous() for k, v in build_body(settings).state_dict().items()}
    save_file(state, step / "model.safetensors")
    told = {"sha256": {"model.safetensors": files.sha256(step / "model.safetensors")}}
    (step / "meta.json").write_text(json.dumps(told))
    index = {"last": "step-00000009", "best": step.name}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    return state


def test_body_starts_from_a_run_or_a_file(tmp_path: Path) -> None:
    settings = MedusaModel(**SMALL)
    state = finished_run(tmp_path / "run", settings)
    save_file(state, tmp_path / "whole.safetensors")
    bare = {k.removeprefix("body."): v.numpy() for k, v in state.items()}
    np.savez(tmp_path / "bare.npz", **bare)
    for name in ("run", "whole.safetensors", "bare.npz"):
        chosen = settings.model_copy(update={"body_init": tmp_path / name})
        model = build_model(chosen, 3)
        assert load_initial(model, chosen) == [f"body starts from {name}"]
        ours = model.state_dict()
        assert all(torch.equal(ours[k], v) for k, v in state.items())


def test_backbone_starts_from_a_timm_file(tmp_path: Path) -> None:
    given: Any = timm.create_model("resnet18", pretrained=False).state_dict()
    torch.save(given, tmp_path / "net.pth")
    settings = MedusaModel(
        backbone="resnet18", backbone_init=tmp_path / "net.pth", body_width=2, global_pool=True
    )
    model = build_model(settings, 2)
    assert load_initial(model, settings) == ["backbone starts from net.pth"]
    assert torch.equal(model.backbone.features.state_dict()["conv1.weight"], given["conv1.weight"])


def test_nothing_is_read_unless_asked() -> None:
    settings = MedusaModel(**SMALL)
    assert load_initial(build_model(settings, 2), settings) == []


def test_wrong_starts_are_told_in_a_line(tmp_path: Path) -> None:
    settings = MedusaModel(**SMALL)
    finished_run(tmp_path / "run", settings)
    finished_run(tmp_path / "damaged", settings)
    weights = tmp_path / "damaged" / "checkpoints" / "step-00000007" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    (tmp_path / "empty").mkdir()
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, wide, words in [
        ("run", 4, r"run: conv1\.weight is \(2, 1, 3, 3\), not \(4, 1, 3, 3\); .*body_width"),
        ("damaged", 2, "model.safetensors: missing or damaged"),
        ("empty", 2, "empty: no finished training in this folder"),
        ("gone.npz", 2, r"gone\.npz: no such file"),
        ("other.safetensors", 2, "not weights of MEDUSA or of its body"),
    ]:
        chosen = settings.model_copy(update={"body_init": tmp_path / name, "body_width": wide})
        with pytest.raises(WeightsError, match=words) as told:
            load_initial(build_model(chosen, 2), chosen)
        assert "\n" not in str(told.value)
