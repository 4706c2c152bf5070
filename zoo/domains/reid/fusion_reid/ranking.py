"""CMC, mAP and mINP of queries against a gallery, as the field computes them.

Source of the protocol: Zheng et al., "Scalable person re-identification: a benchmark" (ICCV 2015),
section 4; of mINP: Ye et al., "Deep learning for person re-identification: a survey and outlook"
(TPAMI 2022), section 4.1. Ranks come from `zoo.kernels.rank_counts`, which holds no distance
matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.domains.reid.fusion_reid.names import JUNK
from zoo.domains.reid.fusion_reid.rerank import Reranked, Reranker
from zoo.domains.reid.fusion_reid.topk import unit_rows
from zoo.errors import DataError
from zoo.intervals import bootstrap_intervals
from zoo.kernels import RankResult, rank_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Words = Sequence[str] | NDArray[np.str_]
Ties = Literal["stable", "optimistic", "pessimistic"]

QUERY, GALLERY = "query", "gallery"
TOPS = (1, 5, 10, 20)
_CHUNK = 256
_FINITE = 512  # rows looked at together: wide ones take memory
# Neither equals any code, nor each other: an unknown name is the same as nothing.
_UNKNOWN_QUERY, _UNKNOWN_ITEM = -1, -2


class Sides(NamedTuple):
    """Which rows are ranked, and against which.

    Attributes:
        query: (Q,) row numbers of the queries.
        gallery: (G,) row numbers of the gallery, junk left out.
    """

    query: IntArray
    gallery: IntArray


class Codes(NamedTuple):
    """Names as numbers that are equal where the names are equal and known.

    Attributes:
        query: (Q,) int64, -1 where unknown.
        gallery: (G,) int64, -2 where unknown.
    """

    query: IntArray
    gallery: IntArray


def sides(persons: Words, roles: Words) -> Sides:
    """Rows of queries and gallery; gallery images of the person `names.JUNK` are left out.

    Raises:
        DataError: There is no query, or the gallery is empty.
    """
    names, parts = np.asarray(persons, dtype=str), np.asarray(roles, dtype=str)
    found = Sides(
        np.flatnonzero(parts == QUERY), np.flatnonzero((parts == GALLERY) & (names != JUNK))
    )
    if not len(found.query):
        msg = "there is no query image to rank"
        raise DataError(msg)
    if not len(found.gallery):
        junk = int((parts == GALLERY).sum())
        more = f" (all {junk} images in it are junk)" if junk else ""
        msg = f"the gallery is empty{more}: nothing can be ranked against it"
        raise DataError(msg)
    return found


def codes(names: Words, rows: Sides) -> Codes:
    """Persons or cameras of both sides as numbers; the empty name is unknown."""
    words = np.asarray(names, dtype=str)
    query, gallery = words[rows.query], words[rows.gallery]
    _, numbers = np.unique(np.concatenate([query, gallery]), return_inverse=True)
    first, second = numbers[: len(query)].astype(np.int64), numbers[len(query) :].astype(np.int64)
    return Codes(
        np.where(query == "", _UNKNOWN_QUERY, first),
        np.where(gallery == "", _UNKNOWN_ITEM, second),
    )


def take(features: Tensor, rows: IntArray) -> Tensor:
    """Rows of a matrix: a view where they follow each other, else a copy."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    if last - first == len(rows) and bool((np.diff(rows) == 1).all()):
        return features[first:last]
    return features[torch.from_numpy(rows).to(features.device)]


