"""The sample data set: its files are the real ones' kind, and yields follow from the imagery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.domains.crop_yield.writers import COVER, HEAT, IMAGE, settings
from zoo.domains.remote_sensing.crop_yield.modis_data import check_modis, open_modis
from zoo.domains.remote_sensing.crop_yield.prepare import Preparation
from zoo.domains.remote_sensing.crop_yield.rasters import read_image
from zoo.domains.remote_sensing.crop_yield.sample_modis import PIXEL, write_modis

pytest.importorskip("rasterio", reason="needs the extra 'remote'")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sample with fewer counties and years, defects and all."""
    from zoo.domains.remote_sensing.crop_yield import sample_modis

    root = tmp_path_factory.mktemp("sample")
    patch = pytest.MonkeyPatch()
    made = sample_modis.counties(0, range(2003, 2007), ("17", "18"), 6)
    patch.setattr(sample_modis, "counties", lambda seed: made)
    patch.setattr(sample_modis, "YEARS", tuple(range(2003, 2007)))
    years = range(2003, 2007)
    tables = sample_modis.write_tables
    patch.setattr(sample_modis, "write_tables", lambda o, m, r: tables(o, m, r, years))
    write_modis(root / "clean")
    write_modis(root / "defects", defects=True)
    yield root
    patch.undo()


def test_files_are_as_exported(world: Path) -> None:
    clean = world / "clean"
    assert (clean / IMAGE / "17_1-0000000000-0000000000.tif").is_file()
    image = read_image(clean / IMAGE / "17_3.tif", [1])
    assert image.grid.crs_name == "EPSG:4326"
    assert image.grid.pixel_size == pytest.approx((PIXEL, PIXEL))
    assert image.nodata == 0
    assert image.values.dtype == np.uint16
    assert not image.valid.all()
    coarse = read_image(clean / HEAT / "17_7.tif", [1])
    assert coarse.grid.pixel_size == pytest.approx((2 * PIXEL, 2 * PIXEL))
    assert set(np.unique(read_image(clean / COVER / "17_3.tif").values)) >= {0, 12}


def test_the_sample_is_clean_and_its_yields_follow_from_imagery(world: Path) -> None:
    config = settings(world / "clean", val_fraction=0)
    assert not [f for f in check_modis(config) if f.level == "error"]
    splits = open_modis(config)
    assert len(splits["train"]) == 36
    assert len(splits["test"]) == 12

    def features(split: object) -> np.ndarray:
        images = split.images  # type: ignore[attr-defined]
        brightness = (images[:, :2, 12:24] * np.arange(32)).sum(-1).mean(-1)
        return np.concatenate([brightness, np.ones((len(images), 1))], axis=1)

    def truth(split: object) -> np.ndarray:
        return np.array([s.yield_bu_acre for s in split.samples])  # type: ignore[attr-defined]

    weights = np.linalg.lstsq(features(splits["train"]), truth(splits["train"]), rcond=None)[0]
    y, found = truth(splits["test"]), features(splits["test"]) @ weights
    assert 1 - ((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum() > 0.5


def test_the_same_seed_writes_the_same(world: Path, tmp_path: Path) -> None:
    one = open_modis(settings(world / "clean"))["train"].digest
    work = Preparation(tmp_path, settings(None, prepare_workers=1).data, world / "clean")
    work.run()
    assert open_modis(settings(tmp_path))["train"].digest == one


def test_every_defect_is_found(world: Path) -> None:
    findings = check_modis(settings(world / "defects", val_fraction=0))
    assert [f.level for f in findings].count("error") == 5
    skipping = check_modis(settings(world / "defects", val_fraction=0, on_error="skip"))
    assert not [f for f in skipping if f.level == "error"]
    told = "\n".join(f.line() for f in findings)
    for words in (
        "no temperature file in",
        "no land cover file in",
        "damaged or cut off",
        "every pixel is nodata",
        "wrong CRS, or another county's file",
    ):
        assert words in told
    assert "county 17003" in told
    assert len(open_modis(settings(world / "defects", val_fraction=0))["test"]) == 7
