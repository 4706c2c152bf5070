"""How the recorded preprocessing of `crop_yield` is run."""

from __future__ import annotations

import numpy as np
import torch

from tests.parity.golden import Case
from zoo.domains.remote_sensing.crop_yield.histograms import (
    BINS,
    COMPOSITES,
    DAYS,
    EDGES,
    FIRST_DAY,
    LAST_DAY,
    REFLECTANCE_BANDS,
    TEMPERATURE_BANDS,
    TEMPERATURE_SHIFT,
    band_means,
    histogram,
    masked,
    mean_feature,
    paired,
    published_layout,
)


def bands_first(case: Case, name: str) -> np.ndarray:
    """(bands, H, W) uint16 as rasters give them, of the recorded (H, W, bands)."""
    return np.moveaxis(case.tensors[f"input/{name}"].numpy().astype(np.uint16), -1, 0)


def exact(case: Case, key: str, ours: np.ndarray) -> None:
    recorded = case.tensors[key]
    torch.testing.assert_close(torch.from_numpy(ours).to(recorded), recorded, rtol=0, atol=0)
    case.open.discard(key)


def close(case: Case, key: str, ours: np.ndarray) -> None:
    allowed = case.info["tolerance"]["hist"]
    torch.testing.assert_close(torch.from_numpy(ours), case.tensors[key], **allowed)
    case.open.discard(key)


def preprocess_target(case: Case) -> None:
    told = case.info["args"]
    constants = (FIRST_DAY, LAST_DAY, DAYS, BINS, TEMPERATURE_SHIFT)
    named = ("start_day", "end_day", "composite_period", "bins", "temperature_offset")
    assert constants == tuple(told[name] for name in named)
    np.testing.assert_array_equal(EDGES, 1 + 156.1875 * np.arange(33))
    light, heat = bands_first(case, "reflectance"), bands_first(case, "temperature")
    cover = bands_first(case, "landcover")
    images = []
    for k in range(told["num_years"]):
        a, b = k * COMPOSITES, (k + 1) * COMPOSITES
        year = paired(
            light[a * REFLECTANCE_BANDS : b * REFLECTANCE_BANDS],
            heat[a * TEMPERATURE_BANDS : b * TEMPERATURE_BANDS],
        )
        year = masked(year, cover[min(k, len(cover) - 1)] == told["crop_class"])
        exact(case, f"output/masked_year{k}", published_layout(year).astype(np.int64))
        images.append(histogram(year))
        close(case, f"output/hist_year{k}", images[-1])
        if f"output/mean_feature_year{k}" in case.tensors:
            close(case, f"output/mean_feature_year{k}", mean_feature(year))
    stacked = np.stack(images)
    known = len(case.tensors["output/norm_train"])
    mean = band_means(stacked[:known])[None, :, None, None]
    close(case, "output/norm_train", stacked[:known] - mean)
    close(case, "output/norm_test", stacked[known:] - mean)


TARGETS = {"modis_preprocess": preprocess_target}
