"""CMC, mAP and mINP by the field's protocol, and its edges."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from zoo.domains.reid.fusion_reid.names import JUNK
from zoo.domains.reid.fusion_reid.ranking import (
    Codes,
    Ranking,
    Sides,
    codes,
    evaluate,
    intervals,
    joined,
    pair_counts,
    ranked_rows,
    reranked,
    sides,
)
from zoo.domains.reid.fusion_reid.rerank import Reranker
from zoo.errors import DataError


def people(
    queries: int, gallery: int, persons: int = 6, cameras: int = 3, seed: int = 0
) -> tuple[Tensor, list[str], list[str], list[str]]:
    rng = np.random.default_rng(seed)
    number = queries + gallery
    who = rng.integers(1, persons + 1, number)
    features = rng.standard_normal((number, 8)) + 0.8 * rng.standard_normal((persons + 1, 8))[who]
    names = [f"{p:04d}" for p in who]
    seen = [f"c{c}" for c in rng.integers(1, cameras + 1, number)]
    roles = ["query"] * queries + ["gallery"] * gallery
    return torch.from_numpy(features), names, seen, roles


def from_distances(
    distances: list[list[float]], who: tuple[list[int], list[int]], ties: str = "stable"
) -> Ranking:
    """A ranking by given distances; every query has a camera of its own."""
    near = torch.tensor(distances)
    persons = Codes(np.array(who[0]), np.array(who[1]))
    seen = Codes(np.zeros(len(who[0]), int), np.ones(len(who[1]), int))
    rows = Sides(np.arange(len(who[0])), np.arange(len(who[1])))
    return joined(ranked_rows(lambda a, b: near[a:b], persons, seen, ties), rows)


# -- the protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equals_scikit_learn_on_the_filtered_gallery(dtype: torch.dtype) -> None:
    features, who, seen, roles = people(9, 60)
    features = features.to(dtype)
    found = evaluate(features, who, seen, roles)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    for i in range(9):
        near = (unit[9:] @ unit[i]).numpy()
        kept = [j for j in range(60) if who[9 + j] != who[i] or seen[9 + j] != seen[i]]
        match = np.array([who[9 + j] == who[i] for j in kept])
        assert found.ap[i] == pytest.approx(average_precision_score(match, near[kept]))
        places = np.flatnonzero(match[np.argsort(-near[kept])]) + 1
        assert (found.first[i], found.last[i]) == (places[0], places[-1])
        assert found.matches[i] == match.sum()
    assert found.map == pytest.approx(found.ap.mean())
    assert found.minp == pytest.approx((found.matches / found.last).mean())


def test_scale_of_the_features_counts_only_without_normalisation() -> None:
    features, who, seen, roles = people(6, 40)
    scaled = features * torch.linspace(0.1, 10, len(features))[:, None]
    one, other = (evaluate(x, who, seen, roles) for x in (features, scaled))
    np.testing.assert_array_equal(one.ap, other.ap)
    raw = [evaluate(x, who, seen, roles, normalise=False).map for x in (features, scaled)]
    assert raw[0] != raw[1]


def test_rows_in_any_order_give_the_same_figures() -> None:
    features, who, seen, roles = people(8, 50)
    shuffled = np.random.default_rng(1).permutation(58)
    one = evaluate(features, who, seen, roles)
    columns = ([column[i] for i in shuffled] for column in (who, seen, roles))
    other = evaluate(features[torch.from_numpy(shuffled)], *columns)
    assert other.metrics() == pytest.approx(one.metrics())
    np.testing.assert_array_equal(np.sort(shuffled[other.rows]), one.rows)


def test_rows_of_training_images_are_left_out() -> None:
    features, who, seen, roles = people(8, 50)
    more = torch.cat([features, torch.randn(5, 8, dtype=torch.float64)])
    roles_too = [*roles, *["train"] * 5]
    found = evaluate(more, who + ["0001"] * 5, seen + ["c9"] * 5, roles_too)
    assert found.metrics() == evaluate(features, who, seen, roles).metrics()


def test_junk_is_left_out_and_distractors_stay() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [1.0, 0.03]])
    who, seen = ["0001", JUNK, "0000", "0001"], ["c1", "c2", "c2", "c2"]
    found = evaluate(features, who, seen, ["query", "gallery", "gallery", "gallery"])
    assert found.gallery == 2
    assert found.first.tolist() == [2]


def test_unknown_names_match_nobody_and_hide_nobody() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    roles = ["query", "query", "gallery", "gallery", "gallery"]
    found = evaluate(features, ["", "7", "", "7", "7"], ["", "", "", "", "c1"], roles)
    assert found.matches.tolist() == [0, 2]
    assert found.first.tolist() == [-1, 2]


def test_a_query_seen_by_its_own_camera_alone_counts_in_no_mean() -> None:
    features, who, seen, roles = people(4, 30)
    who[0], seen[0] = "0099", "c1"
    who[10], seen[10] = "0099", "c1"
    found = evaluate(features, who, seen, roles)
    assert math.isnan(found.ap[0])
    assert found.first[0] == -1
    assert found.map == pytest.approx(found.ap[1:].mean())


def test_without_a_valid_query_the_means_are_nan() -> None:
    features, _, seen, roles = people(2, 5)
    found = evaluate(features, ["a", "b", *"ccccc"], seen, roles)
    assert all(math.isnan(v) for v in found.metrics().values())
    assert all(math.isnan(v) for pair in intervals(found, ["a"] * 7).values() for v in pair)


def test_a_gallery_smaller_than_the_curve_levels_off() -> None:
    found = from_distances([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], ([1, 1], [2, 1, 2]))
    np.testing.assert_array_equal(found.cmc(6), [0, 1, 1, 1, 1, 1])
    assert found.metrics((1, 50))["rank50"] == 1


# -- ties ---------------------------------------------------------------------------------------


def test_ties_go_by_the_order_of_the_gallery() -> None:
    """In an all-tied row the sort of the published code gives 1.0 or 1/G, by luck."""
    for place in (0, 3, 9):
        who = [0] * 10
        who[place] = 1
        aps = {
            ties: float(from_distances([[0.5] * 10], ([1], who), ties).ap[0])
            for ties in ("stable", "optimistic", "pessimistic")
        }
        assert aps == {"stable": 1 / (place + 1), "optimistic": 1.0, "pessimistic": 0.1}


def test_stable_ties_equal_a_stable_sort_and_lie_between_the_bounds() -> None:
    rng = np.random.default_rng(3)
    for levels in (1, 2, 5, 40):
        near = rng.integers(0, levels, (7, 40)).astype(np.float32)
        who = rng.integers(0, 4, 7), rng.integers(0, 4, 40)
        low, mid, high = (
            from_distances(near.tolist(), who, ties)  # type: ignore[arg-type]
            for ties in ("pessimistic", "stable", "optimistic")
        )
        for i in range(7):
            match = who[1][np.argsort(near[i], kind="stable")] == who[0][i]
            places = np.flatnonzero(match) + 1
            assert mid.ap[i] == pytest.approx(np.mean(np.arange(1, len(places) + 1) / places))
            assert (mid.first[i], mid.last[i]) == (places[0], places[-1])
        assert (low.ap <= mid.ap + 1e-12).all()
        assert (mid.ap <= high.ap + 1e-12).all()
        np.testing.assert_array_equal(mid.tied, low.ap < high.ap - 1e-12)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "who", "words"),
    [
        (["query", "query"], ["1", "2"], "the gallery is empty: nothing"),
        (["query", "gallery"], ["1", JUNK], r"all 1 images in it are junk"),
        (["gallery", "gallery"], ["1", "2"], "no query image"),
    ],
)
def test_a_side_without_images_is_told(roles: list[str], who: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        evaluate(torch.rand(2, 3), who, ["a", "b"], roles)


def test_an_embedding_that_is_not_finite_is_named() -> None:
    features, who, seen, roles = people(2, 5)
    features[3, 1] = math.inf
    with pytest.raises(DataError, match="row 3: its embedding"):
        evaluate(features, who, seen, roles)
    with pytest.raises(DataError, match="d: its embedding"):
        evaluate(features, who, seen, roles, ids=list("abcdefg"))


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] rows"):
        evaluate(torch.rand(3, 2), ["1"] * 3, ["a"] * 2, ["query"] * 3)


def test_names_become_numbers_that_unknown_ones_do_not_share() -> None:
    rows = sides(["", "b", "", "b"], ["query", "query", "gallery", "gallery"])
    found = codes(["", "b", "", "b"], rows)
    assert found.query.tolist() == [-1, found.gallery[1]]
    assert found.gallery[0] == -2


# -- more figures -------------------------------------------------------------------------------


def test_intervals_contain_the_figure_and_shrink_with_more_persons() -> None:
    widths = []
    for persons, queries in ((4, 20), (40, 200)):
        features, who, seen, roles = people(queries, 300, persons=persons)
        found = evaluate(features, who, seen, roles)
        ends = intervals(found, who, resamples=200)
        assert ends.keys() == found.metrics().keys()
        for name, value in found.metrics().items():
            assert ends[name][0] <= value <= ends[name][1], name
        widths.append(ends["map"][1] - ends["map"][0])
        assert ends == intervals(found, who, resamples=200)
    assert widths[1] < widths[0]


def test_intervals_draw_whole_persons() -> None:
    """One person right and one wrong: a draw holds 0, 1/2 or 1 of each, whatever the queries."""
    found = from_distances([[0.1, 0.2]] * 10, ([1] * 5 + [2] * 5, [1, 2]))
    ends = intervals(found, ["1"] * 5 + ["2"] * 5, resamples=100)
    assert ends["rank1"] == (0.0, 1.0)


def test_reranking_done_once_serves_again() -> None:
    features, who, seen, roles = people(10, 60)
    settings = Reranker(k1=6, k2=3)
    near = reranked(features, who, roles, settings)
    one = evaluate(features, who, seen, roles, rerank=settings)
    other = evaluate(features, who, seen, roles, rerank=near)
    assert one.metrics() == other.metrics() != evaluate(features, who, seen, roles).metrics()


def test_pairs_are_counted_by_distance_without_what_is_ignored() -> None:
    features, who, seen, roles = people(12, 80)
    who[3] = who[20] = ""
    found = pair_counts(features, who, seen, roles, bins=20)
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    same, other = [], []
    for i in range(12):
        for j in range(12, 92):
            if who[i] and who[j] and (who[i] != who[j] or seen[i] != seen[j]):
                far = float((unit[i] - unit[j]).norm())
                (same if who[i] == who[j] else other).append(far)
    assert (found.same.sum(), found.other.sum()) == (len(same), len(other))
    expected = np.histogram(same, found.edges)[0]
    assert np.abs(expected - found.same).sum() <= 2  # a pair on the border of two bins
