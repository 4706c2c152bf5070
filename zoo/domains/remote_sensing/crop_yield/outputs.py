"""Rows, tables and words about predicted yields, from records alone.

A record holds `prediction` (and `truth` where it is known) in the crop's unit, `crop`, `year`,
`fips`, `state`, `lon`, `lat`, one `baseline_<name>` each, `season_<steps>` where the season was cut
short, and for Sentinel-2 the natural logs `log_prediction` and `log_truth` of production and yield.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.domains.remote_sensing.crop_yield.baselines import IN_WORDS, NAMES, as_columns
from zoo.domains.remote_sensing.crop_yield.figures import column, season_steps
from zoo.domains.remote_sensing.crop_yield.metrics import (
    IN_UNITS,
    regression_metrics,
    score_groups,
    yield_scores,
)
from zoo.domains.remote_sensing.crop_yield.units import Unit, unit_of
from zoo.task import Metrics, Record

FloatArray = NDArray[np.float64]
_WORST = 40
_DECIMALS = 3


def crops_of(records: Sequence[Record]) -> list[str]:
    """Crops of the records, sorted; several come together where `zoo cv` pools them."""
    return sorted({str(r.values["crop"]) for r in records})


def unit_text(records: Sequence[Record]) -> str:
    """Unit of truth and prediction as `in_one_unit` gives them."""
    crops = crops_of(records)
    return unit_of(crops[0]).text if len(crops) == 1 else "t/ha"


def in_one_unit(records: Sequence[Record]) -> list[Record]:
    """The records as they are if they are of one crop, else all yields in t/ha."""
    if len(crops_of(records)) == 1:
        return list(records)
    changed = []
    for record in records:
        factor = unit_of(str(record.values["crop"])).t_ha
        values = {k: v * factor if _is_yield(k) else v for k, v in record.values.items()}
        changed.append(Record(record.id, record.group, values, record.write))
    return changed


def _is_yield(name: str) -> bool:
    return name in ("truth", "prediction") or name.startswith(("baseline_", "season_"))


def with_truth(records: Sequence[Record]) -> list[Record]:
    """Records whose yield is known."""
    return [r for r in records if np.isfinite(r.values.get("truth", np.nan))]


def baselines_of(records: Sequence[Record]) -> dict[str, FloatArray]:
    """One array a baseline, NaN where a record has none."""
    start = "baseline_"
    rows = [
        {
            name.removeprefix(start): float(value)
            for name, value in record.values.items()
            if name.startswith(start) and np.isfinite(value)
        }
        for record in records
    ]
    return as_columns(rows)


class Arrays:
    """The numbers of scored records as arrays, so that resampling need not gather them again.

    Args:
        records: All with a truth.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.crops = crops_of(records)
        same = in_one_unit(records)
        self.truth = column(same, "truth").astype(np.float64)
        self.prediction = column(same, "prediction").astype(np.float64)
        self.baselines = baselines_of(same)
        self.season = {t: column(same, f"season_{t}").astype(float) for t in season_steps(same)}
        logs = [r.values for r in same if "log_truth" in r.values]
        whole = len(logs) == len(same) and len(self.crops) == 1
        self.log_truth = np.array([v["log_truth"] for v in logs]) if whole else None
        self.log_prediction = np.array([v["log_prediction"] for v in logs]) if whole else None

    def scores(self, rows: NDArray[np.int64] | slice = slice(None)) -> Metrics:
        """Metrics of some rows; several crops are scored in t/ha alone."""
        t_ha = unit_of(self.crops[0]).t_ha if len(self.crops) == 1 else 1.0
        baselines = {n: v[rows] for n, v in self.baselines.items()}
        found = yield_scores(self.truth[rows], self.prediction[rows], baselines, t_ha)
        if len(self.crops) > 1:
            mixed = [n for n in found if n in IN_UNITS]
            found = {k: v for k, v in found.items() if k not in mixed}
        for steps, values in self.season.items():
            cut = regression_metrics(self.truth[rows], values[rows])
            found |= {f"season_{steps}_{k}": cut[k] for k in ("rmse", "r2")}
        if self.log_truth is not None and self.log_prediction is not None:
            logs = regression_metrics(self.log_truth[rows], self.log_prediction[rows])
            found |= {f"log_pooled_{k}": logs[k] for k in ("rmse", "mae", "r2")}
        return found


# -- tables -------------------------------------------------------------------------------------


def best_baseline(records: Sequence[Record]) -> tuple[str, float] | None:
    """Name and RMSE of the baseline with the least error, of those with a value everywhere."""
    same = in_one_unit(records)
    truth = column(same, "truth").astype(float)
    errors = {
        name: regression_metrics(truth, values)["rmse"]
        for name, values in baselines_of(same).items()
        if np.isfinite(values).all()
    }
    if not errors:
        return None
    name = min(errors, key=lambda n: errors[n])
    return name, errors[name]


def verdict(records: Sequence[Record]) -> str:
    """One sentence: whether the model beats the best baseline on these records."""
    rival = best_baseline(records)
    if rival is None:
        return "no baseline has a value for every county: nothing to compare the model with"
    same, unit = in_one_unit(records), unit_text(records)
    truth, guess = (column(same, k).astype(float) for k in ("truth", "prediction"))
    ours = regression_metrics(truth, guess)["rmse"]
    name, theirs = rival
    beats = "beats" if ours < theirs else "does NOT beat"
    return (
        f"the model {beats} the best baseline, {IN_WORDS[name]}: "
        f"RMSE {ours:.2f} against {theirs:.2f} {unit}"
    )


