"""Looking over a whole data set: which radiographs can be used, what is wrong with the others.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from zoo.data import group_folds, stratified_parts
from zoo.domains.medical.medusa.config import Config, MedusaData
from zoo.domains.medical.medusa.entries import (
    PARTS,
    Entry,
    Found,
    canonical,
    classes_for,
    positive_of,
)
from zoo.domains.medical.medusa.images import load, load_mask, sample_of
from zoo.domains.medical.medusa.layouts import find
from zoo.errors import DataError
from zoo.privacy import alias
from zoo.task import Finding

# A list of which so many files are missing is a partial download: files are counted, not told.
_NAMED = 3
# Where the source alone is right this often, a good score says little.
_TELLING = 0.95


@dataclass(frozen=True)
class Survey:
    """What a data set holds and what is wrong with it.

    Attributes:
        layout: covidx, rsna, ricord, csv or masks.
        where: The list, table or folder that names the radiographs.
        parts: Split -> usable entries; every label is one of `classes`, or "".
        classes: Class names in index order; empty when the body is trained.
        samples: Entry's name -> checksum of its file's size, beginning and end.
        people: Patient -> alias. In memory only.
        drawn: Whether train and test were divided here instead of by a list.
        findings: Everything that is wrong; errors in files are warnings under
            `data.on_error=skip`.
        skipped: Radiographs left out because something is wrong with them.
        sizes: (height, width) of each radiograph, where all were read.
    """

    layout: str
    where: str
    parts: Mapping[str, Sequence[Entry]]
    classes: tuple[str, ...]
    samples: Mapping[str, int]
    people: Mapping[str, str]
    drawn: bool
    findings: Sequence[Finding]
    skipped: int = 0
    sizes: Sequence[tuple[int, int]] = ()


def survey(config: Config, deep: bool = False) -> Survey:
    """Find the radiographs, their labels and splits, and look at every file that is used.

    Args:
        config: The configuration; `data` and `optim.objective` are used.
        deep: Decode every image and mask. Images are skipped before training starts, so
            `data.on_error=skip` always does.

    Raises:
        DataError: There is nothing to look over, or a choice has to be made.
    """
    data, body = config.data, config.optim.objective == "body"
    found = find(data, masks=body)
    findings = [_level(f, data) for f in found.findings]
    entries = _merged(found, data, findings)
    entries, missing = _present(entries, data, findings)
    sound, samples, sizes = _sound(entries, data, deep, findings)
    broken = len(entries) - len(sound)
    classes: tuple[str, ...] = ()
    if found.layout == "masks" and not body:
        told = "lung masks without labels train the body only; set optim.objective=body"
        findings.append(Finding("error", told, found.where))
    elif not body and sound:
        try:
            classes = classes_for({e.label for e in sound}, data.classes, found.where)
        except DataError as error:
            findings.append(Finding("error", str(error)))
    parts: dict[str, list[Entry]] = {}
    drawn = bool(data.folds) or not any(e.part == "test" for e in sound)
    if sound and (classes or body):
        parts = _divided(sound, classes, data, found)
    elif not sound and not any(f.level == "error" for f in findings):
        findings.append(Finding("error", "no usable radiograph", found.where))
    findings += shared_patients(parts) + _missing_classes(parts, classes, found.where)
    findings += same_files(parts, samples)
    return Survey(
        layout=found.layout,
        where=found.where,
        parts=parts,
        classes=classes,
        samples=samples,
        people=aliases(e.patient or e.name for e in sound),
        drawn=drawn,
        findings=findings,
        skipped=missing + broken,
        sizes=sizes,
    )


def _level(finding: Finding, data: MedusaData) -> Finding:
    """An error in one row or file, or the warning it is under `data.on_error=skip`."""
    if data.on_error != "skip" or finding.level != "error":
        return finding
    return Finding("warning", f"skipped: {finding.what}", finding.where)


def _merged(found: Found, data: MedusaData, findings: list[Finding]) -> list[Entry]:
    """Labels under their published spelling, merged; those merged to "" are left out."""
    merge = {canonical(k): v for k, v in data.merge.items()}
    labels = Counter(canonical(e.label) for e in found.entries)
    for name in sorted(merge.keys() - labels.keys()):
        told = f"data.merge names '{name}', which no radiograph is labelled with"
        findings.append(Finding("error", told, found.where))
    out = sorted(name for name, to in merge.items() if not to and name in labels)
    if out:
        told = ", ".join(f"{labels[n]} labelled '{n}'" for n in out)
        findings.append(Finding("info", f"left out by data.merge: {told}", found.where))
    named = ((e, canonical(e.label)) for e in found.entries)
    return [replace(e, label=merge.get(name, name)) for e, name in named if name not in out]


def _present(
    entries: Sequence[Entry], data: MedusaData, findings: list[Finding]
) -> tuple[list[Entry], int]:
    """Entries whose file is there; the others are told in one line a list."""
    there: list[Entry] = []
    gone: dict[str, list[Entry]] = {}
    totals: Counter[str] = Counter()
    for entry in entries:
        origin = re.sub(r":\d+$", "", entry.where)
        totals[origin] += 1
        if entry.path.is_file():
            there.append(entry)
        else:
            gone.setdefault(origin, []).append(entry)
    skip = data.missing == "skip"
    for where, lost in gone.items():
        names = ", ".join(e.path.name for e in lost[:_NAMED]) + " …" * (len(lost) > _NAMED)
        told = (
            f"{len(lost)} of {totals[where]} listed files are not in {lost[0].path.parent}: {names}"
        )
        remedy = "" if skip else "add them, or leave them out by data.missing=skip"
        findings.append(Finding("warning" if skip else "error", told, where, remedy))
    return there, sum(map(len, gone.values()))


def _sound(
    entries: Sequence[Entry], data: MedusaData, deep: bool, findings: list[Finding]
) -> tuple[list[Entry], dict[str, int], list[tuple[int, int]]]:
    """Entries whose file is whole; with `deep`, or to be skipped, as far as decoding tells."""
    sound, samples, sizes = [], {}, []
    skip = data.on_error == "skip"
    for entry in entries:
        try:
            samples[entry.name] = sample_of(entry.path)
            if deep or skip:
                raster = load(entry.path, entry.box)
                sizes.append(raster.grey.shape)
                if raster.grey.min() == raster.grey.max():
                    told = "the image has one grey value only"
                    findings.append(Finding("warning", told, str(entry.path)))
                if entry.masks:
                    load_mask(entry.masks, raster.grey.shape)
            for mask in entry.masks:
                sample_of(mask)
        except DataError as error:
            told = f"skipped: {error}" if skip else str(error)
            findings.append(Finding("warning" if skip else "error", told))
        else:
            sound.append(entry)
    return sound, samples, sizes


# -- splits -------------------------------------------------------------------------------------


def _divided(
    entries: Sequence[Entry], classes: Sequence[str], data: MedusaData, found: Found
) -> dict[str, list[Entry]]:
    """The splits: as listed, with validation carved from training, or drawn by patient."""
    if data.fold is not None and not data.folds:
        msg = f"data.fold={data.fold} needs data.folds, the number of folds"
        raise DataError(msg)
    if data.folds:
        return _fold(entries, classes, data)
    listed = {part: [e for e in entries if e.part == part] for part in PARTS}
    rest = [e for e in entries if not e.part]
    if not listed["test"]:
        # Nothing says what to test on: everything not set apart for validation is divided.
        pool = listed["train"] + rest
        parts = {"val": data.val_fraction * (not listed["val"]), "test": data.test_fraction}
        drawn = draw(pool, classes, parts, data.split_seed, by_hash=found.layout == "rsna")
        drawn["val"] = listed["val"] or drawn["val"]
    elif not listed["val"] and data.val_fraction:
        shares = {"val": data.val_fraction}
        drawn = draw(listed["train"] + rest, classes, shares, data.split_seed)
        drawn["test"] = listed["test"]
    else:
        drawn = listed | {"train": listed["train"] + rest}
    return {part: drawn[part] for part in PARTS if drawn.get(part)}


def _fold(
    entries: Sequence[Entry], classes: Sequence[str], data: MedusaData
) -> dict[str, list[Entry]]:
    number = data.fold or 0
    if number >= data.folds:
        msg = f"data.fold={number} is none of the {data.folds} folds, which count from 0"
        raise DataError(msg)
    labels, patients = _strata(entries, classes), [e.patient or e.name for e in entries]
    tested = set(group_folds(labels, patients, data.folds, data.split_seed)[number])
    rest = [e for i, e in enumerate(entries) if i not in tested]
    drawn = draw(rest, classes, {"val": data.val_fraction}, data.split_seed)
    drawn["test"] = [e for i, e in enumerate(entries) if i in tested]
    return {part: drawn[part] for part in PARTS if drawn.get(part)}


def draw(
    entries: Sequence[Entry],
    classes: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    by_hash: bool = False,
) -> dict[str, list[Entry]]:
    """Divide by patient, classes balanced; what the shares leave is training.

    Args:
        entries: The radiographs.
        classes: Class names.
        shares: Part -> share of the whole.
        seed: Seeds the division.
        by_hash: Order the patients of a class by a hash of their id, so that a part keeps nearly
            the same patients when more of the data set is downloaded.
    """
    labels, patients = _strata(entries, classes), [e.patient or e.name for e in entries]
    fractions = {"train": 1 - sum(shares.values())} | dict(shares)
    if by_hash:
        chosen = hashed_parts(labels, patients, fractions, seed)
    else:
        chosen = stratified_parts(labels, patients, fractions, seed)
    return {part: [entries[i] for i in indices] for part, indices in chosen.items()}


def hashed_parts(
    labels: Sequence[int], patients: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Divide by patient: those of each class in the order of their hash, cut at the shares."""
    stratum: dict[str, int] = {}
    for label, patient in zip(labels, patients, strict=True):
        stratum[patient] = max(label, stratum.get(patient, label))
    part_of: dict[str, str] = {}
    for label in sorted(set(stratum.values())):
        order = sorted(
            (p for p, mine in stratum.items() if mine == label),
            key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest(),
        )
        start, share = 0, 0.0
        for part, fraction in fractions.items():
            share += fraction
            end = round(share * len(order))
            part_of |= dict.fromkeys(order[start:end], part)
            start = end
    return {
        part: [i for i, patient in enumerate(patients) if part_of[patient] == part]
        for part in fractions
    }


