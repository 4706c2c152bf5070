"""Scenes to predict on: folders in any layout, single images, an image and its depth map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.depth import DepthRules
from zoo.domains.saliency.rgbd_sod.images import DEPTH_SUFFIXES, IMAGE_SUFFIXES, head
from zoo.domains.saliency.rgbd_sod.layouts import (
    FOLDERS,
    Pair,
    Place,
    canonical,
    depth_folder,
    files_of,
    find_places,
    matched,
    plain,
    stem_of,
    without_tail,
)
from zoo.domains.saliency.rgbd_sod.scenes import content_hash, read_heads
from zoo.domains.saliency.rgbd_sod.split import Reading, RgbdSplit
from zoo.errors import DataError
from zoo.images import FORMATS
from zoo.task import Facts

_WITHOUT = "give it as a second input, or set data.depth=zeros to predict without depth"
_DEPTH_TAILS = ("_depth", "_Depth", "-depth", "_d")


def inputs(
    paths: Sequence[Path], facts: Facts, config: Config, *, batch_size: int = 1
) -> RgbdSplit:
    """Scenes to predict on; masks are neither needed nor read.

    A folder may be in any layout the adapter reads, or hold images with their maps beside them
    (`x.jpg` and `x_depth.png`). A single image's map is looked for beside it and in a `depth`
    folder next to its own; an image and a map may also be given together, in any order.

    Args:
        paths: Files and folders.
        facts: Of the trained model: how depth was scaled and which end was near. `data.polarity`
            and `data.polarity_of`, where they are set, speak of the files given and win.
        config: `data.depth=zeros` predicts without depth; `data.layout`, `data.mismatch`, and
            `data.on_error=skip`, which leaves out broken scenes with a note.
        batch_size: Scenes a batch.

    Returns:
        A split whose ids are `<set>/<stem>` for data sets and the stem alone for single images.

    Raises:
        DataError: A path holds no image, an image has no depth map, a file is broken, or two
            scenes have one name.
    """
    blind = config.data.depth == "zeros"
    skip = config.data.on_error == "skip"
    paths = [Path(path) for path in paths]
    files = [path for path in paths if not path.is_dir()]
    pairs, lacking = _of_folders([p for p in paths if p.is_dir()], config)
    alone, missing = _of_files(files, config, together=len(files) == 2)
    pairs += alone
    lacking += missing
    if blind:
        pairs = [replace(p, depth=None) for p in pairs]
    if lacking and not (skip and pairs):
        raise DataError("\n".join(lacking[:10]))
    sound, digests, broken = _sound(pairs, config)
    if broken and not (skip and sound):
        raise DataError("\n".join(broken[:10]))
    reading = reading_of(facts, config, {p.set for p in sound})
    split = RgbdSplit(_unique(sound), digests, reading, "predict", batch_size=batch_size)
    split.notes = [f"skipped {line}" for line in (*lacking, *broken)] + _told(reading, split)
    return split


def reading_of(facts: Facts, config: Config, sets: Iterable[str]) -> Reading:
    """How files are read for a trained model: as in training, unless the user says otherwise."""
    data = config.data
    default = facts.get("default_polarity", "near_dark")
    polarity = dict(facts.get("polarity", {}))
    if data.polarity != "auto":
        default, polarity = data.polarity, {}
    for name in sets:
        keys = {plain(name), plain(canonical(name) or name)}
        for given, value in data.polarity_of.items():
            if keys & {plain(given), plain(canonical(given) or given)}:
                polarity[name] = value
    percentile = facts.get("percentile")
    rules = DepthRules(
        facts.get("holes", "nearest"),
        facts.get("hole_value"),
        None if percentile is None else (float(percentile[0]), float(percentile[1])),
    )
    blind = "zeros" in (data.depth, facts.get("depth"))
    return Reading(
        int(facts.get("input_size", config.model.input_size)),
        rules,
        polarity,
        default,
        "zeros" if blind else "files",
        data.mismatch,
    )


def _told(reading: Reading, split: RgbdSplit) -> list[str]:
    """What the user should know of how depth was read."""
    if reading.depth == "zeros":
        return [
            "no depth is used (data.depth=zeros): a model trained with depth finds less without"
        ]
    ends = sorted({reading.polarity.get(p.set, reading.default) for p in split.pairs})
    words = " and ".join(end.replace("_", " ") for end in ends)
    return [f"depth is read as {words}; if yours is the other way round set data.polarity"]


def _sound(pairs: Iterable[Pair], config: Config) -> tuple[list[Pair], dict[str, str], list[str]]:
    sound, digests, broken = [], {}, []
    for pair in pairs:
        try:
            read_heads(pair, config.data.mismatch)
            digests[pair.id] = f"{content_hash(pair.rgb)} {content_hash(pair.depth)}"
        except DataError as error:
            broken.append(str(error))
        else:
            sound.append(pair)
    return sound, digests, broken


def _unique(pairs: Sequence[Pair]) -> Sequence[Pair]:
    seen: dict[str, Pair] = {}
    for pair in pairs:
        other = seen.setdefault(pair.id, pair)
        if other is not pair:
            msg = (
                f"{pair.rgb} and {other.rgb} are both called '{pair.id}'; predict on one at a time"
            )
            raise DataError(msg)
    return pairs


# -- folders ------------------------------------------------------------------------------------


def _of_folders(folders: Sequence[Path], config: Config) -> tuple[list[Pair], list[str]]:
    rgb = [f for f in folders if f.name.lower() in FOLDERS["rgb"]]
    depth = [f for f in folders if f.name.lower() in FOLDERS["depth"]]
    if len(folders) == 2 and len(rgb) == len(depth) == 1:  # an image and a depth folder, given so
        name = rgb[0].parent.name
        place = Place(rgb[0].parent, name, name, "any", "plain", rgb[0], depth[0], None)
        return _of_place(place, config)
    pairs: list[Pair] = []
    lacking: list[str] = []
    for folder in folders:
        found, missing = _of_folder(folder, config)
        pairs += found
        lacking += missing
    return pairs, lacking


def _of_folder(folder: Path, config: Config) -> tuple[list[Pair], list[str]]:
    places = _places(folder, config)
    if not places and folder.name.lower() in FOLDERS["rgb"]:
        # A data set's image folder: its depth lies next to it.
        places = [p for p in _places(folder.parent, config) if p.rgb == folder]
    if places:
        pairs: list[Pair] = []
        lacking: list[str] = []
        for place in sorted(places, key=lambda p: p.role == "train"):
            found, missing = _of_place(place, config)
            taken = {pair.id for pair in pairs}
            if place.role == "train" and any(pair.id in taken for pair in found):
                # The set's two folders number their images alike.
                found = [replace(p, id=f"{p.set}-train/{p.stem}") for p in found]
            pairs += found
            lacking += missing
        return pairs, lacking
    images = {
        stem: path
        for stem, path in files_of(folder, "rgb")[0].items()
        if not _is_map(path) and without_tail(stem) == stem
    }
    if not images:
        msg = f"{folder}: no images found; expected RGB and depth folders, or images in it"
        raise DataError(msg)
    return _of_files(list(images.values()), config)


def _places(folder: Path, config: Config) -> list[Place]:
    return find_places(folder, config.data.layout, config.data.depth_from, needed=False)


def _of_place(place: Place, config: Config) -> tuple[list[Pair], list[str]]:
    images, twice = files_of(place.rgb, "rgb")
    maps: Mapping[str, Path] = {}
    if config.data.depth == "files":
        if place.depth is None:
            names = ", ".join(FOLDERS["depth"][:4])
            msg = (
                f"{place.path}: images, but no folder of depth maps (looked for {names}); add it, "
                "or set data.depth=zeros to predict without depth"
            )
            raise DataError(msg)
        files, more = files_of(place.depth, "depth")
        maps = matched(files, set(images))[0]
        twice += more
    if twice:
        msg = f"{twice[0]}; delete or rename one of them"
        raise DataError(msg)
    pairs, lacking = [], []
    for stem, path in sorted(images.items()):
        if config.data.depth == "files" and stem not in maps:
            lacking.append(f"{path}: no depth map '{stem}' in {place.depth}; {_WITHOUT}")
            continue
        pairs.append(Pair(f"{place.set}/{stem}", place.set, stem, path, maps.get(stem), None))
    if not pairs and not lacking:
        msg = f"{place.rgb}: there is no image in it"
        raise DataError(msg)
    return pairs, lacking


# -- files --------------------------------------------------------------------------------------


def _of_files(
    files: Sequence[Path], config: Config, *, together: bool = False
) -> tuple[list[Pair], list[str]]:
    """Pair single files; two given `together` may be an image and its map under any names."""
    for path in files:
        if not path.is_file():
            msg = f"{path}: there is no such file"
            raise DataError(msg)
        if path.suffix.lower() not in DEPTH_SUFFIXES:
            msg = f"{path}: is no image; expected {', '.join(IMAGE_SUFFIXES)} or .mat for depth"
            raise DataError(msg)
    maps = [path for path in files if _is_map(path)]
    if not maps and together:
        maps = [path for path in files if _is_grey(path)]
        maps = maps if len(maps) == 1 else []  # two grey files: both are images
    images = [path for path in files if path not in maps]
    if maps and not images:
        msg = f"{maps[0]}: is a depth map; give its image as well"
        raise DataError(msg)
    named = {stem_of(path.name): path for path in maps}
    by_stem = matched(named, {stem_of(path.name) for path in images})[0]
    pairs, lacking = [], []
    for image in images:
        stem = stem_of(image.name)
        depth = by_stem.get(stem)
        if depth is None and together and len(images) == len(maps) == 1:
            depth = maps[0]
        depth = depth or _beside(image, stem, config)
        if depth is None and config.data.depth == "files":
            lacking.append(
                f"{image}: no depth map found for it (looked for {stem}_depth.* beside it and "
                f"{stem}.* in a depth folder next to it); {_WITHOUT}"
            )
            continue
        pairs.append(Pair(stem, "", stem, image, depth, None))
    return pairs, lacking


def _is_map(path: Path) -> bool:
    """Whether a file's name or folder says that it holds depth."""
    named = any(path.stem.endswith(tail) for tail in _DEPTH_TAILS[:3])
    return named or path.suffix.lower() == ".mat" or path.parent.name.lower() in FOLDERS["depth"]


def _is_grey(path: Path) -> bool:
    from PIL import Image

    if head(path).kind != "8-bit":
        return True
    with Image.open(path, formats=FORMATS) as image:
        return len(image.getbands()) == 1


def _beside(image: Path, stem: str, config: Config) -> Path | None:
    """The depth map of a single image, None if there is none where one is looked for."""
    for tail in _DEPTH_TAILS:
        for suffix in DEPTH_SUFFIXES[::-1]:
            candidate = image.with_name(f"{stem}{tail}{suffix}")
            if candidate.is_file():
                return candidate
    around = [image.parent]
    if image.parent.name.lower() in FOLDERS["rgb"]:
        around.insert(0, image.parent.parent)
    for parent in around:
        folder = depth_folder(parent, config.data.depth_from)
        if folder is not None:
            found = matched(files_of(folder, "depth")[0], {stem})[0].get(stem)
            if found is not None:
                return found
    return None
