"""Retrieval metrics by counting against sorting, at the size of Market-1501.

3,368 queries, 15,913 gallery items, 751 identities, 6 cameras. The plain forms are torchreid's
Python `evaluate_rank` (if torchreid is installed), the usual NumPy form that orders all pairs at
once, and a leaner loop that orders a row at a time. The first takes most of a minute, so the first
two run once, between runs of ours, on all queries (`quick`: on 168 of them); our row says how far
mAP and CMC differ from theirs.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.harness import (
    Form,
    Row,
    device_name,
    interleaved,
    peak_cpu,
    quantile,
    rows,
    versions,
)
from zoo.kernels import RankResult, rank_counts

QUERIES, GALLERY, IDENTITIES, CAMERAS, WIDTH = 3368, 15913, 751, 6, 2048
_FEW = 168
_TOP = 50  # ranks of the CMC curve
CPU = torch.device("cpu")


def labels(queries: int) -> list[Tensor]:
    """Identities and cameras of queries and gallery, seeded."""
    seeded = torch.Generator().manual_seed(0)
    sizes = ((IDENTITIES, QUERIES), (IDENTITIES, GALLERY), (CAMERAS, QUERIES), (CAMERAS, GALLERY))
    marks = [torch.randint(top, (size,), generator=seeded) for top, size in sizes]
    return [marks[0][:queries], marks[1], marks[2][:queries], marks[3]]


def argsort_loop(distances: Tensor, marks: list[Tensor]) -> float:
    """Mean AP by an argsort of each row in NumPy."""
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


def all_pairs(distances: Tensor, marks: list[Tensor]) -> tuple[Any, float]:
    """CMC of 50 ranks and mAP from the order of all pairs, as most published code computes them."""
    import numpy as np

    q_ids, g_ids, q_cams, g_cams = (m.numpy() for m in marks)
    order = np.argsort(distances.numpy(), axis=1)
    same = (g_ids[order] == q_ids[:, None]).astype(np.int32)
    curves, precisions = [], []
    for i, row in enumerate(order):
        junk = (g_ids[row] == q_ids[i]) & (g_cams[row] == q_cams[i])
        hits = same[i][~junk]
        if hits.any():
            count = hits.cumsum()
            curves.append((count > 0)[:_TOP])
            precision = count / np.arange(1, len(hits) + 1)
            precisions.append(float((precision * hits).sum() / hits.sum()))
    return np.mean(curves, axis=0), sum(precisions) / len(precisions)


def _torchreid(distances: Tensor, marks: list[Tensor]) -> Callable[[], tuple[Any, Any]] | None:
    """CMC of 50 ranks and mAP by torchreid, None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no compiled evaluation, which is the point
        try:
            rank = import_module("torchreid.reid.metrics.rank")
        except ImportError:
            return None
    evaluate: Callable[..., tuple[Any, Any]] = rank.evaluate_rank
    matrix, arrays = distances.numpy(), [m.numpy() for m in marks]
    return lambda: evaluate(matrix, *arrays, max_rank=_TOP, use_cython=False)


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


def _against_slow(device: torch.device, quick: bool) -> list[Row]:
    """One run of each slow form with runs of ours before and after it."""
    queries = _FEW if quick else QUERIES
    marks, distances = labels(queries), torch.rand(queries, GALLERY)
    slow: dict[str, Form] = {}
    official = _torchreid(distances, marks)
    if official is not None:
        slow["torchreid"] = official
    slow["order of all pairs"] = partial(all_pairs, distances, marks)
    there, marked = distances.to(device), [m.to(device) for m in marks]
    found: dict[str, tuple[Any, Any]] = {}

    def run() -> RankResult:
        return rank_counts(None, None, *marked, distances=there)

    ours = interleaved({"zoo": run}, device, rounds=3)["zoo"]
    once = {}
    for name, form in slow.items():
        keep = partial(_keep, found, name, form)
        (once[name],) = interleaved({name: keep}, CPU, rounds=1, warmups=0)[name]
        ours += interleaved({"zoo": run}, device, rounds=3, warmups=0)["zoo"]
    result = run()
    errors = [
        float((result.cmc(_TOP).cpu() - torch.as_tensor(c)).abs().max()) for c, _ in found.values()
    ]
    errors += [abs(result.map - float(mean)) for _, mean in found.values()]
    first, own = next(iter(once.values())), statistics.median(ours)
    case = ("rank_counts", f"against slow forms, {queries} x {GALLERY}")
    made = [
        Row(*case, name, "fwd", device_name(CPU), ms, ms, ms, first / ms, versions=versions())
        for name, ms in once.items()
    ]
    spread = (own, quantile(ours, 0.1), quantile(ours, 0.9))
    mine = Row(*case, "zoo", "fwd", device_name(device), *spread, first / own)
    mine.error, mine.versions = max(errors), versions()
    return [*made, mine]


def _keep(found: dict[str, Any], name: str, form: Form) -> None:
    found[name] = form()


def _ranking(device: torch.device, quick: bool) -> list[Row]:
    queries = _FEW if quick else QUERIES
    marks, distances = labels(queries), torch.rand(queries, GALLERY)
    there, marked = distances.to(device), [m.to(device) for m in marks]
    forms: dict[str, Form] = {
        "argsort loop": partial(argsort_loop, distances, marks),
        "zoo": partial(rank_counts, None, None, *marked, distances=there),
        "zoo, stable ties": partial(
            rank_counts, None, None, *marked, distances=there, ties="stable"
        ),
        "rows sorted": partial(rank_counts, None, None, *marked, distances=there, compiled=False),
    }
    case = f"ranking, {queries} x {GALLERY}"
    memory = None
    if not quick and device.type == "cpu":
        memory = {form: peak_cpu(make, form, queries) for form in ("argsort loop", "zoo")}
    return rows("rank_counts", case, "fwd", forms, device, rounds=5, memory=memory)


def _evaluation(device: torch.device, quick: bool) -> list[Row]:
    """The whole evaluation beside the product of features alone."""
    queries = 512 if quick else QUERIES
    query = torch.randn(queries, WIDTH, device=device)
    gallery = torch.randn(GALLERY, WIDTH, device=device)
    marks = [m.to(device) for m in labels(queries)]
    forms: dict[str, Form] = {
        "distances alone": lambda: query @ gallery.mT,
        "zoo": lambda: rank_counts(query, gallery, *marks),
    }
    memory = None
    if device.type == "cpu" and not quick:
        memory = {"zoo": peak_cpu(make, "features", queries)}
    case = f"features to mAP, {queries} x {GALLERY} x {WIDTH}"
    return rows("rank_counts", case, "fwd", forms, device, rounds=5, memory=memory)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times ranking alone and the whole evaluation.

    Args:
        device: Where the counting runs; the plain forms run on the CPU.
        quick: Fewer queries.
    """
    return _against_slow(device, quick) + _ranking(device, quick) + _evaluation(device, quick)
