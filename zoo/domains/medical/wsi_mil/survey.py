"""Looking over a whole data set: which slides can be used, what is wrong with the others.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

from zoo.domains.medical.wsi_mil.bags import Bag, BagFile, Peek
from zoo.domains.medical.wsi_mil.config import WsiData
from zoo.domains.medical.wsi_mil.layouts import Source, find
from zoo.domains.medical.wsi_mil.tables import (
    Labels,
    Parts,
    classes_of,
    draw,
    few,
    read_labels,
    read_parts,
)
from zoo.errors import DataError
from zoo.task import Finding

T = TypeVar("T")
# Differences in these mean that slides were extracted in different ways.
_MUST_AGREE = (
    "encoder",
    "target_magnification",
    "target_mpp",
    "patch_size",
    "patch_level",
    "overlap",
)
# Bytes of bags that are read whole before a training, so that a value that is not finite is told
# while nothing has been written; what was read stays in memory. Larger data sets take too long.
_READ_FIRST = 2 * 2**30


@dataclass(frozen=True)
class Survey:
    """What a data set holds and what is wrong with it.

    Attributes:
        source: The bags.
        labels: Labels and patients as the tables say.
        parts: Split -> usable slides.
        classes: Class names in index order.
        index: Slide -> class index, for every slide with features and label.
        groups: Slide -> patient.
        peeks: Sound slide -> shapes and extraction settings.
        findings: Everything that is wrong; errors are warnings under `data.on_error=skip`.
        skipped: Slides left out because something is wrong with them.
        kept: Slide -> its bag, where looking it over meant reading it and it may stay in memory.
    """

    source: Source
    labels: Labels
    parts: Parts
    classes: tuple[str, ...]
    index: Mapping[str, int]
    groups: Mapping[str, str]
    peeks: Mapping[str, Peek]
    findings: Sequence[Finding]
    skipped: Sequence[str]
    kept: Mapping[str, Bag] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """The files that tell which slides and patients are in a split, for messages."""
        origin = self.parts.where or self.labels.where
        apart = self.labels.patient and self.labels.where != origin
        return f"{origin} (patients of {self.labels.where})" if apart else origin


def survey(data: WsiData, deep: bool = False, keep: bool = False) -> Survey:
    """Find bags, labels and splits, and look at every bag that is used.

    Args:
        data: The data section.
        deep: Read every value of every bag, used or not. Bags are skipped before training starts,
            so `data.on_error=skip` always reads everything.
        keep: Read every value of a small data set that is to be kept in memory, and keep it.

    Raises:
        DataError: There is nothing to look over: no features, labels, or split file as configured.
    """
    skip = data.on_error == "skip"
    source = find(data)
    labels = read_labels(data, source)
    given = read_parts(data, labels, source.bags.keys() | labels.label.keys())
    findings = _unpaired(source, labels, given, skip)
    usable = source.bags.keys() & labels.label.keys()
    used = sorted(usable if given is None else usable.intersection(_listed(given)))
    kept: dict[str, Bag] | None = {} if keep and data.in_memory else None
    peeks, broken = inspect([source.bags[s] for s in used], deep or skip, kept)
    findings += [_level(f, skip) for f in broken.values()]
    findings += _wrong_width(peeks, source, data)
    if deep:
        others = [bag for name, bag in source.bags.items() if name not in set(used)]
        idle = inspect(others, deep)[1]
        findings += [Finding("warning", f.what, f.where) for f in idle.values()]
    groups = {s: labels.patient.get(s, s) for s in used}
    classes: tuple[str, ...] = _or_note(
        lambda: classes_of({s: labels.label[s] for s in used}, data, labels.where), (), findings
    )
    index = {}
    if classes:
        merged = {s: data.merge.get(labels.label[s], labels.label[s]) for s in used}
        index = {s: classes.index(name) for s, name in merged.items()}
    sound = {s: y for s, y in index.items() if s in peeks}
    parts = _or_note(
        lambda: _divide(given, sound, groups, data, labels.where), Parts("", {}), findings
    )
    wanted = used if given is None else _listed(given)
    skipped = [s for s in wanted if s not in peeks]
    return Survey(
        source, labels, parts, classes, index, groups, peeks, findings, skipped, kept or {}
    )


def inspect(
    bags: Iterable[BagFile], deep: bool, kept: dict[str, Bag] | None = None
) -> tuple[dict[str, Peek], dict[str, Finding]]:
    """Look at bags; all must have the width that most of them have.

    Args:
        bags: The bags.
        deep: Read and check every value, not shapes alone.
        kept: Takes the bags, which are then read even if not `deep`, provided that all together
            are small.

    Returns:
        Slide -> what was seen, for sound bags; slide -> error, for the others.
    """
    peeks: dict[str, Peek] = {}
    broken: dict[str, Finding] = {}
    files = {bag.id: bag for bag in bags}
    for name, bag in files.items():
        try:
            peeks[name] = bag.peek()
        except DataError as error:
            broken[name] = Finding("error", str(error))
    keep = kept is not None and _small(peeks.values())
    for name in list(peeks) if deep or keep else ():
        try:
            content = files[name].read()
        except DataError as error:
            del peeks[name]
            broken[name] = Finding("error", str(error))
        else:
            if kept is not None and keep:
                kept[name] = content
    width = common_width(peeks.values())
    for name, peek in list(peeks.items()):
        if peek.width != width:
            del peeks[name]
            told = f"slide '{name}' has {peek.width} features an instance, other slides {width}"
            broken[name] = Finding(
                "error", told, files[name].where, "extract it with the encoder of the others"
            )
    return peeks, broken


def _wrong_width(peeks: Mapping[str, Peek], source: Source, data: WsiData) -> list[Finding]:
    """An error if the features are of another encoder than the one asked for."""
    width = common_width(peeks.values())
    if data.width is None or not peeks or width == data.width:
        return []
    told = f"{width} features an instance, but data.width={data.width}"
    return [Finding("error", told, str(source.path), "choose the preset of your encoder")]


def _small(peeks: Iterable[Peek]) -> bool:
    """Whether the bags may be read before a training and stay in memory."""
    size = sum(4 * peek.count * peek.width for peek in peeks)
    return bool(size <= min(_READ_FIRST, psutil.virtual_memory().available // 2))


def common_width(peeks: Iterable[Peek]) -> int:
    """The feature width most bags have (the smaller one of two as frequent), 0 without bags."""
    counts = Counter(peek.width for peek in peeks)
    return min(counts, key=lambda w: (-counts[w], w)) if counts else 0


def describe(found: Survey) -> list[Finding]:
    """Counts, sizes, extraction settings, and what is allowed but often not meant."""
    peeks = found.peeks
    origin = found.parts.where or "drawn by patient with data.split_seed"
    lines = [
        Finding(
            "info",
            f"layout {found.source.layout}: {len(found.source.bags)} slides with features, "
            f"{common_width(peeks.values())} features an instance",
            str(found.source.path),
        ),
        Finding("info", f"labels from {found.labels.where}; splits from {origin}"),
    ]
    for part, slides in found.parts.names.items():
        lines += _describe_part(found, part, slides)
    if found.skipped:
        lines.append(Finding("info", f"{len(found.skipped)} slides are not usable"))
    if not found.labels.patient:
        told = "no patient column: every slide counts as a patient of its own"
        lines.append(Finding("info", told, found.labels.where, "set data.patient_column"))
    return lines + _cut_patients(found) + _settings(found)


def common_settings(peeks: Iterable[Peek]) -> dict[str, object]:
    """Extraction settings that all bags share."""
    seen = [dict(peek.settings) for peek in peeks]
    first = seen[0] if seen else {}
    return {k: v for k, v in first.items() if all(k in s and s[k] == v for s in seen)}


def _describe_part(found: Survey, part: str, slides: Sequence[str]) -> list[Finding]:
    sizes = sorted(found.peeks[s].count for s in slides)
    counts = Counter(found.index[s] for s in slides)
    shown = ", ".join(f"{name} {counts[i]}" for i, name in enumerate(found.classes))
    patients = len({found.groups[s] for s in slides})
    lines = [
        Finding(
            "info",
            f"{part}: {len(slides)} slides of {patients} patients ({shown}); instances "
            f"min {sizes[0]}, median {sizes[len(sizes) // 2]}, max {sizes[-1]}",
        )
    ]
    missing = [name for i, name in enumerate(found.classes) if not counts[i]]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        lines.append(Finding("warning", f"split '{part}' has no slide of {names}"))
    return lines


def _cut_patients(found: Survey) -> list[Finding]:
    """CAMELYON17's table cuts `patient_047` to `patient_04`: ten ids for all patients."""
    cut = [
        (slide, patient)
        for slide, patient in found.groups.items()
        if re.match(re.escape(patient) + r"(?<=\d)\d", slide)
    ]
    if 2 * len(cut) <= len(found.groups):
        return []
    slide, patient = cut[0]
    return [
        Finding(
            "warning",
            f"patients look cut off: '{patient}' for slide '{slide}', {len(cut)} slides in all",
            found.labels.where,
            "correct the column or set data.patient_column",
        )
    ]


