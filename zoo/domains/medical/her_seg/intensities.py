"""From intensities of scanners to [0, 1]: windows, and percentiles that pass over a background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.errors import DataError

# A minimum that more voxels than this share have is a constant background.
_BACKGROUND = 0.05
# Percentiles of larger volumes are taken of every n-th voxel.
_MOST = 2**24
# Far above what scanners give, and so far below the range of float32 that differences fit into it.
_LARGEST = 1e30

Limits = tuple[float, float]


def limits(
    values: np.ndarray,
    window: Limits | None,
    span: Limits | None,
    percentiles: Limits,
    where: Path,
) -> list[Limits]:
    """The intensities that become 0 and 1, for each channel.

    `window` wins, then the file's own convention; else percentiles of the volume. Where many
    voxels share the minimum (air, or the background of a skull-stripped brain, which need not be
    0), percentiles are those of the other voxels. Voxels that are not finite do not count.

    Args:
        values: (…, C).
        window: `data.window`.
        span: Of the file's own convention.
        percentiles: `data.percentiles`.
        where: The file, for messages.

    Raises:
        DataError: No voxel of a channel is finite, or what would become 0 and 1 is absurd, as with
            a damaged slope.
    """
    found = []
    for c in range(values.shape[-1]):
        channel = values[..., c].ravel()
        if channel.dtype.kind == "f":
            sound = np.isfinite(channel)
            channel = channel if sound.all() else channel[sound]
        if not channel.size:
            msg = f"{where}: no voxel is a finite number; export the volume again"
            raise DataError(msg)
        ends = window or span or _percentiles(channel, percentiles)
        if not max(map(abs, ends)) < _LARGEST:
            msg = (
                f"{where}: intensities from {ends[0]:g} to {ends[1]:g} are no scanner's; export "
                "the volume again, or set data.window"
            )
            raise DataError(msg)
        found.append(ends)
    return found


def _percentiles(channel: np.ndarray, shares: Limits) -> Limits:
    low = channel.min()
    above = channel[channel > low]
    if above.size == 0:
        return float(low), float(low)
    body = above if above.size < (1 - _BACKGROUND) * channel.size else channel
    first, second = np.percentile(body[:: 1 + body.size // _MOST], shares)
    return float(first), float(second)


def scaled(values: np.ndarray, ends: Sequence[Limits]) -> np.ndarray:
    """Intensities as [0, 1]; what is not finite is 0, as is a volume of one value.

    Args:
        values: (…, C).
        ends: As `limits` gives them.

    Returns:
        float32 of the same shape.
    """
    out = np.zeros(values.shape, np.float32)
    for c, (low, high) in enumerate(ends):
        if high > low:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, and becomes 0
                plane = values[..., c].astype(np.float32)
            shown = np.clip((plane - np.float32(low)) / np.float32(high - low), 0, 1)
            out[..., c] = np.where(np.isfinite(plane), shown, 0)
    return out
