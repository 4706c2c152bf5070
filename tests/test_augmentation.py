import hashlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from zoo.augmentation import CentredCrop, Colour, Pipeline, albumentations, whole_degrees

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (96, 128, 3), dtype=np.uint8)
PLANE = RNG.random((96, 128)).astype(np.float32)
MASK = (PLANE > 0.5).astype(np.uint8)
STILL = Colour((10, 10), (10, 10), (10, 10), (10, 10))


def pipeline() -> Pipeline:
    return Pipeline(
        [albumentations.HorizontalFlip(p=0.5), CentredCrop(0.1), whole_degrees(-15, 14, p=0.5)],
        [Colour((5, 15), (5, 15), (0, 20), (0, 30))],
        {"plane": "image"},
    )


def run(made: Pipeline, seed: int) -> dict[str, np.ndarray]:
    return made(np.random.default_rng(seed), IMAGE, plane=PLANE, mask=MASK)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_same_generator_gives_the_same_item() -> None:
    made = pipeline()
    first = [run(made, seed) for seed in range(6)]
    random.seed(1)
    np.random.seed(1)
    # In another order, from another object, after pickling: only the generator counts.
    other = pickle.loads(pickle.dumps(pipeline()))
    for seed in (4, 0, 5, 2):
        assert same(run(made, seed), first[seed])
        assert same(run(other, seed), first[seed])
    assert not any(same(first[0], item) for item in first[1:])


def fingerprint(item: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(item[k].tobytes() for k in sorted(item))).hexdigest()


def test_another_process_gives_the_same_item() -> None:
    code = "import tests.test_augmentation as t; print(t.fingerprint(t.run(t.pipeline(), 3)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == fingerprint(run(pipeline(), 3))


def test_draws_of_two_transforms_are_independent() -> None:
    """One seed for every transform, which the package offers, would tie them together."""
    made = Pipeline(
        [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)], [STILL]
    )
    corner = np.zeros((8, 8, 3), np.uint8)
    corner[0, 0] = 255
    seen = set()
    for seed in range(40):
        image = made(np.random.default_rng(seed), corner)["image"]
        seen.add(tuple(np.argwhere(image[..., 0])[0]))
    assert len(seen) == 4


def test_all_arrays_move_alike_and_keep_their_types() -> None:
    ramp = np.tile(np.arange(128, dtype=np.uint8), (96, 1))
    image = np.repeat(ramp[..., None], 3, axis=2)
    plane = ramp.astype(np.float32) / 255
    made = Pipeline(
        [albumentations.HorizontalFlip(p=0.5), CentredCrop(0.2), whole_degrees(-15, 14, p=1)],
        [STILL],
        {"plane": "image"},
    )
    for seed in range(20):
        item = made(np.random.default_rng(seed), image, plane=plane, mask=(ramp > 64) * np.uint8(1))
        assert {v.shape[:2] for v in item.values()} == {item["mask"].shape}
        assert [item[k].dtype for k in ("image", "plane", "mask")] == [np.uint8, np.float32, "u1"]
        assert set(np.unique(item["mask"])) <= {0, 1}
        np.testing.assert_allclose(item["image"][..., 0], item["plane"] * 255, atol=2)
        inner = np.s_[20:-20, 20:-20]
        agree = (item["plane"] * 255 > 64) == (item["mask"] > 0)
        assert agree[inner].mean() > 0.97


def test_centred_crop_takes_one_pixel_up_to_its_share_off_each_side() -> None:
    made = Pipeline([CentredCrop(30 / 256)], [STILL])
    image = np.zeros((256, 128, 3), np.uint8)
    image[128, 64] = 255
    sizes = []
    for seed in range(300):
        item = made(np.random.default_rng(seed), image)["image"]
        sizes.append(item.shape[:2])
        row, column = np.argwhere(item[..., 0])[0]
        assert abs(row - item.shape[0] / 2) <= 1
        assert abs(column - item.shape[1] / 2) <= 1
    cut = np.array([256, 128]) - np.array(sizes)
    assert cut.min(axis=0).tolist() == [1, 1]
    assert cut.max(axis=0).tolist() == [30, 15]
    assert abs(np.corrcoef(cut.T)[0, 1]) < 0.2  # each side is drawn for itself
    tiny = Pipeline([CentredCrop(1.0)], [STILL])
    assert min(tiny(np.random.default_rng(0), image[:1, :1])["image"].shape[:2]) == 1


def test_rotation_is_by_whole_degrees_and_fills_with_zero() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    made = Pipeline([whole_degrees(-15, 14, p=0.2)], [STILL])
    single = {
        a: Pipeline([whole_degrees(a, a, p=1.0)], [STILL])(np.random.default_rng(0), white)
        for a in range(-15, 15)
    }
    turned = 0
    for seed in range(200):
        image = made(np.random.default_rng(seed), white)["image"]
        if (image == 255).all():
            continue
        turned += 1
        assert image[0].min() < 128
        assert any(np.array_equal(image, other["image"]) for other in single.values())
    assert 20 < turned < 65


def test_colour_is_pillows_in_the_stated_order() -> None:
    made = Pipeline([], [Colour((5, 5), (14, 14), (3, 3), (25, 25))])
    picture = Image.fromarray(IMAGE)
    for kind, factor in (("Brightness", 0.5), ("Contrast", 1.4), ("Color", 0.3)):
        picture = getattr(ImageEnhance, kind)(picture).enhance(factor)
    picture = ImageEnhance.Sharpness(picture).enhance(2.5)
    got = made(np.random.default_rng(0), IMAGE)["image"]
    np.testing.assert_array_equal(got, np.asarray(picture))


def test_colour_touches_the_image_alone() -> None:
    made = Pipeline([], [Colour((5, 15), (5, 15), (0, 20), (0, 30))], {"plane": "image"})
    item = run(made, 1)
    assert not np.array_equal(item["image"], IMAGE)
    np.testing.assert_array_equal(item["plane"], PLANE)
    np.testing.assert_array_equal(item["mask"], MASK)


def test_factors_are_all_tenths_of_the_range() -> None:
    colour = Colour((5, 15), (5, 15), (0, 20), (0, 30))
    colour.py_random = random.Random(0)
    drawn = np.array([colour.get_params()["factors"] for _ in range(3000)])
    ranges = ((0.5, 1.5, 11), (0.5, 1.5, 11), (0, 2, 21), (0, 3, 31))
    for column, (low, high, count) in zip(drawn.T, ranges, strict=True):
        values = np.unique(column)
        assert (values[0], values[-1], len(values)) == (low, high, count)


def test_unknown_arrays_and_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        pipeline()(np.random.default_rng(0), IMAGE, odd=MASK)
    with pytest.raises(ValueError, match="Height and Width"):
        pipeline()(np.random.default_rng(0), IMAGE, mask=MASK[:-1])


def test_the_package_does_not_phone_home() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] in ("1", "true")


def test_without_the_package_the_command_is_told() -> None:
    code = (
        "import sys\n"
        "sys.modules['albumentations'] = None\n"
        "from zoo.errors import ConfigError\n"
        "try: import zoo.augmentation\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'zoo-medical-remote-reid[all]'" in done.stdout
    assert "albumentations" in done.stdout
    assert done.stdout.count("\n") == 1
