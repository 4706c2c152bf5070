"""Pictures of a split: ROC, confusion matrix, attention concentration, attention over the slide.

Slides are named by a short alias, since file names often hold patient names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoo.domains.medical.decision_figures import draw_confusion, draw_roc, finish_roc
from zoo.drawing import COLOURS, blank, short_name
from zoo.privacy import alias
from zoo.task import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure

_MOST_SLIDES = 6


def all_figures(records: Sequence[Record], classes: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Every picture that the records allow, with its name."""
    labels = np.array([int(r.values["label"]) for r in records])
    if (labels >= 0).all():
        probabilities = np.stack([r.values["probabilities"] for r in records])
        yield "roc", roc(labels, probabilities, classes)
        yield "confusion", confusion(labels, probabilities, classes)
    yield "attention_concentration", concentration(records, classes)
    spatial = [r for r in records if "coords" in r.values and int(r.values["instances"]) > 1]
    if spatial:
        yield "attention_over_coords", over_coords(spatial, classes)


def roc(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Figure:
    """ROC curves, one class against the rest; for two classes the second one's only."""
    figure, axes = blank(4.4, 4.2)
    for c in [1] if len(classes) == 2 else range(len(classes)):
        draw_roc(axes, labels, probabilities, classes, c)
    title = f"ROC, {len(labels)} slides"
    finish_roc(axes, title, false="false positive rate", true="true positive rate")
    return figure


def confusion(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of true (rows) against predicted classes (columns), shaded by share of the row."""
    figure, axes = blank(1.6 + 0.9 * len(classes), 1.4 + 0.8 * len(classes))
    draw_confusion(axes, labels, probabilities, classes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title("slides", fontsize=11)
    return figure


def concentration(records: Sequence[Record], classes: Sequence[str]) -> Figure:
    """How many instances hold 90 % of the attention, against the size of the bag."""
    figure, axes = blank(4.8, 4.0)
    sizes = np.array([int(r.values["instances"]) for r in records])
    held = np.array([int(r.values["hold_90"]) for r in records])
    labels = np.array([int(r.values["label"]) for r in records])
    for c in np.unique(labels):
        mine = labels == c
        name = short_name(classes[c]) if c >= 0 else "unknown"
        axes.scatter(
            sizes[mine], held[mine], s=16, alpha=0.7, color=COLOURS[c % len(COLOURS)], label=name
        )
    top = max(int(sizes.max()), 2)
    axes.plot([1, top], [0.9, 0.9 * top], color="#999999", lw=0.8, ls="--", label="even attention")
    axes.set(xscale="log", yscale="log", xlabel="instances in the bag")
    axes.set_ylabel("instances that hold 90 % of the attention")
    axes.set_title(f"attention concentration, median {np.median(held / sizes):.1%}", fontsize=11)
    axes.legend(fontsize=8, frameon=False)
    return figure


def over_coords(records: Sequence[Record], classes: Sequence[str]) -> Figure:
    """Attention of each tile at its place on the slide, for a few slides of every class.

    Coloured by rank within the slide, since the values of a concentrated slide differ by orders
    of magnitude; annotated tiles, where there are any, have a red edge.
    """
    from matplotlib.figure import Figure

    chosen = _representative(records)
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    drawn = None
    for axes, record in zip(grid.flat, chosen, strict=False):
        drawn = _tiles(axes, record, classes)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_visible(False)
    if drawn is not None:
        figure.colorbar(
            drawn, ax=list(grid.flat), label="rank of attention (1: highest); red edge: annotated"
        )
    return figure


def _tiles(axes: Axes, record: Record, classes: Sequence[str]) -> PatchCollection:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    weights = record.values["attention"]
    order = weights.argsort()
    rank = np.empty(len(weights))
    rank[order] = np.linspace(0, 1, len(weights))
    corners = record.values["coords"][order]
    side = _tile_side(corners)
    annotated = record.values.get("annotated", np.zeros(len(order)))[order] > 0
    drawn = PatchCollection(
        [Rectangle((x, y), side, side) for x, y in corners],
        cmap="viridis",
        edgecolors=["#d03030" if a else "none" for a in annotated],
        linewidths=1.2,
    )
    drawn.set_array(rank[order])
    drawn.set_clim(0, 1)
    axes.add_collection(drawn)
    axes.set_xlim(corners[:, 0].min(), corners[:, 0].max() + side)
    axes.set_ylim(corners[:, 1].max() + side, corners[:, 1].min())
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    label = int(record.values["label"])
    truth = f"true {short_name(classes[label])}\n" if label >= 0 else ""
    guess = int(record.values["probabilities"].argmax())
    share = float(record.values["probabilities"][guess])
    title = f"slide {alias(record.id)}, {len(weights)} tiles\n{truth}"
    axes.set_title(f"{title}predicted {short_name(classes[guess])} {share:.2f}", fontsize=8)
    return drawn


def _tile_side(corners: np.ndarray) -> float:
    """Edge of a tile in level-0 pixels: the smallest step of the grid."""
    steps = np.concatenate([np.diff(np.unique(corners[:, axis])) for axis in (0, 1)])
    return float(steps.min()) if len(steps) else 1.0


def _representative(records: Sequence[Record]) -> list[Record]:
    """A few slides, the classes in turn, the middling sizes first."""
    sizes = np.array([int(r.values["instances"]) for r in records])
    middle = np.median(sizes)
    queues: dict[int, list[Record]] = {}
    for i in np.argsort(np.abs(np.log(sizes / middle)), kind="stable"):
        queues.setdefault(int(records[i].values["label"]), []).append(records[i])
    chosen: list[Record] = []
    while len(chosen) < _MOST_SLIDES and any(queues.values()):
        for label in sorted(queues):
            if queues[label] and len(chosen) < _MOST_SLIDES:
                chosen.append(queues[label].pop(0))
    return chosen
