"""The public function: checks, distances in chunks, and the choice of the form that counts."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels._dispatch import choice, path_for
from zoo.kernels._ragged import full_precision
from zoo.kernels.rank_counts import native
from zoo.kernels.rank_counts.reference import RankResult, Ties, rank_row, summarise
from zoo.kernels.rank_counts.torch_path import Distances, Labels, ranking, refuse_nan

METRICS = ("cosine", "euclidean")
# Enough rows for the product of matrices to run at full speed, few enough for 100 MB in all.
_CHUNK, _CHUNK_BYTES = 512, 40 * 2**20
_WIDENED_BYTES = 16 * 2**20
_WORTH = 2**24  # distances


@torch.no_grad()
def rank_counts(
    query: Tensor | None,
    gallery: Tensor | None,
    query_ids: Any,
    gallery_ids: Any,
    query_cams: Any = None,
    gallery_cams: Any = None,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    distances: Tensor | None = None,
    chunk: int | None = None,
    ties: Ties = "optimistic",
    compiled: bool | None = None,
) -> RankResult:
    """Ranks the matches of every query without sorting the gallery or storing all distances.

    The j-th nearest match has rank j + (number of items that do not match and are strictly
    nearer). Items of the query's identity seen by the query's camera are junk: left out. Of items
    at exactly the same distance a match therefore comes first, whatever the order of the gallery;
    `RankResult.tied` says where that matters. `ties="pessimistic"` puts the match last, and
    `ties="stable"` leaves it to the order of the gallery, as a stable sort does. Features that
    collapsed to one point are all ties.

    Args:
        query: (Q, D) features, floating point; None with `distances`.
        gallery: (G, D) features; None with `distances`.
        query_ids: (Q,) integers: tensor, array or list.
        gallery_ids: (G,) integers.
        query_cams: (Q,) integers; None (with `gallery_cams`): nothing is junk.
        gallery_cams: (G,) integers.
        metric: `cosine`, or `euclidean` of the features as they are (squared or not ranks alike).
        distances: (Q, G) distances to rank instead of features.
        chunk: Queries at a time; memory is about chunk * G numbers. None: up to 512, as many as
            40 MB hold.
        ties: Which comes first of a match and another item at the same distance: `optimistic` the
            match, `pessimistic` the other item, `stable` the earlier in the gallery.
        compiled: Whether compiled code compares and sums instead of sorting rows, while queries
            have few matches: on the CPU a loop in C, elsewhere torch.compile. None: the loop in C
            where a compiler is found and the work is large enough to pay for it.

    Returns:
        Average precision and ranks of every query, with `map`, `minp` and `cmc(top)`.

    Raises:
        ValueError: Shapes or names do not fit, or a distance is NaN.
        RuntimeError: `compiled=True` on the CPU, and there is no C compiler.
    """
    wrong = metric not in METRICS or ties not in get_args(Ties)
    if wrong or (chunk is not None and chunk < 1):
        msg = (
            f"rank_counts: metric is one of {METRICS}, ties one of {get_args(Ties)} and chunk "
            f"positive; got {metric=}, {ties=}, {chunk=}"
        )
        raise ValueError(msg)
    like, shape = _shape(query, gallery, distances)
    labels = _labels(query_ids, gallery_ids, query_cams, gallery_cams, shape, like.device)
    rows = min(chunk, max(1, shape[0])) if chunk else _chunk(shape, _wide(like).itemsize)
    source: Distances
    if distances is not None:
        source = _given(distances)
    else:
        assert query is not None
        assert gallery is not None
        source = _computed(query, gallery, metric, rows)
    if path_for(like, False, "rank_counts has no Triton kernel") == "reference":
        return _defined(shape[0], labels, source, ties)
    if compiled is None:
        compiled = _pays(like, shape) and native.library() is not None
    return ranking(shape[0], labels, source, rows, compiled=compiled, ties=ties)


def _pays(like: Tensor, shape: tuple[int, int]) -> bool:
    """Whether the loop in C, built in a fraction of a second once, is worth looking for."""
    return like.device.type == "cpu" and choice() == "auto" and shape[0] * shape[1] >= _WORTH


def _chunk(shape: tuple[int, int], itemsize: int) -> int:
    """Queries at a time: chunks of one size, so that the last is not a small, slow one."""
    queries, items = max(1, shape[0]), shape[1]
    most = min(_CHUNK, max(16, _CHUNK_BYTES // (items * itemsize)))
    return -(-queries // -(-queries // most))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _shape(
    query: Tensor | None, gallery: Tensor | None, distances: Tensor | None
) -> tuple[Tensor, tuple[int, int]]:
    """A tensor that has the device and dtype, and (Q, G)."""
    if distances is not None:
        if distances.dim() != 2 or query is not None or gallery is not None:
            msg = (
                "rank_counts: give distances (Q, G) and None for both features, or features "
                f"alone; got distances {tuple(distances.shape)}"
            )
            raise ValueError(msg)
        found, shape = distances, (distances.shape[0], distances.shape[1])
    else:
        if query is None or gallery is None:
            msg = "rank_counts: features of queries and gallery are needed, or distances="
            raise ValueError(msg)
        if query.dim() != 2 or gallery.dim() != 2 or query.shape[1] != gallery.shape[1]:
            msg = (
                "rank_counts: features must be (Q, D) and (G, D), got "
                f"{tuple(query.shape)} and {tuple(gallery.shape)}"
            )
            raise ValueError(msg)
        found, shape = query, (query.shape[0], gallery.shape[0])
    if not found.is_floating_point() or shape[1] < 1:
        msg = (
            f"rank_counts: floating point and a gallery expected, got {found.dtype}, (Q, G) {shape}"
        )
        raise ValueError(msg)
    return found, shape


def _labels(
    query_ids: Any,
    gallery_ids: Any,
    query_cams: Any,
    gallery_cams: Any,
    shape: tuple[int, int],
    device: torch.device,
) -> Labels:
    if (query_cams is None) != (gallery_cams is None):
        msg = "rank_counts: give the cameras of both queries and gallery, or of neither"
        raise ValueError(msg)

    def column(name: str, values: Any, length: int) -> Tensor:
        tensor = torch.as_tensor(values)
        if tensor.shape != (length,) or tensor.is_floating_point() or tensor.is_complex():
            msg = (
                f"rank_counts: {name} must be {length} integers, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )
            raise ValueError(msg)
        return tensor.to(device=device, dtype=torch.long)

    ids = column("query_ids", query_ids, shape[0]), column("gallery_ids", gallery_ids, shape[1])
    if query_cams is None:
        return Labels(*ids, None, None)
    return Labels(
        *ids,
        column("query_cams", query_cams, shape[0]),
        column("gallery_cams", gallery_cams, shape[1]),
    )


def _given(distances: Tensor) -> Distances:
    wide = _wide(distances)

    def rows(first: int, last: int) -> Tensor:
        return distances[first:last].to(wide)

    return rows


def _computed(query: Tensor, gallery: Tensor, metric: str, chunk: int) -> Distances:
    """Distances up to what is the same for all items of a query, which changes no rank."""
    wide = _wide(query)
    # Items of another dtype are widened a block at a time, at every chunk: a copy of the whole
    # gallery would be the largest tensor of all, and so would a normalised one.
    size = len(gallery)
    if gallery.dtype != wide:
        size = max(64, _WIDENED_BYTES // (wide.itemsize * max(1, gallery.shape[1])))
    bounds = [(begin, min(begin + size, len(gallery))) for begin in range(0, len(gallery), size)]
    norms = torch.cat([torch.linalg.vector_norm(gallery[a:b].to(wide), dim=1) for a, b in bounds])

    buffer = torch.empty(chunk, len(gallery), dtype=wide, device=query.device)

    def rows(first: int, last: int) -> Tensor:
        own, out = query[first:last].to(wide), buffer[: last - first]
        with full_precision(own):
            if metric == "cosine":
                own = functional.normalize(own, dim=1).neg_()
            for a, b in bounds:
                items = gallery[a:b].to(wide)
                if metric == "cosine":
                    torch.mm(own, items.mT, out=out[:, a:b])
                else:
                    torch.addmm(norms[a:b].square(), own, items.mT, alpha=-2.0, out=out[:, a:b])
            if metric == "cosine":
                out.div_(norms.clamp_min(1e-12))
        return out

    return rows


def _defined(queries: int, labels: Labels, distances: Distances, ties: Ties) -> RankResult:
    """The definition, query by query."""
    ranks, tied = [], []
    for query in range(queries):
        row = distances(query, query + 1)[0]
        refuse_nan(row.amin().unsqueeze(0), query)
        same = labels.gallery_ids == labels.query_ids[query]
        junk = torch.zeros_like(same)
        if labels.query_cams is not None and labels.gallery_cams is not None:
            junk = same & (labels.gallery_cams == labels.query_cams[query])
        found: dict[str, Tensor] = {
            each: rank_row(row, same & ~junk, junk, each) for each in get_args(Ties)
        }
        ranks.append(found[ties])
        tied.append(not torch.equal(found["optimistic"], found["pessimistic"]))
    return summarise(ranks, tied)
