"""Pictures and tables of a split: examples by error, precision and recall, F by threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.metrics import mean_curves
from zoo.domains.saliency.rgbd_sod.picking import picked
from zoo.drawing import COLOURS, short_name
from zoo.task import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (*COLOURS, "#2a9d9d")
_NAME = 24  # characters of a method or data set
STYLES = ("-", "--", "-.", ":")
_PREVIEWS = ("preview_rgb", "preview_depth", "preview_truth", "preview_maps")
_SIDES = ("map", "2nd side map", "3rd side map", "4th side map")
_ROWS = 50
_DECIMALS = 4
_STERE = {797: "STERE-797, the paper's", 1000: "STERE-1000, the whole set"}

Curves = Mapping[str, np.ndarray]


def all_figures(records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    """`examples`, `pr` and `f_threshold`, each where the records allow it."""
    shown = [r for r in records if all(name in r.values for name in _PREVIEWS)]
    if shown:
        yield "examples", examples(shown)
    scored = [r for r in records if "precision" in r.values]
    if scored:
        curves = {"": mean_curves([r.values for r in scored])}
        title = f"{len(scored)} images"
        yield "pr", panels({title: curves}, draw_pr)
        yield "f_threshold", panels({title: curves}, draw_f)


# -- examples -----------------------------------------------------------------------------------


def examples(records: Sequence[Record]) -> Figure:
    """Image, depth, truth, maps and error of the best, middle and worst images by MAE.

    Args:
        records: With `preview_rgb` (h, w, 3), `preview_depth` and `preview_truth` (h, w),
            `preview_maps` (K, h, w), all uint8; `mae` where there is a score.
    """
    from matplotlib.figure import Figure

    chosen = [records[i] for i in picked([float(r.values.get("mae", 0)) for r in records])]
    maps = max(len(r.values["preview_maps"]) for r in chosen)
    heads = ["image", "depth", "truth", *_SIDES[:maps], "error"]
    shapes = [r.values["preview_rgb"].shape for r in chosen]
    heights = [1.7 * h / w for h, w, _ in shapes]
    size = (1.7 * len(heads), sum(heights) + 0.3 * len(chosen) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(chosen), len(heads), squeeze=False, height_ratios=heights)
    for row, record in zip(grid, chosen, strict=True):
        _example(row, record, len(heads))
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=9)
    figure.supxlabel(
        "depth: dark is near; error: |map - truth|, white is none; best, middle, worst by MAE",
        fontsize=8,
    )
    return figure


def _example(row: Sequence[Axes], record: Record, columns: int) -> None:
    values = record.values
    maps = values["preview_maps"]
    blank = [np.full_like(maps[0], 255)] * (columns - 4 - len(maps))
    truth = values["preview_truth"].astype(np.int16)
    error = np.abs(maps[0].astype(np.int16) - _like(truth, maps[0].shape))
    pictures = [values[name] for name in _PREVIEWS[:3]] + [*maps, *blank, error]
    height, width = values["preview_rgb"].shape[:2]
    for place, (axes, picture) in enumerate(zip(row, pictures, strict=True)):
        colours = "gray_r" if place == columns - 1 else "gray"
        # In the frame of the image, since maps scored at 256 x 256 are square.
        axes.imshow(picture, cmap=colours, vmin=0, vmax=255, extent=(0, width, height, 0))
        axes.set_xticks([])
        axes.set_yticks([])
    told = ", ".join(
        f"{word} {float(values[name]):.3f}"
        for word, name in (("MAE", "mae"), ("S", "sm"), ("IoU", "iou"))
        if name in values
    )
    name = short_name(record.id, 34, keep_end=True)
    row[0].set_xlabel(f"{name}\n{told}" if told else name, fontsize=7, loc="left")


def _like(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nearest pixels of a small picture at another size, for when truth and map differ."""
    places = [np.arange(n) * m // n for n, m in zip(shape, values.shape, strict=True)]
    return values[np.ix_(*places)]


# -- curves -------------------------------------------------------------------------------------


def panels(parts: Mapping[str, Mapping[str, Curves]], draw: Any) -> Figure:
    """One panel a data set, one line a method.

    Args:
        parts: Title of the panel -> name of the line -> `precision`, `recall`, `fm`: (256,).
        draw: `draw_pr` or `draw_f`.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    names = list(dict.fromkeys(name for lines in parts.values() for name in lines))
    for axes, (title, lines) in zip(grid.flat, parts.items(), strict=False):
        for name, curves in lines.items():
            place = names.index(name)
            style = STYLES[place // len(_COLOURS) % len(STYLES)]
            draw(axes, curves, color=_COLOURS[place % len(_COLOURS)], ls=style, name=name)
        axes.set_title(short_name(title, _NAME, keep_end=True), fontsize=11)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if any(lines):
            axes.legend(fontsize=8, frameon=False, loc="lower left" if draw is draw_pr else None)
    for axes in list(grid.flat)[len(parts) :]:
        axes.set_visible(False)
    return figure


def draw_pr(axes: Axes, curves: Curves, *, color: str, ls: str, name: str) -> None:
    """Precision over recall of a data set, thresholds 255 to 0."""
    precision, recall = curves["precision"], curves["recall"]
    called = recall > 0  # above the largest value nothing is called, and precision says nothing
    best = float(curves["fm"].max())
    words = f"{short_name(name, _NAME, keep_end=True)}, max F {best:.3f}" if name else None
    axes.plot(recall[called], precision[called], color=color, ls=ls, lw=1.4, label=words)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.grid(lw=0.4, color="#dddddd")


def draw_f(axes: Axes, curves: Curves, *, color: str, ls: str, name: str) -> None:
    """F by threshold of a data set, its maximum marked."""
    fm = curves["fm"][::-1]
    best = int(fm.argmax())
    words = None
    if name:
        words = f"{short_name(name, _NAME, keep_end=True)}, mean F {float(fm.mean()):.3f}"
    axes.plot(np.arange(256), fm, color=color, ls=ls, lw=1.4, label=words)
    axes.plot([best], [fm[best]], "o", ms=4, color=color)
    if not name:
        side = "right" if best > 128 else "left"
        point = (best, fm[best])
        told = f"{fm[best]:.3f} at {best}"
        axes.annotate(told, point, (0, 6), textcoords="offset points", fontsize=8, ha=side)
    axes.set(xlabel="threshold of the 8-bit map", ylabel="F, beta squared 0.3")
    axes.set(xlim=(0, 255), ylim=(0, 1.03))
    axes.grid(lw=0.4, color="#dddddd")


# -- tables -------------------------------------------------------------------------------------


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row an image, the largest error first; scalars and the best points of the curves.

    Images without a truth keep their order.
    """
    made = []
    for record in records:
        values = record.values
        row: dict[str, Any] = {"id": record.id}
        row |= {k: np.asarray(v).item() for k, v in values.items() if np.ndim(v) == 0}
        row |= {f"max_{k}": float(values[k].max()) for k in ("fm", "em") if k in values}
        made.append(row)
    if made and all("mae" in row for row in made):
        made.sort(key=lambda row: -row["mae"])
    return made


def all_tables(
    records: Sequence[Record], config: Config
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """How the images were scored, and those with the largest error."""
    scored = [r for r in records if "mae" in r.values]
    if not scored:
        return
    yield "How it was scored", [protocol(scored, config)]
    columns = ("id", "mae", "sm", "max_fm", "max_em", "wfm", "iou")
    worst = [
        {k: round(row[k], _DECIMALS) if k != "id" else row[k] for k in columns}
        for row in rows(scored)[:_ROWS]
    ]
    more = f", the first {_ROWS} of {len(scored)}" if len(scored) > _ROWS else ""
    yield f"Images by error{more}", worst


def protocol(records: Sequence[Record], config: Config) -> dict[str, Any]:
    """What a reader must know to compare the figures of a data set with others."""
    data = config.data
    name = records[0].id.partition("/")[0]
    side = data.eval_size
    size = "the annotation's size" if side == "native" else f"{side} x {side}"
    told: dict[str, Any] = {"set": name, "images": len(records), "scored at": size}
    if name == "STERE":
        told["variant"] = _STERE.get(len(records), f"{len(records)} images, neither 797 nor 1000")
    told["maps"] = "stretched to 0..1 each"
    if config.predict.foreign is None:
        told["trained on"] = ", ".join(data.train) or "every training folder"
        told["input size"] = config.model.input_size
    return told
