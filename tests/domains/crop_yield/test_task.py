"""The task as the engine sees it: facts, records in physical units, folds, outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.config import resolve
from zoo.data import item_rng, leakage, order_rng
from zoo.domains.remote_sensing.crop_yield import outputs
from zoo.domains.remote_sensing.crop_yield.baselines import History
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.task import CropYield
from zoo.errors import ConfigError, DataError
from zoo.task import Record

YEARS = range(2007, 2013)
STATES = (1, 17)
TINY = (
    "model.channels=[4,4,4,4,4,4]",
    "model.dense=8",
    "model.dim=16",
    "model.depth=1",
    "model.heads=2",
    "model.head_size=8",
    "model.mlp=16",
    "trainer.batch_size=8",
)


def write_published(path: Path, change: float = 0.0) -> None:
    """Histograms in the published file's layout; `change` is added to the yields of 2012."""
    rng = np.random.default_rng(4)
    rows = [(y, s, c) for y in YEARS for s in STATES for c in (1, 3, 5, 7)]
    image = rng.dirichlet(np.ones(32), (len(rows), 9, 32))
    image[:, 7:, -3:] = 0  # no retrieval
    value = np.round(40 + 5 * rng.normal(size=len(rows)), 1)
    years = np.array([y for y, *_ in rows])
    np.savez(
        path / "histogram_all_full.npz",
        output_image=image,
        output_yield=value + change * (years == 2012),
        output_year=years,
        output_locations=np.array([(-90.0 + c, 40.0 + s / 10) for _, s, c in rows]),
        output_index=np.array([(s, c) for _, s, c in rows]),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_published(folder)
    return folder


def task_of(root: Path, *words: str) -> CropYield:
    config = resolve(
        ["task=crop_yield", "preset=sample", f"data.root={root}", *TINY, *words]
    ).config
    assert isinstance(config, Config)
    return CropYield(config)


def built(task: CropYield) -> tuple[Any, dict[str, Any], Any]:
    splits: Any = task.splits()
    facts = json.loads(json.dumps(task.fit(splits["train"]), allow_nan=False))
    torch.manual_seed(0)
    return splits, facts, task.model(facts).eval()


def batch_of(split: Any, count: int = 8) -> dict[str, Any]:
    batch: dict[str, Any] = split.collate([split.item(i, item_rng(1, 0, i)) for i in range(count)])
    return batch


@torch.no_grad()
def records_of(task: CropYield, model: Any, split: Any) -> list[Record]:
    batches = split.batches(0, order_rng(1, 0))
    return [
        record
        for rows in batches
        for record in task.records(
            model, split.collate([split.item(i, item_rng(1, 0, i)) for i in rows])
        )
    ]


# -- data ---------------------------------------------------------------------------------------


def test_counties_train_with_their_past_and_county_years_stay_apart(root: Path) -> None:
    splits, _, _ = built(task_of(root))
    assert leakage(splits) == []
    train, test = ({s.fips for s in splits[n].samples} for n in ("train", "test"))
    assert train & test
    assert {s.year for s in splits["test"].samples} == {2012}
    assert max(s.year for n in ("train", "val") for s in splits[n].samples) == 2011


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (("model.routing=per_sample", "data.year=2009"), True),
        (("model.routing=per_sample", "data.year=2012"), False),
        (("model.routing=per_sample", "data.year=2009", "model.operator=sobel"), False),
        (("model.routing=per_prediction_year", "data.year=2009"), False),
    ],
)
def test_an_operator_that_never_trained_is_told(
    root: Path, words: tuple[str, ...], warned: bool
) -> None:
    told = [f.line() for f in task_of(root, *words).check() if f.level == "warning"]
    assert any("2009 is predicted with the operator scharr" in line for line in told) == warned


def test_facts_and_digests_follow_the_data(root: Path, tmp_path: Path) -> None:
    write_published(tmp_path, change=9)
    before, facts, _ = built(task_of(root))
    after, changed, _ = built(task_of(tmp_path))
    assert changed == facts  # the predicted year teaches nothing
    assert after["train"].digest == before["train"].digest
    assert after["test"].digest != before["test"].digest
    assert {"01001", "17007"} <= facts["history"]["yields"].keys()
    assert facts["years"] == [2007, 2008, 2009, 2010, 2011]
    assert facts["year"] == 2012


