"""Where tiles lie on a slide: CLAM's grid over each outline of the tissue.

All numbers here are level-0 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Check = Literal["four_pt", "four_pt_hard", "center", "basic"]


def tile_grid(
    contour: np.ndarray,
    holes: Sequence[np.ndarray],
    *,
    tile: int,
    step: int,
    dimensions: tuple[int, int],
    padding: bool,
    check: Check,
) -> np.ndarray:
    """Corners of the tiles on one outline.

    The grid starts at the corner of the outline's bounding box and runs down each column.

    Args:
        contour: (M, 2) int corners of the outline.
        holes: Corners of its holes.
        tile: Side of a tile.
        step: From one tile to the next.
        dimensions: (width, height) of the slide.
        padding: Whether tiles may run past the right and lower edge of the slide.
        check: Which points of a tile must lie on the tissue, see `passes`.

    Returns:
        (N, 2) int64 top-left corners of the tiles that pass the check and whose centre is in no
        hole.
    """
    low, high = contour.min(axis=0), contour.max(axis=0) + 1
    stop = high if padding else np.minimum(high, np.asarray(dimensions) - tile + 1)
    columns = np.arange(low[0], stop[0], step)
    lines = np.arange(low[1], stop[1], step)
    x, y = np.meshgrid(columns, lines, indexing="ij")
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    kept: np.ndarray = corners[passes(corners, contour, tile=tile, check=check)]
    for hole in holes:
        kept = kept[inside(kept + tile / 2, hole) <= 0]
    return kept


def passes(corners: np.ndarray, contour: np.ndarray, *, tile: int, check: Check) -> np.ndarray:
    """Which tiles lie on the tissue.

    `four_pt`: any of four points half-way from the centre to the tile's corners is inside;
    `four_pt_hard`: all of them; `center`: the centre; `basic`: the top-left corner. On the outline
    counts as inside.

    Args:
        corners: (N, 2) int top-left corners.
        contour: (M, 2) int corners of the outline.
        tile: Side of a tile.
        check: One of the rules above.

    Returns:
        (N,) bool.
    """
    if check == "basic":
        return inside(corners, contour) >= 0
    centre = corners + tile // 2
    shift = int(tile // 2 * 0.5)
    if check == "center" or shift == 0:
        return inside(centre, contour) >= 0
    signs = ((1, 1), (-1, -1), (1, -1), (-1, 1))
    hits = np.stack([inside(centre + shift * np.asarray(s), contour) >= 0 for s in signs])
    needed = 4 if check == "four_pt_hard" else 1
    passed: np.ndarray = hits.sum(axis=0) >= needed
    return passed


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Where points lie with regard to a polygon: the even-odd rule, the outline told apart.

    The same answer as OpenCV's `pointPolygonTest`, but for all points at once: a slide has tens
    of thousands of them and its outline as many corners, while the points share few lines.

    Args:
        points: (N, 2) whole or half pixels.
        polygon: (M, 2) int corners in order; the last is joined to the first.

    Returns:
        (N,) int8: 1 inside, 0 on the outline, -1 outside.
    """
    result = np.full(len(points), -1, np.int8)
    x1, y1 = polygon[:, 0].astype(np.float64), polygon[:, 1].astype(np.float64)
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    low, high = np.minimum(y1, y2), np.maximum(y1, y2)
    lines, owner = np.unique(points[:, 1], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(lines) + 1))
    for number, line in enumerate(lines.tolist()):
        mine = order[bounds[number] : bounds[number + 1]]
        touched = np.flatnonzero((low <= line) & (line <= high))
        if touched.size:
            edges = (x1[touched], y1[touched], x2[touched], y2[touched])
            result[mine] = _on_line(points[mine, 0].astype(np.float64), line, edges)
    return result


def _on_line(
    x: np.ndarray, line: float, edges: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """As `inside`, for points at height `line` and edges that reach it."""
    x1, y1, x2, y2 = edges
    flat = y1 == y2
    rise = np.where(flat, 1.0, y2 - y1)
    # Whole numbers below 2^26 make this exact wherever the crossing itself is a whole or half one.
    crossing = np.where(flat, x1, x1 + (line - y1) * (x2 - x1) / rise)
    # The upper end of an edge belongs to the next one, or corners would count twice.
    counted = np.sort(crossing[~flat & (line < np.maximum(y1, y2))])
    odd = (len(counted) - np.searchsorted(counted, x, side="right")) % 2 == 1
    result = np.where(odd, 1, -1).astype(np.int8)
    touched = np.sort(crossing)
    place = np.minimum(np.searchsorted(touched, x), len(touched) - 1)
    result[touched[place] == x] = 0
    if flat.any():
        starts, ends = np.minimum(x1, x2)[flat], np.maximum(x1, x2)[flat]
        order = np.argsort(starts)
        reach = np.maximum.accumulate(ends[order])
        before = np.searchsorted(starts[order], x, side="right") - 1
        result[(before >= 0) & (reach[np.maximum(before, 0)] >= x)] = 0
    return result
