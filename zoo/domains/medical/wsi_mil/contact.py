"""The most attended patches of a slide on one sheet."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.heatmap import CAUTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zoo.domains.medical.wsi_mil.slides import Slide

_DPI = 100


def top_patches(corners: np.ndarray, side: float, scores: np.ndarray, count: int) -> np.ndarray:
    """The best patches, without those that overlap a better one.

    Args:
        corners: (N, 2) top-left corners in level-0 pixels.
        side: Edge of a patch in level-0 pixels.
        scores: (N,).
        count: How many at most.

    Returns:
        Up to `count` indices, best first.
    """
    kept: list[int] = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if len(kept) == count:
            break
        away = np.abs(corners[kept] - corners[i]) >= side
        if away.any(1).all():
            kept.append(int(i))
    return np.array(kept, dtype=np.int64)


def read_patch(slide: Slide, corner: np.ndarray, side: float, pixels: int) -> np.ndarray:
    """One patch, from the level that is just fine enough.

    Args:
        slide: An open slide.
        corner: (2,) top-left corner in level-0 pixels.
        side: Edge in level-0 pixels.
        pixels: Edge of the result in pixels.

    Returns:
        (pixels, pixels, 3) uint8.

    Raises:
        DataError: The slide is damaged there.
    """
    level = slide.best_level(max(1.0, side / pixels))
    size = max(1, round(side / slide.level_downsamples[level]))
    patch = slide.read(int(corner[0]), int(corner[1]), level, (size, size))
    if size == pixels:
        return patch
    image_of = need("PIL.Image")
    resized = image_of.fromarray(patch).resize((pixels, pixels), image_of.Resampling.LANCZOS)
    return np.asarray(resized)


def contact_sheet(
    slide: Slide,
    corners: np.ndarray,
    side: float,
    attention: np.ndarray,
    *,
    count: int = 16,
    pixels: int = 192,
    title: str = "",
) -> Figure:
    """The patches with most attention in reading order, each with its attention and place.

    Args:
        slide: An open slide.
        corners: (N, 2) top-left corners in level-0 pixels.
        side: Edge of a patch in level-0 pixels.
        attention: (N,) softmax attention; shown as a multiple of the average, 1 / N.
        count: Patches on the sheet.
        pixels: Edge of a patch on the sheet.
        title: Above all.

    Raises:
        DataError: The slide is damaged at one of the patches.
    """
    from matplotlib.figure import Figure

    chosen = top_patches(corners, side, attention, count)
    columns = min(len(chosen), max(3, math.ceil(math.sqrt(1.6 * len(chosen)))))
    rows = math.ceil(len(chosen) / columns)
    inch = pixels / _DPI
    figure = Figure(
        figsize=(max(columns * (inch + 0.12), 5.2), rows * (inch + 0.5) + 0.9),
        layout="constrained",
        dpi=_DPI,
    )
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, i in enumerate(chosen):
        axes, corner = grid[place], corners[i]
        axes.imshow(read_patch(slide, corner, side, pixels))
        times = float(attention[i]) * len(attention)
        axes.set_title(
            f"{place + 1}.  {times:.3g} x average\nx {corner[0]}, y {corner[1]}", fontsize=8
        )
    for axes in grid:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.supxlabel(CAUTION, fontsize=7)
    return figure
