"""From depth as stored to depth as the network sees it: holes filled, scaled, near is dark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zoo.domains.saliency.rgbd_sod.config import RgbdData
from zoo.domains.saliency.rgbd_sod.images import RawDepth

Polarity = Literal["near_dark", "near_bright"]
# Labelled images it takes to tell which end is near, and the share of them that must agree.
ENOUGH = 20
AGREE = 0.7


@dataclass(frozen=True)
class DepthRules:
    """How stored values become depth.

    Attributes:
        holes: What missing values are filled with: the nearest measured value, the far end, or
            nothing (`keep`: scaled as if they were values).
        hole_value: Stored value that means "missing"; None: 0 in 16-bit, float and `.mat` files.
            Values that are not finite are always missing.
        percentile: Percentiles of the measured values that become 0 and 1; None: the extremes.
    """

    holes: Literal["nearest", "far", "keep"] = "nearest"
    hole_value: int | None = None
    percentile: tuple[float, float] | None = None

    @classmethod
    def of(cls, data: RgbdData) -> DepthRules:
        """The rules that a configuration asks for."""
        return cls(data.holes, data.hole_value, data.percentile)


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depth as the network sees it.

    Attributes:
        values: (H, W) float32 in [0, 1], 0 near and 1 far.
        valid: False where the map says nothing: constant, empty or holes alone. It is all 0 then.
        holes: (H, W) bool, where nothing was measured.
    """

    values: np.ndarray
    valid: bool
    holes: np.ndarray


def hole_mask(raw: RawDepth, rules: DepthRules) -> np.ndarray:
    """(H, W) bool: where a map has no measurement."""
    values = raw.values
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if rules.hole_value is not None:
        return np.asarray(missing | (values == rules.hole_value))
    return np.asarray(missing | (values == 0)) if raw.zero_is_hole else missing


def canonical(raw: RawDepth, rules: DepthRules, polarity: Polarity = "near_dark") -> DepthMap:
    """Scale a map to [0, 1] over its measured pixels, near dark, holes filled.

    A map that is constant or has no measured pixel says nothing and becomes zeros with
    `valid=False`.

    Args:
        raw: The map as stored, in any unit.
        rules: How to scale and fill.
        polarity: Which end of the stored values is near.
    """
    holes = hole_mask(raw, rules)
    values: np.ndarray = raw.values.astype(np.float64)
    measured = values[~holes] if holes.any() else values.ravel()
    low, high = _range(measured, rules)
    if not high > low:
        return DepthMap(np.zeros(values.shape, np.float32), False, holes)
    unit: np.ndarray = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    if polarity == "near_bright":
        unit = 1 - unit
    if holes.any():
        unit = _filled(unit, holes, rules)
    return DepthMap(unit, True, holes)


def _range(measured: np.ndarray, rules: DepthRules) -> tuple[float, float]:
    if not measured.size:
        return 0.0, 0.0
    if rules.percentile is not None:
        low, high = np.percentile(measured, rules.percentile)
        if high > low:  # a map nearly all of one value still has its extremes
            return float(low), float(high)
    return float(measured.min()), float(measured.max())


def _filled(unit: np.ndarray, holes: np.ndarray, rules: DepthRules) -> np.ndarray:
    if rules.holes == "far":
        return np.where(holes, np.float32(1), unit)
    if rules.holes == "keep":
        return np.asarray(np.nan_to_num(unit, nan=0.0))
    import cv2

    # Every hole pixel is labelled with the measured pixel it is nearest to.
    _, labels = cv2.distanceTransformWithLabels(
        holes.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros(int(labels.max()) + 1, np.float32)
    value_of[labels[~holes]] = unit[~holes]
    return np.asarray(value_of[labels])


@dataclass(frozen=True)
class Measured:
    """Which end of a data set's depth is near, and how that is known.

    Attributes:
        polarity: What is used.
        share: Share of the labelled images whose foreground has the smaller median, None where
            nothing was measured.
        count: Images it was measured on.
        origin: How it was decided, in a few words.
        sure: False where it was guessed.
    """

    polarity: Polarity
    share: float | None
    count: int
    origin: str
    sure: bool = True


def foreground_is_smaller(raw: RawDepth, mask: np.ndarray, rules: DepthRules) -> bool | None:
    """Whether the object's median depth is below the background's; None where that is undecided.

    Args:
        raw: The map.
        mask: (H, W) bool of the map's size.
        rules: Tell what a hole is; holes are left out.
    """
    measured = ~hole_mask(raw, rules)
    inside, outside = raw.values[mask & measured], raw.values[~mask & measured]
    if not inside.size or not outside.size:
        return None
    difference = float(np.median(inside)) - float(np.median(outside))
    return None if difference == 0 else difference < 0


def decide(votes: Iterable[bool | None]) -> Measured | None:
    """The polarity that labelled images show, None where there are too few of them.

    More than 70 % of at least 20 images must agree; otherwise the answer is near dark, not sure.
    """
    counted = [v for v in votes if v is not None]
    if len(counted) < ENOUGH:
        return None
    share = sum(counted) / len(counted)
    sure = max(share, 1 - share) > AGREE
    bright = sure and share < 0.5
    told = f"measured on {len(counted)} masks" if sure else f"{len(counted)} masks disagree"
    return Measured("near_bright" if bright else "near_dark", share, len(counted), told, sure)
