"""From records to figures: rankings of the model and of its baseline, metrics, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.ranking import Ranking, evaluate, intervals
from zoo.domains.reid.fusion_reid.ranklists import Crops, RankList, rank_lists
from zoo.domains.reid.fusion_reid.rerank import Reranker
from zoo.errors import DataError
from zoo.task import Facts, Record

TOPS = (1, 5, 10)
# Rank-1 first, as the field reports it.
_ORDER = (*(f"rank{k}" for k in TOPS), "map", "minp")
# How the metrics of a method begin, and which of them are reported.
_STARTS = {
    "model": ("", _ORDER),
    "re-ranked": ("rerank_", _ORDER),
    "colour histogram": ("baseline_", ("rank1", "map")),
}
_RESAMPLES = 1000
_WORST = 20
_MOST_CAMERAS = 20  # more would make no table anybody reads


@dataclass(frozen=True)
class Scored:
    """A split's records and what follows from them; each part is computed when first asked for.

    Attributes:
        records: Queries and gallery.
        config: `predict` and `seed` are used.
    """

    records: Sequence[Record]
    config: Config

    @cached_property
    def crops(self) -> Crops:
        """Names of all records. Distractors are nobody, so no query can be one of them."""

        def column(name: str) -> np.ndarray:
            return np.array([str(r.values[name]) for r in self.records])

        persons, roles = column("person"), column("role")
        persons[(roles == "query") & (persons == names.DISTRACTOR)] = ""
        ids = np.array([r.id for r in self.records])
        return Crops(ids, persons, column("camera"), roles, column("path"))

    @property
    def columns(self) -> dict[str, list[str]]:
        """The same as lists by name."""
        return {f.name: [str(v) for v in getattr(self.crops, f.name)] for f in fields(self.crops)}

    @cached_property
    def features(self) -> Tensor:
        """(N, D) embeddings as the network gave them."""
        return torch.from_numpy(np.stack([r.values["feature"] for r in self.records]))

    @property
    def has_gallery(self) -> bool:
        """Whether there is anything to rank."""
        return bool((np.asarray(self.crops.roles) == "gallery").any())

    @cached_property
    def known(self) -> bool:
        """Whether some query has a match in the gallery, so that a ranking can be judged."""
        return self.has_gallery and bool(self.ranking.valid.any())

    def _ranking(self, features: Tensor, rerank: Reranker | None = None) -> Ranking:
        crops = self.crops
        return evaluate(
            features,
            crops.persons,
            crops.cameras,
            crops.roles,
            rerank=rerank,
            ids=[r.id for r in self.records],
        )

    @cached_property
    def ranking(self) -> Ranking:
        """By the model's embeddings."""
        return self._ranking(self.features)

    @cached_property
    def reranker(self) -> Reranker | None:
        """As configured, None without re-ranking."""
        predict = self.config.predict
        return Reranker(predict.k1, predict.k2, predict.lam) if predict.rerank else None

    @cached_property
    def reranked(self) -> Ranking | None:
        """By k-reciprocal distances, where they are asked for."""
        return self._ranking(self.features, self.reranker) if self.reranker else None

    @cached_property
    def baseline(self) -> Ranking | None:
        """By colour histograms, where the records have them."""
        if not all("colours" in r.values for r in self.records):
            return None
        stacked = np.stack([r.values["colours"] for r in self.records])
        return self._ranking(torch.from_numpy(stacked.astype(np.float32)))

    @cached_property
    def lists(self) -> list[RankList]:
        """The nearest gallery images of every query; empty without a gallery."""
        return self.lists_of(None) if self.has_gallery else []

    def lists_of(self, rows: np.ndarray | None, top: int | None = None) -> list[RankList]:
        """Rank lists of some queries by their row numbers; None: all, `predict.top` long."""
        predict = self.config.predict
        return rank_lists(
            self.features,
            self.crops,
            top=top or predict.top,
            same_camera=predict.same_camera,
            distance=predict.distance,
            rerank=self.reranker,
            engine=predict.faiss,
            rows=rows,
        )

    @property
    def methods(self) -> dict[str, Ranking]:
        """Name of the method -> its ranking, the model first."""
        found = {
            "model": self.ranking,
            "re-ranked": self.reranked,
            "colour histogram": self.baseline,
        }
        return {name: ranking for name, ranking in found.items() if ranking is not None}


