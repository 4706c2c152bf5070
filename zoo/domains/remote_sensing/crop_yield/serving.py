"""What people who load the model by name call: histograms or pictures in, yields out.

Centre crop, scaling, normalisation and the county's past are written out in PyTorch as the adapter
and the records make them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.domains.remote_sensing.crop_yield.baselines import History
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.joint import SHAPE
from zoo.domains.remote_sensing.crop_yield.operators import YEAR_OPERATORS
from zoo.domains.remote_sensing.crop_yield.sentinel import SentinelDFYPNet
from zoo.domains.remote_sensing.crop_yield.units import unit_of
from zoo.task import Export, Facts

_YEARS = (2000, 2100)
"""Harvests there may be imagery of; a season's number or a year of two digits is none."""
_FIPS = (1001, 1003, 99999)
_PICTURES = ((3, 300, 280), (1, 64, 80), (7, 224, 224))


class CountyMeans(nn.Module):
    """The mean of a county's yields in the years that may be known; see `History.predict`.

    Args:
        history: Yields of the training.
        otherwise: Where no year may be known.
    """

    county: Tensor
    year: Tensor
    value: Tensor

    def __init__(self, history: History, otherwise: float) -> None:
        super().__init__()
        rows = [
            (int(fips), year, value)
            for fips, years in history.yields.items()
            for year, value in years.items()
        ]
        county, year, value = zip(*rows, strict=True) if rows else ((), (), ())
        self.past, self.otherwise = history.protocol == "past", otherwise
        self.register_buffer("county", torch.tensor(county, dtype=torch.int64))
        self.register_buffer("year", torch.tensor(year, dtype=torch.int64))
        self.register_buffer("value", torch.tensor(value, dtype=torch.float64))

    def forward(self, fips: Tensor, year: Tensor) -> Tensor:
        """(B,) float32 of counties (B,) and years (B,); a county never seen has the mean of all."""
        when = year[:, None]
        known = self.year < when if self.past else self.year != when
        mine = known & (self.county == fips[:, None])
        # In float64 the sums of some ten thousand yields are the baseline's to its last digit.
        own, every = self._mean(mine), self._mean(known)
        found = torch.where(mine.any(1), own, every)
        return torch.where(known.any(1), found, self.otherwise).float()

    def _mean(self, rows: Tensor) -> Tensor:
        total = torch.where(rows, self.value, 0.0).sum(1)
        return total / rows.sum(1).clamp(min=1)


def _sensible(year: Tensor) -> Tensor:
    return (year >= _YEARS[0]) & (year <= _YEARS[1])


class ServedModis(nn.Module):
    """The MODIS network on histograms as prepared files hold them.

    Args:
        net: The network.
        steps: Of the season, which it reads.
        past: What is added to its result, if it predicts the distance to the county's past.
    """

    def __init__(self, net: nn.Module, steps: int, past: CountyMeans | None) -> None:
        super().__init__()
        self.net, self.steps, self.past = net, steps, past

    def forward(self, histogram: Tensor, year: Tensor, fips: Tensor | None = None) -> Tensor:
        """Yields (B,) in the crop's unit.

        Args:
            histogram: (B, 9, 32, 32) shares as stored.
            year: (B,) int64 of the harvest.
            fips: (B,) int64 codes of the counties, if the county's past is needed.

        Returns:
            (B,), NaN where a share lies outside of [0, 1] or no harvest is of that year.
        """
        found: Tensor = self.net(histogram[:, :, : self.steps], year).float()
        if self.past is not None and fips is not None:
            found = found + self.past(fips, year)
        # Comparisons with NaN are false.
        shares = ((histogram >= 0) & (histogram <= 1)).flatten(1).all(1)
        return torch.where(shares & _sensible(year), found, float("nan"))


