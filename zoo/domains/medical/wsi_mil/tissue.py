"""Finding tissue on a slide, by CLAM's method (Lu et al. 2021; mahmoodlab/CLAM, 53e2409).

The saturation of a small level is median-filtered, thresholded and closed; what is left are
outlines with holes, of which large ones are kept. Areas are counted in squares of 512 level-0
pixels, so that one set of numbers fits every level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from zoo.domains.medical.wsi_mil.extras import need
from zoo.domains.medical.wsi_mil.slides import LARGEST_WHOLE, Slide
from zoo.errors import ConfigError, DataError

REFERENCE = 512
"""Side of the square in level-0 pixels that areas are counted in."""
SEGMENTATION_DOWNSAMPLE = 64


@dataclass(frozen=True)
class TissueSettings:
    """Numbers of the segmentation; the defaults are ACMIL's.

    Attributes:
        sthresh: Saturation (0 to 255) above which a pixel is tissue.
        mthresh: Side of the median filter in pixels of the level, odd.
        close: Side of the closing's square kernel in pixels of the level; 0: no closing.
        use_otsu: Let Otsu's method choose the threshold in place of `sthresh`.
        a_t: Area an outline must exceed without its holes, in squares of 512 level-0 pixels.
        a_h: Area a hole must exceed, in the same unit.
        max_n_holes: Largest holes kept of an outline.
        seg_level: Level that is segmented; -1: the one nearest to a downsample of 64.
        fallback: Try again with smaller areas where nothing is found.
    """

    sthresh: int = 8
    mthresh: int = 7
    close: int = 4
    use_otsu: bool = False
    a_t: float = 100
    a_h: float = 16
    max_n_holes: int = 8
    seg_level: int = -1
    fallback: bool = True


PRESETS: Mapping[str, TissueSettings] = MappingProxyType(
    {
        "acmil": TissueSettings(),
        "bwh_biopsy": TissueSettings(15, 11, 2, False, 1, 1, 2),
        "bwh_resection": TissueSettings(15, 11, 4, False, 100, 16, 8),
        "tcga": TissueSettings(8, 7, 4, False, 16, 4, 8),
    }
)
"""CLAM's presets, and ACMIL's defaults."""

# Tried in turn where the settings find nothing: a biopsy's areas, then a quarter of a square.
_FALLBACKS = ((1.0, 1.0, 2), (0.25, 0.25, 2))


@dataclass(frozen=True, eq=False)
class Tissue:
    """Outlines of the tissue on a slide.

    Attributes:
        contours: (M, 2) int32 corners of each outline, level-0 pixels, no approximation.
        holes: The holes of each outline, likewise.
        level: Level that was segmented.
        settings: What found it: the settings asked for, or those of the fallback.
        fallback: How many fallbacks were needed, 0 for none.
    """

    contours: Sequence[np.ndarray]
    holes: Sequence[Sequence[np.ndarray]]
    level: int
    settings: TissueSettings
    fallback: int = 0


def find_tissue(slide: Slide, settings: TissueSettings) -> Tissue:
    """Segment a slide.

    Only what was scanned is looked at: a slide may lie in a corner of a canvas many times as large.

    Returns:
        The outlines; none if there is no tissue that is large enough, even after the fallbacks.

    Raises:
        DataError: The slide is damaged, or has no level small enough to be read whole.
        ConfigError: The slide has no level `seg_level`.
    """
    level = _level(slide, settings)
    image, corner, scale = _scanned(slide, level)
    found: list[tuple[list[np.ndarray], list[list[np.ndarray]]]] = []
    steps = [settings]
    if settings.fallback:
        steps += [
            replace(settings, a_t=a_t, a_h=min(a_h, settings.a_h), max_n_holes=holes)
            for a_t, a_h, holes in _FALLBACKS
            if a_t < settings.a_t
        ]
    mask = tissue_mask(image, settings)
    for number, step in enumerate(steps):
        contours, holes = outlines(mask, scale, step)
        if contours:
            placed = [_placed(c, scale, corner) for c in contours]
            inner = [[_placed(h, scale, corner) for h in own] for own in holes]
            return Tissue(placed, inner, level, step, number)
        found.append((contours, holes))
    return Tissue([], [], level, settings, len(steps) - 1)


def tissue_mask(image: np.ndarray, settings: TissueSettings) -> np.ndarray:
    """Where there is tissue.

    Args:
        image: (h, w, 3) uint8 RGB.
        settings: `sthresh`, `mthresh`, `close` and `use_otsu` are used.

    Returns:
        (h, w) uint8, 255 for tissue.
    """
    cv2 = need("cv2")
    saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]
    smooth = cv2.medianBlur(np.ascontiguousarray(saturation), settings.mthresh)
    kind = cv2.THRESH_BINARY | (cv2.THRESH_OTSU if settings.use_otsu else 0)
    limit = 0 if settings.use_otsu else settings.sthresh
    mask: np.ndarray = cv2.threshold(smooth, limit, 255, kind)[1]
    if settings.close > 0:
        kernel = np.ones((settings.close, settings.close), np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel)
    return mask


def outlines(
    mask: np.ndarray, scale: tuple[float, float], settings: TissueSettings
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Outlines of a mask that are large enough, and the holes of each.

    Args:
        mask: (h, w) uint8.
        scale: Level-0 pixels of a mask pixel in x and y.
        settings: `a_t`, `a_h` and `max_n_holes` are used.

    Returns:
        (M, 2) int32 corners of each outline in mask pixels, and of its holes, largest first.
    """
    cv2 = need("cv2")
    found, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not found:
        return [], []
    unit = int(REFERENCE**2 / (scale[0] * scale[1]))
    parents = tree[0][:, 3]
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents.tolist()):
        if parent >= 0:
            children.setdefault(parent, []).append(index)
    areas = [cv2.contourArea(c) for c in found]
    contours, holes = [], []
    for index in np.flatnonzero(parents == -1).tolist():
        own = children.get(index, [])
        area = areas[index] - sum(areas[i] for i in own)
        if area == 0 or area <= settings.a_t * unit:
            continue
        largest = sorted(own, key=lambda i: -areas[i])[: settings.max_n_holes]
        contours.append(found[index][:, 0])
        holes.append([found[i][:, 0] for i in largest if areas[i] > settings.a_h * unit])
    return contours, holes


