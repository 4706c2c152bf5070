"""A synthetic data set in CLAM's layout: small, learnable, with the traits that make MIL hard.

Instances are Gaussian around four background centres. A positive slide holds 2 to 20 % instances
of two tumour clusters, each shifted by three deviations in its own 8 of 32 dimensions. Negative
slides hold instances of a third shifted cluster that occurs in positive slides as well, so that
"something unusual" is not enough. Bags have 1 to 1500 instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from zoo.domains.medical.wsi_mil import sample_slides

# Part of the cache key: raise it whenever what is written changes.
VERSION = 2

_BAGS = 1  # stands for what the bags hold in their seed; slides beside them change nothing
WIDTH = 32
TILE = 512
CLASSES = ("normal_tissue", "tumor_tissue")
_PARTS = {"train": 64, "val": 16, "test": 60}
_LARGEST = 1500
_SHIFT = 3.0
_SHIFTED = 8
_TENSORS = 5
_ATTRIBUTES = {
    "patch_size": 256,
    "patch_level": 0,
    "patch_size_level0": TILE,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "encoder": "synthetic-32",
}


@dataclass(frozen=True, eq=False)
class Slide:
    """A synthetic slide.

    Attributes:
        id: Slide name.
        patient: Patient name; some have two slides, in one split.
        part: train, val or test.
        label: 1 for tumour.
        features: (N, 32) float16.
        coords: (N, 2) int64, level-0 pixels, multiples of 512.
        instances: (N,) int64, 1 for instances of a tumour cluster.
    """

    id: str
    patient: str
    part: str
    label: int
    features: np.ndarray
    coords: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True, eq=False)
class _Clusters:
    """Centres of the instance clusters, (clusters, 32) each."""

    background: np.ndarray
    tumour: np.ndarray
    confusing: np.ndarray


def slides(seed: int = 0, parts: dict[str, int] | None = None) -> list[Slide]:
    """Draw the slides of the data set, alternating between normal and tumour.

    Args:
        seed: Seeds everything.
        parts: Slides a split; 64 train, 16 val and 60 test by default.
    """
    rng = np.random.default_rng([seed, _BAGS])
    clusters = _clusters(rng)
    made: list[Slide] = []
    patient = 0
    for part, count in (parts or _PARTS).items():
        # The smallest sizes are set, not left to chance; the rest is log-uniform.
        sizes = np.exp(rng.uniform(0, math.log(_LARGEST), count)).astype(int)
        sizes[: min(count, 6)] = (1, 1, 3, 3, 8, 8)[: min(count, 6)]
        for index, size in enumerate(sizes):
            if index % 3 != 1 or index == 1:  # every third slide shares its patient with the last
                patient += 1
            label = index % 2
            features, instances = _instances(rng, clusters, label, max(1, int(size)))
            made.append(
                Slide(
                    id=f"sample_{len(made):03d}",
                    patient=f"patient_{patient:03d}",
                    part=part,
                    label=label,
                    features=features,
                    coords=_grid(rng, len(features)),
                    instances=instances,
                )
            )
    return made


def write(out: Path, seed: int = 0, defects: bool = False) -> None:
    """Write the data set as CLAM leaves it.

    Written are `features/h5_files/<slide>.h5` (`features`, `coords` with attributes, and the
    instance `labels`), `features/pt_files/<slide>.pt` for the first slides,
    `dataset_csv/sample.csv` and `splits/sample/splits_0.csv` with its boolean table; and, where
    tifffile is installed, `slides` for `zoo data prepare`, see `sample_slides`.

    Args:
        out: Folder; it is made if need be.
        seed: Seeds everything.
        defects: Add slides named `defect_…` that each have one of the faults found in practice.
    """
    write_clam(out, slides(seed))
    if find_spec("tifffile") is not None:
        sample_slides.write(out / sample_slides.FOLDER, seed, defects)
    if defects:
        _write_defects(out)


def write_clam(out: Path, made: Sequence[Slide]) -> None:
    """Write slides in CLAM's layout; see `write`."""
    folder = out / "features" / "h5_files"
    tensors = out / "features" / "pt_files"
    for path in (folder, tensors, out / "dataset_csv", out / "splits" / "sample"):
        path.mkdir(parents=True, exist_ok=True)
    for index, slide in enumerate(made):
        write_h5(folder / f"{slide.id}.h5", slide)
        if index < _TENSORS:
            torch.save(torch.from_numpy(slide.features), tensors / f"{slide.id}.pt")
    table = pd.DataFrame(
        {
            "case_id": [s.patient for s in made],
            "slide_id": [s.id for s in made],
            "label": [CLASSES[s.label] for s in made],
        }
    )
    table.to_csv(out / "dataset_csv" / "sample.csv", index=False)
    _write_splits(
        out / "splits" / "sample", {p: [s.id for s in made if s.part == p] for p in _PARTS}
    )


