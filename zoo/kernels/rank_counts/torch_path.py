"""Ranks by counting, a chunk of queries at a time.

Only the few matches of a query need a rank, and a rank is a count of smaller distances. Sorting
the values of a row (not their indices) makes every count a binary search. NumPy sorts values with
SIMD, many times faster than PyTorch sorts rows, so on the CPU it does that where it is installed,
in a few rows of scratch that stay in the processor's cache while they are searched. Where a
compiler is there and a query has few matches, comparing all values with each is faster still.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.rank_counts import native
from zoo.kernels.rank_counts.reference import RankResult, Ties

Distances = Callable[[int, int], Tensor]
"""Gives the (last - first, G) distances of queries first..last-1, good until the next call."""

_SCRATCH_ROWS = 64
_FEW = 48  # matches a query; sorting a row takes as long as comparing it with this many limits


class Labels(NamedTuple):
    """Identities and cameras, all on the device of the distances.

    Attributes:
        query_ids: (Q,) int64.
        gallery_ids: (G,) int64.
        query_cams: (Q,) int64, or None: no item is junk.
        gallery_cams: (G,) int64 or None.
    """

    query_ids: Tensor
    gallery_ids: Tensor
    query_cams: Tensor | None
    gallery_cams: Tensor | None


class Groups(NamedTuple):
    """Where the gallery items of each query's identity lie.

    Attributes:
        order: (G,) gallery items sorted by identity.
        start: (Q,) first place of the query's identity in `order`.
        end: (Q,) place after the last one.
    """

    order: Tensor
    start: Tensor
    end: Tensor


def group(labels: Labels) -> Groups:
    """Sorts the gallery by identity once, and looks every query up."""
    ids, order = labels.gallery_ids.sort(stable=True)
    wanted = labels.query_ids.contiguous()
    return Groups(
        order,
        torch.searchsorted(ids, wanted),
        torch.searchsorted(ids, wanted, right=True),
    )


class Near(NamedTuple):
    """Distances of a chunk's items of the same identity, padded with infinity, rising in a row.

    Attributes:
        matches: (n, M) distances of matches.
        match_count: (n, 1) how many there are.
        junk: (n, M) distances of junk.
        junk_count: (n, 1).
    """

    matches: Tensor
    match_count: Tensor
    junk: Tensor
    junk_count: Tensor


def near(distances: Tensor, groups: Groups, labels: Labels, first: int) -> Near:
    """Picks the distances of same-identity items out of a chunk that starts at query `first`."""
    last = first + distances.shape[0]
    start, end = groups.start[first:last, None], groups.end[first:last, None]
    width = max(1, int((end - start).max()))
    place = start + torch.arange(width, device=distances.device)
    inside = place < end
    items = groups.order[place.clamp_max(groups.order.numel() - 1)]
    own = distances.gather(1, items)
    junk = torch.zeros_like(inside)
    if labels.query_cams is not None and labels.gallery_cams is not None:
        junk = inside & (labels.gallery_cams[items] == labels.query_cams[first:last, None])
    match = inside & ~junk
    far = torch.full((), float("inf"), dtype=own.dtype, device=own.device)
    return Near(
        torch.where(match, own, far).sort(dim=1).values,
        match.sum(dim=1, keepdim=True),
        torch.where(junk, own, far).sort(dim=1).values,
        junk.sum(dim=1, keepdim=True),
    )


def sort_rows(distances: Tensor, scratch: Tensor) -> Tensor:
    """Rows with rising values, NaN last; `scratch` holds them on the CPU."""
    if distances.device.type == "cpu" and find_spec("numpy") is not None:
        rows = scratch[: len(distances)].copy_(distances)
        rows.numpy().sort(axis=1)
        return rows
    return distances.sort(dim=1).values


def refuse_nan(suspects: Tensor, first: int) -> None:
    """Raises if one value of a chunk of queries is NaN.

    Args:
        suspects: (n,) a value of each query's distances that is NaN if any of them is.
        first: Number of the chunk's first query.

    Raises:
        ValueError: One is; the message names the first such query.
    """
    bad = suspects.isnan()
    if bool(bad.any()):
        query = first + int(bad.nonzero()[0])
        msg = (
            f"rank_counts: a distance of query {query} is NaN, so it has no rank; look for NaN "
            "or infinite values in the features"
        )
        raise ValueError(msg)


def _nearer(values: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """(n, M) how many of `values` (n, G) are below each limit (n, M), and how many not above."""
    one, other = values.unsqueeze(1), limits.unsqueeze(2)
    below = (one < other).sum(dim=2, dtype=torch.int32)
    return below, below + (one == other).sum(dim=2, dtype=torch.int32)


@lru_cache(maxsize=1)
def _compiled() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_nearer, dynamic=True, fullgraph=True)


def _bounds(values: Tensor, limits: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """`_nearer` of rising rows, of which only the first `real` (n, 1) entries are no padding."""
    below = torch.searchsorted(values, limits)
    # Padding is infinitely far; a limit that is infinite itself must not count it.
    up_to = torch.searchsorted(values, limits, right=True).minimum(real)
    return below.minimum(real), up_to


def chunk_ranks(
    distances: Tensor, own: Near, first: int, compiled: bool, pessimistic: bool
) -> tuple[Tensor, Tensor]:
    """Ranks of the matches of a chunk of queries.

    Args:
        distances: (n, G).
        own: The matches and junk among them.
        first: Number of the chunk's first query.
        compiled: Whether to compare and sum in compiled code instead of sorting.
        pessimistic: Whether ties count against the match.

    Returns:
        (n, M) ranks, meaningless behind the last match, and whether the match is tied.

    Raises:
        ValueError: A distance is NaN.
    """
    limits = own.matches
    match_below, match_up_to = _bounds(limits, limits, own.match_count)
    junk_below, junk_up_to = _bounds(own.junk, limits, own.junk_count)
    own_below, own_up_to = match_below + junk_below, match_up_to + junk_up_to
    if compiled and _by_comparing(distances, own):
        below, up_to = _compared(distances, own, first)
        tied = up_to - below > own_up_to - own_below
    else:
        below, tied, up_to = _sorted_counts(
            distances, limits, own_up_to - own_below, first, pessimistic
        )
    place = torch.arange(1, limits.shape[1] + 1, device=limits.device)
    others = up_to - own_up_to if pessimistic else below - own_below
    return place + others, tied


def _by_comparing(distances: Tensor, own: Near) -> bool:
    """Whether few enough matches are looked for that comparing beats sorting."""
    return distances.device.type != "cpu" or float(own.match_count.double().mean()) <= _FEW


def _compared(distances: Tensor, own: Near, first: int) -> tuple[Tensor, Tensor]:
    """Counts below and up to each limit, in compiled code."""
    if distances.device.type == "cpu":
        below, up_to, bad = native.counts(distances, own.matches, own.match_count[:, 0])
        refuse_nan(torch.where(bad, torch.nan, 0.0), first)
        return below, up_to
    refuse_nan(distances.amin(dim=1), first)
    return _compiled()(distances, own.matches)


def _sorted_counts(
    distances: Tensor, limits: Tensor, alike: Tensor, first: int, pessimistic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts below each limit, whether an item that is not our own equals it, counts up to it.

    Args:
        distances: (n, G).
        limits: (n, M).
        alike: (n, M) how many of our own items equal the limit.
        first: Number of the chunk's first query.
        pessimistic: Whether counts up to the limit are wanted; otherwise those below stand there.
    """
    height = _SCRATCH_ROWS if distances.device.type == "cpu" else max(1, len(distances))
    scratch = torch.empty(height, distances.shape[1], dtype=distances.dtype)
    below = torch.empty_like(limits, dtype=torch.long)
    tied = torch.empty_like(limits, dtype=torch.bool)
    up_to = torch.empty_like(below) if pessimistic else below
    for begin in range(0, len(distances), height):
        part = slice(begin, begin + height)
        rows, wanted = sort_rows(distances[part], scratch), limits[part]
        refuse_nan(rows[:, -1], first + begin)
        below[part] = torch.searchsorted(rows, wanted)
        # The items as far as a match stand side by side; is the one behind our own among them?
        behind = below[part] + alike[part]
        tied[part] = rows.gather(1, behind.clamp_max(rows.shape[1] - 1)) == wanted
        tied[part] &= behind < rows.shape[1]
        if pessimistic:
            up_to[part] = torch.searchsorted(rows, wanted, right=True)
    return below, tied, up_to


