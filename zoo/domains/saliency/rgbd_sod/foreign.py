"""Salience maps that other programs wrote, scored as our own.

The field hands results around as folders of grey pictures. Read are `<set>/<stem>.png`,
`<stem>.png` of one set or of several whose stems differ, and, a level above, one such folder a
method: `<method>/<set>/<stem>.png`. Maps are paired by stem. A suffix that all maps of a folder
have (`_JLDCF`, `_sal`) is taken off, and a set's folder may have any of the set's usual names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.images import read_mask, resized, thumbnail
from zoo.domains.saliency.rgbd_sod.layouts import Pair, canonical, plain
from zoo.domains.saliency.rgbd_sod.metrics import image_scores
from zoo.domains.saliency.rgbd_sod.picking import picked
from zoo.domains.saliency.rgbd_sod.split import RgbdSplit
from zoo.errors import DataError
from zoo.images import FORMATS
from zoo.task import Record

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Channels of a grey map stored as colour may differ by this much where JPEG rounded them.
_GREY_TOLERANCE = 8
_NAMED = 3  # files named in a message


class ForeignRecords(dict[str, list[Record]]):
    """Split -> records of a method's maps.

    Attributes:
        notes: What the user should be told, one line each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []


@dataclass
class _Report:
    """What happened to the maps of one set."""

    missing: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def notes(self, name: str, total: int) -> list[str]:
        lines = []
        if self.missing:
            lines.append(f"{name}: {_missing(self.missing, total)}; the rest is scored")
        lines += [f"{name}: left out {line}" for line in self.broken]
        if self.resized:
            lines.append(
                f"{name}: {len(self.resized)} of {total} maps were resized to their truth "
                f"(bilinear), for instance {self.resized[0]}"
            )
        return lines


def foreign_splits(
    predictions: Path, splits: Mapping[str, RgbdSplit], config: Config
) -> ForeignRecords:
    """Score one method's folder against every test split it has maps for.

    Args:
        predictions: The method's folder, in a layout named at the top of this module.
        splits: Test splits by name.
        config: `data.on_error` says what a missing or broken map means; `data.eval_size` the size
            at which is scored.

    Returns:
        Split -> records whose values are those of `metrics.image_scores`, and small pictures of
        the images that figures show. Splits without any map are left out and noted.

    Raises:
        DataError: A map is missing or broken and `data.on_error` is `raise`, two maps are of one
            image, or one map could be of two.
    """
    found = ForeignRecords()
    maps = _maps_by_split(predictions, splits, found.notes)
    for name, split in splits.items():
        label = split.pairs[0].set
        if not maps[name]:
            found.notes.append(f"{label}: no maps, left out")
            continue
        report = _Report()
        found[name] = _records(split, maps[name], config, report)
        found.notes += report.notes(label, len(split.pairs))
    return found


def foreign_records(predictions: Path, split: RgbdSplit, config: Config) -> list[Record]:
    """`foreign_splits` for a single split; empty where there is no map of it.

    Raises:
        DataError: As `foreign_splits`.
    """
    return foreign_splits(predictions, {"test": split}, config).get("test", [])


def method_folders(predictions: Path, splits: Mapping[str, RgbdSplit]) -> dict[str, Path]:
    """The methods whose maps lie in a folder, by the names of their folders.

    A folder is one method's if it holds maps of the test sets itself, or a folder named as one of
    them. Otherwise each folder in it that is one counts as a method.
    """
    own = {predictions.resolve().name: predictions}
    if not predictions.is_dir() or _is_method(predictions, splits):
        return own
    inner = {p.name: p for p in _folders(predictions) if _is_method(p, splits)}
    return inner or own


def _is_method(folder: Path, splits: Mapping[str, RgbdSplit]) -> bool:
    stems = [pair.stem for split in splits.values() for pair in split.pairs]
    return any(_set_folders(folder, split) for split in splits.values()) or bool(
        _maps(folder, stems)
    )


# -- finding ------------------------------------------------------------------------------------


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _set_folders(folder: Path, split: RgbdSplit) -> list[Path]:
    """Folders that are named as the split's set, best name first."""
    name = split.pairs[0].set
    inside = _folders(folder) if folder.is_dir() else []
    same = [p for p in inside if plain(p.name) == plain(name)]
    return same + [p for p in inside if p not in same and canonical(p.name) == name]


