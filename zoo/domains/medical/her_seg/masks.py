"""Reading masks: from whatever the file holds to class indices.

Mask files come as grey, colour, with alpha, with a palette, with 1, 8 or 16 bits, as 0/1, 0/255,
JPEG, smoothed at the edges, or with a value a class. What a value means is decided here, by rules
that look at one file alone:

- Alpha is dropped, never composited; only where it varies and all colours are one constant is the
  mask in the alpha.
- A palette of greys counts by its greys; of a coloured palette the index counts.
- Colours that differ between channels count by their brightest channel, or as 0xRRGGBB where
  `data.labels` names such values.
- Without `data.labels`, foreground is above half of the full range in JPEG, in files that were
  JPEG by their levels, and in files whose largest value is the full range (255, 65535), which takes
  smoothed edges at their middle; in others (0/1, label and object numbers) it is above 0.
  `data.mask_threshold` replaces that.
- With `data.labels`, every value must be named; in JPEG the nearest named value counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.domains.medical.her_seg.cases import Classes
from zoo.domains.medical.her_seg.config import SegData
from zoo.domains.medical.her_seg.images import LOSSY, Bytes, frames_of, one_picture, upright
from zoo.errors import ConfigError, DataError
from zoo.images import opened

# Channels of a grey mask stored in colour may differ by this much where JPEG rounded them.
_GREY_TOLERANCE = 24
# Larger than any grey value: such a label is a colour.
_COLOURS_FROM = 1 << 16
# A mask of two values smoothed at its edges has many levels, each of few pixels; a label image has
# few, each of many.
_LEVEL_SHARE = 0.01
_FEW_LEVELS = 3
_MANY_LEVELS = 12


@dataclass(frozen=True, eq=False)
class Values:
    """What a mask file holds.

    Attributes:
        grey: (H, W) whole numbers.
        rgb: (H, W, 3) uint8 where the channels differ.
        full: Largest value of the file's type: 1, 255 or 65535.
        lossy: Whether values may have changed in writing.
    """

    grey: np.ndarray
    rgb: Bytes | None
    full: int
    lossy: bool


@dataclass(frozen=True)
class Coding:
    """How a data set's mask values become class indices.

    Attributes:
        classes: Names and values; one class without values is told by brightness.
        threshold: Values above it are foreground; None: as the module's text says.
        invert: Foreground is what is not.
    """

    classes: Classes = field(default_factory=Classes)
    threshold: int | None = None
    invert: bool = False

    @property
    def named(self) -> bool:
        """Whether values are named, rather than told by brightness."""
        return any(self.classes.values)

    def indices(self, values: Values, where: object) -> Bytes:
        """Class indices (H, W) uint8 of a mask; 0 is background.

        Raises:
            DataError: There is a value that belongs to no class.
        """
        if not self.named:
            found = self._foreground(values)
            return (~found if self.invert else found).astype(np.uint8)
        labels = values.grey
        if max(max(v) for v in self.classes.values) >= _COLOURS_FROM:
            labels = _as_colour_numbers(values)
        if values.lossy:
            labels = self._nearest(labels)
        indices = _compact(self.classes, labels, where)
        return (indices == 0).astype(np.uint8) if self.invert else indices

    def _foreground(self, values: Values) -> np.ndarray:
        grey = values.grey
        if self.threshold is not None:
            # Set for 8 bits; the same share of files with more or fewer.
            bright = grey * (255 / values.full) if values.rgb is None else values.rgb.max(axis=2)
            return np.asarray(bright > self.threshold)
        return np.asarray(grey > (values.full // 2 if _is_graded(values) else 0))

    def _nearest(self, labels: np.ndarray) -> np.ndarray:
        taken = {v for vs in self.classes.values for v in vs}
        known = np.array(sorted({*taken, *self._background(taken)}))
        middle = (known[1:] + known[:-1]) / 2
        return np.asarray(known[np.searchsorted(middle, labels)])

    def _background(self, taken: set[int]) -> set[int]:
        return set(self.classes.background) | (set() if 0 in taken else {0})


def _is_graded(values: Values) -> bool:
    """Whether values are brightness rather than numbers of labels or objects."""
    top = int(values.grey.max(initial=0))
    if values.lossy or (values.full > 1 and top == values.full):
        return True
    if values.full != 255 or top <= 127:
        return False
    # A JPEG saved again without loss has many levels near both ends and few pixels between;
    # numbers spread over the range, or leave out its lower end.
    counts = np.bincount(values.grey.reshape(-1), minlength=256)
    low, high = round(0.1 * top), round(0.9 * top)
    between, near = int(counts[low + 1 : high + 1].sum()), int(counts[high + 1 :].sum())
    both_ends = near > between and counts[1 : low + 1].any()
    return bool(both_ends) and int((counts[1:] > 0).sum()) > _FEW_LEVELS


def _as_colour_numbers(values: Values) -> np.ndarray:
    if values.rgb is None:
        grey = values.grey.astype(np.int64)
        return np.asarray(grey * 0x010101)
    wide = values.rgb.astype(np.int64)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def _compact(classes: Classes, labels: np.ndarray, where: object) -> Bytes:
    """`Classes.indices` for colours too, whose numbers are too large for a table."""
    if int(labels.max(initial=0)) < _COLOURS_FROM:
        return classes.indices(labels, where)
    known, inverse = np.unique(labels, return_inverse=True)
    table = {v: i for i, vs in enumerate(classes.values, 1) for v in vs}
    strange = [int(v) for v in known if v and int(v) not in {*table, *classes.background}]
    if strange:
        msg = (
            f"{where}: colour 0x{strange[0]:06X} belongs to no class; list it in data.labels, "
            "under 'background' if it is none"
        )
        raise DataError(msg)
    small = np.array([table.get(int(v), 0) for v in known], np.uint8)
    return np.asarray(small[inverse].reshape(labels.shape))


def coding_of(
    data: SegData,
    usual: Mapping[str, Sequence[int]] | None = None,
    thing: str = "foreground",
    threshold: int | None = None,
) -> Coding:
    """The coding a configuration asks for.

    Args:
        data: `labels`, `target`, `mask_threshold`, `invert` are used.
        usual: Class name -> values of a known data set, taken where `data.labels` is empty; with
            `background` for values that are none.
        thing: What a single class is called where nothing else names it.
        threshold: A known data set's `mask_threshold`, where neither it nor labels are set.

    Raises:
        ConfigError: The settings contradict each other.
    """
    named = {k: (v,) if isinstance(v, int) else tuple(v) for k, v in data.labels.items()}
    named = named or {k: tuple(v) for k, v in (usual or {}).items()}
    background = tuple(v for v in named.pop("background", ()) if v != 0)
    if data.target in named:
        # One of several classes; the others are background then.
        others = [v for k, vs in named.items() if k != data.target for v in vs]
        background = (*background, *(v for v in others if v not in named[data.target]))
        named = {data.target: named[data.target]}
    every = [v for vs in named.values() for v in vs] + list(background)
    twice = sorted({v for v in every if every.count(v) > 1})
    if twice:
        msg = f"data.labels: value {twice[0]} belongs to two classes; name each value once"
        raise ConfigError(msg)
    if any(not vs or min(vs) < 0 for vs in named.values()):
        msg = "data.labels: each class needs at least one value, 0 or more"
        raise ConfigError(msg)
    if len(named) > 1 and (data.invert or data.mask_threshold is not None):
        msg = "data.invert and data.mask_threshold go with one class; data.labels names several"
        raise ConfigError(msg)
    if data.mask_threshold is not None:
        return Coding(Classes(tuple(named) or (thing,), ((),)), data.mask_threshold, data.invert)
    if not named:
        return Coding(Classes((thing,)), threshold, data.invert)
    return Coding(Classes(tuple(named), tuple(named.values()), background), None, data.invert)


# -- files --------------------------------------------------------------------------------------


def read_values(path: Path, like: tuple[int, int] | None = None) -> Values:
    """What a mask file holds, upright where it carries an EXIF orientation.

    Args:
        path: The file.
        like: (H, W) of the picture it belongs to; a mask is left as stored where only that fits.

    Raises:
        DataError: The file is missing, broken, holds several pictures, or floats that are neither
            whole numbers nor in [0, 1].
    """
    lossy = path.suffix.lower() in LOSSY
    with opened(path) as image:
        one_picture(path, frames_of(image))
        lossy = lossy or image.format in ("JPEG", "MPO")
        image = upright(image, like)
        mode = image.mode
        if mode == "1":
            return Values(np.asarray(image).astype(np.uint8), None, 1, lossy)
        if mode == "P":
            return _of_palette(image)
        if mode == "F":
            return _of_floats(np.asarray(image), path)
        if mode.startswith("I"):
            return _of_whole_numbers(np.asarray(image), path)
        if mode in ("L", "LA", "La"):
            return _of_channels(np.asarray(image), lossy)
        if mode not in ("RGB", "RGBA", "RGBa", "RGBX"):
            image = image.convert("RGB")
        return _of_channels(np.asarray(image), lossy)


def _of_palette(image: Image.Image) -> Values:
    index = np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[..., :1]).all() and _palette_is_grey(image):
        return Values(np.ascontiguousarray(colours[..., 0]), None, 255, lossy=False)
    # The index counts; colours are kept for labels that name them. No index is "full range".
    return Values(index.astype(np.int32), colours, _COLOURS_FROM, lossy=False)


def _palette_is_grey(image: Image.Image) -> bool:
    table = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
    used = table[: max(2, int(np.asarray(image).max(initial=0)) + 1)]
    return bool((used == used[:, :1]).all())


def _of_channels(array: np.ndarray, lossy: bool) -> Values:
    if array.ndim == 2:
        return Values(array, None, 255, lossy)
    alpha = array[..., -1] if array.shape[2] in (2, 4) else None
    colours = array[..., :-1] if alpha is not None else array
    flat = colours.reshape(-1, colours.shape[2])
    if alpha is not None and alpha.min() != alpha.max() and (flat == flat[0]).all():
        return Values(alpha, None, 255, lossy)
    wide = colours.astype(np.int16)
    spread = int((wide.max(axis=2) - wide.min(axis=2)).max(initial=0))
    brightest = np.ascontiguousarray(colours.max(axis=2))
    grey = spread == 0 or (lossy and spread <= _GREY_TOLERANCE)
    return Values(brightest, None if grey else np.ascontiguousarray(colours), 255, lossy)


def _of_whole_numbers(array: np.ndarray, path: Path) -> Values:
    if array.min(initial=0) < 0 or array.max(initial=0) >= _COLOURS_FROM:
        msg = f"{path}: mask values run from {array.min()} to {array.max()}; expected 0 to 65535"
        raise DataError(msg)
    full = 255 if array.max(initial=0) <= 255 else 65535
    return Values(array.astype(np.int32), None, full, lossy=False)


def _of_floats(array: np.ndarray, path: Path) -> Values:
    finite = bool(np.isfinite(array).all())
    if finite and (array == np.rint(array)).all():
        return _of_whole_numbers(array.astype(np.int64), path)
    if finite and array.min() >= 0 and array.max() <= 1:
        # Probabilities: foreground from one half.
        return Values(np.rint(array * 255).astype(np.uint8), None, 255, lossy=True)
    msg = f"{path}: the mask holds fractions from {array.min():g} to {array.max():g}; expected "
    msg += "whole numbers, or shares between 0 and 1"
    raise DataError(msg)


def read_mask(path: Path, coding: Coding, like: tuple[int, int] | None = None) -> Bytes:
    """Class indices (H, W) uint8 of a mask file.

    Args:
        path: The file.
        coding: What values mean.
        like: (H, W) of its picture.

    Raises:
        DataError: The file is broken or holds a value that belongs to no class.
    """
    return coding.indices(read_values(path, like), path)


def levels(values: Values) -> list[int]:
    """The values of a mask that look like classes: several, each of many pixels.

    Returns:
        Empty where the file has two values, perhaps smoothed in between, or many that count
        objects.
    """
    if values.lossy:
        return []
    found, counts = np.unique(values.grey, return_counts=True)
    if len(found) > _MANY_LEVELS:
        return []
    many = found[counts >= _LEVEL_SHARE * values.grey.size]
    return [int(v) for v in many] if len(many) > 2 else []
