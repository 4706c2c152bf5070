"""The losses: both forms, per image, several classes, padding, half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.medical.her_seg.losses import focal, mask_loss, probability_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(*shape: int, classes: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(0, classes + 1, shape, generator=torch.Generator().manual_seed(seed))


def test_the_formula_of_the_paper_s_code() -> None:
    logits, target = drawn(3, 1, 8, 8), masks(3, 8, 8)
    p, y = logits.sigmoid().double(), target.unsqueeze(1).double()
    dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    b = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    slow = 0.8 * (1 - math.exp(-float(b))) ** 2 * float(b)
    found = mask_loss(logits, target, weight=0.7)
    assert found.dice.item() == pytest.approx(float(dice), abs=1e-6)
    assert found.focal.item() == pytest.approx(slow, abs=1e-6)
    assert found.total.item() == pytest.approx(0.7 * float(dice) + 0.3 * slow, abs=1e-6)
    iou = ((p * y).sum() + 1) / (p.sum() + y.sum() - (p * y).sum() + 1)
    assert found.iou.item() == pytest.approx(float(iou), abs=1e-6)
    assert focal(torch.tensor(0.0)).item() == 0.0


@pytest.mark.parametrize("per_image", [False, True])
def test_forms_agree_in_value_and_gradient_where_probabilities_are_moderate(
    per_image: bool,
) -> None:
    target = masks(2, 8, 8)
    grads = []
    for form in (True, False):
        logits = drawn(2, 1, 8, 8).requires_grad_()
        loss = mask_loss(logits, target, probability_form=form, per_image=per_image).total
        grads.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    logits = drawn(2, 1, 8, 8).requires_grad_()
    loss = probability_loss(logits.sigmoid(), target.unsqueeze(1), per_image=per_image).total
    grads.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    for value, grad in grads[1:]:
        torch.testing.assert_close(value, grads[0][0])
        torch.testing.assert_close(grad, grads[0][1])


def test_only_the_logits_form_still_teaches_when_surely_wrong() -> None:
    target = torch.ones(1, 4, 4, dtype=torch.int64)
    grads = []
    for form in (True, False):
        logits = torch.full((1, 1, 4, 4), -120.0, requires_grad=True)
        loss = mask_loss(logits, target, weight=0.0, probability_form=form).total
        assert loss.item() == pytest.approx(0.8 * (100 if form else 120), rel=1e-4)
        grads.append(torch.autograd.grad(loss, logits)[0].abs().sum().item())
    assert grads[0] == 0.0
    assert grads[1] > 0.5


def test_dice_of_the_batch_is_not_the_mean_over_images() -> None:
    target = torch.zeros(2, 8, 8, dtype=torch.int64)
    target[0, :2] = 1
    logits = torch.where(target.unsqueeze(1) > 0, 9.0, -9.0)
    logits[1, 0, 0, :4] = 9.0  # a small invention in the empty image
    batch = mask_loss(logits, target).dice.item()
    image = mask_loss(logits, target, per_image=True).dice.item()
    assert batch == pytest.approx(1 - 33 / 37, abs=1e-3)
    assert image == pytest.approx((0 + 1 - 1 / 5) / 2, abs=1e-2)


def test_several_classes_average_dice_over_them_without_background() -> None:
    logits, target = drawn(2, 4, 8, 8), masks(2, 8, 8, classes=3)
    p = logits.softmax(1)
    parts = []
    for c in (1, 2, 3):
        y = (target == c).float()
        parts.append(1 - (2 * (p[:, c] * y).sum() + 1) / (p[:, c].sum() + y.sum() + 1))
    found = mask_loss(logits, target, weight=1.0)
    torch.testing.assert_close(found.total, torch.stack(parts).mean())
    entropy = functional.cross_entropy(logits, target)
    torch.testing.assert_close(mask_loss(logits, target, weight=0.0).total, focal(entropy))


def test_a_class_that_is_nowhere_does_not_break_the_loss() -> None:
    logits = drawn(1, 3, 4, 4).requires_grad_()
    target = masks(1, 4, 4)  # never 2
    found = mask_loss(logits, target, per_image=True)
    (grad,) = torch.autograd.grad(found.total, logits)
    assert torch.isfinite(grad).all()
    assert grad[:, 2].abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("per_image", [False, True])
def test_padding_counts_for_nothing(channels: int, per_image: bool) -> None:
    inner, target = drawn(2, channels, 6, 8), masks(2, 6, 8, classes=max(1, channels - 1))
    wide = functional.pad(inner, (0, 0, 2, 4), value=7.0)
    truth = functional.pad(target, (0, 0, 2, 4), value=1)
    valid = torch.zeros(2, 12, 8, dtype=torch.bool)
    valid[:, 2:8] = True
    expected = mask_loss(inner, target, per_image=per_image)
    found = mask_loss(wide, truth, per_image=per_image, valid=valid)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    # Without the mask it would.
    assert not torch.isclose(mask_loss(wide, truth, per_image=per_image).total, expected.total)


def test_sums_are_taken_in_single_precision() -> None:
    logits, target = drawn(1, 1, 300, 300), masks(1, 300, 300)
    half = mask_loss(logits.bfloat16(), target)
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, mask_loss(logits.bfloat16().float(), target).total)


def test_gradients_are_right() -> None:
    target = masks(2, 4, 4, classes=2)
    for channels, form in ((1, True), (1, False), (3, False)):
        logits = drawn(2, channels, 4, 4).double().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, f=form: mask_loss(x, target, probability_form=f, per_image=True).total, logits
        )
