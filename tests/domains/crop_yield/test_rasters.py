"""Rasters by content: grids, nodata, tiles, other projections, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.domains.remote_sensing.crop_yield.counties import parse_outline
from zoo.domains.remote_sensing.crop_yield.rasters import (
    Grid,
    Raster,
    class_share,
    format_of,
    is_raster,
    nearest,
    read_image,
)
from zoo.domains.remote_sensing.crop_yield.sample_modis import write_raster
from zoo.errors import ConfigError, DataError

rasterio = pytest.importorskip("rasterio", reason="needs the extra 'remote'")
PIXEL = 0.01


def ramp(bands: int = 2, height: int = 5, width: int = 6) -> np.ndarray:
    return np.arange(1, bands * height * width + 1).reshape(bands, height, width).astype(np.uint16)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL)
    (tmp_path / "b.jp2").write_bytes((tmp_path / "a.tif").read_bytes())
    image = read_image(tmp_path / "b.jp2")
    assert image.driver == format_of(tmp_path / "b.jp2") == "GTiff"
    np.testing.assert_array_equal(image.values, ramp())


def test_jpeg_2000_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (1, 64, 64)).astype(np.uint16)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="JP2OpenJPEG", height=64, width=64, count=1,
        dtype="uint16", QUALITY="100", REVERSIBLE="YES",
        crs="EPSG:32618", transform=rasterio.Affine(20, 0, 4e5, 0, -20, 4e6),
    ) as out:  # fmt: skip
        out.write(values)
    image = read_image(tmp_path / "a.tif")
    assert image.driver == "JP2OpenJPEG"
    assert image.grid.crs_name == "EPSG:32618"
    np.testing.assert_array_equal(image.values, values)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "an empty file"),
        (b"<VRTDataset rasterXSize='1'/>", "neither GeoTIFF nor JPEG 2000"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 64, "neither GeoTIFF nor JPEG 2000"),
        (b"II*\0" + b"\0" * 40, "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, body: bytes, words: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(body)
    with pytest.raises(DataError, match=words) as told:
        read_image(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)
    assert not is_raster(tmp_path / "none.tif")


def test_bands_and_windows_are_parts_of_the_whole(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL)
    with Raster([tmp_path / "a.tif"]) as raster:
        part = raster.read([2], raster.grid.window(1, 2, 3, 4))
        np.testing.assert_array_equal(part, ramp()[1:, 1:4, 2:6])
        beyond = raster.read([1], raster.grid.window(4, 5, 2, 2))[0]
        assert beyond.tolist() == [[30, 0], [0, 0]]
        with pytest.raises(DataError, match="has 2 bands, band 3 is missing"):
            raster.read([3])
    assert read_image(tmp_path / "a.tif", [2]).values.shape == (1, 5, 6)


def test_nodata_becomes_zero(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL, nodata=7)
    assert not read_image(tmp_path / "a.tif").valid[0, 1, 0]
    with Raster([tmp_path / "a.tif"]) as raster:
        assert raster.read([1])[0, 1].tolist() == [0, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("overlap", [0, 1])
def test_tiles_make_the_whole(tmp_path: Path, overlap: int) -> None:
    values = ramp(3, 6, 9)
    parts = [(0, 0, 4, 5), (0, 5 - overlap, 4, 9), (4 - overlap, 0, 6, 5), (4, 5, 6, 9)]
    paths = []
    for k, (top, left, low, right) in enumerate(parts):
        paths.append(tmp_path / f"{k}.tif")
        part = values[:, top:low, left:right]
        write_raster(paths[-1], part, 10 + left * PIXEL, 50 - top * PIXEL, PIXEL)
    with Raster(paths[::-1]) as raster:
        assert raster.grid.shape == (6, 9)
        np.testing.assert_array_equal(raster.read([1, 2, 3]), values)
        np.testing.assert_array_equal(
            raster.read([2], raster.grid.window(3, 3, 2, 4)), values[1:2, 3:5, 3:7]
        )


def test_tiles_that_differ_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL)
    write_raster(tmp_path / "b.tif", ramp(3), 10.06, 50, PIXEL)
    write_raster(tmp_path / "c.tif", ramp(), 10.06, 50, 2 * PIXEL)
    write_raster(tmp_path / "d.tif", ramp(), 10.06, 50, PIXEL, crs="EPSG:4269")
    for other, words in (("b", "do not go with"), ("c", "its pixels"), ("d", "do not go with")):
        with pytest.raises(DataError, match=words):
            Raster([tmp_path / "a.tif", tmp_path / f"{other}.tif"])


def test_coarser_pixels_are_repeated(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(1, 2, 3), 10, 50, 2 * PIXEL)
    fine = Grid(rasterio.CRS.from_epsg(4326), rasterio.Affine(PIXEL, 0, 10, 0, -PIXEL, 50), 4, 6)
    with Raster([tmp_path / "a.tif"]) as raster:
        expected = ramp(1, 2, 3)[0].repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(raster.read([1], fine)[0], expected)


def test_another_projection_finds_the_same_places(tmp_path: Path) -> None:
    """A map of longitudes, asked for in metres of UTM, gives longitudes."""
    lon = 10 + PIXEL * (np.arange(60) + 0.5)
    values = np.broadcast_to(np.rint(lon * 1000), (1, 60, 60)).astype(np.uint16)
    write_raster(tmp_path / "a.tif", values, 10, 50, PIXEL)
    metres = Grid(
        rasterio.CRS.from_epsg(32632), rasterio.Affine(500, 0, 590000, 0, -500, 5500000), 20, 20
    )
    with Raster([tmp_path / "a.tif"]) as raster:
        found = raster.read([1], metres)[0]
    for row, column in ((0, 0), (7, 3), (19, 19)):
        x, y = 590000 + 500 * (column + 0.5), 5500000 - 500 * (row + 0.5)
        there, _ = rasterio.warp.transform("EPSG:32632", "EPSG:4326", [x], [y])
        assert abs(found[row, column] / 1000 - there[0]) <= PIXEL / 2 + 1e-3


def test_rotated_transforms_are_followed() -> None:
    turn = rasterio.Affine.rotation(30)
    grid = Grid(None, turn, 10, 10)
    assert grid.rotated
    assert grid.pixel_size == pytest.approx((1.0, 1.0))
    rows, columns, inside = nearest(grid, grid)
    assert inside.all()
    np.testing.assert_array_equal(rows, np.arange(10)[:, None].repeat(10, 1))
    np.testing.assert_array_equal(columns, np.arange(10)[None].repeat(10, 0))
    part = grid.window(2, 3, 4, 5)
    rows, columns, _ = nearest(grid, part)
    assert (rows[0, 0], columns[0, 0], rows[-1, -1], columns[-1, -1]) == (2, 3, 5, 7)


def test_no_coordinate_system_beside_one_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL, crs=None)
    write_raster(tmp_path / "b.tif", ramp(), 10, 50, PIXEL)
    with Raster([tmp_path / "a.tif"]) as bare, Raster([tmp_path / "b.tif"]) as placed:
        assert bare.grid.crs_name == ""
        with pytest.raises(DataError, match=r"a\.tif: only one of two rasters has"):
            bare.read([1], placed.grid)


def test_a_missing_package_is_told_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster(tmp_path / "a.tif", ramp(), 10, 50, PIXEL)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for call in (
        lambda: read_image(tmp_path / "a.tif"),
        lambda: Raster([tmp_path / "a.tif"]),
        lambda: write_raster(tmp_path / "b.tif", ramp(), 10, 50, PIXEL),
    ):
        with pytest.raises(ConfigError, match=r"'rasterio'.*pip install '\.\[remote\]'"):
            call()
    monkeypatch.setitem(sys.modules, "defusedxml.ElementTree", None)
    with pytest.raises(ConfigError, match=r"'defusedxml'.*pip install '\.\[remote\]'"):
        parse_outline("<Polygon/>", "here")


def test_share_of_a_class_is_averaged(tmp_path: Path) -> None:
    fine = np.zeros((1, 40, 40), np.uint16)
    fine[0, :, :20] = 5
    fine[0, :10, 20:30] = 5
    write_raster(tmp_path / "cdl.tif", fine, 10, 50, PIXEL / 10)
    grid = Grid(rasterio.CRS.from_epsg(4326), rasterio.Affine(PIXEL, 0, 10, 0, -PIXEL, 50), 4, 4)
    share = class_share(tmp_path / "cdl.tif", 5, grid)
    expected = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(share, expected, atol=1e-6)
    with pytest.raises(DataError, match="does not reach the county"):
        class_share(
            tmp_path / "cdl.tif", 5, Grid(grid.crs, grid.transform, 4, 4).window(0, 99, 4, 4)
        )
