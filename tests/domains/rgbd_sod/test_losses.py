from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.saliency.rgbd_sod import losses, plain
from zoo.domains.saliency.rgbd_sod.losses import LAMBDAS, deep_supervision

KINDS = ["bce+iou", "bce", "bce+ssim", "bce+dice", "structure"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps(
    batch: int = 3, side: int = 40, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    shape = (batch, 1, side, side + 2)
    logits = [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(4)]
    return logits, (torch.rand(shape) > 0.7).to(dtype)


# The terms once more, written for one map (B, 1, H, W) at a time.


def plain_bce(z: Tensor, g: Tensor) -> Tensor:
    p = z.sigmoid()
    return -(g * p.log() + (1 - g) * (1 - p).log()).mean()


def plain_iou(z: Tensor, g: Tensor) -> Tensor:
    total = 0.0
    for p, t in zip(z.sigmoid(), g, strict=True):
        shared = (p * t).sum()
        total = total + 1 - (shared + 1e-6) / ((p + t - p * t).sum() + 1e-6)
    return total / len(z)


def plain_dice(z: Tensor, g: Tensor) -> Tensor:
    p = z.sigmoid()
    return 1 - (2 * (p * g).sum() + 1) / ((p**2).sum() + (g**2).sum() + 1)


def plain_ssim(z: Tensor, g: Tensor) -> Tensor:
    line = torch.tensor([2.718281828459045 ** (-((i - 5) ** 2) / 4.5) for i in range(11)])
    window = torch.outer(line, line).double()
    window = (window / window.sum()).view(1, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, padding=5)

    p = z.sigmoid()
    a, b = blur(p), blur(g)
    va, vb, ab = blur(p * p) - a * a, blur(g * g) - b * b, blur(p * g) - a * b
    top, bottom = (2 * a * b + 1e-4) * (2 * ab + 9e-4), (a * a + b * b + 1e-4) * (va + vb + 9e-4)
    return 1 - (top / bottom).mean()


def plain_structure(z: Tensor, g: Tensor) -> Tensor:
    weight = 1 + 5 * (functional.avg_pool2d(g, 31, 1, 15) - g).abs()
    p = z.sigmoid()
    shared = (p * g * weight).sum((2, 3))
    either = ((p + g) * weight).sum((2, 3))
    return plain_bce(z, g) + (1 - (shared + 1) / (either - shared + 1)).mean()


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": plain_bce,
    "iou": plain_iou,
    "dice": plain_dice,
    "ssim": plain_ssim,
    "structure": plain_structure,
}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_weighted_sum_of_its_terms(kind: str) -> None:
    logits, mask = maps()
    found = deep_supervision(logits, mask, kind)
    assert list(found) == ["loss", *kind.split("+")]
    expected = {
        name: sum(w * PLAIN[name](z, mask) for w, z in zip(LAMBDAS, logits, strict=True))
        for name in kind.split("+")
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=0)
    total = sum(expected.values())
    torch.testing.assert_close(found["loss"], total, rtol=1e-7, atol=0)
    mine = torch.autograd.grad(found["loss"], logits)
    for a, b in zip(mine, torch.autograd.grad(total, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_paper_loss_equals_the_plain_form_to_rounding() -> None:
    logits, mask = maps(2, 64)
    ours = deep_supervision(logits, mask)["loss"]
    theirs = plain.bce_iou(logits, mask, LAMBDAS)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    mine = torch.autograd.grad(ours, logits)
    for a, b in zip(mine, torch.autograd.grad(theirs, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    logits, mask = maps(2, 4)

    def loss(*levels: Tensor) -> Tensor:
        return deep_supervision(levels, mask, kind, (0.5, 1.0, 0.2, 0.3))["loss"]

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_empty_and_full_masks_are_finite(kind: str, fill: float, logit: float) -> None:
    logits = [torch.full((2, 1, 32, 32), logit, requires_grad=True) for _ in range(4)]
    found = deep_supervision(logits, torch.full((2, 1, 32, 32), fill), kind)
    found["loss"].backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert all(torch.isfinite(z.grad).all() for z in logits)


def test_empty_prediction_of_an_empty_mask_costs_nothing() -> None:
    nothing = torch.zeros(1, 8, 8)
    assert losses.iou(nothing[None], nothing).item() == 0
    assert losses.iou(torch.full((1, 1, 8, 8), 0.25), nothing).item() == pytest.approx(1, abs=1e-6)
    perfect = (torch.rand(1, 8, 8) > 0.5).float()
    assert losses.iou(perfect[None], perfect).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_is_left_before_sums() -> None:
    logits, mask = maps(1, 300, dtype=torch.float32)
    expected = deep_supervision(logits, mask)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deep_supervision([z.bfloat16() for z in logits], mask)
    assert found["loss"].dtype == torch.float32
    torch.testing.assert_close(found["loss"], expected, rtol=1e-3, atol=0)


def test_wrong_arguments_are_told() -> None:
    logits, mask = maps(1, 8)
    with pytest.raises(ValueError, match="of one shape"):
        deep_supervision(logits, mask[:, :, :4])
    with pytest.raises(ValueError, match="3 weights expected"):
        deep_supervision(logits, mask, "bce", (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="joined by \\+, got 'bce\\+focal'"):
        deep_supervision(logits, mask, "bce+focal")