def test_history_holds_what_selects_as_well(root: Path) -> None:
    task = task_of(root)
    splits, facts, _ = built(task)
    history = History.from_facts(facts["history"])
    rows = [s for n in ("train", "val") for s in splits[n].samples]
    assert sum(len(v) for v in history.yields.values()) == len(rows) == 40
    for sample in rows:
        assert history.yields[sample.fips][sample.year] == pytest.approx(sample.yield_value)


@pytest.mark.parametrize(
    ("words", "folds"),
    [
        ((), [{"data.year": str(y)} for y in (2009, 2010, 2011, 2012)]),
        (("data.first_year=2010",), [{"data.year": "2011"}, {"data.year": "2012"}]),
        (("data.cv_years=[2012,2008]",), [{"data.year": "2008"}, {"data.year": "2012"}]),
        (
            ("data.folds_by=steps",),
            [{"data.steps": str(t)} for t in (12, 16, 20, 24, 28, 32)],
        ),
        (
            ("data.folds_by=operator",),
            [{"model.operator": name} for name in ("sobel", "scharr", "learnable")],
        ),
        (("data.folds_by=crop",), [{}]),
    ],
)
def test_folds(root: Path, words: tuple[str, ...], folds: list[dict[str, str]]) -> None:
    assert task_of(root, *words).folds() == folds


def test_a_year_that_cannot_be_predicted_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"data.cv_years: 2007 cannot be predicted; .* 2008, 2009"):
        task_of(root, "data.cv_years=[2007]").folds()
    with pytest.raises(ConfigError, match="folds_by=steps: Sentinel-2"):
        task_of(root, "data.folds_by=steps", "data.sensor=sentinel2").folds()


def test_leaving_one_year_out_trains_on_later_years(root: Path) -> None:
    task = task_of(root, "data.protocol=leave_one_year_out", "data.year=2009")
    splits, facts, model = built(task)
    assert 2012 in facts["years"]
    assert 2009 not in facts["years"]
    record = records_of(task, model, splits["test"])[0]
    mine = [
        s.yield_value for n in ("train", "val") for s in splits[n].samples if s.fips == record.group
    ]
    assert float(record.values["baseline_county_mean"]) == pytest.approx(np.mean(mine))


# -- training -----------------------------------------------------------------------------------


def test_rate_falls_tenfold_at_the_steps(root: Path) -> None:
    task = task_of(root, "optim.decay_steps=[10,25]")
    _, _, model = built(task)
    factor = task.optimisers(model)["adam"].factor
    found = [factor(epoch, step, 5) for epoch, step in ((0, 0), (1, 4), (2, 0), (4, 4), (5, 0))]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(("sensor", "decay"), [("modis", 1.0), ("sentinel2", 1e-5)])
def test_weight_decay_is_the_sensors(root: Path, sensor: str, decay: float) -> None:
    task = task_of(root, f"data.sensor={sensor}", "optim.weight_decay=")
    groups = task.optimisers(torch.nn.Linear(2, 1))["adam"].optimiser.param_groups
    assert groups[0]["weight_decay"] == decay


def test_standardised_targets_scale_output_and_loss(root: Path) -> None:
    task = task_of(root, "optim.target=standardised")
    splits, facts, model = built(task)
    values = np.array([s.yield_value for s in splits["train"].samples])
    assert facts["target_mean"] == pytest.approx(values.mean())
    assert facts["target_deviation"] == pytest.approx(values.std())
    batch = batch_of(splits["train"])
    loss = task.loss(model, batch, torch.Generator())["loss"]
    away = model(batch["histogram"], batch["years"]) - batch["target"]
    assert loss.item() == pytest.approx((away / values.std()).square().mean().item(), rel=1e-5)
    loss.backward()
    assert model.cnn_share.grad is not None


def test_detrended_network_predicts_the_distance_to_the_past(root: Path) -> None:
    task = task_of(root, "optim.detrend=true", "optim.target=raw")
    splits, facts, model = built(task)
    batch = batch_of(splits["test"])
    with torch.no_grad():
        away = model(batch["histogram"], batch["years"])
        records = task.records(model, batch)
    history = History.from_facts(facts["history"])
    past = [history.predict(f, 2012)["county_mean"] for f in batch["fips"]]
    found = [float(r.values["prediction"]) for r in records]
    assert found == pytest.approx((away + torch.tensor(past)).tolist(), rel=1e-5)


