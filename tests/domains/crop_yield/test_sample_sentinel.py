"""The synthetic CropNet tree: real names and traps, small, the same each time, learnable."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from zoo.domains.remote_sensing.crop_yield import sentinel_data
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.sample_sentinel import CROPS, counties, write_sentinel
from zoo.domains.remote_sensing.crop_yield.sentinel_data import SentinelSplit

from .sentinel_writers import configure


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_sentinel(root)
    return root


def settings(root: Path, crop: str = "soybean", **data: object) -> Config:
    return configure(root, crop=crop, image_size=64, val_fraction=0.1, **data)


def test_the_sample_is_sound_and_small(sample: Path) -> None:
    size = sum(p.stat().st_size for p in sample.rglob("*") if p.is_file())
    assert 1e6 < size <= 20e6
    for crop in CROPS:
        found = sentinel_data.check_sentinel(settings(sample, crop))
        assert [f.line() for f in found if f.level == "error"] == []
        worse = [f.line() for f in found if f.level == "warning"]
        assert worse == []
        splits = sentinel_data.open_sentinel(settings(sample, crop))
        assert {k: len(v) for k, v in splits.items()} == {"train": 54, "val": 6, "test": 20}
        assert {s.year for s in splits["test"].samples} == {2022}
        assert {s.fips[:2] for s in splits["test"].samples} == {"01", "17"}
        assert len({s.pictures.count for s in splits["train"].samples}) > 2


def test_the_sample_has_the_traps_of_real_trees(sample: Path) -> None:
    index = (sample / "json" / "winterwheat" / "winterwheat_train.json").read_text()
    assert "USDA/data/Winterwheat/" in index
    assert (sample / "USDA" / "data" / "WinterWheat").is_dir()
    assert '"FIPS": "1001"' in index
    assert "Agriculture_10_AL_" in index
    path = next((sample / "Sentinel-2 Imagery").rglob("Agriculture_01_AL_2019-04*.h5"))
    with h5py.File(path) as file:
        node = file["01001/2019-05-15"]
        assert node["data"].dtype == np.uint8
        assert node["data"].shape[0] == len(node["coordinates"])
        assert node["state"][0] == b"AL"
        (south, west), (north, east) = node["coordinates"][0]
        assert south < north
        assert west < east < 0


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defective")
    write_sentinel(root, defects=True)
    return root


def test_the_sample_is_the_same_each_time(sample: Path, defective: Path) -> None:
    """Another writing of it has the same bytes, but for the files with defects."""
    digests = [
        {
            str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in root.rglob("*")
            if p.is_file()
        }
        for root in (sample, defective)
    ]
    assert digests[0].keys() == digests[1].keys()
    assert {Path(name).name for name in digests[0] if digests[0][name] != digests[1][name]} == {
        "USDA_Soybean_County_2020.csv",
        "Agriculture_17_IL_2021-07-01_2021-09-30.h5",
        "Agriculture_01_AL_2019-04-01_2019-06-30.h5",
    }
    assert counties(1) != counties(0)


def means(split: SentinelSplit) -> tuple[np.ndarray, np.ndarray]:
    items = [split.item(i, np.random.default_rng(0)) for i in range(len(split))]
    seen = [item["pictures"].numpy() for item in items]
    features = [np.r_[p.mean((0, 2, 3)), p.std((2, 3)).mean(0)] for p in seen]
    return np.array(features), np.array([[i["log_production"], i["yield_value"]] for i in items])


@pytest.mark.parametrize("crop", CROPS)
def test_yields_depend_on_the_pictures(sample: Path, crop: str) -> None:
    """A linear model of six numbers does far better than the county's own past."""
    splits = sentinel_data.open_sentinel(settings(sample, crop, augment=False))
    x, y = means(splits["train"])
    new_x, new_y = means(splits["test"])
    model = make_pipeline(StandardScaler(), Ridge(1.0)).fit(x, y)
    wrong = ((model.predict(new_x) - new_y) ** 2).sum(0)
    r2 = 1 - wrong / ((new_y - new_y.mean(0)) ** 2).sum(0)
    assert r2[1] > 0.75
    assert r2[0] > 0.6
    past: dict[str, list[float]] = {}
    for s in splits["train"].samples:
        past.setdefault(s.fips, []).append(s.yield_value)
    county = [np.mean(past.get(s.fips, [y[:, 1].mean()])) for s in splits["test"].samples]
    assert wrong[1] < 0.25 * ((np.array(county) - new_y[:, 1]) ** 2).sum()


def test_defects_are_found(defective: Path) -> None:
    config = settings(defective)
    found = sentinel_data.check_sentinel(config, deep=False)
    told = {level: [f.line() for f in found if f.level == level] for level in ("error", "warning")}
    assert any("2021-08-01" in t and "same grid cells" in t for t in told["error"])
    assert any("cannot be read as HDF5" in t for t in told["error"])
    assert any("1 county-years have pictures but no row" in t for t in told["warning"])
    assert any("2 county-years have a soybean yield that is" in t for t in told["warning"])
    assert any("1 further rows of a county passed over" in f.line() for f in found)
    skipping = settings(defective, on_error="skip")
    train = sentinel_data.open_sentinel(skipping)["train"]
    assert len(train) < 54
    values = {s.id: s.yield_value for s in train.samples}
    assert values.get("soybean/2020/01007", 50.0) > 10  # not the forecast's 1
