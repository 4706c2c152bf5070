"""Attention drawn over the slide: the mean of the branches and each branch beside it.

The official drawing colours attention times the number of patches, clipped at 1, so that all above
average is one colour. That is kept as `official`; by default the colour is the rank within the
slide, as CLAM draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import rankdata

from zoo.task import NOTICE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from zoo.domains.medical.wsi_mil.annotations import Annotation

Scaling = Literal["percentile", "official"]

CAUTION = f"{NOTICE} Attention says where the model looked, not why."

_MEANING = {
    "percentile": "rank of attention within the slide\n(1: most attended patch)",
    "official": "attention x patches x {zoom:g}, clipped at 1\n"
    "(1: {times:.3g} x average attention or more)",
}
_DPI = 100
# Longest side of a panel in inches at least.
_LEAST = 2.5


def scaled(weights: np.ndarray, scaling: Scaling = "percentile", zoom: float = 1.0) -> np.ndarray:
    """Attention as values to colour.

    Args:
        weights: (..., N) softmax attention; each row sums to 1.
        scaling: `percentile`: rank / N, ties take the mean of their ranks. `official`: attention
            times N times `zoom`, clipped at 1, so that 1 is average attention at zoom 1.
        zoom: In (0, 1]; a smaller one leaves room above the average.

    Returns:
        (..., N) float64 in [0, 1].
    """
    weights = np.asarray(weights, dtype=np.float64)
    count = weights.shape[-1]
    if scaling == "official":
        clipped: np.ndarray = np.clip(weights * count * zoom, 0.0, 1.0)
        return clipped
    ranks: np.ndarray = np.asarray(rankdata(weights, axis=-1)) / count
    return ranks


def painted(
    size: tuple[int, int], factor: float, corners: np.ndarray, side: float, values: np.ndarray
) -> np.ndarray:
    """Values of patches on the pixels of a thumbnail; patches that overlap are averaged.

    The work is that of four corners a patch and one pass over the picture, however large the
    patches are.

    Args:
        size: (height, width) of the thumbnail.
        factor: Level-0 pixels a thumbnail pixel.
        corners: (N, 2) top-left corners of the patches in level-0 pixels; any part of a patch may
            lie outside of the slide.
        side: Edge of a patch in level-0 pixels.
        values: (N,).

    Returns:
        (height, width) float64, NaN where there is no patch. A patch has at least one pixel.
    """
    height, width = size
    begin = np.rint(np.asarray(corners, np.float64) / factor).astype(np.int64)
    end = np.maximum(np.rint((corners + side) / factor).astype(np.int64), begin + 1)
    begin, end = (np.clip(edge, 0, [width, height]) for edge in (begin, end))
    sums = np.zeros((height + 1, width + 1))
    counts = np.zeros((height + 1, width + 1), dtype=np.int64)
    for xs, ys, sign in (
        (begin[:, 0], begin[:, 1], 1),
        (end[:, 0], end[:, 1], 1),
        (begin[:, 0], end[:, 1], -1),
        (end[:, 0], begin[:, 1], -1),
    ):
        np.add.at(sums, (ys, xs), sign * values)
        np.add.at(counts, (ys, xs), sign)
    covered = counts.cumsum(0).cumsum(1)[:height, :width]
    total = sums.cumsum(0).cumsum(1)[:height, :width]
    return np.where(covered > 0, total / np.maximum(covered, 1), np.nan)


def blended(
    thumbnail: np.ndarray, values: np.ndarray, colours: str = "jet", alpha: float = 0.4
) -> np.ndarray:
    """A thumbnail with values laid over it.

    Args:
        thumbnail: (h, w, 3) uint8.
        values: (h, w) in [0, 1], NaN where nothing is laid over.
        colours: Name of a matplotlib colour map.
        alpha: Weight of the colour.

    Returns:
        (h, w, 3) uint8.
    """
    from matplotlib import colormaps

    there = ~np.isnan(values)
    colour = colormaps[colours](np.clip(values[there], 0.0, 1.0))[:, :3] * 255
    out = thumbnail.copy()
    out[there] = np.rint(thumbnail[there] * (1 - alpha) + colour * alpha).astype(np.uint8)
    return out


def heatmap(
    thumbnail: np.ndarray,
    factor: float,
    corners: np.ndarray,
    side: float,
    maps: Mapping[str, np.ndarray],
    *,
    title: str = "",
    scaling: Scaling = "percentile",
    zoom: float = 1.0,
    colours: str = "jet",
    alpha: float = 0.4,
    annotation: Annotation | None = None,
) -> Figure:
    """The slide, and beside it each map over the slide.

    Args:
        thumbnail: (h, w, 3) uint8 picture of the slide.
        factor: Level-0 pixels a thumbnail pixel.
        corners: (N, 2) top-left corners of the patches in level-0 pixels.
        side: Edge of a patch in level-0 pixels.
        maps: Title -> (N,) softmax attention.
        title: Above all; a slide's alias, not its name, since pictures get passed on.
        scaling: See `scaled`.
        zoom: See `scaled`.
        colours: Name of a matplotlib colour map.
        alpha: Weight of the colour over the slide.
        annotation: Outlines to draw on every panel.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    height, width = thumbnail.shape[:2]
    panels = {"slide": thumbnail}
    for name, weights in maps.items():
        values = scaled(weights, scaling, zoom)
        laid = painted((height, width), factor, corners, side, values)
        panels[name] = blended(thumbnail, laid, colours, alpha)
    columns = _columns(len(panels), width / height)
    rows = math.ceil(len(panels) / columns)
    # A pixel a pixel, but room for the titles of a tiny slide.
    inch = max(1 / _DPI, _LEAST / max(height, width))
    figure = Figure(
        figsize=(columns * (width * inch + 0.15) + 1.4, rows * (height * inch + 0.35) + 0.9),
        layout="constrained",
        dpi=_DPI,
    )
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, picture) in zip(grid, panels.items(), strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=14)
        if annotation is not None:
            _outline(axes, annotation, factor)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#bbbbbb")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(cmap=colours), ax=grid, fraction=0.03, pad=0.01, shrink=0.8
    )
    bar.set_label(_MEANING[scaling].format(zoom=zoom, times=1 / zoom), fontsize=13)
    bar.ax.tick_params(labelsize=12)
    figure.suptitle(title, fontsize=16, parse_math=False)
    drawn = annotation is not None and bool(annotation.lesions)
    told = "  Black line: annotated lesion; dashed: cut out of it." if drawn else ""
    figure.supxlabel(CAUTION + told, fontsize=12)
    return figure


def _columns(panels: int, aspect: float) -> int:
    """Columns that bring the whole picture near 16:9."""

    def distance(columns: int) -> float:
        shape = columns * aspect / math.ceil(panels / columns)
        return abs(math.log(shape / (16 / 9)))

    best = min(range(1, panels + 1), key=distance)
    # As few rows, but filled evenly.
    return math.ceil(panels / math.ceil(panels / best))


def _outline(axes: Axes, annotation: Annotation, factor: float) -> None:
    rings = [("-", lesion.rings[0]) for lesion in annotation.lesions]
    rings += [("--", ring) for lesion in annotation.lesions for ring in lesion.rings[1:]]
    rings += [("--", ring) for hole in annotation.holes for ring in hole.rings]
    for style, ring in rings:
        closed = np.concatenate([ring, ring[:1]]) / factor - 0.5
        axes.plot(closed[:, 0], closed[:, 1], color="black", lw=1.1, ls=style)