def test_absolute_error_is_added(root: Path) -> None:
    plain, both = (task_of(root, f"optim.l1={word}") for word in ("false", "true"))
    splits, facts, model = built(plain)
    both.model(facts)
    batch, rng = batch_of(splits["train"]), torch.Generator()
    scale = facts["target_deviation"]
    away = (model(batch["histogram"], batch["years"]) - batch["target"]) / scale
    more = both.loss(model, batch, rng)["loss"] - plain.loss(model, batch, rng)["loss"]
    assert more.item() == pytest.approx(away.abs().mean().item(), rel=1e-4)


def test_weights_of_the_other_sensor_are_refused(root: Path) -> None:
    task = task_of(root)
    _, facts, _ = built(task)
    with pytest.raises(ConfigError, match="weights are of sensor 'sentinel2'"):
        task.model(facts | {"sensor": "sentinel2"})


# -- records ------------------------------------------------------------------------------------


def test_records_are_in_bushels_beside_their_baselines(root: Path) -> None:
    task = task_of(root)
    splits, facts, model = built(task)
    records = records_of(task, model, splits["test"])
    history = History.from_facts(facts["history"])
    assert [r.id for r in records] == splits["test"].ids
    for record, sample in zip(records, splits["test"].samples, strict=True):
        assert record.group == sample.fips
        assert float(record.values["truth"]) == pytest.approx(sample.yield_value)
        for name, value in history.predict(sample.fips, 2012).items():
            assert float(record.values[f"baseline_{name}"]) == pytest.approx(value)
        assert str(record.values["operator"]) == "learnable"  # of 2012, as released
        assert record.values["attention"].shape == (9,)
        assert "baseline_ridge" in record.values
        assert not any(k.startswith("season_") for k in record.values)
    scores = task.score(records, facts)
    errors = [float(r.values["prediction"] - r.values["truth"]) for r in records]
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert scores["bias"] == pytest.approx(np.mean(errors))
    low, high = task.intervals(records, facts)["rmse"]
    assert low < scores["rmse"] < high


def test_season_is_cut_by_the_mean_season(root: Path) -> None:
    task = task_of(root, "predict.in_season=true")
    splits, facts, model = built(task)
    record = records_of(task, model, splits["test"])[0]
    assert outputs.season_steps([record]) == [12, 16, 20, 24, 28]
    item = splits["test"].images[0].copy()
    item[:, 12:] = splits["train"].images.mean(0)[:, 12:]
    with torch.no_grad():
        wanted = model(torch.from_numpy(item)[None], torch.tensor([2012]))
    assert float(record.values["season_12"]) == pytest.approx(float(wanted), rel=1e-4)
    assert "season_16_rmse" in task.score([record], facts)


def test_a_shorter_season_trains_and_exports(root: Path) -> None:
    task = task_of(root, "data.steps=12", "predict.in_season=true")
    splits, facts, model = built(task)
    assert np.array(facts["season_mean"]).shape == (9, 12, 32)
    records = records_of(task, model, splits["test"])
    assert outputs.season_steps(records) == []
    export = task.export(model, facts)
    assert model(*export.inputs.values()).shape == (3,)


def test_pictures_become_yields() -> None:
    task = task_of(Path(), "data.sensor=sentinel2", "data.image_size=32", "data.crop=cotton")
    history = History.of([("01001", 2020, 800.0), ("01001", 2021, 900.0)])
    facts = {"crop": "cotton", "history": history.facts(), "yield_mean": 850.0, "ridge": None}
    facts |= {"target_mean": [12.0, 6.7], "target_deviation": [1.0, 0.2]}
    torch.manual_seed(0)
    model = task.model(facts).eval()
    batch = {
        "pictures": torch.randn(5, 3, 32, 32),
        "cu_pictures": torch.tensor([0, 2, 5]),
        "years": torch.tensor([2022, 2022]),
        "target": torch.tensor([[12.1, np.log(900.0)], [np.nan, np.nan]]),
        "id": ["cotton/2022/01001", "cotton/2022/01003"],
        "fips": ["01001", "01003"],
        "lon": [-87.0, np.nan],
        "lat": [32.0, np.nan],
        "production": [np.exp(12.1), np.nan],
        "yield_value": [900.0, np.nan],
    }
    with torch.no_grad():
        logs = model(batch["pictures"], batch["cu_pictures"])
        first, second = task.records(model, batch)
    assert float(first.values["prediction"]) == pytest.approx(float(logs[0, 1].exp()), rel=1e-5)
    assert float(first.values["truth"]) == 900
    assert float(first.values["baseline_last_value"]) == 900
    assert str(first.values["operator"]) == "scharr"
    assert first.values["attention"].shape == (3,)
    assert "truth" not in second.values
    scores = task.score([first, second], facts)
    assert scores["rmse_t_ha"] == pytest.approx(scores["rmse"] * 1.121e-3)
    assert scores["log_pooled_rmse"] > 0
    row = task.rows([first], facts)[0]
    assert "predicted_lb_acre" in row
    assert row["production_unit"] == "480-lb bales"
    assert "bu_acre" not in " ".join(row)
    with pytest.raises(DataError, match="no county has a known yield"):
        task.score([second], facts)


