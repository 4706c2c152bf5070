"""Prompts: from the command line and a json file, from the truth, and to what the network takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from zoo.domains.medical.her_seg.config import SegPredict
from zoo.domains.medical.her_seg.geometry import Placement, resized
from zoo.domains.medical.her_seg.masks import Coding, read_mask
from zoo.domains.medical.her_seg.prompts import PromptBatch
from zoo.domains.medical.her_seg.stacks import Prompts, Stack
from zoo.errors import ConfigError, DataError

# Segment Anything's mask prompts are logits of an earlier answer; this far from 0 is quite sure.
_SURE = 8.0
_KEYS = ("points", "boxes", "mask")


@dataclass(frozen=True)
class PromptSource:
    """The prompts of `predict.points`, `boxes`, `mask_prompt` and `prompts`.

    Attributes:
        settings: The `predict` section.
        used: Names in the json file that belonged to something.
    """

    settings: SegPredict
    used: set[str] = field(default_factory=set, compare=False)

    @property
    def any(self) -> bool:
        """Whether the user gave prompts at all."""
        given = self.settings
        return bool(given.points or given.boxes or given.mask_prompt or given.prompts)

    def of(self, stack: Stack, index: int) -> Prompts | None:
        """The prompts of one picture: its own, those of its stack, those for all, the reader's.

        The json file names a stack by its id, file name or stem, and one picture of it by
        `<stack>/<number>`, counted from 0.

        Raises:
            ConfigError: A prompt is malformed or lies outside of the picture.
            DataError: A file cannot be read.
        """
        names = [stack.id, Path(stack.id).name, Path(stack.id).stem]
        wanted = [f"{name}/{index}" for name in names] + names
        for name in wanted:
            if name in self._listed:
                self.used.add(name)
                return self._made(self._listed[name], f"predict.prompts: '{name}'")
        given = self.settings
        if given.points or given.boxes or given.mask_prompt:
            body = {"points": given.points, "boxes": given.boxes, "mask": given.mask_prompt}
            return self._made({k: v for k, v in body.items() if v}, "predict")
        return stack.prompts(index)

    @property
    def unused(self) -> list[str]:
        """Names in the json file that belong to nothing that was predicted."""
        return sorted(set(self._listed) - self.used)

    @cached_property
    def _listed(self) -> dict[str, Mapping[str, Any]]:
        path = self.settings.prompts
        if path is None:
            return {}
        try:
            body = json.loads(path.expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"predict.prompts={path}: cannot be read as json ({error})"
            raise DataError(msg) from error
        if not isinstance(body, dict) or not all(isinstance(v, dict) for v in body.values()):
            msg = f"predict.prompts={path}: should map file stems to points, boxes and mask"
            raise ConfigError(msg)
        return body

    def _made(self, body: Mapping[str, Any], where: str) -> Prompts:
        strange = sorted(set(body) - set(_KEYS))
        if strange:
            msg = f"{where}: '{strange[0]}' is no prompt; prompts are {', '.join(_KEYS)}"
            raise ConfigError(msg)
        points = _numbers(body.get("points"), 3, f"{where}.points", "[x, y, 1 or 0]")
        boxes = _numbers(body.get("boxes"), 4, f"{where}.boxes", "[left, top, right, bottom]")
        if not np.isin(points[:, 2], (0, 1)).all():
            msg = f"{where}.points: the third number is 1 (inside) or 0 (outside)"
            raise ConfigError(msg)
        if (boxes[:, :2] >= boxes[:, 2:]).any():
            msg = f"{where}.boxes: a box goes from left to right and from top to bottom"
            raise ConfigError(msg)
        mask = body.get("mask")
        return Prompts(points, boxes, None if mask is None else _mask(Path(mask), self._folder))

    @property
    def _folder(self) -> Path:
        """What mask files in the json file are relative to."""
        path = self.settings.prompts
        return path.expanduser().parent if path else Path()


def _numbers(value: Any, width: int, where: str, form: str) -> np.ndarray:
    if value is None:
        return np.zeros((0, width), np.float32)
    try:
        found = np.asarray(value, np.float32).reshape(-1, width)
    except (TypeError, ValueError) as error:
        msg = f"{where}: should be a list of {form}"
        raise ConfigError(msg) from error
    if len(found) != len(value) or not np.isfinite(found).all():
        msg = f"{where}: should be a list of {form}"
        raise ConfigError(msg)
    return found


def _mask(path: Path, folder: Path) -> np.ndarray:
    path = path.expanduser()
    found = read_mask(path if path.is_absolute() else folder / path, Coding())
    return (found > 0).astype(np.float32)


def inside(prompts: Prompts, size: tuple[int, int], name: str) -> Prompts:
    """The prompts, if they lie in the picture.

    Raises:
        ConfigError: A point or box lies outside, or the mask has another size.
    """
    height, width = size
    corners = prompts.boxes.reshape(-1, 2)
    for x, y in [*prompts.points[:, :2], *corners]:
        if not (0 <= x <= width and 0 <= y <= height):
            msg = (
                f"prompt at x={x:g}, y={y:g} lies outside of '{name}', which is {width} pixels "
                f"wide and {height} high"
            )
            raise ConfigError(msg)
    if prompts.mask is not None and prompts.mask.shape != size:
        rows, columns = prompts.mask.shape
        msg = (
            f"the mask prompt is {columns} x {rows}, but '{name}' is {width} x {height}; a mask "
            "prompt has the size of its picture"
        )
        raise ConfigError(msg)
    return prompts


def from_truth(truth: np.ndarray, kind: str) -> Prompts | None:
    """The prompt an evaluation gives a model that was trained with prompts.

    Args:
        truth: (H, W), above 0 is foreground.
        kind: `points`: the pixel of the mask that is deepest inside; `boxes` and `mixed`: the box
            around it.

    Returns:
        None for an empty mask.
    """
    mask = truth > 0
    if not mask.any():
        return None
    points, boxes = np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32)
    if kind == "points":
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), mask.shape)
        points = np.array([[x + 0.5, y + 0.5, 1]], np.float32)
    else:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        boxes = np.array([edges], np.float32)
    return Prompts(points, boxes)


def to_batch(prompts: Prompts, placement: Placement) -> PromptBatch:
    """The prompts of one picture in pixels of the model's square, as a batch of one."""
    points = boxes = labels = mask = None
    if len(prompts.points):
        points = torch.from_numpy(placement.points(prompts.points[:, :2]))[None]
        labels = torch.from_numpy(prompts.points[:, 2].astype(np.int64))[None]
    if len(prompts.boxes):
        corners = placement.points(prompts.boxes.reshape(-1, 2, 2))
        boxes = torch.from_numpy(corners.reshape(-1, 4))[None]
    if prompts.mask is not None:
        square = np.zeros((placement.side, placement.side), np.float32)
        height, width = placement.inner
        square[:height, :width] = resized(prompts.mask.astype(np.float32), placement.inner)
        quarter = resized(square, (placement.side // 4, placement.side // 4))
        mask = torch.from_numpy((2 * quarter - 1) * _SURE)[None, None]
    return PromptBatch(points=points, labels=labels, boxes=boxes, mask=mask)
