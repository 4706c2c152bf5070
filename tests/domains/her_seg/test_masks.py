from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.domains.her_seg.picture_files import configure, disc, save
from zoo.domains.medical.her_seg.masks import Coding, coding_of, levels, read_mask, read_values
from zoo.errors import ConfigError, DataError

MASK = disc()
PLAIN = Coding()


def coding(**data: Any) -> Coding:
    return coding_of(configure(None, **data).data)


def palette(path: Path, index: np.ndarray, colours: list[int]) -> Path:
    image = Image.fromarray(index.astype(np.uint8), mode="P")
    image.putpalette(colours)
    image.save(path)
    return path


def grey3(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2)


def rgba(mask: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([grey3(mask), alpha.astype(np.uint8)[..., None]], axis=2)


FULL = np.full(MASK.shape, 255)
KINDS = {
    "grey": MASK,
    "ones": MASK.astype(np.uint8),
    "rgb": grey3(MASK),
    "opaque": rgba(MASK, FULL),
    "see-through": rgba(MASK, FULL * 0),
    "in the alpha": rgba(np.zeros_like(MASK), MASK * 255),
    "red": grey3(MASK) * np.array([1, 0, 0], np.uint8),
    "16-bit full": MASK.astype(np.uint16) * 65535,
    "16-bit ones": MASK.astype(np.uint16),
    "grey with alpha": np.stack([MASK.astype(np.uint8) * 255, FULL.astype(np.uint8)], axis=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_store_a_binary_mask_reads_alike(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "a.png", KINDS[kind])
    np.testing.assert_array_equal(read_mask(path, PLAIN), MASK)


def test_one_bit_gif_tiff_and_float_masks(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.gif"):
        Image.fromarray(MASK).save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name, PLAIN), MASK)
    for values in (MASK.astype(np.float32), MASK * np.float32(4)):
        path = save(tmp_path / "f.tif", values)
        np.testing.assert_array_equal(read_mask(path, PLAIN), MASK)


def test_empty_masks_are_empty_whatever_their_alpha(tmp_path: Path) -> None:
    for alpha in (FULL, FULL * 0):
        path = save(tmp_path / "a.png", rgba(np.zeros_like(MASK), alpha))
        assert not read_mask(path, PLAIN).any()


def test_palette_of_greys_counts_by_grey_and_a_coloured_one_by_index(tmp_path: Path) -> None:
    # The first entry is white here: as an index the mask would be inverted.
    path = palette(tmp_path / "a.png", ~MASK, [255, 255, 255, 0, 0, 0])
    np.testing.assert_array_equal(read_mask(path, PLAIN), MASK)
    path = palette(tmp_path / "b.png", MASK, [0, 0, 0, 128, 0, 0])
    np.testing.assert_array_equal(read_mask(path, PLAIN), MASK)
    # Index 0 is background even if its colour is bright.
    path = palette(tmp_path / "c.png", MASK, [240, 230, 250, 10, 0, 0])
    np.testing.assert_array_equal(read_mask(path, PLAIN), MASK)


def test_jpeg_is_cut_at_half(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", MASK, quality=50)
    values = read_values(path)
    assert values.lossy
    assert (values.grey > 0).sum() > MASK.sum() + 30  # ringing: what "> 0" would take for the thing
    assert (read_mask(path, PLAIN) != MASK).sum() <= 4
    faint = save(tmp_path / "b.jpg", np.full(MASK.shape, 3, np.uint8))
    assert not read_mask(faint, PLAIN).any()


def test_jpeg_saved_again_as_png_is_cut_at_half(tmp_path: Path) -> None:
    once = save(tmp_path / "a.jpg", np.where(MASK, 250, 2).astype(np.uint8), quality=60)
    with Image.open(once) as image:
        values = np.minimum(np.asarray(image), 253)
    assert (values > 0).mean() > 0.5
    read = read_mask(save(tmp_path / "b.png", values), PLAIN)
    assert (read != MASK).sum() <= 4


def test_smoothed_edges_are_cut_at_their_middle(tmp_path: Path) -> None:
    large = np.kron(MASK, np.ones((4, 4), bool))
    soft = Image.fromarray(large.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.5))
    soft.save(tmp_path / "a.png")
    read = read_mask(tmp_path / "a.png", PLAIN)
    assert abs(int(read.sum()) - int(large.sum())) < 0.03 * large.sum()
    assert (np.asarray(soft) > 0).sum() > 1.3 * large.sum()


def test_label_and_object_numbers_count_from_one(tmp_path: Path) -> None:
    numbers = np.where(MASK, np.arange(20)[None] + 1, 0).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", numbers), PLAIN), MASK)
    many = np.where(MASK, np.arange(20)[None] + 120, 0).astype(np.uint16)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", many), PLAIN), MASK)


def test_threshold_and_inversion(tmp_path: Path) -> None:
    steps = np.array([[0, 40, 100, 200, 255]], np.uint8)
    path = save(tmp_path / "a.png", steps)
    assert read_mask(path, coding(mask_threshold=0)).tolist() == [[0, 1, 1, 1, 1]]
    assert read_mask(path, coding(mask_threshold=150)).tolist() == [[0, 0, 0, 1, 1]]
    assert read_mask(path, coding(mask_threshold=150, invert=True)).tolist() == [[1, 1, 1, 0, 0]]
    assert read_mask(path, coding(invert=True)).tolist() == [[1, 1, 1, 0, 0]]
    deep = save(tmp_path / "b.png", steps.astype(np.uint16) * 257)
    assert read_mask(deep, coding(mask_threshold=150)).tolist() == [[0, 0, 0, 1, 1]]


def test_named_values_become_classes_in_their_order(tmp_path: Path) -> None:
    values = np.array([[0, 7, 3, 9, 7]], np.uint8)
    path = save(tmp_path / "a.png", values)
    named = coding(labels={"tumour": 7, "organ": [3, 9]})
    assert named.classes.names == ("tumour", "organ")
    assert read_mask(path, named).tolist() == [[0, 1, 2, 2, 1]]
    one = coding(labels={"tumour": 7, "organ": [3, 9]}, target="organ")
    assert one.classes.names == ("organ",)
    assert read_mask(path, one).tolist() == [[0, 0, 1, 1, 0]]


def test_grey_codes_in_which_background_is_bright(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bmp", np.array([[0, 128, 255]], np.uint8))
    both = coding(labels={"rim": 128, "cup": 0, "background": 255})
    assert read_mask(path, both).tolist() == [[2, 1, 0]]
    disc_ = coding(labels={"disc": [0, 128], "background": 255})
    assert read_mask(path, disc_).tolist() == [[1, 1, 0]]


def test_a_value_without_a_name_is_an_error_with_file_and_value(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 1, 4]], np.uint8))
    with pytest.raises(DataError, match=r"a\.png.*value 4") as caught:
        read_mask(path, coding(labels={"a": 1, "b": 2}))
    assert "data.labels" in str(caught.value)


