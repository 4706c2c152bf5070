"""Data sets of volumes: which cases there are, in each of the layouts.

- `nnunet`: nnU-Net and Decathlon folders, see `nnunet.py`.
- `dicom`: a folder a series, labels as NIfTI or DICOM SEG, see `series.py`.
- `synapse`: `train_npz/case0005_slice000.npz` and `test_vol_h5/case0001.npy.h5`.
- `volumes`: NIfTI pairs by folder or name (or by `data.images` and `data.masks`), HDF5 files with
  `image` and `label`, folders of numbered picture slices, TIFF stacks.

Listing reads no voxels. The slices of a case that hold foreground are found once, when a training
asks for them, and kept in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from zoo.domains.medical.her_seg.arrays import (
    SYNAPSE,
    H5Source,
    NpzSource,
    SlicesSource,
    is_synapse,
    is_tiff_stack,
    slice_files,
    synapse_test,
    synapse_train,
)
from zoo.domains.medical.her_seg.cases import Case, Part, natural, part_of
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.masks import Coding, coding_of
from zoo.domains.medical.her_seg.nifti import NiftiSource, is_nifti, stem_of
from zoo.domains.medical.her_seg.nnunet import all_channels, is_further, is_nnunet, listed
from zoo.domains.medical.her_seg.series import series_cases, series_folders
from zoo.domains.medical.her_seg.volume_pairs import (
    Pair,
    is_images,
    is_labels,
    pairs_by_pattern,
    pairs_in,
)
from zoo.domains.medical.her_seg.volume_stack import Reading, Source, VolumeStack
from zoo.errors import DataError
from zoo.task import Finding

VolumeLayout = Literal["nnunet", "dicom", "synapse", "volumes"]
_H5 = (".h5", ".hdf5")


def volume_layout(root: Path) -> VolumeLayout | None:
    """The layout of a folder that holds volumes; None if it holds none.

    Folders of picture slices are not recognised: their pictures may as well be single ones.
    """
    if is_nnunet(root):
        return "nnunet"
    if is_synapse(root):
        return "synapse"
    every = _walk(root)
    if series_folders(root) and not _paired(root, every):
        return "dicom"  # what NIfTI files there are hold the labels of series
    found = any(is_nifti(p) or p.suffix.lower() in _H5 or is_tiff_stack(p) for p in every)
    return "volumes" if found else None


def _paired(root: Path, every: Sequence[Path]) -> bool:
    """Whether NIfTI files make pairs of their own, as where DICOM was converted in its place."""
    try:
        pairs = pairs_in(root, [p for p in every if is_nifti(p)], stem_of)
    except DataError:
        return False
    return any(pair.label is not None for pair in pairs)


def volume_cases(root: Path, config: Config) -> list[Case]:
    """The cases of a data set of volumes, in natural order of their names.

    Args:
        root: Its folder.
        config: `data.layout` (auto: recognised), `labels`, `target`, `images`, `masks`, `split`,
            `fold` and how voxels become pictures.

    Raises:
        DataError: There is no volume, or files don't fit together by name.
        ConfigError: Settings contradict each other.
    """
    layout = config.data.layout
    layout = volume_layout(root) or "volumes" if layout == "auto" else layout
    if layout == "nnunet":
        cases = _nnunet(root, config)
    elif layout == "synapse":
        cases = _synapse(root, config)
    elif layout == "dicom":
        cases = [case_of(*found) for found in series_cases(root, config)]
    else:
        cases = _volumes(root, config)
    if not cases:
        msg = f"{root}: no volume was found (layout {layout}); look at data.root and data.layout"
        raise DataError(msg)
    return sorted(cases, key=lambda c: natural(c.name))


def case_of(
    name: str,
    group: str,
    source: Source,
    reading: Reading,
    coding: Coding,
    part: Part | None,
    labelled: bool,
) -> Case:
    """A case of the files of one volume."""
    stack = partial(VolumeStack, name, group, source, reading, coding)
    return Case(
        name,
        group,
        "volume",
        source.files,
        coding.classes,
        stack,
        partial(_slices, stack),
        partial(_look, stack, labelled),
        part,
        labelled,
    )


def _slices(stack: partial[VolumeStack]) -> list[tuple[int, bool]]:
    return list(enumerate(stack().foreground()))


def _look(stack: partial[VolumeStack], labelled: bool, deep: bool) -> list[Finding]:
    volume = stack()
    findings = [] if not deep and labelled and volume.seen() else volume.source.look()
    if not labelled:
        what = "has no labels; it is not trained on and not scored"
        findings.append(Finding("warning", what, str(volume.source.files[0])))
    if deep and not any(f.level == "error" for f in findings):
        try:
            decoded = volume.decoded()
        except DataError as error:
            return [Finding("error", str(error))]
        if not decoded.pictures.any():
            what = "all voxels have one intensity; export the volume again"
            findings.append(Finding("warning", what, str(volume.source.files[0])))
    return findings


def _nnunet(root: Path, config: Config) -> list[Case]:
    split = config.data.split
    dataset, found = listed(root, split, config.data.fold)
    coding = coding_of(config.data, dataset.labels)
    reading = Reading.of(config.data)
    cases = []
    for case in found:
        count = len(dataset.channels) if len(dataset.channels) > 1 else None
        source = NiftiSource(case.images, case.label, count, reading.channels is not None)
        labelled = case.label is not None
        cases.append(case_of(case.name, case.name, source, reading, coding, case.part, labelled))
    return cases


def _synapse(root: Path, config: Config) -> list[Case]:
    coding = coding_of(config.data, {n: [i] for i, n in enumerate(SYNAPSE, 1)})
    reading = Reading.of(config.data)
    cases = [
        case_of(name, name, NpzSource(slices), reading, coding, "train", True)
        for name, slices in synapse_train(root).items()
    ]
    cases += [
        case_of(name, name, H5Source(path, (0.0, 1.0)), reading, coding, "test", True)
        for name, path in synapse_test(root).items()
    ]
    return cases


def _volumes(root: Path, config: Config) -> list[Case]:
    data = config.data
    coding = coding_of(data)
    reading = Reading.of(data)
    if data.images is not None:
        pairs = pairs_by_pattern(root, data.images, data.masks, stem_of)
        return [_of_pair(pair, reading, coding) for pair in pairs]
    every = list(_walk(root))
    pairs = pairs_in(root, [p for p in every if is_nifti(p) and not is_further(p)], stem_of)
    stacks = pairs_in(root, [p for p in every if is_tiff_stack(p)], stem_of)
    cases = [_of_pair(pair, reading, coding) for pair in (*pairs, *stacks)]
    for path in every:
        if path.suffix.lower() in _H5:
            name = path.relative_to(root).with_suffix("").as_posix()
            cases.append(case_of(name, name, H5Source(path), reading, coding, None, True))
    return cases or _slice_folders(root, reading, coding)


def _of_pair(pair: Pair, reading: Reading, coding: Coding) -> Case:
    source: Source
    if is_nifti(pair.image):
        channels = all_channels(pair.image)
        source = NiftiSource(channels, pair.label, None, reading.channels is not None)
    else:
        labels = (pair.label,) if pair.label is not None else None
        source = SlicesSource((pair.image,), labels, coding)
    labelled = pair.label is not None
    return case_of(pair.name, pair.group, source, reading, coding, pair.part, labelled)


def _slice_folders(root: Path, reading: Reading, coding: Coding) -> list[Case]:
    """Folders `image` and `label` of numbered slices: of the root, or of each case below it."""
    cases = []
    folders = [root, *sorted((p for p in root.rglob("*") if p.is_dir()), key=str)]
    for folder in folders:
        inner = [p for p in folder.iterdir() if p.is_dir()]
        images = [p for p in inner if is_images(p) and slice_files(p)]
        labels = [p for p in inner if is_labels(p) and slice_files(p)]
        if len(images) != 1:
            continue
        name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
        source = slices_source(images[0], labels[0] if len(labels) == 1 else None, coding)
        part = part_of(folder, root)
        cases.append(case_of(name, name, source, reading, coding, part, source.masks is not None))
    return cases


def slices_source(images: Path, labels: Path | None, coding: Coding) -> SlicesSource:
    """A folder of numbered slices with a folder of their masks.

    Raises:
        DataError: A slice has no mask, or a mask no slice.
    """
    found = slice_files(images)
    if labels is None:
        return SlicesSource(found, None, coding)
    masks = {p.stem: p for p in slice_files(labels)}
    lost = sorted({p.stem for p in found} ^ set(masks), key=natural)
    if lost:
        side = labels if lost[0] not in masks else images
        msg = f"{side}: no picture '{lost[0]}'; a volume of slices needs a mask for each slice"
        raise DataError(msg)
    return SlicesSource(found, tuple(masks[p.stem] for p in found), coding)


def _walk(root: Path) -> Sequence[Path]:
    """Files below a folder, hidden ones left out."""
    return [
        p
        for p in sorted(root.rglob("*"))
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(root).parts)
    ]
