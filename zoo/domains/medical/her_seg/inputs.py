"""What `zoo predict` is given: pictures, folders of them, data sets, volumes, clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.data import as_text
from zoo.domains.medical import dicom
from zoo.domains.medical.her_seg.cases import Classes
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.image_stack import ImageStack
from zoo.domains.medical.her_seg.images import IMAGE_SUFFIXES, frames_of, images_in
from zoo.domains.medical.her_seg.masks import Coding
from zoo.domains.medical.her_seg.pictures import Picture, Reader, look
from zoo.domains.medical.her_seg.split import StackSplit
from zoo.domains.medical.her_seg.stacks import Stack
from zoo.errors import DataError
from zoo.images import opened
from zoo.task import Facts

# Layouts in which a folder of pictures is one volume or clip.
_ROWS = ("frames", "volumes")


def inputs(paths: Sequence[Path], facts: Facts, config: Config) -> StackSplit:
    """Stacks of files and folders, in the order given.

    A picture file is a picture; a folder of pictures is as many, unless the model was trained on
    clips: then it is a clip. A data set's folder gives all of its cases, with their masks.
    Volumes, DICOM folders and video files are read as such.

    Args:
        paths: Files and folders.
        facts: `classes` and `kind` of the trained model.
        config: How pictures are read.

    Raises:
        DataError: A path is not there or holds nothing that can be read.
    """
    reader = Reader(Coding(Classes.of_facts(facts)), config.data.window)
    pictures = facts.get("kind", "image") == "image" and config.data.layout not in _ROWS
    stacks: list[Stack] = []
    broken: list[str] = []
    rows: list[Path] = []  # read together: files may be channels of one volume
    for path in paths:
        if not path.exists():
            msg = f"{path}: there is no such file or folder"
            raise DataError(msg)
        found = [path] if path.is_file() and _is_picture(path) else []
        if path.is_dir() and pictures:
            found = images_in(path)
        if found:
            single, faults = _of_pictures(found, reader, config)
            stacks += single
            broken += faults
        elif path.is_dir() and not images_in(path):
            stacks += _of_data_set(path, facts, config)
        else:
            rows.append(path)
    if rows:
        stacks += _of_rows(rows, facts, config)
    if not stacks:
        raise DataError(broken[0] if broken else "nothing to predict on was given")
    split = StackSplit(_told_apart(stacks))
    split.notes += [f"skipped: {line}" for line in broken]
    return split


def _of_pictures(
    paths: Sequence[Path], reader: Reader, config: Config
) -> tuple[list[Stack], list[str]]:
    """Stacks of sound files, and a line for each other one.

    Raises:
        DataError: A file is broken and `data.on_error` is not `skip`: told before the first
            prediction, not after many.
    """
    skip = config.data.on_error == "skip"
    stacks: list[Stack] = []
    broken: list[str] = []
    for path, name in zip(paths, _ids(paths), strict=True):
        as_text(path.name, path)
        picture = Picture(name, name, (path,))
        errors = [f.line() for f in look(picture, reader, deep=skip) if f.level == "error"]
        broken += errors
        if not errors:
            stacks.append(ImageStack(picture, reader))
    if broken and not skip:
        raise DataError("\n".join(broken[:10]))
    return stacks, broken


def _of_rows(paths: Sequence[Path], facts: Facts, config: Config) -> Sequence[Stack]:
    """Volumes and clips."""
    from zoo.domains.medical.her_seg.video import stacks_from

    return stacks_from(paths, config, facts)


def _is_picture(path: Path) -> bool:
    if dicom.is_dicom(path):
        return True
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    if path.suffix.lower() not in (".tif", ".tiff", ".gif"):
        return True
    try:
        with opened(path) as image:
            return frames_of(image) == 1
    except DataError:
        return True  # told when it is read


def _ids(paths: Sequence[Path]) -> list[str]:
    """Stems; with the ending where two files share one."""
    names = [p.stem for p in paths]
    return [p.name if names.count(p.stem) > 1 else p.stem for p in paths]


def _of_data_set(path: Path, facts: Facts, config: Config) -> Sequence[Stack]:
    from zoo.domains.medical.her_seg.layouts import FINDERS
    from zoo.domains.medical.her_seg.survey import discover

    # It need not be arranged as the training data were.
    layout = config.data.layout if config.data.layout not in FINDERS else "auto"
    # Its masks mean what the model learnt, whether or not the folder says so itself.
    pairs = zip(facts.get("classes", ()), facts.get("values", ()), strict=False)
    labels = config.data.labels or {str(n): list(v) for n, v in pairs if v}
    changed = {"root": path, "split": None, "layout": layout, "labels": labels}
    data = config.data.model_copy(update=changed)
    settled = config.model_copy(update={"data": data})
    try:
        found = discover(path, settled)
    except DataError:
        # No pairs of anything: volumes or clips without truth.
        return _of_rows([path], facts, config)
    return [case.open() for case in found.cases]


def _told_apart(stacks: Sequence[Stack]) -> list[Stack]:
    """Stacks with unique ids: of two with one name, all further ones get a number."""
    seen: dict[str, int] = {}
    for stack in stacks:
        count = seen.get(stack.id, 0)
        seen[stack.id] = count + 1
        if count:
            stack.id = f"{stack.id}-{count + 1}"
    return list(stacks)
