"""Retrieval metrics by counting against sorting, at the size of Market-1501.

3,368 queries, 15,913 gallery items, 751 identities, 6 cameras. The plain forms are torchreid's
Python `evaluate_rank` (if torchreid is installed) and a loop that argsorts each row in NumPy; the
first is so slow that it is timed, like the others beside it, on the first 168 queries.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.harness import Form, Row, peak_cpu, rows
from zoo.kernels import rank_counts

QUERIES, GALLERY, IDENTITIES, CAMERAS, WIDTH = 3368, 15913, 751, 6, 2048
_FEW = 168


def labels(queries: int) -> list[Tensor]:
    """Identities and cameras of queries and gallery, seeded."""
    seeded = torch.Generator().manual_seed(0)
    sizes = ((IDENTITIES, QUERIES), (IDENTITIES, GALLERY), (CAMERAS, QUERIES), (CAMERAS, GALLERY))
    marks = [torch.randint(top, (size,), generator=seeded) for top, size in sizes]
    return [marks[0][:queries], marks[1], marks[2][:queries], marks[3]]


def argsort_loop(distances: Tensor, marks: list[Tensor]) -> float:
    """Mean AP by an argsort of each row in NumPy, the usual vectorised evaluation."""
    import numpy as np

    matrix, (q_ids, g_ids, q_cams, g_cams) = distances.numpy(), [m.numpy() for m in marks]
    found = []
    for row, q_id, q_cam in zip(matrix, q_ids, q_cams, strict=True):
        order = np.argsort(row)
        junk = (g_ids[order] == q_id) & (g_cams[order] == q_cam)
        hits = (g_ids[order] == q_id)[~junk]
        if hits.any():
            precision = hits.cumsum() / np.arange(1, hits.size + 1)
            found.append(float((precision * hits).sum() / hits.sum()))
    return sum(found) / len(found)


def _torchreid(distances: Tensor, marks: list[Tensor]) -> Form | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no compiled evaluation, which is the point
        try:
            rank = import_module("torchreid.reid.metrics.rank")
        except ImportError:
            return None
    evaluate: Callable[..., Any] = rank.evaluate_rank
    matrix, arrays = distances.numpy(), [m.numpy() for m in marks]
    return lambda: evaluate(matrix, *arrays, use_cython=False)


def make(form: str, queries: int) -> Form:
    """A run on random distances, for the measurement of memory."""
    marks = labels(queries)
    if form == "features":
        query, gallery = torch.randn(queries, WIDTH), torch.randn(GALLERY, WIDTH)
        torch.mm(query[:8], gallery.mT)  # the working space of the first product is not ours
        return lambda: rank_counts(query, gallery, *marks)
    distances = torch.rand(queries, GALLERY)
    if form == "argsort loop":
        return lambda: argsort_loop(distances, marks)
    return lambda: rank_counts(None, None, *marks, distances=distances)


def _ranking(device: torch.device, quick: bool) -> list[Row]:
    found = []
    sizes = (_FEW,) if quick else (_FEW, QUERIES)
    for queries in sizes:
        marks, distances = labels(queries), torch.rand(queries, GALLERY)
        there, marked = distances.to(device), [m.to(device) for m in marks]
        forms: dict[str, Form] = {}
        if queries == _FEW and (slow := _torchreid(distances, marks)) is not None:
            forms["torchreid"] = slow
        forms["argsort loop"] = partial(argsort_loop, distances, marks)
        forms["torch"] = partial(rank_counts, None, None, *marked, distances=there)
        case = f"ranking, {queries} x {GALLERY}"
        memory = None
        if queries == QUERIES and device.type == "cpu":
            memory = {form: peak_cpu(make, form, queries) for form in ("argsort loop", "torch")}
        rounds = 3 if queries == _FEW else 5
        found += rows("rank_counts", case, "fwd", forms, device, rounds=rounds, memory=memory)
    return found


def _evaluation(device: torch.device, quick: bool) -> list[Row]:
    """The whole evaluation beside the product of features alone."""
    queries = 512 if quick else QUERIES
    query = torch.randn(queries, WIDTH, device=device)
    gallery = torch.randn(GALLERY, WIDTH, device=device)
    marks = [m.to(device) for m in labels(queries)]
    forms: dict[str, Form] = {
        "distances alone": lambda: query @ gallery.mT,
        "torch": lambda: rank_counts(query, gallery, *marks),
    }
    memory = None
    if device.type == "cpu" and not quick:
        memory = {"torch": peak_cpu(make, "features", queries)}
    case = f"features to mAP, {queries} x {GALLERY} x {WIDTH}"
    return rows("rank_counts", case, "fwd", forms, device, rounds=3, memory=memory)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times ranking alone and the whole evaluation.

    Args:
        device: Where the counting runs; the plain forms run on the CPU.
        quick: Fewer queries and rounds.
    """
    return _ranking(device, quick) + _evaluation(device, quick)
