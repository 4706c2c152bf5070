import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.mutating.watch import Memory
from zoo.domains.medical.medusa.images import (
    Preprocessing,
    Raster,
    as_input,
    load,
    load_mask,
    prepare,
    sample_of,
    standardised,
)
from zoo.errors import ConfigError, DataError

from .writers import picture, write_dicom, write_image


def error(path: Path, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


# -- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_grey_files_are_one_plane(tmp_path: Path, name: str) -> None:
    image = cv2.GaussianBlur(picture(), (0, 0), 2)
    raster = load(write_image(tmp_path / name, image))
    assert raster.colour is None
    np.testing.assert_allclose(raster.grey, image, atol=0 if name == "a.png" else 4)


def test_colour_keeps_its_file_order_and_has_the_decoders_grey(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (31, 45, 3), dtype=np.uint8)
    path = write_image(tmp_path / "a.png", image)
    raster = load(path)
    assert raster.colour is not None
    np.testing.assert_array_equal(raster.colour, image)
    np.testing.assert_array_equal(raster.grey, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    # The decoder truncates with libpng's weights, where a conversion of the colours would round.
    weights = np.array([32768 - 9797 - 19234, 19234, 9797])
    np.testing.assert_array_equal(raster.grey, (image.astype(np.int64) @ weights) >> 15)
    assert (raster.grey != cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).any()
    # BGR order: the last channel is red.
    assert as_input(raster.colour)[2, 3, 4] == np.float32(image[3, 4, 2]) / np.float32(255)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    image = picture()
    clear = np.stack([image, image, image, np.full_like(image, 7)], axis=-1)
    raster = load(write_image(tmp_path / "a.png", clear))
    assert raster.colour is None
    np.testing.assert_array_equal(raster.grey, image)


def test_16_bit_keeps_its_high_byte(tmp_path: Path) -> None:
    image = picture()
    deep = image.astype(np.uint16) * 256 + 77
    np.testing.assert_array_equal(load(write_image(tmp_path / "a.png", deep)).grey, image)


def test_16_bit_with_12_bit_values_is_refused(tmp_path: Path) -> None:
    """As 8 bit it would be nearly black, and cast to 8 bit it would wrap around."""
    dark = write_image(tmp_path / "a.png", picture().astype(np.uint16) * 15)
    error(dark, "16-bit", "grey levels", "spread its values")


def test_orientation_tags_are_obeyed(tmp_path: Path) -> None:
    image = picture(shape=(30, 40))
    plain = write_image(tmp_path / "a.jpg", image).read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path = tmp_path / "b.jpg"
    path.write_bytes(plain[:2] + segment + plain[2:])
    assert load(path).grey.shape == (40, 30)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_files_that_break_off(tmp_path: Path, name: str) -> None:
    path = write_image(tmp_path / name, picture(shape=(200, 200)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    error(path, "breaks off")
    with pytest.raises(DataError, match="breaks off"):
        sample_of(path)


def test_damaged_inside(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", picture())
    body = bytearray(path.read_bytes())
    body[20:24] = b"\xff\xff\xff\xff"  # the height
    path.write_bytes(bytes(body))
    error(path, "the header claims 40 x 4294967295 pixels")


SIDE = 6000  # 36 megapixels, as many as are let in


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Grey, but for a corner in the last rows."""
    ramp = np.arange(SIDE, dtype=np.uint8)
    colour = np.repeat((ramp[:, None] ^ ramp)[..., None], 3, axis=2)
    colour[-16:, -16:] = (10, 20, 200)
    return colour


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "grey.png", "16bit.png"])
def test_the_largest_picture_takes_few_copies(tmp_path: Path, name: str, large: np.ndarray) -> None:
    image = large if name.startswith("a.") else large[..., 0]
    if name.startswith("16"):
        image = image.astype(np.uint16) * 257
    path = write_image(tmp_path / name, image)
    load(write_image(tmp_path / "small.png", picture()))  # libraries are loaded
    with Memory() as memory:
        raster = load(path)
    assert (raster.colour is None) == (name != "a.png" and name != "a.jpg")
    assert raster.grey.shape == (SIDE, SIDE)
    # Colour and grey, and a little: decoders have no more than that at a time.
    assert memory.grown < 8 * SIDE * SIDE


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_headers_of_any_size_are_refused_before_decoding(tmp_path: Path, name: str) -> None:
    path = write_image(tmp_path / name, picture())
    sound = path.read_bytes()
    for width, height in ((6001, 6000), (30_000, 30_000), (65_500, 65_500)):
        body = bytearray(sound)
        if name == "a.png":
            body[16:24] = struct.pack(">II", width, height)
            body[29:33] = struct.pack(">I", zlib.crc32(body[12:29]))
        else:
            at = body.find(b"\xff\xc0")
            body[at + 5 : at + 9] = struct.pack(">HH", height, width)
            # Garbage and padding between markers, over which decoders go.
            body[at:at] = b"\x00\x10\xff\xff\xff\x01\xff\x00"
        path.write_bytes(bytes(body))
        with Memory() as memory:
            error(path, f"the header claims {width} x {height} pixels")
        assert memory.grown < 2**25


def test_what_is_no_image(tmp_path: Path) -> None:
    for name, body, words in (
        ("empty.png", b"", "empty"),
        ("text.png", b"<html>not found</html>", "neither PNG, JPEG nor DICOM"),
        ("gif.png", b"GIF89a" + bytes(200), "neither"),
    ):
        path = tmp_path / name
        path.write_bytes(body)
        error(path, words)
        with pytest.raises(DataError, match=words):
            sample_of(path)
    error(tmp_path / "none.png", "cannot be read")
    with pytest.raises(DataError, match="cannot be read"):
        sample_of(tmp_path / "none.png")


def test_checksum_tells_contents_apart(tmp_path: Path) -> None:
    one, same, other = (
        sample_of(write_image(tmp_path / f"{i}.png", picture(seed)))
        for i, seed in enumerate((1, 1, 2))
    )
    assert one == same != other


def test_dicom_brings_what_its_header_knows(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm",
        picture(),
        PatientID="4711",
        PatientSex="F",
        PatientAge="044Y",
        ViewPosition="AP",
    )
    raster = load(path)
    np.testing.assert_array_equal(raster.grey, picture())
    assert raster.meta == {"sex": "F", "age": "44", "view": "AP"}


def test_box_ends_are_exclusive(tmp_path: Path) -> None:
    image = picture(shape=(40, 50))
    path = write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(load(path, (5, 10, 45, 40)).grey, image[10:40, 5:45])
    for box in ((5, 10, 51, 40), (5, 10, 5, 40), (-1, 0, 5, 5)):
        with pytest.raises(DataError, match="does not fit into 50 x 40"):
            load(path, box)


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[medical\]'"):
        load(path)


# -- masks --------------------------------------------------------------------------------------


def test_masks_are_joined_and_resized(tmp_path: Path) -> None:
    left, right = np.zeros((40, 60), np.uint8), np.zeros((20, 30), np.uint8)
    left[10:30, 5:25], right[5:15, 18:28] = 255, 1
    paths = (write_image(tmp_path / "l.png", left), write_image(tmp_path / "r.png", right))
    made = load_mask(paths, (40, 60))
    expected = (left > 0) | np.kron(right, np.ones((2, 2), np.uint8)).astype(bool)
    np.testing.assert_array_equal(made, expected)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    empty = write_image(tmp_path / "e.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(DataError, match=r"e\.png: the mask is empty"):
        load_mask((empty,), (20, 20))
    wide = write_image(tmp_path / "w.png", np.eye(20, 40, dtype=np.uint8))
    with pytest.raises(DataError, match="40 x 20 pixels for an image of 20 x 20"):
        load_mask((wide,), (20, 20))


# -- both inputs --------------------------------------------------------------------------------


def test_resize_is_opencvs_on_8_bit() -> None:
    image = picture(shape=(90, 70))
    made = prepare(Raster(image), Preprocessing(48, 32))
    np.testing.assert_array_equal(made.image, cv2.resize(image, (48, 48)))
    np.testing.assert_array_equal(made.semantic, cv2.resize(image, (32, 32)))
    assert made.mask is None
    # Without antialiasing: every output pixel is a mean of two by two neighbours at most.
    dots = np.zeros((96, 96), np.uint8)
    dots[::8, ::8] = 255
    aliased = prepare(Raster(dots), Preprocessing(12, 16)).image
    assert aliased.max() in (0, 255, 128, 64, 191)


def test_crops() -> None:
    image = picture(shape=(101, 60))
    mask = np.zeros((101, 60), np.uint8)
    mask[50:] = 1
    made = prepare(Raster(image), Preprocessing(24, 16, 0.08, True), mask)
    # int(8.08) rows off the top; of the other 93 the middle 60, from int(33 / 2) on.
    cut = image[8 + 16 : 8 + 16 + 60]
    np.testing.assert_array_equal(made.image, cv2.resize(cut, (24, 24)))
    assert made.mask is not None
    assert made.mask.mean() == pytest.approx((84 - 50) / 60, abs=0.04)
    wide = picture(shape=(40, 101))
    square = prepare(Raster(wide), Preprocessing(40, 16, square=True))
    np.testing.assert_array_equal(square.image, wide[:, 30:70])


def test_crops_cut_colour_alike() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    grey = colour[..., 0].copy()
    made = prepare(Raster(grey, colour), Preprocessing(20, 20, 0.1, True))
    np.testing.assert_array_equal(made.image[..., 0], made.semantic)
    assert made.image.shape == (20, 20, 3)


def test_preview_is_small_and_keeps_the_aspect() -> None:
    made = prepare(Raster(picture(shape=(500, 400))), Preprocessing(24, 16))
    assert made.preview.shape == (192, 154)
    small = prepare(Raster(picture(shape=(50, 40))), Preprocessing(24, 16))
    assert small.preview.shape == (50, 40)


def test_standardised_per_image() -> None:
    made = standardised(picture())
    assert made.dtype == np.float32
    assert made.shape == (1, 48, 40)
    assert abs(made.mean(dtype=np.float64)) < 1e-6
    assert abs(made.std(dtype=np.float64) - 1) < 1e-6


def test_an_image_of_one_value_gives_zeros() -> None:
    assert not standardised(np.full((8, 8), 200, np.uint8)).any()


def test_inputs_are_scaled_to_one() -> None:
    made = as_input(picture())
    assert made.shape == (3, 48, 40)
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_array_equal(made[1], picture() / np.float32(255))
