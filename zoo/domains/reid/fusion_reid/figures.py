"""Pictures of a split: CMC curve, distances of same and different people, attention over crops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo import files
from zoo.domains.reid.fusion_reid.ranking import Words, pair_counts
from zoo.domains.reid.fusion_reid.ranklists import Crops, Load, picture
from zoo.domains.reid.fusion_reid.scoring import Scored, examples
from zoo.drawing import blank, plain, shortened
from zoo.privacy import alias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The model, what re-ranking makes of it, the baseline: told apart in grey print by their lines.
_LINES = {
    "model": ("#1f5fa8", "-"),
    "re-ranked": ("#3a8f4f", "--"),
    "colour histogram": ("#6b6f76", ":"),
}
_SAME, _OTHER = "#1f5fa8", "#d1661b"
_MAPS = (("cnn_map", "CNN"), ("transformer_map", "transformer"))
_NAME = 26  # characters of a name above a picture
_RANKS = 20
_LISTED = 12  # wide enough for the report to give the picture the width of the page
_LUMA = (0.299, 0.587, 0.114)
_TALL = 1.9  # inches of a crop in the attention picture


def all_figures(scored: Scored, load: Load) -> Iterator[tuple[str, Figure]]:
    """`cmc`, `distances`, `rank_lists` and `attention`, each where the records allow it.

    Args:
        scored: A split that was ranked.
        load: Reads a crop's pixels.
    """
    if not scored.known:
        return
    ranking, crops = scored.ranking, scored.crops
    top = min(_RANKS, ranking.gallery)
    curves = {name: found.cmc(top) for name, found in scored.methods.items()}
    yield "cmc", cmc(curves, int(ranking.valid.sum()))
    yield "distances", distances(*pair_counts(scored.features, *crops_columns(crops)))
    chosen = examples(ranking)
    at = ranking.rows[[place for _, place in chosen]]
    lists = {one.query.id: one for one in scored.lists_of(np.sort(at), _LISTED)}
    words = ", ".join(word for word, _ in chosen if word)
    title = f"by average precision: {words}" if words else ""
    yield "rank_lists", picture([lists[scored.records[row].id] for row in at], load, title)
    seen = attention_rows(scored)
    if seen:
        yield "attention", attention(seen)


def crops_columns(crops: Crops) -> tuple[Words, Words, Words]:
    """Persons, cameras and roles of crops."""
    return crops.persons, crops.cameras, crops.roles


def attention_rows(scored: Scored) -> list[tuple[str, Mapping[str, np.ndarray]]]:
    """Pictured queries, lowest average precision first, with what to write above each."""
    precision = {
        scored.records[row].id: float(ap)
        for row, ap in zip(scored.ranking.rows, scored.ranking.ap, strict=True)
    }
    shown = [r for r in scored.records if "preview" in r.values and r.id in precision]
    shown.sort(key=lambda r: precision[r.id])
    persons = [plain(shortened(str(r.values["person"]), 8, keep_end=True)) for r in shown]
    return [
        (f"id {person}, AP {precision[r.id]:.2f}", r.values)
        for person, r in zip(persons, shown, strict=True)
    ]


def cmc(curves: Mapping[str, np.ndarray], queries: int) -> Figure:
    """Share of queries whose first match is among the first k, over k.

    Args:
        curves: Name -> (K,) shares in [0, 1] for k = 1, 2, …, K.
        queries: Number of queries behind them.
    """
    figure, axes = blank(5.2, 3.8)
    for name, values in curves.items():
        colour, line = _LINES.get(name, ("#8a4fa3", "-."))
        label = f"{name}, rank-1 {values[0]:.3f}"
        axes.plot(np.arange(1, len(values) + 1), values, line, color=colour, lw=1.6, label=label)
        axes.plot([1], values[:1], "o", color=colour, ms=4)
    lowest = min(float(v[0]) for v in curves.values())
    axes.set(xlabel="rank k", ylabel="queries with a match among the first k")
    axes.set_ylim(max(0.0, lowest - 0.1), 1.01)
    longest = max(len(v) for v in curves.values())
    axes.set_xticks([k for k in (1, 5, 10, 15, 20, 30, 40, 50) if k <= max(5, longest)])
    axes.grid(lw=0.4, color="#dddddd")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_title(f"CMC of {queries} queries", fontsize=10)
    return figure


def distances(same: np.ndarray, other: np.ndarray, edges: np.ndarray) -> Figure:
    """How far images of one person under two cameras lie apart, and how far those of two people.

    Args:
        same: (K,) counts of pairs of the same person, cameras different.
        other: (K,) counts of pairs of different people.
        edges: (K + 1,) borders of the bins, Euclidean distance of unit-length embeddings.
    """
    figure, axes = blank(5.2, 3.4)
    middle = (edges[1:] + edges[:-1]) / 2
    shares = []
    parts = (
        ("same person, other camera", same, _SAME),
        ("different people", other, _OTHER),
    )
    for name, counts, colour in parts:
        share = counts / max(1, counts.sum())
        shares.append(share)
        mean = float((share * middle).sum())
        label = f"{name}: {int(counts.sum()):,} pairs, mean {mean:.2f}"
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(share, edges, color=colour, lw=1.2, label=label)
    overlap = float(np.minimum(*shares).sum())
    used = np.flatnonzero(shares[0] + shares[1])
    if len(used):
        axes.set_xlim(edges[used[0]], edges[used[-1] + 1])
    axes.set(xlabel="distance of unit-length embeddings", ylabel="share of pairs")
    axes.set_ylim(0, None)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    axes.set_title(f"the two overlap by {overlap:.1%}", fontsize=10)
    axes.margins(y=0.35)
    axes.set_ylim(0, 1.35 * max(float(s.max()) for s in shares))
    return figure


# -- attention ----------------------------------------------------------------------------------


def attention(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Crops with what each branch gave to the other one: crop, CNN, transformer; three a row.

    Args:
        rows: A title and the values `preview` (h, w, 3) uint8 and, where the model has the
            branch, `cnn_map` and `transformer_map` (h', w') of non-negative weights.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    drawn = [name for name, _ in _MAPS if any(name in values for _, values in rows)]
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    wide = max(v["preview"].shape[1] / v["preview"].shape[0] for _, v in rows)
    parts = 1 + len(drawn)
    size = (columns * (parts * wide * _TALL + 0.25), lines * (_TALL + 0.55) + 0.3)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04, wspace=0.0, hspace=0.02)
    figure = Figure(figsize=size, layout=tight)
    cells = figure.subplots(lines, columns * parts, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for number, (title, values) in enumerate(rows):
        line, column = divmod(number, columns)
        draw_attention(cells[line][column * parts : (column + 1) * parts], values, title)
    figure.supxlabel(
        "left to right: image" + "".join(f", {word} tokens" for n, word in _MAPS if n in drawn),
        fontsize=8,
        color="#6b6f76",
    )
    return figure


def draw_attention(
    cells: Sequence[Axes], values: Mapping[str, np.ndarray], title: str = ""
) -> None:
    """A crop and its maps in one axes each, as many as there are axes."""
    crop = values["preview"]
    height, width = crop.shape[:2]
    maps = [values[name] for name, _ in _MAPS if name in values]
    for place, axes in enumerate(cells):
        if place > len(maps):
            continue
        # Colours under a coloured map would be read as attention.
        grey = crop if not place else crop @ np.array(_LUMA)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        if place:
            found = maps[place - 1].astype(np.float64)
            top = found.max() or 1.0
            axes.imshow(
                found / top,
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.55,
                extent=(0, width, height, 0),
                interpolation="bilinear",
            )
        axes.set(xlim=(0, width), ylim=(height, 0))
    if title:
        cells[0].set_title(title, fontsize=7, loc="left", pad=2)


def write_attention(path: Path, values: Mapping[str, np.ndarray], name: str) -> Path:
    """The crop called `name` with the maps of both branches as a PNG file."""
    title = plain(shortened(name, _NAME, keep_end=True))
    figure = attention([(title, values)])
    files.write_whole(path, partial(figure.savefig, dpi=110, bbox_inches="tight"))
    return path


def file_stem(name: str) -> str:
    """An id as the name of a file; where something had to go it stays unique by its alias."""
    inner = name.partition("/")[2] or name
    plain = re.sub(r"[^\w.-]", "_", inner.removesuffix(".jpg")).strip("._")[:120]
    return plain if f"{plain}.jpg" == inner else f"{plain}-{alias(name)}"
