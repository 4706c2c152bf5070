"""The real files: every one is read through our readers, with the values told of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.domains.crop_yield.writers import REAL, WHY, settings
from zoo.domains.remote_sensing.crop_yield.counties import bounds, load_counties
from zoo.domains.remote_sensing.crop_yield.exports import Rules, find_exports, read_county
from zoo.domains.remote_sensing.crop_yield.rasters import Raster, read_image
from zoo.domains.remote_sensing.crop_yield.sample_modis import write_raster
from zoo.domains.remote_sensing.crop_yield.yields import load_yields, read_yields

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=WHY)
STATES = ["05", "17", "18", "19", "20", "27", "29", "31", "38", "39", "46"]
YIELD = REAL / "yield"


def test_final_yields_without_the_placeholders_of_2016() -> None:
    found = read_yields(YIELD / "yield_final.csv")
    assert (found.repairs.read, found.repairs.kept) == (20954, 19120)
    assert found.repairs.dropped == {"yield is zero or less (placeholder)": 1834}
    table = found.table.set_index(["year", "fips"])["yield_bu_acre"]
    assert (table[2013, "31065"], table[2013, "39119"]) == (35.2, 49.6)
    used = load_yields(YIELD / "yield_final.csv", states=STATES).groupby("year").size()
    expected = [825, 840, 832, 819, 811, 752, 759, 811, 785, 771, 729, 741, 683]
    assert used.tolist() == expected


@pytest.mark.parametrize(
    ("crop", "read", "combined", "zeros"),
    [("soybean", 22156, 1682, 0), ("corn", 26108, 2090, 220)],
)
def test_exports_without_combined_counties(crop: str, read: int, combined: int, zeros: int) -> None:
    repairs = read_yields(YIELD / f"{crop}_yield_filter.csv", crop=crop).repairs
    assert repairs.read == read
    assert repairs.dropped.get("no county code (combined counties)") == combined
    assert repairs.dropped.get("yield is zero or less (placeholder)", 0) == zeros
    assert repairs.kept == read - combined - zeros


def test_baselines_of_the_specification() -> None:
    table = load_yields(YIELD / "yield_final.csv", states=STATES)
    told = {
        2009: (9.44, 6.72, 8.25),
        2010: (9.84, 5.83, 6.78),
        2011: (11.26, 6.62, 7.22),
        2012: (11.46, 8.46, 8.94),
        2013: (9.71, 6.30, 10.44),
        2014: (11.31, 7.88, 7.59),
        2015: (11.92, 8.48, 7.44),
    }
    for year, expected in told.items():
        past, now = table[table["year"] < year], table[table["year"] == year]
        mean, by = past["yield_bu_acre"].mean(), past.groupby("fips")["yield_bu_acre"]
        guesses = (mean, now["fips"].map(by.mean()), now["fips"].map(by.last()))
        truth = now["yield_bu_acre"]
        found = [
            float(np.sqrt(((truth - pd.Series(g, now.index).fillna(mean)) ** 2).mean()))
            for g in guesses
        ]
        np.testing.assert_allclose(found, expected, atol=0.005)


def test_county_tables() -> None:
    found = load_counties(YIELD / "county_data.csv")
    assert len(found.table) == 3140
    repaired = found.repairs.repaired
    assert repaired["minus sign of the longitude behind the latitude"] == 627
    assert found.table["lon"].notna().sum() == 3136
    assert found.table["lon"].max() < 0
    assert found.place("15001") == (-155.393159, 19.683885)
    assert len(found.outlines) == 3140
    inside = 0
    for fips in ("17001", "31065", "39119"):
        west, south, east, north = bounds(found.outlines[fips])
        lon, lat = found.place(fips)
        inside += west < lon < east and south < lat < north
    assert inside == 3
    places = load_counties(YIELD / "locations_final.csv")
    assert len(places.table) == 1834
    assert places.place("01047") == (-87.114, 32.334)
    names = load_counties(YIELD / "county_info.csv").table
    assert names["state"].value_counts().to_dict() == {"17": 78, "19": 76, "28": 41, "22": 27}


@pytest.mark.parametrize(
    ("fips", "shape", "celsius"), [("31065", (77, 127), (4, 11)), ("39119", (92, 122), (4, 11))]
)
def test_real_temperatures_through_the_whole_reader(
    fips: str, shape: tuple[int, int], celsius: tuple[float, float], tmp_path: Path
) -> None:
    """Two counties' real temperatures as an export: season, units, place, nodata, bins."""
    pytest.importorskip("rasterio", reason="needs the extra 'remote'")
    stem = f"{int(fips[:2])}_{int(fips[2:])}"
    counties = load_counties(YIELD / "county_data.csv", outlines=[fips])
    west, _, _, north = bounds(counties.outlines[fips])
    with np.load(REAL / "modis_lst" / f"raw_temp_2013_{stem}.npz") as archive:
        assert tuple(archive["loc"].tolist()) == (int(fips[:2]), int(fips[2:]))
        stack = [archive[f"raw_2013_t{t}_b{b}"] for t in range(32) for b in range(2)]
    season = np.stack(stack)
    assert season.shape == (64, *shape)
    heat = np.zeros((92, *shape), np.uint16)
    heat[12:76] = season
    light = np.full((322, *shape), 700, np.uint16)
    data = settings(None, export_start=2013).data
    for folder, values in (
        (data.temperature_folder, heat),
        (data.image_folder, light),
        (data.mask_folder, np.full((1, *shape), 12, np.uint16)),
    ):
        write_raster(tmp_path / folder / f"{stem}.tif", values, west, north, 0.00444)
    export = find_exports(tmp_path, data)[fips]
    found = read_county(export, Rules.of(data, tmp_path), counties.place(fips))
    assert found.years.tolist() == [2013]
    seen = season[0::2].reshape(32, -1)
    clear = [s[s > 0] for s in seen if (s > 0).mean() > 0.4]
    median = [float(np.median(s)) * 0.02 - 273.15 for s in clear]
    assert celsius[0] - 1 < median[0] < celsius[1] + 1
    assert len(median) > 25
    assert 25 < float(np.median(median[14:24])) < 45  # of the summer; single days reach 48
    valid = [int(((s > 0) & (s >= 11501) & (s <= 16499)).sum()) for s in season]
    counted = found.counts[0, 7:].sum(-1).T.reshape(-1)
    assert counted.tolist() == valid


