"""How the recorded evaluations and re-rankings of `fusion_reid` are run."""

from __future__ import annotations

import csv
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity.golden import REPOSITORY, Case
from zoo.domains.reid.fusion_reid.names import JUNK
from zoo.domains.reid.fusion_reid.ranking import (
    Codes,
    Ranking,
    Sides,
    codes,
    evaluate,
    joined,
    ranked_rows,
    sides,
)
from zoo.domains.reid.fusion_reid.rerank import FeatureSpace, GivenSpace, Reranker
from zoo.domains.reid.fusion_reid.search import nearest

PLAIN, EXACT, RERANKED = 1e-5, 1e-6, 2e-3  # what the case's words allow


def check(case: Case, key: str, ours: Tensor | np.ndarray | float, limit: float) -> None:
    expected = case.tensors[f"output/{key}"]
    actual = torch.as_tensor(ours).to(expected.dtype)
    torch.testing.assert_close(
        actual, expected, rtol=limit, atol=limit, equal_nan=True, msg=lambda t: f"{key}: {t}"
    )
    case.open.discard(f"output/{key}")


# -- metrics ------------------------------------------------------------------------------------


def cmc_map(case: Case) -> None:
    inputs = case.group("input")
    people, seen = (
        Codes(inputs[f"q_{what}"].numpy(), inputs[f"g_{what}"].numpy())
        for what in ("pids", "camids")
    )
    distances = inputs["distmat"]
    rows = Sides(np.arange(len(people.query)), np.arange(len(people.gallery)))
    found = joined(ranked_rows(lambda a, b: distances[a:b], people, seen), rows)
    case.compare("output/ap", torch.from_numpy(found.ap))
    case.compare(
        "output/first_match_rank", torch.from_numpy(np.where(found.valid, found.first - 1, -1))
    )
    case.compare("output/cmc", torch.from_numpy(found.cmc(case.info["args"]["max_rank"])))
    case.compare("output/mAP", found.map)
    assert int(found.valid.sum()) == case.info["num_valid"]
    assert found.map == pytest.approx(case.info["mAP"], abs=EXACT)


# -- evaluation and re-ranking ------------------------------------------------------------------


def evaluator_rerank(case: Case) -> None:
    inputs = case.group("input")
    features, queries = inputs["feats"], case.info["args"]["num_query"]
    query, gallery = features[:queries], features[queries:]
    persons, cameras = ([str(n) for n in inputs[k].tolist()] for k in ("pids", "camids"))
    roles = ["query"] * queries + ["gallery"] * len(gallery)
    official = Reranker(50, 15, 0.3, half=True)
    for norm in (False, True):
        space = torch.nn.functional.normalize(features, dim=1) if norm else features
        plain = f"rerank0_norm{norm:d}"
        check(case, f"{plain}.distmat", FeatureSpace(space).rows(0, queries, queries), PLAIN)
        found = evaluate(features, persons, cameras, roles, normalise=norm)
        _figures(case, plain, found, EXACT)
        again = f"rerank1_norm{norm:d}"
        near = official.fit(query, gallery, normalise=norm)
        case.compare(f"output/{again}.distmat", near.matrix())
        found = evaluate(features, persons, cameras, roles, normalise=norm, rerank=near)
        _figures(case, again, found, RERANKED)
    for key in sorted(k for k in case.group("output") if re.match(r"rerank_k\d", k)):
        k1, k2, lam = re.fullmatch(r"rerank_k(\d+)_(\d+)_l([\d.]+)", key).groups()
        settings = Reranker(int(k1), int(k2), float(lam), half=True)
        case.compare(f"output/{key}", settings.fit(query, gallery, normalise=False).matrix())
    _local(case, features, inputs["local_distmat"], queries)
    _angles(case, query, gallery)


def _figures(case: Case, name: str, found: Ranking, limit: float) -> None:
    expected = case.tensors[f"output/{name}.cmc"]
    check(case, f"{name}.cmc", found.cmc(len(expected)), limit)
    check(case, f"{name}.mAP", found.map, limit)