def _strata(entries: Sequence[Entry], classes: Sequence[str]) -> list[int]:
    return [classes.index(e.label) if classes else 0 for e in entries]


# -- what is worth knowing ----------------------------------------------------------------------


def aliases(patients: Iterable[str]) -> dict[str, str]:
    """Patient -> alias, unlike for unlike patients even where two short hashes agree."""
    made: dict[str, str] = {}
    taken: set[str] = set()
    for patient in sorted(set(patients)):
        name = alias(patient.encode(errors="backslashreplace").decode())
        while name in taken:
            name += alias(f"{name}/{patient}")
        taken.add(name)
        made[patient] = name
    return made


def shared_patients(parts: Mapping[str, Sequence[Entry]]) -> list[Finding]:
    """An error for the patients and files in two parts, told by the rows that name them."""
    findings = []
    seen = [(part, {_who(e): e for e in entries}) for part, entries in parts.items()]
    for i, (first, one) in enumerate(seen):
        for second, other in seen[i + 1 :]:
            both = sorted(one.keys() & other.keys())
            if both:
                rows = f"{_row(one[both[0]])} and {_row(other[both[0]])}"
                told = f"{len(both)} patients are in both '{first}' and '{second}', as {rows} tell"
                remedy = "every patient must be in one split only"
                findings.append(Finding("error", told, remedy=remedy))
    return findings


