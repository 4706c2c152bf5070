from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.medusa.backbone import (
    Bottleneck,
    KerasResNet,
    Stage,
    Stem,
    last_side,
    same_padding,
)
from zoo.domains.medical.medusa.config import SMALLEST_IMAGE
from zoo.domains.medical.medusa.features import TimmBackbone, load_features
from zoo.domains.medical.medusa.plain import plain_bottleneck
from zoo.domains.medical.medusa.recompute import (
    max_pool,
    norm_add_relu,
    norm_relu_conv,
    norm_relu_pool,
)
from zoo.errors import ConfigError, WeightsError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01).double()
    for tensor in (*made.parameters(), made.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(made.running_var, 0.5, 2)
    return made


def plain_conv(z: Tensor, batch: nn.BatchNorm2d, conv: nn.Conv2d, _: Tensor) -> Tensor:
    return conv(functional.relu(batch(z)))


def plain_add(z: Tensor, batch: nn.BatchNorm2d, _: nn.Conv2d, shortcut: Tensor) -> Tensor:
    return functional.relu(batch(z) + shortcut)


def plain_pool(z: Tensor, batch: nn.BatchNorm2d, _: nn.Conv2d, __: Tensor) -> Tensor:
    return functional.max_pool2d(functional.relu(batch(z)), 3, 2)


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "conv": (lambda z, n, c, s: norm_relu_conv(z, n, c), plain_conv),
    "add": (lambda z, n, c, s: norm_add_relu(z, n, s), plain_add),
    "pool": (lambda z, n, c, s: norm_relu_pool(z, n, 3, 2), plain_pool),
    "max": (lambda z, n, c, s: max_pool(z, 2, 2), lambda z, n, c, s: functional.max_pool2d(z, 2)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("name", list(PAIRS))
def test_recomputing_operations_equal_plain_ones(name: str, kernel: int, training: bool) -> None:
    ours, plain = PAIRS[name]
    conv = nn.Conv2d(4, 3, kernel, padding=kernel // 2).double()
    batch, other = norm(4), norm(4)
    other.load_state_dict(batch.state_dict())
    z = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    shortcut = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for run, own in ((ours, batch.train(training)), (plain, other.train(training))):
        inputs = [z, shortcut, *own.parameters(), *conv.parameters()]
        out = run(z, own, conv, shortcut)
        cotangent = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
        grads = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
        results.append((out, *grads, *own.buffers()))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_statistics_of_a_single_value_are_refused() -> None:
    batch, z = nn.BatchNorm2d(3), torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match=r"more than one value a channel, got \(1, 3, 1, 1\)"):
        norm_add_relu(z, batch, z)
    assert norm_add_relu(z, batch.eval(), z).shape == z.shape


@pytest.mark.parametrize(("stride", "project"), [(1, False), (1, True), (2, True)])
@pytest.mark.parametrize("training", [True, False])
def test_bottleneck_equals_its_plain_form(stride: int, project: bool, training: bool) -> None:
    block = Bottleneck(8, 2, stride, project=project).double().train(training)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, requires_grad=True)
    theirs = plain_bottleneck(block, x)
    before = {k: v.clone() for k, v in block.state_dict().items()}
    ours = block(x)
    inputs = [x, *block.parameters()]
    cotangent = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours, inputs, cotangent)
    for a, b in zip(mine, torch.autograd.grad(theirs, inputs, cotangent), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    moved = any(not torch.equal(before[k], v) for k, v in block.state_dict().items())
    assert moved == training


def test_a_stage_reads_thinned_features_alone() -> None:
    stage = Stage(4, 2, 2, 2).eval()
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(stage(x), stage(x[:, :, ::2, ::2], thinned=True))


@pytest.mark.parametrize(("size", "before", "after"), [(480, 2, 3), (481, 3, 3), (224, 2, 3)])
def test_same_padding_of_tensorflow(size: int, before: int, after: int) -> None:
    assert same_padding(size) == (before, after)


@pytest.mark.parametrize(("size", "side"), [(480, 119), (224, 55), (225, 56)])
def test_stem_has_the_released_sizes(size: int, side: int) -> None:
    with torch.no_grad():
        assert Stem(2)(torch.zeros(2, 3, size, 64)).shape[2] == side


@pytest.mark.parametrize("size", [32, 33, 64, 97, 199, 224, 480])
def test_side_of_the_last_stage_is_known_before(size: int) -> None:
    net = KerasResNet(2, size, width=4, blocks=(1, 1, 1, 1), global_pool=True).eval()
    with torch.no_grad():
        x = net.first(torch.zeros(1, 3, size, size))
        for scale in range(4):
            x = net.after(scale, x)
    assert tuple(x.shape[2:]) == (last_side(size), last_side(size))


def test_parameters_are_those_of_the_specification() -> None:
    net = KerasResNet(2)
    trainable = sum(p.numel() for p in net.parameters())
    statistics = sum(b.numel() for b in net.buffers() if b.is_floating_point())
    assert (trainable, statistics) == (23_534_592 + 16_386, 53_120)
    assert net.classifier.in_features == 8192
    assert KerasResNet(2, 224).classifier.in_features == 2048
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert all((m.eps, m.momentum) == (1e-3, 0.01) for m in norms)


def test_top_reads_places_before_channels() -> None:
    net = KerasResNet(2, 480, width=4, blocks=(1, 1, 1, 1))
    x = torch.randn(1, 128, 15, 15)
    pooled = functional.avg_pool2d(x, 7)[0]  # 15 pixels hold two windows of 7
    kernel = net.classifier.weight.mT.view(2, 2, 128, 2)  # height, width, channel, class
    expected = torch.einsum("chw,hwck->k", pooled, kernel)
    torch.testing.assert_close(net.classify(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_images_that_the_released_top_cannot_take_are_told() -> None:
    assert last_side(SMALLEST_IMAGE) == 7
    assert last_side(SMALLEST_IMAGE - 1) == 6
    with pytest.raises(ConfigError, match=r"image_size=196 leaves 6 x 6 .* 197 pixels or more"):
        KerasResNet(2, 196)
    net = KerasResNet(2, 224, width=4, blocks=(1, 1, 1, 1))
    for side in (15, 3):
        with pytest.raises(ValueError, match="built for images of 224 pixels"):
            net.classify(torch.zeros(1, 128, side, side))


# -- timm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "regnetx_002"])
def test_timm_network_in_pieces_equals_the_whole(name: str) -> None:
    net = TimmBackbone(name, 3).eval()
    image = torch.rand(1, 3, 70, 64)
    normal = (image.flip(1) - net.mean) / net.std
    with torch.no_grad():
        levels = net.features(normal)
        x = net.first(image)
        for scale in range(4):
            torch.testing.assert_close(x, levels[scale])
            assert x.shape[1] == net.channels[scale]
            x = net.after(scale, x)
        torch.testing.assert_close(x, levels[-1])
        assert net.classify(x).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51000", "timm has no such network"),
        ("vit_tiny_patch16_224", "four levels|4 levels"),
        ("swin_tiny_patch4_window7_224", "4 levels"),
        ("efficientnet_b0", "4 levels"),
    ],
)
def test_networks_without_levels_in_a_row_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        TimmBackbone(name, 2)
    assert f"model.backbone='{name}'" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_timm_weights_of_the_whole_network_are_read(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given: Any = timm.create_model("resnet18", pretrained=False)
    path = tmp_path / f"weights.{kind}"
    save_file(given.state_dict(), path) if kind == "safetensors" else torch.save(
        given.state_dict(), path
    )
    net = TimmBackbone("resnet18", 2)
    load_features(net, "resnet18", path)
    ours = net.features.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in given.state_dict().items() if k in ours)
    assert sum(k in given.state_dict() for k in ours) == len(ours)


def test_wrong_weights_of_a_timm_network_are_told(tmp_path: Path) -> None:
    net = TimmBackbone("resnet18", 2)
    with pytest.raises(WeightsError, match=r"gone\.pth: no such file"):
        load_features(net, "resnet18", tmp_path / "gone.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"bad\.safetensors: not weights of resnet18"):
        load_features(net, "resnet18", tmp_path / "bad.safetensors")
    other = timm.create_model("convnext_atto", pretrained=False)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: not weights of resnet18 \(no conv1"):
        load_features(net, "resnet18", tmp_path / "other.pth")
