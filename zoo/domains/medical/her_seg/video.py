"""Data sets of clips, and what `zoo predict` is given besides single pictures.

- `frames`: a folder of pictures a clip, masks in a folder beside it, in a parallel tree
  (`images/<clip>/…` and `masks/<clip>/…`, DAVIS, SUN-SEG) or in the same folder with a tail
  (`0001_mask.png`).
- `video`: video files; masks in a folder of the video's name, as a second video, or as pictures
  beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from zoo.data import as_text
from zoo.domains.medical.her_seg.arrays import H5Source, NpzSource, SlicesSource, is_tiff_stack
from zoo.domains.medical.her_seg.cases import Case, Classes, natural, part_of, sorted_paths
from zoo.domains.medical.her_seg.clip_stack import ClipStack, FolderFrames, Frames
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.images import IMAGE_SUFFIXES, stems
from zoo.domains.medical.her_seg.masks import Coding, coding_of
from zoo.domains.medical.her_seg.nifti import NiftiSource, is_nifti, stem_of
from zoo.domains.medical.her_seg.nnunet import all_channels, group_channels
from zoo.domains.medical.her_seg.series import SeriesSource, series_folders
from zoo.domains.medical.her_seg.stacks import Stack
from zoo.domains.medical.her_seg.video_file import VideoFile, is_video
from zoo.domains.medical.her_seg.volume_pairs import base, is_images, is_label, is_labels
from zoo.domains.medical.her_seg.volume_stack import Reading, Source, VolumeStack
from zoo.errors import ConfigError, DataError
from zoo.task import Finding

_TAIL = re.compile(r"[_\-. ]*(mask|masks|label|labels|gt|seg|segmentation)$", re.IGNORECASE)


def clip_layout(root: Path) -> Literal["video", "frames"] | None:
    """The layout of a folder that holds clips; None if it holds none.

    A folder of pictures right beside its masks may as well hold single pictures: it counts as a
    clip only where the configuration says `data.layout=frames`.
    """
    frames, masks = _frame_folders(root)
    clips = {key for key in frames if key}
    if not clips & set(masks) and any(is_video(p) for p in _files(root)):
        return "video"
    return "frames" if clips else None


def clip_cases(root: Path, config: Config) -> list[Case]:
    """The cases of a data set of clips, in natural order of their names.

    Args:
        root: Its folder.
        config: `data.layout` (auto: recognised), what mask values mean, what predictions are
            written as.

    Raises:
        DataError: There is no clip, or two frames of one clip have one name.
        ConfigError: Settings contradict each other.
    """
    layout = config.data.layout
    layout = clip_layout(root) or "frames" if layout == "auto" else layout
    coding = coding_of(config.data)
    found = _videos(root) if layout == "video" else _frame_clips(root)
    cases = []
    for name, (frames, masks, mask_video) in found.items():
        parts = [p for p in name.split("/") if part_of(Path(p, "x"), Path()) is None]
        stack = partial(
            ClipStack,
            name,
            "/".join(parts) or name,
            frames,
            masks,
            coding,
            mask_video=mask_video,
            each=config.predict.frames,
            overlay=config.predict.overlay,
        )
        cases.append(_case(stack, part_of(root / name, root)))
    if not cases:
        msg = f"{root}: no clip was found (layout {layout}); look at data.root and data.layout"
        raise DataError(msg)
    return sorted(cases, key=lambda c: natural(c.name))


def _case(stack: partial[ClipStack], part: Any) -> Case:
    clip = stack()
    return Case(
        clip.id,
        clip.group,
        "clip",
        clip.files,
        clip.coding.classes,
        stack,
        partial(_slices, stack),
        partial(_look, stack),
        part,
        clip.labelled,
    )


def _slices(stack: partial[ClipStack]) -> list[tuple[int, bool]]:
    return stack().foreground()


def _look(stack: partial[ClipStack], deep: bool) -> list[Finding]:
    return stack().look(deep)


# -- frame folders ------------------------------------------------------------------------------

Clip = tuple[Frames, Mapping[str, Path], VideoFile | None]
Key = tuple[str, ...]


def _frame_clips(root: Path) -> dict[str, Clip]:
    frames, masks = _frame_folders(root)
    found: dict[str, Clip] = {}
    for key, folder in frames.items():
        pictures = _pictures(folder)
        truths = _pictures(masks[key]) if key in masks else []
        if not truths:  # perhaps in the same folder
            truths = [p for p in pictures if is_label(p.stem)]
            pictures = [p for p in pictures if not is_label(p.stem)] or pictures
            truths = truths if len(truths) < len(pictures) + len(truths) else []
        stems(pictures)  # no two may share one
        name = "/".join(key) or root.resolve().name
        found[name] = FolderFrames(pictures), stems(truths), None
    return found


def _frame_folders(root: Path) -> tuple[dict[Key, Path], dict[Key, Path]]:
    """Folders of frames and of masks, by what their paths have in common."""
    frames: dict[Key, Path] = {}
    named: dict[Key, Path] = {}
    masks: dict[Key, Path] = {}
    for folder in (root, *_folders(root)):
        if not _pictures(folder):
            continue
        inner = folder.relative_to(root).parts
        key = tuple(p for p in inner if not is_images(Path(p)) and not is_labels(Path(p)))
        if any(is_labels(Path(p)) for p in inner):
            masks.setdefault(key, folder)
        elif any(is_images(Path(p)) for p in inner):
            named.setdefault(key, folder)
        else:
            frames.setdefault(key, folder)
    # Where folders are called images, what is called otherwise (edges, boxes) is no frame.
    return named or frames, masks


def _pictures(folder: Path) -> list[Path]:
    kept = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
    return sorted_paths([p for p in kept if not p.name.startswith(".")])


def _folders(root: Path) -> list[Path]:
    return sorted(
        p
        for p in root.rglob("*")
        if p.is_dir() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )


# -- video files --------------------------------------------------------------------------------


def _videos(root: Path) -> dict[str, Clip]:
    every = [p for p in _files(root) if is_video(p)]
    folders = _folders(root)
    truths = [p for p in every if is_label(p.stem) or _below_labels(p.parent, root)]
    found: dict[str, Clip] = {}
    for path in (p for p in every if p not in truths):
        inner = [p for p in path.parent.relative_to(root).parts if not _plural(p)]
        name = "/".join([*inner, path.stem])
        if name in found:
            msg = f"{path}: another video has the name '{name}'; rename one of them"
            raise DataError(msg)
        second = [p for p in truths if p != path and base(p.stem) == base(path.stem)]
        masks = _masks_of(path, folders, root)
        video: Frames = VideoFile(path)
        found[name] = video, masks, VideoFile(second[0]) if second else None
        if second and (len(second) > 1 or masks):
            msg = f"{path}: more than one set of masks ({second[0].name}, …); keep one of them"
            raise DataError(msg)
    return found


def _plural(part: str) -> bool:
    return is_images(Path(part)) or part.lower() in ("video", "videos", "clips")


def _below_labels(folder: Path, root: Path) -> bool:
    return any(is_labels(Path(p)) for p in folder.relative_to(root).parts)


def _masks_of(video: Path, folders: Sequence[Path], root: Path) -> dict[str, Path]:
    """Mask pictures of a video: in a folder called after it, below or beside it."""
    for folder in folders:
        own = _TAIL.sub("", folder.name) == video.stem
        if own and (_below_labels(folder, root) or folder.parent == video.parent):
            return stems(_pictures(folder))
    return {}


def _files(root: Path) -> list[Path]:
    return [
        p
        for p in sorted(root.rglob("*"))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    ]


# -- prediction ---------------------------------------------------------------------------------


def stacks_from(paths: Sequence[Path], config: Config, facts: Mapping[str, Any]) -> list[Stack]:
    """Volumes and clips to predict on; labels are neither needed nor read.

    A NIfTI file is a volume (files `<case>_0000`, `<case>_0001` … its channels), as are an HDF5
    file, a TIFF of many pages and a DICOM folder. A video file is a clip. A folder of pictures is
    a clip, or a volume of slices where the model was trained on volumes. A folder of folders is
    all of them.

    Args:
        paths: Files and folders.
        config: How volumes are read and clips written.
        facts: Of the trained model: `classes`, `values`, `kind`.

    Raises:
        DataError: A path holds no volume and no clip.
        ConfigError: Prompts for a single picture are given.
    """
    given = config.predict
    if given.points or given.boxes or given.mask_prompt:
        msg = (
            "predict.points, boxes and mask_prompt are for a single picture; those of slices and "
            "frames go into the json of predict.prompts as '<name>/<number>', counted from 0"
        )
        raise ConfigError(msg)
    coding = Coding(Classes.of_facts(facts))
    stacks: list[Stack] = []
    volumes = [p for p in paths if p.is_file() and is_nifti(p)]
    for name, channels in group_channels(volumes).items():
        siblings = all_channels(channels[0]) if len(channels) == 1 else channels
        stacks.append(_volume(name, NiftiSource(siblings, None, None, True), config, coding))
    for path in paths:
        if path not in volumes:
            stacks += _of_path(path, config, coding, str(facts.get("kind", "clip")))
    return stacks


def _of_path(path: Path, config: Config, coding: Coding, kind: str) -> list[Stack]:
    if path.is_file():
        return [_of_file(path, config, coding)]
    if not path.is_dir():
        msg = f"{path}: there is no such file or folder"
        raise DataError(msg)
    found = sorted(path.iterdir())
    volumes = [p for p in found if is_nifti(p) and not p.name.startswith(".")]
    if volumes:
        images = [p for p in volumes if not is_label(stem_of(p))] or volumes
        grouped = group_channels(images)
        return [
            _volume(n, NiftiSource(c, None, None, True), config, coding)
            for n, c in sorted(grouped.items(), key=lambda item: natural(item[0]))
        ]
    if path in series_folders(path):
        return [_volume(path.resolve().name, SeriesSource(path), config, coding)]
    pictures = _pictures(path)
    if pictures and kind == "volume" and not is_tiff_stack(pictures[0]):
        source = SlicesSource(tuple(pictures), None, coding)
        return [_volume(path.resolve().name, source, config, coding)]
    if pictures and not is_tiff_stack(pictures[0]):
        stems(pictures)  # no two may share one
        return [_clip(path.resolve().name, FolderFrames(pictures), config, coding)]
    stacks = [s for p in found if _readable(p) for s in _of_path(p, config, coding, kind)]
    if not stacks:
        msg = f"{path}: holds no volume, DICOM series, video or picture"
        raise DataError(msg)
    for stack in stacks:
        stack.id = f"{path.resolve().name}/{stack.id}"
    return stacks


def _readable(path: Path) -> bool:
    if path.is_dir():
        return not path.name.startswith(".") and not is_labels(path) and any(path.iterdir())
    return is_video(path) or path.suffix.lower() in (".h5", ".npz") or is_tiff_stack(path)


def _of_file(path: Path, config: Config, coding: Coding) -> Stack:
    as_text(path.name, path)
    suffix = path.suffix.lower()
    if is_video(path):
        return _clip(path.stem, VideoFile(path), config, coding)
    if suffix in (".h5", ".hdf5"):
        name = path.name.removesuffix(path.suffix).removesuffix(".npy")
        return _volume(name, H5Source(path), config, coding)
    if suffix == ".npz":
        return _volume(path.stem, NpzSource((path,)), config, coding)
    if is_tiff_stack(path):
        return _volume(path.stem, SlicesSource((path,), None, coding), config, coding)
    msg = (
        f"{path}: is neither a picture, a NIfTI volume (.nii.gz), a video, HDF5 nor npz; convert "
        "it, or name the folder of a DICOM series"
    )
    raise DataError(msg)


def _volume(name: str, source: Source, config: Config, coding: Coding) -> Stack:
    return VolumeStack(name, name, source, Reading.of(config.data), coding)


def _clip(name: str, frames: Frames, config: Config, coding: Coding) -> Stack:
    each, overlay = config.predict.frames, config.predict.overlay
    return ClipStack(name, name, frames, {}, coding, each=each, overlay=overlay)
