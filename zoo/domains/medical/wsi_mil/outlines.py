"""A small picture of a slide with its tissue and tiles, to see at a glance what was taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo import files
from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.slides import open_slide
from zoo.domains.medical.wsi_mil.tiling import Plan

_LONGEST = 1024
_TISSUE, _HOLE, _TILE = (0, 160, 60), (30, 60, 220), (60, 60, 60)


def draw_outlines(path: Path, plan: Plan, out: Path, longest: int = _LONGEST) -> None:
    """Write a thumbnail with outlines of tissue (green), holes (blue) and tiles (grey).

    Args:
        path: The slide.
        plan: Its tiles.
        out: The picture, JPEG or PNG by its ending.
        longest: Longest side in pixels.

    Raises:
        DataError: The slide is damaged.
    """
    cv2, image_of = need("cv2"), need("PIL.Image")
    with open_slide(path) as slide:
        thumbnail, factor = slide.thumbnail(longest)
    canvas = np.array(thumbnail)
    side = plan.scale.tile / factor
    for x, y in (plan.coords / factor).tolist():
        corner, other = (round(x), round(y)), (round(x + side), round(y + side))
        cv2.rectangle(canvas, corner, other, _TILE, 1)
    outer = [(c / factor).round().astype(np.int32) for c in plan.tissue.contours]
    inner = [(h / factor).round().astype(np.int32) for own in plan.tissue.holes for h in own]
    cv2.polylines(canvas, outer, True, _TISSUE, 2)
    cv2.polylines(canvas, inner, True, _HOLE, 2)
    files.write_whole(out, lambda place: image_of.fromarray(canvas).save(place, quality=85))
