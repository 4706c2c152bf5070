"""Losses against their definitions written out, and where the official code could not go."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from zoo.domains.reid.fusion_reid.losses import (
    CentreLoss,
    distances,
    identity_loss,
    joined,
    triplet_loss,
)


def batch(counts: list[int], width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=rng)]
    features = torch.randn(len(labels), width, generator=rng)
    return features.requires_grad_(), labels


def written_out(
    features: torch.Tensor, labels: torch.Tensor, margin: float | None, hard: float
) -> float:
    """Definition by loops over images."""
    rows, found = features.detach().double().numpy(), []
    for i, row in enumerate(rows):
        far = np.sqrt(np.maximum(((rows - row) ** 2).sum(1), 1e-12))
        same = labels.numpy() == labels[i].item()
        if same.all():
            continue
        gap = far[same].max() * (1 + hard) - far[~same].min() * (1 - hard)
        found.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return float(np.mean(found))


@pytest.mark.parametrize("margin", [None, 0.3, 2.0])
@pytest.mark.parametrize("hard", [0.0, 0.25])
@pytest.mark.parametrize("counts", [[4, 4, 4], [5, 1, 3], [2, 7]], ids=str)
def test_triplets_of_any_number_of_images_an_identity(
    counts: list[int], margin: float | None, hard: float
) -> None:
    features, labels = batch(counts)
    found = triplet_loss(features, labels, margin=margin, hard_factor=hard)
    assert float(found.loss.detach()) == pytest.approx(
        written_out(features, labels, margin, hard), rel=1e-5
    )


def test_an_image_is_its_own_positive() -> None:
    features, labels = batch([1, 6])
    found = triplet_loss(features, labels)
    (alone,) = (labels == 0).nonzero().flatten().tolist()
    assert float(found.positive[alone].detach()) < 1e-2
    assert float(found.negative[alone].detach()) > 0.1


def test_a_batch_of_one_identity_gives_no_loss_and_no_gradient() -> None:
    features, labels = batch([4])
    found = triplet_loss(features, labels)
    (grad,) = torch.autograd.grad(found.loss, [features])
    assert float(found.loss.detach()) == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))
    assert torch.isinf(found.negative).all()


def test_identical_images_have_a_finite_gradient() -> None:
    features = torch.ones(6, 4, requires_grad=True)
    loss = triplet_loss(features, torch.tensor([0, 0, 0, 1, 1, 1]), margin=0.3).loss
    (grad,) = torch.autograd.grad(loss, [features])
    assert torch.isfinite(grad).all()
    assert float(loss.detach()) == pytest.approx(0.3)


def test_unit_length_makes_triplets_blind_to_length() -> None:
    features, labels = batch([3, 3])
    longer = features.detach() * torch.linspace(1, 9, 6)[:, None]
    once = triplet_loss(features, labels, normalise=True).loss
    torch.testing.assert_close(once, triplet_loss(longer, labels, normalise=True).loss)
    assert not torch.allclose(
        triplet_loss(features, labels).loss, triplet_loss(longer, labels).loss
    )


def test_distances_stay_in_float32_under_autocast() -> None:
    features = torch.randn(16, 64) + 30  # large features: half precision would lose the distance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart = distances(features)
    assert apart.dtype == torch.float32
    expected = torch.cdist(features.double(), features.double())
    off = ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(apart[off].double(), expected[off], rtol=1e-3, atol=0)


def test_smoothed_targets_are_those_written_out() -> None:
    scores, labels = torch.randn(6, 9), torch.randint(9, (6,))
    target = 0.9 * functional.one_hot(labels, 9) + 0.1 / 9
    expected = -(target * scores.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(identity_loss(scores, labels, 0.1), expected)
    torch.testing.assert_close(
        identity_loss(scores, labels, 0.0), functional.cross_entropy(scores, labels)
    )


def test_centres_pull_only_their_own_identity() -> None:
    features, labels = batch([3, 2])
    centres = CentreLoss(4, 5)
    loss = centres(features, labels)
    apart = (features - centres.centres[labels]).square().sum(1).mean()
    torch.testing.assert_close(loss, apart)
    (grad,) = torch.autograd.grad(loss, [centres.centres])
    assert grad[:2].abs().sum(dim=1).min() > 0
    assert torch.equal(grad[2:], torch.zeros(2, 5))


def test_heads_are_summed_or_halved() -> None:
    parts = [torch.tensor(float(v)) for v in (4, 1, 3)]
    assert float(joined(parts)) == 8.0
    assert float(joined(parts, "halves")) == 3.0
    assert float(joined(parts[:1], "halves")) == 4.0
