"""CropNet's tree, index, yields, pictures and weather, each with the traps of real copies."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from zoo.domains.remote_sensing.crop_yield import cropnet, hrrr, imagery, usda
from zoo.domains.remote_sensing.crop_yield.hrrr import VARIABLES
from zoo.errors import DataError

from .sentinel_writers import (
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

YIELD = "YIELD, MEASURED IN BU / ACRE"
PRODUCTION = "PRODUCTION, MEASURED IN BU"

# -- tree ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "top", ["Sentinel-2 Imagery/data", "Sentinel/data/AG", "Sentinel-2 Imagery/data/AG"]
)
@pytest.mark.parametrize("folder", ["Soybean", "Soybeans", "soybean", "SOYBEAN"])
def test_a_tree_is_found_under_any_of_its_names(tmp_path: Path, top: str, folder: str) -> None:
    write_h5(h5_path(tmp_path, "17001", 2021, 4, top), "17001", 2021, 4)
    write_csv(csv_path(tmp_path, 2021, folder), [row("17001", 2021)])
    tree = cropnet.find_tree(tmp_path)
    assert list(tree.pictures) == [(2021, "IL", 4)]
    assert list(tree.yields) == [("soybean", 2021)]


def test_pictures_of_vegetation_indices_are_no_pictures(tmp_path: Path) -> None:
    write_h5(h5_path(tmp_path, "17001", 2021, 4, "Sentinel/data/AG"), "17001", 2021, 4)
    other = tmp_path / "Sentinel/data/NDVI/2021/IL/NDVI_17_IL_2021-04-01_2021-06-30.h5"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"")
    assert len(cropnet.find_tree(tmp_path).pictures) == 1


@pytest.mark.parametrize("inner", ["Tiny-CropNet", "sentinel2"])
def test_a_tree_may_lie_one_folder_deeper(tmp_path: Path, inner: str) -> None:
    write_tree(tmp_path / inner, years=(2021,), fips=("17001",))
    assert cropnet.find_tree(tmp_path).base == tmp_path / inner


def test_a_second_file_of_the_same_meaning_is_told(tmp_path: Path) -> None:
    for top in ("Sentinel-2 Imagery/data", "Sentinel/data/AG"):
        write_h5(h5_path(tmp_path, "17001", 2021, 4, top), "17001", 2021, 4)
    tree = cropnet.find_tree(tmp_path)
    assert len(tree.pictures) == len(tree.doubles) == 1


def test_folders_that_link_to_other_disks_are_followed(tmp_path: Path) -> None:
    write_tree(tmp_path / "disk", years=(2021,), fips=("17001",))
    (tmp_path / "data").mkdir()
    for name in ("Sentinel-2 Imagery", "USDA"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "disk" / name)
    loop = tmp_path / "disk" / "Sentinel-2 Imagery" / "loop"
    loop.symlink_to(loop.parent)
    assert (2021, "IL", 7) in cropnet.find_tree(tmp_path / "data").pictures


def test_a_folder_that_is_no_tree_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set data\.root"):
        cropnet.find_tree(tmp_path / "none")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"no folder 'Sentinel-2 Imagery'.*it holds pictures"):
        cropnet.find_tree(tmp_path)


@pytest.mark.parametrize(
    ("given", "code"),
    [(1001, "01001"), ("1001", "01001"), ("01001", "01001"), (17001.0, "17001"), ("17", None)],
)
def test_county_codes_get_their_zero_back(given: Any, code: str | None) -> None:
    assert cropnet.padded_fips(given) == code


# -- index --------------------------------------------------------------------------------------


def entries(root: Path, records: list[Any]) -> list[cropnet.Entry]:
    folder = write_index(root, records, records)
    return cropnet.read_index(folder / "soybean_train.json", cropnet.find_tree(root))


def test_an_index_that_lost_the_zero_is_read(tmp_path: Path) -> None:
    """What the official builder makes of county 01001: code, state and file name are wrong."""
    write_tree(tmp_path, years=(2021,), fips=("01001",))
    wrong = record("01001", 2021, FIPS="1001", state_ansi="10", county_ansi="01")
    wrong["data"]["sentinel"] = [
        text.replace("Agriculture_01_", "Agriculture_10_") for text in wrong["data"]["sentinel"]
    ]
    (entry,) = entries(tmp_path, [wrong])
    assert (entry.fips, entry.year, entry.postal) == ("01001", 2021, "AL")
    assert entry.files == tuple(h5_path(tmp_path, "01001", 2021, m) for m in (4, 7))
    assert not entry.missing


def test_an_index_with_the_other_folder_names_is_read(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",), imagery="Sentinel/data/AG")
    (entry,) = entries(tmp_path, [record("17001", 2021)])
    assert [p.parent.parent.parent.name for p in entry.files] == ["AG", "AG"]


def test_files_an_index_names_in_vain_are_kept_by_name(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",), quarters=(4,))
    (entry,) = entries(tmp_path, [record("17001", 2021)])
    assert [p.name[-13:] for p in entry.files] == ["2021-06-30.h5"]
    assert entry.missing[0].endswith("2021-09-30.h5")


@pytest.mark.parametrize(
    "path",
    ["../x.h5", "/etc/x.h5", "a/../../x.h5", "a\\..\\x.h5", "C:/x.h5", "file:///x.h5", "a\nb.h5"],
)
@pytest.mark.parametrize("place", ["sentinel", "USDA", "HRRR"])
def test_paths_that_lead_out_of_the_tree_are_refused(tmp_path: Path, path: str, place: str) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",))
    bad = record("17001", 2021)
    values = {"sentinel": [path], "USDA": path, "HRRR": {"long_term": [["a.csv"], [path]]}}
    bad["data"][place] = values[place]
    with pytest.raises(DataError, match=r"record 2: .* leads out of the data folder") as told:
        entries(tmp_path, [record("17001", 2021), bad])
    assert "\n" not in str(told.value)


def test_pictures_of_a_later_year_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021, 2022), fips=("17001",))
    late = record("17001", 2021, data=record("17001", 2022)["data"])
    with pytest.raises(DataError, match="the record is of 2021 but names pictures of 2022"):
        entries(tmp_path, [late])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FIPS": "abc"}, "'FIPS' is missing"),
        ({"FIPS": None}, "'FIPS' is missing"),
        ({"year": "last"}, "'year' is missing"),
        ({"data": {"sentinel": []}}, r"'data\.sentinel' is missing"),
        ({"data": "x"}, "expected FIPS, year and data"),
    ],
)
def test_records_that_are_none_are_told(tmp_path: Path, change: Any, told: str) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",))
    with pytest.raises(DataError, match=rf"soybean_train\.json, record 1: {told}"):
        entries(tmp_path, [record("17001", 2021) | change])


@pytest.mark.parametrize("body", ["", "{", "{}", "[]", "[" * 100_000])
def test_files_that_are_no_index_are_told(tmp_path: Path, body: str) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",))
    path = tmp_path / "x.json"
    path.write_text(body)
    with pytest.raises(DataError, match=r"x\.json: (cannot be read as JSON|expected a list)"):
        cropnet.read_index(path, cropnet.find_tree(tmp_path))


def test_indexes_are_found_by_crop_and_part(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",))
    tree = cropnet.find_tree(tmp_path)
    assert cropnet.index_files(tree, "winterwheat", None) == {}
    folder = tmp_path / "json" / "WinterWheat"
    folder.mkdir(parents=True)
    for name in ("Winterwheat_train", "Winterwheat_val", "corn_test"):
        (folder / f"{name}.json").write_text("[]")
    found = cropnet.index_files(tree, "winterwheat", None)
    assert {part: p.name for part, p in found.items()} == {
        "train": "Winterwheat_train.json",
        "test": "Winterwheat_val.json",
    }
    other = tmp_path / "mine"
    other.mkdir()
    with pytest.raises(DataError, match=r"mine: no soybean_train\.json in it; correct data\.index"):
        cropnet.index_files(tree, "soybean", Path("mine"))
    (other / "soybean_train.json").write_text("[]")
    assert cropnet.index_files(tree, "soybean", Path("mine")) == {
        "train": other / "soybean_train.json"
    }


# -- yields -------------------------------------------------------------------------------------


def yields(tmp_path: Path, rows: list[dict[str, str]], crop: str = "soybean") -> usda.YieldTable:
    path = tmp_path / "x.csv"
    write_csv(path, rows)
    return usda.read_county_yields(path, crop, 2021)


def test_yields_are_keyed_by_padded_codes(tmp_path: Path) -> None:
    rows = [
        row("01001", 2021, **{PRODUCTION: "1,234,500", YIELD: "41.5"}),
        row("17003", 2021, state_ansi="17.0", county_ansi="3.0"),
        row("17005", 2021, county_ansi=""),
    ]
    table = yields(tmp_path, rows)
    assert sorted(table.rows) == ["01001", "17003"]
    assert table.rows["01001"].production == 1_234_500
    assert table.rows["01001"].yield_value == 41.5
    assert table.rows["01001"].county == "NAME 01001"
    assert table.repaired == {"rows of combined counties without a code": 1}


def test_of_two_rows_the_one_of_the_whole_year_counts(tmp_path: Path) -> None:
    early = {"reference_period_desc": "YEAR - AUG FORECAST", YIELD: "30"}
    part = {"domain_desc": "AREA HARVESTED", YIELD: "31"}
    rows = [
        row("17001", 2021, **early),
        row("17001", 2021, **part),
        row("17001", 2021, **{YIELD: "50"}),
        row("17003", 2021, **early),
        row("17003", 2021, **part),
    ]
    table = yields(tmp_path, rows)
    assert table.rows["17001"].yield_value == 50
    assert table.rows["17003"].yield_value == 30  # else the first
    assert table.repaired == {"further rows of a county": 3}


@pytest.mark.parametrize("value", ["", "0", "nan", "(D)", " (Z)", "-3", "inf", "0.0"])
@pytest.mark.parametrize("column", [PRODUCTION, YIELD])
def test_values_without_a_logarithm_are_dropped(tmp_path: Path, value: str, column: str) -> None:
    table = yields(tmp_path, [row("17001", 2021, **{column: value}), row("17003", 2021)])
    assert list(table.rows) == ["17003"]
    assert list(table.dropped) == ["17001"]


@pytest.mark.parametrize("unit", ["LB / ACRE", "BU / ACRE", "LB/ACRE"])
def test_cotton_is_read_in_pounds_whatever_its_header_says(tmp_path: Path, unit: str) -> None:
    made = row("17001", 2021, crop="cotton")
    made = {k: v for k, v in made.items() if "MEASURED" not in k}
    made |= {"PRODUCTION, MEASURED IN 480 LB BALES": "12,000", f"YIELD, MEASURED IN {unit}": "850"}
    table = yields(tmp_path, [made], "cotton")
    assert table.rows["17001"].yield_value == 850
    assert table.rows["17001"].production == 12_000


@pytest.mark.parametrize(
    ("crop", "value"),
    [("soybean", 3.1), ("corn", 11.2), ("winterwheat", 4.5), ("soybean", 3300), ("cotton", 1.1)],
)
def test_yields_in_another_unit_are_refused(tmp_path: Path, crop: str, value: float) -> None:
    made = row("17001", 2021, crop=crop, **{YIELD: str(value)})
    if crop == "cotton":
        made["PRODUCTION, MEASURED IN 480 LB BALES"] = "1000"
    unit = "lb/acre" if crop == "cotton" else "bu/acre"
    with pytest.raises(DataError, match=rf"x\.csv: the median {crop} yield .* cannot be {unit}"):
        yields(tmp_path, [made], crop)


def test_a_column_of_another_unit_is_not_taken(tmp_path: Path) -> None:
    made = row("17001", 2021)
    made["YIELD, MEASURED IN TONNES / HA"] = made.pop(YIELD)
    with pytest.raises(DataError, match=r"no column 'YIELD, MEASURED IN BU / ACRE'.*TONNES / HA"):
        yields(tmp_path, [made])


def test_rows_of_another_year_or_crop_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds rows of 2022, expected 2021 alone"):
        yields(tmp_path, [row("17001", 2021), row("17003", 2022)])
    with pytest.raises(DataError, match="holds rows of 'CORN', expected soybean"):
        yields(tmp_path, [row("17001", 2021, crop="corn")])


# -- pictures -----------------------------------------------------------------------------------


def files(root: Path, fips: str = "17001", **options: Any) -> list[Path]:
    made = []
    for first in (4, 7):
        path = h5_path(root, fips, 2021, first)
        write_h5(path, fips, 2021, first, **options)
        made.append(path)
    return made


def test_every_other_date_of_each_file_is_used(tmp_path: Path) -> None:
    seen = imagery.look(files(tmp_path, grids=3), "17001", 2021, None)
    assert [s.date for s in seen.shots] == [f"2021-{m:02d}-01" for m in range(4, 10)]
    assert (seen.grids, seen.height, seen.width, seen.count) == (3, 40, 40, 18)
    assert (seen.lon, seen.lat) == pytest.approx((-89.95, 40.05))


@pytest.mark.parametrize(("dates", "expected"), [(1, 1), (2, 2), (5, 5), (12, 12), (30, 12)])
def test_as_many_dates_as_asked_for_are_used(tmp_path: Path, dates: int, expected: int) -> None:
    seen = imagery.look(files(tmp_path), "17001", 2021, dates)
    used = [s.date for s in seen.shots]
    assert len(used) == expected
    assert used == sorted(set(used))
    if dates > 1:
        assert (used[0], used[-1]) == ("2021-04-01", "2021-09-15")


def test_a_group_without_its_zero_is_found(tmp_path: Path) -> None:
    made = files(tmp_path, "01001", group="1001")
    assert imagery.contents(made[0]) == {"01001": [2021]}
    assert imagery.look(made, "01001", 2021, None).shots[0].group == "1001"


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4", "float64", "int64", "uint16"])
def test_windows_are_read_whatever_the_type(tmp_path: Path, dtype: str) -> None:
    seen = imagery.look(files(tmp_path, dtype=dtype), "17001", 2021, None)
    got = imagery.read(seen.shots[1], (3, 5, 20, 30))
    assert got.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(got, pixels("17001", "2021-05-01", 2)[:, 3:23, 5:35])


def put(name: str, values: Any) -> Any:
    """Replace a data set on the first date."""

    def change(node: h5py.Group, date: str) -> None:
        if date.endswith("06-01"):
            del node[name]
            node[name] = values

    return change


@pytest.mark.parametrize(
    ("value", "told"),
    [(np.nan, "values from nan"), (300.0, "values from 300"), (-1.0, "values from -1")],
)
def test_values_that_are_no_picture_are_refused(tmp_path: Path, value: float, told: str) -> None:
    change = put("data", np.full((2, 40, 40, 3), value, np.float32))
    seen = imagery.look(files(tmp_path, dtype="float32", change=change), "17001", 2021, None)
    with pytest.raises(DataError, match=rf"2021-06-01: .*({told}).*expected pictures of 0 to 255"):
        imagery.read(seen.shots[2], (0, 0, 40, 40))


def test_pictures_scaled_to_one_are_refused(tmp_path: Path) -> None:
    change = put("data", np.full((2, 40, 40, 3), 0.6, np.float32))
    seen = imagery.look(files(tmp_path, dtype="float32", change=change), "17001", 2021, None)
    with pytest.raises(DataError, match=r"values up to 0\.6, expected 0 to 255 and not 0 to 1"):
        imagery.read(seen.shots[2], (0, 0, 40, 40))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((3, 40, 40, 3), r"3 x 40 x 40 .*but 2 x 40 x 40 on 2021-04-01; all dates"),
        ((2, 48, 40, 3), r"2 x 48 x 40 .*but 2 x 40 x 40 on 2021-04-01; all dates"),
        ((2, 40, 40, 4), r"shape \(2, 40, 40, 4\), expected \(grids, height, width, 3\)"),
        ((2, 40, 40), r"expected \(grids, height, width, 3\)"),
        ((0, 40, 40, 3), r"expected \(grids, height, width, 3\)"),
    ],
)
def test_dates_that_differ_are_refused(tmp_path: Path, shape: tuple[int, ...], told: str) -> None:
    made = files(tmp_path, change=put("data", np.zeros(shape, np.uint8)))
    with pytest.raises(DataError, match=f"2021-06-01: .*{told}"):
        imagery.look(made, "17001", 2021, None)


def test_dates_of_another_year_are_refused(tmp_path: Path) -> None:
    made = files(tmp_path)
    with h5py.File(made[1], "a") as file:
        file.move("17001/2021-09-01", "17001/2022-09-01")
    with pytest.raises(DataError, match=r"2022-09-01: a date of another year than .* 2021"):
        imagery.look(made, "17001", 2021, None)


def test_counties_and_data_that_are_missing_are_told(tmp_path: Path) -> None:
    made = files(tmp_path)
    with pytest.raises(DataError, match="county '17009' is not among the 1 counties"):
        imagery.look(made, "17009", 2021, None)
    with h5py.File(made[0], "a") as file:
        del file["17001/2021-05-01/data"]
    with pytest.raises(DataError, match="2021-05-01: no data set 'data'"):
        imagery.look(made, "17001", 2021, None)
    with h5py.File(made[0], "a") as file:
        del file["17001"]
        file.create_group("17001/notes")
    with pytest.raises(DataError, match="no group named like a date"):
        imagery.look(made, "17001", 2021, None)


@pytest.mark.parametrize("where", ["17001", "17001/2021-05-01", "17001/2021-05-01/data"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_links_to_elsewhere_are_refused(tmp_path: Path, where: str, kind: str) -> None:
    made = files(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros((2, 40, 40, 3), np.uint8)
    link = h5py.ExternalLink("../other.h5", "/secret") if kind == "external" else None
    with h5py.File(made[0], "a") as file:
        del file[where]
        file[where] = link or h5py.SoftLink("/17001")
    told = "an external link" if kind == "external" else "a soft link"
    with pytest.raises(DataError, match=f"is {told}; only what the file itself holds is read"):
        imagery.look(made, "17001", 2021, None)


def test_storage_in_other_files_is_refused(tmp_path: Path) -> None:
    made = files(tmp_path)
    (tmp_path / "raw").write_bytes(bytes(2 * 40 * 40 * 3))
    with h5py.File(made[0], "a") as file:
        node = file["17001/2021-05-01"]
        del node["data"]
        outside = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        node.create_dataset("data", (2, 40, 40, 3), np.uint8, external=outside)
    with pytest.raises(DataError, match="takes its values from other files, which is refused"):
        imagery.look(made, "17001", 2021, None)
    with h5py.File(made[0], "a") as file:
        node = file["17001/2021-05-01"]
        del node["data"]
        layout = h5py.VirtualLayout((2, 40, 40, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "v.h5"), "x", shape=(2, 40, 40, 3))
        node.create_virtual_dataset("data", layout)
    with pytest.raises(DataError, match="takes its values from other files, which is refused"):
        imagery.look(made, "17001", 2021, None)


def test_files_that_are_cut_short_are_told(tmp_path: Path) -> None:
    made = files(tmp_path)
    made[0].write_bytes(made[0].read_bytes()[:900])
    with pytest.raises(DataError, match=r"2021-06-30\.h5: cannot be read as HDF5"):
        imagery.look(made, "17001", 2021, None)
    made[0].unlink()
    with pytest.raises(DataError, match="no such file"):
        imagery.look(made, "17001", 2021, None)


def test_coordinates_may_be_missing(tmp_path: Path) -> None:
    def change(node: h5py.Group, date: str) -> None:
        del node["coordinates"]

    seen = imagery.look(files(tmp_path, change=change), "17001", 2021, None)
    assert np.isnan([seen.lon, seen.lat]).all()


# -- weather ------------------------------------------------------------------------------------


def write_weather(
    root: Path, year: int, month: int, *, cells: int = 2, days: int = 30, top: str = "WRF-HRRR"
) -> Path:
    """A month of county 01001, whose values tell month, cell, day and variable."""
    head = ["Year", "Month", "Day", "Daily/Monthly", "State", "County", "FIPS Code", "Grid Index"]
    names = ["Lat (llcrnr) ", *(f" {v}" for v in VARIABLES), " U Component of Wind (m s**-1)"]
    rows = []
    for day in range(days, 0, -1):  # not in order
        for cell in range(cells):
            values = [month * 1000 + cell * 100 + day + v / 10 for v in range(9)]
            rows.append([year, month, day, "Daily", "AL", "X", 1001, cell, 31.0, *values, 0.5])
    mean = [month + v / 10 for v in range(9)]
    rows.append([year, month, "", "Monthly", "AL", "X", 1001, "", "", *mean, 0.5])
    rows.append([year, month, "", "Monthly", "AL", "Y", 1003, "", "", *mean, 0.5])
    path = root / top / "data" / str(year) / "AL" / f"HRRR_01_AL_{year}-{month:02d}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head + names, *rows])
    return path


@pytest.mark.parametrize("top", ["WRF-HRRR", "HRRR"])
def test_weather_of_a_season_and_of_past_years(tmp_path: Path, top: str) -> None:
    write_tree(tmp_path, years=(2021,), fips=("01001",))
    for year in (2019, 2020, 2021):
        for month in range(1, 13):
            write_weather(tmp_path, year, month, top=top)
    tree = cropnet.find_tree(tmp_path)
    short = hrrr.season_weather(tree, "AL", "01001", 2021)
    assert short.shape == (6, 2, 28, 9)
    assert short.dtype == np.float32
    assert short[1, 1, 27, 3] == np.float32(5000 + 100 + 28 + 0.3)
    past = hrrr.past_weather(tree, "AL", "01001", (2019, 2020))
    assert past.shape == (2, 12, 9)
    assert past[1, 6, 8] == np.float32(7.8)
    with pytest.raises(DataError, match="no weather csv of AL in 2018-01"):
        hrrr.past_weather(tree, "AL", "01001", (2018,))


def test_weather_with_holes_is_told(tmp_path: Path) -> None:
    path = write_weather(tmp_path, 2021, 4, days=20)
    with pytest.raises(DataError, match="40 daily rows for 2 cells x 28 days"):
        hrrr.daily_weather(path, "01001")
    with pytest.raises(DataError, match="no daily row of county '01003'"):
        hrrr.daily_weather(path, "01003")
    text = path.read_text()
    path.write_text(text.replace("4.3,", "(D),"))
    with pytest.raises(DataError, match=r"without a number of 'Precipitation"):
        hrrr.monthly_weather(path, "01001")
    path.write_text(text.replace(" Wind Speed", " Speed"))
    with pytest.raises(DataError, match=r"no column 'Wind Speed \(m s\*\*-1\)'"):
        hrrr.monthly_weather(path, "01001")


def test_grid_cells_of_months_must_agree(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021,), fips=("01001",))
    for month in range(4, 10):
        write_weather(tmp_path, 2021, month, cells=2 + (month == 7))
    with pytest.raises(DataError, match="months have 2, 2, 2, 3, 2, 2 grid cells"):
        hrrr.season_weather(cropnet.find_tree(tmp_path), "AL", "01001", 2021)


def test_the_index_of_mmst_vit_is_read(tmp_path: Path) -> None:
    write_tree(tmp_path, years=(2021,), fips=("17001",), folder="Soybeans")
    made = record("17001", 2021)
    made["data"]["HRRR"] = {"short_term": ["WRF-HRRR/a.csv"] * 6, "long_term": [["b.csv"] * 12] * 5}
    path = tmp_path / "soybean_train.json"
    path.write_text(json.dumps([made]), encoding="utf-8-sig")
    (entry,) = cropnet.read_index(path, cropnet.find_tree(tmp_path))
    assert len(entry.files) == 2
