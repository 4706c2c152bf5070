"""Splits by year from prepared and published histograms: leakage, units, damage, prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.domains.crop_yield.writers import (
    IMAGE,
    settings,
    write_csv,
    write_exports,
    write_flat,
    write_store,
)
from zoo.data import leakage
from zoo.domains.remote_sensing.crop_yield.config import CropData
from zoo.domains.remote_sensing.crop_yield.histograms import band_means
from zoo.domains.remote_sensing.crop_yield.joint import write_published
from zoo.domains.remote_sensing.crop_yield.modis_data import (
    check_modis,
    modis_facts,
    modis_inputs,
    open_modis,
    refuse_future,
    survey_modis,
)
from zoo.domains.remote_sensing.crop_yield.prepare import Preparation
from zoo.domains.remote_sensing.crop_yield.store import open_store
from zoo.errors import DataError

VALUES = {
    (year, f"170{c:02d}"): 40.0 + c + (year - 2008) for year in range(2008, 2013) for c in (1, 3, 5)
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", VALUES)


def years_of(split: Any) -> list[int]:
    return sorted({sample.year for sample in split.samples})


def published(path: Path, count: int = 70, **other: Any) -> np.ndarray:
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 5, (count, 9, 32, 32))
    images = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    arrays = {
        "output_yield": 40.0 + np.arange(count) % 7,
        "output_year": np.repeat([2010.0, 2011.0], count // 2),
        "output_locations": np.tile([-89.5, 40.25], (count, 1)),
        "output_index": np.stack(
            [np.full(count, 17.0), np.tile(np.arange(count // 2), 2) * 2 + 1], 1
        ),
    } | other
    path.parent.mkdir(parents=True, exist_ok=True)
    write_published(path, count, iter(images), arrays)
    return np.asarray(images)


def test_past_years_train_and_the_last_is_predicted(store: Path) -> None:
    splits = open_modis(settings(store, val_fraction=0.25))
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "val": 3, "test": 3}
    assert years_of(splits["test"]) == [2012]
    assert max(years_of(splits["train"]) + years_of(splits["val"])) == 2011
    assert not leakage(splits)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "is empty"),
        (b"\x89HDF\r\n\x1a\n", None),
        (b"\x01\x02\x03", "is no text"),
        (b"PK\x03\x04", "is no text"),
    ],
)
def test_county_tables_that_are_no_text_are_told(
    store: Path, body: bytes, told: str | None
) -> None:
    (store / "counties.csv").write_bytes(body)
    if told is None:  # could be text: told, but no reason to stop
        open_modis(settings(store))
        lines = [f.line() for f in check_modis(settings(store)) if f.level == "warning"]
        assert any("counties.csv: no table of counties" in line for line in lines)
        return
    with pytest.raises(DataError, match=rf"counties\.csv: {told}"):
        open_modis(settings(store))


def test_years_before_the_predicted_one_alone(store: Path) -> None:
    splits = open_modis(settings(store, year=2010, val_fraction=0))
    assert years_of(splits["train"]) == [2008, 2009]
    assert years_of(splits["test"]) == [2010]
    assert "val" not in splits
    later = open_modis(settings(store, year=2011, first_year=2010, val_fraction=0))
    assert years_of(later["train"]) == [2010]
    every = open_modis(settings(store, year=2010, protocol="leave_one_year_out", val_fraction=0))
    assert years_of(every["train"]) == [2008, 2009, 2011, 2012]


def test_future_years_are_refused(store: Path) -> None:
    splits = open_modis(settings(store, year=2010, val_fraction=0))
    later = open_modis(settings(store, year=2012, val_fraction=0))
    mixed = {"train": later["train"], "test": splits["test"]}
    with pytest.raises(DataError, match="nothing of that year or later may train") as caught:
        refuse_future(mixed)
    assert str(caught.value).startswith(f"{store}: ")
    with pytest.raises(DataError, match="'val' holds county 17001 of 2010"):
        refuse_future({"val": splits["test"], "test": splits["test"]}, "leave_one_year_out")
    refuse_future(splits)
    every = open_modis(settings(store, year=2010, protocol="leave_one_year_out"))
    refuse_future(every, "leave_one_year_out")


def test_what_is_held_out_follows_its_seed(store: Path) -> None:
    def held(seed: int) -> list[str]:
        return list(open_modis(settings(store, split_seed=seed, val_fraction=0.3))["val"].ids)

    assert held(0) == held(0)
    assert len({tuple(held(seed)) for seed in range(4)}) > 1


def test_items_have_what_was_agreed(store: Path) -> None:
    split = open_modis(settings(store, steps=20))["test"]
    item = split.item(0, np.random.default_rng(0))
    assert item["histogram"].shape == (9, 20, 32)
    assert str(item["histogram"].dtype) == "torch.float32"
    told = {k: item[k] for k in ("id", "fips", "state", "year", "yield_bu_acre", "lon", "lat")}
    assert told == {
        "id": "soybean/2012/17001",
        "fips": "17001",
        "state": "17",
        "year": 2012,
        "yield_bu_acre": 45.0,
        "lon": -89.0,
        "lat": 40.0,
    }
    batch = split.collate([split.item(i, np.random.default_rng(0)) for i in range(3)])
    assert batch["histogram"].shape == (3, 9, 20, 32)
    assert batch["years"].tolist() == [2012] * 3
    assert batch["target"].tolist() == [45.0, 47.0, 49.0]
    assert batch["fips"] == ["17001", "17003", "17005"]


def test_the_mean_is_of_all_past_rows_and_the_whole_season(store: Path) -> None:
    splits = open_modis(settings(store, steps=12, val_fraction=0.25))
    both = np.concatenate([splits["train"].images, splits["val"].images])
    facts = modis_facts(splits["train"])
    np.testing.assert_allclose(facts["band_mean"], band_means(both), rtol=1e-6)
    assert facts["steps"] == 12
    assert facts["years"] == years_of(splits["train"])


def test_the_digest_sees_histograms_and_yields(store: Path, tmp_path: Path) -> None:
    one = open_modis(settings(store))["test"].digest
    assert one == open_modis(settings(store))["test"].digest
    other = write_store(tmp_path / "other", VALUES, seed=1)
    assert one != open_modis(settings(other))["test"].digest
    changed = write_store(tmp_path / "changed", VALUES | {(2012, "17001"): 46.0})
    assert one != open_modis(settings(changed))["test"].digest


def test_the_published_file_is_read_piece_by_piece(tmp_path: Path) -> None:
    images = published(tmp_path / "data" / "histogram_all_full.npz")
    for root in (tmp_path / "data", tmp_path / "data" / "histogram_all_full.npz"):
        splits = open_modis(settings(root, val_fraction=0))
        np.testing.assert_array_equal(splits["train"].images, images[:35].astype(np.float32))
        np.testing.assert_array_equal(splits["test"].images, images[35:].astype(np.float32))
        assert splits["test"].ids[1] == "soybean/2011/17003"
        assert splits["test"].samples[1].yield_bu_acre == 41.0
        assert (splits["test"].samples[1].lon, splits["test"].samples[1].lat) == (-89.5, 40.25)


def test_placeholders_of_the_published_file_are_left_out(tmp_path: Path) -> None:
    value = np.full(70, 40.0)
    value[[0, 69]] = 0
    published(tmp_path / "histogram_all_full.npz", output_yield=value)
    findings = check_modis(settings(tmp_path))
    assert any("2 county-years have a yield of zero or less" in f.what for f in findings)
    assert len(open_modis(settings(tmp_path))["test"]) == 34
    with pytest.raises(DataError, match="published yields are of soybean"):
        open_modis(settings(tmp_path, crop="corn"))


def test_another_crop_takes_its_own_yields(store: Path) -> None:
    rows = "\n".join(f"{y},{f[:2]},{f[2:]},{v * 3}" for (y, f), v in VALUES.items())
    write_csv(store / "corn.csv", "Year,State ANSI,County ANSI,Value\n" + rows)
    test = open_modis(settings(store, crop="corn"))["test"]
    assert test.ids[0] == "corn/2012/17001"
    assert test.samples[0].yield_bu_acre == 135.0
    with pytest.raises(DataError, match="is no corn yield in bu/acre"):
        open_modis(settings(store, crop="corn", yields="yields.csv"))


def test_missing_partners_are_counted(tmp_path: Path) -> None:
    root = write_store(tmp_path, VALUES)
    lines = (root / "yields.csv").read_text().splitlines()
    write_csv(root / "yields.csv", "\n".join([*lines[:-1], "2012,17,99,41"]))
    told = [f.line() for f in check_modis(settings(root))]
    assert any("1 county-years have a yield and no histogram: 17099/2012" in t for t in told)
    assert any(
        t.endswith("test: 2 county-years of 2 counties, 2012 to 2012, yield 46.0 ± 1.0 bu/acre")
        for t in told
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"year": 2020}, r"data\.year=2020: no county has histogram and yield"),
        ({"year": 2008}, "nothing trains: no year before 2008"),
        ({"first_year": 2012}, "nothing trains: no year before 2012 and from 2012 on"),
        ({"states": ["18"]}, "no yield in state 18"),
        ({"val_fraction": 0.01}, "cannot hold out 0.01"),
    ],
)
def test_impossible_wishes_are_one_line(store: Path, data: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as told:
        open_modis(settings(store, **data))
    assert "\n" not in str(told.value)
    finding = check_modis(settings(store, **data))[0]
    assert finding.level == "error"
    assert finding.what == str(told.value)


def test_exports_that_are_not_prepared_are_told(small_exports: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"zoo data prepare task=crop_yield data\.root="):
        survey_modis(settings(small_exports))
    with pytest.raises(DataError, match="neither prepared histograms"):
        survey_modis(settings(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        survey_modis(settings(tmp_path / "none"))


def test_damaged_stores_are_one_line(store: Path, tmp_path: Path) -> None:
    broken = store / "histograms" / "2012.npz"
    whole = broken.read_bytes()
    for body, words in ((whole[:1000], r"2012\.npz"), (b"", r"2012\.npz"), (b"PK", r"2012\.npz")):
        broken.write_bytes(body)
        with pytest.raises(DataError, match=words) as told:
            open_modis(settings(store))
        assert "\n" not in str(told.value)
    broken.write_bytes(whole)
    with np.load(broken) as archive:
        arrays = {k: archive[k] for k in archive.files}
    np.savez(broken, **(arrays | {"histogram": arrays["histogram"] * 30}))
    with pytest.raises(DataError, match="no proportions from 0 to 1"):
        open_modis(settings(store))
    np.savez(broken, **(arrays | {"fips": np.array(["17001"] * 3)}))
    with pytest.raises(DataError, match="county 17001 stands twice in 2012"):
        open_store(store)
    np.savez(broken, histogram=arrays["histogram"])
    with pytest.raises(DataError, match="no member fips"):
        open_store(store)
    objects = tmp_path / "objects" / "histogram_all_full.npz"
    objects.parent.mkdir()
    published(objects, output_index=np.zeros((70, 3)))
    with pytest.raises(DataError, match=r"output_index is \(70, 3\), expected \(70, 2\)"):
        open_store(objects)
    for shaped in (np.float64(2010), np.full((1, 70), 2010.0), np.full(69, 2010.0)):
        published(objects, output_year=shaped)
        with pytest.raises(DataError, match=r"output_year is \(.*\), expected \(70,\)"):
            open_modis(settings(objects))
    objects.write_bytes(objects.read_bytes()[:5000])
    with pytest.raises(DataError, match="is no npz file"):
        open_store(objects)


def test_prediction_takes_exports_and_histograms_alike(small_exports: Path, tmp_path: Path) -> None:
    Preparation(tmp_path, CropData(), small_exports).run()
    facts = {"crop": "soybean", "steps": 32}
    raw = modis_inputs([small_exports], facts, settings(None))
    made = modis_inputs([tmp_path], facts, settings(None))
    assert list(raw.ids) == list(made.ids) == [f"soybean/2004/1700{c}" for c in (1, 3, 5)]
    np.testing.assert_array_equal(raw.images, made.images)
    assert np.isnan(raw.item(0, np.random.default_rng(0))["yield_bu_acre"])
    assert raw.outlines.keys() == {"17001", "17003", "17005"}
    before = modis_inputs([small_exports], facts, settings(None, year=2003))
    assert before.samples[0].year == 2003
    with pytest.raises(DataError, match="holds no season of 1999"):
        modis_inputs([small_exports], facts, settings(None, year=1999))
    with pytest.raises(DataError, match="neither exports"):
        modis_inputs([tmp_path / "histograms"], facts, settings(None))


def test_prediction_skips_what_is_broken_if_asked_to(tmp_path: Path) -> None:
    write_exports(tmp_path, count=1)
    write_flat(tmp_path, "17_9", cover=5)
    facts = {"crop": "soybean", "steps": 24}
    with pytest.raises(DataError, match="county 17009 has no pixel of land-cover class 12"):
        modis_inputs([tmp_path], facts, settings(None))
    split = modis_inputs([tmp_path], facts, settings(None, on_error="skip"))
    assert list(split.ids) == ["soybean/2004/17001"]
    assert split.notes[0].startswith("skipped ")
    assert split.item(0, np.random.default_rng(0))["histogram"].shape == (9, 24, 32)
    assert (tmp_path / IMAGE / "17_9.tif").is_file()
