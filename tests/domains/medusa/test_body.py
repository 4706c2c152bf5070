from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.medical.medusa.body import DECODER, ENCODER, LAYERS, Body
from zoo.domains.medical.medusa.plain import plain_body
from zoo.domains.medical.medusa.upsampling import upsampled_conv


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def enlarged(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    large = functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.conv2d(large, weight, bias, padding=1)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 1, 4), (2, 4, 5, 3), (1, 8, 16, 16)])
def test_upsampled_convolution_equals_its_definition(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ours, theirs = upsampled_conv(x, weight, bias), enlarged(x, weight, bias)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(ours)
    found = torch.autograd.grad(ours, (x, weight, bias), cotangent)
    for mine, other in zip(
        found, torch.autograd.grad(theirs, (x, weight, bias), cotangent), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


def test_upsampled_convolution_in_float32_is_as_exact_as_its_definition() -> None:
    x = torch.randn(1, 64, 32, 32).relu_()
    weight, bias = torch.randn(64, 64, 3, 3) * (2 / 576) ** 0.5, torch.zeros(64)
    exact = enlarged(x.double(), weight.double(), bias.double())
    worst = float(exact.abs().max())
    assert float((upsampled_conv(x, weight, bias) - exact).abs().max()) <= 1e-6 * worst
    theirs = enlarged(x, weight, bias)
    assert float((upsampled_conv(x, weight, bias) - theirs).abs().max()) <= 1e-6 * worst


def test_upsampled_convolution_gives_only_the_gradients_asked_for() -> None:
    x, weight, bias = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3), torch.randn(2)
    found = upsampled_conv(x, weight.requires_grad_(), bias)
    found.sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    with pytest.raises(ValueError, match="kernel should be 3 x 3"):
        upsampled_conv(x, torch.randn(2, 2, 5, 5), bias)


def test_body_has_the_published_parameters() -> None:
    body = Body()
    assert sum(p.numel() for p in body.parameters()) == 5_468_897
    assert [n for n, _ in body.named_children()] == [f"conv{n}" for n in LAYERS]
    placed = [n for pair in ENCODER for n in pair] + [n for three in DECODER for n in three]
    assert sorted([*placed, 13, 34]) == list(LAYERS)
    assert tuple(body.get_parameter("conv18.weight").shape) == (256, 384, 3, 3)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (1, 1, 48, 32)])
def test_body_equals_its_plain_form(shape: tuple[int, ...]) -> None:
    body = Body(4).double()
    semantic = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = body(semantic), plain_body(body, semantic)
    assert ours.shape == semantic.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    inputs = [semantic, *body.parameters()]
    cotangent = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, inputs, cotangent)
    for a, b in zip(mine, torch.autograd.grad(theirs, inputs, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_plain_operators_give_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    body, semantic = Body(4), torch.randn(1, 1, 32, 32)
    ours = body(semantic)
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    torch.testing.assert_close(body(semantic), ours)


def test_logits_are_the_map_before_the_sigmoid() -> None:
    body, semantic = Body(2), torch.randn(1, 1, 16, 32)
    torch.testing.assert_close(body.logits(semantic).sigmoid(), body(semantic))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 1, 40, 32), r"multiples of 16, got \(40, 32\)"),
        ((1, 3, 32, 32), r"should be \(B, 1, T, U\), got \(1, 3, 32, 32\)"),
        ((1, 32, 32), r"should be \(B, 1, T, U\)"),
        ((1, 1, 0, 16), r"should be \(B, 1, T, U\)"),
    ],
)
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Body(2)(torch.zeros(shape))


def test_body_works_under_autocast_and_keeps_its_map_in_float32() -> None:
    body, semantic = Body(4), torch.randn(1, 1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = body(semantic)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, body(semantic), rtol=0, atol=0.03)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in body.parameters())
