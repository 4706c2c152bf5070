"""County-years of one split: histograms in memory, with what is known of each."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from zoo.data import ListSplit, fingerprint
from zoo.domains.remote_sensing.crop_yield.counties import Counties
from zoo.domains.remote_sensing.crop_yield.histograms import STEPS
from zoo.task import Batch


@dataclass(frozen=True)
class ModisSample:
    """A county-year with a histogram.

    Attributes:
        crop: What is grown.
        fips: Five digits.
        year: Year of harvest.
        yield_bu_acre: Bushels an acre, cotton in pounds an acre; NaN if not known.
        lon: Longitude of the county's centre in degrees, NaN if not known.
        lat: Its latitude.
        steps: Eight-day steps of the season that have data, at most 32.
    """

    crop: str
    fips: str
    year: int
    yield_bu_acre: float = float("nan")
    lon: float = float("nan")
    lat: float = float("nan")
    steps: int = STEPS

    @property
    def id(self) -> str:
        """`soybean/2012/17001`."""
        return f"{self.crop}/{self.year}/{self.fips}"

    @property
    def yield_value(self) -> float:
        """`yield_bu_acre` under the name that the samples of both sensors have."""
        return self.yield_bu_acre


class ModisSplit(ListSplit):
    """County-years of one split, their histograms in memory.

    Args:
        samples: The county-years.
        images: (N, 9, 32, 32) float32 histograms.
        steps: How many steps of the season are seen.
        batch_size: County-years a batch.
        training: Shuffle.
        band_mean: What `modis_facts` gives: nine means of what trains and validates.

    Attributes:
        samples: As given; their yields are what baselines are made of.
        rows: The same.
        images: As given, all 32 steps.
        outlines: Outline of each county that has one, as `load_counties` gives them.
        notes: What the user should be told, one line each.

    Raises:
        DataError: There are no county-years.
    """

    def __init__(
        self,
        samples: Sequence[ModisSample],
        images: np.ndarray,
        steps: int,
        *,
        batch_size: int = 1,
        training: bool = False,
        band_mean: Sequence[float] | None = None,
    ) -> None:
        contents = [zlib.crc32(np.ascontiguousarray(image).tobytes()) for image in images]
        super().__init__(
            [sample.id for sample in samples],
            # Not the county alone: its other years train.
            [f"{sample.fips}/{sample.year}" for sample in samples],
            fingerprint(
                (s.id, None if np.isnan(s.yield_bu_acre) else s.yield_bu_acre, c)
                for s, c in zip(samples, contents, strict=True)
            ),
            batch_size=batch_size,
            shuffle=training,
        )
        self.samples = list(samples)
        self.rows = self.samples
        self.images = images
        self.steps = steps
        self.band_mean = list(band_mean) if band_mean is not None else None
        self.outlines: dict[str, Any] = {}
        self.notes: list[str] = []

    def item(self, index: int, rng: np.random.Generator) -> Batch:
        """County-year `index`; nothing is random.

        Returns:
            `histogram` (9, T, 32) float32 tensor, proportions of the first T steps; `id`; `crop`;
            `fips`; `state`, two digits; `year`; `yield_bu_acre` (cotton: pounds), NaN if unknown;
            `lon`, `lat` in degrees, NaN if unknown; `steps` with data among the T.
        """
        sample = self.samples[index]
        return {
            "histogram": torch.from_numpy(self.images[index][:, : self.steps].copy()),
            "id": sample.id,
            "crop": sample.crop,
            "fips": sample.fips,
            "state": sample.fips[:2],
            "year": sample.year,
            "yield_bu_acre": sample.yield_bu_acre,
            "lon": sample.lon,
            "lat": sample.lat,
            "steps": min(sample.steps, self.steps),
        }

    def collate(self, items: list[Batch]) -> Batch:
        """Join B county-years.

        Returns:
            `histogram` (B, 9, T, 32) float32; `years` (B,) int64; `target` (B,) float32 in
            bushels an acre; the other keys of an item as lists.
        """
        return {
            "histogram": torch.stack([item["histogram"] for item in items]),
            "years": torch.tensor([item["year"] for item in items]),
            "target": torch.tensor([item["yield_bu_acre"] for item in items], dtype=torch.float32),
        } | {key: [item[key] for item in items] for key in items[0] if key != "histogram"}


def samples_of(rows: pd.DataFrame, crop: str, counties: Counties | None) -> list[ModisSample]:
    """Rows of a store's table as samples; places come from the county table where it has them."""
    samples = []
    for row in rows.itertuples(index=False):
        lon, lat = counties.place(str(row.fips)) if counties else (np.nan, np.nan)
        if not np.isfinite(lon + lat):
            lon, lat = float(str(row.lon)), float(str(row.lat))
        value = float(str(row.yield_bu_acre))
        year, steps = int(str(row.year)), int(str(row.steps))
        samples.append(ModisSample(crop, str(row.fips), year, value, lon, lat, steps))
    return samples