def settle_ties(
    ranks: Tensor,
    tied: Tensor,
    distances: Tensor,
    groups: Groups,
    labels: Labels,
    first: int,
) -> None:
    """Moves tied matches behind the items at the same distance that stand before them, in place.

    Args:
        ranks: (n, M) ranks with every match first among its ties.
        tied: (n, M) bool, false behind the last match.
        distances: (n, G).
        groups: Where the items of each identity lie.
        labels: Identities and cameras.
        first: Number of the chunk's first query.
    """
    for row in tied.any(dim=1).nonzero()[:, 0].tolist():
        query, values = first + row, distances[row]
        items = groups.order[groups.start[query] : groups.end[query]]
        if labels.query_cams is not None and labels.gallery_cams is not None:
            items = items[labels.gallery_cams[items] != labels.query_cams[query]]
        items = items[values[items].sort(stable=True).indices]
        others = labels.gallery_ids != labels.query_ids[query]
        for limit in set(values[items[tied[row, : len(items)]]].tolist()):
            group = values[items] == limit
            places = ((values == limit) & others).nonzero()[:, 0]
            ranks[row, : len(items)][group] += torch.searchsorted(places, items[group])


def ranking(
    queries: int,
    labels: Labels,
    distances: Distances,
    chunk: int,
    *,
    compiled: bool = False,
    ties: Ties = "optimistic",
) -> RankResult:
    """Ranks all queries, a chunk at a time.

    Args:
        queries: Q.
        labels: Identities and cameras.
        distances: Gives the chunks.
        chunk: Queries at a time.
        compiled: Whether to count in compiled code.
        ties: What comes first at equal distances.

    Raises:
        ValueError: A distance is NaN.
    """
    groups = group(labels)
    device = labels.gallery_ids.device
    ap = torch.full((queries,), float("nan"), dtype=torch.float64, device=device)
    first_rank, last_rank = (
        torch.full((queries,), -1, dtype=torch.long, device=device) for _ in range(2)
    )
    matches = torch.zeros(queries, dtype=torch.long, device=device)
    tied = torch.zeros(queries, dtype=torch.bool, device=device)
    for first in range(0, queries, chunk):
        last = min(queries, first + chunk)
        values = distances(first, last)
        own = near(values, groups, labels, first)
        ranks, equal = chunk_ranks(values, own, first, compiled, ties == "pessimistic")
        number = own.match_count
        place = torch.arange(1, ranks.shape[1] + 1, device=device)
        real = place <= number
        equal &= real
        if ties == "stable":
            settle_ties(ranks, equal, values, groups, labels, first)
        precision = (place.double() / ranks).masked_fill(~real, 0.0).sum(dim=1, keepdim=True)
        some = number > 0
        ap[first:last] = torch.where(some, precision / number, torch.nan).squeeze(1)
        first_rank[first:last] = torch.where(some[:, 0], ranks[:, 0], -1)
        final = ranks.gather(1, (number - 1).clamp_min(0))
        last_rank[first:last] = torch.where(some, final, -1).squeeze(1)
        matches[first:last] = number.squeeze(1)
        tied[first:last] = equal.any(dim=1)
    return RankResult(ap, first_rank, last_rank, matches, tied)
