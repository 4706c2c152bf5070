"""The data adapter of `medusa`: radiographs of COVIDx, RSNA, RICORD, csv folders, lung masks.

Each radiograph becomes two inputs, the backbone's in [0, 1] and the body's standardised, as the
official evaluation makes them. Names and ids of patients stay in memory; ids of DICOM files and all
groups are aliases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch.utils.data import get_worker_info

from zoo.data import ListSplit, fingerprint, leakage, stop_on_errors
from zoo.domains.medical import dicom
from zoo.domains.medical.medusa import augment
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.entries import Entry, canonical, positive_of
from zoo.domains.medical.medusa.images import (
    Bytes,
    Prepared,
    Preprocessing,
    Raster,
    as_input,
    is_image,
    load,
    load_mask,
    prepare,
    relative,
    sample_of,
    standardised,
)
from zoo.domains.medical.medusa.layouts import find, recognise
from zoo.domains.medical.medusa.sampler import balanced_batches
from zoo.domains.medical.medusa.survey import Survey, aliases, confounded, describe, survey
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Batch, Facts, Finding, Split

__all__ = [
    "MedusaSplit",
    "Survey",
    "available_folds",
    "check",
    "facts_of",
    "inputs",
    "open_splits",
    "survey",
]

# Images are kept in memory only while this share of the machine's memory stays free.
_KEEP_FREE = 0.1


class MedusaSplit(ListSplit):
    """Radiographs of one split.

    Args:
        entries: The radiographs.
        classes: Class names in index order; empty when the body is trained.
        how: Sizes and crops.
        ids: A name for each, without a patient's.
        groups: An alias of each one's patient.
        samples: Checksum of each file by entry name.
        augmentation: aligned, legacy or none.
        balance: Share of the positive class in each batch; 0: as they come.
        merge: Label as stored -> class, as configured.
        in_memory: Keep what was decoded.
        batch_size: Items a batch.
        shuffle: Random order, for training.

    Attributes:
        labels: Class index of each radiograph, -1 unknown.
        paths: File of each; for the user's eyes, it may name a patient.
        notes: What the user should be told, one line each.

    Raises:
        DataError: There are no radiographs.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        classes: Sequence[str],
        how: Preprocessing,
        *,
        ids: Sequence[str],
        groups: Sequence[str],
        samples: Mapping[str, int],
        augmentation: str = "none",
        balance: float = 0.0,
        merge: Mapping[str, str] | None = None,
        in_memory: bool = False,
        batch_size: int = 1,
        shuffle: bool = False,
    ) -> None:
        self.labels = [classes.index(e.label) if e.label in classes else -1 for e in entries]
        digest = fingerprint(
            (name, e.label, samples[e.name], e.box, len(e.masks))
            for name, e in zip(ids, entries, strict=True)
        )
        super().__init__(ids, groups, digest, batch_size=batch_size, shuffle=shuffle)
        self.entries = list(entries)
        self.paths = [e.path for e in entries]
        self.classes = tuple(classes)
        self.how = how
        self.augmentation = augmentation
        self.balance = balance
        self.composed = "each batch has data.balance of the positive class" if balance else ""
        self.merge = dict(merge or {})
        self.in_memory = in_memory
        self.notes: list[str] = []
        self._kept: dict[int, tuple[Raster, Bytes | None] | Prepared] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the images in memory, which would be copied into every worker."""
        return self.__dict__ | {"_kept": {}}

    def batches(self, epoch: int, rng: np.random.Generator) -> list[list[int]]:
        """Training: the positive class at its share of each batch; else in order."""
        if not self.shuffle:
            return super().batches(epoch, rng)
        positive = positive_of(self.classes) if self.classes else -1
        return balanced_batches(self.labels, positive, self.batch_size, self.balance, rng)

    def raster(self, index: int) -> tuple[Raster, Bytes | None]:
        """Radiograph `index` at its own size and its lung mask, as decoded.

        Raises:
            DataError: The file is broken; the message names it.
        """
        entry = self.entries[index]
        raster = load(entry.path, entry.box)
        if entry.meta:
            # The list knows better than the header, where it knows at all.
            known = {k: v for k, v in entry.meta.items() if v}
            raster = replace(raster, meta={**raster.meta, **known})
        mask = load_mask(entry.masks, raster.grey.shape) if entry.masks else None
        return raster, mask

    def _prepared(self, index: int, rng: np.random.Generator) -> Prepared:
        """What does not change is kept: the decoded image if it is augmented, else both inputs."""
        kept = self._kept.get(index)
        if self.augmentation == "aligned":
            pair = cast("tuple[Raster, Bytes | None] | None", kept) or self.raster(index)
            self._keep(index, pair)
            raster, mask = augment.aligned(*pair, rng)
            return prepare(raster, self.how, mask)
        plain = cast("Prepared | None", kept) or prepare(*_in_order(self.raster(index), self.how))
        self._keep(index, plain)
        if self.augmentation == "legacy":
            return replace(plain, image=augment.legacy(plain.image, rng))
        return plain

    def _keep(self, index: int, what: tuple[Raster, Bytes | None] | Prepared) -> None:
        # Worker processes keep nothing: each of them would come to hold the whole data set.
        if self.in_memory and get_worker_info() is None and _room():
            self._kept.setdefault(index, what)

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Radiograph `index`, augmented from `rng` in training.

        Returns:
            `image` (3, S, S) float32 in [0, 1], channels blue, green, red; `semantic` (1, T, T)
            float32 of zero mean and unit deviation; `mask` (1, T, T) float32, 1 inside the lungs,
            or None; `label` int, -1 unknown; `weight` float; `id`; `group`; `source`; `meta`
            (`sex` M, F, O; `age` years; `view`; "" unknown); `preview` (h, w) uint8.

        Raises:
            DataError: The file is broken; the message names it.
        """
        made = self._prepared(index, rng)
        mask = None if made.mask is None else torch.from_numpy(made.mask[None].astype(np.float32))
        entry = self.entries[index]
        return {
            "image": torch.from_numpy(as_input(made.image)),
            "semantic": torch.from_numpy(standardised(made.semantic)),
            "mask": mask,
            "label": self.labels[index],
            "weight": entry.weight,
            "id": self.ids[index],
            "group": self.groups[index],
            "source": entry.source,
            "meta": {key: made.meta.get(key, "") for key in ("sex", "age", "view")},
            "preview": made.preview,
        }

    def collate(self, items: list[Batch]) -> Batch:
        """Stack B radiographs.

        Returns:
            `image` (B, 3, S, S), `semantic` (B, 1, T, T), `label` (B,) int64, `weight` (B,)
            float32; `mask` (B, 1, T, T), zeros where there is none, and `has_mask` (B,) bool; lists
            of B entries `ids`, `groups`, `source`, `meta`, `preview`.
        """
        blank = torch.zeros_like(items[0]["semantic"])
        masks = [blank if item["mask"] is None else item["mask"] for item in items]
        return {
            "image": torch.stack([item["image"] for item in items]),
            "semantic": torch.stack([item["semantic"] for item in items]),
            "mask": torch.stack(masks),
            "has_mask": torch.tensor([item["mask"] is not None for item in items]),
            "label": torch.tensor([item["label"] for item in items], dtype=torch.int64),
            "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
            "ids": [item["id"] for item in items],
            "groups": [item["group"] for item in items],
            "source": [item["source"] for item in items],
            "meta": [item["meta"] for item in items],
            "preview": [item["preview"] for item in items],
        }


