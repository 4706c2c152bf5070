"""A synthetic data set of volumes in nnU-Net's folders: a bright organ with a brighter lesion.

`imagesTr`, `labelsTr`, `imagesTs`, `labelsTs` and `dataset.json` of version 2. Voxels are
anisotropic, files lie in different orientations and types (int16 from a scanner, floats whose
background is the minimum and not 0, labels stored as floats), as real ones do. Vessels as bright as
organ and lesion are not annotated, so that a threshold does not tell what is foreground.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from zoo.domains.medical.her_seg.nifti import nibabel

# Part of the cache key of the sample data set: raise it whenever what is written changes.
VERSION = 1

SHAPE = (48, 48, 24)  # voxels along right, anterior, superior
SPACING = (1.6, 1.6, 3.5)  # mm
LABELS = {"background": 0, "organ": 1, "lesion": 2}
_TRAIN, _TEST = 9, 3
# How files lie; LPS is the most frequent orientation of scanners.
_ORIENTATIONS = ("LPS", "RAS", "LPS", "PIR", "LAS", "ASL")
# Mean intensities, as of an MR scanner.
_AIR, _TISSUE, _ORGAN, _LESION = 0.0, 300.0, 430.0, 560.0
_NOISE = 22.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """A drawn volume in RAS+ order.

    Attributes:
        image: (I, J, K) float32, 0 or more, about 300 in tissue.
        labels: (I, J, K) uint8, as `LABELS`.
    """

    image: np.ndarray
    labels: np.ndarray


def draw(rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE) -> Phantom:
    """A body with an organ, a lesion in it, and vessels.

    Args:
        rng: Where all chance comes from.
        shape: Voxels along right, anterior, superior; two or three in-plane voxels a slice.
    """
    # In units of half the in-plane side, so that slices count as thick as they are.
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    body = _ball(grid, (0, 0, 0), rng.uniform((0.8, 0.75, 3), (0.95, 0.9, 4)))
    centre = rng.uniform((-0.3, -0.25, -0.3), (0.3, 0.25, 0.3))
    radii = rng.uniform((0.38, 0.36, 0.5), (0.55, 0.5, 0.75))
    organ = _ball(grid, centre, radii) & body
    within = centre + rng.uniform(-0.3, 0.3, 3) * radii
    lesion = _ball(grid, within, rng.uniform(0.5, 0.65) * radii) & organ
    image = np.where(body, _TISSUE, _AIR).astype(np.float32)
    for _ in range(int(rng.integers(5, 9))):
        x, y = rng.uniform(-0.7, 0.7, 2)
        lean = rng.uniform(-0.2, 0.2, 2)
        across = (grid[0] - x - lean[0] * grid[2]) ** 2 + (grid[1] - y - lean[1] * grid[2]) ** 2
        image[(across < rng.uniform(0.06, 0.11) ** 2) & body] = rng.uniform(_ORGAN, _LESION)
    image[organ] = _ORGAN + rng.uniform(-15, 15)
    image[lesion] = _LESION + rng.uniform(-15, 15)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0.3))
    image += rng.normal(0, _NOISE, shape).astype(np.float32)
    return Phantom(np.maximum(image, 0).astype(np.float32), organ.astype(np.uint8) + lesion)


def _ball(grid: Sequence[np.ndarray], centre: Any, radii: Any) -> np.ndarray:
    parts = zip(grid, centre, radii, strict=True)
    return np.asarray(sum(((g - c) / r) ** 2 for g, c, r in parts) <= 1)


def affine_of(rng: np.random.Generator) -> np.ndarray:
    """A plausible (4, 4) affine in RAS+: the sample's voxel size somewhere in space."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = np.round(rng.uniform(-120, -20, 3), 1)
    return affine


