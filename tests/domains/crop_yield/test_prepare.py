"""From exports to histograms: exact, resumable, shared among processes, clear about defects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.domains.crop_yield.writers import (
    COVER,
    HEAT,
    IMAGE,
    YEARS,
    settings,
    small_counties,
    write_csv,
    write_exports,
    write_flat,
)
from zoo.domains.remote_sensing.crop_yield import prepare
from zoo.domains.remote_sensing.crop_yield.config import CropData
from zoo.domains.remote_sensing.crop_yield.exports import Rules, find_exports, read_county
from zoo.domains.remote_sensing.crop_yield.histograms import (
    histogram,
    masked,
    paired,
    proportions,
)
from zoo.domains.remote_sensing.crop_yield.prepare import Preparation, prepare_modis, spans
from zoo.domains.remote_sensing.crop_yield.rasters import read_image
from zoo.domains.remote_sensing.crop_yield.sample_modis import write_county, write_raster
from zoo.errors import ConfigError, DataError

pytest.importorskip("rasterio", reason="needs the extra 'remote'")
FLAT_CSV = "Year,State ANSI,County ANSI,Value\n2003,17,1,40"


def flat(root: Path, **kind: Any) -> Path:
    write_flat(root, "17_1", **kind)
    write_csv(root / "yields.csv", FLAT_CSV)
    return root


def one(root: Path, **data: Any) -> Any:
    config = settings(root, **data)
    export = find_exports(root, config.data)["17001"]
    return read_county(export, Rules.of(config.data, root), (-89.49, 39.99))


def test_a_county_equals_the_plain_chain(small_exports: Path) -> None:
    """Windows and band subsets give what reading the whole stack and masking gives."""
    found = read_county(find_exports(small_exports, CropData())["17003"], Rules())
    light, heat, cover = (
        read_image(small_exports / f / "17_3.tif").values for f in (IMAGE, HEAT, COVER)
    )
    assert found.years.tolist() == list(YEARS)
    for k in range(2):
        year = paired(light[k * 322 : (k + 1) * 322], heat[k * 92 : (k + 1) * 92])
        expected = histogram(masked(year, cover[k] == 12))
        np.testing.assert_array_equal(proportions(found.counts[k]), expected)


@pytest.mark.parametrize("kind", ["tiled", "band", "windows"])
def test_storage_does_not_matter(
    kind: str, small_exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    county = small_counties()[1]
    if kind == "windows":
        monkeypatch.setattr(
            "zoo.domains.remote_sensing.crop_yield.exports._WINDOW_BYTES", 644 * 2 * 12 * 3
        )
    settings_of = {kind: True} if kind != "windows" else {}
    write_county(tmp_path, county, np.random.default_rng(1), **settings_of)
    found = read_county(find_exports(tmp_path, CropData())["17003"], Rules())
    plain = read_county(find_exports(small_exports, CropData())["17003"], Rules())
    np.testing.assert_array_equal(found.counts, plain.counts)
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    assert len(find_exports(tmp_path, CropData())["17003"].image) == (2 if kind == "tiled" else 1)


def test_coarse_temperature_is_spread(tmp_path: Path) -> None:
    flat(tmp_path)
    heat = np.full((92, 2, 3), 15000, np.uint16)
    heat[:, :, 1] = 14000
    write_raster(tmp_path / HEAT / "17_1.tif", heat, -89.5, 40.0, 2 * 0.0044916)
    found = one(tmp_path)
    assert found.counts[0, 7, 0].sum() == 20  # 4 x 5 pixels
    assert sorted(n for n in found.counts[0, 7, 0].tolist() if n) == [8, 12]


def test_a_short_year_is_padded_and_told(tmp_path: Path) -> None:
    found = one(flat(tmp_path, composites=46 + 20))
    assert found.years.tolist() == [2003, 2004]
    assert found.steps.tolist() == [32, 14]
    assert found.counts[1, :, 14:].sum() == 0
    assert found.notes == ("2004: 14 of 32 steps, the others are empty",)
    flat(tmp_path / "b", composites=46 + 5)
    assert one(tmp_path / "b").notes == ("2004: ends before the season begins",)


def test_pairing_stops_where_temperature_ends(tmp_path: Path) -> None:
    flat(tmp_path, composites=50)
    heat = np.full((92, 4, 5), 15000, np.uint16)
    write_raster(tmp_path / HEAT / "17_1.tif", heat, -89.5, 40.0, 0.0044916)
    found = one(tmp_path)
    assert found.years.tolist() == [2003]
    assert "50 composites of reflectance and 46 of temperature" in found.notes[0]


def test_the_last_land_cover_band_holds_on(tmp_path: Path) -> None:
    flat(tmp_path, composites=3 * 46)
    cover = np.stack([np.full((4, 5), 12), np.full((4, 5), 12)]).astype(np.uint16)
    cover[1, :, 2:] = 5
    write_raster(tmp_path / COVER / "17_1.tif", cover, -89.5, 40.0, 0.0044916)
    assert one(tmp_path).pixels.tolist() == [20, 8, 8]


def test_the_cropland_data_layer_masks_by_its_year(tmp_path: Path) -> None:
    flat(tmp_path, composites=2 * 46)
    for year, width in ((2003, 40), (2004, 20)):
        cdl = np.zeros((1, 40, 50), np.uint16)
        cdl[..., :width] = 5
        path = tmp_path / "cdl" / f"{year}_30m_cdls.tif"
        write_raster(path, cdl, -89.5, 40.0, 0.00044916)
    found = one(tmp_path, mask_source="cdl", mask_folder="cdl", land_cover=5)
    assert found.pixels.tolist() == [16, 8]
    with pytest.raises(DataError, match="no Cropland Data Layer map"):
        one(tmp_path, mask_source="cdl", mask_folder="none", land_cover=5)


def damage(root: Path, kind: str) -> None:
    image, heat = root / IMAGE / "17_1.tif", root / HEAT / "17_1.tif"
    if kind == "no temperature":
        heat.unlink()
    elif kind == "cut off":
        image.write_bytes(image.read_bytes()[:-400])
    elif kind == "missing band":
        write_raster(image, np.ones((321, 4, 5), np.uint16), -89.5, 40.0, 0.0044916)
    elif kind == "all nodata":
        write_raster(image, np.zeros((322, 4, 5), np.uint16), -89.5, 40.0, 0.0044916)
    elif kind == "celsius":
        write_raster(heat, np.full((92, 4, 5), 27, np.uint16), -89.5, 40.0, 0.0044916)
    elif kind == "two files":
        shutil.copyfile(image, image.with_name("17_001.tif"))
    elif kind == "no crs":
        write_flat(root, "17_1", crs=None)
    elif kind == "metres as degrees":
        write_flat(root, "17_1", place=(435720.0, 4179460.0))
    elif kind == "elsewhere":
        write_flat(root, "17_1", place=(-99.5, 40.0))
    elif kind == "no cropland":
        write_flat(root, "17_1", cover=5)
    else:
        raise AssertionError(kind)


DEFECTS = {
    "no temperature": "no temperature file in",
    "cut off": "damaged or cut off",
    "missing band": "321 bands are no whole number of reflectance composites of 7",
    "all nodata": "every pixel is nodata",
    "celsius": "no temperature from 230 to 330 K; values are counts of 0.02 K",
    "two files": "17_001.tif, 17_1.tif are all county 17001",
    "no crs": r"no coordinate system \(CRS\)",
    "metres as degrees": "the CRS is wrong",
    "elsewhere": "wrong CRS, or another county's file",
    "no cropland": "no pixel of land-cover class 12",
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_is_one_line(kind: str, tmp_path: Path) -> None:
    flat(tmp_path)
    damage(tmp_path, kind)
    with pytest.raises(DataError, match=DEFECTS[kind]) as told:
        one(tmp_path)
    assert "\n" not in str(told.value)


def test_a_broken_county_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_exports(tmp_path / "raw", count=2)
    (tmp_path / "raw" / HEAT / "17_3.tif").unlink()
    with pytest.raises(
        DataError, match=r"county 17003: no temperature.*the other counties are done"
    ):
        prepare_modis(tmp_path / "out", settings(tmp_path / "raw"), tmp_path / "raw")
    report = pd.read_csv(tmp_path / "out" / "prepared.csv", dtype=str).set_index("fips")
    assert report["status"].to_dict() == {"17001": "ok", "17003": "failed"}
    assert report.loc["17001", "years"] == "2003-2004"
    prepare_modis(tmp_path / "out", settings(tmp_path / "raw", on_error="skip"), tmp_path / "raw")
    assert "2 counties: 1 ok, 1 failed" in capsys.readouterr().out


def contents(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted([*out.glob("histograms/*.npz"), out / "histogram_all_full.npz"]):
        with np.load(path, allow_pickle=False) as archive:
            found |= {f"{path.name}/{k}": archive[k] for k in archive.files}
    return found | {p.name: p.read_text() for p in out.glob("*.csv")}


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, two[key], err_msg=key)


def test_published_file_has_its_layout(small_exports: Path, tmp_path: Path) -> None:
    assert Preparation(tmp_path, CropData(), small_exports).run()
    with np.load(tmp_path / "histogram_all_full.npz", allow_pickle=False) as full:
        assert {k: (full[k].shape, full[k].dtype.kind) for k in full.files} == {
            "output_image": ((6, 9, 32, 32), "f"),
            "output_yield": ((6,), "f"),
            "output_year": ((6,), "f"),
            "output_locations": ((6, 2), "f"),
            "output_index": ((6, 2), "f"),
        }
        assert full["output_image"].dtype == np.float64
        assert full["output_year"].tolist() == [2003.0] * 3 + [2004.0] * 3
        assert full["output_index"][:3].tolist() == [[17, 1], [17, 3], [17, 5]]
        made = small_counties()
        assert full["output_yield"].tolist() == [c.yields[k] for k in range(2) for c in made]
        # The table's slipped sign of the third county is put right.
        np.testing.assert_allclose(full["output_locations"][2], [made[2].lon, made[2].lat])
    with np.load(tmp_path / "histograms" / "2004.npz", allow_pickle=False) as year:
        assert year["fips"].tolist() == ["17001", "17003", "17005"]
        assert year["histogram"].dtype == np.float32


def test_a_run_goes_on_where_it_stopped(
    small_exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Preparation(tmp_path / "whole", CropData(), small_exports).run()
    seen: list[str] = []
    treat = prepare.treat

    def stopping(parts: Path, export: Any, rules: Any, place: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(export.fips)
        return treat(parts, export, rules, place)

    monkeypatch.setattr(prepare, "treat", stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        Preparation(out, CropData(), small_exports).run()
    assert not (out / "histogram_all_full.npz").exists()
    leftover = out / "county_histograms" / ".17005-abcdefgh.npz"
    leftover.write_bytes(b"half")
    seen.clear()
    lines: list[str] = []
    Preparation(out, CropData(), small_exports, lines.append).run()
    assert seen == ["17005"]
    assert lines[0] == "2 of 3 counties are done already"
    assert not leftover.exists()
    same(contents(out), contents(tmp_path / "whole"))
    seen.clear()
    Preparation(out, CropData(), small_exports).run()
    assert seen == []


def test_a_changed_export_is_done_again(tmp_path: Path) -> None:
    root = flat(tmp_path / "raw")
    out = tmp_path / "out"
    Preparation(out, CropData(), root).run()
    before = contents(out)["2003.npz/histogram"]
    write_flat(root, "17_1", nir=1000)
    Preparation(out, CropData(), root).run()
    assert not np.array_equal(before, contents(out)["2003.npz/histogram"])


def test_other_rules_do_not_mix(tmp_path: Path) -> None:
    root = flat(tmp_path / "raw")
    Preparation(tmp_path / "out", CropData(), root).run()
    with pytest.raises(ConfigError, match=r"land_cover=12 \(now 5\); name another out"):
        Preparation(tmp_path / "out", CropData(land_cover=5), root)


def test_shards_and_processes_give_the_same(small_exports: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    Preparation(whole, CropData(prepare_workers=2), small_exports).run()
    first = Preparation(shared, CropData(prepare_workers=1), small_exports).run(0, 2)
    assert [s.fips for s in first] == ["17001", "17005"]
    assert not (shared / "histogram_all_full.npz").exists()
    report = pd.read_csv(shared / "prepared.csv", dtype=str)
    assert report["status"].tolist() == ["ok", "waiting", "ok"]
    second = Preparation(shared, CropData(prepare_workers=1), small_exports).run(1, 2)
    assert [s.fips for s in second] == ["17003"]
    same(contents(whole), contents(shared))


def test_nothing_to_prepare_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder; set data\.raw"):
        Preparation(tmp_path / "out", CropData(), tmp_path)
    (tmp_path / IMAGE).mkdir()
    with pytest.raises(DataError, match=r"no file is named STATE_COUNTY\.tif"):
        Preparation(tmp_path / "out", CropData(), tmp_path)
    write_flat(tmp_path, "17_1")
    with pytest.raises(DataError, match="no csv of yields found"):
        Preparation(tmp_path / "out", CropData(), tmp_path)
    write_csv(tmp_path / "y.csv", FLAT_CSV.replace("17,1", "18,1"))
    with pytest.raises(DataError, match="no exports of states 18"):
        Preparation(tmp_path / "out", CropData(states=["18"]), tmp_path)
    assert not (tmp_path / "out").exists()


def test_settings_that_are_damaged_are_told(tmp_path: Path) -> None:
    root = flat(tmp_path / "raw")
    Preparation(tmp_path / "out", CropData(), root).run()
    told = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert told == {"export_start": 2003, "land_cover": 12}
    (tmp_path / "out" / "settings.json").write_text("{")
    with pytest.raises(DataError, match="missing or damaged"):
        Preparation(tmp_path / "out", CropData(), root)


def test_runs_of_years_are_short() -> None:
    assert spans([2003, 2004, 2005, 2007, 2009, 2010]) == "2003-2005,2007,2009-2010"