def _in_order(
    pair: tuple[Raster, Bytes | None], how: Preprocessing
) -> tuple[Raster, Preprocessing, Bytes | None]:
    return pair[0], how, pair[1]


def _room() -> bool:
    """Whether enough memory is free to keep another image."""
    memory = psutil.virtual_memory()
    return bool(memory.available > _KEEP_FREE * memory.total)


def _preprocessing(config: Config) -> Preprocessing:
    data, model = config.data, config.model
    return Preprocessing(model.image_size, model.body_size, data.crop_top, data.square)


def identify(entries: Sequence[Entry]) -> list[str]:
    """A name for each radiograph: that of its file, or an alias where the file is DICOM.

    A DICOM file's name is often made of what its header says of the patient.
    """
    hidden = aliases(e.name for e in entries)
    short = Counter(e.path.name for e in entries)
    return [
        f"dicom-{hidden[e.name]}"
        if dicom.is_dicom(e.path)
        else e.path.name
        if short[e.path.name] == 1
        else e.name.replace("/", "__")
        for e in entries
    ]


def open_splits(config: Config, found: Survey | None = None) -> dict[str, Split]:
    """`train`, `val` unless there is none, and `test`.

    Args:
        config: The configuration; `data`, the model's sizes, `optim.objective` and
            `trainer.batch_size` are used.
        found: A survey of the same configuration, to spare a second one.

    Raises:
        DataError: The data set is not there, a patient is in two splits, or a listed file is
            missing or broken and the configuration does not say to leave it out.
    """
    found = found or survey(config)
    stop_on_errors(found.findings)
    return cast("dict[str, Split]", _splits(config, found))


def _splits(config: Config, found: Survey) -> dict[str, MedusaSplit]:
    data, splits = config.data, {}
    for part, entries in found.parts.items():
        training = part == "train"
        split = MedusaSplit(
            entries,
            found.classes,
            _preprocessing(config),
            ids=identify(entries),
            groups=[found.people[e.patient or e.name] for e in entries],
            samples=found.samples,
            augmentation=data.augment if training else "none",
            balance=data.balance if training else 0.0,
            merge=data.merge,
            in_memory=data.in_memory,
            batch_size=config.trainer.batch_size,
            shuffle=training,
        )
        confound = confounded(entries)
        if confound:
            split.notes.append(f"{part}: {confound}")
        if found.skipped:
            split.notes.append(f"{found.skipped} listed radiographs were not used")
        splits[part] = split
    return splits


