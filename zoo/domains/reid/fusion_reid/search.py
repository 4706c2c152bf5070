"""The nearest gallery images of each query, exactly, without holding all distances.

Blocks of the gallery are compared with blocks of queries and the best are kept. For galleries of
hundreds of thousands the same exact search can go to faiss (Johnson et al., "Billion-scale
similarity search with GPUs", 2019), if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.domains.reid.fusion_reid.ranking import Codes
from zoo.domains.reid.fusion_reid.topk import smallest, unit_rows
from zoo.errors import ConfigError

Distance = Literal["euclidean", "cosine", "angle"]
Engine = Literal["auto", "always", "never"]
Rows = Callable[[int, int], Tensor]

LARGE = 200_000
"""Gallery images from which `auto` takes faiss."""
_QUERIES, _ITEMS, _BYTES = 256, 65_536, 64 * 2**20


class Nearest(NamedTuple):
    """The nearest gallery images of each query, nearest first.

    Attributes:
        items: (Q, K) int64 places in the gallery, -1 behind the last one.
        distances: (Q, K) float32, infinite behind the last one. Of equal distances the earlier
            gallery image comes first (faiss: any).
    """

    items: Tensor
    distances: Tensor


def same_view(people: Codes, seen: Codes) -> Codes:
    """Codes that are equal where person and camera are the same and known."""
    wide = 1 + max(int(seen.query.max(initial=0)), int(seen.gallery.max(initial=0)))

    def joined(person: np.ndarray, camera: np.ndarray, unknown: int) -> np.ndarray:
        known = (person >= 0) & (camera >= 0)
        return np.where(known, person * wide + camera, unknown).astype(np.int64)

    return Codes(joined(people.query, seen.query, -1), joined(people.gallery, seen.gallery, -2))


@torch.no_grad()
def nearest(
    query: Tensor,
    gallery: Tensor,
    top: int,
    *,
    distance: Distance = "euclidean",
    left_out: Codes | None = None,
    engine: Engine = "auto",
) -> Nearest:
    """The `top` nearest gallery images of each query.

    Args:
        query: (Q, D) embeddings; compared at unit length.
        gallery: (G, D) embeddings.
        top: How many; fewer where the gallery has fewer.
        distance: What is reported: Euclidean, in [0, 2], 1 - cosine, in [0, 2], or the angle in
            radians. The order is the same.
        left_out: Gallery images whose code equals the query's are not listed.
        engine: `auto` takes faiss for galleries of more than 200,000 images where it is
            installed, `always` takes it or says how to install it, `never` does without.

    Raises:
        ConfigError: `engine` is `always` and faiss is missing.
        ValueError: `top` is below 1 or the widths differ.
    """
    if top < 1 or query.dim() != 2 or gallery.dim() != 2 or query.shape[1] != gallery.shape[1]:
        msg = (
            f"nearest: (Q, D) and (G, D) features and a positive top expected, got "
            f"{tuple(query.shape)}, {tuple(gallery.shape)} and {top}"
        )
        raise ValueError(msg)
    if _takes_faiss(engine, len(gallery)):
        found = _by_faiss(query, gallery, top, left_out)
    else:
        found = _by_blocks(query, gallery, top, left_out)
    return Nearest(found.items, _reported(found.distances, distance))


def _reported(cosine: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        found = 1 - cosine
    elif distance == "angle":
        # The published code keeps this far from parallel, where the arc cosine is steep.
        found = cosine.clamp(-1 + 1e-5, 1 - 1e-5).acos()
    else:
        found = (2 - 2 * cosine).clamp_min(0).sqrt()
    return found.masked_fill(cosine == -torch.inf, torch.inf)


def _takes_faiss(engine: Engine, size: int) -> bool:
    there = find_spec("faiss") is not None
    if engine == "always" and not there:
        msg = "predict.faiss=always needs the package 'faiss', which is missing: " + (
            "pip install faiss-cpu"
        )
        raise ConfigError(msg)
    return there and (engine == "always" or (engine == "auto" and size > LARGE))


# -- exact search by blocks ---------------------------------------------------------------------


def _by_blocks(query: Tensor, gallery: Tensor, top: int, left_out: Codes | None) -> Nearest:
    """Cosines instead of distances, largest first."""
    kept = min(top, len(gallery))
    device = query.device
    mine, theirs = _on(device, left_out)
    items = torch.full((len(query), kept), -1, dtype=torch.int64, device=device)
    cosines = torch.full((len(query), kept), -torch.inf, device=device)
    size = _block(gallery)
    for begin in range(0, len(gallery), size):
        block = unit_rows(gallery[begin : begin + size].to(device)).float()
        for first in range(0, len(query), _QUERIES):
            part = slice(first, first + _QUERIES)
            values = unit_rows(query[part]).float() @ block.mT
            if mine is not None and theirs is not None:
                hidden = mine[part, None] == theirs[begin : begin + size]
                values.masked_fill_(hidden, -torch.inf)
            best = smallest(-values, kept)
            # What was found before stands first, so equal values keep the gallery's order.
            both = torch.cat([cosines[part], values.gather(1, best)], dim=1)
            places = torch.cat([items[part], best + begin], dim=1)
            order = both.sort(dim=1, descending=True, stable=True).indices[:, :kept]
            cosines[part], items[part] = both.gather(1, order), places.gather(1, order)
    return Nearest(items.masked_fill_(cosines == -torch.inf, -1), cosines)


def _block(gallery: Tensor) -> int:
    """Gallery images at a time, so that their unit-length copy takes some 64 MB."""
    return min(_ITEMS, max(1024, _BYTES // (4 * max(1, gallery.shape[1]))))


def _on(device: torch.device, left_out: Codes | None) -> tuple[Tensor | None, Tensor | None]:
    if left_out is None:
        return None, None
    return (
        torch.as_tensor(left_out.query, device=device),
        torch.as_tensor(left_out.gallery, device=device),
    )


def nearest_by(rows: Rows, queries: int, top: int, *, left_out: Codes | None = None) -> Nearest:
    """The same by distances that come in chunks of queries, re-ranked ones for instance.

    Args:
        rows: Gives the (last - first, G) distances of queries first..last-1.
        queries: Q.
        top: How many.
        left_out: As in `nearest`.
    """
    items, distances = [], []
    for first in range(0, queries, _QUERIES):
        last = min(first + _QUERIES, queries)
        values = rows(first, last)
        mine, theirs = _on(values.device, left_out)
        if mine is not None and theirs is not None:
            values = values.masked_fill(mine[first:last, None] == theirs, torch.inf)
        best = smallest(values, top)
        own = values.gather(1, best)
        items.append(best.masked_fill_(own == torch.inf, -1))
        distances.append(own)
    return Nearest(torch.cat(items), torch.cat(distances))


# -- faiss --------------------------------------------------------------------------------------


def _by_faiss(query: Tensor, gallery: Tensor, top: int, left_out: Codes | None) -> Nearest:
    """Exact inner products by faiss; more are asked for than wanted, to leave some out."""
    faiss: Any = import_module("faiss")
    index = faiss.IndexFlatIP(query.shape[1])
    size = _block(gallery)
    for begin in range(0, len(gallery), size):
        index.add(unit_rows(gallery[begin : begin + size]).float().cpu().numpy())
    kept = min(top, len(gallery))
    hidden = np.zeros(len(query), dtype=np.int64)
    if left_out is not None:
        names, counts = np.unique(left_out.gallery, return_counts=True)
        place = np.searchsorted(names, left_out.query).clip(max=len(names) - 1)
        hidden = np.where(names[place] == left_out.query, counts[place], 0)
    items = torch.full((len(query), kept), -1, dtype=torch.int64)
    cosines = torch.full((len(query), kept), -torch.inf)
    for first in range(0, len(query), _QUERIES):
        part = slice(first, min(first + _QUERIES, len(query)))
        asked = min(len(gallery), kept + int(hidden[part].max(initial=0)))
        values, places = index.search(unit_rows(query[part]).float().cpu().numpy(), asked)
        for row, (own, where) in enumerate(zip(values, places, strict=True), start=first):
            good = where >= 0
            if left_out is not None:
                good &= left_out.gallery[where] != left_out.query[row]
            chosen = np.flatnonzero(good)[:kept]
            items[row, : len(chosen)] = torch.from_numpy(where[chosen])
            cosines[row, : len(chosen)] = torch.from_numpy(own[chosen])
    return Nearest(items, cosines)