def _who(entry: Entry) -> str:
    return entry.patient or entry.name


def _row(entry: Entry) -> str:
    return entry.where or entry.name


def _missing_classes(
    parts: Mapping[str, Sequence[Entry]], classes: Sequence[str], where: str
) -> list[Finding]:
    findings = []
    for part, entries in parts.items():
        have = {e.label for e in entries}
        lost = [name for name in classes if name not in have]
        if lost and part == "train" and len(have) < 2:
            told = f"split 'train' has images of '{next(iter(have))}' only; nothing can be learnt"
            findings.append(Finding("error", told, where))
        elif lost:
            names = ", ".join(f"'{n}'" for n in lost)
            findings.append(Finding("warning", f"split '{part}' has no image of {names}", where))
    if parts and "train" not in parts:
        findings.append(Finding("error", "no radiograph is left for training", where))
    if parts and "test" not in parts:
        findings.append(Finding("warning", "there is no test split; lower data.val_fraction"))
    return findings


def same_files(parts: Mapping[str, Sequence[Entry]], samples: Mapping[str, int]) -> list[Finding]:
    """A warning for files in two parts that agree in size, beginning and end."""
    findings = []
    seen = [(part, {samples[e.name]: e for e in entries}) for part, entries in parts.items()]
    for i, (first, one) in enumerate(seen):
        for second, other in seen[i + 1 :]:
            both = sorted(one.keys() & other.keys())
            if both:
                rows = f"{_row(one[both[0]])} and {_row(other[both[0]])}"
                told = f"{len(both)} files seem to be in both '{first}' and '{second}', as {rows}"
                findings.append(Finding("warning", told))
    return findings