def test_ndvi_has_no_code_but_a_place() -> None:
    low = {"2013-09-14": 171, "2013-12-19": -3009, "2014-03-22": -3301, "2014-06-26": -3093}
    for day, least in low.items():
        image = read_image(REAL / "modis_ndvi_jp2" / f"TERRA_MODIS_012010_NDVI_{day}.jp2")
        assert image.driver == "JP2OpenJPEG"
        assert image.values.shape == (1, 147, 255)
        assert image.values.dtype == np.int16
        assert image.nodata is None
        assert image.grid.crs.to_epsg() is None
        assert image.grid.pixel_size == pytest.approx((231.66, 231.66), abs=0.01)
        assert image.values.min() == least
        lon, lat = image.grid.centre()
        assert (lon, lat) == pytest.approx((-55.50, -11.65), abs=0.01)


def test_sentinel_bands_are_geotiffs_in_spite_of_their_names() -> None:
    for name, least, most in (("s2_B8A", 99, 7200), ("s2_B11", 22, 5194)):
        image = read_image(REAL / "sentinel2_jp2" / f"{name}.jp2")
        assert image.driver == "GTiff"
        assert image.values.shape == (1, 973, 967)
        assert image.grid.crs_name == "EPSG:32618"
        assert image.grid.pixel_size == (20.0, 20.0)
        assert (image.values.min(), image.values.max()) == (least, most)


@pytest.mark.parametrize(
    ("name", "bands", "valid", "crs", "rotated"),
    [
        ("all-nodata", 4, 0, "EPSG:32628", False),
        ("red", 3, 3 * 64 * 64, "EPSG:4326", False),
        ("float_nan", 1, 5, "", False),
        ("float_raster_with_nodata", 1, 98, "PROJCS", False),
        ("rotated", 1, 150, "", True),
        ("cog", 1, 176127, "PROJCS", False),
    ],
)
def test_odd_geotiffs(name: str, bands: int, valid: int, crs: str, rotated: bool) -> None:
    path = REAL / "geotiff_edge_cases" / f"{name}.tif"
    image = read_image(path)
    assert (len(image.values), int(image.valid.sum())) == (bands, valid)
    assert image.grid.crs_name.startswith(crs)
    assert bool(image.grid.crs_name) == bool(crs)
    assert image.grid.rotated == rotated
    with Raster([path]) as raster:
        whole = raster.read(range(1, bands + 1))
        np.testing.assert_array_equal(whole, np.where(image.valid, image.values, 0))
        rows, columns = image.grid.shape
        part = raster.read([1], image.grid.window(1, 1, rows - 1, columns - 2))
        np.testing.assert_array_equal(part, whole[:1, 1:, 1 : columns - 1])


def test_predictions_are_crossed() -> None:
    """What makes a county-year's units plain: soybean and corn differ by a factor of three."""
    with np.load(REAL / "predictions" / "original_model_rescaled_outputs.npz") as archive:

        def rmse(p: str, y: str) -> float:
            return float(np.sqrt(((archive[p] - archive[y]) ** 2).mean()))

        assert len(archive["locs"]) == 540
        assert rmse("corn_preds", "soy_yield") == pytest.approx(5.940, abs=0.001)
        assert rmse("soy_preds", "corn_yield") == pytest.approx(19.896, abs=0.001)
