import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from zoo.domains.reid.fusion_reid.images import (
    Augmentation,
    augmented,
    content_hash,
    decode,
    erased_box,
    load,
    read_bytes,
    resized,
    unit,
)
from zoo.errors import DataError

NOTHING = Augmentation(flip=0, pad=0, erase=0)


def picture(height: int = 24, width: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 24, width: int = 12) -> Image.Image:
    """JPEG keeps gradients."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [10 * y % 250, 20 * x % 250, 5 * (x + y)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).resize((width, height))


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK", "LA"])
def test_every_kind_of_image_becomes_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    made = smooth().convert(mode)
    made.save(path)
    image = load(path)
    assert image.shape == (24, 12, 3)
    assert image.dtype == np.uint8
    expected = np.asarray(made.convert("RGB")).astype(int)
    limit = 12 if mode == "CMYK" else 0
    assert np.abs(image - expected).max() <= limit


def test_grey_jpeg_has_three_equal_channels(tmp_path: Path) -> None:
    smooth().convert("L").save(tmp_path / "x.jpg")
    image = load(tmp_path / "x.jpg")
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("top", [65535, 200])
def test_deep_grey_is_scaled_not_saturated(tmp_path: Path, top: int) -> None:
    values = np.linspace(0, top, 24 * 12).reshape(24, 12).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    image = load(tmp_path / "x.png")
    scale = 257 if top > 255 else 1
    np.testing.assert_array_equal(image[..., 0], np.rint(values / scale))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_orientation_is_obeyed(tmp_path: Path, orientation: int, turns: int) -> None:
    made = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    made.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(load(tmp_path / "x.png"), np.rot90(np.asarray(made), turns))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"0002_c1s1_000451_03.{kind}"
    Image.fromarray(picture(128, 64)).save(path)
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])
    with pytest.raises(DataError, match="0002_c1s1_000451_03") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    for name, body, words in (
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"hello there, no image", "is no image that can be read"),
    ):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(DataError, match=words):
            load(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nowhere.jpg")


def test_a_huge_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (8_000, 8_000)).save(path)
    with pytest.raises(DataError, match="no crop of a person"):
        load(path)


def test_content_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(picture()).save(path)
    body = read_bytes(path)
    assert len(content_hash(body)) == 64
    np.testing.assert_array_equal(decode(body, path), load(path))
    assert content_hash(body) != content_hash(body + b"\0")


# -- resizing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 32), (12, 6), (24, 12), (33, 7)])
def test_resizing_is_torchvisions(how: str, size: tuple[int, int]) -> None:
    image = picture()
    expected = resize(Image.fromarray(image), list(size), InterpolationMode(how))
    np.testing.assert_array_equal(resized(image, size, how), np.asarray(expected))


def test_unit_is_torchvisions_tensor() -> None:
    from torchvision.transforms.functional import to_tensor

    image = picture()
    np.testing.assert_array_equal(unit(image), to_tensor(image).numpy())


# -- augmentation -------------------------------------------------------------------------------


def test_without_chances_nothing_happens() -> None:
    image = picture()
    np.testing.assert_array_equal(augmented(image, NOTHING, np.random.default_rng(0)), unit(image))


def test_mirroring() -> None:
    image = picture()
    made = augmented(image, Augmentation(1, 0, 0), np.random.default_rng(0))
    np.testing.assert_array_equal(made, unit(image)[:, :, ::-1])
    half = [
        np.array_equal(augmented(image, Augmentation(0.5, 0, 0), np.random.default_rng(i)), made)
        for i in range(200)
    ]
    assert 70 < sum(half) < 130


def test_padding_moves_the_image_over_black() -> None:
    image = np.maximum(picture(), 1)
    places = set()
    for seed in range(400):
        made = augmented(image, Augmentation(0, 3, 0), np.random.default_rng(seed))
        kept = np.any(made > 0, axis=0)
        rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
        box = made[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # Black above means the image lies lower.
        down = rows[0] if rows[0] else rows[-1] - 23
        right = columns[0] if columns[0] else columns[-1] - 11
        top, left = max(0, -down), max(0, -right)
        whole = unit(image)[:, top : top + box.shape[1], left : left + box.shape[2]]
        np.testing.assert_array_equal(box, whole)
        places.add((int(down), int(right)))
    assert places == {(y, x) for y in range(-3, 4) for x in range(-3, 4)}


def test_erased_pixels_are_noise_of_the_networks_range() -> None:
    image = np.full((64, 32, 3), 128, np.uint8)
    values = []
    for seed in range(300):
        made = augmented(image, Augmentation(0, 0, 1), np.random.default_rng(seed))
        changed = (made != unit(image)).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        values.append((made[:, changed] - 0.5) / 0.5)
    noise = np.concatenate([v.ravel() for v in values])
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    # Every pixel and channel is drawn for itself.
    assert abs(np.corrcoef(np.concatenate(values, axis=1))[0, 1]) < 0.02


def test_all_chance_is_the_generators() -> None:
    image, how = picture(64, 32), Augmentation()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = augmented(image, how, np.random.default_rng(5))
    second = augmented(image, how, np.random.default_rng(5))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (3, 64, 32)
    assert first.dtype == np.float32
    others = [augmented(image, how, np.random.default_rng(i)) for i in range(6, 12)]
    assert any(not np.array_equal(first, other) for other in others)


def test_the_image_handed_in_stays_as_it_is() -> None:
    image = picture(64, 32)
    before = image.copy()
    for seed in range(10):
        augmented(image, Augmentation(1, 2, 1), np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (24, 12), (7, 3)])
@pytest.mark.parametrize("chance", [0.5, 1.0])
def test_boxes_are_timms(size: tuple[int, int], chance: float) -> None:
    theirs = RandomErasing(chance, mode="const", max_count=1, device="cpu")
    random.seed(31)
    ours = random.Random(31)
    boxes = []
    for _ in range(60):
        made = theirs(torch.ones(3, *size))[0] == 0
        rows, columns = made.any(dim=1).nonzero().ravel(), made.any(dim=0).nonzero().ravel()
        told = None
        if len(rows):
            told = int(rows[0]), int(columns[0]), len(rows), len(columns)
        box = erased_box(size, chance, ours)
        # timm erases boxes of no pixel at all in tiny images.
        assert (box if box and box[2] and box[3] else None) == told
        boxes.append(box)
    assert (None in boxes) == (chance < 1) or size == (7, 3)


def test_boxes_have_the_published_ranges() -> None:
    rng = random.Random(3)
    boxes = [erased_box((256, 128), 1.0, rng) for _ in range(2000)]
    found = np.array([b for b in boxes if b is not None])
    assert len(found) > 1990
    share = found[:, 2] * found[:, 3] / (256 * 128)
    assert 0.019 < share.min() < 0.03
    assert 0.31 < share.max() < 0.34
    aspect = found[:, 2] / found[:, 3]
    assert 0.28 < aspect.min() < 0.35
    assert 2.9 < aspect.max() < 3.5
    assert (found[:, 0] + found[:, 2] <= 256).all()
    assert (found[:, 1] + found[:, 3] <= 128).all()


def test_a_chance_of_none() -> None:
    assert not [b for i in range(50) if (b := erased_box((64, 32), 0.0, random.Random(i)))]
