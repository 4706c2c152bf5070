"""Pictures of a split: ROC with the operating point, confusion, reliability, attention, masks.

Radiographs are named by a short alias, since file names often hold patient ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.domains.medical.decision_figures import draw_chance, draw_confusion, draw_roc, finish_roc
from zoo.domains.medical.medusa.explain import CAPTUM, have_captum, overlay, resized, unit
from zoo.domains.medical.medusa.metrics import reliability, wilson
from zoo.drawing import COLOURS, blank, short_name
from zoo.privacy import alias
from zoo.task import NOTICE, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_RADIOGRAPHS = 4


def all_figures(
    records: Sequence[Record],
    classes: Sequence[str],
    positive: int,
    point: Mapping[str, Any] | None,
    alpha: float = 0.2,
) -> Iterator[tuple[str, Figure]]:
    """Every picture that the records allow, with its name.

    Args:
        records: A split's records; those without a label are only looked at for their maps.
        classes: Names in index order.
        positive: Index of the class the operating point is about.
        point: The operating point from validation, if there is one.
        alpha: Strength of the overlays.
    """
    known = [r for r in records if int(r.values["label"]) >= 0]
    if known:
        labels = np.array([int(r.values["label"]) for r in known])
        probabilities = np.stack([r.values["probabilities"] for r in known])
        yield "roc", roc(labels, probabilities, classes, positive, point)
        yield "confusion", confusion(labels, probabilities, classes)
        yield "reliability", reliability_plot(labels, probabilities, classes, positive)
    shown = [r for r in records if "preview" in r.values]
    if shown:
        yield "attention", attention(shown, classes, positive, alpha)


def mask_figures(records: Sequence[Record], alpha: float = 0.2) -> Iterator[tuple[str, Figure]]:
    """The body's lungs beside the true ones, of a few radiographs."""
    shown = [r for r in records if "preview" in r.values]
    if shown:
        yield "masks", masks(shown, alpha)


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = blank(width, height)
    _notice(figure)
    return figure, axes


def _notice(figure: Figure) -> None:
    figure.supxlabel(NOTICE, fontsize=7, color="#6b6f76")


def roc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    positive: int,
    point: Mapping[str, Any] | None = None,
) -> Figure:
    """ROC curves of each class against the rest; for two classes that of the positive one.

    The cross is the operating point that validation chose, as it turns out on these radiographs.
    """
    figure, axes = _blank(4.4, 4.4)
    for c in [positive] if len(classes) == 2 else range(len(classes)):
        curve = draw_roc(axes, labels, probabilities, classes, c, every=True)
        if curve is not None and point is not None and c == positive:
            # The last cut that is not below the threshold: cuts fall along the curve.
            at = int(np.sum(curve.cuts >= point["threshold"])) - 1
            words = f"threshold {point['threshold']:.3f} of validation"
            place = (curve.false[at], curve.true[at])
            axes.plot(*place, "x", color=curve.colour, ms=9, mew=2, label=words)
    title = f"ROC, {len(labels)} radiographs"
    finish_roc(axes, title, false="1 - specificity", true="sensitivity", size=8)
    return figure


