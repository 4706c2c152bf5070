"""The attention body alone, trained on lung masks (`optim.objective=body`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoo.domains.medical.medusa.body import Body
from zoo.domains.medical.medusa.look import Look, as_bytes
from zoo.domains.medical.medusa.losses import MaskLoss, mask_loss
from zoo.domains.medical.medusa.metrics import mass_inside, overlap
from zoo.errors import DataError
from zoo.task import Batch, Metrics, Record


class LungSegmenter(nn.Module):
    """The body under the name it has in the whole model, so that its weights fit there.

    Args:
        body: The attention body.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, semantic: Tensor, logits: bool = False) -> Tensor:
        """Probability of lung at each pixel.

        Args:
            semantic: (B, 1, T, T), standardised.
            logits: Give the values before the sigmoid.

        Returns:
            (B, 1, T, T).
        """
        return self.body.logits(semantic) if logits else self.body(semantic)


def lung_loss(model: nn.Module, batch: Batch) -> MaskLoss:
    """Loss of a batch against its masks.

    Raises:
        DataError: A radiograph has no mask.
    """
    return mask_loss(model(batch["semantic"], logits=True), masks_of(batch))


def masks_of(batch: Batch) -> Tensor:
    """(B, 1, T, T) masks of a batch.

    Raises:
        DataError: A radiograph has none.
    """
    bare = [n for n, known in zip(batch["ids"], batch["has_mask"], strict=True) if not known]
    if bare:
        msg = f"'{bare[0]}' has no lung mask, which optim.objective=body needs; see data.layout"
        raise DataError(msg)
    masks: Tensor = batch["mask"]
    return masks


def lung_records(model: nn.Module, batch: Batch, look: Look) -> list[Record]:
    """Dice and IoU of each radiograph at a threshold of 0.5; pictures of some."""
    logits = model(batch["semantic"], logits=True).float()
    maps = logits.sigmoid()
    made = []
    for i, name in enumerate(batch["ids"]):
        chance = maps[i, 0].cpu().numpy()
        values: dict[str, np.ndarray] = {"lung_area": np.array(float((chance >= 0.5).mean()))}
        if batch["has_mask"][i]:
            values |= _scored(logits[i : i + 1], batch["mask"][i : i + 1])
        if look.shows(name):
            values |= {"preview": np.asarray(batch["preview"][i]), "body_map": as_bytes(chance)}
            if batch["has_mask"][i]:
                values["lungs"] = batch["mask"][i, 0].cpu().numpy() > 0.5
        made.append(Record(name, batch["groups"][i], values))
    return made


def _scored(logits: Tensor, true: Tensor) -> dict[str, np.ndarray]:
    chance = logits.sigmoid()
    dice, iou = overlap((chance >= 0.5).cpu().numpy(), (true > 0.5).cpu().numpy())
    inside = mass_inside(chance.cpu().numpy(), (true > 0.5).cpu().numpy())
    return {
        "dice": np.array(dice),
        "iou": np.array(iou),
        "loss": np.array(float(mask_loss(logits, true).total)),
        "map_in_lungs": np.array(inside),
    }


def lung_metrics(records: Sequence[Record]) -> Metrics:
    """Mean Dice, IoU and loss over the radiographs that have a mask.

    Raises:
        DataError: None has.
    """
    found = [r for r in records if "dice" in r.values]
    if not found:
        msg = "no radiograph has a lung mask to be compared with; see data.layout"
        raise DataError(msg)
    return {
        key: float(np.mean([r.values[key] for r in found]))
        for key in ("dice", "iou", "loss", "map_in_lungs")
    }


def lung_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row a radiograph: how much of the picture is lung, and Dice and IoU if known."""
    rows = []
    for record in records:
        row: dict[str, Any] = {"id": record.id}
        for key in ("lung_area", "dice", "iou"):
            row[key] = float(record.values[key]) if key in record.values else None
        rows.append(row)
    return rows
