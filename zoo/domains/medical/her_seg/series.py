"""DICOM series: a folder of slices put in order by their positions, with labels.

Read are series of single-frame monochrome images (CT, MR, PET …), also oblique ones and those of a
tilted gantry. A folder that mixes series, lacks slices, or has two in one place is refused and
says so; multi-frame files are to be converted (dcm2niix). Labels are a NIfTI volume on the grid of
the series or a DICOM segmentation (see `segmentation.py`); contours (RTSTRUCT) are not read.
Predictions are written as NIfTI in the geometry of the series. Patient names and ids stay in
memory: messages name files only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.domains.medical import dicom
from zoo.domains.medical.her_seg.cases import Part, part_of
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.grids import Grid, check_same_grid, view_of
from zoo.domains.medical.her_seg.masks import Coding, coding_of
from zoo.domains.medical.her_seg.nifti import is_nifti, read_head, read_labels, stem_of, write_new
from zoo.domains.medical.her_seg.segmentation import Frame, read_segmentation, referenced_series
from zoo.domains.medical.her_seg.volume_pairs import is_label, is_labels
from zoo.domains.medical.her_seg.volume_stack import Reading
from zoo.errors import DataError
from zoo.privacy import alias
from zoo.task import Finding

if TYPE_CHECKING:
    from pydicom import Dataset

# Endings that DICOM slices never have; others are looked into.
_OTHERS = re.compile(
    r"\.(png|jpe?g|tiff?|bmp|gif|webp|nii|gz|h5|npz|npy|json|csv|txt|md|xml|html|zip|mp4|avi|mov|mkv"
    r"|yaml|xlsx?|pdf|py|sum|lock)$",
    re.IGNORECASE,
)
_NAMES = {"dicomdir", "license", "version", "readme"}
# Steps between slices may differ by this share: positions are written rounded.
_UNEVEN = 0.1
_SEG = "SEG"
_NO_IMAGE = ("SEG", "SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "PR", "KO", "REG")


@dataclass(frozen=True)
class Series:
    """A series put in order.

    Attributes:
        files: Slices, in the direction of the normal of the planes.
        shape: (columns, rows, slices).
        affine: (4, 4) from (column, row, slice) to mm in RAS+.
        patient: Stand-in for the patient, or "".
        uid: SeriesInstanceUID; in memory only.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray
    patient: str
    uid: str


