from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.domains.reid.fusion_reid import plain
from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.model import HEADS, FusionReID, Heads, Seen, build_model
from zoo.errors import ConfigError

SMALL: dict[str, Any] = {
    "cnn": "small",
    "transformer": "small",
    "input_size": (48, 32),
    "width": 4,
    "dim": 24,
    "blocks": 2,
    "mix": 24,
    "drop_path": 0.0,
}
UNUSED = 769_000  # an ImageNet classifier that the official transformer carries and never uses


def small(classes: int = 5, cameras: int = 3, **more: Any) -> FusionReID:
    torch.manual_seed(0)
    return build_model(ReidModel.model_validate(SMALL | more), classes, cameras)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 48, 32, generator=torch.Generator().manual_seed(1))


# -- what goes in and comes out -------------------------------------------------------------------


def test_training_gives_six_heads() -> None:
    made = small().train()(images(), torch.tensor([0, 2, -1]))
    assert isinstance(made, Heads)
    assert [s.shape for s in made.scores] == [(3, 5)] * 6
    assert [f.shape[1] for f in made.features] == [128, 24, 24, 24, 24, 24]


def test_evaluation_gives_all_features_in_order() -> None:
    model = small().eval()
    found = model(images())
    assert found.shape == (3, model.width) == (3, 128 + 5 * 24)
    features, _ = model.features(images() * 2 - 1)
    assert tuple(features) == HEADS
    torch.testing.assert_close(found, torch.cat(list(features.values()), 1))


@pytest.mark.parametrize("number", range(1, 7))
def test_one_head_can_be_taken(number: int) -> None:
    model, whole = small(feature=number).eval(), small().eval()
    model.load_state_dict(whole.state_dict())
    features, _ = whole.features(images() * 2 - 1)
    found = model(images())
    assert found.shape[1] == model.width
    torch.testing.assert_close(found, features[HEADS[number - 1]])


def test_the_embedding_can_be_taken_behind_the_necks() -> None:
    model = small(neck_feature="after").eval()
    for head in model.heads.values():
        head.neck.running_mean.uniform_()  # type: ignore[operator, union-attr]  # a batch norm
    features, _ = model.features(images() * 2 - 1)
    expected = [model.heads[n].neck(f) for n, f in features.items()]  # type: ignore[operator]  # likewise
    torch.testing.assert_close(model(images()), torch.cat(expected, 1))


def test_one_image_is_embedded_like_several() -> None:
    model = small().eval()
    alone = torch.cat([model(x[None]) for x in images()])
    torch.testing.assert_close(alone, model(images()), atol=1e-5, rtol=1e-4)


def test_no_camera_is_the_mean_embedding() -> None:
    model = small().eval()
    none, unknown = model(images()), model(images(), torch.full((3,), -1))
    torch.testing.assert_close(none, unknown)
    assert not torch.allclose(none, model(images(), torch.tensor([0, 1, 2])))


@pytest.mark.parametrize("camera", ["camera", "view", "camera+view", "none"])
def test_side_information(camera: str) -> None:
    model = build_model(ReidModel.model_validate(SMALL | {"camera": camera}), 5, 3, 2).eval()
    table = model.transformer.sie_embed
    rows = {"camera": 3, "view": 2, "camera+view": 6, "none": None}[camera]
    assert (None if table is None else table.shape[0]) == rows
    labels = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1])
    assert model(images(), *labels).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (2, 1, 48, 32), (3, 48, 32)])
def test_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 3, 48, 32\) expected, got"):
        small().eval()(torch.rand(shape))


def test_a_single_image_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        small().train()(images(1))


# -- maps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ({}, (True, True)),
        ({"htm_mode": 1}, (True, True)),
        ({"htm_mode": 3, "sharing": 2}, (True, True)),
        ({"depth": 0}, (True, True)),
        ({"transformer": "none"}, (True, False)),
        ({"cnn": "none"}, (False, True)),
    ],
)
def test_maps_tell_where_it_looked(more: dict[str, Any], there: tuple[bool, bool]) -> None:
    model = small(**more).eval()
    seen = model(images(), maps=True)
    assert isinstance(seen, Seen)
    torch.testing.assert_close(seen.embedding, model(images()))
    for found, size, wanted in zip(seen[1:], ((3, 2), (3, 2)), there, strict=True):
        assert (found is not None) == wanted
        if found is not None:
            assert found.shape == (3, *size)
            torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))
            assert (found >= 0).all()


