"""A synthetic data set in COVIDx's layout: drawn chests, in the formats and rows of the real one.

`train.txt`, `val.txt`, `test.txt` beside folders of those names, as Kaggle serves it; rows of 3, 4
and 5 tokens, the misspelt `rnsa`; grey, colour, 16-bit and transparent PNG, JPEG, and DICOM of
both polarities; lung masks for every third image; `metadata.csv` with sex, age and view. Every
source has both classes, unlike the real one.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.domains.medical.dicom import pydicom
from zoo.domains.medical.medusa.images import opencv
from zoo.domains.medical.medusa.sample_phantom import Phantom, draw

# Part of the cache key: raise it whenever what is written changes.
VERSION = 1

CLASSES = ("negative", "positive")
_PARTS = {"train": 256, "val": 64, "test": 96}
_SOURCES = ("rsna", "ricord", "cohen", "sirm", "actmed", "")
_KINDS = ("png", "png", "jpg", "png", "colour.png", "jpeg", "png") * 2 + ("dcm",)


@dataclass(frozen=True, eq=False)
class Image:
    """A drawn radiograph and what the lists say of it.

    Attributes:
        patient: Patient; some have two or three images, all in one split and of one class.
        file: File name; its ending tells the format.
        part: train, val or test.
        label: 1 for positive.
        source: Collection, "" for a row of three tokens.
        sex: F or M.
        age: Years.
        view: AP or PA.
        drawn: The picture.
    """

    patient: str
    file: str
    part: str
    label: int
    source: str
    sex: str
    age: int
    view: str
    drawn: Phantom

    @property
    def row(self) -> str:
        """The row of the list."""
        source = "rnsa" if self.source == "rsna" and self.age % 5 == 0 else self.source
        return f"{self.patient} {self.file} {CLASSES[self.label]} {source}".strip()


def images(seed: int = 0, parts: dict[str, int] | None = None) -> list[Image]:
    """Draw the data set.

    Args:
        seed: Seeds everything.
        parts: Images a split; 256 train, 64 val and 96 test by default.
    """
    rng = np.random.default_rng([seed, VERSION])
    made: list[Image] = []
    number = 0
    for part, count in (parts or _PARTS).items():
        left = count
        while left:
            # Classes and sources in turn, shifted against one another.
            label, source = number % 2, _SOURCES[(number // 2) % len(_SOURCES)]
            views = min(left, (1, 1, 2, 1, 3)[number % 5])
            sex, age = "FM"[int(rng.integers(2))], int(rng.integers(18, 91))
            for view in range(views):
                made.append(_image(rng, part, len(made), number, view, label, source, sex, age))
            left -= views
            number += 1
    return made


def _image(
    rng: np.random.Generator,
    part: str,
    index: int,
    number: int,
    view: int,
    label: int,
    source: str,
    sex: str,
    age: int,
) -> Image:
    seen = ("PA", "AP")[int(rng.random() < 0.4)]
    height, width = (int(n) for n in rng.integers(150, 241, size=2))
    kind = _KINDS[index % len(_KINDS)]
    patient, stem = f"sample-{number:03d}", f"sample-{number:03d}-{view}"
    if source == "sirm":
        # Lists 7 and 8 write a blank into the patient, and brackets into the file.
        patient, stem = f"COVID {number}", f"COVID({number}{'abc'[view]})"
        kind = "png"
    drawn = draw(rng, height, width, bool(label), seen == "AP")
    return Image(patient, f"{stem}.{kind}", part, label, source, sex, age, seen, drawn)


def write(
    out: Path, seed: int = 0, defects: bool = False, parts: dict[str, int] | None = None
) -> None:
    """Write the data set.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add rows and files named `defect_…` that each have one of the faults found in
            practice.
        parts: As for `images`.
    """
    write_covidx(out, images(seed, parts))
    if defects:
        _write_defects(out)


def write_covidx(out: Path, made: list[Image]) -> None:
    """Write radiographs in COVIDx's layout; see `write`."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(image.part for image in made):
        (out / part).mkdir(exist_ok=True)
        rows = [image.row for image in made if image.part == part]
        (out / f"{part}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    cv2 = opencv()
    for index, image in enumerate(made):
        grey = (255 * image.drawn.image).round().astype(np.uint8)
        path = out / image.part / image.file
        if path.suffix == ".dcm":
            path.write_bytes(dicom_bytes(image, index // len(_KINDS)))
        else:
            _write_image(cv2, path, grey, index)
        if index % 3 == 0:
            mask = 255 * image.drawn.lungs.astype(np.uint8)
            _write_image(cv2, out / "masks" / f"{path.stem}.png", mask, -1)
    table = io.StringIO()
    rows_out = csv.writer(table, lineterminator="\n")
    rows_out.writerow(["patientid", "sex", "age", "view", "modality", "filename"])
    rows_out.writerows([i.patient, i.sex, i.age, i.view, "X-ray", i.file] for i in made)
    (out / "metadata.csv").write_text(table.getvalue(), encoding="utf-8")


def _write_image(cv2: Any, path: Path, grey: NDArray[np.uint8], index: int) -> None:
    """As the format says; the first files are one of 16 bit and one with transparency."""
    shown: NDArray[Any] = grey
    if ".colour" in path.name:
        shown = np.stack([grey, grey, np.maximum(grey, 8)], axis=-1)
    elif index == 0:
        shown = grey.astype(np.uint16) * 257
    elif index == 1:
        shown = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix in (".jpg", ".jpeg") else []
    _, coded = cv2.imencode(path.suffix, shown, quality)
    path.write_bytes(coded.tobytes())


def dicom_bytes(image: Image, form: int, **changes: Any) -> bytes:
    """A radiograph as a DICOM file: 12 bit or 8 bit, both polarities, with and without window.

    Args:
        image: The radiograph.
        form: Chooses polarity (even: MONOCHROME1), depth and window.
        changes: Elements to set otherwise, by keyword.
    """
    library = pydicom()
    inverted, byte, windowed = form % 2 == 0, form % 8 >= 6, form % 3 == 0
    values = 1 - image.drawn.image if inverted else image.drawn.image
    top = 255 if byte else 4095
    stored = (top * (0.1 + 0.8 * values)).round().astype(np.uint8 if byte else np.uint16)
    data = library.Dataset()
    uid = library.uid.generate_uid(entropy_srcs=["medusa sample", image.file])
    data.SOPClassUID = library.uid.ComputedRadiographyImageStorage
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = uid, uid, uid
    data.PatientID, data.PatientName = image.patient, f"Sample^{image.patient}"
    data.PatientSex, data.PatientAge = image.sex, f"{image.age:03d}Y"
    data.Modality, data.ViewPosition, data.InstanceNumber = "CR", image.view, 1
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated = 8 if byte else 16
    data.BitsStored, data.HighBit = (8, 7) if byte else (12, 11)
    if windowed and not byte:
        data.WindowCenter, data.WindowWidth = "2047.5", "3277"
    data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    for name, value in changes.items():
        setattr(data, name, value)
    data.file_meta = library.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    library.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def _write_defects(out: Path) -> None:
    """Add one file or row for each fault; all but two are in the training list."""
    cv2 = opencv()
    good = images(1, {"train": 2})[1]
    grey = (255 * good.drawn.image).round().astype(np.uint8)
    png = cv2.imencode(".png", grey)[1].tobytes()
    whole = dicom_bytes(good, 0)
    height, width = grey.shape
    colour = {
        "PhotometricInterpretation": "RGB",
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelData": bytes(3 * height * width + height * width % 2),
    }
    files = {
        "defect_truncated.dcm": whole[: len(whole) // 2],
        "defect_colour.dcm": dicom_bytes(good, 0, **colour),
        "defect_frames.dcm": dicom_bytes(good, 0, NumberOfFrames=2),
        "defect_no_dicom.dcm": png,
        "defect_truncated.png": png[: len(png) // 2],
        "defect_empty.png": b"",
        "defect_12_bit.png": cv2.imencode(".png", grey.astype(np.uint16) * 16)[1].tobytes(),
        "defect_twice.png": png,
    }
    for name, body in files.items():
        (out / "train" / name).write_bytes(body)
    rows = [f"defect-{i} {name} positive rsna" for i, name in enumerate(files)]
    rows.append("defect-8 defect_missing.png negative rsna")
    rows.append("defect-9 defect_short_row.png")
    rows.append("defect-7 defect_twice.png negative rsna")
    with (out / "train.txt").open("a", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n")
    first = (out / "train.txt").read_text(encoding="utf-8").split()[0]
    (out / "test" / "defect_patient.png").write_bytes(png)
    with (out / "test.txt").open("a", encoding="utf-8") as file:
        file.write(f"{first} defect_patient.png negative rsna\n")
