"""Pictures and tables of a split: outlines and errors of the worst, middle and best; scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.domains.medical.her_seg.metrics import nan_mean
from zoo.domains.medical.her_seg.previews import Panel, panels_of
from zoo.drawing import blank, short_name
from zoo.privacy import alias
from zoo.task import NOTICE, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Prediction and truth of a single class; with several, each class has a colour of its own.
_PREDICTED, _TRUE = "#ff9f1c", "#2ec4ff"
_CLASSES = ("#e64b35", "#4dbbd5", "#00a087", "#7e6148", "#f39b7f", "#8491b4", "#dcb400", "#b07aa1")
# Right, invented, missed, another class.
_ERRORS = {
    "right": (0.55, 0.78, 0.58),
    "false positive": (0.90, 0.30, 0.21),
    "missed": (0.20, 0.47, 0.85),
    "wrong class": (0.62, 0.35, 0.72),
}
_TINT = 0.6
_SHOWN = 3
_INCHES = 2.1


def palette() -> list[tuple[int, int, int]]:
    """Colours of the classes from 1 on, as bytes."""
    found = []
    for colour in _CLASSES:
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        found.append((r, g, b))
    return found


def dice_of(record: Record) -> float:
    """Mean Dice over the classes of a unit; NaN without a truth."""
    return float(nan_mean(np.asarray(record.values.get("dice", [np.nan]), np.float64)))


def named(record: Record) -> str:
    """How a unit is called in pictures and the report: file names often name the patient."""
    return alias(record.id)


# -- examples -----------------------------------------------------------------------------------


def all_figures(records: Sequence[Record], classes: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """`examples` and `scores`, each where the records allow it."""
    shown = [r for r in records if "panel_titles" in r.values]
    if shown:
        yield "examples", examples(shown, classes)
    scored = [r for r in records if "dice" in r.values]
    if scored:
        yield "scores", scores(scored, classes)


def chosen(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """The worst, the middle and the best unit by Dice, with a word; without scores the first."""
    known = sorted((r for r in records if not np.isnan(dice_of(r))), key=dice_of)
    if not known:
        return [("", r) for r in records[:_SHOWN]]
    if len(known) == 1:
        return [("", known[0])]
    places = {0: "worst", len(known) // 2: "middle", len(known) - 1: "best"}
    return [(word, known[i]) for i, word in sorted(places.items())]


def examples(records: Sequence[Record], classes: Sequence[str]) -> Figure:
    """Worst, middle and best units: picture, outlines, errors.

    An image is one row of three; a volume has its three planes and a clip a few frames, outlines
    above and errors below.
    """
    from matplotlib.figure import Figure

    rows = [row for word, record in chosen(records) for row in _rows(word, record)]
    columns = max(len(row) for row in rows)
    heights = [max(_height(cell[1]) for cell in row) for row in rows]
    figure = Figure(
        figsize=(_INCHES * columns, _INCHES * sum(heights) + 0.42 * len(rows) + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.axis("off")
    for line, row in zip(grid, rows, strict=True):
        for axes, (what, panel, title) in zip(line, row, strict=False):
            _draw(axes, what, panel, len(classes))
            axes.set_title(title, fontsize=8, loc="left")
    _legend(figure, records, classes)
    return figure


def _height(panel: Panel) -> float:
    height, width = panel.picture.shape[:2]
    return float(min(2.0, height * panel.aspect / width))


def _rows(word: str, record: Record) -> list[list[tuple[str, Panel, str]]]:
    """Cells (what is drawn, panel, title) of one unit."""
    panels = panels_of(record.values)
    told = named(record)
    dice = dice_of(record)
    if not np.isnan(dice):
        told = f"{word}: {told}".removeprefix(": ") + f", Dice {dice:.3f}"
    if len(panels) == 1:
        (panel,) = panels
        row = [("picture", panel, told), ("outlines", panel, "outlines")]
        return [row + ([("errors", panel, "errors")] if panel.truth is not None else [])]
    first = [("outlines", p, p.title) for p in panels]
    first[0] = ("outlines", panels[0], f"{told}\n{panels[0].title}")
    if all(p.truth is None for p in panels):
        return [first]
    return [first, [("errors", p, f"errors, {p.title}") for p in panels]]


def _draw(axes: Axes, what: str, panel: Panel, classes: int) -> None:
    height, width = panel.picture.shape[:2]
    picture = panel.picture
    if what == "errors":
        picture = errors(panel)
    axes.imshow(picture, aspect=panel.aspect, interpolation="nearest")
    if what == "outlines":
        if panel.truth is not None:
            _contours(axes, panel.truth, classes, true=True)
        _contours(axes, panel.labels, classes, true=False)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _contours(axes: Axes, labels: np.ndarray, classes: int, *, true: bool) -> None:
    # With a rim, so that a mask at the edge of the picture is closed.
    padded = np.pad(labels, 1)
    rows, columns = (np.arange(n) - 1 for n in padded.shape)
    for c in range(1, classes + 1):
        mask = padded == c
        if mask.any():
            if classes == 1:
                colour = _TRUE if true else _PREDICTED
            else:
                colour = _CLASSES[(c - 1) % len(_CLASSES)]
            style = "-" if not true or classes == 1 else ":"
            axes.contour(
                columns, rows, mask, [0.5], colors=colour, linewidths=1.0, linestyles=style
            )


def errors(panel: Panel) -> np.ndarray:
    """(h, w, 3) floats: the picture in grey, with what is right, invented and missed in colour."""
    grey = panel.picture.mean(axis=2, keepdims=True) / 255 * 0.75
    shown: np.ndarray = np.repeat(grey, 3, axis=2)
    if panel.truth is None:
        return shown
    found, true = panel.labels, panel.truth
    cases = {
        "right": (found == true) & (true > 0),
        "false positive": (found > 0) & (true == 0),
        "missed": (found == 0) & (true > 0),
        "wrong class": (found > 0) & (true > 0) & (found != true),
    }
    for name, where in cases.items():
        shown[where] = (1 - _TINT) * shown[where] + _TINT * np.array(_ERRORS[name])
    return shown


def _legend(figure: Figure, records: Sequence[Record], classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = [p for r in records for p in panels_of(r.values)]
    with_truth = any(p.truth is not None for p in panels)
    entries: list[Any] = []
    if len(classes) == 1:
        entries.append(Line2D([], [], color=_PREDICTED, label="prediction"))
        if with_truth:
            entries.append(Line2D([], [], color=_TRUE, label="truth"))
    else:
        for i, name in enumerate(classes):
            colour, words = _CLASSES[i % len(_CLASSES)], short_name(name, 26, keep_end=True)
            entries.append(Line2D([], [], color=colour, label=words))
        if with_truth:
            entries.append(Line2D([], [], color="#555555", ls=":", label="truth"))
    if with_truth:
        cases = list(_ERRORS) if len(classes) > 1 else list(_ERRORS)[:3]
        entries += [Patch(color=_ERRORS[case], label=case) for case in cases]
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=min(6, len(entries)),
        fontsize=8,
        frameon=False,
        title=NOTICE,
        title_fontsize=7,
    )


def draw_overlay(panels: Sequence[Panel], classes: Sequence[str]) -> Figure:
    """Outlines over a volume's planes or a clip's frames, for `zoo predict`."""
    from matplotlib.figure import Figure

    heights = max(_height(p) for p in panels)
    figure = Figure(figsize=(2.6 * len(panels), 2.6 * heights + 0.8), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        axes.axis("off")
        _draw(axes, "outlines", panel, len(classes))
        axes.set_title(panel.title, fontsize=8)
    _legend(figure, [], classes)
    return figure


# -- scores -------------------------------------------------------------------------------------


def scores(records: Sequence[Record], classes: Sequence[str]) -> Figure:
    """Dice of every unit, class by class, with the mean."""
    values = np.stack([np.asarray(r.values["dice"], np.float64) for r in records])
    figure, axes = blank(5.2, 1.2 + 0.55 * len(classes))
    rng = np.random.default_rng(0)  # spreads the points, nothing else
    for i in range(len(classes)):
        column = values[:, i]
        height = i + rng.uniform(-0.18, 0.18, len(column))
        colour = _CLASSES[i % len(_CLASSES)]
        axes.plot(column, height, "o", ms=4, alpha=0.55, color=colour, mec="none")
        mean = float(nan_mean(column))
        axes.plot([mean, mean], [i - 0.32, i + 0.32], color="#222222", lw=1.6)
        axes.annotate(f"{mean:.3f}", (mean, i - 0.34), ha="center", va="bottom", fontsize=8)
    axes.set_yticks(
        range(len(classes)), [short_name(c, keep_end=True) for c in classes], fontsize=9
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(len(classes) - 0.4, -0.6), xlabel="Dice")
    axes.set_title(f"{len(records)} {counted(records)}, line: mean", fontsize=10)
    axes.grid(axis="x", lw=0.4, color="#dddddd")
    figure.supxlabel(NOTICE, fontsize=7, color="#6b6f76")
    return figure


def counted(records: Sequence[Record]) -> str:
    """What the units are: images, volumes, clips, or units where they differ."""
    kinds = {str(r.values.get("kind", "unit")) for r in records}
    return f"{kinds.pop()}s" if len(kinds) == 1 else "units"
