"""Which case trains, selects and tests: by a list, by folders, or drawn so that patients are whole.

What a list or the folders say is kept. Only what they leave open is drawn: everything where nothing
is said; a validation part where there is none; a test part where there is neither. A patient's
pictures always stay together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from zoo.data import stratified_parts
from zoo.domains.medical.her_seg.cases import Case
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.found import Found
from zoo.domains.medical.her_seg.lists import Listing, shown
from zoo.domains.medical.her_seg.pictures import Picture
from zoo.task import Finding


@dataclass
class Divided:
    """Cases by split.

    Attributes:
        parts: `train`, `val`, `test` or `test_<set>` -> cases.
        findings: What the user should know of how they were divided.
    """

    parts: dict[str, list[Case]]
    findings: list[Finding] = field(default_factory=list)


def listed(found: Found, listing: Listing) -> list[Finding]:
    """Give the pictures of a list their parts and patients; others leave `found`.

    Returns:
        An error for every listed name that is no picture, and a word on pictures not listed.
    """
    by_key = {p.id: p for p in found.pictures} | _by_stem(found.pictures)
    chosen: list[Picture] = []
    findings, taken = [], set()
    for part, names in listing.parts.items():
        for name in names:
            picture = by_key.get(found.key(name)) or by_key.get(name)
            if picture is None:
                findings.append(_missing(name, found, listing))
                continue
            if picture.id in taken:
                told = f"'{name}' means {picture.image[0].name}, which another name means as well"
                findings.append(Finding("error", told, str(listing.path), "list it once"))
                continue
            taken.add(picture.id)
            group = listing.groups.get(name, picture.group)
            chosen.append(replace(picture, part=part, group=group))
    idle = [p.id for p in found.pictures if p.id not in taken]
    if idle:
        told = f"{len(idle)} pictures are not listed and not used ({shown(idle)})"
        findings.append(Finding("info", told, str(listing.path)))
    found.pictures = chosen
    return findings


def _by_stem(pictures: Sequence[Picture]) -> dict[str, Picture]:
    """Pictures by file stem, where that is nobody else's."""
    stems: dict[str, Picture] = {}
    twice = set()
    for picture in pictures:
        stem = picture.image[0].stem
        if stem in stems:
            twice.add(stem)
        stems[stem] = picture
    return {stem: p for stem, p in stems.items() if stem not in twice}


def _missing(name: str, found: Found, listing: Listing) -> Finding:
    told = f"'{name}' is listed, and there is no such picture in {found.root}"
    if found.layout == "her" and "." in name.removesuffix(".png"):
        told += f"; the official layout cuts names at the first dot, to '{found.key(name)}'"
    return Finding("error", told, str(listing.path), "add the file or take it off the list")


def with_patients(pictures: Sequence[Picture], pattern: str | None) -> list[Picture]:
    """Pictures whose group is what `data.patient` finds in their names; others keep theirs."""
    if pattern is None:
        return list(pictures)
    made = []
    for picture in pictures:
        told = re.search(pattern, picture.id)
        made.append(picture if told is None else replace(picture, group=told[1] or picture.group))
    return made


def divide(cases: Sequence[Case], data: SegData, part_of: Mapping[str, str | None]) -> Divided:
    """The splits of a data set's cases.

    Args:
        cases: Those that can be trained on or scored.
        data: `val_fraction`, `test_fraction`, `split_seed`.
        part_of: Case name -> the split that lists or folders give it; None: open.
    """
    parts: dict[str, list[Case]] = {}
    for case in cases:
        parts.setdefault(part_of[case.name] or "train", []).append(case)
    pool = parts.get("train", [])
    shares: dict[str, float] = {}
    has_test = any(name.startswith("test") for name in parts)
    if not has_test and "val" not in parts:
        shares["test"] = data.test_fraction
    if "val" not in parts and data.val_fraction > 0:
        shares["val"] = data.val_fraction
    groups = {case.group for case in pool}
    made = Divided(parts)
    if shares and len(groups) > len(shares):
        parts["train"] = []
        fractions = {"train": 1 - sum(shares.values()), **shares}
        drawn = stratified_parts(
            [0] * len(pool), [c.group for c in pool], fractions, data.split_seed
        )
        for name, members in drawn.items():
            parts[name] = [pool[i] for i in members]
        told = f"{' and '.join(shares)} drawn from {len(groups)} patients"
        made.findings.append(Finding("info", f"{told}, data.split_seed={data.split_seed}"))
    elif shares:
        told = f"{len(groups)} patients are too few to hold out {' and '.join(shares)}"
        remedy = "name the parts in data.split, or say by data.patient who is whose"
        made.findings.append(Finding("warning", told, remedy=remedy))
    if not any(name.startswith("test") and parts[name] for name in parts):
        told = "there is no test part; the run will report validation figures only"
        made.findings.append(Finding("warning", told))
    made.parts = {name: parts[name] for name in sorted(parts, key=_order) if parts[name]}
    return made


def _order(name: str) -> tuple[int, str]:
    return (("train", "val").index(name) if name in ("train", "val") else 2, name)
