"""A picture of a data set with the files of its mask, and how they are read and looked over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.domains.medical.her_seg.cases import Case, Part
from zoo.domains.medical.her_seg.images import (
    Bytes,
    Window,
    fingerprint_of,
    head,
    look_whole,
    one_picture,
    read_image,
)
from zoo.domains.medical.her_seg.masks import Coding, Values, levels, read_values
from zoo.domains.medical.her_seg.objects import merge, same_size
from zoo.errors import DataError
from zoo.task import Finding

Masks = Literal["one", "union", "objects"]


@dataclass(frozen=True)
class Picture:
    """The files of one picture.

    Attributes:
        id: Unique in the data set; predictions are named after it.
        group: Patient, or whatever must not be in two splits.
        image: The file, or one file a channel, of which the first three are read.
        masks: Its mask files; none where there is no truth, unless `how` is `objects`.
        how: `one` file; the `union` of several; `objects`: a file for each, of which there may be
            none at all.
        part: The split that folders or lists say it belongs to: `train`, `val`, `test` or
            `test_<set>`; None where nothing says so.
    """

    id: str
    group: str
    image: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    how: Masks = "one"
    part: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a truth."""
        return bool(self.masks) or self.how == "objects"

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file, images first."""
        return (*self.image, *self.masks)


@dataclass(frozen=True)
class PictureCase(Case):
    """A picture as a case; `set` names its test set where a data set has several."""

    picture: Picture | None = None
    set: str = ""


@dataclass(frozen=True)
class Reader:
    """Reads the pictures of a data set: all that the configuration says of how.

    Attributes:
        coding: What mask values mean.
        window: Values of files of more than 8 bits that become black and white.
    """

    coding: Coding
    window: Window | None = None

    def image(self, picture: Picture) -> Bytes:
        """(H, W, 3) uint8.

        Raises:
            DataError: A file is missing, broken, or a channel of another size.
        """
        like = _stored_size(picture)
        planes = [read_image(path, like, self.window) for path in picture.image[:3]]
        if len(planes) == 1:
            return planes[0]
        for path, plane in zip(picture.image, planes, strict=False):
            same_size(path, _size(plane), _size(planes[0]))
        planes += planes[-1:] * (3 - len(planes))
        return np.stack([plane[..., 0] for plane in planes], axis=2)

    def truth(self, picture: Picture, size: tuple[int, int]) -> Bytes | None:
        """Class indices (H, W) uint8, or None where there is no mask.

        Args:
            picture: The files.
            size: (H, W) of the picture as read.

        Raises:
            DataError: A file is missing, broken, of another size, or holds an unknown value.
        """
        if not picture.labelled:
            return None
        if picture.how == "objects":
            return (merge(picture.masks, size).objects > 0).astype(np.uint8)
        found: Bytes | None = None
        for path in picture.masks:
            values = read_values(path, size)
            same_size(path, (values.grey.shape[0], values.grey.shape[1]), size)
            indices = self.coding.indices(values, path)
            # Where two masks meet the first one has the pixel.
            found = indices if found is None else np.where(found > 0, found, indices)
        return found


def _size(array: np.ndarray) -> tuple[int, int]:
    return array.shape[0], array.shape[1]


def _stored_size(picture: Picture) -> tuple[int, int] | None:
    """(H, W) of the mask, if the picture carries an EXIF rotation, which the mask may not share."""
    if not picture.masks or picture.image[0].suffix.lower() == ".png":
        return None
    seen = head(picture.image[0])
    if seen.size == seen.stored:
        return None
    return head(picture.masks[0]).size


# -- looking over -------------------------------------------------------------------------------


def look(picture: Picture, reader: Reader, deep: bool) -> list[Finding]:
    """What is wrong with a picture's files; errors first found ends the search.

    Args:
        picture: The files.
        reader: How they are read.
        deep: Decode everything; otherwise headers alone.
    """
    try:
        for path in picture.files:
            fingerprint_of(path)
            look_whole(path)
        return _examined(picture, reader) if deep else _headers(picture)
    except DataError as error:
        return [Finding("error", str(error))]
    except OSError as error:
        told = f"{picture.image[0]}: cannot be read ({error.strerror or type(error).__name__})"
        return [Finding("error", told)]


def _headers(picture: Picture) -> list[Finding]:
    first = head(picture.image[0])
    for path in picture.image:
        seen = head(path)
        one_picture(path, seen.frames)
        same_size(path, seen.size, first.size)
    notes = []
    # Every object has a file: one look at each is as slow as reading them.
    for path in picture.masks[: 1 if picture.how == "objects" else None]:
        seen = head(path)
        one_picture(path, seen.frames)
        stored = first.size != first.stored and seen.size == first.stored
        if not stored:
            same_size(path, seen.size, first.size)
        if first.orientation != 1 and seen.orientation == 1 and first.size == first.stored:
            told = (
                "the picture is turned by EXIF and its mask is not, at the same size: the mask is "
                "taken to lie over the picture as displayed"
            )
            notes.append(Finding("warning", told, str(picture.image[0])))
    return notes


def _examined(picture: Picture, reader: Reader) -> list[Finding]:
    notes = _headers(picture)
    image = reader.image(picture)
    if int(image.max()) == int(image.min()):
        notes.append(Finding("warning", "the picture is of one value", str(picture.image[0])))
    if not picture.labelled:
        return notes
    if picture.how == "objects":
        return notes + _examined_objects(picture, _size(image))
    truth = reader.truth(picture, _size(image))
    if truth is None:
        return notes
    where = str(picture.masks[0])
    if not truth.any():
        notes.append(Finding("info", "the mask is empty", where))
    elif truth.all():
        remedy = "see data.invert and data.labels if that is wrong"
        notes.append(Finding("warning", "the mask is all foreground", where, remedy))
    return notes + _unnamed_levels(read_values(picture.masks[0], _size(image)), reader, where)


def _unnamed_levels(values: Values, reader: Reader, where: str) -> list[Finding]:
    if reader.coding.named or reader.coding.threshold is not None:
        return []
    several = levels(values)
    if not several:
        return []
    shown = ", ".join(map(str, several))
    told = f"the mask has values {shown}, read as one class"
    return [Finding("warning", told, where, "name them in data.labels")]


def _examined_objects(picture: Picture, size: tuple[int, int]) -> list[Finding]:
    merged = merge(picture.masks, size)
    where = str(picture.masks[0].parent if picture.masks else picture.image[0])
    notes = [Finding("warning", "the object's mask is empty", str(path)) for path in merged.empty]
    if merged.overlapping:
        told = f"{merged.overlapping} pixels belong to two objects; the first one has them"
        notes.append(Finding("warning", told, where))
    if not picture.masks:
        notes.append(Finding("info", "there is no object", where))
    return notes


# -- cases --------------------------------------------------------------------------------------


def cases_of(pictures: Sequence[Picture], reader: Reader) -> list[PictureCase]:
    """Pictures in the form that volumes and clips are listed in."""
    # Here, since a stack is read by this module's reader.
    from zoo.domains.medical.her_seg.image_stack import ImageStack

    parts: dict[str, Part] = {"train": "train", "val": "val"}
    return [
        PictureCase(
            name=picture.id,
            group=picture.group,
            kind="image",
            files=picture.files,
            classes=reader.coding.classes,
            open=partial(ImageStack, picture, reader),
            slices=partial(_always, picture.labelled),
            look=partial(look, picture, reader),
            part=None if picture.part is None else parts.get(picture.part, "test"),
            labelled=picture.labelled,
            picture=picture,
            set=(picture.part or "").removeprefix("test").lstrip("_")
            if (picture.part or "").startswith("test")
            else "",
        )
        for picture in pictures
    ]


def _always(labelled: bool) -> list[tuple[int, bool]]:
    """A picture is one slice, and drawn as often whether it has foreground or not."""
    return [(0, True)] if labelled else []
