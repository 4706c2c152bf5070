"""Small volumes, series and segmentations that tests write, and where the real samples are."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from zoo.domains.medical.her_seg.config import Config

REAL = Path(__file__).parents[4] / "shared" / "data" / "her_seg"


def real(*parts: str) -> Path:
    """A file or folder of the real samples; the test is skipped where they are absent."""
    path = REAL.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real samples are not here ({path.name})")
    return path


def configure(
    root: Path | None = None, predict: dict[str, Any] | None = None, **data: Any
) -> Config:
    return Config.model_validate(
        {
            "task": "her_seg",
            "preset": "paper",
            "data": {"root": root, **data},
            "predict": predict or {},
        }
    )


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nibabel.save(image, path)
    return path


def reoriented(source: Path, target: Path, code: str) -> Path:
    """The same volume with its axes running along `code`, such as PIR."""
    image = nibabel.load(source)
    turned = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(code)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turned), target)
    assert "".join(nibabel.aff2axcodes(nibabel.load(target).affine)) == code
    return target


def cropped(source: Path, target: Path, box: tuple[slice, slice, slice]) -> Path:
    """A part of a volume with its header, in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.load(source).slicer[box], target)
    return target


def brats(folder: Path, code: str | None = None) -> tuple[Path, Path]:
    """A crop of a real patient (image, labels), in its own or another orientation."""
    patient = real("brats2015_nifti", "train", "brats_2013_pat0006_1")
    box = (slice(60, 180, 2), slice(80, 200, 2), slice(66, 96, 2))
    made = []
    for name in ("Flair_subtrMeanDivStd.nii.gz", "OTMultiClass.nii.gz"):
        path = cropped(patient / name, folder / name, box)
        made.append(reoriented(path, path, code) if code else path)
    return made[0], made[1]


# -- DICOM --------------------------------------------------------------------------------------

AXIAL = (1.0, 0, 0, 0, 1, 0)


def dicom_slice(
    path: Path,
    values: np.ndarray,
    position: tuple[float, ...],
    series: str,
    number: int = 1,
    **changes: Any,
) -> Path:
    """A CT slice; values are Hounsfield units. A change to None leaves an element out."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID = series
    data.PatientID, data.Modality, data.InstanceNumber = "Secret^Person", "CT", number
    data.Rows, data.Columns = values.shape
    data.PixelSpacing = [0.8, 0.6]  # between rows, between columns
    data.ImageOrientationPatient = list(AXIAL)
    data.ImagePositionPatient = list(position)
    data.SliceThickness = 2.5
    data.PhotometricInterpretation, data.SamplesPerPixel = "MONOCHROME2", 1
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (values + 1024).astype(np.uint16).tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def dicom_series(
    folder: Path,
    volume: np.ndarray,
    series: str | None = None,
    orientation: tuple[float, ...] = AXIAL,
    step: float = 2.5,
    **changes: Any,
) -> str:
    """Write (slices, rows, columns) as a series in shuffled files; returns its UID."""
    series = series or generate_uid()
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(across, down)
    order = np.random.default_rng(0).permutation(len(volume))
    for name, k in enumerate(order):
        position = tuple(np.array([-30.0, -40.0, 10.0]) + normal * step * k)
        dicom_slice(
            folder / f"IM{name:04d}",
            volume[k],
            position,
            series,
            number=int(k) + 1,
            ImageOrientationPatient=list(orientation),
            **changes,
        )
    return series


def dicom_seg(
    path: Path,
    segments: dict[int, np.ndarray],
    series: str,
    orientation: tuple[float, ...] = AXIAL,
    step: float = 2.5,
    kind: str = "BINARY",
) -> Path:
    """Write masks (slices, rows, columns) bool by segment number; empty frames are left out."""
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(across, down)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SegmentationStorage
    data.SOPInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.SegmentationType = "SEG", kind
    reference = pydicom.Dataset()
    reference.SeriesInstanceUID = series
    data.ReferencedSeriesSequence = [reference]
    frames, groups, items = [], [], []
    if kind == "LABELMAP":  # one set of frames that hold the numbers themselves
        segments = {0: np.maximum.reduce([n * m.astype(np.uint8) for n, m in segments.items()])}
    for number, mask in segments.items():
        item = pydicom.Dataset()
        item.SegmentNumber, item.SegmentLabel = number, f"segment {number}"
        items.append(item)
        for k in np.flatnonzero(mask.any(axis=(1, 2)))[::-1]:
            group, place, which = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
            place.ImagePositionPatient = list(np.array([-30.0, -40.0, 10.0]) + normal * step * k)
            which.ReferencedSegmentNumber = number
            group.PlanePositionSequence = [place]
            group.SegmentIdentificationSequence = [which]
            groups.append(group)
            frames.append(mask[k])
    data.SegmentSequence = items
    data.PerFrameFunctionalGroupsSequence = groups
    shared, way, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    way.ImageOrientationPatient = list(orientation)
    measures.PixelSpacing = [0.8, 0.6]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [way], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    pixels = np.stack(frames)
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelRepresentation = 0
    if kind == "BINARY":
        data.BitsAllocated = data.BitsStored = 1
        data.HighBit = 0
        body = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    else:
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.MaximumFractionalValue = 7, 200
        fractions = np.where(pixels, 100, 99).astype(np.uint8)
        body = (pixels if kind == "LABELMAP" else fractions).tobytes()
    data.PixelData = body + b"\0" * (len(body) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