def _local(case: Case, features: Tensor, local: Tensor, queries: int) -> None:
    """Distances of parts added to those of the features, and alone; with the method's settings."""
    settings = Reranker(20, 6, 0.3, half=True)
    whole = FeatureSpace(features).rows(0, len(features), 0)
    for key, distances in (("rerank_local", whole + local), ("rerank_only_local", local)):
        near = settings.fit_space(GivenSpace(distances), queries)
        case.compare(f"output/{key}", near.matrix())


def _angles(case: Case, query: Tensor, gallery: Tensor) -> None:
    found = nearest(query, gallery, len(gallery), distance="angle")
    matrix = torch.empty(len(query), len(gallery)).scatter_(1, found.items, found.distances)
    check(case, "cosine_arccos", matrix, PLAIN)


# -- Market-1501 --------------------------------------------------------------------------------


def uniform(seed: int, key: str, count: int) -> np.ndarray:
    """Numbers in [-1, 1) that follow from a key; the rule stands in the case."""
    begin = seed * 0x9E3779B97F4A7C15 + zlib.crc32(key.encode()) * 0xD1B54A32D192ED03
    begin = (begin + 0x9E3779B97F4A7C15) % 2**64
    z = np.arange(count, dtype=np.uint64) + np.uint64(begin)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def name_lists(case: Case) -> Path | None:
    """The official name lists, beside the recorded cases or beside the repository."""
    bases = (*case.path.parents, REPOSITORY.parent / "shared")
    found = (base / "data" / "reid" / "market1501_lists" for base in bases)
    return next((path for path in found if path.is_dir()), None)


def market_scale(case: Case) -> None:
    lists = name_lists(case)
    if lists is None:
        pytest.skip("the name lists of Market-1501 are not on this machine")
    info = case.info
    seed, width = info["seed"], info["dim"]
    persons, cameras, roles, rows = [], [], [], []
    parts: dict[str, np.ndarray] = {}

    def part(key: str) -> np.ndarray:
        return parts.setdefault(key, uniform(seed, key, width))

    for role, name in (("query", "query"), ("gallery", "test")):
        with (lists / f"market1501_{name}.csv").open(newline="") as file:
            for _, path in csv.reader(file):
                file_name = path.rpartition("/")[2]
                person, camera = re.match(r"(-?\d+)_c(\d)", file_name).groups()
                number = int(person)
                feature = 0.6 * part(f"cam/{int(camera) - 1}")
                feature = feature + 1.6 * uniform(seed, f"img/{file_name}", width)
                if number > 0:
                    feature = feature + part(f"pid/{number}")
                rows.append(feature)
                persons.append(JUNK if number < 0 else str(number))
                cameras.append(camera)
                roles.append(role)
    features = torch.from_numpy(np.stack(rows))
    found = evaluate(features, persons, cameras, roles)
    assert (len(found.rows), found.gallery) == (info["queries"], info["gallery"])
    assert found.valid.all()
    _expected(info, found, info["tolerance"]["atol"])
    _expected(info, evaluate(features.float(), persons, cameras, roles), 2e-4)
    # Every camera of its own: nothing is left out.
    apart = [f"{role}{camera}" for role, camera in zip(roles, cameras, strict=True)]
    loose = evaluate(features, persons, apart, roles)
    assert loose.cmc(1)[0] == pytest.approx(info["rank1_without_camera_filter"], abs=EXACT)
    assert len(codes(persons, sides(persons, roles)).gallery) == info["gallery"]


def _expected(info: dict[str, Any], found: Ranking, limit: float) -> None:
    assert found.map == pytest.approx(info["mAP"], abs=limit)
    curve = found.cmc(max(int(k) for k in info["cmc"]))
    for k, share in info["cmc"].items():
        assert curve[int(k) - 1] == pytest.approx(share, abs=limit), k


TARGETS = {
    "cmc_map": cmc_map,
    "evaluator_rerank": evaluator_rerank,
    "market_scale": market_scale,
}