def _settings(found: Survey) -> list[Finding]:
    lines = []
    shared = common_settings(found.peeks.values())
    if shared:
        told = ", ".join(f"{k}={v}" for k, v in sorted(shared.items()))
        lines.append(Finding("info", f"all slides extracted with {told}"))
    for key in _MUST_AGREE:
        seen = Counter(str(p.settings[key]) for p in found.peeks.values() if key in p.settings)
        if len(seen) > 1:
            told = ", ".join(f"{value} ({n} slides)" for value, n in seen.most_common(4))
            lines.append(Finding("warning", f"slides were extracted with different {key}: {told}"))
    return lines


def _listed(parts: Parts) -> list[str]:
    return list(dict.fromkeys(s for slides in parts.names.values() for s in slides))


def _level(finding: Finding, skip: bool) -> Finding:
    """An error, or the warning it is under `data.on_error=skip`."""
    if not skip:
        return finding
    return Finding("warning", f"skipped: {finding.what}", finding.where)


def _or_note(make: Callable[[], T], otherwise: T, findings: list[Finding]) -> T:
    """What `make` gives; if it fails after errors were found, those are told as well."""
    try:
        return make()
    except DataError as error:
        if not any(f.level != "info" for f in findings):
            raise
        findings.append(Finding("error", str(error)))
        return otherwise


