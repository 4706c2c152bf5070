"""Looking over data sets: which crops can be used for what, what is wrong with the others.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zoo.data import split_rng
from zoo.domains.reid.fusion_reid import names
from zoo.domains.reid.fusion_reid.config import Config, ReidData
from zoo.domains.reid.fusion_reid.images import load
from zoo.domains.reid.fusion_reid.layouts import ROLES, Entry, Found, Role, find, parse_test
from zoo.domains.reid.fusion_reid.sampler import most_items
from zoo.errors import DataError
from zoo.task import Finding


@dataclass(frozen=True)
class Part:
    """The crops of one split.

    Attributes:
        entries: Training crops, or queries followed by gallery.
        domain: Whose cameras they were taken by: equal cameras of unlike domains are unlike.
        root: The data set's folder.
    """

    entries: Sequence[Entry]
    domain: str
    root: Path


@dataclass(frozen=True)
class Survey:
    """What the data hold and what is wrong with them.

    Attributes:
        sets: Layout and folder of each data set: that of training first.
        parts: Split -> its crops: `train`, `val`, `test`, `test_<name>`.
        identities: Training identities in class order.
        cameras: Cameras of the training crops, sorted, in the order of their embeddings.
        findings: Everything that is wrong; errors in files are warnings under
            `data.on_error=skip`.
        skipped: Crops left out because something is wrong with them.
        sizes: (height, width) in pixels -> crops, where all were read.
    """

    sets: Sequence[Found]
    parts: Mapping[str, Part]
    identities: Sequence[str]
    cameras: Sequence[str]
    findings: Sequence[Finding]
    skipped: int = 0
    sizes: Mapping[tuple[int, int], int] | None = None


def survey(config: Config, deep: bool = False) -> Survey:
    """Find the data sets, hold out identities, look at every file that is used.

    Args:
        config: The configuration with `data.root` settled; `data`, `model.camera` and
            `trainer.batch_size` are used.
        deep: Decode every image. Images are skipped before training starts, so
            `data.on_error=skip` always does.

    Raises:
        DataError: A data set is not there, or there are several to choose from.
    """
    data = config.data
    if data.root is None:
        msg = "data.root is missing; name the folder of the data set"
        raise DataError(msg)
    skip = data.on_error == "skip"
    sets = [find(data.root, data.layout, data)]
    sets += [find(path, layout, data) for layout, path in map(parse_test, data.test)]
    sizes: Counter[tuple[int, int]] = Counter()
    findings: list[Finding] = []
    sound = []
    for found in sets:
        good, errors = _sound(found, deep or skip, sizes)
        findings += [_level(f, skip) for f in (*found.findings, *errors)]
        sound.append(replace(found, entries=good))
    parts = _divided(sound, data)
    findings += _faults(parts, sound, config)
    train = parts["train"].entries if "train" in parts else ()
    return Survey(
        sets=sets,
        parts=parts,
        identities=sorted({e.person for e in train}, key=names.order),
        cameras=sorted({e.camera for e in train}, key=names.order),
        findings=findings,
        skipped=sum(f.level == "warning" and f.what.startswith("skipped") for f in findings),
        sizes=sizes if deep else None,
    )


def _level(finding: Finding, skip: bool) -> Finding:
    """An error in a file, or the warning it is under `data.on_error=skip`."""
    if not skip or finding.level != "error":
        return finding
    return Finding("warning", f"skipped: {finding.what}", finding.where)


def _sound(
    found: Found, deep: bool, sizes: Counter[tuple[int, int]]
) -> tuple[list[Entry], list[Finding]]:
    """Entries whose file is whole, as far as was looked."""
    good, errors = [], []
    for entry in found.entries:
        if not entry.size:
            errors.append(Finding("error", "the file is empty", str(entry.path)))
            continue
        if deep:
            try:
                sizes[load(entry.path).shape[:2]] += 1
            except DataError as error:
                errors.append(Finding("error", str(error)))
                continue
        good.append(entry)
    return good, errors


# -- splits -------------------------------------------------------------------------------------


def _divided(sets: Sequence[Found], data: ReidData) -> dict[str, Part]:
    """Split -> crops; a seeded share of the training identities makes `val`."""
    own, *others = sets
    domain = names.domain_of(own.layout)
    train = [e for e in own.entries if e.role == "train"]
    held = _held_out({e.person for e in train}, data)
    split = {
        "train": [e for e in train if e.person not in held],
        "val": queries_and_gallery([e for e in train if e.person in held], data.split_seed),
        "test": _test_of(own),
    }
    parts = {k: Part(entries, domain, own.where) for k, entries in split.items() if entries}
    for found in others:
        name = _free_name(found, parts)
        # The embeddings of the training cameras say nothing of another data set's.
        parts[name] = Part(_test_of(found), "", found.where)
    return parts


def _test_of(found: Found) -> list[Entry]:
    """Queries, then gallery, each in the order of names."""
    return [e for role in ("query", "gallery") for e in found.entries if e.role == role]


def _free_name(found: Found, taken: Mapping[str, Part]) -> str:
    """`test_<layout>`, or the folder's name where the layout is no data set's."""
    said = found.layout if found.layout != "folder" else found.where.resolve().name
    plain = "test_" + (re.sub(r"\W+", "_", said.lower()).strip("_") or "folder")
    names_ = [plain, *(f"{plain}_{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names_ if name not in taken)


def _held_out(people: set[str], data: ReidData) -> set[str]:
    """Identities for validation; at least two stay for training."""
    count = min(round(len(people) * data.val_fraction), len(people) - 2)
    if not data.val_fraction or count < 1:
        return set()
    order = sorted(people, key=names.order)
    return {order[i] for i in split_rng(data.split_seed).permutation(len(order))[:count]}


def queries_and_gallery(entries: Iterable[Entry], seed: int) -> list[Entry]:
    """Divide crops of people as Market-1501 does: one query for each person and camera.

    A crop becomes a query only while every query keeps a gallery image of another camera.

    Args:
        entries: The crops.
        seed: Chooses the queries.

    Returns:
        Queries, then gallery, with their roles.
    """
    rng = split_rng(seed)
    seen: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        seen[entry.person][entry.camera].append(entry)
    queries: list[Entry] = []
    gallery: list[Entry] = []
    for person in sorted(seen, key=names.order):
        left = {camera: list(items) for camera, items in seen[person].items()}
        asked: list[str] = []
        for camera in sorted(left, key=names.order):
            chosen = int(rng.integers(len(left[camera])))
            fewer = {c: len(items) - (c == camera) for c, items in left.items()}
            if all(any(n for c, n in fewer.items() if c != q) for q in (*asked, camera)):
                asked.append(camera)
                queries.append(left[camera].pop(chosen))
        gallery += [e for camera in sorted(left, key=names.order) for e in left[camera]]
    return [replace(e, role="query") for e in queries] + [
        replace(e, role="gallery") for e in gallery
    ]


# -- what is wrong ------------------------------------------------------------------------------


def _faults(parts: Mapping[str, Part], sets: Sequence[Found], config: Config) -> list[Finding]:
    findings = _lacking(parts, sets)
    for name, part in parts.items():
        if name != "train":
            findings += _without_match(name, part)
    findings += _shared(parts)
    if "train" in parts:
        findings += _training(parts["train"].entries, config)
        if config.model.camera in ("camera", "camera+view"):
            findings += _unknown_cameras(parts)
    return findings


def _lacking(parts: Mapping[str, Part], sets: Sequence[Found]) -> list[Finding]:
    """Data sets without queries or gallery."""
    findings = []
    names_ = ["test", *(n for n in parts if n.startswith("test_"))]
    for name, found in zip(names_, sets, strict=True):
        entries = parts[name].entries if name in parts else ()
        roles = Counter(e.role for e in entries)
        if not entries and name == "test" and any(e.role == "train" for e in found.entries):
            told = "there are no queries and no gallery: nothing will be tested"
            findings.append(Finding("warning", told, str(found.where)))
        elif not entries:
            findings.append(Finding("error", "there is no usable image", str(found.where)))
        elif not roles["gallery"]:
            told = f"{name}: the gallery is empty; {roles['query']} queries have nothing to find"
            findings.append(Finding("error", told, str(found.where)))
        elif not roles["query"]:
            told = f"{name}: there are no queries for {roles['gallery']} gallery images"
            findings.append(Finding("error", told, str(found.where)))
    return findings


def _without_match(split: str, part: Part) -> list[Finding]:
    """Queries that no gallery image of another camera shows, which cannot be scored."""
    seen: dict[str, set[str]] = defaultdict(set)
    for entry in part.entries:
        if entry.role == "gallery":
            seen[entry.person].add(entry.camera)
    asked = [e for e in part.entries if e.role == "query"]
    lost = [e for e in asked if not seen[e.person] - {e.camera}]
    if not lost or not any(e.role == "gallery" for e in part.entries):
        return []
    if len(lost) == len(asked):
        told = f"{split}: no query has a gallery image of its person under another camera"
        return [Finding("error", told, str(part.root), "nothing can be scored")]
    absent = sum(not seen[e.person] for e in lost)
    told = (
        f"{split}: {len(lost)} of {len(asked)} queries have no gallery image under another camera "
        f"({absent} whose person is not in the gallery at all); {lost[0].name} is the first"
    )
    return [Finding("warning", told, str(part.root), "they count in no mean")]


def _shared(parts: Mapping[str, Part]) -> list[Finding]:
    """Identities, or very files, that both train or select and test."""
    findings = []
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if first in parts and second in parts:
            both = people_of(parts[first]) & people_of(parts[second])
            if both:
                told = ", ".join(sorted(p for _, p in both)[:3]) + " …" * (len(both) > 3)
                what = f"{len(both)} identities are in both '{first}' and '{second}': {told}"
                remedy = "remove their images from one of the two"
                findings.append(Finding("error", what, str(parts[first].root), remedy))
    own = [part for name, part in parts.items() if name in ("train", "val")]
    known = {(e.path.name, e.size) for part in own for e in part.entries}
    for name, part in parts.items():
        if name.startswith("test_"):
            # Another data set numbers its people anew, so files are compared instead.
            twice = [e for e in part.entries if (e.path.name, e.size) in known]
            if twice:
                what = (
                    f"{len(twice)} images of '{name}' have name and size of one that trains, "
                    f"{twice[0].name} for instance"
                )
                remedy = "test on people who were not trained on"
                findings.append(Finding("error", what, str(part.root), remedy))
    return findings


def people_of(part: Part) -> set[tuple[str, str]]:
    """Naming space and identity of everyone in a split, distractors left out."""
    return {(e.space, e.person) for e in part.entries if e.person != names.DISTRACTOR}


def _training(entries: Sequence[Entry], config: Config) -> list[Finding]:
    counts = Counter(e.person for e in entries)
    size, instances = config.trainer.batch_size, config.data.instances
    if len(counts) < 2:
        told = f"training needs two identities or more, found {len(counts)}"
        return [Finding("error", told, str(entries[0].path.parent))]
    if size % instances or size < 2 * instances or size // instances > len(counts):
        told = (
            f"trainer.batch_size={size} must be data.instances={instances} times a number of "
            f"identities from 2 to {len(counts)}"
        )
        # Evaluation may have any batch size; training stops where it draws its batches.
        return [Finding("warning", told)]
    most = most_items([e.person for e in entries], instances)
    small = sum(n < instances for n in counts.values())
    told = f"train: at most {most // size} batches an epoch, {size // instances} x {instances}"
    if small:
        told += f"; {small} identities have fewer than {instances} images, which are repeated"
    return [Finding("info", told)]


def _unknown_cameras(parts: Mapping[str, Part]) -> list[Finding]:
    """Test cameras of the training data set that no training image was taken by."""
    known = {e.camera for e in parts["train"].entries}
    findings = []
    for name in ("val", "test"):
        strange = [e for e in parts[name].entries if e.camera not in known] if name in parts else []
        if strange:
            cameras = ", ".join(sorted({e.camera for e in strange}, key=names.order))
            told = (
                f"{name}: {len(strange)} images are of cameras without training images ({cameras}),"
                f" so there are {len(known)} camera embeddings and none for them"
            )
            remedy = "set model.camera=none, or remove these images"
            findings.append(Finding("error", told, str(strange[0].path), remedy))
    return findings


# -- what is worth knowing ----------------------------------------------------------------------


def describe(found: Survey) -> list[Finding]:
    """Counts of images, identities and cameras, what was left out, sizes."""
    lines = []
    for one in found.sets:
        lines.append(Finding("info", f"layout {one.layout}", str(one.where)))
        for role, count in one.junk.items():
            told = f"{role}: {count} images marked as junk or as nobody are not used"
            lines.append(Finding("info", told))
    for name, part in found.parts.items():
        for role in ROLES:
            entries = [e for e in part.entries if e.role == role]
            if entries:
                head = name if role == "train" else f"{name}, {role}"
                lines.append(Finding("info", f"{head}: {_counts(entries)}"))
    if found.sizes:
        told = ", ".join(f"{w} x {h} ({n})" for (h, w), n in _common(found.sizes))
        lines.append(Finding("info", f"{len(found.sizes)} image sizes, width x height: {told}"))
    return lines


def _counts(entries: Sequence[Entry]) -> str:
    people = Counter(e.person for e in entries)
    nobody = people.pop(names.DISTRACTOR, 0)
    cameras = len({e.camera for e in entries})
    told = f"{len(entries)} images, {len(people)} identities, {cameras} cameras"
    if people:
        each = np.array(list(people.values()))
        span = f"{each.min()} to {each.max()}" if np.ptp(each) else f"{each[0]}"
        told += f", {span} images each"
    return told + (f", {nobody} distractors" if nobody else "")


def _common(sizes: Mapping[tuple[int, int], int]) -> list[tuple[tuple[int, int], int]]:
    return sorted(sizes.items(), key=lambda pair: -pair[1])[:4]


def role_counts(part: Part) -> dict[Role, int]:
    """Images of a split by role."""
    return dict(Counter(e.role for e in part.entries))
