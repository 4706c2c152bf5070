"""Ranks by counting, a chunk of queries at a time.

Only the few matches of a query need a rank, and a rank is a count of smaller distances. Sorting
the values of a row (not their indices) makes every count a binary search. NumPy sorts values with
SIMD, many times faster than PyTorch sorts rows, so on the CPU it does that where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.rank_counts.reference import RankResult

Distances = Callable[[int, int, Tensor], None]
"""Writes the distances of queries first..last-1 to all items into a (last - first, G) tensor."""


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


def sort_rows(distances: Tensor) -> Tensor:
    """Rows with rising values (NaN last); on the CPU in place."""
    if distances.device.type == "cpu" and find_spec("numpy") is not None:
        distances.numpy().sort(axis=1)
        return distances
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
        distances: (n, G); its content may be lost.
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
    if compiled:
        refuse_nan(distances.amin(dim=1), first)
        below, up_to = _compiled()(distances, limits)
        tied = up_to - below > own_up_to - own_below
    else:
        rows = sort_rows(distances)
        refuse_nan(rows[:, -1], first)
        below = torch.searchsorted(rows, limits)
        # The items as far as a match stand side by side; is the one behind our own among them?
        behind = below + (own_up_to - own_below)
        tied = rows.gather(1, behind.clamp_max(rows.shape[1] - 1)) == limits
        tied &= behind < rows.shape[1]
        up_to = torch.searchsorted(rows, limits, right=True) if pessimistic else below
    place = torch.arange(1, limits.shape[1] + 1, device=limits.device)
    others = up_to - own_up_to if pessimistic else below - own_below
    return place + others, tied


def ranking(
    queries: int,
    labels: Labels,
    distances: Distances,
    buffer: Tensor,
    *,
    compiled: bool = False,
    pessimistic: bool = False,
) -> RankResult:
    """Streams all queries through `buffer`.

    Args:
        queries: Q.
        labels: Identities and cameras.
        distances: Fills the buffer.
        buffer: (chunk, G) scratch memory in the dtype of the distances.
        compiled: Whether to count in compiled code.
        pessimistic: Whether ties count against the match.

    Raises:
        ValueError: A distance is NaN.
    """
    groups = group(labels)
    device = buffer.device
    ap = torch.full((queries,), float("nan"), dtype=torch.float64, device=device)
    first_rank, last_rank = (
        torch.full((queries,), -1, dtype=torch.long, device=device) for _ in range(2)
    )
    matches = torch.zeros(queries, dtype=torch.long, device=device)
    tied = torch.zeros(queries, dtype=torch.bool, device=device)
    for first in range(0, queries, buffer.shape[0]):
        last = min(queries, first + buffer.shape[0])
        chunk = buffer[: last - first]
        distances(first, last, chunk)
        own = near(chunk, groups, labels, first)
        ranks, ties = chunk_ranks(chunk, own, first, compiled, pessimistic)
        number = own.match_count
        place = torch.arange(1, ranks.shape[1] + 1, device=device)
        real = place <= number
        precision = (place.double() / ranks).masked_fill(~real, 0.0).sum(dim=1, keepdim=True)
        some = number > 0
        ap[first:last] = torch.where(some, precision / number, torch.nan).squeeze(1)
        first_rank[first:last] = torch.where(some[:, 0], ranks[:, 0], -1)
        final = ranks.gather(1, (number - 1).clamp_min(0))
        last_rank[first:last] = torch.where(some, final, -1).squeeze(1)
        matches[first:last] = number.squeeze(1)
        tied[first:last] = (ties & real).any(dim=1)
    return RankResult(ap, first_rank, last_rank, matches, tied)
