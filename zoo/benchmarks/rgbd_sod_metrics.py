"""Measures of saliency maps against PySODMetrics, the field's toolkit, on maps of DES's size.

Both compute the same: MAE, S, E and F with their curves, adaptive F, E, IoU and Dice, weighted F.
A `published` map is 0 far from the object, as the maps that papers hand out; in a `noisy` one no
pixel is. `error` is the largest difference of any value. The toolkit pins older NumPy and OpenCV
than the zoo, so it is no extra and is installed without its dependencies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch

from zoo.benchmarks.harness import Form, Row, rows
from zoo.benchmarks.whole import part_of

TASK = "rgbd_sod"
HEIGHT, WIDTH = 480, 640
_INSTALL = "pip install --no-deps pysodmetrics scikit-image imageio lazy-loader"
Scores = Mapping[str, np.ndarray]

_part = partial(part_of, TASK)


def example(noisy: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map and its truth, (480, 640) uint8, seeded: an object on a tenth of the image."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot((y - 230) / 1.3, x - 300) - 8 * np.sin(np.arctan2(y - 230, x - 300) * 5)
    truth = (radius < 90).astype(np.uint8) * 255
    soft = 255 / (1 + np.exp((radius - 94) / 3))
    if noisy:
        soft = 0.7 * soft + rng.uniform(1, 70, truth.shape)
    return soft.clip(0, 255).astype(np.uint8), truth


def toolkit() -> Callable[[np.ndarray, np.ndarray], Scores] | None:
    """The toolkit's values of one map, None if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kit: Any = import_module("py_sod_metrics")
        except ImportError:
            return None
    return partial(_toolkit_scores, kit)


def _toolkit_scores(kit: Any, prediction: np.ndarray, truth: np.ndarray) -> Scores:
    # What shares its counts is computed in one go, which is the toolkit's own advice.
    handlers = {
        "fm": kit.FmeasureHandler(with_dynamic=True, with_adaptive=True),
        "iou": kit.IOUHandler(with_dynamic=False, with_adaptive=True),
        "dice": kit.DICEHandler(with_dynamic=False, with_adaptive=True),
        "precision": kit.PrecisionHandler(with_dynamic=True, with_adaptive=False),
        "recall": kit.RecallHandler(with_dynamic=True, with_adaptive=False),
    }
    mae, sm, em, wfm = kit.MAE(), kit.Smeasure(), kit.Emeasure(), kit.WeightedFmeasure()
    for measure in (mae, sm, em, wfm, kit.FmeasureV2(handlers)):
        measure.step(prediction, truth)
    found = {"mae": mae.maes[0], "sm": sm.sms[0], "wfm": wfm.weighted_fms[0]}
    found |= {"em": em.changeable_ems[0], "adp_em": em.adaptive_ems[0]}
    found |= {n: handlers[n].dynamic_results[0] for n in ("fm", "precision", "recall")}
    return found | {f"adp_{n}": handlers[n].adaptive_results[0] for n in ("fm", "iou", "dice")}


def difference(ours: Scores, other: Scores) -> float:
    """The largest absolute difference of any value that both have."""
    return max(float(np.abs(ours[name] - other[name]).max()) for name in other)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times one map of 640 x 480 by the toolkit and by the zoo.

    Args:
        device: Everything runs on the CPU; rows of a GPU would be the same, so there are none.
        quick: Fewer rounds.
    """
    if device.type != "cpu":
        return []
    import cv2

    plain = toolkit()
    if plain is None:
        print(f"pysodmetrics is not installed: {_INSTALL}")
    scores: Callable[[np.ndarray, np.ndarray], Scores] = _part("metrics").image_scores
    before = cv2.getNumThreads()
    cv2.setNumThreads(torch.get_num_threads())
    found = []
    try:
        for kind in ("published", "noisy"):
            pair = example(kind == "noisy")
            forms: dict[str, Form] = {}
            errors = {}
            if plain is not None:
                forms["PySODMetrics"] = partial(plain, *pair)
                errors["zoo"] = difference(scores(*pair), plain(*pair))
            forms["zoo"] = partial(scores, *pair)
            case = f"{kind} map, {WIDTH} x {HEIGHT}"
            rounds = 5 if quick else 25
            block = "rgbd_sod metrics"
            found += rows(block, case, "fwd", forms, device, rounds=rounds, errors=errors)
    finally:
        cv2.setNumThreads(before)
    return found
