"""Opening and reading slides and plain images."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.domains.medical.wsi_mil import extras, slides
from zoo.domains.medical.wsi_mil.sample_slides import write_pyramid
from zoo.domains.medical.wsi_mil.slides import (
    PlainImage,
    ScannedSlide,
    is_slide,
    magnification_of,
    open_slide,
)
from zoo.errors import ConfigError, DataError

from .slide_files import CMU, damage

RNG = np.random.default_rng(0)
# Asymmetric, so that swapped axes show.
PIXELS = np.kron(RNG.integers(0, 255, (40, 75, 3)), np.ones((16, 16, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "case.7.tif"
    write_pyramid(path, PIXELS)
    return path


def one_line(act: Callable[[], Any], *words: str) -> None:
    with pytest.raises(DataError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_pyramid_tells_its_levels_and_resolution(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        assert isinstance(slide, ScannedSlide)
        assert slide.name == "case.7"
        assert slide.dimensions == (1200, 640)
        assert slide.level_dimensions == ((1200, 640), (300, 160), (75, 40))
        assert list(slide.level_downsamples) == [1, 4, 16]
        assert slide.mpp == pytest.approx(0.25)
        assert slide.magnification == 40
        assert slide.bounds == (0, 0, 1200, 640)


def test_positions_are_level_0_pixels_at_every_level(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        exact = slide.read(320, 64, 0, (160, 96))
        assert (exact == PIXELS[64:160, 320:480]).all()
        coarse = slide.read(320, 64, 1, (40, 24))
        assert (coarse == PIXELS[64:160:4, 320:480:4]).all()


def test_what_lies_beyond_the_edge_is_background_not_black(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        found = slide.read(1190, 630, 0, (20, 20))
    assert (found[:10, :10] == PIXELS[630:, 1190:]).all()
    assert (found[10:] == 255).all()
    assert (found[:, 10:] == 255).all()


def test_a_transparent_border_takes_the_background_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = np.full((*PIXELS.shape[:2], 1), 255, np.uint8)
    alpha[:64] = 0
    path = tmp_path / "border.tif"
    write_pyramid(path, np.concatenate([np.where(alpha == 0, 0, PIXELS), alpha], axis=2))
    with open_slide(path) as slide:
        assert (slide.read(0, 0, 0, (64, 64)) == 255).all()
        assert (slide.read(0, 64, 0, (64, 64)) == PIXELS[64:128, :64]).all()
        slide.background = (10, 200, 30)
        assert (slide.read(0, 0, 0, (64, 64)) == (10, 200, 30)).all()
    assert slides._colour("0AC81E") == (10, 200, 30)
    assert slides._colour("no colour") == slides._colour(None) == slides.WHITE


def test_half_transparent_pixels_are_mixed() -> None:
    region = np.array([[[100, 0, 200, 128]]], np.uint8)
    mixed = slides._composited(region, (255, 255, 255))
    assert np.abs(mixed[0, 0].astype(int) - (177, 127, 227)).max() <= 1


def test_a_given_resolution_fills_in_and_never_replaces(tmp_path: Path, pyramid: Path) -> None:
    bare = tmp_path / "bare.tif"
    write_pyramid(bare, PIXELS, mpp=None)
    with open_slide(bare) as slide:
        assert slide.mpp is None
        assert slide.magnification is None
    with open_slide(bare, mpp=0.5) as slide:
        assert slide.mpp == 0.5
        assert slide.magnification == 20
    with open_slide(pyramid, mpp=0.5) as slide:
        assert slide.mpp == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("mpp", "power"),
    [(0.1, 80), (0.16, 60), (0.226, 40), (0.243, 40), (0.3, 20), (0.499, 20), (1, 10), (2.3, 5)],
)
def test_magnification_goes_by_the_bins_of_trident(mpp: float, power: float) -> None:
    assert magnification_of(mpp) == power


def test_beyond_the_bins_there_is_no_magnification() -> None:
    assert magnification_of(2.4) is None


def test_objective_power_serves_where_micrometres_are_missing() -> None:
    assert slides._stated_power({"aperio.AppMag": "40"}) == 40
    assert slides._stated_power({"openslide.objective-power": "x"}) is None
    assert slides._stated_mpp({"aperio.MPP": "0.2527"}) == pytest.approx(0.2527)
    tags = {"tiff.ResolutionUnit": "centimeter", "tiff.XResolution": "20000"}
    assert slides._stated_mpp(tags) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ((90000, 170000, 500, 400), (90000, 170000, 500, 400)),
        ((-5, 10, 50, 50), (0, 10, 45, 50)),
        ((99990, 0, 500, 400), (99990, 0, 10, 400)),
        ((200000, 0, 500, 400), (0, 0, 100000, 200000)),
    ],
)
def test_bounds_are_cut_to_the_slide(stated: tuple[int, ...], found: tuple[int, ...]) -> None:
    names = ("x", "y", "width", "height")
    texts = {f"openslide.bounds-{n}": str(v) for n, v in zip(names, stated, strict=True)}
    assert slides._bounds(texts, (100000, 200000)) == found


def save_png(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)


def save_jpeg(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, quality=95, subsampling=0, dpi=(72, 72))


def save_strips(path: Path) -> None:
    Image.fromarray(PIXELS).save(path)


def save_alpha(path: Path) -> None:
    alpha = np.full((*PIXELS.shape[:2], 1), 255, np.uint8)
    Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)).save(path)


@pytest.mark.parametrize(
    ("name", "save", "error"),
    [
        ("a.png", save_png, 0),
        ("a.jpg", save_jpeg, 20),
        ("a.tif", save_strips, 0),
        ("b.png", save_alpha, 0),
    ],
)
def test_plain_images_read_like_slides(
    tmp_path: Path, name: str, save: Callable[[Path], None], error: int
) -> None:
    path = tmp_path / name
    save(path)
    assert is_slide(path)
    with open_slide(path) as slide:
        assert isinstance(slide, PlainImage)
        assert slide.dimensions == (1200, 640)
        assert slide.level_dimensions == ((1200, 640),)
        assert slide.mpp is None  # 72 dpi is the camera's, not the microscope's
        part = slide.read(1180, -10, 0, (40, 30))
        assert (part[:10] == 255).all()
        assert (part[:, 20:] == 255).all()
        difference = part[10:, :20].astype(int) - PIXELS[:20, 1180:]
        assert np.abs(difference).max() <= error
        assert (slide.read(5000, 5000, 0, (3, 3)) == 255).all()


def test_both_readers_give_the_same_tiles(tmp_path: Path, pyramid: Path) -> None:
    plain = tmp_path / "same.png"
    save_png(plain)
    with open_slide(pyramid) as first, open_slide(plain) as second:
        for x, y in ((0, 0), (333, 111), (1100, 600), (-50, -20)):
            a, b = (s.read(x, y, 0, (128, 64)) for s in (first, second))
            assert (a == b).all()


def test_a_plain_tiff_tells_its_resolution(tmp_path: Path) -> None:
    path = tmp_path / "cm.tif"
    tifffile.imwrite(path, PIXELS, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    with open_slide(path) as slide:
        assert isinstance(slide, PlainImage)
        assert slide.mpp == pytest.approx(0.5)


def test_a_thumbnail_tells_its_factor(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        small, factor = slide.thumbnail(150)
        assert small.shape == (80, 150, 3)
        assert factor == 8
        difference = small.mean((0, 1)) - PIXELS.mean((0, 1))
        assert np.abs(difference).max() < 2
        whole, factor = slide.thumbnail(5000)
        assert factor == 1
        assert (whole == PIXELS).all()


def text_file(path: Path) -> None:
    path.write_text("no picture")


def truncated_pyramid(path: Path) -> None:
    write_pyramid(path, PIXELS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def truncated_jpeg(path: Path) -> None:
    save_jpeg(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deep_png(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("name", "spoil", "word"),
    [
        ("a.svs", text_file, "damaged or cut off, copy it again"),
        ("a.png", text_file, "cannot be read as an image"),
        ("a.tif", truncated_pyramid, "copy it again"),
        ("a.jpg", truncated_jpeg, "copy it again"),
        ("a.png", deep_png, "8 bits a channel"),
        ("gone.svs", lambda path: None, "no such slide file"),
    ],
)
def test_a_broken_file_gives_one_line(
    tmp_path: Path, name: str, spoil: Callable[[Path], None], word: str
) -> None:
    path = tmp_path / name
    spoil(path)
    one_line(lambda: open_slide(path), str(path), word)


def test_a_damaged_tile_gives_one_line_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    write_pyramid(path, PIXELS)
    damage(path, 0, 0)
    with open_slide(path) as slide:
        one_line(lambda: slide.read(0, 0, 0, (32, 32)), str(path), "(0, 0)", "copy it again")


def test_a_level_that_is_not_there_gives_one_line(pyramid: Path) -> None:
    with open_slide(pyramid) as slide:
        one_line(lambda: slide.read(0, 0, 3, (8, 8)), "no level 3", "0 to 2")


def test_other_files_are_no_slides(tmp_path: Path, pyramid: Path) -> None:
    text_file(tmp_path / "a.tif")
    text_file(tmp_path / "labels.csv")
    text_file(tmp_path / "._b.svs")
    assert is_slide(pyramid)
    assert not any(is_slide(tmp_path / n) for n in ("a.tif", "labels.csv", "._b.svs", "gone.tif"))


@pytest.mark.parametrize("name", ["cut.svs", "cut.tif", "cut.jpg", "empty.png"])
def test_a_damaged_slide_still_counts_as_one(name: str, tmp_path: Path) -> None:
    """Passed over in silence it would be missing from the features without a word."""
    begins = {".svs": b"II*\0", ".tif": b"MM\0*", ".jpg": b"\xff\xd8\xff", ".png": b""}
    path = tmp_path / name
    path.write_bytes(begins[path.suffix])
    assert is_slide(path)
    with pytest.raises(DataError, match=name):
        open_slide(path)


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ConfigError, match=r"'openslide'.*pip install '\.\[pathology\]'"):
        extras.need("openslide")


@pytest.mark.skipif(not CMU.is_file(), reason="the shared real slide is not on this machine")
def test_the_real_slide_opens() -> None:
    with open_slide(CMU) as slide:
        assert slide.dimensions == (2220, 2967)
        assert slide.mpp == pytest.approx(0.499)
        assert slide.magnification == 20
        assert slide.read(1000, 1000, 0, (64, 64)).std() > 5
