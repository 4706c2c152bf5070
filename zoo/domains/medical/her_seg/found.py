"""What a finder of a layout hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.domains.medical.her_seg.lists import plain_stem
from zoo.domains.medical.her_seg.pairing import Truth
from zoo.domains.medical.her_seg.pictures import Picture
from zoo.task import Finding


@dataclass
class Found:
    """The pictures of a data set, before a split list is applied.

    Attributes:
        layout: Its name.
        root: Where it was found.
        pictures: All of them, with and without mask.
        usual: Class -> values in masks, where the data set has a known code.
        findings: What is wrong or worth knowing.
        key: How a name in a split list becomes the key of a picture.
        lacking: Picture id -> why it has no mask, where it should have one.
        thing: What the foreground of a single class is.
        threshold: Mask values above it are foreground, where the layout says so.
        masks_optional: Whether pictures without mask are usual in this layout.
        settled: Whether the parts come from a list of the layout's own, so that no other is read.
    """

    layout: str
    root: Path
    pictures: list[Picture]
    usual: Mapping[str, Sequence[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    key: Callable[[str], str] = plain_stem
    lacking: dict[str, str] = field(default_factory=dict)
    thing: str = "foreground"
    threshold: int | None = None
    masks_optional: bool = False
    settled: bool = False


def picture_of(
    name: str, image: Path, truth: Truth | None, part: str | None = None, group: str | None = None
) -> Picture:
    """A picture with the masks that were paired with it.

    Args:
        name: Its id.
        image: Its file.
        truth: Its masks, None if there are none.
        part: Its split, where folders say so.
        group: Its patient; by default it is its own.
    """
    group = group or name
    if truth is None:
        return Picture(name, group, (image,), part=part)
    how = "objects" if truth.objects else "one" if len(truth.files) == 1 else "union"
    return Picture(name, group, (image,), truth.files, how, part)  # type: ignore[arg-type]
