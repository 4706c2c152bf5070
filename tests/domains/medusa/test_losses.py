from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.domains.medical.medusa.losses import mask_loss, weighted_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 3, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


def test_without_weights_it_is_the_mean_cross_entropy() -> None:
    ours = weighted_cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(ours, nn.CrossEntropyLoss()(LOGITS, LABELS))


def test_weights_multiply_and_are_not_divided_out() -> None:
    weights = torch.tensor([1.0, 4.0, 2.0])
    each = nn.CrossEntropyLoss(reduction="none")(LOGITS, LABELS)
    ours = weighted_cross_entropy(LOGITS, LABELS, class_weights=weights)
    torch.testing.assert_close(ours, (each * weights[LABELS]).sum() / 6)
    scaled = nn.CrossEntropyLoss(weight=weights)(LOGITS, LABELS)
    assert not torch.allclose(ours, scaled)
    both = weighted_cross_entropy(
        LOGITS, LABELS, class_weights=weights, sample_weights=torch.arange(6.0)
    )
    torch.testing.assert_close(both, (each * weights[LABELS] * torch.arange(6.0)).mean())


def test_smoothing() -> None:
    ours = weighted_cross_entropy(LOGITS, LABELS, smoothing=0.2)
    torch.testing.assert_close(ours, nn.CrossEntropyLoss(label_smoothing=0.2)(LOGITS, LABELS))


def test_half_precision_logits_have_a_full_precision_loss() -> None:
    ours = weighted_cross_entropy(LOGITS.bfloat16(), LABELS)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, weighted_cross_entropy(LOGITS.bfloat16().float(), LABELS))
    assert weighted_cross_entropy(LOGITS.double(), LABELS).dtype == torch.float64


def test_mask_loss_of_a_right_and_of_a_wrong_map() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:5] = 1
    right, wrong = (mask_loss(s * 50 * (2 * masks - 1), masks) for s in (1, -1))
    assert float(right.total) == pytest.approx(0, abs=1e-6)
    assert float(wrong.dice) == pytest.approx(1 - 1 / 65)
    assert float(wrong.bce) == pytest.approx(50)
    assert float(wrong.total) == pytest.approx(float(wrong.bce + wrong.dice))


def test_a_map_that_is_wrong_everywhere_still_has_a_gradient() -> None:
    logits = torch.full((1, 1, 2, 2), 200.0, requires_grad=True)
    mask_loss(logits, torch.zeros(1, 1, 2, 2)).total.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.full((1, 1, 2, 2), 0.25))


def test_mask_loss_by_hand_and_its_gradient_at_an_empty_mask() -> None:
    logits = torch.full((1, 1, 2, 2), 0.25).logit().requires_grad_(True)
    found = mask_loss(logits, torch.zeros(1, 1, 2, 2))
    assert found.bce.item() == pytest.approx(-torch.log(torch.tensor(0.75)).item())
    assert found.dice.item() == pytest.approx(1 - 1 / 2)
    found.dice.backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()