def write_h5(path: Path, slide: Slide) -> None:
    """Write one slide as CLAM's feature file, instance labels beside the features."""
    with h5py.File(path, "w") as file:
        file["features"] = slide.features
        file["coords"] = slide.coords.astype(np.int32)
        file["labels"] = slide.instances.astype(np.uint8)
        file["coords"].attrs.update(_ATTRIBUTES)


def _clusters(rng: np.random.Generator) -> _Clusters:
    background = rng.normal(0, 1, (4, WIDTH))
    # Three disjoint sets of dimensions: two tumour clusters and the confusing one.
    dims = rng.permutation(WIDTH)[: 3 * _SHIFTED].reshape(3, _SHIFTED)
    shifted = background[:3].copy()
    for centre, moved in zip(shifted, dims, strict=True):
        centre[moved] += _SHIFT
    return _Clusters(background, shifted[:2], shifted[2:])


def _instances(
    rng: np.random.Generator, clusters: _Clusters, label: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32) float16 features and (N,) int64 labels, in random order."""
    planted = max(1, round(count * rng.uniform(0.02, 0.2))) if label else 0
    confusing = min(count - planted, round(count * rng.uniform(0.02, 0.2)))
    # Both tumour clusters occur as soon as there are two tumour instances.
    tumour = clusters.tumour[(np.arange(planted) + rng.integers(2)) % 2]
    centres = np.concatenate(
        [
            tumour,
            np.repeat(clusters.confusing, confusing, axis=0),
            clusters.background[rng.integers(4, size=count - planted - confusing)],
        ]
    )
    marks = (np.arange(count) < planted).astype(np.int64)
    order = rng.permutation(count)
    features = centres + rng.normal(0, 1, centres.shape)
    return features[order].astype(np.float16), marks[order]


def _grid(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N, 2) corners of tiles on a grid with gaps, in level-0 pixels."""
    side = math.ceil(math.sqrt(1.4 * count))
    cells = np.sort(rng.permutation(side * side)[:count])
    corner = rng.integers(0, 20, size=2)
    return (np.stack([cells // side, cells % side], axis=1) + corner).astype(np.int64) * TILE


def _write_splits(folder: Path, names: dict[str, list[str]]) -> None:
    columns = {part: pd.Series(slides, dtype=object) for part, slides in names.items()}
    pd.DataFrame(columns).to_csv(folder / "splits_0.csv")
    every = [slide for slides in names.values() for slide in slides]
    marks = {part: [slide in set(slides) for slide in every] for part, slides in names.items()}
    pd.DataFrame(marks, index=pd.Index(every)).to_csv(folder / "splits_0_bool.csv")


def _write_defects(out: Path) -> None:
    """Add one slide for each fault; all but the first are labelled, all are in a split."""
    folder = out / "features" / "h5_files"
    good = slides(1, {"train": 2})[1]
    features = np.tile(good.features, (20, 1))
    coords = np.tile(good.coords, (20, 1))
    holes = features.copy()
    holes[3, 2] = np.nan
    bags: dict[str, dict[str, np.ndarray]] = {
        "defect_unlabelled": {"features": features, "coords": coords},
        "defect_empty": {"features": features[:0], "coords": coords[:0]},
        "defect_nan": {"features": holes, "coords": coords},
        "defect_width": {"features": features[:, :-1], "coords": coords},
        "defect_no_coords": {"features": features},
        "defect_truncated": {"features": features, "coords": coords},
    }
    for name, content in bags.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            for key, values in content.items():
                file[key] = values
    truncated = folder / "defect_truncated.h5"
    truncated.write_bytes(truncated.read_bytes()[:-500])
    labelled = [*list(bags)[1:], "defect_no_features"]
    path = out / "dataset_csv" / "sample.csv"
    rows = pd.DataFrame({"case_id": labelled, "slide_id": labelled, "label": CLASSES[1]})
    pd.concat([pd.read_csv(path, dtype=str), rows]).to_csv(path, index=False)
    table = pd.read_csv(out / "splits" / "sample" / "splits_0.csv", dtype=str, index_col=0)
    names = {part: table[part].dropna().tolist() for part in _PARTS}
    names["train"] += [*labelled, "defect_unknown"]
    _write_splits(out / "splits" / "sample", names)