def area_of(contour: np.ndarray) -> float:
    """Area inside of an outline in square pixels of its own unit, holes counted in."""
    return float(need("cv2").contourArea(contour))


def as_attributes(settings: TissueSettings) -> dict[str, Any]:
    """The settings as flat attributes, `seg_<name>`."""
    return {f"seg_{k.removeprefix('seg_')}": v for k, v in vars(settings).items()}


def _level(slide: Slide, settings: TissueSettings) -> int:
    count = len(slide.level_dimensions)
    if settings.seg_level >= count:
        msg = (
            f"data.tissue.seg_level={settings.seg_level}: {slide.path} has levels 0 to {count - 1}"
        )
        raise ConfigError(msg)
    if settings.seg_level >= 0:
        return settings.seg_level
    return 0 if count == 1 else slide.best_level(SEGMENTATION_DOWNSAMPLE, tolerance=0)


def _scanned(slide: Slide, level: int) -> tuple[np.ndarray, tuple[int, int], tuple[float, float]]:
    """The scanned part of a level, its corner in level-0 pixels, and level-0 pixels a pixel."""
    size = slide.level_dimensions[level]
    scale = (slide.dimensions[0] / size[0], slide.dimensions[1] / size[1])
    if slide.bounds == (0, 0, *slide.dimensions):
        corner, wanted = (0, 0), size
    else:
        x, y, width, height = slide.bounds
        corner = (x, y)
        wanted = (
            min(size[0], math.ceil(width / scale[0])),
            min(size[1], math.ceil(height / scale[1])),
        )
    if wanted[0] * wanted[1] > LARGEST_WHOLE:
        msg = (
            f"{slide.path}: level {level} of {wanted[0]} x {wanted[1]} pixels is too large to be "
            "searched for tissue in one piece; write a pyramid (vips tiffsave --tile --pyramid) or "
            "set data.tissue.seg_level to a smaller level"
        )
        raise DataError(msg)
    return slide.read(*corner, level, wanted), corner, scale


def _placed(contour: np.ndarray, scale: tuple[float, float], corner: tuple[int, int]) -> np.ndarray:
    """Corners in level-0 pixels, cut to whole numbers as CLAM does."""
    scaled: np.ndarray = (contour * np.asarray(scale)).astype(np.int32)
    placed: np.ndarray = scaled + np.asarray(corner, np.int32)
    return placed
