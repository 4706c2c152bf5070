"""The splits: training pictures in the model's square, and whole stacks for evaluation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import get_worker_info

from zoo.data import ListSplit, fingerprint, ordered_batches
from zoo.domains.medical.her_seg.augment import (
    Augmentation,
    Square,
    cut,
    drawn_prompts,
    fitted,
)
from zoo.domains.medical.her_seg.augment_slices import SliceAugmentation
from zoo.domains.medical.her_seg.cases import Case
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.image_stack import ImageStack
from zoo.domains.medical.her_seg.stacks import Stack
from zoo.errors import DataError
from zoo.task import Batch

# What was decoded is kept only while this share of the machine's memory stays free.
_KEEP_FREE = 0.15
# Volumes and clips that stay open while their slices are drawn in random order.
_OPEN = 4


class TrainSplit(ListSplit):
    """Pictures, slices and frames that have a truth, in the model's square.

    Args:
        cases: Where they come from.
        config: Sizes, fit, augmentation, prompts and batch size.
        digests: Case name -> what its files are.

    Attributes:
        classes: Names of the foreground classes.
        kind: `image`, `volume` or `clip`.
        notes: What the user should be told, one line each.

    Raises:
        DataError: There is nothing to train on.
    """

    composed = ""  # shares hold over an epoch, so a batch may have any size

    def __init__(self, cases: Sequence[Case], config: Config, digests: Mapping[str, str]) -> None:
        self.cases = list(cases)
        self._of = [
            (number, index, full)
            for number, case in enumerate(self.cases)
            for index, full in case.slices()
        ]
        if not self._of:
            msg = "there is no picture with a mask to train on"
            raise DataError(msg)
        several = self.cases[0].kind != "image"
        names = [self.cases[n].name + (f"/{index}" if several else "") for n, index, _ in self._of]
        super().__init__(
            names,
            [self.cases[n].group for n, *_ in self._of],
            fingerprint((c.name, digests[c.name]) for c in self.cases),
            batch_size=config.trainer.batch_size,
            shuffle=True,
            drop_last=True,
        )
        self.config = config
        self.classes = self.cases[0].classes.names
        self.kind = self.cases[0].kind
        self.notes: list[str] = []
        slices = self.kind == "volume" and config.data.augment == "standard"
        self._augment = SliceAugmentation() if slices else Augmentation.of(config.data.augment)
        self._stacks: OrderedDict[int, Stack] = OrderedDict()
        self._kept: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is held in memory, which would be copied into every worker."""
        return self.__dict__ | {"_kept": {}, "_stacks": OrderedDict()}

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Every picture once; of volumes, slices with labels at `data.foreground_share`.

        An epoch of volumes is as long as there are slices. Slices with labels and those without
        are each gone through in random order, from the start again where they are too few.
        """
        full = np.array([f for *_, f in self._of])
        if self.kind != "volume" or full.all() or not full.any():
            return super().batches(epoch, rng)
        count = len(full)
        wanted = round(self.config.data.foreground_share * count)
        order = [
            *_drawn(np.flatnonzero(full), wanted, rng),
            *_drawn(np.flatnonzero(~full), count - wanted, rng),
        ]
        mixed = [order[i] for i in rng.permutation(count)]
        return ordered_batches(mixed, self.batch_size, self.drop_last)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """One picture, augmented.

        Returns:
            `id`; `image` (3, S, S) float32 in [0, 1]; `mask` (S, S) int64 class indices; `valid`
            (S, S) bool, False in padding; if `optim.prompts` asks, `points` (3, 3) float32 (x, y,
            label; label -1 unused) and `box` (4,) float32 (-1: none), in pixels of the square.

        Raises:
            DataError: A file is broken; the message names it.
        """
        square = self._square(index, rng)
        image, masks = self._augment(
            square.image, {"mask": square.mask, "valid": square.valid}, rng
        )
        made: Batch = {
            "id": self.ids[index],
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255,
            "mask": torch.from_numpy(masks["mask"].astype(np.int64)),
            "valid": torch.from_numpy(masks["valid"] > 0),
        }
        if self.config.optim.prompts != "none":
            points, box = drawn_prompts(masks["mask"], self.config.optim.prompts, rng)
            made |= {"points": torch.from_numpy(points), "box": torch.from_numpy(box)}
        return made

    def collate(self, items: list[Batch]) -> Batch:
        """Stack B pictures: every entry of `item` with a first axis B, and `ids`, a list."""
        made: Batch = {"ids": [item["id"] for item in items]}
        for key in items[0].keys() - {"id"}:
            made[key] = torch.stack([item[key] for item in items])
        return made

    def _square(self, index: int, rng: np.random.Generator) -> Square:
        side, fit = self.config.model.image_size, self.config.data.fit
        kept = self._kept.get(index)
        if fit != "tiles":
            square = kept or fitted(*self._decoded(index), side, fit)
            self._keep(index, square)
            return square
        image, mask = kept or self._decoded(index)
        self._keep(index, (image, mask))
        return fitted(*cut(image, mask, side, self.config.data.foreground_share, rng), side, fit)

    def _decoded(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W) uint8."""
        number, at, _ = self._of[index]
        stack = self._opened(number)
        truth = stack.truth(at)
        if truth is None:
            msg = f"{stack.id}: picture {at} has no mask"
            raise DataError(msg)
        if isinstance(stack, ImageStack):
            return stack.decoded(), truth
        picture = np.clip(np.rint(stack.picture(at) * 255), 0, 255).astype(np.uint8)
        return picture, truth

    def _opened(self, number: int) -> Stack:
        if number not in self._stacks:
            self._stacks[number] = self.cases[number].open()
        self._stacks.move_to_end(number)
        while len(self._stacks) > (1 if self.kind == "image" else _OPEN):
            self._stacks.popitem(last=False)
        return self._stacks[number]

    def _keep(self, index: int, what: Any) -> None:
        # Worker processes keep nothing: each of them would come to hold the whole data set.
        if index in self._kept or not self.config.data.in_memory or get_worker_info() is not None:
            return
        if _room():
            self._kept[index] = what