def describe(found: Survey) -> list[Finding]:
    """Counts, sources, sizes, and where the source gives the label away."""
    origin = "drawn by patient with data.split_seed" if found.drawn else "as listed"
    count = sum(map(len, found.parts.values()))
    told = f"layout {found.layout}: {count} radiographs, splits {origin}"
    lines = [Finding("info", told, found.where)]
    for part, entries in found.parts.items():
        lines.append(Finding("info", f"{part}: {_counts(found, entries)}"))
        confound = confounded(entries)
        if confound:
            lines.append(Finding("warning", f"{part}: {confound}"))
    if found.skipped:
        lines.append(Finding("info", f"{found.skipped} listed radiographs are not used"))
    if found.sizes:
        heights, widths = zip(*found.sizes, strict=True)
        told = f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}"
        lines.append(Finding("info", f"images of {told} pixels"))
    return lines


def _counts(found: Survey, entries: Sequence[Entry]) -> str:
    labels = Counter(e.label for e in entries)
    sources = Counter(e.source for e in entries if e.source)
    shown = ", ".join(f"{name} {labels[name]}" for name in found.classes)
    patients = len({_who(e) for e in entries})
    masks = sum(1 for e in entries if e.masks)
    text = f"{len(entries)} images of {patients} patients" + (f" ({shown})" if shown else "")
    if sources:
        text += "; sources " + ", ".join(f"{name} {n}" for name, n in sources.most_common())
    return text + (f"; {masks} with lung masks" if masks else "")


def confounded(entries: Sequence[Entry]) -> str:
    """Why a score on these images may measure their source, "" if nothing speaks for it.

    In COVIDx's test set every positive is from ricord and every negative from rsna: whatever tells
    the hospitals' machines apart scores 100 % (users' issue 159 of COVID-Net).
    """
    pairs = Counter((e.source, e.label) for e in entries if e.source and e.label)
    total = sum(pairs.values())
    labels = Counter({label: 0 for _, label in pairs})
    for (_, label), n in pairs.items():
        labels[label] += n
    if len(labels) < 2:
        return ""
    best: dict[str, tuple[int, str]] = {}
    for (source, label), n in pairs.items():
        best[source] = max(best.get(source, (0, "")), (n, label))
    right = sum(n for n, _ in best.values()) / total
    base = max(labels.values()) / total
    # Gaining most of what the commonest class leaves over is what a confound is.
    if right < _TELLING or right - base < (1 - base) / 2:
        return ""
    if right < 1:
        return f"the source alone tells the class of {right:.0%} of the images; score each apart"
    of = {label: sorted(s for s, (_, y) in best.items() if y == label) for label in sorted(labels)}
    told = "; ".join(f"every '{label}' is from {', '.join(names)}" for label, names in of.items())
    return f"the source alone tells the class ({told}); a score on it is no clinical result"


def positive_class(found: Survey) -> int:
    """Index of the class that batches are balanced for; -1 when the body is trained."""
    return positive_of(found.classes) if found.classes else -1
