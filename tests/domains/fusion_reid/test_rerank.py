"""k-reciprocal re-ranking by sparse rows against matrices of all pairs."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.domains.reid.fusion_reid.rerank import (
    FeatureSpace,
    GivenSpace,
    Reranker,
    encode,
    mutual,
    neighbours,
)
from zoo.domains.reid.fusion_reid.topk import blocks, smallest
from zoo.errors import ConfigError


def crowd(number: int, persons: int, width: int = 16, seed: int = 0) -> Tensor:
    """Features of some persons, close enough together to be confused now and then."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, persons, number)
    middle = rng.standard_normal((persons, width))[who]
    return torch.from_numpy(middle + 0.7 * rng.standard_normal((number, width))).float()


def dense(distances: np.ndarray, queries: int, settings: Reranker) -> np.ndarray:
    """The method with matrices of all pairs, equation by equation."""
    near = (distances / distances.max(axis=0)).T
    order = near.argsort(axis=1, kind="stable")
    size = len(near)

    def both(count: int) -> np.ndarray:
        one_way = np.zeros((size, size), dtype=bool)
        np.put_along_axis(one_way, order[:, : count + 1], True, axis=1)
        return one_way & one_way.T

    large, small = both(settings.k1), both(int(np.around(settings.k1 / 2)))
    shared = large.astype(np.float32) @ small
    taken = large & (shared > 2 / 3 * small.sum(axis=1))
    extended = large | (taken.astype(np.float32) @ small > 0)
    encoded = np.where(extended, np.exp(-near), 0)
    encoded /= encoded.sum(axis=1, keepdims=True)
    if settings.k2 > 1:
        encoded = np.stack([encoded[row].mean(axis=0) for row in order[:, : settings.k2]])
    found = np.empty((queries, size - queries))
    for i in range(queries):
        overlap = np.minimum(encoded[i], encoded[queries:]).sum(axis=1)
        found[i] = 1 - overlap / (2 - overlap)
    return (1 - settings.lam) * found + settings.lam * near[:queries, queries:]


def squared(features: Tensor) -> np.ndarray:
    return FeatureSpace(features.double()).rows(0, len(features), 0).numpy()


@pytest.mark.parametrize(
    ("k1", "k2", "lam"), [(20, 6, 0.3), (50, 15, 0.3), (7, 1, 0.5), (1, 1, 0.0), (3, 9, 1.0)]
)
def test_equals_the_form_with_all_pairs(k1: int, k2: int, lam: float) -> None:
    features, settings = crowd(300, 20), Reranker(k1, k2, lam)
    near = settings.fit(features[:40], features[40:], normalise=False)
    expected = dense(squared(features), 40, settings)
    np.testing.assert_allclose(near.matrix().numpy(), expected, atol=2e-6)
    np.testing.assert_array_equal(near.rows(7, 30), near.matrix()[7:30])


def test_two_thousand_images_equal_the_form_with_all_pairs() -> None:
    features, settings = crowd(2000, 100), Reranker()
    near = settings.fit(features[:25], features[25:])
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    expected = dense(squared(unit), 25, settings)
    np.testing.assert_allclose(near.matrix().numpy(), expected, atol=5e-6)


def test_helps_where_neighbours_are_mutual() -> None:
    features, settings = crowd(600, 30, width=12), Reranker(20, 6, 0.3)
    near = settings.fit(features[:100], features[100:]).matrix()
    # The nearest by the new distances are no worse than by the old ones.
    who = np.random.default_rng(0).integers(0, 30, 600)
    match = who[:100, None] == who[None, 100:]
    unit = torch.nn.functional.normalize(features, dim=1)
    plain = torch.cdist(unit[:100], unit[100:])

    def share(distances: Tensor) -> float:
        first = distances.topk(10, dim=1, largest=False).indices.numpy()
        return float(np.take_along_axis(match, first, axis=1).mean())

    assert share(near) > share(plain) + 0.02


