"""Measures of saliency maps: MAE, F, weighted F, S and E, of an image and of a data set.

Values equal those of PySODMetrics 1.6.2, the toolkit of the field, including what it does in
degenerate cases, except where it gives NaN. What each measure is stands in `counts` and `weighted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from zoo.domains.saliency.rgbd_sod.counts import Counts, f_measure
from zoo.domains.saliency.rgbd_sod.weighted import weighted_f
from zoo.errors import DataError

SCALARS = ("mae", "sm", "wfm", "adp_fm", "adp_em", "adp_iou", "adp_dice", "iou")
CURVES = ("precision", "recall", "fm", "em")


def image_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure of one map.

    Args:
        prediction: (H, W) uint8 map; stretched to [0, 1] by its minimum and maximum, or divided
            by 255 where it is constant.
        truth: (H, W) bool, or uint8 of which more than 128 is foreground.

    Returns:
        Float64 scalars `mae`, `sm`, `wfm`, `adp_fm`, `adp_em`, `adp_iou`, `adp_dice` (at twice
        the mean), `iou` (of the map as it is, at 0.5; 1 where both are empty), and curves
        `precision`, `recall`, `fm`, `em`: (256,), entry k at the threshold 255 - k.

    Raises:
        DataError: Shapes or types are not as said.
    """
    mask = checked_mask(prediction, truth)
    counts = Counts.of(prediction, mask)
    scalars = {"mae": counts.mae(), "sm": counts.s_measure(), "iou": counts.iou_at_half()}
    scalars["wfm"] = weighted_f(prediction, mask, counts)
    scalars |= counts.adaptive()
    curves = counts.curves()
    found = {name: np.array(scalars[name], np.float64) for name in SCALARS}
    return found | {name: curves[name] for name in CURVES}


def image_curves(prediction: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The curves of `image_scores` plus `iou` and `dice`: (256,) each.

    Raises:
        DataError: Shapes or types are not as for `image_scores`.
    """
    return Counts.of(prediction, checked_mask(prediction, truth)).curves()


def dataset_scores(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Measures of a data set from those of its images.

    Curves are averaged over images first; the maximum or mean over thresholds comes after.

    Args:
        values: What `image_scores` gave for each image; other entries are ignored.

    Returns:
        `mae`, `sm`, `wfm`, `max_fm`, `mean_fm`, `adp_fm`, `max_em`, `mean_em`, `adp_em`,
        `max_fm_of_mean_pr` (F of the averaged precision and recall, as the MATLAB toolbox),
        `iou`, `adp_iou`, `adp_dice`, `images`.

    Raises:
        DataError: There are no images.
    """
    return stacked_scores(stacked(values))


def stacked(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores of N images as one array a name: (N,) and (N, 256).

    Resampling images many times is quick on these: `stacked_scores(arrays, rows)`.

    Raises:
        DataError: There are no images.
    """
    if not values:
        msg = "no image was scored, so there are no measures of the data set"
        raise DataError(msg)
    return {n: np.array([v[n] for v in values], np.float64) for n in (*SCALARS, *CURVES)}


def stacked_scores(
    arrays: Mapping[str, np.ndarray], rows: np.ndarray | None = None
) -> dict[str, float]:
    """`dataset_scores` of what `stacked` gave.

    Args:
        arrays: (N,) and (N, 256) float64 by name.
        rows: Images to take, with repetitions; all of them without it.
    """
    if rows is None:
        count = len(arrays["mae"])
        mean = {name: array.mean(axis=0) for name, array in arrays.items()}
    else:
        count = len(rows)
        # How often each image is taken: a product with it is quicker than a copy of the rows.
        share = np.bincount(rows, minlength=len(arrays["mae"])) / count
        mean = {name: share @ array for name, array in arrays.items()}
    pooled = f_measure(mean["precision"], mean["recall"])
    found = {
        "mae": mean["mae"],
        "sm": mean["sm"],
        "max_fm": mean["fm"].max(),
        "mean_fm": mean["fm"].mean(),
        "adp_fm": mean["adp_fm"],
        "max_em": mean["em"].max(),
        "mean_em": mean["em"].mean(),
        "adp_em": mean["adp_em"],
        "wfm": mean["wfm"],
        "max_fm_of_mean_pr": pooled.max(),
        "iou": mean["iou"],
        "adp_iou": mean["adp_iou"],
        "adp_dice": mean["adp_dice"],
        "images": count,
    }
    return {name: float(value) for name, value in found.items()}


def mean_curves(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `fm`, `em` averaged over images: (256,) each."""
    return {n: np.mean([np.asarray(v[n], np.float64) for v in values], axis=0) for n in CURVES}


def checked_mask(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The truth as a C-contiguous bool mask.

    Raises:
        DataError: See `image_scores`.
    """
    if prediction.ndim != 2 or prediction.dtype != np.uint8 or not prediction.size:
        msg = f"a map is a 2-D uint8 array, not {prediction.dtype} of shape {prediction.shape}"
        raise DataError(msg)
    if truth.dtype not in (np.bool_, np.uint8):
        msg = f"a truth is bool or uint8, not {truth.dtype}"
        raise DataError(msg)
    if prediction.shape != truth.shape:
        msg = f"the map is {prediction.shape} and the truth {truth.shape}; resize one before"
        raise DataError(msg)
    return np.ascontiguousarray(truth if truth.dtype == np.bool_ else truth > 128)