class ServedSentinel(nn.Module):
    """The Sentinel-2 network on the pictures of one county.

    Args:
        net: The network.
        size: Side in pixels of what it reads.
        mean: Of each channel.
        deviation: Of each channel.
        most: What the brightest level becomes: 1, or 255 for `input_scaling=official`.
        past: What the log of the yield is counted from, if it is the county's past.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        net: nn.Module,
        size: int,
        mean: Sequence[float],
        deviation: Sequence[float],
        most: float,
        past: CountyMeans | None,
    ) -> None:
        super().__init__()
        self.net, self.size, self.most, self.past = net, size, most, past
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1))

    def forward(
        self, pictures: Tensor, year: Tensor | None = None, fips: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Yield (1,) and production (1,) of one county.

        Args:
            pictures: (P, 3, H, W) in [0, 1], all dates and grid cells of its season.
            year: (1,) int64, if the county's past is needed.
            fips: (1,) int64 code of the county, likewise.

        Returns:
            Both in the crop's units, NaN where a value lies outside of [0, 1].
        """
        # Levels of 8 bits, as they are stored: edges of flat ground hang on the last digit.
        levels = (self._cut(pictures) * 255).round()
        seen = (levels * self.most / 255 - self.mean) / self.deviation
        logs = self._logs(seen).float()
        production, value = logs[:, 0], logs[:, 1]
        sound = ((pictures >= 0) & (pictures <= 1)).all()
        if self.past is not None and year is not None and fips is not None:
            value = value + self.past(fips, year).log()
            sound = sound & _sensible(year)
        # Exponentials in float64, as of the records.
        both = (logs.double().exp().float() for logs in (value, production))
        made, total = (torch.where(sound, one, float("nan")) for one in both)
        return made, total

    def _logs(self, seen: Tensor) -> Tensor:
        """Logs (1, 2) of production and yield; as `SentinelDFYPNet.forward` of a single county.

        Its mean over counties of any sizes is an operator that ONNX lacks.
        """
        net = cast("SentinelDFYPNet", self.net)
        maps, tokens = (x.mean(0, keepdim=True) for x in net.picture_features(seen))
        both = net.cnn_share * net.cnn.head(maps) + net.vit_share * net.vit.head(tokens)
        made: Tensor = net.target[0] + net.target[1] * both
        return made

    def _cut(self, pictures: Tensor) -> Tensor:
        """The middle (P, 3, S, S); a smaller picture gets zeros around it. See `views`."""
        for axis in (2, 3):
            index, there = _middle(self.size, pictures.shape[axis], pictures.device)
            there = there.unsqueeze(1) if axis == 2 else there
            pictures = torch.where(there, pictures.index_select(axis, index), 0.0)
        return pictures


