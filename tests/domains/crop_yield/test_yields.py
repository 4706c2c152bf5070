"""Yield tables: both forms, what is repaired, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.domains.crop_yield.writers import write_csv
from zoo.domains.remote_sensing.crop_yield.yields import (
    combined,
    fips_code,
    is_yield_table,
    load_yields,
    read_yields,
)
from zoo.errors import DataError

HEAD = "Year,State ANSI,County ANSI,Value\n"


def test_codes_are_padded_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "y.csv", HEAD + "2012,1,7.0,31.5\n2012,17,31,40")
    table = load_yields(path)
    assert table["fips"].tolist() == ["01007", "17031"]
    assert table["state"].tolist() == ["01", "17"]
    assert table["yield_bu_acre"].tolist() == [31.5, 40.0]
    assert list(table) == ["year", "fips", "state", "yield_bu_acre"]
    assert fips_code(6, "3") == "06003"


def test_headerless_table_is_read_by_content(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "y.csv", "2012,17,1,44\n2013,17,1,46.5")
    assert load_yields(path)["yield_bu_acre"].tolist() == [44.0, 46.5]
    assert is_yield_table(path)
    assert not is_yield_table(write_csv(tmp_path / "l.csv", "17,1,-89.1,40.2\n17,3,-89.2,40.1"))


def test_what_is_no_yield_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = """2012,17,,41
    2012,17,1,40
    2012,17,3,0
    2012,17,5,(D)
    2012,17,7,"1,040"
    2012,17,9,
    2012,17,1,40
    2012.5,17,11,40
    2012,17,1200,40
    """
    found = read_yields(write_csv(tmp_path / "y.csv", HEAD + rows), crop="cotton")
    assert found.table["fips"].tolist() == ["17001", "17007"]
    assert found.table["yield_bu_acre"].tolist() == [40.0, 1040.0]
    repairs = found.repairs
    assert (repairs.read, repairs.kept) == (9, 2)
    assert repairs.dropped == {
        "year or state is no whole number": 1,
        "no county code (combined counties)": 1,
        "county code is no number of one to three digits": 1,
        "no value (withheld or not reported)": 2,
        "yield is zero or less (placeholder)": 1,
        "repeats another row": 1,
    }
    assert repairs.repaired == {"thousands separator": 1, "marker such as (D) read as missing": 1}
    assert len(repairs.lines()) == 9


def test_full_export_is_reduced_to_the_crop(tmp_path: Path) -> None:
    head = "Commodity,Data Item,Geo Level,Domain,Period," + HEAD
    grain = '"WHEAT, WINTER - YIELD, MEASURED IN BU / ACRE"'
    rows = f"""WHEAT,{grain},COUNTY,TOTAL,YEAR,2012,20,1,50
    WHEAT,"WHEAT, SPRING - YIELD, MEASURED IN BU / ACRE",COUNTY,TOTAL,YEAR,2012,20,1,30
    WHEAT,"WHEAT, WINTER - PRODUCTION, MEASURED IN BU",COUNTY,TOTAL,YEAR,2012,20,1,900000
    WHEAT,{grain},STATE,TOTAL,YEAR,2012,20,1,44
    WHEAT,{grain},COUNTY,IRRIGATED,YEAR,2012,20,1,70
    WHEAT,{grain},COUNTY,TOTAL,YEAR - AUG FORECAST,2012,20,1,47
    CORN,"CORN, GRAIN - YIELD, MEASURED IN BU / ACRE",COUNTY,TOTAL,YEAR,2012,20,1,130
    """
    path = write_csv(tmp_path / "y.csv", head + rows)
    assert load_yields(path, crop="winterwheat")["yield_bu_acre"].tolist() == [50.0]
    assert load_yields(path, crop="corn")["yield_bu_acre"].tolist() == [130.0]
    with pytest.raises(DataError, match="no row is a county yield of cotton"):
        load_yields(path, crop="cotton")


def test_states_are_kept_by_code(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "y.csv", HEAD + "2012,5,1,40\n2012,17,1,41")
    assert load_yields(path, states=["5"])["fips"].tolist() == ["05001"]
    with pytest.raises(DataError, match="no yield in state 99"):
        load_yields(path, states=["17", "99"])


def test_contradicting_keys_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "y.csv", HEAD + "2012,17,1,40\n2012,17,1,43")
    with pytest.raises(DataError, match=r"county 17001 has several yields in 2012 \(40, 43\)"):
        load_yields(path)


def test_tables_of_years_are_joined_once(tmp_path: Path) -> None:
    one = read_yields(write_csv(tmp_path / "a.csv", HEAD + "2012,17,1,40"))
    two = read_yields(write_csv(tmp_path / "b.csv", HEAD + "2013,17,1,43\n2012,17,1,40"))
    both = combined([one, two])
    assert both.table["year"].tolist() == [2012, 2013]
    assert both.repairs.dropped == {"repeats another row": 1}
    other = read_yields(write_csv(tmp_path / "c.csv", HEAD + "2012,17,1,39"))
    with pytest.raises(DataError, match="several yields"):
        combined([one, other])


@pytest.mark.parametrize(
    ("value", "crop", "words"),
    [
        ("3.1", "soybean", "look like t/ha"),
        ("3100", "soybean", "look like kg/ha"),
        ("9.4", "corn", "look like t/ha"),
        ("1.2", "cotton", "look like t/ha"),
        ("900", "corn", "is no corn yield in bu/acre"),
    ],
)
def test_another_unit_is_refused(tmp_path: Path, value: str, crop: str, words: str) -> None:
    path = write_csv(tmp_path / "y.csv", HEAD + f"2012,17,1,{value}")
    with pytest.raises(DataError, match=words):
        load_yields(path, crop=crop)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Year,State,County,Value\n2012,17,1,40", "no column 'State ANSI', 'County ANSI'"),
        (HEAD + "2012,17,,40", "no yield of a county is left"),
        ("", "cannot be read as csv"),
    ],
)
def test_no_yield_table_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "y.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as told:
        load_yields(path)
    assert "\n" not in str(told.value)