def _maps_by_split(
    folder: Path, splits: Mapping[str, RgbdSplit], notes: list[str]
) -> dict[str, dict[str, Path]]:
    """Split -> stem -> map. A split may have none."""
    if not folder.is_dir():
        msg = f"{folder}: is no folder; give the folder that holds a method's maps"
        raise DataError(msg)
    found: dict[str, dict[str, Path]] = {}
    for name, split in splits.items():
        stems = [pair.stem for pair in split.pairs]
        # STEREO-797 and STEREO-1000 may lie side by side: the one that fits best is meant.
        several = [(_maps(place, stems), place) for place in _set_folders(folder, split)]
        best, place = max(several, key=lambda m: len(m[0]), default=({}, folder))
        found[name] = best
        more = len(_files(place)) - len(best) if best else 0
        if more:
            notes.append(f"{place.name}: {more} maps belong to no image of the set, left out")
    loose = [name for name in splits if not found[name]]
    flat = {name: _maps(folder, [pair.stem for pair in splits[name].pairs]) for name in loose}
    _refuse_shared(folder, flat, splits)
    used = {path for maps in flat.values() for path in maps.values()}
    more = len(_files(folder)) - len(used) if used else 0
    if more:
        notes.append(f"{folder.name}: {more} maps belong to no image of any set, left out")
    return found | flat


def _refuse_shared(
    folder: Path, flat: Mapping[str, Mapping[str, Path]], splits: Mapping[str, RgbdSplit]
) -> None:
    """A map in the method's own folder must not be of two sets.

    Raises:
        DataError: One is.
    """
    seen: dict[Path, str] = {}
    for name, maps in flat.items():
        label = splits[name].pairs[0].set
        for path in maps.values():
            if path in seen:
                msg = (
                    f"{path}: sets {seen[path]} and {label} both have an image of that name; put "
                    f"the maps of {folder.name} into one folder a set"
                )
                raise DataError(msg)
            seen[path] = label


