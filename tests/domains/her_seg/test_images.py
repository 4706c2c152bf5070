from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.domains.her_seg.picture_files import disc, picture, save
from zoo.domains.medical.her_seg.images import (
    head,
    images_in,
    is_image,
    look_whole,
    read_image,
    to_bytes,
)
from zoo.errors import DataError
from zoo.images import opened

RGB = picture(disc())


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | int = 255) -> np.ndarray:
    plane = np.broadcast_to(np.asarray(alpha, np.uint8), rgb.shape[:2])
    return np.concatenate([rgb, plane[..., None]], axis=2)


def test_colour_is_read_as_it_is(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif", "webp"):
        path = save(
            tmp_path / f"a.{suffix}", RGB, **({"lossless": True} if suffix == "webp" else {})
        )
        np.testing.assert_array_equal(read_image(path), RGB)


def test_alpha_is_dropped_and_not_composited(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", with_alpha(RGB, np.arange(20) * 12))
    np.testing.assert_array_equal(read_image(path), RGB)
    grey = np.stack([RGB[..., 0], np.full(RGB.shape[:2], 9, np.uint8)], axis=2)
    path = save(tmp_path / "la.png", grey)
    np.testing.assert_array_equal(read_image(path), np.repeat(RGB[..., :1], 3, axis=2))


def test_grey_one_bit_and_palette_become_colour(tmp_path: Path) -> None:
    grey = save(tmp_path / "g.png", RGB[..., 0])
    np.testing.assert_array_equal(read_image(grey), np.repeat(RGB[..., :1], 3, axis=2))
    bits = tmp_path / "b.png"
    Image.fromarray(disc()).save(bits)
    np.testing.assert_array_equal(read_image(bits)[..., 1], disc() * 255)
    palette = tmp_path / "p.gif"
    image = Image.fromarray(disc().astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(palette)
    np.testing.assert_array_equal(
        read_image(palette), np.where(disc()[..., None], (200, 100, 50), (10, 20, 30))
    )


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(path, quality=95)
    assert np.abs(read_image(path).astype(int) - flat).max() <= 4


@pytest.mark.parametrize(("top", "full"), [(255, 255), (1000, 1023), (4000, 4095), (60000, 65535)])
def test_depth_of_16_bit_files_is_told_by_their_largest_value(
    tmp_path: Path, top: int, full: int
) -> None:
    values = np.linspace(0, top, 24 * 20).reshape(24, 20).round().astype(np.uint16)
    path = save(tmp_path / "a.png", values)
    expected = np.rint(values / full * 255).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path)[..., 2], expected)


def test_window_replaces_that_rule_for_deep_files_only(tmp_path: Path) -> None:
    deep = save(tmp_path / "a.png", np.array([[0, 100, 200, 900]], np.uint16))
    assert read_image(deep, window=(100, 200))[0, :, 0].tolist() == [0, 0, 255, 255]
    flat = save(tmp_path / "b.png", RGB)
    np.testing.assert_array_equal(read_image(flat, window=(100, 200)), RGB)


def test_16_bit_colour_keeps_order_and_bits(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = RGB.astype(np.uint16) * 257
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
        assert head(tmp_path / name).kind == "16-bit colour"
        assert head(tmp_path / name).size == RGB.shape[:2]


def test_floats_are_taken_as_shares_or_stretched() -> None:
    assert to_bytes(np.array([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    assert to_bytes(np.array([0.0, 0.2])).tolist() == [0, 51]
    assert to_bytes(np.array([-10.0, 0.0, 10.0])).tolist() == [0, 128, 255]
    assert to_bytes(np.array([np.nan, 1.0])).tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.repeat(np.repeat(RGB, 8, axis=0), 8, axis=1)  # JPEG keeps 8 x 8 blocks
    turns: dict[int, Any] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.transpose(a, (1, 0, 2)),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.transpose(a, (1, 0, 2)), 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(turns[orientation](upright)), exif=exif)
    read = read_image(path)
    assert read.shape == upright.shape == (*head(path).size, 3)
    assert np.abs(read.astype(int) - upright).mean() < 10
    assert head(path).stored == (upright.shape[:2] if orientation < 5 else upright.shape[1::-1])


def test_picture_is_left_as_stored_where_only_that_fits_the_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", RGB, exif=exif)
    assert read_image(path).shape == (20, 24, 3)
    assert read_image(path, like=(24, 20)).shape == (24, 20, 3)
    assert read_image(path, like=(20, 24)).shape == (20, 24, 3)
    assert read_image(path, like=(5, 5)).shape == (20, 24, 3)


def test_exif_in_png_counts_where_it_stands_before_the_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(tmp_path / "a.png", RGB, exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, 2))


def test_broken_files_are_one_line_with_their_name(tmp_path: Path) -> None:
    good = save(
        tmp_path / "good.png", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    )
    body = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(body[: len(body) // 2])
    (tmp_path / "flipped.png").write_bytes(body[:900] + bytes(64) + body[964:])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>")
    for name, told in (
        ("cut.png", "truncated"),
        ("flipped.png", "the image is broken"),
        ("empty.png", "the file is empty"),
        ("text.jpg", "is no image"),
        ("none.png", "no such file"),
    ):
        with pytest.raises(DataError, match=told) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_cut_off_files_are_seen_without_decoding_whole_ones(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)
    for suffix in ("png", "jpg"):
        path = save(tmp_path / f"a.{suffix}", noise)
        look_whole(path)
        body = path.read_bytes()
        path.write_bytes(body[: len(body) // 2])
        with pytest.raises(DataError, match="truncated"):
            look_whole(path)
    # Bytes after the end of a JPEG are no fault.
    path = save(tmp_path / "b.jpg", noise)
    path.write_bytes(path.read_bytes() + bytes(9000))
    look_whole(path)


def test_file_with_several_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    page = Image.fromarray(RGB)
    page.save(path, save_all=True, append_images=[page])
    assert head(path).frames == 2
    with pytest.raises(DataError, match="holds 2 pictures"):
        read_image(path)


def test_huge_claims_are_refused_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RGB)
    with pytest.raises(DataError, match="too many"), opened(path, most=100):
        pass


def test_files_of_file_managers_are_no_pictures(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "._a.jpg", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in images_in(tmp_path)] == ["a.jpg", "b.PNG"]
    assert not is_image(tmp_path / "._a.jpg")
    with pytest.raises(DataError, match="cannot be listed"):
        images_in(tmp_path / "none")
