from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from zoo.domains.saliency.rgbd_sod import images, sample
from zoo.domains.saliency.rgbd_sod.layouts import Pair
from zoo.domains.saliency.rgbd_sod.scenes import content_hash, read_heads, read_scene
from zoo.errors import DataError

RNG = np.random.default_rng(0)
RAMP = (np.arange(48 * 64).reshape(48, 64) * 17 % 60000).astype(np.uint16)
GREY = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
BLOB = np.zeros((48, 64), bool)
BLOB[10:30, 20:50] = True


def one_error(path: Path, read: object, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    for word in words:
        assert word in text, text


# -- depth: every bit depth unchanged -----------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_8_bit_depth_is_read_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d.{suffix}"
    Image.fromarray(GREY).save(path)
    raw = images.read_depth(path)
    np.testing.assert_array_equal(raw.values, GREY)
    assert (raw.kind, raw.zero_is_hole) == ("8-bit", False)
    assert images.head(path) == images.Head((48, 64), (48, 64), "8-bit")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_depth_is_neither_saturated_nor_divided(tmp_path: Path, suffix: str) -> None:
    """Pillow's conversion makes 256..65535 all 255, OpenCV's grey flag divides by 256."""
    path = tmp_path / f"d.{suffix}"
    Image.fromarray(RAMP).save(path)
    with Image.open(path) as image:
        assert (np.asarray(image.convert("L"))[RAMP > 255] == 255).all()  # the trap is real
    raw = images.read_depth(path)
    np.testing.assert_array_equal(raw.values, RAMP)
    assert (raw.kind, raw.zero_is_hole) == ("16-bit", True)
    assert images.head(path).kind == "16-bit"


def test_16_bit_colour_png_keeps_its_bits(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "d.png"
    cv2.imwrite(str(path), np.repeat(RAMP[..., None], 3, axis=2))
    raw = images.read_depth(path)
    np.testing.assert_array_equal(raw.values, RAMP)
    assert raw.kind == "16-bit"


def test_float_tiff(tmp_path: Path) -> None:
    metres = (RAMP / 1000).astype(np.float32)
    Image.fromarray(metres).save(tmp_path / "d.tif")
    raw = images.read_depth(tmp_path / "d.tif")
    np.testing.assert_array_equal(raw.values, metres)
    assert (raw.kind, raw.zero_is_hole) == ("float", True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_grey_stored_as_colour_is_averaged(tmp_path: Path, mode: str) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "d.png")
    np.testing.assert_array_equal(images.read_depth(tmp_path / "d.png").values, GREY)


def test_grey_jpeg_in_colour_is_averaged(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(GREY).resize((64, 48)).reduce(4).resize((64, 48)))
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "d.jpg", quality=80)
    off = images.read_depth(tmp_path / "d.jpg").values.astype(int) - smooth
    assert np.abs(off).mean() < 4


def test_coloured_depth_is_refused(tmp_path: Path) -> None:
    coloured = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)
    Image.fromarray(coloured).save(tmp_path / "d.png")
    one_error(tmp_path / "d.png", images.read_depth, "coloured", "grey map")


def test_mat_takes_the_named_or_the_only_matrix(tmp_path: Path) -> None:
    path = tmp_path / "d.mat"
    scipy.io.savemat(path, {"rawDepth": RAMP, "camera": np.eye(3), "note": "text"})
    raw = images.read_depth(path)
    np.testing.assert_array_equal(raw.values, RAMP)
    assert raw.values.dtype == np.uint16
    assert (raw.kind, raw.zero_is_hole) == ("mat", True)
    assert images.head(path) == images.Head((48, 64), (48, 64), "mat")
    scipy.io.savemat(path, {"anything": RAMP.astype(float), "scale": 2.0})
    np.testing.assert_array_equal(images.read_depth(path).values, RAMP)
    scipy.io.savemat(path, {"a": RAMP, "b": RAMP})
    one_error(path, images.read_depth, "found a, b")
    one_error(path, images.head, "found a, b")
    scipy.io.savemat(path, {"a": "text"})
    one_error(path, images.read_depth, "found none")
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    one_error(path, images.read_depth, "MATLAB file")


def write_hdf5_mat(path: Path) -> h5py.File:
    file = h5py.File(path, "w", userblock_size=512)
    return file


def test_mat_of_version_7_3(tmp_path: Path) -> None:
    path = tmp_path / "d.mat"
    with write_hdf5_mat(path) as file:
        file["depth"] = RAMP.T  # MATLAB stores by column
        file.create_group("#refs#")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file")
    np.testing.assert_array_equal(images.read_depth(path).values, RAMP)
    assert images.head(path).size == (48, 64)


def test_mat_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["depth"] = RAMP
    for make in (
        lambda f: f.__setitem__("depth", h5py.ExternalLink("other.h5", "/depth")),
        lambda f: f.create_dataset("depth", (4, 4), "u2", external=[("x.bin", 0, 32)]),
    ):
        path = tmp_path / "d.mat"
        with write_hdf5_mat(path) as file:
            make(file)
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file")
        one_error(path, images.read_depth, "refused")


# -- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "1bit", "01", "jpg", "palette", "rgb"])
def test_masks_of_every_kind(tmp_path: Path, kind: sample.MaskFormat) -> None:
    sample.write_mask(tmp_path / "m", BLOB, kind)
    mask = images.read_mask(next(tmp_path.iterdir()))
    assert mask.dtype == bool
    if kind == "jpg":  # ringing may move an edge pixel, never the area
        assert (mask != BLOB).mean() < 0.01
    else:
        np.testing.assert_array_equal(mask, BLOB)


