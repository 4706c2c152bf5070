"""`crop_yield` as the engine sees it: county-years, DFYP for either sensor, yields with units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.remote_sensing.crop_yield import data, figures, outputs, sample, serving
from zoo.domains.remote_sensing.crop_yield.baselines import (
    History,
    Ridge,
    histogram_features,
    picture_features,
)
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.convert import (
    adopt,
    convert_official,
    load_official,
)
from zoo.domains.remote_sensing.crop_yield.geojson import write_geojson
from zoo.domains.remote_sensing.crop_yield.learnt import facts_of
from zoo.domains.remote_sensing.crop_yield.losses import yield_loss
from zoo.domains.remote_sensing.crop_yield.model import build_model
from zoo.domains.remote_sensing.crop_yield.sentinel import OneCounty, SentinelDFYPNet
from zoo.errors import ConfigError, DataError
from zoo.intervals import bootstrap_intervals
from zoo.surveying import SurveyedTask
from zoo.task import (
    Adoption,
    Batch,
    Conversion,
    Export,
    Facts,
    Finding,
    Metrics,
    Optim,
    Record,
    Split,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WITH_INTERVAL = ("rmse", "mae", "r2", "pearson", "bias", "skill_county_mean")
_RESAMPLES = 500
# The released run predicts with the first 12, 16, ... steps only.
_SEASON = range(12, 32, 4)
_PREDICTIONS = "predictions.geojson"


class CropYield(SurveyedTask[Config, Any]):
    """Yield of one crop in a US county and year, from MODIS histograms or Sentinel-2 pictures."""

    monitor = ("rmse", "min")
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._opened: dict[str, Any] = {}
        self._facts: Facts = {}
        self._history = History({})
        self._ridge: Ridge | None = None
        self._season: Tensor | None = None
        self._places: list[Path] = []

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data set of both sensors: `modis/` and `sentinel2/`."""
        sample.write(out, defects=defects)

    def settled(self) -> Config:
        """The configuration with the sensor's folder."""
        settled = super().settled()
        root = data.of_sensor(self.root(), self.config.data.sensor)
        inner = settled.data.model_copy(update={"root": root})
        return settled.model_copy(update={"data": inner})

    def survey(self, deep: bool) -> Any:
        """Yields, counties and imagery, and how they are parted."""
        return data.survey(self.settled(), deep=deep)

    def findings(self, found: Any, deep: bool) -> list[Finding]:
        """On yields, counties and imagery; with `deep` every file was read whole."""
        return data.check(self.settled(), found)

    def prepare(self, out: Path, shard: int, shards: int) -> None:
        """Histograms from raw MODIS exports: `data.raw`, else `data.root`, else the sample's."""
        data.prepare(out, self.settled(), shard, shards)

    def folds(self) -> list[dict[str, str]]:
        """One training a year, season length or crop, as `data.folds_by` says."""
        settled = self.settled()
        return data.folds(settled, self.surveyed() if settled.data.folds_by == "year" else None)

    def splits(self) -> dict[str, Split]:
        """`train`, `val` unless `data.val_fraction` is 0, and `test`, the predicted year."""
        self._opened = dict(data.open_splits(self.settled(), self.surveyed()))
        return dict(self._opened)

    def fit(self, train: Split) -> Facts:
        """Band means, county history, target scale and the ridge baseline.

        The history also holds the validation rows: a baseline of a year sees earlier years (or
        all others) and so never the row it is compared on.
        """
        others = [s for n, s in self._opened.items() if n == "val" and train is not s]
        return facts_of(self.config, train, others, int(self.surveyed().year))

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The sensor's network for what was learnt.

        Raises:
            ConfigError: The sizes do not go together, or the weights are of another sensor.
        """
        self._take(facts)
        try:
            return build_model(self.config, facts)
        except ValueError as error:
            msg = f"model: {error}"
            raise ConfigError(msg) from error

    def _take(self, facts: Facts) -> None:
        """Keep what records need of the facts: they are given neither to splits nor to records."""
        sensor = self.config.data.sensor
        if facts.get("sensor", sensor) != sensor:
            msg = f"these weights are of sensor '{facts['sensor']}': set data.sensor to it"
            raise ConfigError(msg)
        self._facts = facts
        self._history = History.from_facts(facts["history"])
        self._ridge = Ridge.from_facts(facts["ridge"]) if facts.get("ridge") else None
        season = facts.get("season_mean")
        self._season = None if season is None else torch.tensor(season, dtype=torch.float32)

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """One Adam with coupled weight decay; the rate falls tenfold at given steps."""
        optim = self.config.optim
        decay = optim.weight_decay
        if decay is None:
            decay = 1.0 if self.config.data.sensor == "modis" else 1e-5
        adam = torch.optim.Adam(model.parameters(), lr=optim.lr, weight_decay=decay)

        def factor(epoch: int, step: int, steps: int) -> float:
            done = epoch * steps + step
            return float(0.1 ** sum(done >= limit for limit in optim.decay_steps))

        return {"adam": Optim(adam, factor)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error, with the absolute one where `optim.l1` says so.

        In units of the training deviation where the target is standardised.
        """
        target = batch["target"]
        scale = torch.ones_like(target)
        if self.config.optim.target == "standardised":
            scale = scale * torch.tensor(self._facts["target_deviation"]).to(target)
        predicted = self._predicted(model, batch)
        loss = yield_loss(predicted / scale, target / scale, self.config.optim.l1)
        return {"loss": loss}

    def _predicted(self, model: nn.Module, batch: Batch, histogram: Tensor | None = None) -> Tensor:
        """(B,) yields, or (B, 2) logs of production and yield, the county's past put back."""
        if self.config.data.sensor == "sentinel2":
            found: Tensor = model(batch["pictures"], batch["cu_pictures"])
        else:
            seen = batch["histogram"] if histogram is None else histogram
            found = model(seen, batch["years"])
        if self.config.optim.detrend:
            found = found + self._past(batch).to(found)
        return found

    def _past(self, batch: Batch) -> Tensor:
        """The county's mean of the years that may be known, as the target counts it."""
        rows = zip(batch["fips"], batch["years"].tolist(), strict=True)
        known = torch.tensor([self._county_mean(f, y) for f, y in rows])
        if self.config.data.sensor == "modis":
            return known
        return torch.stack([torch.zeros_like(known), known.log()], dim=1)

    def _county_mean(self, fips: str, year: int) -> float:
        found = self._history.predict(fips, year)["county_mean"]
        return found if np.isfinite(found) else float(self._facts["yield_mean"])

    # -- evaluation -----------------------------------------------------------------------------

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record a county and year, yields in the crop's unit, beside the baselines."""
        found = self._predicted(model, batch).float().cpu()
        values = self._seen(model, batch)
        values |= {f"season_{t}": v for t, v in self._in_season(model, batch).items()}
        made = []
        for i, name in enumerate(batch["id"]):
            mine = {k: np.array(v[i]) for k, v in values.items()}
            mine |= self._named(batch, i) | self._yields(found[i], batch, i)
            made.append(Record(name, str(batch["fips"][i]), mine))
        return made

    def _yields(self, found: Tensor, batch: Batch, i: int) -> dict[str, np.ndarray]:
        if self.config.data.sensor == "modis":
            values = {"prediction": np.array(float(found))}
            truth = float(batch["target"][i])
        else:
            # Float64, since the exponential of a log production has eight digits.
            logs = found.double().numpy()
            values = {"prediction": np.exp(logs[1]), "log_prediction": logs}
            truth = float(batch["yield_value"][i])
            if np.isfinite(truth):
                values["log_truth"] = np.log([float(batch["production"][i]), truth])
        if np.isfinite(truth):
            values["truth"] = np.array(truth)
        return values

    def _named(self, batch: Batch, i: int) -> dict[str, np.ndarray]:
        """Place, year and baselines of a county-year."""
        fips, year = str(batch["fips"][i]), int(batch["years"][i])
        values: dict[str, Any] = {
            "fips": fips,
            "state": fips[:2],
            "year": year,
            "crop": self._facts["crop"],
            "lon": float(batch["lon"][i]),
            "lat": float(batch["lat"][i]),
        }
        known = self._history.predict(fips, year)
        if self._ridge is not None:
            known["ridge"] = self._ridge.predict(self._features(batch, i))
        values |= {f"baseline_{k}": v for k, v in known.items() if np.isfinite(v)}
        return {k: np.array(v) for k, v in values.items()}

    def _features(self, batch: Batch, i: int) -> np.ndarray:
        if self.config.data.sensor == "modis":
            return histogram_features(batch["histogram"][i].cpu().numpy())
        begin, end = batch["cu_pictures"][i : i + 2].tolist()
        return picture_features(batch["pictures"][begin:end].cpu().numpy())

    def _seen(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Weight of each band and operator of each county-year."""
        net = cast("Any", model)
        if self.config.data.sensor == "modis":
            chosen = net.operators_of(batch["years"].tolist())
            weights = net.band_attention(batch["histogram"])
            return {"operator": chosen, "attention": weights.float().cpu().numpy()}
        weights = net.band_attention(batch["pictures"]).float().cpu()
        counties = [w.mean(0).numpy() for w in weights.split(batch["cu_pictures"].diff().tolist())]
        return {"operator": [net.operator] * len(counties), "attention": counties}

    def _in_season(self, model: nn.Module, batch: Batch) -> dict[int, list[float]]:
        """Yields when steps after the first 12, 16, ... are the training data's mean season."""
        if self._season is None or not self.config.predict.in_season:
            return {}
        whole = batch["histogram"]
        usual = self._season.to(whole).expand_as(whole)
        found = {}
        for steps in (t for t in _SEASON if t < whole.shape[2]):
            cut = torch.cat([whole[:, :, :steps], usual[:, :, steps:]], dim=2)
            found[steps] = self._predicted(model, batch, cut).float().cpu().tolist()
        return found

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """RMSE, MAE, bias, R2, correlation, and each baseline's error beside the model's."""
        scored = outputs.with_truth(records)
        if not scored:
            msg = "no county has a known yield: nothing can be scored"
            raise DataError(msg)
        return outputs.Arrays(scored).scores()

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Bootstrap over counties."""
        scored = outputs.with_truth(records)
        arrays = outputs.Arrays(scored)
        names = [n for n in _WITH_INTERVAL if n in arrays.scores()]

        def score(rows: np.ndarray) -> dict[str, float]:
            found = arrays.scores(rows)
            return {n: found.get(n, float("nan")) for n in names}

        return bootstrap_intervals(
            score, [r.group for r in scored], resamples=_RESAMPLES, seed=self.config.seed
        )

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """Predicted against observed, error map and by year, operators, channel attention."""
        same = outputs.in_one_unit(records)
        return figures.all_figures(same, outputs.unit_text(records), self._outlines(records))

    def _outlines(self, records: Sequence[Record]) -> Mapping[str, Any]:
        counties = {str(r.values["fips"]) for r in records}
        return data.outlines(self.settled(), self._places, counties)

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """Model beside baselines with the verdict; by state, year and crop; worst counties."""
        return outputs.all_tables(records)

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Folders of GeoTIFF exports or prepared histograms; h5 files of Sentinel-2 pictures."""
        self._places = [Path(p) for p in paths]
        return data.inputs(paths, facts, self.config)

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """One row a county and year, units in the names of the columns."""
        return outputs.prediction_rows(records)

    def finish(self, records: Sequence[Record], facts: Facts, out: Path) -> Sequence[Path]:
        """All counties as one GeoJSON."""
        if not self.config.predict.geojson:
            return ()
        path = out / _PREDICTIONS
        write_geojson(path, outputs.prediction_rows(records), self._outlines(records))
        return [path]

    def remarks(self, records: Sequence[Record], facts: Facts) -> Sequence[str]:
        """How many counties have an outline, whether the model beats the baselines, known years."""
        told = []
        if self.config.predict.geojson:
            places = {str(r.values["fips"]) for r in records}
            drawn = sum(bool(self._outlines(records).get(fips)) for fips in places)
            told.append(f"{_PREDICTIONS}: {len(places)} counties, {drawn} with an outline")
        scored = outputs.with_truth(records)
        if scored:
            told.append(outputs.verdict(scored))
        years = set(facts.get("years", ()))
        trained = sum(int(r.values["year"]) in years for r in records)
        if trained:
            told.append(f"{trained} of {len(records)} county-years are of years that trained")
        return told

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """MODIS: histograms of counties with their years; Sentinel-2: one county's pictures."""
        if isinstance(model, SentinelDFYPNet):
            side = self.config.data.image_size
            return Export(
                inputs={"pictures": torch.zeros(4, 3, side, side)},
                outputs=("logs",),
                dynamic={"pictures": {0: "pictures"}},
                module=OneCounty(model),
                about={
                    "pictures": f"(P, 3, {side}, {side}) B11, B08 and B02, normalised as trained",
                    "logs": "(1, 2) natural logs of production and yield, as trained",
                },
            )
        steps = int(facts["steps"])
        name = "yield_minus_county_mean" if self.config.optim.detrend else "yield"
        return Export(
            inputs={
                "histogram": torch.zeros(3, 9, steps, 32),
                "years": torch.tensor([2009, 2011, 2012]),
            },
            outputs=(name,),
            dynamic={"histogram": {0: "counties"}, "years": {0: "counties"}},
            about={
                "histogram": f"(B, 9, {steps}, 32) shares in [0, 1] of bands, composites and bins",
                "years": "(B,) harvest years",
                name: f"(B,) {facts.get('yield_unit', 'bushels/acre')}",
            },
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """Histograms of counties, or the pictures of one, to yields; see `serving`."""
        return serving.served(model, facts, self.config)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """An official checkpoint of either sensor."""
        return convert_official(state)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of a file; a released one also holds arrays of losses and predictions."""
        return super().read(path) if path.suffix == ".safetensors" else load_official(path).state

    def preparation(self, facts: Facts) -> str:
        """What is taken from the inputs, and how they are scaled."""
        if self.config.data.sensor == "modis":
            return "histograms less this training set's band means, unless the file has its own"
        return f"data.input_scaling={self.config.data.input_scaling}, ImageNet-like mean and scale"

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Sizes of a network without settings; what it learnt of its years needs a training set."""
        return adopt(state, self.config)