def refuse_unmatched(scored: Scored) -> None:
    """Make sure that there is something to score.

    Raises:
        DataError: No query has a match in the gallery.
    """
    if not scored.ranking.valid.any():  # an empty gallery has been refused by now
        msg = (
            f"none of the {len(scored.ranking.rows)} queries has a gallery image of its person "
            "under another camera, so nothing can be scored; use zoo predict"
        )
        raise DataError(msg)


def metrics(scored: Scored) -> dict[str, float]:
    """CMC, mAP and mINP of valid queries, of re-ranking and of the baseline, and counts."""
    refuse_unmatched(scored)
    found: dict[str, float] = {}
    for name, ranking in scored.methods.items():
        start, kept = _STARTS[name]
        values = ranking.metrics(TOPS)
        found |= {start + key: values[key] for key in kept}
    valid = scored.ranking.valid
    found["queries"] = float(len(valid))
    found["queries_without_match"] = float((~valid).sum())
    found["gallery"] = float(scored.ranking.gallery)
    return found


def all_intervals(scored: Scored) -> dict[str, tuple[float, float]]:
    """95 % intervals, resampled by the identities of the queries."""
    found: dict[str, tuple[float, float]] = {}
    for name, ranking in scored.methods.items():
        start, kept = _STARTS[name]
        part = intervals(
            ranking, scored.crops.persons, tops=TOPS, resamples=_RESAMPLES, seed=scored.config.seed
        )
        found |= {start + key: part[key] for key in kept}
    return found


# -- tables -------------------------------------------------------------------------------------


def all_tables(scored: Scored, facts: Facts) -> list[tuple[str, list[dict[str, Any]]]]:
    """Baseline beside the model, pairs of cameras, protocol, the queries that rank worst."""
    made = [("Beside the baseline", beside(scored))]
    pairs = camera_pairs(scored)
    if pairs:
        made.append(("Rank-1 by camera: queries in rows, gallery in columns", pairs))
    made.append(("How it was scored", [protocol(scored, facts)]))
    made.append(("Queries that rank worst", worst(scored)))
    return made


def beside(scored: Scored) -> list[dict[str, Any]]:
    """One row a method."""
    return [
        {"method": name} | {k: round(ranking.metrics(TOPS)[k], 4) for k in _ORDER}
        for name, ranking in scored.methods.items()
    ]


def camera_pairs(scored: Scored) -> list[dict[str, Any]]:
    """Rank-1 of one camera's queries among the gallery images of another one.

    The gallery of a cell is one camera's, so cells are easier than the whole and can't be
    averaged to it. Empty where no query of the pair has a match; nothing with too many cameras.
    """
    roles, cameras = np.asarray(scored.crops.roles), np.asarray(scored.crops.cameras)
    persons = np.asarray(scored.crops.persons)
    seen = [
        sorted(set(cameras[roles == role]) - {""}, key=names.order) for role in ("query", "gallery")
    ]
    if not all(1 < len(part) <= _MOST_CAMERAS for part in seen):
        return []
    rows = []
    for mine in seen[0]:
        row: dict[str, Any] = {"camera": mine}
        for other in seen[1]:
            chosen = ((roles == "query") & (cameras == mine)) | (
                (roles == "gallery") & (cameras == other)
            )
            at = np.flatnonzero(chosen)
            part = evaluate(
                scored.features[torch.from_numpy(at)], persons[at], cameras[at], roles[at]
            )
            good = bool(part.valid.any())
            row[other] = round(float(part.cmc(1)[0]), 3) if good else None
        rows.append(row)
    return rows


