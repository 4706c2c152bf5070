"""The data adapter of `wsi_mil`: bags of tile features as other tools leave them.

Read are ACMIL's one HDF5 file, CLAM's `h5_files` and `pt_files`, TRIDENT's job folders, folders of
plain tensors, and tables with one instance a row such as MUSK; labels from csv or attributes;
splits from CLAM's csv, CAMELYON16's json, a column of the label table (BRACS), or drawn by patient.

Features are kept as stored (mostly float16) and handed out as float32. Nothing is normalised here:
standardisation, where asked for, is part of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from zoo.data import ListSplit, fingerprint, leakage, stop_on_errors
from zoo.domains.medical.wsi_mil.bags import Bag, BagFile, Peek
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.layouts import candidates, open_source
from zoo.domains.medical.wsi_mil.marks import Marking, Marks, check_annotations, marking
from zoo.domains.medical.wsi_mil.prediction import (
    Extracted,
    extract_slides,
    slides_at,
    slides_named,
)
from zoo.domains.medical.wsi_mil.survey import (
    Survey,
    common_settings,
    common_width,
    describe,
    inspect,
    survey,
)
from zoo.domains.medical.wsi_mil.tables import available_folds
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Batch, Facts, Finding

__all__ = [
    "Survey",
    "WsiSplit",
    "available_folds",
    "check",
    "classes",
    "facts_of",
    "inputs",
    "instance_statistics",
    "open_splits",
    "survey",
]

# Extraction settings that a trained model depends on.
_MODEL_DEPENDS = ("encoder", "target_magnification", "target_mpp", "patch_size")
# Bags are kept in memory only while this share of the machine's memory stays free.
_KEEP_FREE = 0.1


class WsiSplit(ListSplit):
    """Bags of one split.

    Args:
        bags: The bags, one a slide.
        labels: Class index of each bag, -1 where unknown.
        groups: Patient of each bag.
        peeks: Shapes and extraction settings by slide name.
        classes: Class names in index order.
        merge: Label as stored -> class, as configured.
        in_memory: Keep bags after the first reading.
        batch_size: Bags a batch.
        shuffle: Random order, for training; a smaller last batch is then dropped.
        kept: Bags by slide name that were read already and need not be read again.
        marking: Where annotations are, if there are any.
        slides: Slide name -> slide file, where it is known.

    Attributes:
        width: Features F of an instance.
        notes: What the user should be told about the slides, one line each.

    Raises:
        DataError: There are no bags.
    """

    def __init__(
        self,
        bags: Sequence[BagFile],
        labels: Sequence[int],
        groups: Sequence[str],
        peeks: Mapping[str, Peek],
        classes: Sequence[str],
        *,
        merge: Mapping[str, str] | None = None,
        in_memory: bool = True,
        batch_size: int = 1,
        shuffle: bool = False,
        kept: Mapping[str, Bag] | None = None,
        marking: Marking | None = None,
        slides: Mapping[str, Path] | None = None,
    ) -> None:
        seen = [peeks[bag.id] for bag in bags]
        digest = fingerprint(
            (bag.id, classes[y] if y >= 0 else None, peek.count, peek.width, peek.sample)
            for bag, y, peek in zip(bags, labels, seen, strict=True)
        )
        super().__init__(
            [bag.id for bag in bags],
            groups,
            digest,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
        )
        self.bags = list(bags)
        self.labels = list(labels)
        self.peeks = seen
        self.classes = tuple(classes)
        self.merge = dict(merge or {})
        self.width = common_width(seen)
        self.in_memory = in_memory
        self.notes: list[str] = []
        have = kept or {}
        self._kept = {i: have[bag.id] for i, bag in enumerate(bags) if bag.id in have}
        self.marking = marking
        self.slides = dict(slides or {})
        self._marks: dict[int, Marks | None] = {}
        # Files of features made for this split, which go when it goes.
        self.folder: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the bags in memory, which would be copied into every worker."""
        return self.__dict__ | {"_kept": {}, "folder": None}

    def marks(self, index: int, bag: Bag) -> Marks | None:
        """What the annotation of bag `index` says of its patches; None without one.

        Raises:
            DataError: The annotation is damaged; the message names it.
        """
        if self.marking is None:
            return None
        if index not in self._marks:
            settings = self.peeks[index].settings
            self._marks[index] = self.marking.marks(self.ids[index], bag.coords, settings)
        return self._marks[index]

    def bag(self, index: int) -> Bag:
        """Bag `index` as stored, from memory if it was kept.

        Worker processes use what was kept before they started and keep nothing themselves:
        otherwise each of them would come to hold the whole data set.

        Raises:
            DataError: The file is broken or has changed its width; the message names it.
        """
        bag = self._kept.get(index)
        if bag is None:
            file = self.bags[index]
            bag = file.read()
            if bag.features.shape[1] != self.width:
                msg = f"{file.where}: {bag.features.shape[1]} features, expected {self.width}"
                raise DataError(msg)
            if self.in_memory and get_worker_info() is None and _room():
                self._kept[index] = bag
        return bag

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """Slide `index`; nothing in it is random.

        Returns:
            `features` (N, F) float32; `coords` (N, 2) int64 level-0 pixels or None; `instances`
            (N,) int64 or None, as stored or else from the annotation; `marks`, what the
            annotation says, or None; `slide`, the slide file or None; `label` int, -1 if unknown;
            `id`; `group`; `settings`, the extraction settings, among them `patch_size_level0` in
            level-0 pixels if known.

        Raises:
            DataError: As `bag`.
        """
        bag = self.bag(index)
        marks = self.marks(index, bag)
        instances = bag.instances
        if instances is None and marks is not None:
            instances = marks.labels
        return {
            # A copy: what is done to a batch must not reach the bag kept in memory.
            "features": torch.from_numpy(bag.features.astype(np.float32)),
            "coords": _tensor(bag.coords),
            "instances": _tensor(instances),
            "marks": marks,
            "slide": self.slides.get(self.ids[index]),
            "label": self.labels[index],
            "id": self.ids[index],
            "group": self.groups[index],
            "settings": dict(self.peeks[index].settings),
        }

    def collate(self, items: list[Batch]) -> Batch:
        """Pack B bags of different sizes, without padding.

        Returns:
            `features` (sum of N, F) float32; `cu_seqlens` (B + 1,) int32, where bag b takes rows
            `cu_seqlens[b]` to `cu_seqlens[b + 1]`; `labels` (B,) int64; lists of B entries
            `ids`, `groups`, `coords`, `instances`, `marks`, `slides`, `settings`; and
            `classes`, the class names.
        """
        sizes = torch.tensor([0] + [len(item["features"]) for item in items])
        return {
            "features": torch.cat([item["features"] for item in items]),
            "cu_seqlens": sizes.cumsum(0).to(torch.int32),
            "labels": torch.tensor([item["label"] for item in items], dtype=torch.int64),
            "ids": [item["id"] for item in items],
            "groups": [item["group"] for item in items],
            "coords": [item["coords"] for item in items],
            "instances": [item["instances"] for item in items],
            "marks": [item["marks"] for item in items],
            "slides": [item["slide"] for item in items],
            "classes": self.classes,
            "settings": [item["settings"] for item in items],
        }


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values.copy())