def _unpaired(source: Source, labels: Labels, given: Parts | None, skip: bool) -> list[Finding]:
    """Slides that lack features or a label, as far as a split needs them."""
    findings = [_level(Finding("error", why), skip) for why in labels.unreadable.values()]
    hint = "add it, correct the table, or set data.on_error=skip"
    if given is None:
        for slide in sorted(labels.label.keys() - source.bags.keys()):
            told = f"slide '{slide}' has a label but no features in {source.path}"
            findings.append(_level(Finding("error", told, labels.where, hint), skip))
    for part, slides in given.names.items() if given is not None else ():
        for slide in slides:
            lacks = [
                f"no {what} in {where}"
                for what, have, where in (
                    ("features", source.bags, str(source.path)),
                    ("label", labels.label, labels.where),
                )
                if slide not in have and slide not in labels.unreadable
            ]
            if lacks:
                told = f"split '{part}' names slide '{slide}', which has {' and '.join(lacks)}"
                findings.append(
                    _level(Finding("error", told, given.where if given else "", hint), skip)
                )
    idle = sorted(source.bags.keys() - labels.label.keys() - labels.unreadable.keys())
    if idle:
        shown = ", ".join(idle[:3]) + (" …" if len(idle) > 3 else "")
        told = f"{len(idle)} slides have features but no label and are not used: {shown}"
        findings.append(Finding("warning", told, labels.where))
    if given is not None:
        rest = labels.label.keys() - set(_listed(given))
        if rest:
            told = f"{len(rest)} labelled slides are in no split and are not used"
            findings.append(Finding("info", told, given.where))
    return findings


def _divide(
    given: Parts | None,
    index: Mapping[str, int],
    groups: Mapping[str, str],
    data: WsiData,
    where: str,
) -> Parts:
    """The splits over sound slides, training thinned out to `data.shots` a class."""
    if given is None:
        try:
            parts = draw(index, {s: groups[s] for s in index}, data)
        except DataError as error:
            msg = f"{where}: {error}"
            raise DataError(msg) from None
    else:
        kept = {part: [s for s in slides if s in index] for part, slides in given.names.items()}
        parts = Parts(given.where, kept)
    where = parts.where or f"splits drawn from {where}"
    for part, slides in parts.names.items():
        if not slides:
            msg = f"{where}: split '{part}' has no usable slide"
            raise DataError(msg)
    train = parts.names["train"]
    if len({index[s] for s in train}) < 2:
        msg = f"{where}: split 'train' has slides of one class only; nothing can be learnt"
        raise DataError(msg)
    if data.shots is not None:
        return Parts(
            parts.where,
            dict(parts.names) | {"train": few(train, index, data.shots, data.split_seed)},
        )
    return parts
