from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from zoo.domains.medical.medusa.heads import ScaleHead
from zoo.domains.medical.medusa.plain import plain_head
from zoo.kernels import legacy_resize


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "sigmoid"}, {"activation": "tanh"}, {"grid": "half_pixel"}],
)
@pytest.mark.parametrize("size", [(7, 5), (12, 12), (30, 29)])
def test_head_equals_its_plain_form(
    size: tuple[int, int], options: dict[str, Any], step: int
) -> None:
    head = ScaleHead(3, **options).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    level = torch.rand(2, 1, 16, 24, dtype=torch.float64, requires_grad=True)
    inputs = [x, level, *head.parameters()]
    ours, theirs = head(x, level, step), plain_head(head, x, level)[:, :, ::step, ::step]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    cotangent = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, inputs, cotangent)
    for a, b in zip(mine, torch.autograd.grad(theirs, inputs, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_head_keeps_its_features_and_a_map_of_one_channel() -> None:
    head, x = ScaleHead(64), torch.randn(1, 64, 20, 20, requires_grad=True)
    level = torch.rand(1, 1, 40, 40)
    kept: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        head(x, level)
    own = sum(p.numel() for p in head.parameters())
    assert sum(kept) <= x.numel() + 400 + own


def test_head_gives_only_the_gradients_asked_for() -> None:
    head = ScaleHead(4)
    x, level = torch.randn(1, 4, 9, 9), torch.rand(1, 1, 8, 8, requires_grad=True)
    head.requires_grad_(False)
    head(x, level, 2).sum().backward()
    assert level.grad is not None
    assert x.grad is None
    assert all(p.grad is None for p in head.parameters())


def test_attention_is_what_features_are_multiplied_by_less_one() -> None:
    head, x, level = ScaleHead(5), torch.randn(2, 5, 9, 11), torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(head(x, level), x * (1 + head.attention(level, (9, 11))))


def test_grids_of_the_resize() -> None:
    level = torch.rand(1, 1, 16, 16)
    half = functional.interpolate(level, (5, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ScaleHead(2, grid="half_pixel").resized(level, (5, 7)), half)
    torch.testing.assert_close(ScaleHead(2).resized(level, (5, 7)), legacy_resize(level, (5, 7)))
    assert float((half - legacy_resize(level, (5, 7))).abs().max()) > 0.05


def test_initialisation() -> None:
    weight = ScaleHead(4096).conv.weight.detach()
    deviation = math.sqrt(2 / 49)
    assert abs(float(weight.std()) / deviation - 1) < 0.02
    assert float(weight.abs().max()) <= 2 * deviation / 0.87962566
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(ScaleHead(3, zero=True)(x, torch.rand(1, 1, 8, 8)), x)


@pytest.mark.parametrize("shape", [None, (2, 1, 8, 8), (1, 2, 8, 8), (1, 8, 8)])
def test_a_missing_or_wrong_map_is_told(shape: tuple[int, ...] | None) -> None:
    level = None if shape is None else torch.zeros(shape)
    with pytest.raises(ValueError, match=r"a scale head needs a map \(1, 1, T, U\), got"):
        ScaleHead(3)(torch.zeros(1, 3, 6, 6), level)