def test_one_bit_mask_would_vanish_if_divided(tmp_path: Path) -> None:
    sample.write_mask(tmp_path / "m", BLOB, "1bit")
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "1"
        assert not (np.asarray(image).astype(float) / 255 > 0.5).any()  # the trap is real
    assert images.read_mask(tmp_path / "m.png").sum() == BLOB.sum()


def test_the_threshold_is_strict(tmp_path: Path) -> None:
    values = np.array([[0, 1, 127, 128], [129, 200, 254, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), values > 128)


def test_16_bit_and_empty_and_full_masks(tmp_path: Path) -> None:
    Image.fromarray(BLOB.astype(np.uint16) * 65535).save(tmp_path / "m.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), BLOB)
    for value in (0, 1, 255):
        Image.fromarray(np.full((4, 5), value, np.uint8)).save(tmp_path / "m.png")
        assert images.read_mask(tmp_path / "m.png").all() == (value > 0)


def test_a_palette_of_greys_counts_by_its_greys(tmp_path: Path) -> None:
    indexed = Image.fromarray(np.where(BLOB, 1, 2).astype(np.uint8))
    indexed.putpalette([9, 9, 9, 250, 250, 250, 0, 0, 0])
    indexed.save(tmp_path / "m.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), BLOB)


# -- images -------------------------------------------------------------------------------------


def save_turned(path: Path, values: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(path, exif=exif)


def test_exif_rotation_is_applied_unless_depth_fits_the_stored_pixels(tmp_path: Path) -> None:
    stored = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "i.png"
    save_turned(path, stored, 6)
    upright = np.rot90(stored, -1)
    np.testing.assert_array_equal(images.read_rgb(path), upright)
    np.testing.assert_array_equal(images.read_rgb(path, like=(64, 48)), upright)
    np.testing.assert_array_equal(images.read_rgb(path, like=(48, 64)), stored)
    assert images.head(path) == images.Head((64, 48), (48, 64), "8-bit")
    save_turned(path, stored, 3)
    np.testing.assert_array_equal(images.read_rgb(path, like=(48, 64)), np.rot90(stored, 2))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_become_colour(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(GREY).convert("RGB").convert(mode).save(tmp_path / f"i.{suffix}")
    rgb = images.read_rgb(tmp_path / f"i.{suffix}")
    assert rgb.shape == (48, 64, 3)
    assert rgb.dtype == np.uint8


def test_a_16_bit_photograph_is_scaled_not_cut(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "i.png")
    rgb = images.read_rgb(tmp_path / "i.png")
    np.testing.assert_array_equal(rgb[..., 0], np.rint(RAMP / 65535 * 255))


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "i.jpg"
    for read in (images.read_rgb, images.read_mask, images.read_depth, images.head):
        one_error(path, read, "no such file")
    path.write_bytes(b"no image")
    for read in (images.read_rgb, images.read_mask, images.read_depth, images.head):
        one_error(path, read, "no image")
    Image.fromarray(GREY).save(path)
    path.write_bytes(path.read_bytes()[:600])
    for read in (images.read_rgb, images.read_mask, images.read_depth):
        one_error(path, read, "copy the file again")
    one_error(tmp_path / "d.mat", images.read_depth, "no such file")


def test_huge_files_are_refused_before_reading(tmp_path: Path) -> None:
    Image.new("1", (10_001, 10_000)).save(tmp_path / "i.png")
    one_error(tmp_path / "i.png", images.read_rgb, "10001 x 10000 pixels are too many")


# -- sizes --------------------------------------------------------------------------------------


def pair(folder: Path, rgb: tuple[int, int], depth: tuple[int, int], mask: tuple[int, int]) -> Pair:
    for name, size in (("rgb", rgb), ("depth", depth), ("mask", mask)):
        mode = "RGB" if name == "rgb" else "L"
        Image.new(mode, size[::-1]).save(folder / f"{name}.png")
    return Pair("s/x", "s", "x", folder / "rgb.png", folder / "depth.png", folder / "mask.png")


def test_sizes_that_differ(tmp_path: Path) -> None:
    close = pair(tmp_path, (48, 64), (46, 64), (48, 65))
    for read in (read_scene, read_heads):
        read(close, "resize")
        one_error(tmp_path / "depth.png", lambda _, r=read: r(close, "error"), "64 x 46", "64 x 48")
    assert read_heads(close, "resize").differ
    assert not read_heads(pair(tmp_path, (48, 64), (48, 64), (48, 64)), "error").differ
    # Packages resized to a square are stretched with their depth: no sign of a mistake.
    read_scene(pair(tmp_path, (48, 64), (32, 32), (32, 32)), "resize")
    read_scene(pair(tmp_path, (64, 63), (63, 64), (64, 63)), "resize")
    turned = pair(tmp_path, (48, 64), (64, 48), (48, 64))
    for read in (read_scene, read_heads):
        one_error(tmp_path / "depth.png", lambda _, r=read: r(turned, "resize"), "lies on its side")


def test_resizing_is_antialiased_and_masks_stay_binary() -> None:
    stripes = np.tile(np.array([0, 1], np.float32), (64, 32))
    assert np.abs(images.resized(stripes, (16, 16)) - 0.5).max() < 0.05
    small = images.resized(BLOB.astype(np.uint8), (17, 23), nearest=True)
    assert set(np.unique(small)) == {0, 1}
    assert images.thumbnail(GREY, 32).shape == (24, 32)
    assert images.thumbnail(GREY, 128) is GREY


def test_content_hash_sees_content_and_size(tmp_path: Path) -> None:
    path = tmp_path / "f"
    seen = {content_hash(None)}
    for body in (b"a", b"b", b"a" * 300_000, b"a" * 300_001, b"a" * 299_999 + b"b"):
        path.write_bytes(body)
        seen.add(content_hash(path))
    assert len(seen) == 6
    path.write_bytes(b"a")
    assert content_hash(path) in seen