def test_given_distances_equal_those_of_the_features() -> None:
    features, settings = crowd(120, 8), Reranker(10, 4, 0.3)
    one = settings.fit(features[:20], features[20:], normalise=False).matrix()
    whole = FeatureSpace(features).rows(0, 120, 0)
    other = settings.fit_space(GivenSpace(whole), 20).matrix()
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_given_distances_need_not_be_symmetric() -> None:
    distances = torch.from_numpy(np.random.default_rng(0).random((60, 60)).astype(np.float32))
    distances.fill_diagonal_(0.0)
    settings = Reranker(8, 3, 0.4)
    found = settings.fit_space(GivenSpace(distances), 10).matrix()
    expected = dense(distances.numpy().astype(np.float64), 10, settings)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_half_precision_stays_near() -> None:
    features = crowd(200, 15)
    exact, rounded = (
        Reranker(20, 6, 0.3, half=half).fit(features[:30], features[30:]).matrix()
        for half in (False, True)
    )
    assert 0 < float((exact - rounded).abs().max()) < 5e-3


def test_images_with_fewer_others_than_neighbours() -> None:
    features = crowd(9, 2)
    found = Reranker(50, 15, 0.3).fit(features[:2], features[2:]).matrix()
    assert found.shape == (2, 7)
    assert torch.isfinite(found).all()


def test_copies_of_one_image_are_finite() -> None:
    """More copies than neighbours: an image may not even be among its own nearest."""
    features = torch.ones(40, 4)
    for settings in (Reranker(5, 3, 0.3), Reranker(5, 1, 0.3)):
        found = settings.fit(features[:4], features[4:]).matrix()
        assert torch.isfinite(found).all()
    features = torch.cat([torch.ones(30, 4), crowd(30, 3, width=4)])
    assert torch.isfinite(Reranker(5, 3, 0.3).fit(features[:5], features[5:]).matrix()).all()


def test_an_image_without_mutual_neighbours_is_its_own() -> None:
    order = np.array([[1], [2], [0]])
    assert mutual(order).nnz == 0
    space = FeatureSpace(torch.eye(3))
    encoded = encode(space, order, torch.ones(3), 1)
    np.testing.assert_array_equal(encoded.toarray(), np.eye(3))


def test_memory_grows_with_the_neighbours_not_with_the_pairs() -> None:
    features = crowd(3000, 200, width=8)
    tracemalloc.start()
    near = Reranker(10, 4, 0.3).fit(features[:10], features[10:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert near.query.nnz / 10 < 200
    assert peak < 3000 * 3000 * 4 / 2  # what NumPy and SciPy took, against one matrix of all pairs


def test_settings_out_of_range_are_told() -> None:
    for wrong in ({"k1": 0}, {"k2": 0}, {"lam": 1.5}):
        with pytest.raises(ConfigError, match="k1 and k2 must be at least 1"):
            Reranker(**wrong)
    with pytest.raises(ValueError, match=r"must be \(N, N\)"):
        GivenSpace(torch.zeros(3, 4))


# -- the nearest few ----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 3, 50])
def test_smallest_is_the_beginning_of_a_stable_sort(levels: int) -> None:
    torch.manual_seed(levels)
    values = torch.randint(levels, (9, 40)).float()
    values[2, 5:] = math.inf
    for count in (1, 7, 40, 60):
        expected = values.sort(dim=1, stable=True).indices[:, :count]
        assert torch.equal(smallest(values, count), expected)


def test_neighbours_come_with_the_largest_distance() -> None:
    features = crowd(50, 5)
    order, top = neighbours(FeatureSpace(features), 6)
    near = squared(features)
    np.testing.assert_array_equal(order, near.argsort(axis=1)[:, :6])
    np.testing.assert_allclose(top, near.max(axis=1), rtol=1e-5)


def test_blocks_cover_all_rows() -> None:
    assert blocks(100, 2**20, megabytes=128) == [(0, 32), (32, 64), (64, 96), (96, 100)]
    assert blocks(5, 10) == [(0, 5)]
