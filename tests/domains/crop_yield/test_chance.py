from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.domains.remote_sensing.crop_yield.chance import dropout, keep_mask, relu_dropout


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9, 1 / 3])
def test_share_that_stays_is_the_one_asked_for(p: float, layout: torch.memory_format) -> None:
    like = torch.empty(50, 8, 25, 40).contiguous(memory_format=layout)
    mask, scale = keep_mask(like, p)
    assert mask.shape == like.shape
    assert mask.stride() == like.stride()
    assert scale == pytest.approx(1 / (1 - p), rel=2e-4)
    # Five deviations of a share of 400,000.
    assert float(mask.float().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p) / 4e5) ** 0.5)
    both = (mask[:25] & mask[25:]).float().mean()
    assert float(both) == pytest.approx((1 - p) ** 2, abs=0.005)


def test_masks_follow_the_global_seed_and_differ() -> None:
    like = torch.empty(3, 7)
    first, second = keep_mask(like, 0.5)[0], keep_mask(like, 0.5)[0]
    torch.manual_seed(0)
    assert torch.equal(keep_mask(like, 0.5)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("function", [dropout, relu_dropout])
def test_values_and_gradients_are_scaled_or_dropped(function: object) -> None:
    x = torch.randn(40, 30, dtype=torch.float64, requires_grad=True)
    y = function(x, 0.25, True)
    probe = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * probe).sum(), x)
    kept = y != 0
    assert 0.2 < float(kept.double().mean()) < 0.85
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    torch.testing.assert_close(grad, torch.where(kept, probe / 0.75, 0.0))


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_where_nothing_is_to_be(p: float, training: bool) -> None:
    x: Tensor = torch.randn(5, 4)
    assert torch.equal(dropout(x, p, training), x)
    assert torch.equal(relu_dropout(x, p, training), x.relu())


def test_reference_kernels_use_pytorchs_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_KERNELS", "reference")
    x = torch.randn(50, 40)
    torch.manual_seed(3)
    ours = dropout(x, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.5))