def all_tables(records: Sequence[Record]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and rows of every table of scored records."""
    scored = with_truth(records)
    if not scored:
        return
    same, unit = in_one_unit(scored), unit_text(scored)
    yield f"Beside the baselines: {verdict(scored)}", _beside(same, unit)
    yield f"By state, {unit}", _by(same, "state")
    yield f"By year, {unit}", _by(same, "year")
    yield "By crop", _by_crop(scored)
    if season_steps(same):
        yield f"In season: only the first steps seen, {unit}", _season(same)
    yield f"Counties with the largest errors, {unit}", _worst(same)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, _DECIMALS) if isinstance(v, float) else v for k, v in row.items()}


def _beside(records: Sequence[Record], unit: str) -> list[dict[str, Any]]:
    truth = column(records, "truth").astype(float)
    named = {"model": column(records, "prediction").astype(float)}
    named |= {IN_WORDS[n]: v for n, v in baselines_of(records).items()}
    rows = []
    for name, values in named.items():
        known = np.isfinite(values)
        scores = regression_metrics(truth[known], values[known])
        rows.append(_rounded({"prediction": name, "county-years": int(known.sum()), **scores}))
    for row in rows:
        row["unit"] = unit
    return rows


def _by(records: Sequence[Record], name: str) -> list[dict[str, Any]]:
    truth, guess = (column(records, k).astype(float) for k in ("truth", "prediction"))
    groups = [str(r.values[name]) for r in records]
    county = score_groups(truth, baselines_of(records).get("county_mean", truth * np.nan), groups)
    rows = []
    for group, scores in score_groups(truth, guess, groups).items():
        count = int(scores.pop("count"))
        rmse = {"rmse_county_mean": county[group]["rmse"]}
        rows.append(_rounded({name: group, "county-years": count, **scores, **rmse}))
    return rows


def _by_crop(records: Sequence[Record]) -> list[dict[str, Any]]:
    rows = []
    for crop in crops_of(records):
        mine = [r for r in records if str(r.values["crop"]) == crop]
        scores, unit = Arrays(mine).scores(), unit_of(crop)
        named = {f"{k} t/ha": scores[f"{k}_t_ha"] for k in IN_UNITS}
        shown = {k: scores[k] for k in (*IN_UNITS, "r2", "pearson")} | named
        rows.append(_rounded({"crop": crop, "unit": unit.text, "county-years": len(mine), **shown}))
    return rows


def _season(records: Sequence[Record]) -> list[dict[str, Any]]:
    truth = column(records, "truth").astype(float)
    rows = []
    for steps in season_steps(records):
        scores = regression_metrics(truth, column(records, f"season_{steps}").astype(float))
        rows.append(_rounded({"steps": steps, "last day of year": 48 + 8 * steps, **scores}))
    return rows


def _worst(records: Sequence[Record]) -> list[dict[str, Any]]:
    def error(record: Record) -> float:
        return float(record.values["prediction"] - record.values["truth"])

    chosen = sorted(records, key=lambda r: (-abs(error(r)), r.id))[:_WORST]
    return [
        _rounded(
            {
                "county (FIPS)": str(r.values["fips"]),
                "year": int(r.values["year"]),
                "observed": float(r.values["truth"]),
                "predicted": float(r.values["prediction"]),
                "predicted - observed": error(r),
                "county's mean": float(r.values.get("baseline_county_mean", np.nan)),
            }
        )
        for r in chosen
    ]


# -- predictions --------------------------------------------------------------------------------


def prediction_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row a county and year for predictions.csv; units stand in the names of the columns."""
    return [_row(record, unit_of(str(record.values["crop"]))) for record in records]


def _row(record: Record, unit: Unit) -> dict[str, Any]:
    values = record.values
    guess = float(values["prediction"])
    row: dict[str, Any] = {
        "id": record.id,
        "crop": str(values["crop"]),
        "year": int(values["year"]),
        "fips": str(values["fips"]),
        "state": str(values["state"]),
        "lon": float(values.get("lon", np.nan)),
        "lat": float(values.get("lat", np.nan)),
        f"predicted_{unit.key}": guess,
        "predicted_t_ha": guess * unit.t_ha,
    }
    truth = float(values.get("truth", np.nan))
    if np.isfinite(truth):
        row |= {
            f"observed_{unit.key}": truth,
            "observed_t_ha": truth * unit.t_ha,
            f"error_{unit.key}": guess - truth,
        }
    for name in NAMES:
        if f"baseline_{name}" in values:
            row[f"baseline_{name}_{unit.key}"] = float(values[f"baseline_{name}"])
    for steps in season_steps([record]):
        row[f"predicted_{steps}_steps_{unit.key}"] = float(values[f"season_{steps}"])
    if "log_prediction" in values:
        row["predicted_production"] = float(np.exp(values["log_prediction"][0]))
        row["production_unit"] = unit.production
    if "operator" in values:
        row["operator"] = str(values["operator"])
    return row