def test_named_values_in_jpeg_take_the_nearest(tmp_path: Path) -> None:
    codes = np.kron(np.array([[0, 128], [255, 0]], np.uint8), np.ones((16, 16), np.uint8))
    path = save(tmp_path / "a.jpg", codes, quality=95)
    read = read_mask(path, coding(labels={"a": 128, "b": 255}))
    expected = np.kron(np.array([[0, 1], [2, 0]]), np.ones((16, 16), int))
    assert (read != expected).mean() < 0.05


def test_colours_can_be_named(tmp_path: Path) -> None:
    colours = np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 255]]], np.uint8)
    path = save(tmp_path / "a.png", colours)
    named = coding(labels={"red": 0xFF0000, "blue": 0x0000FF})
    assert read_mask(path, named).tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match="0x0000FF"):
        read_mask(path, coding(labels={"red": 0xFF0000}))
    index = palette(tmp_path / "p.png", np.array([[0, 1, 2]]), [0, 0, 0, 255, 0, 0, 0, 0, 255])
    assert read_mask(index, named).tolist() == [[0, 1, 2]]
    assert read_mask(index, coding(labels={"a": 1, "b": 2})).tolist() == [[0, 1, 2]]


def test_fractions_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.array([[0.5, 3.7]], np.float32))
    with pytest.raises(DataError, match=r"fractions from 0\.5 to 3\.7"):
        read_mask(path, PLAIN)
    share = save(tmp_path / "b.tif", np.array([[0.2, 0.8]], np.float32))
    assert read_mask(share, PLAIN).tolist() == [[0, 1]]
    large = save(tmp_path / "c.tif", np.array([[-1, 3]], np.int32))
    with pytest.raises(DataError, match="from -1 to 3"):
        read_mask(large, PLAIN)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"labels": {"a": 1, "b": [1, 2]}}, "value 1 belongs to two"),
        ({"labels": {"a": []}}, "at least one value"),
        ({"labels": {"a": -3}}, "at least one value"),
        ({"labels": {"a": 1, "b": 2}, "invert": True}, "data.invert"),
        ({"labels": {"a": 1, "b": 2}, "mask_threshold": 9}, "data.mask_threshold"),
    ],
)
def test_contradictions_are_told(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        coding(**data)


def test_levels_tell_classes_from_smoothed_edges(tmp_path: Path) -> None:
    three = np.zeros((30, 30), np.uint8)
    three[5:15], three[15:25] = 100, 200
    assert levels(read_values(save(tmp_path / "a.png", three))) == [0, 100, 200]
    assert levels(read_values(save(tmp_path / "b.png", MASK))) == []
    numbers = np.repeat(np.arange(30, dtype=np.uint8)[None], 30, axis=0)
    assert levels(read_values(save(tmp_path / "c.png", numbers))) == []


def test_mask_with_the_pictures_orientation_is_turned_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", np.ascontiguousarray(np.rot90(MASK)), exif=exif)
    np.testing.assert_array_equal(read_mask(path, PLAIN, MASK.shape), MASK)
