"""Looking over a data folder: which scenes can be used, what is wrong with the others.

Training and `zoo data check` go through the same survey, so that what the check passes trains.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.domains.saliency.rgbd_sod.choosing import Chosen, choose
from zoo.domains.saliency.rgbd_sod.config import Config, RgbdData
from zoo.domains.saliency.rgbd_sod.depth import (
    ENOUGH,
    DepthRules,
    Measured,
    canonical,
    decide,
    foreground_is_smaller,
)
from zoo.domains.saliency.rgbd_sod.images import read_depth, read_mask, resized
from zoo.domains.saliency.rgbd_sod.layouts import Pair, Place, find_places, plain
from zoo.domains.saliency.rgbd_sod.layouts import canonical as usual_name
from zoo.domains.saliency.rgbd_sod.scenes import Heads, content_hash, read_heads, read_scene
from zoo.errors import DataError
from zoo.images import FORMATS
from zoo.task import Finding

# Images a set whose masks are compared with their depth, spread evenly: enough to be sure, and
# the same ones for a quick and a deep survey.
_MEASURED = 48
# A grey mask whose brightest pixel lies between these is no mask as the rule reads it: too bright
# for JPEG ringing, too dark for foreground.
_DIM = (16, 128)


@dataclass(frozen=True)
class Survey:
    """What a data folder holds and what is wrong with it.

    Attributes:
        root: The data folder.
        places: Folders found, used or not.
        chosen: What was chosen from them.
        parts: Split (`train`, `val`, `test_<set>`) -> usable scenes.
        polarity: Set -> which end of its depth is near.
        default: Polarity for sets not measured: that of the training images.
        digests: Scene id -> hash of the content of its files.
        heads: Scene id -> what the headers of its files tell.
        findings: Everything that is wrong; errors are warnings under `data.on_error=skip`.
        skipped: Scenes left out because something is wrong with them.
    """

    root: Path
    places: Sequence[Place]
    chosen: Chosen
    parts: Mapping[str, Sequence[Pair]]
    polarity: Mapping[str, Measured]
    default: Measured
    digests: Mapping[str, str]
    heads: Mapping[str, Heads]
    findings: Sequence[Finding]
    skipped: Sequence[str]


@dataclass
class _Seen:
    heads: dict[str, Heads] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    broken: dict[str, Finding] = field(default_factory=dict)
    notes: list[Finding] = field(default_factory=list)


def survey(config: Config, deep: bool = False) -> Survey:
    """Find sets, pair files, divide, and look at every scene that is used.

    Args:
        config: The configuration with `data.root` settled.
        deep: Read every file whole. Scenes are skipped before training starts, so
            `data.on_error=skip` always reads everything.

    Raises:
        DataError: There is nothing to look over, or a set or list is not there as configured.
    """
    data = config.data
    root = data.root
    if root is None:
        msg = "data.root is missing; name the folder of the data sets"
        raise DataError(msg)
    skip = data.on_error == "skip"
    places = find_places(root, data.layout, data.depth_from)
    chosen = choose(root, places, data)
    used = [*chosen.train, *chosen.tests.values()]
    seen = _look((p for part in used for p in part.pairs), data, deep or skip)
    findings = [_level(f, skip) for f in (*chosen.findings, *seen.broken.values())]
    findings += seen.notes
    parts = _divided(chosen, seen.heads, data)
    findings += _shared(parts, seen.digests)
    polarity, default = _polarities(parts, data)
    if not parts and not any(f.level == "error" for f in findings):
        findings.append(Finding("error", "no scene can be used", str(root)))
    skipped = [*chosen.lacking, *seen.broken]
    return Survey(
        root, places, chosen, parts, polarity, default, seen.digests, seen.heads, findings, skipped
    )


def _level(finding: Finding, skip: bool) -> Finding:
    """An error, or the warning it is under `data.on_error=skip`."""
    if not skip or finding.level != "error":
        return finding
    return Finding("warning", f"skipped: {finding.what}", finding.where)


# -- files --------------------------------------------------------------------------------------


def _look(pairs: Iterable[Pair], data: RgbdData, deep: bool) -> _Seen:
    seen = _Seen()
    rules = DepthRules.of(data)
    for pair in pairs:
        try:
            heads = read_heads(pair, data.mismatch)
            notes = _examined(pair, data, rules) if deep else []
            files = (pair.rgb, pair.depth, pair.mask)
            seen.digests[pair.id] = " ".join(content_hash(path) for path in files)
        except (DataError, OSError) as error:
            line = str(error) if isinstance(error, DataError) else f"{pair.rgb}: {error}"
            seen.broken[pair.id] = Finding("error", line)
            continue
        seen.heads[pair.id] = heads
        seen.notes += notes
    return seen


def _examined(pair: Pair, data: RgbdData, rules: DepthRules) -> list[Finding]:
    """Warnings about a scene whose files can be read but hold little."""
    scene = read_scene(pair, data.mismatch)
    notes = []
    if scene.depth is not None and not canonical(scene.depth, rules).valid:
        told = "the depth map is constant or empty; the image is used as one without depth"
        notes.append(Finding("warning", told, str(pair.depth)))
    if scene.mask is not None and not scene.mask.any():
        told = "the mask has no foreground"
        top = _brightest(pair.mask)
        if _DIM[0] <= top <= _DIM[1]:
            told += f": its brightest pixel is {top}, foreground is above {_DIM[1]}"
        notes.append(Finding("warning", told, str(pair.mask)))
    elif scene.mask is not None and scene.mask.all():
        notes.append(Finding("warning", "the mask is all foreground", str(pair.mask)))
    return notes


def _brightest(path: Path | None) -> int:
    from PIL import Image

    with Image.open(path or "", formats=FORMATS) as image:
        return int(np.asarray(image.convert("L")).max())


# -- division -----------------------------------------------------------------------------------


def _divided(chosen: Chosen, heads: Mapping[str, Heads], data: RgbdData) -> dict[str, list[Pair]]:
    """Split -> sound scenes; a seeded share of the training scenes is held out for `val`."""
    pairs = [p for part in chosen.train for p in part.pairs if p.id in heads]
    held = _held_out([p.id for p in pairs], data)
    parts = {
        "train": [p for p in pairs if p.id not in held],
        "val": [p for p in pairs if p.id in held],
    }
    for name, part in chosen.tests.items():
        parts[name] = [p for p in part.pairs if p.id in heads]
    return {name: members for name, members in parts.items() if members}


def _held_out(ids: Sequence[str], data: RgbdData) -> set[str]:
    """The scenes held out: those with the smallest hashes, so that adding images moves few."""
    if not data.val_fraction or len(ids) < 2:
        return set()
    count = min(max(1, round(len(ids) * data.val_fraction)), len(ids) - 1)

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{data.split_seed}:{name}".encode()).digest()

    return set(sorted(ids, key=rank)[:count])


def _shared(parts: Mapping[str, Sequence[Pair]], digests: Mapping[str, str]) -> list[Finding]:
    """An error for every image that trains and tests, whatever its name is."""
    first = {
        digests[p.id].partition(" ")[0]: p for part in ("train", "val") for p in parts.get(part, ())
    }
    findings = []
    for name, pairs in parts.items():
        if not name.startswith("test"):
            continue
        for pair in pairs:
            twin = first.get(digests[pair.id].partition(" ")[0])
            if twin is not None and twin.rgb != pair.rgb:  # one file twice the guard tells
                told = f"the same image as {twin.rgb}, which trains"
                findings.append(Finding("error", told, str(pair.rgb), "remove one of them"))
    return findings


# -- polarity -----------------------------------------------------------------------------------


def _polarities(
    parts: Mapping[str, Sequence[Pair]], data: RgbdData
) -> tuple[dict[str, Measured], Measured]:
    """Set -> polarity, and the one of sets that cannot be measured."""
    members: dict[str, list[Pair]] = {}
    training: Counter[str] = Counter()
    for name, pairs in parts.items():
        for pair in pairs:
            members.setdefault(pair.set, []).append(pair)
            training[pair.set] += name in ("train", "val")
    found = {name: polarity_of(name, pairs, data) for name, pairs in members.items()}
    votes: Counter[str] = Counter()
    for name, measured in found.items():
        if measured is not None and measured.sure:
            votes[measured.polarity] += training[name]
    bright = votes["near_bright"] > votes["near_dark"]
    told = "as most training images" if sum(votes.values()) else "assumed"
    default = Measured(
        "near_bright" if bright else "near_dark", None, 0, told, sure=bool(sum(votes.values()))
    )
    if data.polarity != "auto":
        default = Measured(data.polarity, None, 0, "set by data.polarity")
    return {name: measured or default for name, measured in found.items()}, default


def polarity_of(name: str, pairs: Sequence[Pair], data: RgbdData) -> Measured | None:
    """Which end of a set's depth is near: as configured, else measured on its masks.

    Args:
        name: The set.
        pairs: Its scenes.
        data: `polarity`, `polarity_of`, and how holes are told.

    Returns:
        None where nothing is configured and fewer than 20 images have both depth and mask.
    """
    keys = {plain(name), plain(usual_name(name) or name)}
    for given, polarity in data.polarity_of.items():
        if keys & {plain(given), plain(usual_name(given) or given)}:
            return Measured(polarity, None, 0, "set by data.polarity_of")
    if data.polarity != "auto":
        return Measured(data.polarity, None, 0, "set by data.polarity")
    usable = [p for p in pairs if p.depth is not None and p.mask is not None]
    if len(usable) < ENOUGH:
        return None
    spread = np.unique(np.linspace(0, len(usable) - 1, _MEASURED).round().astype(int))
    return decide(_vote(usable[i], DepthRules.of(data)) for i in spread)


def _vote(pair: Pair, rules: DepthRules) -> bool | None:
    if pair.depth is None or pair.mask is None:
        return None
    try:
        raw, mask = read_depth(pair.depth), read_mask(pair.mask)
    except DataError:  # told when the file is read for use
        return None
    height, width = raw.values.shape
    same = resized(mask.astype(np.uint8), (height, width), nearest=True)
    return foreground_is_smaller(raw, same > 0, rules)


# -- report -------------------------------------------------------------------------------------


def describe(found: Survey, data: RgbdData) -> list[Finding]:
    """Counts, sizes, kinds of depth, polarity, and what is allowed but often not meant."""
    layouts = ", ".join(sorted({p.layout for p in found.places}))
    lines = [
        Finding("info", f"{len(found.places)} folders of images, layout {layouts}", str(found.root))
    ]
    for part in (*found.chosen.train, *found.chosen.tests.values()):
        if part.list is not None:
            told = f"{len(part.pairs)} stems of {part.place.set}"
            lines.append(Finding("info", told, str(part.list)))
    for name, pairs in found.parts.items():
        lines += _describe_part(name, pairs, found.heads)
    lines += _idle_places(found)
    if data.depth == "zeros":
        lines.append(Finding("warning", "data.depth=zeros: no depth is read at all"))
    else:
        lines += [_describe_polarity(name, m) for name, m in sorted(found.polarity.items())]
    if found.skipped:
        lines.append(Finding("info", f"{len(found.skipped)} scenes are not usable"))
    return lines


def _describe_part(name: str, pairs: Sequence[Pair], heads: Mapping[str, Heads]) -> list[Finding]:
    seen = [heads[p.id] for p in pairs]
    heights = sorted(h.rgb.size[0] for h in seen)
    widths = sorted(h.rgb.size[1] for h in seen)
    sets = Counter(p.set for p in pairs)
    kinds = Counter(h.depth.kind for h in seen if h.depth is not None)
    named = ", ".join(f"{k} {n}" for k, n in sets.most_common())
    depth = ", ".join(f"{k} {n}" for k, n in kinds.most_common()) or "none"
    told = (
        f"{name}: {len(pairs)} images ({named}); width {widths[0]} to {widths[-1]}, height "
        f"{heights[0]} to {heights[-1]}; depth {depth}"
    )
    lines = [Finding("info", told)]
    differ = [p for p in pairs if heads[p.id].differ]
    if differ:
        told = (
            f"{name}: {len(differ)} scenes have a depth map or mask of another size than the "
            f"image, which is stretched ({differ[0].id} is the first)"
        )
        lines.append(Finding("warning", told))
    return lines


def _idle_places(found: Survey) -> list[Finding]:
    used = {part.place.path for part in (*found.chosen.train, *found.chosen.tests.values())}
    idle = [f"{p.set} ({p.role})" for p in found.places if p.path not in used]
    return [Finding("info", f"not used: {', '.join(idle)}")] if idle else []


def _describe_polarity(name: str, measured: Measured) -> Finding:
    share = ""
    if measured.share is not None:
        share = f", foreground is darker in {measured.share:.0%} of them"
    told = f"{name}: depth is {measured.polarity.replace('_', ' ')}, {measured.origin}{share}"
    if measured.sure:
        return Finding("info", told)
    remedy = f"if that is wrong set data.polarity_of.{name}=near_bright"
    return Finding("warning", told, remedy=remedy)
