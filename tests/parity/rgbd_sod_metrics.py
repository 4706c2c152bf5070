"""How each recorded target of the measures of `rgbd_sod` is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tests.parity.golden import Case
from zoo.domains.saliency.rgbd_sod import author_protocol, metrics

AUTHOR = "author_tool"


def images(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stem -> (map, truth) of every image of a case, in the order of the stems."""
    inputs = case.group("input")
    stems = sorted(key.removesuffix("/pred") for key in inputs if key.endswith("/pred"))
    assert {f"{s}/{kind}" for s in stems for kind in ("pred", "gt")} == inputs.keys()
    return {s: (inputs[f"{s}/pred"].numpy(), inputs[f"{s}/gt"].numpy()) for s in stems}


def compare(case: Case, prefix: str, ours: Mapping[str, Any]) -> None:
    """Every record below `prefix`; where the toolkit has NaN, ours must be a number."""
    recorded = [k for k in case.tensors if k.startswith(prefix) and "/" not in k[len(prefix) :]]
    assert recorded, f"nothing is recorded below {prefix}"
    for key in recorded:
        value = np.atleast_1d(ours[key.removeprefix(prefix)])
        assert np.isfinite(value).all(), key
        if torch.isnan(case.tensors[key]).any():
            # The notes allow it for an empty quadrant of the S-measure alone.
            assert key.removeprefix(prefix) == "sm", key
            assert 0 <= value[0] <= 1, key
            case.open.discard(key)
        else:
            case.compare(key, torch.from_numpy(value))


def scalars(case: Case, recorded: Mapping[str, float | None], ours: Mapping[str, Any]) -> None:
    """The numbers in the JSON file; null is NaN."""
    limits = case.info["tolerance"]
    for name, expected in recorded.items():
        found = float(ours[name])
        assert math.isfinite(found), name
        if expected is not None:
            same = math.isclose(found, expected, rel_tol=limits["rtol"], abs_tol=limits["atol"])
            assert same, f"{case.path.stem}: {name}: {found} is not {expected}"


def image_target(case: Case) -> None:
    found = images(case)
    assert case.info["scalars"].keys() == found.keys()
    for stem, (prediction, truth) in found.items():
        values = metrics.image_scores(prediction, truth)
        curves = metrics.image_curves(prediction, truth)
        alone = metrics.dataset_scores([values])  # maxima and means over thresholds
        ours = alone | {f"{name}_curve": curves[name] for name in ("fm", "em", "iou", "dice")}
        ours |= {name: curves[name] for name in ("precision", "recall")}
        for name in ("precision", "recall", "fm", "em"):
            assert np.array_equal(values[name], curves[name])
        compare(case, f"output/{stem}/", ours)
        scalars(case, case.info["scalars"][stem], ours)


def dataset_target(case: Case) -> None:
    found = list(images(case).values())
    values = [metrics.image_scores(*pair) for pair in found]
    curves = metrics.mean_curves(values)
    ours = metrics.dataset_scores(values)
    ours |= {f"{name}_curve": curves[name] for name in ("fm", "em")}
    compare(case, "output/", ours | {name: curves[name] for name in ("precision", "recall")})
    scalars(case, case.info["scalars"], ours)
    if "author_scalars" in case.info:
        author = author_protocol.dataset_scores(
            [author_protocol.image_scores(*pair) for pair in found]
        )
        compare(case, f"output/{AUTHOR}/", author)
        scalars(case, case.info["author_scalars"], author)


TARGETS = {
    "metrics_single": image_target,
    "metrics_dataset": dataset_target,
    "metrics_real": image_target,
}
