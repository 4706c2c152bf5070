from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield import plain
from zoo.domains.remote_sensing.crop_yield.chance import keep_mask
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.model import build_model
from zoo.domains.remote_sensing.crop_yield.pooling import conv_relu_mean, conv_relu_pool
from zoo.domains.remote_sensing.crop_yield.sentinel import SentinelDFYPNet, county_mean
from zoo.errors import ConfigError

SMALL = {"dim": 16, "depth": 2, "heads": 2, "head_size": 8, "mlp": 24}
BOUNDS = torch.tensor([0, 3, 4, 11])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(facts: dict[str, Any] | None = None, crop: str = "corn", **more: Any) -> SentinelDFYPNet:
    data = {"sensor": "sentinel2", "crop": crop, "image_size": 32}
    config = Config(task="crop_yield", preset="paper", data=data, model=SMALL | more)
    made = build_model(config, facts or {})
    assert isinstance(made, SentinelDFYPNet)
    return made


def pictures(count: int = 11) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


def gradients(y: Tensor, net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    (y * torch.tensor([0.7, -1.1], dtype=y.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for name, grad in other.items():
        torch.testing.assert_close(
            mine[name], grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()), msg=name
        )


def test_released_size_has_the_released_parameters() -> None:
    config = Config(task="crop_yield", preset="paper", data={"sensor": "sentinel2"})
    with torch.device("meta"):
        net = build_model(config, {})
    assert sum(p.numel() for p in net.parameters()) == 1_381_007


@pytest.mark.parametrize("crop", ["corn", "cotton"])
@pytest.mark.parametrize("recompute", [True, False])
def test_equals_the_plain_form(crop: str, recompute: bool) -> None:
    net = build(crop=crop, dropout=0, chunk=4, recompute=recompute).double().train()
    x = pictures()
    ours, theirs = net(x, BOUNDS), plain.plain_sentinel(net, x, BOUNDS)
    assert ours.shape == (3, 2)
    torch.testing.assert_close(ours, theirs)
    assert_same(gradients(ours, net), gradients(theirs, net))


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_change_neither_results_nor_gradients(chunk: int) -> None:
    net = build(dropout=0).double().train()
    x = pictures()
    net.chunk, net.recompute = 100, False
    whole = net(x, BOUNDS)
    expected = gradients(whole, net)
    net.chunk, net.recompute = chunk, True
    ours = net(x, BOUNDS)
    torch.testing.assert_close(ours, whole)
    assert_same(gradients(ours, net), expected)


def test_recomputed_dropout_gives_the_gradients_of_what_was_drawn() -> None:
    net, x, found = build(chunk=4).double().train(), pictures(), []
    for recompute in (True, False):
        net.recompute = recompute
        torch.manual_seed(7)
        y = net(x, BOUNDS)
        grads = gradients(y, net)
        # Drawing goes on from where the forward pass left it.
        found.append((y.detach(), grads, torch.rand(1)))
    (first, grads, after), (y_stored, grads_stored, after_stored) = found
    assert torch.equal(first, y_stored)
    assert torch.equal(after, after_stored)
    for name, grad in grads_stored.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-12, atol=1e-14, msg=name)
    assert not torch.equal(net(x, BOUNDS), first)


def saved_bytes(net: SentinelDFYPNet, run: Any) -> int:
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held = run()
    total = sum(kept.values())
    del held
    return total


def test_recomputing_keeps_less_than_a_sixth_for_the_backward_pass() -> None:
    net = build(chunk=4, depth=6).train()
    x = pictures(16).float()
    bounds = torch.tensor([0, 16])
    theirs = saved_bytes(net, lambda: plain.plain_sentinel(net, x, bounds))
    stored = x.nbytes
    # Tensors that checkpoints hold pass no hook; they are the pictures, which exist anyway.
    ours = saved_bytes(net, lambda: net(x, bounds)) + stored
    assert ours < theirs / 6
    net.recompute = False
    assert ours < saved_bytes(net, lambda: net(x, bounds)) < theirs


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooled_convolution_equals_one_after_the_other(
    layout: torch.memory_format, size: tuple[int, int], p: float
) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    x.requires_grad_()
    over = [x, conv.weight, conv.bias]
    y = conv_relu_pool(x, conv, p, training=True)
    if p == 0:
        expected = functional.max_pool2d(conv(x).relu(), 2)
    else:
        # What was kept shows in the gradient: draw the same mask again.
        torch.manual_seed(1)
        y = conv_relu_pool(x, conv, p, training=True)
        torch.manual_seed(1)
        mask, scale = keep_mask(conv(x), p)
        assert 0 < int(mask.sum()) < mask.numel()
        expected = functional.max_pool2d(conv(x).relu() * mask * scale, 2)
    torch.testing.assert_close(y, expected)
    probe = torch.randn_like(y)
    mine = torch.autograd.grad((y * probe).sum(), over)
    other = torch.autograd.grad((expected * probe).sum(), over)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_averaged_convolution_equals_one_after_the_other(p: float) -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = conv_relu_mean(x, conv, p, training=True)
    torch.manual_seed(1)
    mask, scale = keep_mask(conv(x), p) if p else (1.0, 1.0)
    expected = (conv(x).relu() * mask * scale).mean(dim=(2, 3))
    torch.testing.assert_close(y, expected)
    mine = torch.autograd.grad(y.pow(2).sum(), [x, conv.weight, conv.bias])
    other = torch.autograd.grad(expected.pow(2).sum(), [x, conv.weight, conv.bias])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_order_of_pictures_and_counties_packed_together_do_not_matter() -> None:
    net, x = build().double().eval(), pictures()
    y = net(x, BOUNDS)
    torch.testing.assert_close(net(x[4:].flip(0), torch.tensor([0, 7]))[0], y[2])
    torch.testing.assert_close(net(x[3:4], torch.tensor([0, 1]))[0], y[1])


def test_mean_of_a_county_is_over_its_own_pictures() -> None:
    x = torch.arange(12.0).view(6, 2)
    found = county_mean(x, torch.tensor([1, 3, 2]))
    expected = torch.stack([x[0], x[1:4].mean(0), x[4:].mean(0)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [([0, 3, 3, 11], "boundaries rise"), ([0, 5], "from 0 to 11"), ([1, 11], "from 0 to 11")],
)
def test_wrong_boundaries_are_told(bounds: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()(pictures().float(), torch.tensor(bounds))


def test_wrong_pictures_are_told() -> None:
    with pytest.raises(ValueError, match=r"pictures \(P, 3, H, W\)"):
        build()(torch.rand(2, 4, 32, 32), torch.tensor([0, 2]))


def test_operator_follows_the_crop_or_the_configuration() -> None:
    assert build(crop="corn").operator == "sobel"
    assert build(crop="winterwheat").operator == "scharr"
    assert build(crop="corn", operator="scharr").operator == "scharr"
    with pytest.raises(ConfigError, match=r"model\.operator=learnable"):
        build(operator="learnable")


def test_picture_size_has_to_fit_the_patches() -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=32: no multiple of model\.patch=12"):
        build(patch=12)


def test_targets_are_scaled_back() -> None:
    facts = {"target_mean": [14.0, 5.0], "target_deviation": [1.2, 0.3]}
    net, x = build(facts).double().eval(), pictures()
    y, (mean, deviation) = net(x, BOUNDS), net.target.clone()
    assert mean.tolist() == pytest.approx([14.0, 5.0])
    net.target = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(y, mean + deviation * net(x, BOUNDS))


def test_attention_has_one_factor_a_colour() -> None:
    net = build()
    assert net.band_attention(pictures().float()).shape == (11, 3)
    assert 0 <= float(net.attention_alive(pictures().float())) <= 1
