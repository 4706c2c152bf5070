"""County tables: three forms, slipped signs, outlines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.domains.crop_yield.writers import settings, write_csv
from zoo.domains.remote_sensing.crop_yield.counties import (
    bounds,
    find_tables,
    is_county_table,
    load_counties,
    parse_outline,
)
from zoo.errors import DataError

HEAD = "Fips,CntyFips,StateFips,geometry,County Name,Latitude,Longitude\n"
SQUARE = "0,0 0,1 1,1 1,0 0,0"


def kml(*rings: str) -> str:
    tags = ["outerBoundaryIs"] + ["innerBoundaryIs"] * (len(rings) - 1)
    inner = "".join(
        f"<{t}><LinearRing><coordinates>{r}</coordinates></LinearRing></{t}>"
        for t, r in zip(tags, rings, strict=True)
    )
    return f"<Polygon>{inner}</Polygon>"


def test_a_slipped_sign_goes_back_to_the_longitude(tmp_path: Path) -> None:
    rows = "015001,1,15,,Hawaii,19.683885-,155.393159\n010001,1,10,,Kent,39.09,-75.56\n"
    found = load_counties(write_csv(tmp_path / "c.csv", HEAD + rows))
    assert found.place("15001") == (-155.393159, 19.683885)
    assert found.place("10001") == (-75.56, 39.09)
    assert found.repairs.repaired == {"minus sign of the longitude behind the latitude": 1}
    assert np.isnan(found.place("17001")).all()


def test_counties_without_a_place_are_kept(tmp_path: Path) -> None:
    found = load_counties(write_csv(tmp_path / "c.csv", HEAD + "017001,1,17,,Adams,,"))
    assert "17001" in found.table.index
    assert np.isnan(found.place("17001")).all()


def test_headerless_places_are_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "l.csv", "1,47,-87.114,32.334\n1,65,-87.623,32.753")
    assert load_counties(path).place("01047") == (-87.114, 32.334)
    assert is_county_table(path)


def test_names_get_their_leading_zero_back(tmp_path: Path) -> None:
    found = load_counties(write_csv(tmp_path / "n.csv", "FIPS,State,County\n1001,AL,AUTAUGA"))
    assert found.table.loc["01001", "name"] == "AUTAUGA"
    assert found.repairs.repaired == {"leading zero of the county code": 1}


def test_outlines_have_holes_and_parts() -> None:
    hole = "0.2,0.2,9 0.2,0.4 0.4,0.4 0.2,0.2"
    text = f"<MultiGeometry>{kml(SQUARE, hole)}{kml('5,5 5,6 6,6 5,5')}</MultiGeometry>"
    polygons = parse_outline(text, "here")
    assert [[len(ring) for ring in polygon] for polygon in polygons] == [[5, 4], [4]]
    assert bounds(polygons) == (0.0, 0.0, 6.0, 6.0)


@pytest.mark.parametrize(
    "text",
    [
        "<Polygon>",
        "<Point/>",
        kml("0,0 1,1"),
        kml("0,0 0,1 1,1 x,0"),
        '<!DOCTYPE a [<!ENTITY b "c">]><Polygon>&b;</Polygon>',
    ],
)
def test_a_broken_outline_is_one_line(text: str) -> None:
    with pytest.raises(DataError, match=r"county 17001: the outline") as told:
        parse_outline(text, "c.csv: county 17001")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("017001,1,17,,A,-89.1,40.2\n", "are the columns exchanged"),
        ("017001,1,17,,A,40.2,-89.1\n017001,1,17,,A,40.9,-89.1", "stands at two places"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, rows: str, words: str) -> None:
    if "exchanged" in words:
        rows = rows.replace("-89.1", "-189.1").replace("40.2", "-89.5")
    with pytest.raises(DataError, match=words):
        load_counties(write_csv(tmp_path / "c.csv", HEAD + rows))


def test_no_county_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no county table"):
        load_counties(write_csv(tmp_path / "c.csv", "a,b\n1,2"))


def test_tables_are_found_by_their_form(tmp_path: Path) -> None:
    head = "Year,State ANSI,County ANSI,Value\n2012,17,1,40"
    soy = write_csv(tmp_path / "soybean_2012.csv", head)
    places = write_csv(tmp_path / "places.csv", "17,1,-89.1,40.2")
    write_csv(tmp_path / "prices.csv", "a,b\n1,2")
    assert find_tables(tmp_path, settings(tmp_path).data) == (soy, places)
    corn = write_csv(tmp_path / "corn_2012.csv", head)
    assert find_tables(tmp_path, settings(tmp_path, crop="corn").data)[0] == corn
    with pytest.raises(DataError, match=r"name one in data\.yields"):
        find_tables(tmp_path, settings(tmp_path, crop="cotton").data)
    named = settings(tmp_path, yields="corn_2012.csv").data
    assert find_tables(tmp_path, named)[0] == corn
