"""Whether attention finds lesions: FROC over the records of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.domains.medical.wsi_mil.froc import Froc, Hits, detections, froc, hits_of
from zoo.task import Metrics, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lesion_froc(records: Sequence[Record], radius: float) -> Froc | None:
    """FROC of attention against annotated lesions.

    A patch scores the probability of the classes whose slides have lesions, times its attention
    as a share of the slide's largest: the best patch of a slide scores that probability. Counted
    are annotated slides and, as free of lesions, slides of classes without any; a slide without
    annotation whose class has lesions is left out.

    Args:
        records: Of one split, with `lesion`, `lesions` and `side` where a slide is annotated.
        radius: A detection replaces weaker ones within this many patch edges.

    Returns:
        The curve; None if there is no lesion to find.
    """
    marked = [r for r in records if int(r.values.get("lesions", 0)) > 0]
    if not marked:
        return None
    classes = sorted({int(r.values["label"]) for r in marked} - {-1})
    hits = []
    for record in records:
        free = int(record.values["label"]) not in (-1, *classes)
        if "coords" in record.values and ("lesions" in record.values or free):
            hits.append(_hits(record, classes, radius))
    return froc(hits)


def _hits(record: Record, classes: Sequence[int], radius: float) -> Hits:
    values = record.values
    attention = values["attention"].astype(np.float64)
    probabilities = values["probabilities"]
    # Lesions on slides of unknown class alone leave attention to speak for itself.
    chance = float(probabilities[list(classes)].sum()) if classes else 1.0
    scores = chance * attention / attention.max()
    side = float(values["side"])
    centres = values["coords"].astype(np.float64) + side / 2
    chosen = detections(centres, scores, radius * side)
    lesion = values.get("lesion", np.zeros(len(scores), dtype=np.int32))
    return hits_of(lesion[chosen], int(values.get("lesions", 0)), scores[chosen])


def froc_metrics(curve: Froc) -> Metrics:
    """`froc` and the sensitivity at each operating point, as `froc_at_0_25`."""
    at = {f"froc_at_{point:g}".replace(".", "_"): v for point, v in curve.at.items()}
    return {"froc": curve.score} | at


def froc_table(curve: Froc) -> tuple[str, list[dict[str, Any]]]:
    """The operating points as a table."""
    title = f"Lesions found: {curve.lesions} lesions, {curve.slides} slides, CAMELYON16's FROC"
    rows: list[dict[str, Any]] = [
        {"false alarms a slide": f"{point:g}", "sensitivity": value}
        for point, value in curve.at.items()
    ]
    return title, [*rows, {"false alarms a slide": "mean", "sensitivity": curve.score}]


def froc_figure(curve: Froc) -> Figure:
    """Sensitivity against false alarms a slide, with the operating points marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    points = list(curve.at)
    grid = np.geomspace(points[0] / 2, points[-1] * 2, 400)
    # From where on there is no further detection the curve is only carried on.
    known = grid <= max(float(curve.false_alarms[-1]), grid[0])
    line = np.interp(grid, curve.false_alarms, curve.sensitivity)
    axes.plot(grid[known], line[known], color="#1f5fa8")
    axes.plot(grid[~known], line[~known], color="#1f5fa8", ls=":")
    axes.plot(points, list(curve.at.values()), "o", color="#1f5fa8", ms=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, ["1/4", "1/2", "1", "2", "4", "8"])
    axes.set(ylim=(-0.02, 1.02), xlabel="false alarms a slide", ylabel="share of lesions found")
    axes.set_title(f"FROC, {curve.lesions} lesions, mean {curve.score:.3f}", fontsize=11)
    return figure