def _files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def _maps(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """Stem -> map in a folder.

    Raises:
        DataError: Two maps are of one image.
    """
    files = _files(folder)
    wanted = set(stems)
    best: dict[str, Path] = {}
    for ending in _endings([p.stem for p in files]):
        fitting = [p for p in files if p.stem.endswith(ending)]
        named = [(p.stem.removesuffix(ending), p) for p in fitting]
        mine: dict[str, Path] = {}
        for stem, path in named:
            if stem not in wanted:
                continue
            if stem in mine:
                msg = f"{path}: {mine[stem].name} is a map of the same image; remove one of them"
                raise DataError(msg)
            mine[stem] = path
        if len(mine) > len(best):
            best = mine
    return best


def _endings(names: Sequence[str]) -> list[str]:
    """What all names may have behind their stem: nothing, or what follows a common `_` or `-`."""
    first = names[0] if names else ""
    ends = [first[i:] for i, sign in enumerate(first) if sign in "_-"]
    return ["", *(end for end in ends if all(name.endswith(end) for name in names))]


# -- reading and scoring ------------------------------------------------------------------------


def read_map(path: Path) -> np.ndarray:
    """A salience map of any grey kind.

    Returns:
        (H, W) uint8. 16-bit values are divided by 257, of colour the equal channels are taken,
        transparency is dropped.

    Raises:
        DataError: The file is missing or broken, or a coloured picture.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode == "P":
                values = np.asarray(image.convert("RGB"))
            elif image.mode in ("1", "CMYK", "YCbCr", "HSV", "LAB"):
                values = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
            else:
                values = np.asarray(image)
            bands = image.getbands()
    except FileNotFoundError:
        msg = f"{path}: there is no such file"
        raise DataError(msg) from None
    except UnidentifiedImageError:
        msg = f"{path}: is no image that can be read; copy the file again"
        raise DataError(msg) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"{path}: cannot be read ({reason}); copy the file again"
        raise DataError(msg) from None
    if values.ndim == 3:
        values = _grey(values[..., :-1] if bands[-1] in "Aa" else values, path)
    return _as_bytes(values, path)


def _grey(values: np.ndarray, path: Path) -> np.ndarray:
    wide = values.astype(np.int64)
    if values.shape[2] > 1:
        spread = wide.max(axis=2) - wide.min(axis=2)
        if np.quantile(spread, 0.99) > _GREY_TOLERANCE:
            msg = f"{path}: is a coloured picture; a salience map is grey"
            raise DataError(msg)
    return np.asarray(np.rint(wide.mean(axis=2))).astype(values.dtype)


def _as_bytes(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype == np.uint8:
        return values.copy()
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (np.isfinite(values).all() and low >= 0 and high <= 65535):
        msg = f"{path}: values from {low:g} to {high:g}; a salience map has 8 or 16 bits"
        raise DataError(msg)
    full = 1.0 if values.dtype.kind == "f" and high <= 1 else 65535.0 if high > 255 else 255.0
    return np.asarray(np.rint(values * (255.0 / full)), np.uint8)


def truth_of(pair: Pair, config: Config) -> np.ndarray:
    """The annotation at the size at which is scored: (H, W) uint8, 0 or 255.

    Raises:
        DataError: It is missing or broken.
    """
    if pair.mask is None:
        msg = f"{pair.id}: has no annotation, so that nothing can be scored"
        raise DataError(msg)
    truth = read_mask(pair.mask).astype(np.uint8) * 255
    if config.data.eval_size == "native":
        return truth
    side = int(config.data.eval_size)
    return resized(truth, (side, side), nearest=True)


def _records(
    split: RgbdSplit, maps: Mapping[str, Path], config: Config, report: _Report
) -> list[Record]:
    skip = config.data.on_error == "skip"
    report.missing = [pair.stem for pair in split.pairs if pair.stem not in maps]
    if report.missing and not skip:
        label, folder = split.pairs[0].set, next(iter(maps.values())).parent
        told = _missing(report.missing, len(split.pairs))
        msg = f"{folder}: {label}: {told}; data.on_error=skip scores the rest"
        raise DataError(msg)
    made: list[Record] = []
    places: list[int] = []
    for index, pair in enumerate(split.pairs):
        if pair.stem not in maps:
            continue
        try:
            values = _scored(pair, maps[pair.stem], config, report)
        except DataError as error:
            if not skip:
                raise
            report.broken.append(str(error))
            continue
        made.append(Record(pair.id, pair.id, values))
        places.append(index)
    return _with_pictures(split, made, places, maps, config)


def _scored(pair: Pair, path: Path, config: Config, report: _Report) -> dict[str, np.ndarray]:
    truth, found = truth_of(pair, config), read_map(path)
    if found.shape != truth.shape and config.data.eval_size == "native":
        (h, w), (height, width) = found.shape, truth.shape
        report.resized.append(f"{path.name}, {w} x {h} to {width} x {height}")
    return image_scores(resized(found, truth.shape), truth)


def _with_pictures(
    split: RgbdSplit,
    records: list[Record],
    places: Sequence[int],
    maps: Mapping[str, Path],
    config: Config,
) -> list[Record]:
    """Add small pictures to those records that figures will show; the rest need none."""
    for i in picked([float(r.values["mae"]) for r in records]):
        pair = split.pairs[places[i]]
        item = split.item(places[i], np.random.default_rng(0))  # evaluation draws nothing
        longest = max(item["preview_rgb"].shape[:2])
        truth = truth_of(pair, config)
        shown = resized(read_map(maps[pair.stem]), truth.shape)
        pictures = {
            "preview_rgb": item["preview_rgb"],
            "preview_depth": item["preview_depth"],
            "preview_truth": thumbnail(truth, longest),
            "preview_maps": thumbnail(shown, longest)[None],
        }
        old = records[i]
        records[i] = Record(old.id, old.group, {**old.values, **pictures})
    return records


def _missing(stems: Sequence[str], total: int) -> str:
    named = ", ".join(stems[:_NAMED]) + (", …" if len(stems) > _NAMED else "")
    return f"{len(stems)} of {total} maps are missing ({named})"