def protocol(scored: Scored, facts: Facts) -> dict[str, Any]:
    """What a reader must know to compare the figures with others."""
    crops, predict, valid = scored.crops, scored.config.predict, scored.ranking.valid
    roles, persons = np.asarray(crops.roles), np.asarray(crops.persons)
    known = roles == "gallery"
    blind = [r for r in scored.records if int(r.values.get("embedded", 0)) < 0]
    told: dict[str, Any] = {
        "queries": len(valid),
        "without a match": int((~valid).sum()),
        "gallery": scored.ranking.gallery,
        "distractors": int((persons[known] == names.DISTRACTOR).sum()),
        "people in it": len(set(persons[known]) - {names.DISTRACTOR, ""}),
        "left out": "same person and camera",
        "flip averaged": "yes" if predict.flip_average else "no",
    }
    if scored.config.model.camera in ("camera", "camera+view") and facts.get("cameras"):
        told["mean camera embedding"] = f"{len(blind)} of {len(scored.records)} images"
    if scored.reranker:
        told["re-ranking"] = f"k1 {predict.k1}, k2 {predict.k2}, lambda {predict.lam}"
    tied = int(scored.ranking.tied.sum())
    if tied:
        told["queries with ties"] = tied
    return told


def worst(scored: Scored) -> list[dict[str, Any]]:
    """The valid queries with the lowest average precision, lowest first."""
    ranking = scored.ranking
    return [
        {
            "query": scored.records[ranking.rows[place]].id,
            "ap": round(float(ranking.ap[place]), 4),
            "first match at": int(ranking.first[place]),
            "last match at": int(ranking.last[place]),
            "matches": int(ranking.matches[place]),
        }
        for place in by_precision(ranking)[:_WORST]
    ]


def by_precision(ranking: Ranking) -> list[int]:
    """Places of the valid queries, lowest average precision first; of equals the earlier one."""
    order = np.argsort(np.where(ranking.valid, ranking.ap, np.inf), kind="stable")
    return [int(i) for i in order[: int(ranking.valid.sum())]]


def examples(ranking: Ranking) -> list[tuple[str, int]]:
    """Queries to show, by average precision: the two worst, a median one, the best.

    Returns:
        What it is, and its place; none twice.
    """
    order = by_precision(ranking)
    if len(order) < 4:
        return [("", place) for place in order]
    return [
        ("worst", order[0]),
        ("second worst", order[1]),
        ("median", order[len(order) // 2]),
        ("best", order[-1]),
    ]


def rows(scored: Scored) -> list[dict[str, Any]]:
    """One row a query, with its nearest gallery image and, where people are known, its ranks."""
    crops = scored.crops
    nearest = {one.query.id: one for one in scored.lists}
    places = {}
    if scored.known:
        places = {scored.records[row].id: i for i, row in enumerate(scored.ranking.rows)}
    made = []
    for i, record in enumerate(scored.records):
        if crops.roles[i] != "query":
            continue
        crop = crops.at(i)
        row: dict[str, Any] = {"id": record.id, "person": crop.person, "camera": crop.camera}
        if record.id in nearest:
            first = nearest[record.id].places[:1]
            row |= {
                "nearest": first[0].crop.id if first else "",
                "nearest_person": first[0].crop.person if first else "",
                "distance": first[0].distance if first else None,
                "verdict": first[0].verdict if first else "",
            }
        if record.id in places:
            place = places[record.id]
            valid = bool(scored.ranking.valid[place])
            row |= {
                "ap": float(scored.ranking.ap[place]) if valid else None,
                "first_match": int(scored.ranking.first[place]) if valid else None,
                "matches": int(scored.ranking.matches[place]),
            }
        made.append(row)
    return made
