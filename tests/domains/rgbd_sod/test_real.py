"""The small real samples: read as their notes say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.domains.saliency.rgbd_sod import data
from zoo.domains.saliency.rgbd_sod.depth import DepthRules, canonical, foreground_is_smaller
from zoo.domains.saliency.rgbd_sod.images import read_depth, read_mask, read_rgb
from zoo.domains.saliency.rgbd_sod.layouts import read_list
from zoo.errors import DataError

from .conftest import configure

RNG = np.random.default_rng(0)
NLPR = "10_03-31-22"


def test_des_foreground_fractions_and_medians(real: Path) -> None:
    split = data.open_splits(configure(real / "DES_sample", 256))["test_des_sample"]
    fractions = (0.157, 0.043, 0.134, 0.045)
    medians = ((72, 119), (20, 25), (71, 117), (33, 49))
    for i, (fraction, (inside, outside)) in enumerate(zip(fractions, medians, strict=True)):
        item = split.item(i, RNG)
        assert item["truth"].shape == item["size"] == (480, 640)
        assert (item["truth"] > 0).mean() == pytest.approx(fraction, abs=6e-4)
        assert item["mask"].mean() == pytest.approx(fraction, abs=2e-3)
        scene = split.scene(i)
        assert scene.depth is not None
        assert scene.mask is not None
        assert (scene.depth.values.min(), scene.depth.values.max()) == (0, 255)
        assert np.median(scene.depth.values[scene.mask]) == inside
        assert np.median(scene.depth.values[~scene.mask]) == outside
        assert foreground_is_smaller(scene.depth, scene.mask, DepthRules()) is True
        assert item["preview_rgb"].shape == (96, 128, 3)


def test_des_masks_are_one_bit(real: Path) -> None:
    for path in sorted((real / "DES_sample" / "GT").iterdir()):
        with Image.open(path) as image:
            assert image.mode == "1"
        assert 0.04 < read_mask(path).mean() < 0.16


def test_nlpr_raw_and_smoothed(real: Path) -> None:
    folder = real / "NLPR_raw_sample"
    raw = read_depth(folder / "rawDepth" / f"{NLPR}_Depth.mat")
    assert raw.values.dtype == np.uint16
    assert (raw.values.shape, raw.kind) == ((480, 640), "mat")
    assert (raw.values.min(), raw.values.max()) == (0, 1809)
    assert (raw.values == 0).mean() == pytest.approx(0.036, abs=5e-4)
    smoothed = read_depth(folder / "smoothedDepth" / f"{NLPR}_Depth.mat").values
    assert (smoothed.min(), smoothed.max()) == (883, 1800)
    picture = read_depth(folder / "smoothedDepth" / f"{NLPR}_Depth.png")
    assert picture.kind == "8-bit"
    # The picture was scaled by the maximum, not over the range.
    want = np.rint(255.0 * smoothed / 1800)
    assert np.abs(picture.values - want).max() <= 1
    correlation = np.corrcoef(picture.values.ravel(), smoothed.ravel())[0, 1]
    assert correlation > 0.9999
    assert read_rgb(folder / "RGB" / f"{NLPR}.jpg").shape[:2] == raw.values.shape


def test_nlpr_holes_are_filled_close_to_the_published_smoothing(real: Path) -> None:
    folder = real / "NLPR_raw_sample"
    raw = canonical(read_depth(folder / "rawDepth" / f"{NLPR}_Depth.mat"), DepthRules())
    smoothed = canonical(read_depth(folder / "smoothedDepth" / f"{NLPR}_Depth.mat"), DepthRules())
    assert raw.holes.mean() == pytest.approx(0.036, abs=5e-4)
    assert not smoothed.holes.any()
    far = np.abs(raw.values - smoothed.values)
    assert np.median(far) < 0.02
    assert far[raw.holes].mean() < 0.2
    kept = canonical(
        read_depth(folder / "rawDepth" / f"{NLPR}_Depth.mat"), DepthRules(holes="keep")
    )
    assert np.abs(kept.values - smoothed.values)[raw.holes].mean() > far[raw.holes].mean()


def test_nlpr_is_predicted_from_either_depth_and_not_scored(real: Path) -> None:
    folder = real / "NLPR_raw_sample"
    for choice in ("smoothed", "raw"):
        split = data.inputs([folder], {}, configure(None, 256, depth_from=choice))
        assert [p.stem for p in split.pairs] == [NLPR]
        assert split.item(0, RNG)["depth_valid"]
    with pytest.raises(DataError, match="no folder of masks"):
        data.open_splits(configure(folder))


def test_nju2k_style_pairs_of_three_sizes(real: Path) -> None:
    folder = real / "NJU2K_unlabelled_sample"
    facts = {"default_polarity": "near_bright", "input_size": 256}
    split = data.inputs([folder], facts, configure(None))
    assert [p.stem for p in split.pairs] == ["t1993_left", "t2033_left", "t2073_left"]
    items = [split.item(i, RNG) for i in range(3)]
    assert len({item["size"] for item in items}) == 3
    for item in items:
        assert item["depth_valid"]
        assert item["depth"].min() >= 0
        assert item["depth"].max() <= 1
        # Near is bright in these files and the ground at the bottom is near: dark when canonical.
        assert item["depth"][0, -40:].mean() < item["depth"][0, :40].mean()
    one = data.inputs([split.pairs[0].rgb], facts, configure(None)).item(0, RNG)
    assert np.array_equal(one["depth"], items[0]["depth"])


def test_the_standard_lists(real: Path) -> None:
    lists = {p.stem: read_list(p) for p in sorted((real / "splits").glob("*.lst"))}
    counts = {name: len(stems) for name, stems in lists.items()}
    assert counts == {"njud_test": 500, "njud_train": 1485, "nlpr_test": 300, "nlpr_train": 700}
    for name, total in (("njud", 1985), ("nlpr", 1000)):
        assert len(set(lists[f"{name}_train"]) | set(lists[f"{name}_test"])) == total
    assert NLPR in lists["nlpr_test"]


def test_a_list_names_what_the_folder_lacks(real: Path) -> None:
    root = real / "DES_sample"
    config = configure(root, test=[f"DES_sample:{real / 'splits' / 'nlpr_test.lst'}"])
    with pytest.raises(DataError, match="of list nlpr_test"):
        data.open_splits(config)