# -- variants -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "heads"),
    [
        ({"transformer": "none"}, HEADS[:1]),
        ({"cnn": "none"}, HEADS[1:2]),
        ({"depth": 0}, HEADS[:4]),
        ({"depth": 3, "sharing": 1}, HEADS),
        ({"sharing": 3, "lru_kernel": 2}, HEADS),
        ({"htm_mode": 1}, HEADS),
        ({"htm_mode": 2}, HEADS),
        ({"htm_mode": 3, "lru_depthwise": False}, HEADS),
    ],
)
def test_every_parameter_takes_part(more: dict[str, Any], heads: tuple[str, ...]) -> None:
    """Several processes wait for ever for a gradient that never comes."""
    model = small(**more).train()
    assert tuple(model.heads) == heads
    made = model(images(), torch.tensor([0, 1, 2]))
    sum(s.square().sum() + f.sum() for s, f in zip(*made, strict=True)).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None}
    assert idle == {f"heads.{name}.neck.bias" for name in heads}
    assert idle == {n for n, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("transformer", "dim", "depth"),
    [
        ("vit_base_patch16_224", 768, 12),
        ("deit_base_patch16_224", 768, 12),
        ("vit_small_patch16_224", 768, 8),
        ("deit_small_patch16_224", 384, 12),
        ("t2t_vit_t_14", 384, 14),
        ("t2t_vit_t_24", 512, 24),
    ],
)
def test_every_transformer_goes_into_the_dual_model(
    transformer: str, dim: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ReidModel.model_validate(
        {"transformer": transformer, "cnn": "small", "input_size": (64, 32)}
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no 'meta'
    with torch.device("meta"):
        model = build_model(settings, 7, 2).eval()
        found = model(torch.empty(2, 3, 64, 32), torch.empty(2, dtype=torch.long))
    assert found.shape == (2, model.width) == (2, 512 + dim + 4 * 768)
    assert len(model.transformer.blocks) == depth
    if transformer == "vit_small_patch16_224":
        attention: Any = model.transformer.blocks[0].attn
        assert attention.scale == 768**-0.5
        assert attention.qkv.bias is None


@pytest.mark.parametrize(
    ("more", "feature", "words"),
    [
        ({"depth": 0}, 5, r"feature=5 \(fused_cnn\) is none of this model's: 0 all, 1 cnn"),
        ({"transformer": "none"}, 2, r"feature=2 \(transformer\)"),
    ],
)
def test_a_head_that_is_not_there(more: dict[str, Any], feature: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(feature=feature, **more)


def test_the_network_is_the_plain_one() -> None:
    model = small(sharing=1).double().train()
    image, camera = images().double(), torch.tensor([0, 2, 1])
    ours, _ = model.features(image * 2 - 1, camera)
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    again = small(sharing=1).double().train()
    theirs = plain.forward(again, image, camera)
    assert tuple(ours) == tuple(theirs)
    given = []
    for net, made in ((model, ours), (again, theirs)):
        loss = torch.stack([y.sin().sum() for y in made.values()]).sum()
        used = [p for n, p in net.named_parameters() if not n.startswith("heads.")]
        given.append(torch.autograd.grad(loss, used))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=1e-7)
    for a, b in zip(*given, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)
    for name, value in statistics.items():
        torch.testing.assert_close(value, again.state_dict()[name])


def test_autocast_keeps_the_pooling_precise() -> None:
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        made = model(images(), torch.tensor([0, 1, 2]))
    assert made.features[0].dtype == torch.float32
    sum(s.float().sum() for s in made.scores).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_drop_path_is_chance_of_training_alone() -> None:
    model = small(drop_path=0.5)
    x = images()
    torch.testing.assert_close(model.eval()(x), model(x))
    first, second = (model.train()(x).features[1] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_the_network_can_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    camera = torch.tensor([0, 1, -1])
    made = torch.export.export(
        model, (images(), camera), dynamic_shapes={"image": {0: batch}, "camera": {0: batch}}
    )
    found = made.module()(images(2), camera[1:])
    torch.testing.assert_close(found, model(images(2), camera[1:]), atol=1e-5, rtol=1e-4)


# -- sizes ----------------------------------------------------------------------------------------


def gigamacs(form: Any) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        form()
    return float(counter.get_total_flops() / 2e9)


@pytest.mark.parametrize(
    ("more", "parameters", "work"),
    [
        ({"sharing": 1}, 173_400_111, 29.07),
        ({"sharing": 0}, 159_225_903, None),
        ({"sharing": 1, "cnn": "resnet101"}, 192_392_239, None),
        ({"sharing": 1, "cnn": "resnet152"}, 208_035_887, None),
        ({"sharing": 1, "stride": (16, 16)}, 173_337_135, None),
        ({"sharing": 1, "mix": 384}, 128_655_663, None),
        ({"sharing": 1, "transformer": "t2t_vit_t_14"}, 107_652_892, 12.26),
        ({"transformer": "none"}, 25_050_177, 4.05),
    ],
)
def test_sizes_are_the_official_ones(
    more: dict[str, Any], parameters: int, work: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts of the published code with 751 identities and 6 cameras (specification, section 7)."""
    settings = ReidModel.model_validate(more)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no 'meta'
    with torch.device("meta"):
        model = build_model(settings, 751, 6).eval()
        unused = 0 if settings.transformer == "none" else UNUSED
        if settings.transformer.startswith("t2t"):
            unused = 751 * 385
        assert sum(p.numel() for p in model.parameters()) + unused == parameters
        if work is not None:
            x = torch.empty(1, 3, 256, 128)
            both = len(model.heads) > 1
            form = (lambda: plain.forward(model, x)) if both else (lambda: model(x))
            assert gigamacs(form) == pytest.approx(work, abs=0.006)


def test_the_papers_count_is_the_shared_encoder_without_classifiers() -> None:
    with torch.device("meta"):
        model = build_model(ReidModel(), 751, 6)
    heads = sum(p.numel() for p in model.heads.parameters())
    body = sum(p.numel() for p in model.parameters()) - heads
    assert body / 1e6 == pytest.approx(153.8, abs=0.3)


# -- OSNet ----------------------------------------------------------------------------------------

OSNET = {"cnn": "osnet_x1_0", "transformer": "none"}


def test_osnet_without_torchreid_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchreid", "torchreid.reid.models.osnet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"needs the package .* pip install '.\[reid\]'"):
        build_model(ReidModel.model_validate(OSNET), 5, 2)


@pytest.mark.slow
def test_osnet_is_torchreids() -> None:
    pytest.importorskip("torchreid", reason="the extra 'reid' is not installed")
    from importlib import import_module

    theirs = import_module("torchreid.reid.models.osnet").osnet_x1_0(5, pretrained=False).eval()
    model = build_model(ReidModel.model_validate(OSNET), 5, 2).eval()
    state = theirs.state_dict()
    own = {f"{'pool_cnn' if k.startswith('fc.') else 'cnn'}.{k}": v for k, v in state.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert all(key.startswith("heads.") for key in missing)
    assert unexpected == ["cnn.classifier.weight", "cnn.classifier.bias"]
    x = torch.rand(2, 3, 256, 128)
    mean, deviation = (x.new_tensor(v).view(1, 3, 1, 1) for v in model.normalise)
    expected = theirs((x - mean) / deviation)
    seen = model(x, maps=True)
    torch.testing.assert_close(seen.embedding, expected, atol=1e-5, rtol=1e-4)
    assert seen.cnn_map.shape == (2, 16, 8)
    size = sum(p.numel() for p in [*model.cnn.parameters(), *model.pool_cnn.parameters()])
    assert size / 1e6 == pytest.approx(2.17, abs=0.02)  # 2.19 M with its classifier
    assert gigamacs(lambda: model(x[:1])) == pytest.approx(0.98, abs=0.01)
    model.train()(x).scores[0].sum().backward()
