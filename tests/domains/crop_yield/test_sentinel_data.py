"""Views of pictures, and splits of the Sentinel-2 world."""

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from zoo.data import item_rng, leakage, order_rng
from zoo.domains.remote_sensing.crop_yield import imagery, sentinel_data
from zoo.domains.remote_sensing.crop_yield.sentinel_data import SentinelSplit
from zoo.domains.remote_sensing.crop_yield.sentinel_survey import survey_sentinel
from zoo.domains.remote_sensing.crop_yield.views import (
    DEVIATION,
    MEAN,
    View,
    centre_view,
    random_view,
)
from zoo.errors import DataError
from zoo.loader import Feed
from zoo.task import Split

from .sentinel_writers import (
    FIPS,
    YEARS,
    configure,
    csv_path,
    h5_path,
    pixels,
    record,
    row,
    write_csv,
    write_h5,
    write_index,
    write_tree,
)

RNG = item_rng(0, 0, 0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three counties and years, without an index; read only."""
    return write_tree(tmp_path_factory.mktemp("tree"))


def open_(root: Path, **settings: Any) -> dict[str, SentinelSplit]:
    return sentinel_data.open_sentinel(configure(root, **settings))


def lines(root: Path, level: str, deep: bool = True, **settings: Any) -> list[str]:
    found = sentinel_data.check_sentinel(configure(root, **settings), deep=deep)
    return [f.line() for f in found if f.level == level]


def normalised(raw: np.ndarray, scale: float = 255.0) -> Tensor:
    plain = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / scale
    return (plain - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


# -- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 70), (40, 40), (33, 90), (37, 64), (64, 51)])
def test_the_centre_crop_is_torchvisions(size: tuple[int, int]) -> None:
    raw = pixels("17001", "2021-04-01", 2, size)
    view = centre_view(*size, 64)
    top, left, height, width = view.window
    got = view(raw[:, top : top + height, left : left + width])
    whole = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    expected = v2.Compose([v2.CenterCrop(64), v2.Normalize(MEAN, DEVIATION)])(whole)
    assert got.shape == (2, 3, 64, 64)
    torch.testing.assert_close(got, expected)


def test_official_scaling_leaves_pictures_at_255() -> None:
    raw = pixels("17001", "2021-04-01", 2, 32)
    got = centre_view(32, 32, 32)(raw, "official")
    torch.testing.assert_close(got, normalised(raw, scale=1.0))
    assert got.abs().max() > 1000  # the quirk


def test_one_drawing_holds_for_all_pictures() -> None:
    one = pixels("17001", "2021-04-01", 1, 48)
    view = random_view(48, 48, 32, np.random.default_rng(3))
    top, left, height, width = view.window
    cut = one[:, top : top + height, left : left + width]
    together = view(np.concatenate([cut, 255 - cut, cut]))
    assert torch.equal(together[0], together[2])
    torch.testing.assert_close(together[:1], view(cut))
    assert not torch.equal(together[0], together[1])


def test_drawings_are_those_of_the_published_pipeline() -> None:
    rng = np.random.default_rng(0)
    views = [random_view(100, 80, 32, rng) for _ in range(2000)]
    for view in views:
        top, left, height, width = view.window
        assert 0 <= top <= 100 - height
        assert 0 <= left <= 80 - width
        assert 0.6 < width / height < 1.7
        assert 0.1 <= (view.sigma or 0) <= 2
        for which, amount in view.jitter:
            assert -0.2 <= amount <= 0.2 if which == 3 else 0.2 <= amount <= 1.8
    areas = np.array([v.window[2] * v.window[3] / 8000 for v in views])
    assert areas.min() < 0.1
    assert areas.max() > 0.9
    assert np.mean([v.flip for v in views]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([bool(v.jitter) for v in views]) == pytest.approx(0.8, abs=0.04)
    assert np.mean([v.grey for v in views]) == pytest.approx(0.2, abs=0.04)
    assert len({tuple(w for w, _ in v.jitter) for v in views if v.jitter}) == 24


def test_a_very_long_picture_gets_a_window_inside() -> None:
    for size in ((8, 400), (400, 8)):
        top, left, height, width = random_view(*size, 32, np.random.default_rng(0)).window
        assert top + height <= size[0]
        assert left + width <= size[1]
        assert 0.7 <= width / height <= 1.4


def test_colour_changes_are_torchvisions() -> None:
    raw = pixels("17001", "2021-04-01", 2, 32)
    jitter = ((1, 1.4), (0, 0.7), (3, -0.1), (2, 0.3))
    view = View((0, 0, 32, 32), 32, True, True, jitter, True, 1.2)
    plain = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    f = v2.functional
    expected = f.adjust_brightness(f.adjust_contrast(f.horizontal_flip(plain), 1.4), 0.7)
    expected = f.adjust_saturation(f.adjust_hue(expected, -0.1), 0.3)
    expected = f.gaussian_blur(f.rgb_to_grayscale(expected, 3), [9, 9], [1.2, 1.2])
    torch.testing.assert_close(view(raw), f.normalize(expected, list(MEAN), list(DEVIATION)))


# -- items --------------------------------------------------------------------------------------


def test_items_of_evaluation_are_the_centre_of_every_month(tree: Path) -> None:
    split = open_(tree)["test"]
    assert isinstance(split, Split)
    assert list(split.ids) == [f"soybean/2022/{fips}" for fips in FIPS]
    for index, fips in enumerate(FIPS):
        item = split.item(index, item_rng(0, index, 7))
        dates = [f"2022-{m:02d}-01" for m in range(4, 10)]
        raw = np.concatenate([pixels(fips, date, 2 + index) for date in dates])
        torch.testing.assert_close(item["pictures"], normalised(raw[:, 4:36, 4:36]))
        assert item["dates"] == dates
        assert (item["fips"], item["state"], item["year"]) == (fips, fips[:2], 2022)
        expected = float(row(fips, 2022)["YIELD, MEASURED IN BU / ACRE"])
        assert item["yield_value"] == expected
        assert np.exp(item["log_yield"]) == pytest.approx(expected)
        assert np.exp(item["log_production"]) == pytest.approx(1_000_000 + int(fips))
        again = split.item(index, item_rng(5, 5, 5))
        assert torch.equal(item["pictures"], again["pictures"])


def test_pictures_smaller_than_the_input_get_zeros_around(tree: Path) -> None:
    item = open_(tree, image_size=64)["test"].item(0, RNG)
    black = (torch.zeros(3) - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torch.testing.assert_close(item["pictures"][0, :, 0, 0], black)
    raw = pixels(FIPS[0], "2022-04-01", 2)
    torch.testing.assert_close(item["pictures"][:2, :, 12:52, 12:52], normalised(raw))
    assert [t for t in lines(tree, "warning", image_size=64) if "zeros are put around" in t]


def test_training_is_augmented_by_the_items_generator_alone(tree: Path) -> None:
    split = open_(tree)["train"]
    plain = open_(tree, augment=False)["train"]
    first = split.item(1, item_rng(1, 2, 3))["pictures"]
    assert torch.equal(first, split.item(1, item_rng(1, 2, 3))["pictures"])
    assert not torch.equal(first, split.item(1, item_rng(1, 3, 3))["pictures"])
    still = [plain.item(1, item_rng(1, e, 3))["pictures"] for e in (2, 3)]
    assert torch.equal(*still)
    assert first.shape == still[0].shape == (18, 3, 32, 32)


def test_evaluation_on_drawings_shows_every_county_so_often(tree: Path) -> None:
    split = open_(tree, eval_draws=3)["test"]
    pictures = split.item(0, item_rng(0, 0, 0))["pictures"]
    assert pictures.shape == (3 * 12, 3, 32, 32)
    assert not torch.equal(pictures[:12], pictures[12:24])


def test_only_the_window_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_(tree)["test"]
    seen = []
    original = imagery.read

    def spy(shot: imagery.Shot, window: tuple[int, int, int, int]) -> np.ndarray:
        seen.append((shot.date, window))
        return original(shot, window)

    monkeypatch.setattr(sentinel_data, "read", spy)
    split.item(0, RNG)
    assert seen == [(f"2022-{m:02d}-01", (4, 4, 32, 32)) for m in range(4, 10)]


def test_a_split_holds_no_pictures(tree: Path) -> None:
    assert len(pickle.dumps(open_(tree)["train"])) < 20_000


def test_counties_are_packed_without_padding(tree: Path) -> None:
    split = open_(tree)["test"]
    items = [split.item(i, RNG) for i in range(3)]
    batch = split.collate(items)
    assert batch["cu_pictures"].tolist() == [0, 12, 30, 54]
    assert batch["cu_pictures"].dtype == torch.int64
    assert batch["pictures"].shape == (54, 3, 32, 32)
    assert torch.equal(batch["pictures"][12:30], items[1]["pictures"])
    logs = [[i["log_production"], i["log_yield"]] for i in items]
    torch.testing.assert_close(batch["target"], torch.tensor(logs))
    assert batch["years"].tolist() == [2022] * 3
    assert batch["fips"] == list(FIPS)


def test_workers_give_the_same_batches(tree: Path) -> None:
    def read(workers: int) -> list[Tensor]:
        feed = Feed(open_(tree)["train"], [[0, 3], [5]], seed=4, epoch=2, workers=workers)
        return [batch["pictures"] for _, batch in feed if batch is not None]

    for here, there in zip(read(0), read(1), strict=True):
        assert torch.equal(here, there)


def test_training_is_shuffled_whole(tree: Path) -> None:
    train = sentinel_data.open_sentinel(configure(tree, trainer={"batch_size": 4}))["train"]
    orders = [train.batches(e, order_rng(1, e)) for e in (0, 1)]
    assert [len(b) for b in orders[0]] == [4, 2]
    assert orders[0] != orders[1]
    assert sorted(i for batch in orders[0] for i in batch) == list(range(6))


def test_a_file_that_changes_is_told(tmp_path: Path) -> None:
    split = open_(write_tree(tmp_path))["test"]
    with h5py.File(h5_path(tmp_path, "17001", 2022, 7), "a") as file:
        node = file["17001/2022-09-01"]
        del node["data"]
        node["data"] = np.zeros((2, 40, 40, 3), np.uint8)
    with pytest.raises(DataError, match="2022-09-01: 'data' has changed"):
        split.item(1, RNG)


def test_the_digest_follows_the_content(tmp_path: Path, tree: Path) -> None:
    root = write_tree(tmp_path)
    digests = {name: split.digest for name, split in open_(root).items()}
    assert digests == {name: split.digest for name, split in open_(tree).items()}
    write_csv(
        csv_path(root, 2022),
        [row(c, 2022, **{"YIELD, MEASURED IN BU / ACRE": "44"}) for c in FIPS],
    )
    changed = open_(root)
    assert changed["train"].digest == digests["train"]
    assert changed["test"].digest != digests["test"]


# -- splits -------------------------------------------------------------------------------------


def years(split: SentinelSplit) -> list[int]:
    return sorted({s.year for s in split.samples})


def test_without_an_index_years_before_the_last_train(tree: Path) -> None:
    found = survey_sentinel(configure(tree))
    assert (found.source, found.year, list(found.years)) == ("folders", 2022, list(YEARS))
    splits = open_(tree)
    assert list(splits) == ["train", "test"]
    assert (years(splits["train"]), years(splits["test"])) == ([2020, 2021], [2022])
    assert not [f for f in leakage(splits) if "items" in f.what]


def test_years_follow_the_protocol(tree: Path) -> None:
    splits = open_(tree, year=2021)
    assert (years(splits["train"]), years(splits["test"])) == ([2020], [2021])
    splits = open_(tree, year=2021, protocol="leave_one_year_out")
    assert (years(splits["train"]), years(splits["test"])) == ([2020, 2022], [2021])
    assert years(open_(tree, first_year=2021)["train"]) == [2021]
    with pytest.raises(DataError, match=r"data\.year=2030: there are pictures of 2020, 2021, 2022"):
        open_(tree, year=2030)
    with pytest.raises(DataError, match="split 'train' has no usable soybean county-year"):
        open_(tree, year=2020)


def test_states_are_chosen_by_code(tree: Path) -> None:
    assert {s.fips for s in open_(tree, states=["01"])["test"].samples} == {"01001"}
    with pytest.raises(DataError, match=r"no county-year is left; correct data\.states"):
        open_(tree, states=["48"])


def test_the_index_divides_and_orders(tmp_path: Path) -> None:
    write_tree(tmp_path)
    train = [record(c, y) for y in (2021, 2020) for c in reversed(FIPS)]
    write_index(tmp_path, train, [record(FIPS[0], 2022)])
    splits = open_(tmp_path)
    assert [s.id for s in splits["train"].samples] == [
        f"soybean/{r['year']}/{r['FIPS']}" for r in train
    ]
    assert len(splits["test"]) == 1
    assert survey_sentinel(configure(tmp_path)).source.endswith("soybean")
    # A year that is asked for divides the whole index anew.
    assert years(open_(tmp_path, year=2021)["train"]) == [2020]


def test_seed_42_holds_out_what_the_official_code_does(tmp_path: Path) -> None:
    write_tree(tmp_path)
    train = [record(c, y) for y in (2020, 2021) for c in FIPS]
    write_index(tmp_path, train, [record(FIPS[0], 2022)])
    held = open_(tmp_path, val_fraction=0.4, split_seed=42)["val"]
    permutation = np.random.RandomState(42).permutation(6)
    expected = [f"soybean/{train[i]['year']}/{train[i]['FIPS']}" for i in permutation[3:]]
    assert sorted(held.ids) == sorted(expected)
    assert len(held) == 3
    other = open_(tmp_path, val_fraction=0.4, split_seed=1)["val"]
    assert sorted(other.ids) != sorted(held.ids)


def test_an_index_that_trains_on_the_future_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path)
    test = [record(c, 2021) for c in FIPS]
    write_index(tmp_path, [record(c, 2022) for c in FIPS], test)
    told = r"soybean_train\.json, record 1: training holds 2022, which is not before the test, 2021"
    with pytest.raises(DataError, match=told):
        open_(tmp_path)
    assert open_(tmp_path, protocol="leave_one_year_out")
    write_index(tmp_path, [record(c, 2020) for c in FIPS] + test[:1], test)
    told = (
        r"soybean_train\.json, record 4 and .*json, record 1: 1 county-years both train and test: "
        "2021/01001"
    )
    with pytest.raises(DataError, match=told):
        open_(tmp_path, protocol="leave_one_year_out")


def test_records_listed_twice_count_once(tmp_path: Path) -> None:
    write_tree(tmp_path)
    train = [record(c, 2020) for c in FIPS]
    write_index(tmp_path, [*train, train[1]], [record(c, 2022) for c in FIPS])
    assert len(open_(tmp_path)["train"]) == 3
    assert any("1 county-years are listed twice" in t for t in lines(tmp_path, "warning"))


# -- what is missing or damaged -----------------------------------------------------------------


@pytest.mark.parametrize("folder", ["WinterWheat", "Winterwheat", "winter_wheat", "WINTERWHEAT"])
def test_winter_wheat_is_found_whatever_its_case(tmp_path: Path, folder: str) -> None:
    write_tree(tmp_path, folder=folder, crop="winterwheat", fips=FIPS[:2])
    train = [record(c, 2021, "Winterwheat") for c in FIPS[:2]]
    write_index(tmp_path, train, [record(FIPS[0], 2022, "Winterwheat")], "winterwheat")
    splits = open_(tmp_path, crop="winterwheat")
    assert [s.crop for s in splits["train"].samples] == ["winterwheat"] * 2


def test_counties_without_yield_are_left_out_and_told(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2020, 2021, 2022))
    zero = row("17001", 2020, **{"YIELD, MEASURED IN BU / ACRE": "0"})
    nothing = row("17003", 2020, **{"PRODUCTION, MEASURED IN BU": "(D)"})
    write_csv(csv_path(tmp_path, 2020), [zero, nothing])
    splits = open_(tmp_path)
    assert sorted(splits["train"].ids) == [f"soybean/2021/{c}" for c in FIPS]
    told = lines(tmp_path, "warning")
    assert "1 county-years have pictures but no row of soybean and are left out: 2020/01001" in told
    assert any(t.startswith("2 county-years have a soybean yield that is missing") for t in told)
    assert not lines(tmp_path, "error")


def test_a_crop_without_csv_is_told(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no USDA csv of corn; there are csv of soybean; correct"):
        open_(tree, crop="corn")
    write_tree(tmp_path, fips=FIPS[:1])
    csv_path(tmp_path, 2020).unlink()
    assert years(open_(tmp_path)["train"]) == [2021]
    assert any("no USDA csv of soybean for 2020" in t for t in lines(tmp_path, "warning"))


def test_yields_may_lie_elsewhere(tree: Path, tmp_path: Path) -> None:
    for year in YEARS:
        write_csv(tmp_path / f"USDA_Corn_County_{year}.csv", [
            row(c, year, crop="corn", **{"YIELD, MEASURED IN BU / ACRE": "180"}) for c in FIPS
        ])  # fmt: skip
    split = open_(tree, crop="corn", yields=tmp_path)["test"]
    assert {s.yield_value for s in split.samples} == {180.0}
    with pytest.raises(DataError, match="none: no such file or folder"):
        open_(tree, yields=tmp_path / "none")


def test_a_table_in_another_unit_stops_even_when_skipping(tmp_path: Path) -> None:
    write_tree(tmp_path)
    tonnes = {"YIELD, MEASURED IN BU / ACRE": "3.2"}
    write_csv(csv_path(tmp_path, 2021), [row(c, 2021, **tonnes) for c in FIPS])
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"median soybean yield is 3\.2, which cannot be bu"):
            open_(tmp_path, on_error=on_error)


def shrink(root: Path, fips: str, date: str) -> None:
    """Take a picture away from a date."""
    first = 4 if date[5:7] < "07" else 7
    with h5py.File(h5_path(root, fips, int(date[:4]), first), "a") as file:
        node = file[f"{fips}/{date}"]
        fewer = node["data"][1:]
        del node["data"]
        node["data"] = fewer


def test_damaged_counties_stop_or_are_skipped(tmp_path: Path) -> None:
    write_tree(tmp_path)
    shrink(tmp_path, "17001", "2021-08-01")
    h5_path(tmp_path, "01001", 2020, 4).write_bytes(b"\x89HDF\r\n\x1a\nnothing more")
    errors = lines(tmp_path, "error")
    assert len(errors) == 2
    assert any("2021-08-01: 2 x 40 x 40 (grids x height x width), but 3 x" in t for t in errors)
    assert any("cannot be read as HDF5" in t for t in errors)
    assert all("set data.on_error=skip" in t for t in errors)
    with pytest.raises(DataError, match="all dates of a county must show the same grid cells"):
        open_(tmp_path)
    train = open_(tmp_path, on_error="skip")["train"]
    assert sorted(train.ids) == ["soybean/2020/17001", "soybean/2020/17003", "soybean/2021/01001",
                                 "soybean/2021/17003"]  # fmt: skip
    assert train.notes == ["2 county-years were skipped"]
    told = lines(tmp_path, "warning", on_error="skip")
    assert len([t for t in told if t.startswith("skipped: ")]) == 2


def test_a_missing_quarter_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, fips=("17001",))
    h5_path(tmp_path, "17001", 2021, 7).unlink()
    (error,) = lines(tmp_path, "error")
    assert "county 17001 in 2021: expected 2 quarters, found Agriculture_17_IL_2021-04" in error
    write_index(tmp_path, [record("17001", y) for y in (2020, 2021)], [record("17001", 2022)])
    (error,) = lines(tmp_path, "error")
    assert "2021-07-01_2021-09-30.h5' of county 17001 in 2021 is not there" in error
    assert "soybean_train.json, record 2: " in error


def test_a_county_an_index_names_and_no_file_has_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, fips=("17001",))
    for year in YEARS:
        write_csv(csv_path(tmp_path, year), [row(c, year) for c in FIPS])
    index = [[record(c, y) for c in ("17001", "17003") for y in ys] for ys in ((2020,), (2022,))]
    write_index(tmp_path, *index)
    errors = lines(tmp_path, "error")
    assert len(errors) == 2
    assert all("county '17003' is not among the 1 counties" in t for t in errors)
    assert len(open_(tmp_path, on_error="skip")["test"]) == 1


def test_winter_quarters_are_not_of_the_season(tmp_path: Path) -> None:
    write_tree(tmp_path, fips=("17001",), quarters=(1, 4, 7, 10))
    item = open_(tmp_path)["test"].item(0, RNG)
    assert [d[5:7] for d in item["dates"]] == ["04", "05", "06", "07", "08", "09"]


def test_a_tree_of_winter_alone_is_told(tmp_path: Path) -> None:
    write_tree(tmp_path, fips=("17001",), quarters=(1,))
    with pytest.raises(DataError, match="no county-year is left; fetch files of April to Sept"):
        open_(tmp_path)


def test_the_deep_check_reads_every_picture(tmp_path: Path) -> None:
    write_tree(tmp_path, fips=("17001",), dtype="float32")
    with h5py.File(h5_path(tmp_path, "17001", 2021, 7), "a") as file:
        file["17001/2021-09-01/data"][1, 30, 30, 0] = np.nan
    assert not lines(tmp_path, "error", deep=False)
    (error,) = lines(tmp_path, "error")
    assert "2021-09-01: values from nan" in error


def test_the_check_counts(tree: Path) -> None:
    told = lines(tree, "info", val_fraction=0.3, split_seed=3)
    assert any("12 h5 files of pictures" in t for t in told)
    assert any(t.startswith("train: 4 county-years (") for t in told)
    assert any("pictures each, of 40 x 40 pixels; soybean yields" in t for t in told)
    assert any(t.endswith("bu/acre") for t in told)
    (error,) = lines(tree / "nothing", "error")
    assert "no such folder; set data.root" in error


def test_messages_are_one_line(tmp_path: Path) -> None:
    write_tree(tmp_path)
    shrink(tmp_path, "17001", "2021-08-01")
    assert not [t for t in lines(tmp_path, "error") if "\n" in t]


# -- facts and prediction -----------------------------------------------------------------------


def test_facts_are_json(tree: Path) -> None:
    facts = sentinel_data.sentinel_facts(open_(tree)["train"])
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["crop"], facts["yield_unit"], facts["production_unit"]) == (
        "soybean",
        "bu/acre",
        "bu",
    )
    assert facts["years"] == [2020, 2021]
    assert facts["log_mean"][1] == pytest.approx(np.log(40), abs=0.2)


def test_prediction_needs_no_yields(tmp_path: Path, tree: Path) -> None:
    facts = sentinel_data.sentinel_facts(open_(tree)["train"])
    write_tree(tmp_path, years=(2023,), quarters=(1, 4, 7))
    config = configure(tmp_path, image_size=224)
    split = sentinel_data.sentinel_inputs([tmp_path / "Sentinel-2 Imagery"], facts, config)
    assert list(split.ids) == [f"soybean/2023/{c}" for c in FIPS]
    item = split.item(0, RNG)
    assert item["pictures"].shape == (12, 3, 32, 32)  # as the model was trained, not 224
    assert item["dates"][0] == "2023-04-01"
    assert np.isnan([item["log_yield"], item["log_production"], item["yield_value"]]).all()
    assert item["postal"] == "AL"
    assert split.collate([item])["target"].isnan().all()


def test_prediction_on_single_files(tmp_path: Path, tree: Path) -> None:
    path = tmp_path / "mine.h5"
    write_h5(path, "17001", 2023, 4)
    facts = sentinel_data.sentinel_facts(open_(tree)["train"])
    split = sentinel_data.sentinel_inputs([path], facts, configure(tmp_path))
    assert split.item(0, RNG)["dates"] == ["2023-04-01", "2023-05-01", "2023-06-01"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.h5 file of county pictures in it"):
        sentinel_data.sentinel_inputs([tmp_path / "empty"], facts, configure(tmp_path))


def test_prediction_stops_at_damage_or_skips_it(tmp_path: Path, tree: Path) -> None:
    write_tree(tmp_path, years=(2023,))
    shrink(tmp_path, "17001", "2023-08-01")
    facts = sentinel_data.sentinel_facts(open_(tree)["train"])
    with pytest.raises(DataError, match="must show the same grid cells"):
        sentinel_data.sentinel_inputs([tmp_path], facts, configure(tmp_path))
    config = configure(tmp_path, on_error="skip")
    split = sentinel_data.sentinel_inputs([tmp_path], facts, config)
    assert [s.fips for s in split.samples] == ["01001", "17003"]
    assert "skipped " in split.notes[0]