def _room() -> bool:
    """Whether enough memory is free to keep another bag."""
    memory = psutil.virtual_memory()
    return bool(memory.available > _KEEP_FREE * memory.total)


def open_splits(config: Config, found: Survey | None = None) -> dict[str, WsiSplit]:
    """`train` and, as far as there are any, `val` and `test`.

    Args:
        config: The configuration; `data` and `trainer.batch_size` are used.
        found: A survey of the same data section, to spare a second one.

    Raises:
        DataError: The data set is not there, or a slide that a split needs is missing or broken
            and `data.on_error` is not `skip`.
    """
    found = found or survey(config.data)
    stop_on_errors(found.findings)
    return _splits(config, found)


def _splits(config: Config, found: Survey) -> dict[str, WsiSplit]:
    splits = {}
    settled = config.data
    marks = None
    if settled.annotations is not None:
        known = slides_named(found.source.bags, settled.slides)
        marks = marking(config, settled.annotations, known)
    for part, slides in found.parts.names.items():
        split = WsiSplit(
            [found.source.bags[s] for s in slides],
            [found.index[s] for s in slides],
            [found.groups[s] for s in slides],
            found.peeks,
            found.classes,
            merge=config.data.merge,
            in_memory=config.data.in_memory,
            batch_size=config.trainer.batch_size,
            shuffle=part == "train",
            kept=found.kept,
            marking=marks,
        )
        if found.skipped:
            split.notes.append(f"{len(found.skipped)} slides of the data set were skipped")
        split.where = found.origin
        splits[part] = split
    return splits