def confusion(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts of true (rows) against predicted classes (columns), shaded by share of the row."""
    figure, axes = _blank(1.9 + 0.9 * len(classes), 1.7 + 0.8 * len(classes))
    draw_confusion(axes, labels, probabilities, classes)
    axes.set(xlabel="predicted (most probable)", ylabel="true")
    axes.set_title("radiographs", fontsize=11)
    return figure


def reliability_plot(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], positive: int
) -> Figure:
    """Observed share against predicted probability, with 95 % Wilson intervals, and how often."""
    found = reliability(labels, probabilities, positive)
    figure, axes = _blank(4.4, 4.4)
    full = np.flatnonzero(found.count)
    seen = found.observed[full]
    ends = np.array([wilson(s, n) for s, n in zip(seen, found.count[full], strict=True)]).reshape(
        -1, 2
    )
    axes.errorbar(
        found.predicted[full],
        seen,
        yerr=np.abs(ends.T - seen),
        fmt="o",
        ms=5,
        lw=1.2,
        capsize=2,
        color=COLOURS[0],
    )
    draw_chance(axes)
    edges = np.linspace(0, 1, len(found.count) + 1)
    bars = 0.18 * found.count / max(1, found.count.max())
    axes.bar(edges[:-1], bars, width=np.diff(edges), align="edge", color="#d9dfe6", zorder=0)
    for i in full:
        axes.text(
            edges[i] + np.diff(edges)[i] / 2, bars[i] + 0.01, str(found.count[i]),
            ha="center", fontsize=6, color="#6b6f76",
        )  # fmt: skip
    what = short_name(classes[positive]) if len(classes) == 2 else "the predicted class"
    axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    axes.set(xlabel=f"predicted probability of {what}", ylabel="observed share")
    axes.set_title(f"reliability, calibration error {found.error:.3f}", fontsize=11)
    return figure


# -- maps over the radiograph -------------------------------------------------------------------


def panels(values: Mapping[str, Any]) -> list[tuple[str, np.ndarray | None]]:
    """What is drawn of a radiograph: a title and a heat map in [0, 1], the radiograph without.

    Args:
        values: Of a record: `preview` (h, w) uint8 and those that are there of `body_map` (t, t)
            uint8, `scale_maps` (n, s, s) uint8 and `gradcam` (c, c).
    """
    shown: list[tuple[str, np.ndarray | None]] = [("radiograph", None)]
    if "body_map" in values:
        # In (0, 1) by itself: stretching it would show a flat map as structure.
        shown.append(("body map", np.asarray(values["body_map"]) / 255))
    for i, heat in enumerate(values.get("scale_maps", ())):
        shown.append((f"scale {i + 1}", unit(heat)))
    if "gradcam" in values:
        shown.append(("Grad-CAM", unit(values["gradcam"])))
    return shown


def draw_panels(axes: Sequence[Axes], values: Mapping[str, Any], alpha: float) -> None:
    """Draw a radiograph and its maps, one in each of `axes`, in the radiograph's own shape."""
    base = np.asarray(values["preview"]) / 255
    size = (base.shape[0], base.shape[1])
    for place, (title, heat) in zip(axes, panels(values), strict=False):
        if heat is None:
            place.imshow(base, cmap="gray", vmin=0, vmax=1)
            if "lungs" in values:
                edge = resized(np.asarray(values["lungs"], np.float32), size)
                if edge.min() < 0.5 < edge.max():
                    place.contour(edge, [0.5], colors="#3ad0ff", linewidths=0.8)
        else:
            place.imshow(overlay(base, resized(heat, size), alpha))
        place.set_title(title, fontsize=8)


def attention(
    records: Sequence[Record], classes: Sequence[str], positive: int, alpha: float
) -> Figure:
    """Radiograph, body map, scale maps and Grad-CAM of a few radiographs, the classes in turn.

    The line around the lungs is the true mask, where there is one.
    """
    from matplotlib.figure import Figure

    chosen = representative(records)
    columns = max(len(panels(r.values)) for r in chosen)
    figure = Figure(figsize=(1.55 * columns + 0.4, 1.85 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for row, record in zip(grid, chosen, strict=True):
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
        draw_panels(row, record.values, alpha)
        row[0].set_ylabel(caption(record, classes, positive), fontsize=7)
    note = "" if any("gradcam" in r.values for r in chosen) or have_captum() else f"  {CAPTUM}"
    figure.suptitle(f"where the model looked; colour = strength, blue to red{note}", fontsize=9)
    _notice(figure)
    return figure


def caption(record: Record, classes: Sequence[str], positive: int) -> str:
    """Alias, truth and prediction of a radiograph in three lines."""
    values = record.values
    label, guess = int(values["label"]), int(values["probabilities"].argmax())
    truth = f"true {short_name(classes[label], 14)}\n" if label >= 0 else ""
    chance = float(values["probabilities"][positive])
    lungs = float(values.get("cam_in_lungs", np.nan))
    inside = "" if np.isnan(lungs) else f"\nCAM in lungs {lungs:.0%}"
    said = f"said {short_name(classes[guess], 14)}"
    sure = f"p({short_name(classes[positive], 10)}) {chance:.2f}"
    return f"{alias(record.id)}\n{truth}{said}\n{sure}{inside}"


def representative(records: Sequence[Record], most: int = _MOST_RADIOGRAPHS) -> list[Record]:
    """A few records: right and wrong ones of each class in turn, wrong ones first."""
    queues: dict[tuple[bool, int], list[Record]] = {}
    for record in sorted(records, key=lambda r: alias(r.id)):
        label = int(record.values["label"])
        right = int(record.values["probabilities"].argmax()) == label
        queues.setdefault((right, label), []).append(record)
    chosen: list[Record] = []
    while len(chosen) < most and any(queues.values()):
        for key in sorted(queues):
            if queues[key] and len(chosen) < most:
                chosen.append(queues[key].pop(0))
    return chosen


def masks(records: Sequence[Record], alpha: float) -> Figure:
    """Radiograph with the true outline, and the body's map over it, worst Dice first."""
    from matplotlib.figure import Figure

    chosen = sorted(records, key=lambda r: float(r.values["dice"]))[:_MOST_RADIOGRAPHS]
    figure = Figure(figsize=(1.9 * len(chosen) + 0.4, 4.4), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    for column, record in zip(grid.T, chosen, strict=True):
        for axes in column:
            axes.axis("off")
        draw_panels(column, record.values, alpha)
        column[0].set_title(alias(record.id), fontsize=8)
        column[1].set_title(f"body map, Dice {float(record.values['dice']):.3f}", fontsize=8)
    figure.suptitle(f"lungs, {len(chosen)} of {len(records)}; line = true mask", fontsize=10)
    _notice(figure)
    return figure
