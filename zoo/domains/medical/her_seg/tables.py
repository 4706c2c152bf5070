"""Tables of a split, and rows of a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.figures import counted, dice_of, named
from zoo.domains.medical.her_seg.inference import Way
from zoo.domains.medical.her_seg.metrics import EMPTY, MEASURES, nan_mean
from zoo.task import Record

_ROWS = 50
_DECIMALS = 4
_EMPTY_MEANS = {
    "both_empty": "neither has any: dice, iou, boundary_f 1; no distance",
    "prediction_empty": "missed whole: dice, iou, boundary_f 0; no distance",
    "truth_empty": "invented: dice, iou, boundary_f 0; no distance",
}


def all_tables(
    records: Sequence[Record], classes: Sequence[str], config: Config
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """How it was scored, classes, empty masks, smoothing, the units with the smallest Dice."""
    scored = [r for r in records if "dice" in r.values]
    if not scored:
        return
    yield "How it was scored", [protocol(scored, config)]
    if len(classes) > 1:
        yield "Classes", by_class(scored, classes)
    empty = _empty(scored, classes)
    if empty:
        yield "Empty masks (counted class by class; of clips: frame by frame)", empty
    smoothing = smoothing_rows(scored)
    if smoothing:
        yield "Smoothing over frames", smoothing
    worst = sorted(scored, key=lambda r: (np.nan_to_num(dice_of(r), nan=2.0), r.id))
    more = f", the first {_ROWS} of {len(worst)}" if len(worst) > _ROWS else ""
    yield f"Smallest Dice first{more}", [_score_row(r, named(r)) for r in worst[:_ROWS]]


def protocol(records: Sequence[Record], config: Config) -> dict[str, Any]:
    """What a reader must know to compare the figures with others."""
    native = config.predict.native or config.data.fit == "tiles"
    side = config.model.image_size
    millimetres = sum("spacing" in r.values for r in records)
    unit = {0: "pixels", len(records): "mm"}.get(millimetres, "mm where known, else pixels")
    told: dict[str, Any] = {
        counted(records): len(records),
        "pictures were": Way.of(config).told(),
        "scored at": "their own size" if native else f"{side} x {side}",
        "hd95, asd in": unit,
        "threshold": config.predict.threshold,
    }
    kinds = sorted({str(r.values["prompts"]) for r in records if "prompts" in r.values})
    told["prompts"] = "; ".join(kinds) or "none"
    if "truth" in told["prompts"]:
        told["prompts"] += " (the model was given hints drawn from the true masks)"
    if any(str(r.values.get("kind")) == "clip" for r in records):
        momentum = config.video.momentum
        told["frames"] = f"smoothed, momentum {momentum:g}" if momentum else "each for itself"
    return told


def by_class(records: Sequence[Record], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Means of every measure, one row a class."""
    rows = []
    for i, name in enumerate(classes):
        row: dict[str, Any] = {"class": name}
        for measure in MEASURES:
            column = [float(r.values[measure][i]) for r in records if measure in r.values]
            if column:
                row[measure] = round(float(nan_mean(np.array(column))), _DECIMALS)
        rows.append(row)
    return rows


def _empty(records: Sequence[Record], classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(classes):
        for case in EMPTY:
            count = sum(float(r.values[case][i]) for r in records if case in r.values)
            if count:
                rows.append({"class": name, "masks": int(count), "case": _EMPTY_MEANS[case]})
    return rows


def smoothing_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What `video.momentum` changed in each clip."""
    rows = []
    for record in records:
        values = record.values
        if "steadiness_single" not in values:
            continue
        row: dict[str, Any] = {
            "clip": named(record),
            "IoU of frames in a row, each for itself": _rounded(values["steadiness_single"]),
            "smoothed": _rounded(values["steadiness"]),
        }
        if "dice_single" in values:
            row["Dice, each for itself"] = _rounded(nan_mean(values["dice_single"]))
            row["Dice, smoothed"] = _rounded(dice_of(record))
        rows.append(row)
    return rows


def _rounded(value: Any) -> float:
    return round(float(value), _DECIMALS)


def _score_row(record: Record, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": name}
    for measure in MEASURES:
        if measure in record.values:
            row[measure] = _rounded(nan_mean(np.asarray(record.values[measure], np.float64)))
    for measure in ("object_f1", "object_ap"):
        if measure in record.values:
            row[measure] = _rounded(record.values[measure])
    return row


def prediction_rows(records: Sequence[Record], classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row a unit: its size, how much of it each class takes, scores where there is a truth."""
    rows = []
    for record in records:
        values = record.values
        row: dict[str, Any] = {"id": record.id, "alias": named(record)}
        for name in ("kind", "pictures", "height", "width"):
            if name in values:
                row[name] = values[name].item()
        shares = np.asarray(values.get("share", ()))
        row |= {f"share_{c}": float(s) for c, s in zip(classes, shares, strict=False)}
        for name in ("prompts", "steadiness", "steadiness_single", "milliseconds", "loss"):
            if name in values:
                row[name] = values[name].item()
        rows.append(row | {k: v for k, v in _score_row(record, "").items() if k != "id"})
    return rows