def check(config: Config, deep: bool = True, found: Survey | None = None) -> list[Finding]:
    """Everything worth knowing of the data set, errors first.

    Args:
        config: The configuration.
        deep: Decode every image; otherwise names, sizes, first and last bytes.
        found: A survey of the same configuration, to spare a second one.
    """
    try:
        found = found or survey(config, deep)
        splits = _splits(config, found)
    except DataError as error:
        return [Finding("error", str(error))]
    findings = [*found.findings, *describe(found)]
    if not any(f.level == "error" for f in findings):
        findings += leakage(cast("dict[str, Split]", splits))
    return errors_first(findings)


def available_folds(config: Config) -> list[int]:
    """The folds of `zoo cv`: `data.folds` by patient, else none."""
    return list(range(config.data.folds))


def facts_of(train: Split) -> Facts:
    """What travels with a model trained on a split, JSON only.

    Returns:
        `classes` in index order, `positive` (index of the class that sensitivity is about, -1
        without classes), `merge` of stored labels, `preprocessing` (`image_size`, `body_size`,
        `crop_top`, `square`), and `confound`, "" or why the source tells the class.
    """
    split = cast("MedusaSplit", train)
    return {
        "classes": list(split.classes),
        "positive": positive_of(split.classes) if split.classes else -1,
        "merge": dict(split.merge),
        "preprocessing": asdict(split.how),
        "confound": confounded(split.entries),
    }


# -- prediction ---------------------------------------------------------------------------------


def inputs(paths: Sequence[Path], facts: Facts, config: Config) -> Split:
    """Radiographs to predict on: image and DICOM files, folders of them, data sets.

    Labels are used where a folder has one of the layouts and the model knows them.

    Args:
        paths: Files and folders.
        facts: Of the trained model; its sizes and crops are used, not the configuration's.
        config: For `data.on_error` and `trainer.batch_size`.

    Returns:
        A split whose `notes` say what was skipped.

    Raises:
        DataError: A path holds no radiograph, two have one name, or a file is broken.
    """
    classes, merge = tuple(facts["classes"]), dict(facts.get("merge", {}))
    entries: dict[str, Entry] = {}
    for path in map(Path, paths):
        for entry in _entries_at(path, config):
            label = canonical(entry.label)
            known = replace(entry, label=merge.get(label, label))
            if entry.name in entries and entries[entry.name].path != entry.path:
                msg = f"{entry.path}: its name is also that of {entries[entry.name].path}"
                raise DataError(msg)
            entries[entry.name] = known
    notes, samples, sound = [], {}, []
    skip = config.data.on_error == "skip"
    for entry in entries.values():
        try:
            samples[entry.name] = sample_of(entry.path)
            if skip:
                load(entry.path, entry.box)
            sound.append(entry)
        except DataError as error:
            if not skip:
                raise
            notes.append(f"skipped: {error}")
    if not sound:
        msg = "; ".join(notes) or "no radiographs to predict on"
        raise DataError(msg)
    people = aliases(e.patient or e.name for e in sound)
    split = MedusaSplit(
        sound,
        classes,
        Preprocessing(**facts["preprocessing"]),
        ids=identify(sound),
        groups=[people[e.patient or e.name] for e in sound],
        samples=samples,
        merge=merge,
        batch_size=config.trainer.batch_size,
    )
    split.notes = notes + _views(sound)
    return cast("Split", split)


def _entries_at(path: Path, config: Config) -> Sequence[Entry]:
    if path.is_dir():
        data = config.data.model_copy(
            update={"root": path, "layout": "auto", "labels": None, "version": None}
        )
        layout = recognise(data)
        if layout is not None:
            present = [e for e in find(data).entries if e.path.is_file()]
            if present:
                return present
        files = sorted(p for p in path.rglob("*") if not p.is_dir() and is_image(p))
        if not files:
            msg = f"{path}: no radiographs in this folder; expected .png, .jpg or DICOM files"
            raise DataError(msg)
        return [_single(p, relative(p, path)) for p in files]
    if not path.is_file():
        msg = f"{path}: no such file or folder"
        raise DataError(msg)
    return [_single(path, path.name)]


def _single(path: Path, name: str) -> Entry:
    """A file without a list: the patient of a DICOM file is that of its header."""
    if not dicom.is_dicom(path):
        return Entry(name, path, name)
    header = dicom.read_header(path)
    meta = {"sex": header.sex, "age": header.age, "view": header.view}
    return Entry(name, path, header.patient or name, meta=meta)


def _views(entries: Sequence[Entry]) -> list[str]:
    """A note on views the model was not made for."""
    other = [e for e in entries if e.meta.get("view") and e.meta["view"][:2] not in dicom.FRONTAL]
    if not other:
        return []
    told = ", ".join(sorted({e.meta["view"] for e in other}))
    return [f"{len(other)} images are no frontal views ({told}); predictions on them mean nothing"]
