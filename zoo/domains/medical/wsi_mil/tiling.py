"""From a slide to its tiles: resolution, grid, and reading.

The size of a tile is stated as TRIDENT does it, by magnification or by micrometres per pixel, so
that slides of different scanners give tiles of one physical size; CLAM's choice of a level is there
as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.grid import tile_grid
from zoo.domains.medical.wsi_mil.settings import (
    EncoderSettings,
    TileSettings,
    setting_attributes,
    settings_from,
)
from zoo.domains.medical.wsi_mil.slides import Slide, open_slide
from zoo.domains.medical.wsi_mil.tissue import Tissue, find_tissue
from zoo.errors import ConfigError, DataError

__all__ = [
    "EncoderSettings",
    "Plan",
    "Scale",
    "TileReader",
    "TileSettings",
    "plan_tiles",
    "resized",
    "scale_of",
    "settings_from",
]

# A slide a little coarser than asked for is scaled up; beyond that detail would be invented.
_FINER = 0.9


@dataclass(frozen=True)
class Scale:
    """How tiles of one slide are read.

    Attributes:
        tile: Side of a tile in level-0 pixels.
        step: From one tile to the next in level-0 pixels.
        level: Level that is read.
        size: Side of a tile in pixels of that level, before it is resized.
        patch_size: Side of the result.
        downsample: Level-0 pixels of a pixel of the result.
    """

    tile: int
    step: int
    level: int
    size: int
    patch_size: int
    downsample: float


@dataclass(frozen=True, eq=False)
class Plan:
    """The tiles of one slide.

    Attributes:
        coords: (N, 2) int64 top-left corners in level-0 pixels, in CLAM's order.
        scale: How they are read.
        tissue: The outlines they lie on.
        attributes: All settings and what was found on the slide, as stored with the features.
    """

    coords: np.ndarray
    scale: Scale
    tissue: Tissue
    attributes: Mapping[str, Any]


def plan_tiles(slide: Slide, settings: TileSettings) -> Plan:
    """Segment a slide and lay the grid.

    Returns:
        The plan; without tissue it has no tile.

    Raises:
        DataError: The slide is damaged, states no resolution, or is coarser than asked for.
        ConfigError: The slide has no such level.
    """
    scale = scale_of(slide, settings)
    tissue = find_tissue(slide, settings.tissue)
    parts = [
        tile_grid(
            contour,
            holes,
            tile=scale.tile,
            step=scale.step,
            dimensions=slide.dimensions,
            padding=settings.use_padding,
            check=settings.contour_fn,
        )
        for contour, holes in zip(tissue.contours, tissue.holes, strict=True)
    ]
    kept = [p for p in parts if len(p) >= max(1, settings.min_patches)]
    coords = np.concatenate(kept) if kept else np.empty((0, 2), np.int64)
    return Plan(coords, scale, tissue, _attributes(slide, settings, scale, tissue))


def scale_of(slide: Slide, settings: TileSettings) -> Scale:
    """Sizes of a tile on this slide.

    As in TRIDENT, the magnification of level 0 is a round number read off the resolution in bins,
    and a tile takes `patch_size * magnification of level 0 // wanted magnification` of its pixels.

    Raises:
        DataError: The slide states no resolution and `data.mpp` is not set, or it is coarser than
            what is asked for.
        ConfigError: The slide has no such level.
    """
    size = settings.patch_size
    if settings.patch_level is not None:
        return _scale_of_level(slide, settings, settings.patch_level)
    if settings.target_mpp is not None:
        if slide.mpp is None:
            raise _unknown(slide)
        ratio = settings.target_mpp / slide.mpp
        stated = f"{slide.mpp:g} um per pixel"
        wanted = f"data.tiles.target_mpp={settings.target_mpp:g}"
        tile = round(size * ratio)
    else:
        power = slide.magnification
        if power is None and slide.mpp is not None:
            msg = (
                f"{slide.path}: {slide.mpp:g} um per pixel is coarser than 5x; set "
                "data.tiles.target_mpp in place of data.tiles.magnification"
            )
            raise DataError(msg)
        if power is None or settings.magnification is None:
            raise _unknown(slide)
        ratio = power / settings.magnification
        stated = f"{power:g}x"
        wanted = f"data.tiles.magnification={settings.magnification:g}"
        tile = int(size * power // settings.magnification)
    if ratio < _FINER or tile < 1:
        msg = f"{slide.path}: has only {stated}, coarser than {wanted}; ask for less"
        raise DataError(msg)
    downsample = tile / size
    level = slide.best_level(downsample)
    read = max(1, round(tile / slide.level_downsamples[level]))
    step = max(1, round(tile * (size - settings.overlap) / size))
    return Scale(tile, step, level, read, size, downsample)


def _scale_of_level(slide: Slide, settings: TileSettings, level: int) -> Scale:
    count = len(slide.level_dimensions)
    if not 0 <= level < count:
        msg = f"data.tiles.level={level}: {slide.path} has levels 0 to {count - 1}"
        raise ConfigError(msg)
    # CLAM computes the factor from the sizes and cuts it to a whole number.
    exact = slide.dimensions[0] / slide.level_dimensions[level][0]
    factor = int(exact)
    size = settings.patch_size
    return Scale(size * factor, (size - settings.overlap) * factor, level, size, size, exact)


def _unknown(slide: Slide) -> DataError:
    return DataError(
        f"{slide.path}: states no resolution (micrometres per pixel); give it with data.mpp, for "
        "instance data.mpp=0.25 for a 40x scan, or tile by data.tiles.level"
    )


class TileReader:
    """Reads the tiles of one slide; opens the slide itself, so that each worker has its own.

    A tile that cannot be read is read at the next smaller level, as in ACMIL's extraction.

    Args:
        path: The slide.
        mpp: As in `open_slide`.
        scale: Sizes of a tile.

    Attributes:
        rescued: Tiles that came from a smaller level.
    """

    def __init__(self, path: Path, mpp: float | None, scale: Scale) -> None:
        self.path, self._mpp, self._scale = path, mpp, scale
        self._slide = open_slide(path, mpp)
        self.rescued = 0

    def __call__(self, coords: np.ndarray) -> np.ndarray:
        """(B, 2) level-0 corners -> (B, patch_size, patch_size, 3) uint8 RGB.

        Raises:
            DataError: A tile cannot be read at any level.
        """
        size = self._scale.patch_size
        out = np.empty((len(coords), size, size, 3), np.uint8)
        for index, (x, y) in enumerate(coords.tolist()):
            out[index] = self._tile(x, y)
        return out

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _tile(self, x: int, y: int) -> np.ndarray:
        scale = self._scale
        try:
            return resized(
                self._slide.read(x, y, scale.level, (scale.size, scale.size)), scale.patch_size
            )
        except DataError as error:
            first = error
        for level in range(scale.level + 1, len(self._slide.level_dimensions)):
            # After a failure OpenSlide's handle answers nothing any more.
            self._slide.close()
            self._slide = open_slide(self.path, self._mpp)
            side = max(1, round(scale.tile / self._slide.level_downsamples[level]))
            try:
                pixels = self._slide.read(x, y, level, (side, side))
            except DataError:
                continue
            self.rescued += 1
            return resized(pixels, scale.patch_size)
        raise first


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """A square tile at `size` pixels: averaged when it shrinks, interpolated when it grows."""
    if pixels.shape[0] == size == pixels.shape[1]:
        return pixels
    cv2 = need("cv2")
    kind = cv2.INTER_AREA if pixels.shape[0] > size else cv2.INTER_LINEAR
    result: np.ndarray = cv2.resize(pixels, (size, size), interpolation=kind)
    return result


def _attributes(
    slide: Slide, settings: TileSettings, scale: Scale, tissue: Tissue
) -> dict[str, Any]:
    """Everything a reader of the features may want to know, under CLAM's and TRIDENT's names."""
    sizes = slide.level_dimensions[scale.level]
    found = setting_attributes(settings) | {
        "name": slide.name,
        "patch_size_level0": scale.tile,
        "step_size_level0": scale.step,
        "level0_width": slide.dimensions[0],
        "level0_height": slide.dimensions[1],
        "level0_magnification": slide.magnification,
        "mpp": slide.mpp,
        "downsample": np.array([scale.downsample] * 2),
        "read_level": scale.level,
        "level_dim": np.array(sizes),
        "downsampled_level_dim": np.array([int(d / scale.downsample) for d in slide.dimensions]),
        "tissue_level": tissue.level,
        "tissue_fallback": tissue.fallback,
        "tissue_outlines": len(tissue.contours),
    }
    return {k: v for k, v in found.items() if v is not None}
