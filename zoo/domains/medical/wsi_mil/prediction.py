"""Slides to predict on: features made as those of the training were, in the same process.

What the training features were made with is in the facts of the model (`extraction`). Features of
a slide go to a file, as preparation writes it, and are read from there like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zoo.domains.medical.wsi_mil.bags import BagFile, H5Bag
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.encoders import Encoder, build_encoder
from zoo.domains.medical.wsi_mil.extract import extract, write_features
from zoo.domains.medical.wsi_mil.layouts import slide_name
from zoo.domains.medical.wsi_mil.prepare import list_slides
from zoo.domains.medical.wsi_mil.reading import Readers, default_workers
from zoo.domains.medical.wsi_mil.settings import EncoderSettings, TileSettings, settings_from
from zoo.domains.medical.wsi_mil.slides import PLAIN, SCANNED, is_slide
from zoo.domains.medical.wsi_mil.watching import Watch
from zoo.errors import ConfigError, DataError, WeightsError
from zoo.task import Facts


@dataclass(frozen=True)
class Extracted:
    """Features of slides, made for a prediction.

    Attributes:
        bags: Slide name -> its features.
        skipped: A line for each slide that was left out.
        folder: Keeps the files as long as they are needed; None if they are to stay.
    """

    bags: Mapping[str, BagFile]
    skipped: Sequence[str] = ()
    folder: tempfile.TemporaryDirectory[str] | None = None


def slides_at(path: Path) -> dict[str, Path]:
    """Slide name -> file of what lies at a path that holds no features; empty if no slide does."""
    if path.is_file():
        return {slide_name(path.name): path} if is_slide(path) else {}
    if not any(_looks_like_a_slide(p) for p in path.rglob("*")):
        return {}
    return list_slides(path)


def slides_named(names: Iterable[str], folder: Path | None) -> dict[str, Path]:
    """The slides that features were made of: name -> file in a folder and below.

    A slide format comes before a plain image of the same name (a thumbnail, say).

    Raises:
        DataError: There is no such folder.
    """
    if folder is None:
        return {}
    place = folder.expanduser()
    if not place.exists():
        msg = f"{place}: no such folder of slides; correct predict.slides or data.slides"
        raise DataError(msg)
    wanted = set(names)
    found: dict[str, Path] = {}
    for path in sorted([place] if place.is_file() else place.rglob("*")):
        name = slide_name(path.name)
        if name in wanted and _looks_like_a_slide(path):
            known = found.get(name)
            if known is None or _rank(path) < _rank(known):
                found[name] = path
    return found


def _looks_like_a_slide(path: Path) -> bool:
    known = path.suffix.lower() in (*SCANNED, *PLAIN)
    return known and not path.name.startswith(".") and path.is_file()


def _rank(path: Path) -> tuple[bool, bool]:
    ending = path.suffix.lower()
    return ending not in SCANNED, ending not in (".tif", ".tiff")


def extract_slides(slides: Mapping[str, Path], facts: Facts, config: Config) -> Extracted:
    """Make features of slides as those of the training were made.

    Args:
        slides: Slide name -> file.
        facts: Of the trained model: `width` and `extraction`.
        config: `predict.encoder` and `data.encoder_weights` where the facts do not do;
            `data.mpp`; `data.on_error`; `predict.features`, where the files are to stay.

    Raises:
        ConfigError: The facts do not say how features are made, or the encoder is not known.
        WeightsError: The encoder's weights cannot be had.
        DataError: A slide is damaged or has no tissue, and `data.on_error` is not `skip`; or the
            encoder gives another width than the model takes.
    """
    settings, encoder = _ready(facts, config)
    keep = config.predict.features
    folder = None if keep else tempfile.TemporaryDirectory(prefix="zoo-features-")
    place = Path(folder.name) if folder else keep.expanduser() if keep else Path()
    given = config.data.tiles.workers
    bags: dict[str, BagFile] = {}
    skipped = []
    watch = Watch(len(slides))
    with watch, Readers(default_workers() if given is None else given) as readers:
        for name, path in slides.items():
            watch.begin(name)
            try:
                count = _one(place / f"{name}.h5", path, settings, encoder, readers, watch, config)
            except DataError as error:
                if config.data.on_error != "skip":
                    raise
                skipped.append(f"skipped {error}")
                watch.end(f"{name}: skipped", 0)
                continue
            bags[name] = H5Bag(name, place / f"{name}.h5")
            watch.end(f"{name}: {count} tiles", count)
    if not bags:
        raise DataError(skipped[0].removeprefix("skipped "))
    return Extracted(bags, skipped, folder)


def _one(
    target: Path,
    slide: Path,
    settings: TileSettings,
    encoder: Encoder,
    readers: Readers,
    watch: Watch,
    config: Config,
) -> int:
    """Make the features of one slide; returns how many tiles it has."""
    found = extract(
        slide,
        settings,
        encoder=encoder,
        readers=readers,
        batch_size=config.data.tiles.batch_size,
        tell=watch.step,
    )
    if not len(found.coords):
        msg = f"{slide}: no tissue found, so there is nothing to predict on"
        raise DataError(msg)
    write_features(target, found)
    return len(found.coords)


def _ready(facts: Facts, config: Config) -> tuple[TileSettings, Encoder]:
    """The settings of the training features and their encoder."""
    extraction: dict[str, Any] = dict(facts.get("extraction", {}))
    wanted = _encoder_settings(extraction, config)
    settings = settings_from(extraction, encoder=wanted, mpp=config.data.mpp)
    device = config.trainer.accelerator
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        msg = "trainer.accelerator=cuda: there is no CUDA device here; use cpu"
        raise ConfigError(msg)
    try:
        encoder = build_encoder(wanted, device=device, precision=config.trainer.precision)
    except (ConfigError, WeightsError) as error:
        kind = type(error)
        msg = (
            f"the training features are of encoder '{wanted.name}', which cannot be rebuilt: "
            f"{error}; predict on features, or name it with predict.encoder=NAME and "
            "data.encoder_weights=FILE"
        )
        raise kind(msg) from None
    width = int(facts["width"])
    if encoder.width != width:
        msg = (
            f"encoder '{wanted.name}' gives {encoder.width} features a tile, but the model was "
            f"trained on {width}; name the right one with predict.encoder"
        )
        raise DataError(msg)
    return settings, encoder


def _encoder_settings(extraction: Mapping[str, Any], config: Config) -> EncoderSettings:
    """The encoder that the facts name, with what the user gives in its place."""
    data, given = config.data, config.predict.encoder
    stored = extraction.get("encoder")
    if stored is None and given is None:
        msg = (
            "the training features do not say which encoder made them, so slides cannot be treated "
            "alike; name it with predict.encoder=NAME (and data.encoder_weights=FILE), or predict "
            "on features"
        )
        raise ConfigError(msg)
    # Tile size and magnification are not needed here: any will do to read the encoder's part.
    complete = {"patch_size": 1, "patch_level": 0} | dict(extraction)
    own = settings_from(complete | {"encoder": stored or given}).encoder
    if given is not None and given != stored:
        # Another encoder: size, mean, deviation and hash of the old one mean nothing to it.
        own = EncoderSettings(name=given)
    weights = None if data.encoder_weights is None else data.encoder_weights.expanduser()
    if weights is not None and not weights.is_file():
        msg = f"data.encoder_weights={weights}: no such file"
        raise ConfigError(msg)
    return replace(
        own,
        weights=weights,
        size=data.tiles.input_size or own.size,
        mean=data.tiles.mean or own.mean,
        std=data.tiles.std or own.std,
        options=dict(data.encoder_options) or own.options,
    )
