"""From a batch to records: probabilities, and for some radiographs the maps behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo.domains.medical.medusa.explain import gradcam, resized, scale_heat, unit
from zoo.domains.medical.medusa.look import Look, as_bytes
from zoo.domains.medical.medusa.losses import weighted_cross_entropy
from zoo.domains.medical.medusa.metrics import mass_inside
from zoo.task import Batch, Record

_BODY_SIDE, _SCALE_SIDE = 96, 48
_META = ("sex", "age", "view")


def radiograph_records(
    model: nn.Module,
    batch: Batch,
    look: Look,
    *,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> list[Record]:
    """One record a radiograph, in eval mode.

    Args:
        model: The classifier, wrapped by the engine or not.
        batch: `ids`, `groups`, `image`, `semantic`, `label`, `weight`, `source`, `meta`, `mask`,
            `has_mask`, `preview`.
        look: For which radiographs maps are made.
        class_weights: (K,) as in training.
        smoothing: As in training.

    Returns:
        Records with `probabilities` (K,), `label`, `loss` where the label is known, and texts
        `source`, `sex`, `age`, `view`; with maps `preview`, `body_map`, `scale_maps`, `gradcam`,
        `lungs`, and against a mask `cam_in_lungs`, `map_in_lungs`, `lung_share`.
    """
    inner = plain(model)
    wanted = look.at(batch)
    body_map, scales = None, ()
    if wanted:
        logits, body_map, scales = model(batch["image"], batch["semantic"], return_maps=True)
    else:
        logits = model(batch["image"], batch["semantic"])
    logits = logits.float()
    probabilities = logits.double().softmax(-1).cpu().numpy()
    heats = scale_heat(scales) if look.maps else []
    cams = _cams(inner, batch, wanted, probabilities) if look.gradcam else {}
    made = []
    for i, name in enumerate(batch["ids"]):
        values = _plain_values(batch, i)
        values["probabilities"] = probabilities[i]
        if int(batch["label"][i]) >= 0:
            one = weighted_cross_entropy(
                logits[i : i + 1],
                batch["label"][i : i + 1],
                class_weights=class_weights,
                sample_weights=batch["weight"][i : i + 1],
                smoothing=smoothing,
            )
            values["loss"] = np.array(float(one))
        if i in wanted:
            level = None if body_map is None else body_map[i, 0].float().cpu().numpy()
            mine = [h[i] for h in heats]
            values |= _maps(batch, i, level, mine, cams.get(i), look.shows(name), look.maps)
        made.append(Record(name, batch["groups"][i], values))
    return made


def plain(model: nn.Module) -> Any:
    """The model itself, out of the engine's wrapping."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


def _plain_values(batch: Batch, i: int) -> dict[str, np.ndarray]:
    meta = batch["meta"][i]
    texts = {"source": batch["source"][i]} | {k: meta.get(k, "") for k in _META}
    label = {"label": np.array(int(batch["label"][i]))}
    return label | {k: np.array(str(v)) for k, v in texts.items() if v}


def _cams(
    net: Any, batch: Batch, wanted: list[int], probabilities: np.ndarray
) -> dict[int, np.ndarray]:
    """Grad-CAM of the predicted class, for the places wanted."""
    if not wanted:
        return {}
    inputs = (batch["image"][wanted], batch["semantic"][wanted])
    guesses = probabilities[wanted].argmax(axis=1).tolist()
    found = gradcam(net, net.cam_layer, inputs, guesses)
    return dict(zip(wanted, found, strict=True))


def _maps(
    batch: Batch,
    i: int,
    level: np.ndarray | None,
    heats: list[np.ndarray],
    cam: np.ndarray | None,
    shown: bool,
    keep_maps: bool,
) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    if batch["has_mask"][i]:
        true = batch["mask"][i, 0].cpu().numpy() > 0.5
        values["lung_share"] = np.array(float(true.mean()))
        if level is not None:
            values["map_in_lungs"] = np.array(mass_inside(level, true))
        if cam is not None:
            values["cam_in_lungs"] = np.array(mass_inside(resized(cam, true.shape), true))
        if shown:
            side = min(_BODY_SIDE, true.shape[0])
            values["lungs"] = resized(true, (side, side)) > 0.5
    if not shown:
        return values
    values["preview"] = np.asarray(batch["preview"][i])
    if level is not None and keep_maps:
        side = min(_BODY_SIDE, level.shape[0])
        values["body_map"] = as_bytes(resized(level, (side, side)))
    if heats and keep_maps:
        size = (_SCALE_SIDE, _SCALE_SIDE)
        values["scale_maps"] = np.stack([as_bytes(unit(resized(h, size))) for h in heats])
    if cam is not None:
        values["gradcam"] = unit(cam)
    return values
