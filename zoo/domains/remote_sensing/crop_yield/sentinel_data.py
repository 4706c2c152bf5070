"""The data adapter of the Sentinel-2 world: CropNet's county pictures with USDA's yields.

Pictures are read one county at a time, of each date only the window that is used. Targets are the
natural logarithms of production and yield, as the official code trains them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data import ListSplit, fingerprint, stop_on_errors
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.cropnet import SEASON, picture_key
from zoo.domains.remote_sensing.crop_yield.imagery import contents, look, read
from zoo.domains.remote_sensing.crop_yield.sentinel_survey import (
    Sample,
    SentinelSurvey,
    describe,
    survey_sentinel,
)
from zoo.domains.remote_sensing.crop_yield.units import unit_of
from zoo.domains.remote_sensing.crop_yield.views import (
    DEVIATION,
    MEAN,
    View,
    centre_view,
    random_view,
)
from zoo.errors import DataError
from zoo.surveying import errors_first
from zoo.task import Batch, Facts, Finding

__all__ = [
    "SentinelSplit",
    "check_sentinel",
    "open_sentinel",
    "sentinel_facts",
    "sentinel_inputs",
    "survey_sentinel",
]


# What a model was trained with and is predicted with, whatever the configuration says.
_OF_MODEL: tuple[str, ...] = ("image_size", "input_scaling")
# Pictures changed at a time: colour changes make several copies of what they work on.
_TOGETHER = 8


class SentinelSplit(ListSplit):
    """County-years of one split.

    Args:
        samples: The county-years.
        config: `data.image_size`, `data.input_scaling`, `data.augment`, `data.eval_draws` and
            `trainer.batch_size` are used.
        training: Shuffle, and augment if asked to.

    Attributes:
        samples: As given; their yields are what baselines are made of.
        notes: What the user should be told, one line each.

    Raises:
        DataError: There are no county-years.
    """

    def __init__(self, samples: Sequence[Sample], config: Config, *, training: bool) -> None:
        super().__init__(
            [sample.id for sample in samples],
            [sample.fips for sample in samples],
            fingerprint(_content(sample) for sample in samples),
            batch_size=config.trainer.batch_size,
            shuffle=training,
        )
        self.samples = list(samples)
        self.size = config.data.image_size
        self.scaling = config.data.input_scaling
        # How many random views a county is seen in; 0: one centre crop.
        self.draws = int(config.data.augment) if training else config.data.eval_draws
        self.notes: list[str] = []

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """County-year `index`; one augmentation is drawn for all its pictures.

        Returns:
            `pictures` (P, 3, S, S) float32, normalised, dates x grid cells (x draws); `id`;
            `fips`; `state`, two digits; `postal`; `county`; `crop`; `year`; `lon`, `lat` in
            degrees, NaN if not told; `production` (bushels, cotton 480-lb bales) and
            `yield_value` (bushels or pounds an acre) with their natural logarithms
            `log_production` and `log_yield`, all NaN where unknown; `dates`, YYYY-MM-DD each;
            `grids`, pictures a date.

        Raises:
            DataError: A file is damaged; the message names it.
        """
        sample = self.samples[index]
        return {
            "pictures": self._pictures(sample, rng),
            "id": sample.id,
            "fips": sample.fips,
            "state": sample.fips[:2],
            "postal": sample.postal,
            "county": sample.county,
            "crop": sample.crop,
            "year": sample.year,
            "lon": sample.pictures.lon,
            "lat": sample.pictures.lat,
            "production": sample.production,
            "yield_value": sample.yield_value,
            "log_production": float(np.log(sample.production)),
            "log_yield": float(np.log(sample.yield_value)),
            "dates": [shot.date for shot in sample.pictures.shots],
            "grids": sample.pictures.grids,
        }

    def _pictures(self, sample: Sample, rng: np.random.Generator) -> Tensor:
        """Read date by date into one tensor: what lies beside it is one date's pictures."""
        seen = sample.pictures
        shape = (seen.height, seen.width, self.size)
        views: list[View] = [random_view(*shape, rng) for _ in range(self.draws)]
        views = views or [centre_view(*shape)]
        out = torch.empty(len(views) * seen.count, 3, self.size, self.size)
        done = 0
        for view in views:
            for shot in seen.shots:
                raw = read(shot, view.window)
                if raw.shape != (seen.grids, *view.window[2:], 3):
                    msg = f"{shot.where}: 'data' has changed since it was looked at"
                    raise DataError(msg)
                for first in range(0, seen.grids, _TOGETHER):
                    part = view(raw[first : first + _TOGETHER], self.scaling)
                    out[done : done + len(part)] = part
                    done += len(part)
        return out

    def collate(self, items: list[Batch]) -> Batch:
        """Pack B counties of different numbers of pictures, without padding.

        Returns:
            `pictures` (sum of P, 3, S, S) float32; `cu_pictures` (B + 1,) int64, where county b
            takes pictures `cu_pictures[b]` to `cu_pictures[b + 1]`; `target` (B, 2) float32, log
            production and log yield; `years` (B,) int64; the other keys of an item as lists.
        """
        counts = torch.tensor([0] + [len(item["pictures"]) for item in items])
        target = [[item["log_production"], item["log_yield"]] for item in items]
        pictures = [item["pictures"] for item in items]
        return {
            # One county, the published batch, is not copied: it may take 80 MB.
            "pictures": torch.cat(pictures) if len(items) > 1 else pictures[0],
            "cu_pictures": counts.cumsum(0),
            "target": torch.tensor(target, dtype=torch.float32),
            "years": torch.tensor([item["year"] for item in items]),
        } | {key: [item[key] for item in items] for key in items[0] if key != "pictures"}