def classes(config: Config) -> tuple[str, ...]:
    """Class names in index order.

    Raises:
        DataError: As `open_splits`.
    """
    return survey(config.data).classes


def check(config: Config, deep: bool = True, found: Survey | None = None) -> list[Finding]:
    """Everything worth knowing of the data set, errors first.

    Args:
        config: The configuration.
        deep: Read every value of every bag; otherwise shapes and some rows, as before training.
        found: A survey of the same data section, to spare a second one.
    """
    try:
        found = found or survey(config.data, deep)
        splits = _splits(config, found)
    except DataError as error:
        return [Finding("error", str(error))]
    findings = [*found.findings, *leakage(splits), *describe(found)]
    marks = next((split.marking for split in splits.values()), None)
    if marks is not None:
        used = [slide for split in splits.values() for slide in split.ids]
        findings += check_annotations(marks, used, config.data.on_error == "skip")
    return errors_first(findings)


def facts_of(split: WsiSplit) -> Facts:
    """What travels with a model trained on `split`, JSON only.

    Returns:
        `width` of the features, `classes` in index order, `merge` of stored labels, and
        `extraction`, the settings all slides share.
    """
    return {
        "width": split.width,
        "classes": list(split.classes),
        "merge": dict(split.merge),
        "extraction": common_settings(split.peeks),
    }


