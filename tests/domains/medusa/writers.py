"""Small radiographs in the layouts of the real data sets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from zoo.domains.medical.medusa.sample_phantom import draw


def picture(seed: int = 0, positive: bool = False, shape: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A drawn chest as (H, W) uint8."""
    drawn = draw(np.random.default_rng(seed), *shape, positive)
    return (255 * drawn.image).round().astype(np.uint8)


def write_image(path: Path, image: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture() if image is None else image)
    return path


def write_dicom(
    path: Path,
    stored: np.ndarray,
    *,
    lut: tuple[tuple[int, int, int], Sequence[int]] | None = None,
    **elements: Any,
) -> Path:
    """A DICOM file of stored values; elements are set, or with None left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # RSNA's own files say "62" where the standard wants "062Y".
        warnings.simplefilter("ignore")
        _write_dicom(path, stored, lut, elements)
    return path


def _write_dicom(
    path: Path,
    stored: np.ndarray,
    lut: tuple[tuple[int, int, int], Sequence[int]] | None,
    elements: dict[str, Any],
) -> None:
    bits = 8 * stored.dtype.itemsize
    data = pydicom.Dataset()
    data.SOPClassUID = ComputedRadiographyImageStorage
    data.SOPInstanceUID = generate_uid()
    data.PhotometricInterpretation = "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, int(stored.dtype.kind == "i")
    data.Rows, data.Columns = stored.shape[:2]
    data.BitsAllocated = data.BitsStored = bits
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    if lut is not None:
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", list(lut[0]))
        item.add_new("LUTData", "US", list(lut[1]))
        data.VOILUTSequence = [item]
    if "PixelData" not in elements:
        data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def write_covidx(
    root: Path,
    rows: dict[str, Iterable[str]],
    *,
    folder: str = "{part}",
    lists: str = "{part}.txt",
    missing: Iterable[str] = (),
) -> Path:
    """Lists and drawn images; the file of a row is its token with an ending."""
    for part, lines in rows.items():
        path = root / lists.format(part=part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        for number, line in enumerate(lines):
            file = next((t for t in line.split() if t.endswith((".png", ".jpg"))), None)
            if file is not None and file not in missing:
                seed = hash_of(part, file)
                image = picture(seed, "positive" in line, (40 + number % 5, 36))
                write_image(root / folder.format(part=part) / file, image)
    return root


def hash_of(*words: str) -> int:
    return sum(i * ord(c) for i, c in enumerate("/".join(words), 1))


def binary_rows(part: str, count: int, source: str = "cohen") -> list[str]:
    """Rows of as many patients, negative and positive in turn."""
    labels = ("negative", "positive")
    return [f"{part}{i} {part}-{i}.png {labels[i % 2]} {source}" for i in range(count)]


RSNA_HEAD = "patientId,x,y,width,height,Target\n"


def write_rsna(root: Path, patients: int = 20, image: bool = True) -> Path:
    """8-bit MONOCHROME2 files; every second patient positive, the first of them with two boxes."""
    rows, details = [RSNA_HEAD], ["patientId,class\n"]
    classes = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
    for i in range(patients):
        who = f"0000{i:04d}-aaaa-bbbb"
        positive = i % 2 == 1
        boxes = 2 if i == 1 else 1
        kind = classes[2] if positive else classes[i // 2 % 2]
        for b in range(boxes):
            rows.append(f"{who},{10.0 + b},20.0,30.0,40.0,1\n" if positive else f"{who},,,,,0\n")
            details.append(f"{who},{kind}\n")
        if image:
            write_dicom(
                root / "stage_2_train_images" / f"{who}.dcm",
                picture(i, positive),
                PatientID=who,
                PatientName=who,
                PatientSex="FM"[i % 2],
                PatientAge=str(30 + i),
                ViewPosition="PA",
            )
    (root / "stage_2_train_labels.csv").write_text("".join(rows))
    (root / "stage_2_detailed_class_info.csv").write_text("".join(details))
    return root


def write_ricord(root: Path, patients: int = 12, annotated: bool = True) -> Path:
    """12-bit MONOCHROME1 files with and without window, an LL view, boxes, annotators at odds."""
    grades = (
        "Mild Opacities  (1-2 lung zones)",
        "Moderate Opacities (3-4 lung zones)",
        "Severe Opacities (>4 lung zones)",
        "Invalid Study",
        "Typical Appearance",
    )
    annotations, names = [], []
    for i in range(patients):
        mrn = f"419639-{i:06d}" if i % 2 else f"SITE2-{i:06d}"
        study = f"1.2.3.{i}.{10000 + i}"
        folder = f"{10000 + i}" if i == 3 else f"0{i % 9}-09-2004-XR CHEST 1 VIEW-{10000 + i}"
        for k, view in enumerate(("AP", "LL") if i == 2 else ("PA",)):
            stored = (4095 - 16 * picture(i, i % 2 == 1).astype(np.uint16)).astype(np.uint16)
            window = {"WindowCenter": 2048, "WindowWidth": 4096} if i % 3 == 0 else {}
            write_dicom(
                root / f"MIDRC-RICORD-1C-{mrn}" / folder / f"{k + 1}.000000-x" / "1-1.dcm",
                stored,
                PhotometricInterpretation="MONOCHROME1",
                BitsStored=12,
                PatientID=f"MIDRC-RICORD-1C-{mrn}",
                StudyInstanceUID=study,
                ViewPosition=view,
                **window,
            )
            names.append(f"MIDRC-RICORD-1C-{mrn}-{10000 + i}-{k}.png")
        # Two against one; at study 5 a tie, at study 6 invalid wins, study 7 has no grade.
        votes = [grades[i % 2 * 2], grades[i % 2], grades[0]] if i % 2 else [grades[0]] * 3
        votes = {5: [grades[1], grades[0]], 6: [grades[3], grades[3], grades[1]], 7: []}.get(
            i, votes
        )
        for who, label in enumerate([*votes, grades[4]]):
            annotations.append(
                {"StudyInstanceUID": study, "labelId": f"L_{label}", "createdById": f"U_{who}"}
            )
    if annotated:
        export = {
            "labelGroups": [{"labels": [{"id": f"L_{g}", "name": g} for g in grades]}],
            "datasets": [{"annotations": annotations}],
        }
        path = root / "1c_mdai_rsna_project_x_annotations_labelgroup_all_2021.json"
        path.write_text(json.dumps(export))
    return root
