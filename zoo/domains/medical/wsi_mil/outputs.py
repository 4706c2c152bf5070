"""What `zoo predict` writes of one slide: attention files and, with the slide at hand, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from zoo import files
from zoo.domains.medical.wsi_mil.annotations import Annotation
from zoo.domains.medical.wsi_mil.attention import write_attention
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.contact import contact_sheet
from zoo.domains.medical.wsi_mil.geojson import write_geojson
from zoo.domains.medical.wsi_mil.heatmap import heatmap
from zoo.domains.medical.wsi_mil.marks import Marks, outlines_of, patch_side
from zoo.domains.medical.wsi_mil.slides import Slide, open_slide
from zoo.privacy import alias

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_outputs(
    folder: Path,
    *,
    name: str,
    branches: np.ndarray,
    coords: np.ndarray | None,
    settings: Mapping[str, Any],
    prediction: str,
    slide: Path | None,
    marks: Marks | None,
    config: Config,
) -> list[Path]:
    """Write the attention of a slide, and what can be drawn of it.

    Written are `<name>.h5` and `<name>.csv` (see `write_attention`) and, where the slide file and
    the places of the patches are known, `<name>_heatmap.png`, `<name>_top.png` and
    `<name>.geojson`.

    Args:
        folder: Where to write.
        name: Slide name. Pictures show its alias, since file names often hold patient names.
        branches: (K, N) softmax attention of each branch.
        coords: (N, 2) top-left corners of the patches in level-0 pixels, if known.
        settings: Extraction settings.
        prediction: Class and probability in words.
        slide: The slide file, if known.
        marks: What its annotation says, if there is one; it is drawn on the heat map.
        config: Which outputs, and how.

    Raises:
        DataError: The slide or its annotation is damaged.
    """
    predict = config.predict
    written = write_attention(
        folder,
        name=name,
        branches=branches,
        coords=coords,
        settings=settings,
        formats=predict.format,
    )
    if slide is None or coords is None:
        return written
    side = patch_side(coords, settings, config.data.patch_size_level0)
    title = f"slide {alias(name)}, {len(coords)} patches, {prediction}"
    with open_slide(slide, config.data.mpp) as opened:
        if predict.heatmap != "none":
            drawn = None if marks is None else outlines_of(marks, config)
            figure = _heatmap(opened, branches, coords, side, title, drawn, config)
            written.append(_saved(folder / f"{name}_heatmap.png", figure))
        if predict.top_patches:
            sheet = contact_sheet(
                opened,
                coords,
                side,
                branches.mean(0),
                count=predict.top_patches,
                title=f"Most attended patches\n{title}",
            )
            written.append(_saved(folder / f"{name}_top.png", sheet))
        origin = opened.bounds[:2]
    if predict.geojson != "none":
        path = folder / f"{name}.geojson"
        write_geojson(
            path,
            name=name,
            corners=coords,
            side=side,
            ranks=_share_below(branches.mean(0)),
            measurements=_measurements(branches),
            origin=origin,
            object_type=predict.geojson,
        )
        written.append(path)
    return written


def _heatmap(
    slide: Slide,
    branches: np.ndarray,
    coords: np.ndarray,
    side: float,
    title: str,
    annotation: Annotation | None,
    config: Config,
) -> Figure:
    predict = config.predict
    count = len(branches)
    maps = {"attention" if count == 1 else f"mean of {count} branches": branches.mean(0)}
    if predict.heatmap_branches == "all" and count > 1:
        maps |= {f"branch {k}": row for k, row in enumerate(branches)}
    thumbnail, factor = slide.thumbnail(predict.heatmap_size)
    return heatmap(
        thumbnail,
        factor,
        coords,
        side,
        maps,
        title=title,
        scaling="official" if predict.heatmap == "official" else "percentile",
        zoom=predict.heatmap_zoom,
        colours=predict.colours,
        alpha=predict.heatmap_alpha,
        annotation=annotation,
    )


def _share_below(attention: np.ndarray) -> np.ndarray:
    """(N,) share of the patches that have less attention."""
    return (np.asarray(rankdata(attention, "min")) - 1) / len(attention)


def _measurements(branches: np.ndarray) -> dict[str, np.ndarray]:
    """What QuPath shows of a patch: attention, as it is and against the average, and ranks."""
    count = branches.shape[1]
    attention = branches.mean(0)
    found = {
        "attention": attention,
        "attention x patches": attention * count,
        "attention percentile": rankdata(attention) / count * 100,
    }
    if len(branches) > 1:
        found |= {f"branch {k} attention x patches": row * count for k, row in enumerate(branches)}
    return found


def _saved(path: Path, figure: Figure) -> Path:
    files.write_whole(path, lambda place: figure.savefig(place))
    return path