def _room() -> bool:
    """Whether enough memory is free to keep another picture."""
    memory = psutil.virtual_memory()
    return bool(memory.available > _KEEP_FREE * memory.total)


def _drawn(pool: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """`count` of a pool in random order, none twice before all were drawn."""
    rounds = [rng.permutation(pool) for _ in range(-(-count // max(1, len(pool))))]
    every = np.concatenate([np.zeros(0, np.int64), *rounds])
    return [int(index) for index in every[:count]]


class EvalSplit(ListSplit):
    """Whole pictures, volumes and clips at their own size, one at a time.

    Args:
        cases: What is evaluated.
        digests: Case name -> what its files are.
        keep: Hold decoded pictures in memory, for a split that is scored after every epoch.

    Attributes:
        notes: What the user should be told, one line each.

    Raises:
        DataError: There is nothing, or two have one name.
    """

    def __init__(
        self, cases: Sequence[Case], digests: Mapping[str, str], keep: bool = False
    ) -> None:
        super().__init__(
            [case.name for case in cases],
            [case.group for case in cases],
            fingerprint((case.name, digests.get(case.name, "")) for case in cases),
        )
        self.cases = list(cases)
        self.keep = keep
        self.notes: list[str] = []
        self._kept: dict[int, Stack] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is held in memory."""
        return self.__dict__ | {"_kept": {}}

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """`id`, `group` and `stack`, which is read when it is asked."""
        case = self.cases[index]
        stack = self._kept.get(index) or case.open()
        # Volumes map what they decoded once, clips are read frame by frame.
        if self.keep and case.kind == "image" and get_worker_info() is None and _room():
            self._kept[index] = stack
        return {"id": case.name, "group": case.group, "stack": stack}

    def collate(self, items: list[Batch]) -> Batch:
        """`stacks`, a list."""
        return {"stacks": [item["stack"] for item in items]}


class StackSplit(ListSplit):
    """Stacks that are open already: what `zoo predict` was given.

    Args:
        stacks: The stacks.

    Attributes:
        notes: What the user should be told, one line each.

    Raises:
        DataError: There is nothing, or two have one name.
    """

    def __init__(self, stacks: Sequence[Stack]) -> None:
        ids = [stack.id for stack in stacks]
        super().__init__(ids, [stack.group for stack in stacks], fingerprint(ids))
        self.stacks = list(stacks)
        self.notes: list[str] = []

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """`id`, `group` and `stack`."""
        stack = self.stacks[index]
        return {"id": stack.id, "group": stack.group, "stack": stack}

    def collate(self, items: list[Batch]) -> Batch:
        """`stacks`, a list."""
        return {"stacks": [item["stack"] for item in items]}
