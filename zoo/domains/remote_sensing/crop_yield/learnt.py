"""What is learnt from training data and travels with the weights: facts, JSON only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.domains.remote_sensing.crop_yield.baselines import (
    History,
    Ridge,
    histogram_features,
    picture_features,
)
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.modis_data import ModisSplit, modis_facts
from zoo.domains.remote_sensing.crop_yield.sentinel_data import SentinelSplit, sentinel_facts
from zoo.domains.remote_sensing.crop_yield.units import unit_of
from zoo.task import Facts, Split

FloatArray = NDArray[np.float64]
_DIGITS = 6


def facts_of(config: Config, train: Split, others: Sequence[Split], year: int) -> Facts:
    """Facts of a model trained on `train`.

    Args:
        config: The configuration.
        train: The training split.
        others: Splits of the same years that were held out for selection; their yields are past
            as well when a later year is predicted.
        year: The year that is predicted.

    Returns:
        `sensor`; `crop` and `yield_unit`; `year`; `years` that trained; `history`, yields by
        county and year; `yield_mean` in the crop's unit; `target_mean` and `target_deviation`
        where the target is standardised (of both logs for Sentinel-2); `ridge`, the linear
        baseline, None for too few rows; what `modis_facts` or `sentinel_facts` gives. MODIS also:
        `season_mean` (9, steps, 32), the training data's mean histogram.
    """
    rows = [row for split in (train, *others) for row in county_years(split)]
    history = History.of(rows, config.data.protocol)
    mine = [row for row in county_years(train) if np.isfinite(row[2])]
    facts: Facts = {
        "sensor": config.data.sensor,
        "crop": config.data.crop,
        "yield_unit": unit_of(config.data.crop).text,
        "year": year,
        "years": sorted({year for _, year, _ in rows}),
        "history": history.facts(),
        "yield_mean": float(np.mean([value for *_, value in mine])),
    }
    if isinstance(train, SentinelSplit):
        facts = sentinel_facts(train) | facts
        features, target = _of_pictures(train, config)
    else:
        histograms = cast("ModisSplit", train)
        facts = modis_facts(histograms) | facts
        facts["season_mean"] = _season(histograms)
        features, target = _of_histograms(histograms)
    ridge = Ridge.fit(features, target)
    facts["ridge"] = None if ridge is None else ridge.facts()
    return facts | _scale(config, train, history)


def county_years(split: Split) -> Iterable[tuple[str, int, float]]:
    """County, year and yield in the crop's unit of every item; NaN where it is not known."""
    samples = cast("ModisSplit | SentinelSplit", split).samples
    return [(s.fips, s.year, s.yield_value) for s in samples]


def _scale(config: Config, train: Split, history: History) -> dict[str, Any]:
    """Mean and deviation of what the network gives, which may be the distance to the past."""
    if config.optim.target == "raw":
        return {}
    rows = list(county_years(train))
    past = np.array([history.predict(f, y)["county_mean"] for f, y, _ in rows])
    value = np.array([v for *_, v in rows])
    past = np.where(np.isfinite(past), past, value.mean()) * config.optim.detrend
    if isinstance(train, SentinelSplit):
        logs = np.log([[s.production, s.yield_value] for s in train.samples])
        if config.optim.detrend:
            logs[:, 1] -= np.log(past)
        mean, deviation = logs.mean(0), logs.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        return {"target_mean": mean.tolist(), "target_deviation": deviation.tolist()}
    away = value - past
    return {"target_mean": float(away.mean()), "target_deviation": float(away.std()) or 1.0}


def _of_pictures(train: SentinelSplit, config: Config) -> tuple[FloatArray, FloatArray]:
    """Numbers of each county-year's pictures as evaluation sees them, and its yield."""
    settings = config.data.model_copy(update={"eval_draws": 0})
    config = config.model_copy(update={"data": settings})
    plain = SentinelSplit(train.samples, config, training=False)
    unused = np.random.default_rng(0)
    features = [
        picture_features(plain.item(i, unused)["pictures"].numpy()) for i in range(len(plain))
    ]
    return np.stack(features), np.array([s.yield_value for s in train.samples])


def _of_histograms(train: ModisSplit) -> tuple[FloatArray, FloatArray]:
    """Mean band values of each county-year, steps that are not seen left out, and its yield."""
    features = [histogram_features(image[:, : train.steps]) for image in train.images]
    return np.stack(features), np.array([s.yield_value for s in train.samples])


def _season(train: ModisSplit) -> list[Any]:
    """Mean histogram of the steps that are seen, in as many digits as a share needs."""
    mean = train.images[:, :, : train.steps].mean(0, dtype=np.float64)
    return cast("list[Any]", mean.round(_DIGITS).tolist())
