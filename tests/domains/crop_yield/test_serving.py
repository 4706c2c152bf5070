"""What is served of a yield model: the records' yields, from histograms or pictures as stored."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.domains.crop_yield.sentinel_writers import h5_path, write_h5
from tests.domains.crop_yield.test_task import TINY, write_published
from zoo.config import resolve
from zoo.data import item_rng
from zoo.domains.remote_sensing.crop_yield.baselines import History
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.serving import CountyMeans
from zoo.domains.remote_sensing.crop_yield.store import find_store, open_store
from zoo.domains.remote_sensing.crop_yield.task import CropYield
from zoo.exporting import compared, prepared, traced

ALL_YEARS = [*range(2003, 2017), 2024]
SENTINEL = ("data.sensor=sentinel2", "data.image_size=32", "model.patch=8", "model.heads=2")


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


def built(task: CropYield) -> tuple[Any, dict[str, Any], Any, Any]:
    splits: Any = task.splits()
    facts = json.loads(json.dumps(task.fit(splits["train"]), allow_nan=False))
    torch.manual_seed(0)
    model = task.model(facts)
    return splits, facts, model, prepared(task, model, facts)


@torch.no_grad()
def predictions(task: CropYield, model: Any, split: Any) -> np.ndarray:
    """(N,) of the records of a split, one by one."""
    batches = [split.collate([split.item(i, item_rng(1, 0, i))]) for i in range(len(split.ids))]
    return np.array([float(task.records(model, b)[0].values["prediction"]) for b in batches])


@torch.no_grad()
def run(export: Any, **inputs: Tensor) -> Any:
    return export.module(*(inputs[name] for name in export.inputs))


# -- MODIS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("model.routing=per_sample", "data.steps=12"),
        ("model.routing=per_sample", "optim.detrend=true", "optim.target=standardised"),
        ("model.routing=per_prediction_year",),
        ("optim.detrend=true", "data.protocol=leave_one_year_out", "data.year=2010"),
    ],
)
def test_stored_histograms_give_the_records_yields(root: Path, words: tuple[str, ...]) -> None:
    task = task_of(root, *words)
    splits, _, model, export = built(task)
    place = find_store(root)
    assert place is not None
    store = open_store(place)
    for name in ("train", "test"):
        samples = splits[name].samples
        keys = [(s.year, s.fips) for s in samples]
        rows = store.table.set_index(["year", "fips"], drop=False).loc[keys]
        found = run(
            export,
            histogram=torch.from_numpy(store.read(rows)),
            year=torch.tensor([s.year for s in samples]),
            fips=torch.tensor([int(s.fips) for s in samples]),
        )
        np.testing.assert_allclose(found, predictions(task, model, splits[name]), rtol=1e-6)
    assert list(export.inputs) == ["histogram", "year", "fips"][: 2 + task.config.optim.detrend]
    assert export.about["yield"] == "(B,) bu/acre of soybean"


@pytest.mark.parametrize(
    ("routing", "unknown"), [("per_sample", "nearest"), ("per_prediction_year", "sobel")]
)
def test_the_traced_model_knows_every_year(root: Path, routing: str, unknown: str) -> None:
    task = task_of(root, f"model.routing={routing}", f"model.unknown_year={unknown}")
    _, _, model, export = built(task)
    program = traced(export).module()
    drawn = torch.rand(len(ALL_YEARS), 9, 32, 32, generator=torch.Generator().manual_seed(1))
    histogram = drawn / drawn.sum(-1, keepdim=True)
    year = torch.tensor(ALL_YEARS)
    with torch.no_grad():
        wanted = model(histogram, year)  # routed as in a prediction, each year by its operator
        torch.testing.assert_close(program(histogram, year)[0], wanted, rtol=1e-6, atol=0)
        assert compared(export, lambda i: program(*i.values()), 1e-5, "the graph") < 1e-5
    told = "it chooses the edge operator" in export.about["year"]
    assert told == (routing == "per_sample")
    alone = model(histogram[:1].expand(2, -1, -1, -1), torch.tensor([2009, 2012]))
    assert bool(alone[0] == alone[1]) == (routing == "per_prediction_year")


def test_what_is_no_histogram_gives_no_number(root: Path) -> None:
    _, _, _, export = built(task_of(root))
    histogram = export.inputs["histogram"][:1].repeat(6, 1, 1, 1)
    histogram[1] *= 100  # percent
    histogram[2, 0, 0, 0] = float("nan")
    histogram[3] -= histogram[3].mean()  # the mean taken off already
    year = torch.tensor([2010, 2010, 2010, 2010, 10, 2010])
    refused = [False, True, True, True, True, False]
    assert run(export, histogram=histogram, year=year).isnan().tolist() == refused


@pytest.mark.parametrize("protocol", ["past", "leave_one_year_out"])
def test_a_countys_past_is_the_historys(protocol: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f, y, float(rng.uniform(20, 60))) for f in ("01001", "17003") for y in range(2008, 2012)
    ]
    history = History.of(rows[:-2], protocol)
    means = CountyMeans(history, 33.0)
    asked = [(f, y) for f in ("01001", "17003", "55001") for y in (2007, 2008, 2009, 2012)]
    found = means(torch.tensor([int(f) for f, _ in asked]), torch.tensor([y for _, y in asked]))
    wanted = np.array([history.predict(f, y)["county_mean"] for f, y in asked])
    np.testing.assert_allclose(found, np.where(np.isfinite(wanted), wanted, 33.0), rtol=1e-6)


# -- Sentinel-2 ---------------------------------------------------------------------------------


def sentinel(tmp_path: Path, side: tuple[int, int], *words: str) -> tuple[Any, Any, Any, Any]:
    """Two counties of 2 and 5 pictures a date: task, split, model, export."""
    for fips, grids in (("01001", 2), ("17001", 5)):
        write_h5(h5_path(tmp_path, fips, 2022, 4), fips, 2022, 4, grids=grids, side=side)
    task = task_of(tmp_path, *SENTINEL, *words)
    history = History.of([("01001", 2020, 42.0), ("01001", 2021, 47.0), ("19001", 2021, 60.0)])
    facts: dict[str, Any] = {"sensor": "sentinel2", "crop": "soybean", "history": history.facts()}
    facts |= {"yield_mean": 50.0, "ridge": None, "years": [2020, 2021], "image_size": 32}
    facts |= {"mean": [0.466, 0.471, 0.380], "deviation": [0.195, 0.194, 0.192]}
    facts |= {"target_mean": [12.0, 3.7], "target_deviation": [1.0, 0.2]}
    facts["input_scaling"] = task.config.data.input_scaling
    torch.manual_seed(0)
    model = task.model(facts)
    return task, task.inputs([tmp_path], facts), model, prepared(task, model, facts)


@pytest.mark.parametrize(
    ("side", "words"),
    [
        ((40, 43), ()),
        ((21, 37), ("data.input_scaling=official",)),
        ((32, 32), ("optim.detrend=true",)),
    ],
)
def test_a_countys_pictures_give_the_records_yield(
    tmp_path: Path, side: tuple[int, int], words: tuple[str, ...]
) -> None:
    task, split, model, export = sentinel(tmp_path, side, *words)
    wanted = predictions(task, model, split)
    assert {int(s.pictures.grids) for s in split.samples} == {2, 5}
    for sample, value in zip(split.samples, wanted, strict=True):
        stored = [read_whole(shot) for shot in sample.pictures.shots]
        pictures = torch.from_numpy(np.concatenate(stored)).permute(0, 3, 1, 2).float() / 255
        found, production = run(
            export,
            pictures=pictures,
            year=torch.tensor([sample.year]),
            fips=torch.tensor([int(sample.fips)]),
        )
        assert found.shape == production.shape == (1,)
        assert float(found) == pytest.approx(value, rel=1e-6)
        assert float(production) > 0


def read_whole(shot: Any) -> np.ndarray:
    with h5py.File(shot.file) as file:
        return np.asarray(file[shot.group][shot.date]["data"])


@pytest.mark.parametrize("words", [(), ("optim.detrend=true",)])
def test_the_traced_model_takes_any_number_of_pictures(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    _, _, _, export = sentinel(tmp_path, (32, 32), *words)
    program = traced(export).module()
    assert {1} < {len(o["pictures"]) for o in export.others}
    with torch.no_grad():
        assert compared(export, lambda i: program(*i.values()), 1e-6, "the graph") < 1e-6
    assert set(export.about) == {*export.inputs, *export.outputs}


def test_pictures_of_8_bits_give_no_number(tmp_path: Path) -> None:
    _, _, _, export = sentinel(tmp_path, (32, 32))
    pictures = export.inputs["pictures"]
    assert all(made.isfinite().all() for made in run(export, pictures=pictures))
    assert all(made.isnan().all() for made in run(export, pictures=pictures * 255))