def _content(sample: Sample) -> list[Any]:
    seen = sample.pictures
    values = [None if np.isnan(v) else v for v in (sample.production, sample.yield_value)]
    dates = [shot.date for shot in seen.shots]
    return [sample.id, values, dates, [seen.grids, seen.height, seen.width], seen.sample]


def open_sentinel(config: Config, found: SentinelSurvey | None = None) -> dict[str, SentinelSplit]:
    """`train`, `test`, and `val` if `data.val_fraction` holds any out.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.

    Raises:
        DataError: The data are not there, a year that is predicted trains as well, or a county
            that a split needs is damaged and `data.on_error` is not `skip`.
    """
    found = found or survey_sentinel(config)
    stop_on_errors(found.findings)
    splits = {}
    for part, samples in found.parts.items():
        splits[part] = SentinelSplit(samples, config, training=part == "train")
        if found.skipped:
            splits[part].notes.append(f"{len(found.skipped)} county-years were skipped")
    return splits


def check_sentinel(
    config: Config, found: SentinelSurvey | None = None, deep: bool = True
) -> list[Finding]:
    """Everything worth knowing of the data, errors first.

    Args:
        config: The configuration with `data.root` settled.
        found: A survey of the same data section, to spare a second one.
        deep: Read every picture, where `found` is not given.
    """
    try:
        found = found or survey_sentinel(config, deep)
    except DataError as error:
        return [Finding("error", str(error))]
    findings = [*found.findings, *describe(found, config)]
    return errors_first(findings)


def sentinel_facts(train: SentinelSplit) -> Facts:
    """What travels with a model trained on `train`, JSON only.

    Returns:
        `sensor`, `crop`, `yield_unit`, `production_unit`, `image_size` in pixels,
        `input_scaling`, `mean` and `deviation` of the channels, `years` that trained, and
        `log_mean`, the training mean of log production and log yield.
    """
    samples = train.samples
    crop = samples[0].crop
    unit = unit_of(crop)
    logs = np.log([[s.production, s.yield_value] for s in samples])
    return {
        "sensor": "sentinel2",
        "crop": crop,
        "yield_unit": unit.text,
        "production_unit": unit.production,
        "image_size": train.size,
        "input_scaling": train.scaling,
        "mean": list(MEAN),
        "deviation": list(DEVIATION),
        "years": sorted({s.year for s in samples}),
        "log_mean": [float(v) for v in logs.mean(axis=0)],
    }


# -- prediction ---------------------------------------------------------------------------------


def sentinel_inputs(paths: Sequence[Path], facts: Facts, config: Config) -> SentinelSplit:
    """The counties in h5 files and folders, to predict on; yields are not looked for.

    A county of a year may be spread over files of several quarters; of those named as CropNet
    names them, the season's are used if there are any.

    Args:
        paths: h5 files, or folders in which they lie at any depth.
        facts: Of the trained model: `crop`, `image_size` and `input_scaling` rule.
        config: The rest of the settings.

    Raises:
        DataError: No h5 file is found, or a county is damaged and `data.on_error` is not `skip`.
    """
    kept: dict[str, Any] = {key: facts[key] for key in _OF_MODEL if key in facts}
    config = config.model_copy(update={"data": config.data.model_copy(update=kept)})
    crop = str(facts.get("crop", config.data.crop))
    places: dict[tuple[str, int], list[Path]] = {}
    broken: list[Finding] = []
    for path in _in_season(_h5_files(paths)):
        try:
            for fips, years in contents(path).items():
                for year in years:
                    places.setdefault((fips, year), []).append(path)
        except DataError as error:
            broken.append(Finding("error", str(error)))
    samples = []
    for (fips, year), files in sorted(places.items(), key=lambda kv: (kv[0][1], kv[0][0])):
        try:
            seen = look(files, fips, year, config.data.dates)
        except DataError as error:
            broken.append(Finding("error", str(error)))
        else:
            key = picture_key(files[0])
            samples.append(Sample(crop, fips, year, key[1] if key else "", "", seen))
    if config.data.on_error != "skip" or not samples:
        stop_on_errors(broken)
    if not samples:
        msg = f"{paths[0]}: no county with pictures; expected groups FIPS/YYYY-MM-DD/data"
        raise DataError(msg)
    split = SentinelSplit(samples, config, training=False)
    split.notes = [f"skipped {finding.line()}" for finding in broken]
    return split


def _h5_files(paths: Sequence[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        inner = sorted(p for p in path.rglob("*") if re.fullmatch(r"\.(h5|hdf5)", p.suffix.lower()))
        found = inner if path.is_dir() else [path]
        if not found:
            msg = f"{path}: no .h5 file of county pictures in it"
            raise DataError(msg)
        files |= dict.fromkeys(found)
    return list(files)


def _in_season(files: Iterable[Path]) -> list[Path]:
    """Of files of named quarters only those of the season, unless there are none."""
    keys: Mapping[Path, Any] = {path: picture_key(path) for path in files}
    season = [path for path, key in keys.items() if key is None or key[2] in SEASON]
    chosen = season or list(keys)
    return sorted(chosen, key=lambda p: (keys[p] or (0, "", 0), str(p)))