def write_volumes(out: Path, defects: bool = False, seed: int = 0) -> None:
    """Write the data set: 9 volumes to train and 3 to test.

    Args:
        out: Folder; it is made if need be.
        defects: Add cases named `defect_…` that each have one of the faults found in practice.
        seed: Seeds everything.
    """
    rng = np.random.default_rng([seed, VERSION, 3])
    for number in range(_TRAIN + _TEST):
        part = "Tr" if number < _TRAIN else "Ts"
        made, affine = draw(rng), affine_of(rng)
        code = _ORIENTATIONS[number % len(_ORIENTATIONS)]
        stem = f"sample_{number:03d}"
        as_float = number % 4 == 1
        image = made.image
        if as_float:  # as brains are prepared: zero mean inside, the background its minimum
            image = np.where(image > 150, (image - 320) / 60, -6).astype(np.float32)
        stored = image if as_float else np.rint(image).astype(np.int16)
        labels = made.labels.astype(np.float32) if number % 5 == 1 else made.labels
        write_nifti(out / f"images{part}" / f"{stem}_0000.nii.gz", stored, affine, code)
        write_nifti(out / f"labels{part}" / f"{stem}.nii.gz", labels, affine, code)
    write_dataset(out, _TRAIN)
    if defects:
        write_defects(out, rng)


def write_dataset(out: Path, count: int) -> None:
    """Write `dataset.json` of version 2."""
    body = {
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": count,
        "file_ending": ".nii.gz",
        "name": "Synthetic organ and lesion",
    }
    (out / "dataset.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, code: str = "RAS") -> None:
    """Write a volume in another orientation.

    Args:
        path: Ends in .nii.gz.
        values: (I, J, K) in RAS+ order.
        affine: (4, 4) in RAS+.
        code: Directions in which the file's axes run, such as LPS.
    """
    library = nibabel()
    image = library.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    turned = library.orientations.ornt_transform(
        library.orientations.axcodes2ornt(("R", "A", "S")), library.orientations.axcodes2ornt(code)
    )
    save(path, image.as_reoriented(turned))


def save(path: Path, image: Any) -> None:
    """Write an image of nibabel; the same image always makes the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


# -- defects ------------------------------------------------------------------------------------


def write_defects(out: Path, rng: np.random.Generator) -> None:
    """Add training cases that each have one fault, named after it."""
    library = nibabel()
    shape = (24, 24, 8)

    def pair(
        name: str, image: np.ndarray, labels: np.ndarray, shift: float = 0, codes: int = 1
    ) -> None:
        stem = f"defect_{name}"
        for kind, values in (("image", image), ("label", labels)):
            affine = np.diag([2.0, 2, 4, 1])
            affine[0, 3] = shift if kind == "label" else 0
            header = library.Nifti1Image(values, affine).header
            header["sform_code"] = header["qform_code"] = codes
            if name == "singular":  # slices run along the rows
                header["srow_z"] = header["srow_y"]
            # With an affine of its own, nibabel would mend the header.
            made = library.Nifti1Image(values, None, header)
            tail = "_0000" if kind == "image" else ""
            save(out / f"{kind}sTr" / f"{stem}{tail}.nii.gz", made)

    made = draw(rng, shape)
    image, labels = np.rint(made.image).astype(np.int16), made.labels
    pair("no_affine", image, labels, codes=0)
    pair("singular", image, labels)
    pair("no_voxels", image[:, :, :0], labels[:, :, :0])
    pair("four_axes", np.stack([image, image, image], axis=-1), labels)
    pair("out_of_range", image, np.where(labels == 2, 7, labels).astype(np.uint8))
    pair("negative", image, labels.astype(np.int16) - 1)
    pair("fractions", image, labels.astype(np.float32) * 0.75)
    pair("other_size", image, labels[:, :-2])
    pair("other_place", image, labels, shift=25)
    pair("not_finite", np.full(shape, np.nan, np.float32), labels)
    pair("no_label", image, labels)
    pair("no_image", image, labels)
    pair("cut_off", image, labels)
    (out / "labelsTr" / "defect_no_label.nii.gz").unlink()
    (out / "imagesTr" / "defect_no_image_0000.nii.gz").unlink()
    broken = out / "imagesTr" / "defect_cut_off_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