@dataclass(frozen=True)
class _Slice:
    path: Path
    frame: Frame
    uid: str
    patient: str
    step: float


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files right in a folder."""
    return [p for p in sorted(folder.iterdir()) if _may_be(p) and dicom.is_dicom(p)]


def _may_be(path: Path) -> bool:
    name = path.name.lower()
    told = name.startswith(".") or name in _NAMES or _OTHERS.search(name)
    return not told and path.is_file()


def series_folders(root: Path) -> list[Path]:
    """Folders, from `root` down, that hold DICOM images; only a few files of each are opened."""
    found = []
    for folder in (root, *sorted(p for p in root.rglob("*") if p.is_dir())):
        few = [p for p in sorted(folder.iterdir()) if _may_be(p)][:3]
        if any(dicom.is_dicom(p) for p in few):
            found.append(folder)
    return found


def read_series(folder: Path) -> Series:
    """Put the slices of a folder in order and find how they lie in space.

    Raises:
        DataError: There is no slice, several series, a multi-frame file, a slice without position
            or of another plane, two slices in one place, or a gap.
    """
    slices = []
    for path in dicom_files(folder):
        dataset = dicom.read(path, pixels=False)
        if dicom.header_of(dataset).modality not in _NO_IMAGE:
            slices.append(_slice(dataset, path))
    if not slices:
        msg = f"{folder}: holds no DICOM image"
        raise DataError(msg)
    counts = {uid: [s.uid for s in slices].count(uid) for uid in {s.uid for s in slices}}
    if len(counts) > 1:
        told = ", ".join(str(n) for n in sorted(counts.values(), reverse=True))
        msg = f"{folder}: {len(counts)} DICOM series are mixed ({told} images); one folder for each"
        raise DataError(msg)
    first = slices[0].frame
    for one in slices:
        if not one.frame.parallel(first):
            msg = (
                f"{one.path}: has another plane or size than {slices[0].path.name}; "
                "leave scouts and reformats out of the folder"
            )
            raise DataError(msg)
    slices.sort(key=lambda s: float(s.frame.position @ first.normal))
    return _placed(slices)


def _slice(dataset: Dataset, path: Path) -> _Slice:
    header = dicom.header_of(dataset)
    if header.frames > 1:
        msg = f"{path}: holds {header.frames} frames; convert multi-frame DICOM by dcm2niix"
        raise DataError(msg)
    try:
        frame = Frame.of(
            dataset.ImagePositionPatient,
            dataset.ImageOrientationPatient,
            dataset.PixelSpacing,
            (int(dataset.Rows), int(dataset.Columns)),
        )
        step = float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 1.0)
    except (AttributeError, TypeError, ValueError):
        msg = (
            f"{path}: does not say where it lies (ImagePositionPatient, ImageOrientationPatient, "
            "PixelSpacing); a volume needs slices that do"
        )
        raise DataError(msg) from None
    return _Slice(path, frame, header.series, header.patient, abs(step) or 1.0)


def _placed(slices: list[_Slice]) -> Series:
    first, last = slices[0].frame, slices[-1].frame
    depths = np.array([float(s.frame.position @ first.normal) for s in slices])
    steps = np.diff(depths)
    usual = float(np.median(steps)) if len(steps) else slices[0].step
    for i in np.flatnonzero(steps < 0.01 * max(usual, 0.01)):
        a, b = slices[i].path, slices[i + 1].path
        msg = f"{a} and {b.name} lie in one place; a volume has one image a slice, split the series"
        raise DataError(msg)
    for i in np.flatnonzero(np.abs(steps - usual) > _UNEVEN * usual):
        a, b = slices[i].path, slices[i + 1].path
        msg = (
            f"{a} and {b.name} are {steps[i]:.4g} mm apart where slices are {usual:.4g} mm apart; "
            "slices are missing or the series is uneven, complete it"
        )
        raise DataError(msg)
    count = len(slices)
    # A tilted gantry moves slices sideways: the step is that of positions, not along the normal.
    step = (last.position - first.position) / (count - 1) if count > 1 else first.normal * usual
    rows, columns = first.size
    affine = np.eye(4)
    affine[:3, 0] = first.across * first.spacing[1]
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM's axes run to the left and back, NIfTI's to the right and front
    patient = alias(slices[0].patient) if slices[0].patient else ""
    files = tuple(s.path for s in slices)
    return Series(files, (columns, rows, count), affine, patient, slices[0].uid)


class SeriesSource:
    """A series and its labels.

    Args:
        folder: Of the slices.
        label: NIfTI or DICOM segmentation, or None.
    """

    span: tuple[float, float] | None = None
    coded = False

    def __init__(self, folder: Path, label: Path | None = None) -> None:
        self.folder = folder
        self.label = label
        self._series: Series | None = None
        self._files: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The slices as listed, then the labels."""
        if not self._files:
            images = [p for p in dicom_files(self.folder) if p != self.label]
            self._files = (*images, *((self.label,) if self.label is not None else ()))
        return self._files

    def series(self) -> Series:
        """The slices in order."""
        if self._series is None:
            self._series = read_series(self.folder)
        return self._series

    def look(self) -> list[Finding]:
        """What is wrong with the headers of all slices and of the labels."""
        try:
            found = self.series()
            if self.label is not None and is_nifti(self.label):
                head = read_head(self.label)
                view, own = view_of(found.affine, "axial"), view_of(head.affine, "axial")
                check_same_grid(
                    (view.shape(found.shape), view.affine(found.affine, found.shape)),
                    (own.shape(head.shape), own.affine(head.affine, head.shape)),
                    self.label,
                    self.folder,
                )
        except DataError as error:
            return [Finding("error", str(error))]
        return []

    def place(self) -> tuple[tuple[int, ...], np.ndarray | None]:
        """(columns, rows, slices) and affine."""
        found = self.series()
        return found.shape, found.affine

    def image(self) -> Grid:
        """(columns, rows, slices) after rescaling: Hounsfield units for CT."""
        found = self.series()
        values = np.empty(found.shape, np.float32)
        for k, path in enumerate(found.files):
            try:
                values[:, :, k] = dicom.rescaled(dicom.read(path)).T
            except DataError as error:
                told = str(error)
                msg = told if told.startswith(str(path)) else f"{path}: {told}"
                raise DataError(msg) from None
        return Grid(values, found.affine)

    def labels(self) -> Grid | None:
        """Label values; of a DICOM segmentation the numbers of its segments."""
        if self.label is None:
            return None
        if is_nifti(self.label):
            head = read_head(self.label)
            return Grid(read_labels(head, self.label), head.affine)
        found = self.series()
        return Grid(read_segmentation(self.label, found.shape, found.affine), found.affine)

    def write(self, out: Path, name: str, values: np.ndarray) -> list[Path]:
        """`<name>.nii.gz` in the geometry of the series."""
        path = out / f"{name}.nii.gz"
        write_new(path, values, self.series().affine)
        return [path]


