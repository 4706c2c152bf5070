"""Looking over a data folder: what it holds, how it is divided, what is wrong with its files.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo import files
from zoo.domains.medical.her_seg.cases import Case, Classes
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.dividing import divide, listed, with_patients
from zoo.domains.medical.her_seg.folders import subfolders
from zoo.domains.medical.her_seg.found import Found
from zoo.domains.medical.her_seg.images import fingerprint_of, head
from zoo.domains.medical.her_seg.layouts import FINDERS, find_pictures, ids_of
from zoo.domains.medical.her_seg.lists import bare_name, find_list, read_list
from zoo.domains.medical.her_seg.masks import coding_of
from zoo.domains.medical.her_seg.nnunet import read_folds
from zoo.domains.medical.her_seg.pictures import PictureCase, Reader, cases_of
from zoo.domains.medical.her_seg.stacks import Kind
from zoo.errors import DataError
from zoo.task import Finding

_DEEPEST = 3  # folders between `data.root` and a data set


@dataclass(frozen=True)
class Survey:
    """What a data folder holds and what is wrong with it.

    Attributes:
        root: Where the data set was found: `data.root` or a folder in it.
        layout: Its arrangement.
        kind: What a case is.
        classes: The foreground classes.
        parts: Split (`train`, `val`, `test` or `test_<set>`) -> usable cases.
        digests: Case name -> what its files are.
        findings: Everything that is wrong; errors are warnings under `data.on_error=skip`.
        skipped: Cases left out because something is wrong with them.
    """

    root: Path
    layout: str
    kind: Kind
    classes: Classes
    parts: Mapping[str, Sequence[Case]]
    digests: Mapping[str, str]
    findings: Sequence[Finding]
    skipped: Sequence[str]


@dataclass
class Listed:
    """Cases as found, before their files are looked at.

    Attributes:
        root: Where they were found.
        layout: Their arrangement.
        cases: All of them.
        part_of: Case name -> split, None where it is open.
        findings: What is wrong already.
        lacking: Case name -> why it has no mask, where it should have one.
    """

    root: Path
    layout: str
    cases: Sequence[Case]
    part_of: Mapping[str, str | None]
    findings: list[Finding]
    lacking: Mapping[str, str]


def survey(config: Config, deep: bool = False) -> Survey:
    """Find cases, divide them, and look at the files of each that is used.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every file whole. Cases are skipped before training starts, so
            `data.on_error=skip` always reads everything.

    Raises:
        DataError: There is nothing, or a list or folder is not there as configured.
        ConfigError: Settings contradict each other.
    """
    data = config.data
    if data.root is None:
        msg = "data.root is missing; name the folder of the data set"
        raise DataError(msg)
    skip = data.on_error == "skip"
    found = discover(data.root, config)
    remedy = "add it, or take the picture away"
    errors = [Finding("error", line, remedy=remedy) for line in found.lacking.values()]
    usable = [c for c in found.cases if c.labelled and c.name not in found.lacking]
    digests, seen, broken = _look(usable, deep or skip)
    sound = [c for c in usable if c.name not in broken]
    divided = divide(sound, data, found.part_of)
    findings = [_level(f, skip) for f in (*found.findings, *errors, *seen)]
    findings += divided.findings + _twins(divided.parts)
    if not divided.parts.get("train") and not any(f.level == "error" for f in findings):
        findings.append(
            Finding("error", "there is nothing with a mask to train on", str(data.root))
        )
    classes = found.cases[0].classes if found.cases else Classes()
    kind = found.cases[0].kind if found.cases else "image"
    skipped = [*found.lacking, *broken]
    return Survey(
        found.root, found.layout, kind, classes, divided.parts, digests, findings, skipped
    )


def _level(finding: Finding, skip: bool) -> Finding:
    """An error, or the warning it is under `data.on_error=skip`."""
    if not skip or finding.level != "error":
        return finding
    return Finding("warning", f"skipped: {finding.what}", finding.where)


# -- discovery ----------------------------------------------------------------------------------


def discover(root: Path, config: Config) -> Listed:
    """The cases of a data folder, or of the one data set in it that is arranged as asked.

    Pictures come first, then volumes, then clips.

    Raises:
        DataError: The folder is missing, or there is not one data set in it.
    """
    if not root.is_dir():
        msg = f"data.root={root}: there is no such folder"
        raise DataError(msg)
    wanted = "" if config.data.layout == "auto" else f" in the layout '{config.data.layout}'"
    # Readers of loose volumes and clips look into folders themselves.
    ways = ((_pictures, 0), (_known_volumes, 0), (_any_volumes, _DEEPEST), (_clips, _DEEPEST))
    for find, depth in ways:
        inner = _search(root, config, find, depth)
        if len(inner) == 1:
            return inner[0]
        if inner:
            names = ", ".join(f"{f.root.relative_to(root)} ({f.layout})" for f in inner)
            msg = f"{root}: several data sets{wanted}: {names}; point data.root at one of them"
            raise DataError(msg)
    msg = (
        f"{root}: no data set found{wanted}; looked for folders of pictures beside folders of "
        "masks, nnU-Net folders, volumes and clips (docs/her_seg.md shows the layouts)"
    )
    raise DataError(msg)


def _search(
    root: Path, config: Config, find: Callable[[Path, Config], Listed | None], depth: int
) -> list[Listed]:
    """The data set a folder is, or those in it."""
    found = find(root, config)
    if found is not None:
        return [found]
    inner = subfolders(root) if depth < _DEEPEST else []
    return [listed for path in inner for listed in _search(path, config, find, depth + 1)]


def _pictures(root: Path, config: Config) -> Listed | None:
    layout = config.data.layout
    if layout != "auto" and layout not in FINDERS:
        return None
    found = find_pictures(root, config.data)
    if found is None:
        return None
    if layout == "auto" and _is_clips(found):
        return _clips(root, config)
    return _of_pictures(found, config)


def _is_clips(found: Found) -> bool:
    """Whether folders of pictures are clips: masks are there for some of the pictures of each."""
    nested = {p.group for p in found.pictures if p.group != p.id}
    lacking = {p.group for p in found.pictures if p.id in found.lacking}
    return found.layout == "folders" and bool(nested) and lacking == nested


def _known_volumes(root: Path, config: Config) -> Listed | None:
    """Volumes in folders that no other data set has."""
    if config.data.layout not in ("auto", "nnunet", "synapse"):
        return None
    from zoo.domains.medical.her_seg.arrays import is_synapse
    from zoo.domains.medical.her_seg.nnunet import is_nnunet

    known = "nnunet" if is_nnunet(root) else "synapse" if is_synapse(root) else None
    return _volumes(root, config) if known in ("nnunet", "synapse") else None


def _any_volumes(root: Path, config: Config) -> Listed | None:
    return _volumes(root, config) if config.data.layout in ("auto", "volumes", "dicom") else None


def _volumes(root: Path, config: Config) -> Listed | None:
    from zoo.domains.medical.her_seg.volumes import volume_cases, volume_layout

    layout = volume_layout(root)
    asked = config.data.layout
    # Numbered picture slices are a volume only where the user says so.
    if asked != "volumes" and (layout is None or asked not in ("auto", layout)):
        return None
    return _of_cases(root, layout or "volumes", volume_cases(root, config), config)


def _clips(root: Path, config: Config) -> Listed | None:
    from zoo.domains.medical.her_seg.video import clip_cases, clip_layout

    layout = clip_layout(root)
    asked = config.data.layout
    # Pictures right beside their masks are frames only where the user says so.
    if asked != "frames" and (layout is None or asked not in ("auto", layout)):
        return None
    return _of_cases(root, layout or "frames", clip_cases(root, config), config)


def _of_cases(root: Path, layout: str, cases: Sequence[Case], config: Config) -> Listed:
    """Cases of other readers; a split list names them where their layout has none of its own."""
    part_of: dict[str, str | None] = {case.name: case.part for case in cases}
    findings: list[Finding] = []
    split = config.data.split
    own = layout == "nnunet" and (split is None or read_folds(split) is not None)
    path = None if own else find_list(root, split)
    if path is not None:
        listing = read_list(path)
        named = {bare_name(n): part for part, names in listing.parts.items() for n in names}
        part_of = {}
        for case in cases:
            part = named.pop(case.name, None) or named.pop(case.name.rpartition("/")[2], None)
            part_of[case.name] = part or "unlisted"
        if set(part_of.values()) == {"unlisted"}:
            msg = f"{path}: none of its names is a case of {root}, such as '{cases[0].name}'"
            raise DataError(msg)
        for name in named:
            told = f"'{name}' is listed, and there is no such case in {root}"
            findings.append(Finding("error", told, str(path)))
        cases = [c for c in cases if part_of[c.name] != "unlisted"]
    return Listed(root, layout, cases, part_of, findings, {})


def _of_pictures(found: Found, config: Config) -> Listed:
    data = config.data
    coding = coding_of(data, found.usual, found.thing, found.threshold)
    ids_of(found.pictures)
    told = any(p.part for p in found.pictures) and data.split is None
    if not told and not found.settled:
        path = find_list(found.root, data.split)
        if path is not None:
            found.findings += listed(found, read_list(path))
    pictures = with_patients(found.pictures, data.patient)
    used = {p.id for p in pictures}
    lacking = {} if found.masks_optional else {k: v for k, v in found.lacking.items() if k in used}
    bare = [p.id for p in pictures if not p.labelled]
    if bare and not lacking:
        text = f"{len(bare)} pictures have no mask and are not used"
        found.findings.append(Finding("info", text, str(found.root)))
    cases = cases_of(pictures, Reader(coding, data.window))
    parts = {p.id: p.part for p in pictures}
    return Listed(found.root, found.layout, cases, parts, found.findings, lacking)


# -- files --------------------------------------------------------------------------------------


def _look(
    cases: Sequence[Case], deep: bool
) -> tuple[dict[str, str], list[Finding], dict[str, Finding]]:
    """Digests of sound cases, all findings, and the first error of each broken case."""
    digests: dict[str, str] = {}
    findings: list[Finding] = []
    broken: dict[str, Finding] = {}
    for case in cases:
        found = case.look(deep)
        findings += found
        error = next((f for f in found if f.level == "error"), None)
        if error is not None:
            broken[case.name] = error
            continue
        digests[case.name] = " ".join(f"{fingerprint_of(p):x}" for p in case.files)
    return digests, findings, broken


def _twins(parts: Mapping[str, Sequence[Case]]) -> list[Finding]:
    """An error for every picture that trains or selects and also tests, whatever its name is."""
    first: dict[int, Path] = {}
    findings = []
    for name, cases in parts.items():
        for case in cases:
            if not isinstance(case, PictureCase):
                continue
            path = case.files[0]
            mark = fingerprint_of(path)
            twin = first.get(mark)
            if twin is not None and twin != path and files.sha256(twin) == files.sha256(path):
                told = f"the same picture as {twin}, which is in another part"
                findings.append(Finding("error", told, str(path), "remove one of them"))
        if not name.startswith("test"):
            first |= {fingerprint_of(c.files[0]): c.files[0] for c in cases}
    return findings


# -- report -------------------------------------------------------------------------------------


def describe(found: Survey) -> list[Finding]:
    """Layout, classes, counts and sizes."""
    count = sum(map(len, found.parts.values()))
    what = {"image": "pictures", "volume": "volumes", "clip": "clips"}[found.kind]
    told = f"layout {found.layout}, {count} {what}; classes: {', '.join(found.classes.names)}"
    lines = [Finding("info", told, str(found.root))]
    for name, cases in found.parts.items():
        groups = len({case.group for case in cases})
        of = f" of {groups} patients" if groups < len(cases) else ""
        told = f"{name}: {len(cases)} {what}{of}{_sizes(cases)}"
        lines.append(Finding("info", told))
    if found.skipped:
        lines.append(Finding("info", f"{len(found.skipped)} {what} are not usable"))
    return lines


def _sizes(cases: Sequence[Case]) -> str:
    if cases[0].kind != "image":
        return ""
    seen = [head(case.files[0]) for case in cases]
    heights, widths = np.array([h.size for h in seen]).T
    kinds = ", ".join(f"{kind} {n}" for kind, n in Counter(h.kind for h in seen).most_common())
    return (
        f"; width {widths.min()} to {widths.max()}, height {heights.min()} to {heights.max()}; "
        f"{kinds}"
    )
