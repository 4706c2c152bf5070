"""From masked reflectance and temperature to histograms, as the published pipeline defines them.

Source: You et al., Deep Gaussian Process for Crop Yield Prediction (AAAI 2017), in the form of its
PyTorch port (pycrop-yield-prediction): 33 equally spaced edges from 1 to 4999, 32 eight-day steps
from day of year 49, temperature moved by 11500 counts of 0.02 K. Values stay unsigned 16-bit
integers up to the histogram, so a table of 65536 entries gives each value its bin exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BANDS = ("red", "nir", "blue", "green", "nir2", "swir1", "swir2", "lst_day", "lst_night")
REFLECTANCE_BANDS = 7
TEMPERATURE_BANDS = 2
COMPOSITES = 46
DAYS = 8
FIRST_DAY, LAST_DAY = 49, 305
BINS = 32
EDGES = np.linspace(1, 4999, BINS + 1)
# Steps of a season: 6 to 38, that is days of year 49 to 304.
FIRST_STEP, LAST_STEP = FIRST_DAY // DAYS, LAST_DAY // DAYS
STEPS = LAST_STEP - FIRST_STEP
# 230 K in counts of 0.02 K; what lies below, 0 (no retrieval) first of all, wraps around to large
# numbers and falls outside of all bins.
TEMPERATURE_SHIFT = 11500


def _table() -> np.ndarray:
    """Bin of every unsigned 16-bit value; `BINS` for those outside. The last bin is closed."""
    values = np.arange(65536)
    bins = np.searchsorted(EDGES, values, side="right") - 1
    bins[values == EDGES[-1]] = BINS - 1
    bins[(values < EDGES[0]) | (values > EDGES[-1])] = BINS
    return bins.astype(np.int64)


_BIN_OF = _table()


def shifted(temperature: np.ndarray) -> np.ndarray:
    """Temperatures minus 11500 counts in unsigned 16-bit arithmetic, which wraps below.

    Args:
        temperature: Counts of 0.02 K, uint16, any shape; 0 is no retrieval.
    """
    return np.subtract(
        temperature.astype(np.uint16, copy=False), np.uint16(TEMPERATURE_SHIFT), dtype=np.uint16
    )


def paired(reflectance: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """One year's composites with their nine bands beside each other.

    Args:
        reflectance: (7 * S, H, W) uint16, composites one after the other.
        temperature: (2 * S', H, W) uint16 counts of 0.02 K, not yet shifted.

    Returns:
        (min(S, S'), 9, H, W) uint16; pairing stops at the shorter list, and bands of a composite
        that is not whole are left out.
    """
    height, width = reflectance.shape[1:]
    steps = min(len(reflectance) // REFLECTANCE_BANDS, len(temperature) // TEMPERATURE_BANDS)
    light = reflectance[: steps * REFLECTANCE_BANDS].astype(np.uint16, copy=False)
    heat = shifted(temperature[: steps * TEMPERATURE_BANDS])
    return np.concatenate(
        [
            light.reshape(steps, REFLECTANCE_BANDS, height, width),
            heat.reshape(steps, TEMPERATURE_BANDS, height, width),
        ],
        axis=1,
    )


def masked(year: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Nine-band composites with 0 wherever there is no cropland.

    Args:
        year: (S, 9, H, W) uint16.
        crop: (H, W) bool.
    """
    return year * crop.astype(np.uint16)


def published_layout(year: np.ndarray) -> np.ndarray:
    """(H, W, 9 * S) as the pipeline stores a year, of (S, 9, H, W)."""
    return np.ascontiguousarray(year.reshape(-1, *year.shape[2:]).transpose(1, 2, 0))


def season(year: np.ndarray) -> np.ndarray:
    """Composites of days 49 to 304; (S', 9, …) with S' <= 32, of (S, 9, …)."""
    return year[FIRST_STEP:LAST_STEP]


def counts_of(composites: np.ndarray, crop: np.ndarray | None = None) -> np.ndarray:
    """How many pixels fall into each bin.

    Args:
        composites: (S, 9, H, W) uint16 of the season, at most 32 steps.
        crop: (H, W) bool, the pixels that count; none counts all.

    Returns:
        (9, 32, 32) int64 [band, step, bin]; steps that are not there stay 0. Counts of several
        windows of a county add up.
    """
    steps, bands = composites.shape[:2]
    pixels = composites.reshape(steps * bands, -1)
    if crop is not None:
        pixels = pixels[:, crop.reshape(-1)]
    rows = np.arange(steps * bands)[:, None] * (BINS + 1)
    flat = (_BIN_OF[pixels.astype(np.uint16, copy=False)] + rows).reshape(-1)
    found = np.bincount(flat, minlength=steps * bands * (BINS + 1))
    found = found.reshape(steps, bands, BINS + 1)[..., :BINS]
    out = np.zeros((bands, STEPS, BINS), np.int64)
    out[:, :steps] = found.transpose(1, 0, 2)
    return out


def proportions(counts: np.ndarray) -> np.ndarray:
    """Counts (…, bins) divided by their sum, by 1 where there is none; float64."""
    total = counts.sum(-1, keepdims=True)
    return np.asarray(counts / np.maximum(total, 1), np.float64)


def histogram(year: np.ndarray) -> np.ndarray:
    """Histograms of one masked year.

    Args:
        year: (S, 9, H, W) uint16 from the first composite of the year, 0 where masked.

    Returns:
        (9, 32, 32) float64 [band, step, bin], each row summing to 1, or to 0 without a pixel.
    """
    return proportions(counts_of(season(year)))


def mean_feature(year: np.ndarray) -> np.ndarray:
    """The "mean" features of the port: one number a band and step of one masked year.

    Returns:
        (9 * S,) float64 of the whole season: the sum over pixels, divided by the number of
        nonzero entries of that composite in all bands, times the number of bands.
    """
    return Means.of(season(year)).feature()


@dataclass
class Means:
    """Sums behind the "mean" features; those of several windows add up.

    Attributes:
        sums: (S, 9) sums over pixels.
        filled: Nonzero entries of the whole season.
    """

    sums: np.ndarray
    filled: int

    @classmethod
    def of(cls, composites: np.ndarray) -> Means:
        """Sums of masked composites (S, 9, H, W)."""
        flat = composites.reshape(*composites.shape[:2], -1)
        return cls(flat.sum(-1, dtype=np.float64), int(np.count_nonzero(flat)))

    def feature(self) -> np.ndarray:
        """(S * 9,) float64."""
        return np.asarray(self.sums.reshape(-1) / max(self.filled, 1) * self.sums.size, np.float64)


def band_means(histograms: np.ndarray) -> np.ndarray:
    """(9,) float64: mean over samples, steps and bins of (N, 9, T, 32), what a model subtracts."""
    return np.asarray(histograms.mean(axis=(0, 2, 3), dtype=np.float64))