# -- result -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Ranks of the matches of every query; rank 1 is the nearest, ignored images do not count.

    A query without a match in the gallery (none there, or only its own camera's) has AP NaN and
    ranks -1 and counts in no mean. Without any valid query the means are NaN.

    Attributes:
        rows: (Q,) row number of each query in what was evaluated.
        gallery: Number of gallery images ranked.
        ap: (Q,) float64 average precision, mean over matches j of j / rank_j.
        first: (Q,) int64 rank of the nearest match.
        last: (Q,) int64 rank of the farthest match.
        matches: (Q,) int64 number of matches.
        tied: (Q,) bool, whether a match is exactly as far as an image that does not match, so
            that AP depends on how ties are broken.
    """

    rows: IntArray
    gallery: int
    ap: FloatArray
    first: IntArray
    last: IntArray
    matches: IntArray
    tied: NDArray[np.bool_]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(Q,) bool, whether the query has a match."""
        return self.matches > 0

    @property
    def map(self) -> float:
        """Mean average precision over valid queries, in [0, 1]."""
        return _mean(self.ap[self.valid])

    @property
    def minp(self) -> float:
        """Mean over valid queries of (number of matches) / (rank of the last one), in [0, 1]."""
        return _mean(self.matches[self.valid] / self.last[self.valid])

    def cmc(self, top: int = 50) -> FloatArray:
        """(top,) share of valid queries whose first match has at most rank 1, 2, …, top.

        A gallery smaller than `top` makes the curve level off, not fail.
        """
        first = self.first[self.valid]
        if not len(first):
            return np.full(top, np.nan)
        counts = np.bincount(np.minimum(first, top + 1), minlength=top + 2)
        return np.cumsum(counts[1 : top + 1]) / len(first)

    def metrics(self, tops: Sequence[int] = TOPS) -> dict[str, float]:
        """`map`, `minp` and `rank<k>` for each of `tops`, in [0, 1]."""
        curve = self.cmc(max(tops))
        found = {"map": self.map, "minp": self.minp}
        return found | {f"rank{k}": float(curve[k - 1]) for k in tops}

    def chosen(self, picked: IntArray) -> Ranking:
        """The same for some of the queries, by their place in the arrays; places may repeat."""
        return Ranking(
            self.rows[picked],
            self.gallery,
            self.ap[picked],
            self.first[picked],
            self.last[picked],
            self.matches[picked],
            self.tied[picked],
        )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


# -- evaluation ---------------------------------------------------------------------------------


def evaluate(
    features: Tensor,
    persons: Words,
    cameras: Words,
    roles: Words,
    *,
    normalise: bool = True,
    rerank: Reranker | Reranked | None = None,
    ties: Ties = "stable",
    ids: Sequence[str] | None = None,
) -> Ranking:
    """Ranks every query's matches; gallery images of its own person and camera are ignored.

    Args:
        features: (N, D) float32, float16 or float64 embeddings of queries and gallery.
        persons: (N,) identities; `names.JUNK` is left out of the gallery, the empty string is
            unknown and matches nobody.
        cameras: (N,) camera names; the empty string is unknown and the same as none.
        roles: (N,) `query` or `gallery`; rows of other roles are left out.
        normalise: Rank by unit-length features (Euclidean and cosine distance agree then);
            otherwise by the Euclidean distance of the features as they are.
        rerank: Rank by k-reciprocal distances instead; by settings, or by what `reranked` gave
            for the same rows, where the work is to be done once.
        ties: Which comes first of images at exactly the same distance: `stable` by their order
            in the gallery, `optimistic` the match, `pessimistic` the other one. The last two
            are the bounds of what any order gives.
        ids: (N,) names for messages.

    Raises:
        DataError: No query, an empty gallery, or an embedding that is not finite.
        ValueError: The arguments differ in length.
    """
    lengths = {len(features), len(persons), len(cameras), len(roles)}
    if len(lengths) != 1 or features.dim() != 2:
        msg = f"evaluate: features (N, D) and N labels expected, got {sorted(lengths)} rows"
        raise ValueError(msg)
    refuse_bad(features, ids)
    rows = sides(persons, roles)
    people, seen = codes(persons, rows), codes(cameras, rows)
    query, gallery = take(features, rows.query), take(features, rows.gallery)
    if rerank is None:
        metric: Literal["cosine", "euclidean"] = "cosine" if normalise else "euclidean"
        found = rank_counts(query, gallery, *people, *seen, metric=metric, ties=ties)
        return joined([found], rows)
    near = rerank
    if isinstance(near, Reranker):
        near = near.fit(query, gallery, normalise=normalise)
    return joined(ranked_rows(near.rows, people, seen, ties), rows)


def reranked(features: Tensor, persons: Words, roles: Words, settings: Reranker) -> Reranked:
    """The k-reciprocal encodings of queries and gallery, for `evaluate` and rank lists.

    Args:
        features: (N, D) embeddings; compared at unit length.
        persons: (N,) identities.
        roles: (N,) `query` or `gallery`.
        settings: Of the re-ranking.

    Raises:
        DataError: As `evaluate`.
    """
    refuse_bad(features)
    rows = sides(persons, roles)
    return settings.fit(take(features, rows.query), take(features, rows.gallery))


def ranked_rows(
    distances: Callable[[int, int], Tensor], people: Codes, seen: Codes, ties: Ties = "stable"
) -> list[RankResult]:
    """Ranks by distances that come in chunks of queries.

    Args:
        distances: Gives the (last - first, G) distances of queries first..last-1.
        people: Persons.
        seen: Cameras.
        ties: As in `evaluate`.
    """
    found = []
    for first in range(0, len(people.query), _CHUNK):
        part = slice(first, min(first + _CHUNK, len(people.query)))
        chunk = distances(part.start, part.stop)
        labels = (people.query[part], people.gallery, seen.query[part], seen.gallery)
        found.append(rank_counts(None, None, *labels, distances=chunk, ties=ties))
    return found


def joined(parts: Sequence[RankResult], rows: Sides) -> Ranking:
    """The ranking of all queries from those of chunks of them."""
    names = ("ap", "first_rank", "last_rank", "matches", "tied")
    joined = [torch.cat([getattr(p, name) for p in parts]).cpu().numpy() for name in names]
    return Ranking(rows.query, len(rows.gallery), *joined)


def refuse_bad(features: Tensor, ids: Sequence[str] | None = None) -> None:
    """Looks for embeddings with NaN or infinite numbers, a block of rows at a time.

    Raises:
        DataError: There is one; the message names the first.
    """
    for first in range(0, len(features), _FINITE):
        bad = ~torch.isfinite(features[first : first + _FINITE]).all(dim=1)
        if bool(bad.any()):
            row = first + int(bad.nonzero()[0])
            name = ids[row] if ids is not None else f"row {row}"
            msg = (
                f"{name}: its embedding holds NaN or infinite numbers; look at the image, or "
                "extract in float32 (predict.half=false, trainer.precision=32-true)"
            )
            raise DataError(msg)


def intervals(
    ranking: Ranking,
    persons: Words,
    *,
    tops: Sequence[int] = TOPS,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `Ranking.metrics`, resampled by the queries' identities.

    Queries of one person are not independent, so persons are drawn and bring all their queries;
    the gallery stays.

    Args:
        ranking: What was found.
        persons: (N,) identities of all rows that were evaluated.
        tops: Ranks of the CMC curve.
        resamples: Number of draws.
        seed: Makes the draws repeatable.
    """
    valid = ranking.chosen(np.flatnonzero(ranking.valid))
    owners = np.asarray(persons, dtype=str)[valid.rows].tolist()
    if not owners:
        return dict.fromkeys(ranking.metrics(tops), (float("nan"), float("nan")))
    return bootstrap_intervals(
        lambda picked: valid.chosen(picked).metrics(tops), owners, resamples=resamples, seed=seed
    )


# -- distances ----------------------------------------------------------------------------------


class PairCounts(NamedTuple):
    """How far pairs of images lie apart.

    Attributes:
        same: (K,) pairs of one person under two cameras in each bin.
        other: (K,) pairs of two people.
        edges: (K + 1,) borders of the bins, Euclidean distance of unit-length features in [0, 2].
    """

    same: IntArray
    other: IntArray
    edges: FloatArray


@torch.no_grad()
def pair_counts(
    features: Tensor, persons: Words, cameras: Words, roles: Words, *, bins: int = 80
) -> PairCounts:
    """Counts all query-gallery pairs by their distance; ignored and unknown images are left out.

    Args:
        features: (N, D) embeddings.
        persons: (N,) identities.
        cameras: (N,) camera names.
        roles: (N,) `query` or `gallery`.
        bins: Number of bins between 0 and 2.

    Raises:
        DataError: As `evaluate`.
    """
    refuse_bad(features)
    rows = sides(persons, roles)
    people, seen = (
        [torch.from_numpy(side).to(features.device) for side in codes(names, rows)]
        for names in (persons, cameras)
    )
    query, gallery = take(features, rows.query), unit_rows(take(features, rows.gallery))
    counts = torch.zeros(2, bins, dtype=torch.int64)
    known = people[1] != _UNKNOWN_ITEM
    for first in range(0, len(query), _CHUNK):
        part = slice(first, first + _CHUNK)
        near = unit_rows(query[part]) @ gallery.mT
        place = ((2 - 2 * near).clamp_(0, 4).sqrt_() * (bins / 2)).long().clamp_(max=bins - 1)
        match = people[0][part, None] == people[1]
        own = match & (seen[0][part, None] == seen[1])
        both = known & (people[0][part, None] != _UNKNOWN_QUERY) & ~own
        for side, wanted in enumerate((match & both, ~match & both)):
            counts[side] += torch.bincount(place[wanted], minlength=bins).cpu()
    return PairCounts(counts[0].numpy(), counts[1].numpy(), np.linspace(0, 2, bins + 1))
