"""From a file's voxel grid to a stack of pictures and back, exactly.

A file says by its affine which way its axes run. A view permutes and flips them so that a picture
lies as radiologists show it (axial: anterior up; coronal and sagittal: head up; the patient's right
on the left of the picture, in sagittal views the front), and slices run towards head, front or
right. That is RAS+ orientation followed by a transposition, in one step that loses nothing; only a
change of voxel size interpolates, by MONAI's `Spacing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from zoo.errors import DataError
from zoo.extras import optional

Axis = Literal["axial", "coronal", "sagittal"]

# Of slice, row and column: the RAS axis (0 right, 1 anterior, 2 superior) and whether it runs
# backwards.
_PLANES: dict[str, tuple[tuple[int, bool], tuple[int, bool], tuple[int, bool]]] = {
    "axial": ((2, False), (1, True), (0, True)),
    "coronal": ((1, False), (2, True), (0, True)),
    "sagittal": ((0, False), (2, True), (1, True)),
}
# Corners of two grids that are further apart than this share of a voxel are different grids.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Grid:
    """Voxels in a file's own order.

    Attributes:
        values: (I, J, K) or (I, J, K, C).
        affine: (4, 4) from voxel to mm in RAS+; None where files tell no position: the axes are
            then slice, row and column as they stand.
    """

    values: np.ndarray
    affine: np.ndarray | None


@dataclass(frozen=True)
class View:
    """Which file axis is slice, row and column, and which of them run backwards.

    Attributes:
        order: File axis of slice, row, column.
        flip: Whether each of them is reversed.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flip: tuple[bool, bool, bool] = (False, False, False)

    def stack(self, array: np.ndarray) -> np.ndarray:
        """(S, H, W, …) of a file's (I, J, K, …)."""
        moved = np.transpose(array, (*self.order, *range(3, array.ndim)))
        return moved[tuple(slice(None, None, -1 if f else None) for f in self.flip)]

    def back(self, stacked: np.ndarray) -> np.ndarray:
        """(I, J, K) of an (S, H, W) stack: the inverse of `stack`."""
        straight = stacked[tuple(slice(None, None, -1 if f else None) for f in self.flip)]
        return np.ascontiguousarray(np.transpose(straight, np.argsort(self.order)))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(S, H, W) of a file's (I, J, K)."""
        return shape[self.order[0]], shape[self.order[1]], shape[self.order[2]]

    def affine(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(4, 4) from (slice, row, column) to mm."""
        steps = np.zeros((4, 4))
        steps[3, 3] = 1
        for new, (old, back) in enumerate(zip(self.order, self.flip, strict=True)):
            steps[old, new] = -1 if back else 1
            steps[old, 3] = shape[old] - 1 if back else 0
        return np.asarray(affine @ steps)


def view_of(affine: np.ndarray, axis: Axis) -> View:
    """The view of a file whose voxels lie as `affine` says.

    Args:
        affine: (4, 4) from voxel indices to mm in RAS+.
        axis: The slicing plane; of oblique files the nearest.
    """
    found = _orientations().io_orientation(affine)  # file axis -> RAS axis, +1 or -1
    held = {int(ras): (i, bool(sign < 0)) for i, (ras, sign) in enumerate(found)}
    plane = [(held[ras][0], held[ras][1] != back) for ras, back in _PLANES[axis]]
    (s, fs), (r, fr), (c, fc) = plane
    return View((s, r, c), (fs, fr, fc))


def _orientations() -> Any:
    return import_module("nibabel.orientations")


def check_affine(affine: np.ndarray, where: object) -> None:
    """Make sure that an affine places voxels in space.

    Raises:
        DataError: It is not finite or maps the volume onto a plane.
    """
    body = affine[:3, :3]
    lengths = np.sqrt((body**2).sum(axis=0))
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        msg = f"{where}: its affine has a voxel size that is 0 or not a number; write it anew"
        raise DataError(msg)
    if abs(np.linalg.det(body / lengths)) < 1e-3:
        msg = f"{where}: its affine is singular, so the orientation is unknown; write it anew"
        raise DataError(msg)


def voxel_size(affine: np.ndarray) -> tuple[float, float, float]:
    """Lengths in mm of one step along each axis."""
    # Headers hold 32-bit floats; what is beyond their precision is not the scanner's.
    a, b, c = (round(float(n), 6) for n in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return a, b, c


def check_same_grid(
    image: tuple[tuple[int, ...], np.ndarray],
    label: tuple[tuple[int, ...], np.ndarray],
    where: object,
    than: object,
) -> None:
    """Make sure that two volumes, brought to one view, have their voxels in the same places.

    Args:
        image: (S, H, W) and (4, 4) affine in that view.
        label: Likewise.
        where: The label file, for messages.
        than: The image file.

    Raises:
        DataError: Sizes differ, or corners are more than a tenth of a voxel apart.
    """
    if image[0] != label[0]:
        told = " x ".join(map(str, label[0])), " x ".join(map(str, image[0]))
        msg = (
            f"{where}: {told[0]} voxels (slices, rows, columns) where the image {than} has "
            f"{told[1]}; resample the labels onto the image's grid by nearest neighbour"
        )
        raise DataError(msg)
    far = _corners(*image) - _corners(*label)
    apart = float(np.sqrt((far**2).sum(axis=0)).max())
    if apart > _TOLERANCE * min(voxel_size(image[1])):
        msg = (
            f"{where}: its voxels lie up to {apart:.3g} mm from those of the image {than}; "
            "resample the labels onto the image's grid by nearest neighbour"
        )
        raise DataError(msg)


def _corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    ends = np.array([[0, n - 1] for n in shape[:3]])
    points = np.stack([g.ravel() for g in np.meshgrid(*ends, indexing="ij")])
    return np.asarray(affine[:3, :3] @ points + affine[:3, 3:])


class Resampling:
    """A change of voxel size along the axes of a stack, and its inverse, by MONAI.

    Args:
        shape: (S, H, W) before.
        spacing: Voxel size in mm of slice, row, column before.
        wanted: Likewise afterwards.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        wanted: tuple[float, float, float],
    ) -> None:
        monai = _monai()
        self._shape = shape
        self._affine = np.diag([*spacing, 1.0])
        keys = {"pixdim": wanted, "padding_mode": "border"}
        self._image = monai.Spacingd("it", mode="bilinear", **keys)
        self._labels = monai.Compose([monai.Spacingd("it", mode="nearest", **keys)])
        self._invert = monai.Invertd("it", transform=self._labels, nearest_interp=True)

    def image(self, stack: np.ndarray) -> np.ndarray:
        """(S', H', W', C) float32 of an (S, H, W, C) image, trilinear."""
        moved = self._image({"it": self._tensor(np.moveaxis(stack, -1, 0))})["it"]
        return np.ascontiguousarray(np.moveaxis(moved.numpy(), 0, -1), np.float32)

    def labels(self, stack: np.ndarray) -> np.ndarray:
        """(S', H', W') of (S, H, W) label values, by nearest voxel."""
        return _whole(self._labels({"it": self._tensor(stack[None])})["it"], stack)

    def back(self, stack: np.ndarray) -> np.ndarray:
        """(S, H, W) of (S', H', W') label values on the grid before, by nearest voxel."""
        # Invertd undoes what a tensor remembers: one of the grid before is sent there first.
        sent = self._labels({"it": self._tensor(np.zeros((1, *self._shape)))})
        sent["it"].set_array(self._tensor(stack[None]).as_tensor())
        return _whole(self._invert(sent)["it"], stack)

    def _tensor(self, array: np.ndarray) -> Any:
        import torch
        from monai.data.meta_tensor import MetaTensor

        values = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        return MetaTensor(values, affine=torch.from_numpy(self._affine))


def _whole(moved: Any, like: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(moved.numpy()[0])).astype(like.dtype)


def _monai() -> Any:
    """`monai.transforms`; its import takes seconds, so it happens where it is needed.

    Raises:
        ConfigError: It is not installed.
    """
    return optional("monai.transforms", "volumes are resampled by", "medical")
