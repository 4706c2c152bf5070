"""Measures as the evaluation script of the paper's first author computes them.

For whoever compares with figures that came out of that script (kingkung2016/RGBD-SOD-tools,
saliency_metric.py). Against `metrics`: 255 thresholds, F of the averaged precision and recall,
images without a foreground count as zero precision and recall, variances are divided by the
number of pixels, the constants in denominators are larger, and E is at the adaptive threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zoo.domains.saliency.rgbd_sod.counts import BETA_SQUARED, LEVELS, Counts
from zoo.domains.saliency.rgbd_sod.metrics import checked_mask
from zoo.domains.saliency.rgbd_sod.weighted import weighted_f
from zoo.errors import DataError

_SMALL = 1e-8
_SMALL_WEIGHTED = 1e-6
_SCALARS = ("mae", "sm", "wfm", "adp_f", "adp_em")


def image_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The author's measures of one map.

    Args:
        prediction: (H, W) uint8 map, stretched by its minimum and maximum.
        truth: (H, W) bool, or uint8 of which more than 128 is foreground.

    Returns:
        Float64 `mae`, `sm`, `wfm`, `adp_f`, `adp_em`, and `precision`, `recall`: (255,), entry k
        at the threshold 254 - k.

    Raises:
        DataError: Shapes or types are not as said.
    """
    mask = checked_mask(prediction, truth)
    low, high = int(prediction.min()), int(prediction.max())
    levels = np.arange(LEVELS)
    values = levels / 255 if low == high else (levels - low) / (high - low)
    stretched = values[prediction]
    called = stretched >= min(2 * stretched.mean(), 1)
    places = (values * 255).clip(0).astype(np.uint8)[prediction].clip(max=254)
    on, off = (np.bincount(places[m], minlength=255)[::-1].cumsum() for m in (mask, ~mask))
    found = {
        "mae": np.abs(stretched - mask).mean(),
        "sm": _s_measure(stretched, mask),
        "wfm": weighted_f(prediction, mask, Counts.of(prediction, mask), _SMALL_WEIGHTED),
        "adp_f": _adaptive_f(called, mask),
        "adp_em": _e_measure(called, mask),
        "precision": on / (on + off + _SMALL),
        "recall": on / max(np.count_nonzero(mask), 1),
    }
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def dataset_scores(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """`mae`, `sm`, `wfm`, `adp_f`, `adp_em`, `max_f` of a data set.

    Args:
        values: What `image_scores` of this module gave for each image.

    Raises:
        DataError: There are no images.
    """
    if not values:
        msg = "no image was scored, so there are no measures of the data set"
        raise DataError(msg)
    found = {name: float(np.mean([float(v[name]) for v in values])) for name in _SCALARS}
    precision, recall = (np.mean([v[n] for v in values], axis=0) for n in ("precision", "recall"))
    above = (1 + BETA_SQUARED) * precision * recall
    return found | {"max_f": float((above / (BETA_SQUARED * precision + recall + _SMALL)).max())}


def _adaptive_f(called: np.ndarray, mask: np.ndarray) -> float:
    hit = np.count_nonzero(called & mask)
    if hit == 0:
        return 0.0
    precision, recall = hit / np.count_nonzero(called), hit / np.count_nonzero(mask)
    return (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)


def _e_measure(called: np.ndarray, mask: np.ndarray) -> float:
    if not mask.any():
        aligned = 1.0 - called
    elif mask.all():
        aligned = called * 1.0
    else:
        a, b = mask - mask.mean(), called - called.mean()
        aligned = (2 * (a * b) / (a * a + b * b + _SMALL) + 1) ** 2 / 4
    return float(aligned.sum() / (mask.size - 1 + _SMALL))


def _s_measure(stretched: np.ndarray, mask: np.ndarray) -> float:
    share = mask.mean()
    if share in (0, 1):
        return float(1 - stretched.mean() if share == 0 else stretched.mean())
    likeness = share * _object(stretched[mask]) + (1 - share) * _object(1 - stretched[~mask])
    y, x = (round(float(axis.mean())) + 1 for axis in np.nonzero(mask))
    similarity = 0.0
    for rows in (slice(0, y), slice(y, None)):
        for columns in (slice(0, x), slice(x, None)):
            part, real = stretched[rows, columns], mask[rows, columns]
            if part.size:  # the script gives NaN for an empty quadrant
                similarity += part.size / mask.size * _similarity(part, real)
    return float(0.5 * likeness + 0.5 * similarity)


def _object(values: np.ndarray) -> float:
    mean = values.mean()
    return float(2 * mean / (mean**2 + 1 + values.std() + _SMALL))


def _similarity(part: np.ndarray, real: np.ndarray) -> float:
    # The script keeps the truth in float32, which shows in the eighth digit.
    truth = real.astype(np.float32)
    x, y = part.mean(), truth.mean()
    shared = ((part - x) * (truth - y)).sum() / max(part.size - 1, 1)
    above, below = 4 * x * y * shared, (x * x + y * y) * (part.var() + truth.var())
    if above != 0:
        return float(above / (below + _SMALL))
    return 1.0 if below == 0 else 0.0