def _middle(size: int, extent: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Index (size,) into an axis whose middle is cut out, and (size,) whether it is inside."""
    # The size goes on as a tensor: a traced graph takes any.
    whole = torch.full((), extent, dtype=torch.float64, device=device)
    over = whole - size
    # Rounded half to even where there is too much, half down where zeros are put around.
    first = torch.where(over >= 0, (over / 2).round(), -((-over / 2).floor()))
    place = torch.arange(size, dtype=torch.float64, device=device) + first
    there = (place >= 0) & (place < whole)
    return place.clamp(min=0).minimum(whole - 1).long(), there


def served(model: nn.Module, facts: Facts, config: Config) -> Export:
    """The model as it is served.

    Args:
        model: Of `CropYield.model`.
        facts: Of its training: of `facts_of`.
        config: `data.sensor` and `optim.detrend` are read.
    """
    past = None
    if config.optim.detrend:
        past = CountyMeans(History.from_facts(facts["history"]), float(facts["yield_mean"]))
    if config.data.sensor == "modis":
        return _modis(model, facts, past)
    return _sentinel(model, facts, past)


def _modis(model: nn.Module, facts: Facts, past: CountyMeans | None) -> Export:
    steps, draw = int(facts["steps"]), torch.Generator().manual_seed(0)

    def example(years: Sequence[int]) -> dict[str, Tensor]:
        shares = torch.rand(len(years), *SHAPE, generator=draw)
        made = {
            "histogram": shares / shares.sum(-1, keepdim=True),
            "year": torch.tensor(years),
            "fips": torch.tensor([_FIPS[i % len(_FIPS)] for i in range(len(years))]),
        }
        return {k: v for k, v in made.items() if k != "fips" or past is not None}

    first = example((2009, 2011, 2012))
    router: Any = getattr(getattr(model, "cnn", None), "router", None)
    return Export(
        inputs=first,
        outputs=("yield",),
        dynamic={name: {0: "counties"} for name in first},
        module=ServedModis(model, steps, past),
        others=[example((2003,)), example([*YEAR_OPERATORS, 2003, 2024])],
        about=_told(
            {
                "histogram": f"(B, {', '.join(map(str, SHAPE))}) float32 [band, step, bin]: shares "
                "in [0, 1] as `zoo data prepare` writes them, each row summing to 1, or to 0 "
                f"without a pixel; the first {steps} eight-day steps from day 49 are read; a "
                "value outside of [0, 1] makes that county's yield NaN",
                "year": "(B,) int64, year of the harvest, "
                f"{_YEARS[0]} to {_YEARS[1]}, else the yield is NaN; {_routing(router)}",
                "yield": f"(B,) {facts['yield_unit']} of {facts['crop']}",
            },
            facts,
            past,
        ),
    )


def _routing(router: Any) -> str:
    """What the year decides in the network."""
    if router is None or router.always is not None:
        return "the network does not depend on it"
    known = ", ".join(f"{year} {name}" for year, name in router.years.items())
    return f"it chooses the edge operator: {known}, other years {router.unknown}"


def _sentinel(model: nn.Module, facts: Facts, past: CountyMeans | None) -> Export:
    draw = torch.Generator().manual_seed(0)

    def example(count: int, height: int, width: int) -> dict[str, Tensor]:
        made = {"pictures": torch.rand(count, 3, height, width, generator=draw)}
        if past is not None:
            made |= {"year": torch.tensor([2022]), "fips": torch.tensor([_FIPS[0]])}
        return made

    first, *others = (example(*sizes) for sizes in _PICTURES)
    unit, size = unit_of(str(facts["crop"])), int(facts["image_size"])
    most = 255.0 if facts["input_scaling"] == "official" else 1.0
    return Export(
        inputs=first,
        outputs=("yield", "production"),
        dynamic={"pictures": {0: "pictures", 2: "height", 3: "width"}},
        module=ServedSentinel(model, size, facts["mean"], facts["deviation"], most, past),
        others=others,
        about=_told(
            {
                "pictures": "(P, 3, H, W) float32 in [0, 1]: all pictures of one county's season, "
                "the first date of each month, in any order; Sentinel-2's B11, B08 and B02 as "
                f"8-bit levels / 255; the middle {size} x {size} pixels are read; a value outside "
                "of [0, 1] makes the results NaN; all pictures are in memory at once",
                "year": f"(1,) int64, year of the harvest, {_YEARS[0]} to {_YEARS[1]}, else the "
                "yield is NaN",
                "yield": f"(1,) {unit.text} of {facts['crop']}",
                "production": f"(1,) {unit.production} of {facts['crop']} in the whole county",
            },
            facts,
            past,
        ),
    )


def _told(about: dict[str, str], facts: Facts, past: CountyMeans | None) -> Mapping[str, str]:
    """With the county's code where it is asked for."""
    if past is not None:
        years = ", ".join(map(str, facts["years"]))
        about["fips"] = (
            "int64 five-digit codes of the counties as numbers, 17001: the model predicts the "
            f"distance to a county's mean yield, known for {years}; a county it never saw counts "
            "as the mean of all"
        )
    elif "pictures" in about:
        about.pop("year")
    return about
