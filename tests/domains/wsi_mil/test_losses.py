from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zoo.domains.medical.wsi_mil.losses import (
    branch_loss,
    diversity_loss,
    heatmap_scores,
    mil_losses,
    neg_entropy,
)
from zoo.domains.medical.wsi_mil.model import MilOutput
from zoo.domains.medical.wsi_mil.schedule import lr_factor

BOUNDS = torch.tensor([0, 4, 5, 11])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pairwise(attention: Tensor) -> Tensor:
    weights = attention.softmax(-1)
    pairs = itertools.combinations(range(weights.shape[1]), 2)
    return torch.stack(
        [
            functional.cosine_similarity(weights[:, i], weights[:, j], dim=-1).mean()
            for i, j in pairs
        ]
    ).mean()


@pytest.mark.parametrize("maps", [1, 8])
@pytest.mark.parametrize("branches", [2, 5])
def test_diversity_is_the_mean_cosine_of_pairs(maps: int, branches: int) -> None:
    attention = torch.randn(maps, branches, 11, dtype=torch.float64, requires_grad=True)
    ours = diversity_loss(attention, BOUNDS)
    each = [pairwise(attention[..., a:b]) for a, b in ((0, 4), (4, 5), (5, 11))]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(ours, expected)
    (mine,) = torch.autograd.grad(ours, attention)
    (other,) = torch.autograd.grad(expected, attention)
    torch.testing.assert_close(mine, other)


def test_diversity_gradcheck() -> None:
    attention = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: diversity_loss(a, torch.tensor([0, 1, 6])), attention)


def test_diversity_bounds() -> None:
    same = torch.randn(1, 1, 9).expand(1, 4, 9)
    torch.testing.assert_close(diversity_loss(same), torch.tensor(1.0))
    apart = torch.diag(torch.full((4,), 100.0)).unsqueeze(0)
    assert diversity_loss(apart) < 1e-6
    assert diversity_loss(torch.randn(1, 1, 9)) == 0


def test_branch_loss_is_the_mean_over_slides_and_branches() -> None:
    logits, labels = torch.randn(3, 4, 5), torch.tensor([0, 4, 2])
    each = [functional.cross_entropy(logits[b], labels[b].expand(4)) for b in range(3)]
    torch.testing.assert_close(branch_loss(logits, labels), torch.stack(each).mean())
    assert branch_loss(logits[:, :1], labels) == 0


def test_total_and_its_weights() -> None:
    output = MilOutput(torch.randn(3, 2), torch.randn(3, 4, 2), torch.randn(1, 4, 11))
    labels = torch.tensor([0, 1, 1])
    plain = mil_losses(output, labels, BOUNDS)
    torch.testing.assert_close(plain.total, plain.slide + plain.branch + plain.diversity)
    weighed = mil_losses(output, labels, BOUNDS, diversity_weight=0.5, branch_weight=2)
    expected = plain.slide + 2 * plain.branch + 0.5 * plain.diversity
    torch.testing.assert_close(weighed.total, expected)
    torch.testing.assert_close(weighed.branch, plain.branch)


def test_fully_masked_slide_has_finite_losses_and_gradients() -> None:
    attention = torch.full((1, 3, 4), -1e9, requires_grad=True)
    loss = diversity_loss(attention)
    loss.backward()
    assert loss == 1
    assert attention.grad is not None
    assert torch.isfinite(attention.grad).all()
    partly = torch.tensor([[[0.0, -1e9, 1.0]]])
    assert torch.isfinite(neg_entropy(partly)).all()


def test_neg_entropy_of_uniform_attention() -> None:
    found = neg_entropy(torch.zeros(8, 5, 11), BOUNDS)
    torch.testing.assert_close(found, torch.tensor([-8 * math.log(n) for n in (4, 1, 6)]))


def test_heatmap_scores_are_in_units_of_the_average() -> None:
    attention = torch.randn(8, 5, 11)
    scores = heatmap_scores(attention, BOUNDS)
    for a, b in ((0, 4), (4, 5), (5, 11)):
        torch.testing.assert_close(scores[a:b].mean(), torch.tensor(1.0))
    alone = heatmap_scores(attention, BOUNDS, first_map_only=True, zoom=0.5)
    torch.testing.assert_close(alone[5:], attention[0, :, 5:].softmax(-1).mean(0) * 3)


@pytest.mark.parametrize("warmup", [0.0, 3.0])
def test_schedule(warmup: float) -> None:
    def at(position: float) -> float:
        return lr_factor(position, epochs=20, warmup_epochs=warmup, minimum=0.01)

    assert at(warmup) == pytest.approx(1.0)
    assert at((20 + warmup) / 2) == pytest.approx(0.505)
    assert at(20) == pytest.approx(0.01)
    if warmup:
        assert [at(0), at(1.5)] == [0, 0.5]
    with pytest.raises(ValueError, match="warm-up must end"):
        lr_factor(0, epochs=3, warmup_epochs=3)
