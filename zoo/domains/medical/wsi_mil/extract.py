"""From a slide file to its features, in one call: for preparation and for prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from zoo import files
from zoo.domains.medical.wsi_mil.encoders import Encoder, build_encoder
from zoo.domains.medical.wsi_mil.reading import Readers
from zoo.domains.medical.wsi_mil.settings import TileSettings, setting_attributes
from zoo.domains.medical.wsi_mil.tiling import Plan

_PACKAGES = (
    "zoo-medical-remote-reid",
    "torch",
    "torchvision",
    "timm",
    "openslide-python",
    "openslide-bin",
    "opencv-python-headless",
    "numpy",
)


class Extraction(NamedTuple):
    """The features of one slide.

    Attributes:
        coords: (N, 2) int64 top-left corners in level-0 pixels.
        features: (N, F) float32.
        attributes: Extraction settings and what was found on the slide, for HDF5.
    """

    coords: np.ndarray
    features: np.ndarray
    attributes: dict[str, Any]


def extract(
    path: Path,
    settings: TileSettings,
    *,
    encoder: Encoder | None = None,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    batch_size: int = 64,
    workers: int = 0,
    readers: Readers | None = None,
    plan: Plan | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Find tissue, tile and encode one slide.

    Args:
        path: Slide or plain image.
        settings: Which tiles and which encoder; of `settings_from` for features made before.
        encoder: The encoder, if it is built already.
        device: Where an encoder that is built here runs.
        precision: Its arithmetic, as `trainer.precision`.
        batch_size: Tiles encoded at a time.
        workers: Reading processes started for this slide; 0 reads in this one.
        readers: Reading processes to use in place of new ones.
        plan: The tiles, if they were planned already.
        tell: Called with tiles done and tiles in all after every batch.

    Returns:
        Coordinates, features and attributes; without tissue there is no tile and N is 0.

    Raises:
        DataError: The slide is missing, damaged, states no resolution, or is coarser than asked.
        ConfigError: The settings do not fit the slide, or there is no such encoder.
        WeightsError: The encoder's weights cannot be had.
    """
    encoder = encoder or build_encoder(settings.encoder, device=device, precision=precision)
    with nullcontext(readers) if readers is not None else Readers(workers) as pool:
        planned = plan if plan is not None else pool.plan(path, settings)()
        batches = pool.tiles(
            path,
            settings.mpp,
            planned.scale,
            planned.coords,
            batch_size=batch_size,
            statistics=encoder.plain,
        )
        features = np.empty((len(planned.coords), encoder.width), np.float32)
        done = rescued = 0
        for batch, coarser in batches:
            features[done : done + len(batch)] = batch if encoder.plain else encoder(batch)
            done += len(batch)
            rescued += coarser
            tell(done, len(features))
    attributes = dict(planned.attributes) | described(encoder)
    if rescued:
        attributes["tiles_from_smaller_level"] = rescued
    return Extraction(planned.coords, features, attributes)


def described(encoder: Encoder) -> dict[str, Any]:
    """The encoder with size, mean and deviation in force, and the versions that did the work."""
    own = setting_attributes(TileSettings(encoder=encoder.settings))
    found = {k: v for k, v in own.items() if k.startswith("encoder")}
    return found | {"versions": json.dumps(versions())}


def versions() -> dict[str, str]:
    """Versions of the packages that features depend on, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_features(path: Path, found: Extraction, precision: str = "float32") -> None:
    """Write features as CLAM and TRIDENT do: `features` and `coords`, settings as attributes.

    The file appears whole or not at all.

    Args:
        path: The file.
        found: What `extract` gave.
        precision: `float32` or `float16`.

    Raises:
        ZooError: There is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files.need_space(path.parent, 2 * found.features.nbytes)

    def fill(place: Path) -> None:
        with h5py.File(place, "w") as file:
            features = file.create_dataset("features", data=found.features.astype(precision))
            coords = file.create_dataset("coords", data=found.coords.astype(np.int64))
            features.attrs["encoder"] = found.attributes["encoder"]
            for key, value in found.attributes.items():
                coords.attrs[key] = value

    files.write_whole(path, fill)