# -- tables, rows, words ------------------------------------------------------------------------


def record(crop: str, truth: float, guess: float, mean: float, fips: str = "17001") -> Record:
    values = {
        "crop": crop,
        "truth": truth,
        "prediction": guess,
        "baseline_county_mean": mean,
        "year": 2012,
        "fips": fips,
        "state": fips[:2],
    }
    return Record(f"{crop}/2012/{fips}", fips, {k: np.array(v) for k, v in values.items()})


def test_a_model_that_does_not_win_is_told() -> None:
    worse = [record("soybean", 40, 45, 41), record("soybean", 50, 42, 49, "17003")]
    better = [record("soybean", 40, 40.5, 44), record("soybean", 50, 50.5, 44, "17003")]
    assert "does NOT beat" in outputs.verdict(worse)
    assert "the model beats the best baseline, county's mean: RMSE 0.50" in outputs.verdict(better)
    title, rows = next(iter(outputs.all_tables(worse)))
    assert "does NOT beat" in title
    assert [r["prediction"] for r in rows] == ["model", "county's mean"]
    assert "nothing to compare" in outputs.verdict([record("soybean", 40, 41, np.nan)])


def test_crops_pooled_are_scored_in_tonnes() -> None:
    mixed = [record("soybean", 40, 50, 45), record("cotton", 900, 800, 850, "01001")]
    scores = outputs.Arrays(mixed).scores()
    errors = np.array([10 * 0.06725, -100 * 0.001121])
    assert scores["rmse_t_ha"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert scores["bias_t_ha"] == pytest.approx(errors.mean())
    assert "rmse" not in scores
    tables = dict(outputs.all_tables(mixed))
    assert [row["unit"] for row in tables["By crop"]] == ["lb/acre", "bu/acre"]
    assert "t/ha" in next(t for t in tables if t.startswith("By state"))


def test_predictions_go_to_geojson_once(root: Path, tmp_path: Path) -> None:
    task = task_of(root)
    _, facts, model = built(task)
    split = task.inputs([root], facts)
    records = records_of(task, model, split)
    assert not any("truth" in r.values for r in records)
    assert list(task.finish(records, facts, tmp_path)) == [tmp_path / "predictions.geojson"]
    told = task.remarks(records, facts)
    body = json.loads((tmp_path / "predictions.geojson").read_text())
    assert len(body["features"]) == len(records) == 8
    assert body["features"][0]["properties"]["fips"] == "01001"
    assert body["features"][0]["geometry"]["type"] == "Point"
    assert "8 counties, 0 with an outline" in told[0]
    off = task_of(root, "predict.geojson=false")
    off.model(facts)
    assert off.finish(records, facts, tmp_path / "off") == ()
    assert off.remarks(records, facts) == []


def test_rows_tell_units_and_keep_zeros(root: Path) -> None:
    task = task_of(root)
    splits, facts, model = built(task)
    row = task.rows(records_of(task, model, splits["test"]), facts)[0]
    assert row["fips"] == "01001"
    assert row["predicted_t_ha"] == pytest.approx(row["predicted_bu_acre"] * 0.06725)
    assert row["error_bu_acre"] == pytest.approx(row["predicted_bu_acre"] - row["observed_bu_acre"])
    assert list(row)[:4] == ["id", "crop", "year", "fips"]


def test_pictures_of_a_split_are_drawn(root: Path) -> None:
    task = task_of(root, "predict.in_season=true")
    splits, facts, model = built(task)
    found = dict(task.figures(records_of(task, model, splits["test"]), facts))
    assert {"predicted_observed", "error_map", "operators", "in_season"} <= set(found)