def instance_statistics(split: WsiSplit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over all instances of a split.

    Bags are merged one by one in float64 (Chan, Golub, LeVeque 1983), so that neither the size of
    the data set nor a large mean costs accuracy.

    Returns:
        (F,) mean and (F,) population deviation, float64; the deviation of a feature that never
        changes is given as 1, so that dividing by it is safe.

    Raises:
        DataError: A bag is broken.
    """
    count = 0
    mean = np.zeros(split.width)
    squares = np.zeros(split.width)
    for index in range(len(split)):
        values = split.bag(index).features.astype(np.float64)
        centre = values.mean(axis=0)
        shift = centre - mean
        total = count + len(values)
        squares += ((values - centre) ** 2).sum(axis=0) + shift**2 * (count * len(values) / total)
        mean += shift * (len(values) / total)
        count = total
    deviation = np.sqrt(squares / max(count, 1))
    # Rounding leaves a constant feature with a deviation of some 1e-16 of its value.
    flat = deviation <= 1e-12 * np.abs(mean)
    return mean, np.where(flat, 1.0, deviation)


def inputs(
    paths: Sequence[Path],
    facts: Facts,
    *,
    batch_size: int = 1,
    skip: bool = False,
    config: Config | None = None,
) -> WsiSplit:
    """Slides to predict on: feature files, folders of them, an ACMIL file, tables, or slides.

    Slides get features here, made as those of the training were. Labels stored with the features
    are used where the model knows them; none are needed.

    Args:
        paths: Files and folders in any layout the adapter reads.
        facts: Of the trained model: `width`, `classes`, `merge`, `extraction`.
        batch_size: Bags a batch.
        skip: Leave out what is broken, with a note, instead of stopping.
        config: Settings of slides and of what is drawn: `data` and `predict`; None: the defaults.

    Returns:
        A split whose `notes` say what was skipped and where the slides differ from what the model
        was trained on.

    Raises:
        DataError: A path holds no features, two slides have one name, a file is broken, or the
            features do not have the width the model was trained on.
    """
    config = config or Config(task="wsi_mil", preset="paper")
    bags, slides = _found_at(paths)
    known = slides | slides_named(bags, config.predict.slides)
    marks = marking(config, config.predict.annotations, known)
    # Before the slides are read, which takes its time.
    told = check_annotations(marks, [*bags, *slides], skip) if marks else []
    stop_on_errors(told)
    made = extract_slides(slides, facts, config) if slides else Extracted({})
    bags |= made.bags
    kept: dict[str, Bag] = {}
    peeks, broken = _fitting(bags, facts, kept)
    if not (skip and peeks):
        stop_on_errors(list(broken.values()))
    names = sorted(peeks)
    classes = tuple(facts.get("classes", ()))
    merge = dict(facts.get("merge", {}))
    split = WsiSplit(
        [bags[name] for name in names],
        [_known_label(bags[name], classes, merge) for name in names],
        names,
        peeks,
        classes,
        merge=merge,
        in_memory=False,
        batch_size=batch_size,
        kept=kept,
        marking=marks,
        slides={name: known[name] for name in names if name in known},
    )
    split.folder = made.folder
    split.notes = [*made.skipped, *(f"skipped {finding.line()}" for finding in broken.values())]
    split.notes += [finding.line() for finding in told if finding.level == "warning"]
    if config.predict.slides is not None and not split.slides:
        split.notes.append(f"predict.slides={config.predict.slides}: no slide of these names")
    split.notes += _differences(split, facts.get("extraction", {}))
    return split


def _fitting(
    bags: Mapping[str, BagFile], facts: Facts, kept: dict[str, Bag]
) -> tuple[dict[str, Peek], dict[str, Finding]]:
    """As `inspect`, for bags of the width that the model was trained on."""
    peeks, broken = inspect(bags.values(), False, kept)
    width = int(facts["width"])
    encoder = dict(facts.get("extraction", {})).get("encoder")
    told = f" ({encoder})" if encoder else ""
    for name in [name for name, peek in peeks.items() if peek.width != width]:
        what = (
            f"{peeks.pop(name).width} features an instance, but the model was trained on "
            f"{width}{told}"
        )
        remedy = "extract the slides with the same encoder"
        broken[name] = Finding("error", what, bags[name].where, remedy)
    return peeks, broken


def _found_at(paths: Sequence[Path]) -> tuple[dict[str, BagFile], dict[str, Path]]:
    """Features at the paths, and slides where there are none; each slide once."""
    bags: dict[str, BagFile] = {}
    slides: dict[str, Path] = {}
    where: dict[str, str] = {}
    for path in map(Path, paths):
        features = {bag.id: bag for bag in _bags_at(path)}
        pixels = {} if features else slides_at(path)
        if not features and not pixels:
            msg = (
                f"{path}: no features found, and no slide; expected .h5, .pt, csv, a slide file, "
                "or a folder of them"
            )
            raise DataError(msg)
        places = {n: b.where for n, b in features.items()} | {n: str(p) for n, p in pixels.items()}
        for name, place in places.items():
            if name in where:
                msg = f"{place}: slide '{name}' is also in {where[name]}"
                raise DataError(msg)
            where[name] = place
        bags |= features
        slides |= pixels
    return bags, slides


def _bags_at(path: Path) -> Iterable[BagFile]:
    for layout, place in candidates(path):
        yield from open_source(layout, place).bags.values()


def _known_label(bag: BagFile, classes: Sequence[str], merge: Mapping[str, str]) -> int:
    label = bag.label()
    name = None if label is None else merge.get(label, label)
    return classes.index(name) if name in classes else -1


def _differences(split: WsiSplit, extraction: Mapping[str, Any]) -> list[str]:
    """A line for each setting in which slides differ from those the model was trained on."""
    notes = []
    for key in _MODEL_DEPENDS:
        expected = extraction.get(key)
        if expected is None:
            continue
        other = [
            (name, peek.settings[key])
            for name, peek in zip(split.ids, split.peeks, strict=True)
            if key in peek.settings and peek.settings[key] != expected
        ]
        if other:
            name, value = other[0]
            notes.append(
                f"{len(other)} slides were extracted with another {key} than the model's training "
                f"data ({value} for '{name}', {expected} in training); predictions may be wrong"
            )
    return notes
