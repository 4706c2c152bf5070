"""Definition of the retrieval metrics of person re-identification.

Source: Zheng et al., "Scalable person re-identification: a benchmark" (ICCV 2015), section 4:
gallery items with the query's identity and camera are junk, they neither help nor harm. mINP:
Ye et al., "Deep learning for person re-identification: a survey and outlook", section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["optimistic", "pessimistic", "stable"]


@dataclass(frozen=True)
class RankResult:
    """Ranks of the matches of every query; ranks start at 1, junk is not counted.

    A query without a match (none in the gallery, or junk only) has AP NaN and ranks -1, and
    counts in no mean; with no valid query at all the means are NaN.

    Attributes:
        ap: (Q,) float64 average precision of each query, in [0, 1].
        first_rank: (Q,) int64 rank of the nearest match.
        last_rank: (Q,) int64 rank of the farthest match.
        matches: (Q,) int64 number of matches.
        tied: (Q,) bool, whether a match is exactly as far as an item that doesn't match.
    """

    ap: Tensor
    first_rank: Tensor
    last_rank: Tensor
    matches: Tensor
    tied: Tensor

    @property
    def valid(self) -> Tensor:
        """(Q,) bool, whether the query has a match."""
        return self.matches > 0

    @property
    def map(self) -> float:
        """Mean of the average precision over valid queries, in [0, 1]."""
        return float(self.ap[self.valid].mean())

    @property
    def minp(self) -> float:
        """Mean over valid queries of (number of matches) / (rank of the last one), in [0, 1]."""
        valid = self.valid
        return float((self.matches[valid].double() / self.last_rank[valid]).mean())

    def cmc(self, top: int = 50) -> Tensor:
        """(top,) float64 share of valid queries whose first match has at most rank 1, 2, ..., top.

        Raises:
            ValueError: `top` is below 1.
        """
        if top < 1:
            msg = f"cmc: top must be at least 1, got {top}"
            raise ValueError(msg)
        first = self.first_rank[self.valid]
        steps = torch.arange(1, top + 1, device=first.device)
        return (first.unsqueeze(1) <= steps).double().mean(dim=0)


def rank_row(distance: Tensor, match: Tensor, junk: Tensor, ties: Ties = "optimistic") -> Tensor:
    """Ranks of the matches of one query, rising.

    The j-th nearest match has rank j + (items before it that do not match). Of items equally far
    the match comes first (`optimistic`), last (`pessimistic`), or the earlier item (`stable`).

    Args:
        distance: (G,) distances to the gallery.
        match: (G,) bool, same identity and not junk.
        junk: (G,) bool, left out of the ranking.
        ties: What comes first at equal distances.

    Returns:
        (matches,) int64.
    """
    other = ~match & ~junk
    place = torch.arange(len(distance), device=distance.device)
    near, order = distance[match].sort(stable=True)
    counts = []
    for d, item in zip(near, place[match][order], strict=True):
        before = distance < d
        if ties != "optimistic":
            before |= (distance == d) & ((place < item) | (ties == "pessimistic"))
        counts.append(int((other & before).sum()))
    return torch.tensor([j + count for j, count in enumerate(counts, start=1)], dtype=torch.long)


def summarise(ranks: list[Tensor], tied: list[bool]) -> RankResult:
    """Result from the ranks of every query's matches.

    Args:
        ranks: One rising int64 vector a query, empty without a match.
        tied: One flag a query.
    """
    ap, first, last = [], [], []
    for own in ranks:
        j = torch.arange(1, own.numel() + 1)
        ap.append(float((j.double() / own).mean()) if own.numel() else float("nan"))
        first.append(int(own[0]) if own.numel() else -1)
        last.append(int(own[-1]) if own.numel() else -1)
    return RankResult(
        torch.tensor(ap, dtype=torch.float64),
        torch.tensor(first, dtype=torch.long),
        torch.tensor(last, dtype=torch.long),
        torch.tensor([own.numel() for own in ranks], dtype=torch.long),
        torch.tensor(tied, dtype=torch.bool),
    )