Found = tuple[str, str, SeriesSource, Reading, Coding, Part | None, bool]


def series_cases(root: Path, config: Config) -> list[Found]:
    """Every series below a folder with its labels, as arguments of a case.

    Labels of a series are a segmentation that refers to it, wherever it lies below the root; or a
    NIfTI file in the series' folder, or called after that folder beside it or in a folder of
    labels. Only a few headers of each folder are read here.

    Raises:
        DataError: A folder has several label volumes.
    """
    coding, reading = coding_of(config.data), Reading.of(config.data)
    images: list[tuple[Path, dicom.Header]] = []
    segmentations: dict[str, Path] = {}
    for folder in series_folders(root):
        headers = [(p, _peek(p)) for p in _few(dicom_files(folder))]
        for path, header in headers:
            if header is not None and header.modality == _SEG:
                segmentations[referenced_series(path)] = path
        shown = [h for _, h in headers if h is not None and h.modality not in _NO_IMAGE]
        if shown:
            images.append((folder, shown[0]))
    cases: list[Found] = []
    for folder, header in images:
        label = segmentations.get(header.series) or _label_of(folder, root)
        name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
        group = alias(header.patient) if header.patient else name
        source = SeriesSource(folder, label)
        part = part_of(folder / "x", root)
        cases.append((name, group, source, reading, coding, part, label is not None))
    return cases


def _few(paths: list[Path]) -> list[Path]:
    """Files of a folder that tell what is in it: slices are many and of about one size.

    A segmentation among them is smaller or larger than all of them, or is called so.
    """
    by_size = sorted(paths, key=lambda p: p.stat().st_size)
    told = [p for p in paths if is_label(p.stem)]
    return sorted({paths[0], *by_size[:1], *by_size[-1:], *told})


def _peek(path: Path) -> dicom.Header | None:
    """The header, or None where a file holds no image (reports, contours)."""
    try:
        return dicom.read_header(path)
    except DataError:
        return None


def _label_of(folder: Path, root: Path) -> Path | None:
    inside = [p for p in sorted(folder.iterdir()) if is_nifti(p)]
    named = [p for p in inside if is_label(stem_of(p))] or inside
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        msg = f"{folder}: {len(named)} label volumes ({named[0].name}, …); keep one of them"
        raise DataError(msg)
    if folder == root:
        return None
    places = [folder.parent, *(p for p in folder.parent.iterdir() if p.is_dir() and is_labels(p))]
    if folder.parent != root:
        places += [p for p in folder.parent.parent.iterdir() if p.is_dir() and is_labels(p)]
    for place in places:
        for path in sorted(place.iterdir()):
            if is_nifti(path) and re.fullmatch(
                re.escape(folder.name) + r"([_.-]?(seg|label|labels|mask|gt))?", stem_of(path), re.I
            ):
                return path
    return None
