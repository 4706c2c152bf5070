"""A split of crops: from files to the tensors that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from zoo.data import ListSplit, fingerprint
from zoo.domains.reid.fusion_reid.images import (
    Augmentation,
    Bytes,
    augmented,
    content_hash,
    decode,
    load,
    read_bytes,
    resized,
    unit,
)
from zoo.domains.reid.fusion_reid.layouts import Entry
from zoo.domains.reid.fusion_reid.sampler import identity_batches
from zoo.task import Batch, Facts

# Images are kept in memory only while this share of the machine's memory stays free.
_KEEP_FREE = 0.1


class ReidSplit(ListSplit):
    """Crops of one split.

    Args:
        entries: The crops; for a test, queries before gallery.
        identities: Training identities in class order.
        cameras: Training cameras in the order of their embeddings.
        domains: Whose cameras took each crop, "" nobody's the model can know; or one for all.
        cameras_of: Domain of `cameras`: only there an embedding fits.
        size: (H, W) in pixels of the network's input.
        augmentation: Of training images; None resizes only.
        instances: K of the P x K batches in training.
        resize: Filter of training images; others are resized bilinearly.
        in_memory: Keep decoded images.
        batch_size: Items a batch.

    Attributes:
        entries: As given.
        files: Path of each item by its id.
        notes: What the user should be told, one line each.

    Raises:
        DataError: There are no crops.
    """

    composed = "a batch is P identities with K crops each, which the triplet loss compares"

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        identities: Sequence[str],
        cameras: Sequence[str],
        domains: str | Sequence[str],
        cameras_of: str,
        size: tuple[int, int],
        augmentation: Augmentation | None = None,
        instances: int = 0,
        resize: Literal["bicubic", "bilinear"] = "bilinear",
        in_memory: bool = False,
        batch_size: int = 1,
    ) -> None:
        ids = [f"{e.role}/{e.short}" for e in entries]
        super().__init__(
            ids,
            [f"{e.space}:{e.person}" for e in entries],
            fingerprint((i, e.person, e.camera, e.size) for i, e in zip(ids, entries, strict=True)),
            batch_size=batch_size,
            shuffle=augmentation is not None,
        )
        self.entries = list(entries)
        self.files = dict(zip(ids, (e.path for e in entries), strict=True))
        self.identities, self.cameras = tuple(identities), tuple(cameras)
        self.cameras_of = cameras_of
        self.domains = [domains] * len(ids) if isinstance(domains, str) else list(domains)
        classes = {name: i for i, name in enumerate(identities)}
        self.labels = [classes[e.person] if e.role == "train" else -1 for e in entries]
        self.size, self.resize = size, resize
        self.augmentation = augmentation
        self.instances = instances
        self.in_memory = in_memory
        self.notes: list[str] = []
        self._kept: dict[int, tuple[Bytes, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the images in memory, which would be copied into every worker."""
        return self.__dict__ | {"_kept": {}}

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Training: P x K; else in order.

        Raises:
            ConfigError: P x K does not fit the batch size or the identities.
        """
        if not self.shuffle:
            return super().batches(epoch, rng)
        return identity_batches(self.labels, self.batch_size, self.instances, rng)

    def picture(self, index: int) -> Bytes:
        """Crop `index` at its own size, (h, w, 3) uint8 RGB.

        Raises:
            DataError: The file is broken; the message names it.
        """
        return load(self.entries[index].path)

    def _read(self, index: int) -> tuple[Bytes, str]:
        """Crop `index` at the input's size, and the hash of its file; "" in training."""
        kept = self._kept.get(index)
        if kept is None:
            path = self.entries[index].path
            body = read_bytes(path)
            image = decode(body, path)
            digest = "" if self.shuffle else content_hash(body)
            kept = resized(image, self.size, self.resize), digest
            # Of the two sizes the smaller one is kept: the crops of Market-1501 are a quarter.
            if self.in_memory and get_worker_info() is None and _room():
                self._kept[index] = min(image, kept[0], key=lambda a: a.size), digest
        return resized(kept[0], self.size, self.resize), kept[1]

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Crop `index`, augmented from `rng` in training.

        Returns:
            `id`; `image` (3, H, W) float32 in [0, 1], but for the noise of an erased box; `label`
            class index in training, else -1; `person`, "" unknown; `camera` index of its
            embedding, -1 where there is none; `camera_name`, "" unknown; `domain`, whose cameras
            these are, "" none the model can know; `role`; `path` below the data set's folder;
            `content` SHA-256 of the file, "" in training; `group`.

        Raises:
            DataError: The file is broken; the message names it.
        """
        entry = self.entries[index]
        image, digest = self._read(index)
        how = self.augmentation
        planes = unit(image) if how is None else augmented(image, how, rng)
        return {
            "id": self.ids[index],
            "image": torch.from_numpy(planes),
            "label": self.labels[index],
            "person": entry.person,
            "camera": self.camera(index),
            "camera_name": entry.camera,
            "domain": self.domains[index],
            "role": entry.role,
            "path": entry.name,
            "content": digest,
            "group": self.groups[index],
        }

    def camera(self, index: int) -> int:
        """Index of the embedding of the camera of crop `index`, -1 where there is none."""
        name, domain = self.entries[index].camera, self.domains[index]
        known = domain and domain == self.cameras_of and name in self.cameras
        return self.cameras.index(name) if known else -1

    def collate(self, items: list[Batch]) -> Batch:
        """Join B items.

        Returns:
            `image` (B, 3, H, W) float32, `label` and `camera` (B,) int64; every other key a list of
            B entries.
        """
        batch: Batch = {key: [item[key] for item in items] for key in items[0]}
        batch["image"] = torch.stack(batch["image"])
        for key in ("label", "camera"):
            batch[key] = torch.tensor(batch[key], dtype=torch.int64)
        return batch


def _room() -> bool:
    """Whether enough memory is free to keep another image."""
    memory = psutil.virtual_memory()
    return bool(memory.available > _KEEP_FREE * memory.total)


def embedding_index(batch: Batch, facts: Facts) -> Tensor:
    """Camera embedding of each item for a trained model, (B,) int64, -1 where it has none.

    An item's own `camera` counts in the cameras of the data set it was read with, which at
    evaluation need not be the one of training.

    Args:
        batch: From `ReidSplit.collate`.
        facts: Of the trained model.
    """
    known = {name: i for i, name in enumerate(facts["cameras"])}
    index = [
        known.get(name, -1) if domain and domain == facts["domain"] else -1
        for name, domain in zip(batch["camera_name"], batch["domain"], strict=True)
    ]
    return torch.tensor(index, dtype=torch.int64, device=batch["image"].device)
