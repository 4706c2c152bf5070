import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import item_rng, leakage, order_rng
from zoo.domains.saliency.rgbd_sod import data, sample
from zoo.domains.saliency.rgbd_sod.sample import SampleScene
from zoo.domains.saliency.rgbd_sod.split import DEVIATION, MEAN
from zoo.errors import DataError
from zoo.loader import Feed
from zoo.task import Split

from .conftest import configure
from .writers import write_bbs, write_vst

RNG = item_rng(0, 0, 0)


@pytest.fixture
def root(tmp_path: Path, made: list[SampleScene]) -> Path:
    """Twelve scenes to train on, four to test on, in a folder that a test may damage."""
    write_bbs(tmp_path, made[:12], made[12:])
    return tmp_path


def open_(root: Path, **settings: Any) -> dict[str, data.RgbdSplit]:
    return data.open_splits(configure(root, **settings))


def levels(root: Path, **settings: Any) -> dict[str, list[str]]:
    found = data.check(configure(root, **settings))
    return {
        level: [f.line() for f in found if f.level == level]
        for level in ("error", "warning", "info")
    }


def colour(item: dict[str, Any]) -> np.ndarray:
    """The item's image as it was before normalisation, (S, S, 3) in [0, 255]."""
    unit = item["rgb"].permute(1, 2, 0).numpy() * np.array(DEVIATION) + np.array(MEAN)
    return np.asarray(unit * 255)


# -- items --------------------------------------------------------------------------------------


def test_items_of_evaluation(root: Path, made: list[SampleScene]) -> None:
    split = open_(root)["test_stere"]
    assert isinstance(split, Split)
    for index, scene in enumerate(made[12:]):
        item = split.item(index, RNG)
        assert (item["id"], item["set"]) == (f"STERE/{scene.stem}", "STERE")
        assert item["size"] == scene.mask.shape
        for key, channels in (("rgb", 3), ("depth", 1), ("mask", 1)):
            assert item[key].shape == (channels, 64, 64)
            assert item[key].dtype == torch.float32
        assert item["depth_valid"] is True
        np.testing.assert_array_equal(item["truth"], scene.mask.astype(np.uint8) * 255)
        # Image and depth are what Pillow makes of the files, antialiased.
        path = split.pairs[index].rgb
        want = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(colour(item), np.asarray(want), atol=1e-3)
        unit = (scene.depth - scene.depth.min()) / np.ptp(scene.depth)
        small = Image.fromarray(unit.astype(np.float32)).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(item["depth"][0].numpy(), np.asarray(small), atol=0.01)
        assert set(item["mask"].unique().tolist()) == {0.0, 1.0}
        assert item["mask"].mean() == pytest.approx(scene.mask.mean(), abs=0.02)
        assert item["preview_rgb"].dtype == np.uint8
        assert max(item["preview_rgb"].shape[:2]) <= 128
        assert item["preview_depth"].ndim == 2


def test_items_of_training_are_augmented_by_their_generator(root: Path) -> None:
    plain, split = (open_(root, augment=a)["train"] for a in (False, True))
    first = split.item(3, item_rng(1, 2, 3))
    again = open_(root)["train"].item(3, item_rng(1, 2, 3))
    other = split.item(3, item_rng(1, 3, 3))
    still = [plain.item(3, item_rng(1, e, 3)) for e in (2, 3)]
    for key in ("rgb", "depth", "mask"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])
        assert torch.equal(still[0][key], still[1][key])
    assert "truth" not in first
    assert "preview_rgb" not in first
    assert first["mask"].any()


def test_workers_give_the_same_batches(root: Path) -> None:
    batches = [[0, 3], [5, 1]]

    def read(workers: int) -> list[dict[str, Any]]:
        feed = Feed(open_(root)["train"], batches, seed=4, epoch=2, workers=workers)
        return [batch for _, batch in feed if batch is not None]

    for here, there in zip(read(0), read(1), strict=True):
        assert here["id"] == there["id"]
        for key in ("rgb", "depth", "mask"):
            assert torch.equal(here[key], there[key])


def test_batches_stack_tensors_and_list_the_rest(root: Path) -> None:
    split = open_(root)["test_stere"]
    batch = split.collate([split.item(i, RNG) for i in range(3)])
    assert batch["rgb"].shape == (3, 3, 64, 64)
    assert batch["depth"].shape == batch["mask"].shape == (3, 1, 64, 64)
    assert batch["depth_valid"].tolist() == [True] * 3
    assert batch["id"] == list(split.ids[:3])
    assert len({t.shape for t in batch["truth"]}) > 1  # sizes are the images' own
    assert [tuple(t.shape) for t in batch["truth"]] == batch["size"]


def test_training_is_shuffled_whole_and_evaluation_in_order(root: Path) -> None:
    splits = data.open_splits(configure(root, batch_size=4, val_fraction=0.1))
    train = splits["train"]
    assert len(train) == 11
    batches = train.batches(0, order_rng(1, 0))
    assert [len(b) for b in batches] == [4, 4]  # the rest is dropped
    assert batches == train.batches(0, order_rng(1, 0))
    assert batches != train.batches(1, order_rng(1, 1))
    assert splits["test_stere"].batches(0, order_rng(1, 0)) == [[0, 1, 2, 3]]


def test_depth_can_be_blanked_by_chance(root: Path) -> None:
    split = open_(root, depth_drop=0.5)["train"]
    items = [split.item(0, item_rng(1, e, 0)) for e in range(40)]
    blank = [not item["depth_valid"] for item in items]
    assert 10 < sum(blank) < 30
    assert all(bool(item["depth"].any()) != b for item, b in zip(items, blank, strict=True))
    test = open_(root, depth_drop=1.0)["test_stere"]
    assert test.item(0, RNG)["depth_valid"]


def test_without_depth_on_demand(root: Path) -> None:
    splits = open_(root, depth="zeros")
    for split in splits.values():
        item = split.item(0, RNG)
        assert not item["depth"].any()
        assert item["depth_valid"] is False
    lines = levels(root, depth="zeros")
    assert [w for w in lines["warning"] if "data.depth=zeros" in w]
    assert data.facts_of(splits["train"])["depth"] == "zeros"


def test_scoring_size(root: Path) -> None:
    item = open_(root, eval_size="256")["test_stere"].item(0, RNG)
    assert item["truth"].shape == (256, 256)
    assert set(np.unique(item["truth"])) == {0, 255}


def test_a_constant_map_trains_as_no_depth(root: Path) -> None:
    split = open_(root, augment=False)["train"]
    path = split.pairs[0].depth
    assert path is not None
    with Image.open(path) as image:
        image.point(lambda _: 90).save(path)
    item = split.item(0, RNG)
    assert item["depth_valid"] is False
    assert not item["depth"].any()


def test_sizes_that_differ_are_stretched_or_refused(root: Path, made: list[SampleScene]) -> None:
    split = open_(root)["test_stere"]
    depth, mask = split.pairs[0].depth, split.pairs[0].mask
    assert depth is not None
    assert mask is not None
    for path in (depth, mask):
        with Image.open(path) as image:
            image.crop((0, 0, image.width - 3, image.height - 2)).save(path)
    item = open_(root)["test_stere"].item(0, RNG)
    height, width = made[12].mask.shape
    assert item["size"] == (height, width)
    assert item["truth"].shape == (height - 2, width - 3)  # scored at the annotation's own size
    assert item["depth"].shape == item["mask"].shape == (1, 64, 64)
    assert [w for w in levels(root)["warning"] if "another size" in w and made[12].stem in w]
    with pytest.raises(DataError, match="mismatch=resize"):
        open_(root, mismatch="error")


def test_holes_and_percentiles_follow_the_configuration(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    sample.write_pairs(tmp_path / "NLPR", made[:2], formats=("png16",), tail="_Depth")

    def depth(**settings: Any) -> np.ndarray:
        item = open_(tmp_path, polarity="near_dark", **settings)["test_nlpr"].item(0, RNG)
        return np.asarray(item["depth"][0])

    nearest, far, keep = (depth(holes=h) for h in ("nearest", "far", "keep"))
    whole = depth(hole_value=60_000)
    assert far.mean() > nearest.mean() > keep.mean()
    assert whole.min() == 0
    # With zeros taken for values the measured range starts at 500 of 4000 mm.
    assert np.median(whole) > np.median(nearest)
    assert depth(percentile=[10, 90]).std() > nearest.std()


# -- polarity -----------------------------------------------------------------------------------


def polarities(root: Path, **settings: Any) -> dict[str, tuple[str, bool]]:
    found = data.survey(configure(root, **settings))
    return {name: (m.polarity, m.sure) for name, m in found.polarity.items()}


@pytest.fixture
def bright(tmp_path: Path) -> Path:
    """A near-dark set, a near-bright one, and one too small to tell."""
    scenes = sample.scenes(24, 1)
    for name, near_bright, count in (("SIP", False, 24), ("STERE", True, 24), ("SSD", True, 5)):
        sample.write_pairs(
            tmp_path / "RGBD_for_test" / name, scenes[:count], near_bright=near_bright
        )
    return tmp_path


def test_polarity_is_measured_for_each_set(bright: Path) -> None:
    assert polarities(bright) == {
        "SIP": ("near_dark", True),
        "STERE": ("near_bright", True),
        "SSD": ("near_dark", False),
    }
    lines = levels(bright)
    assert [w for w in lines["warning"] if w.startswith("SSD") and "data.polarity_of.SSD" in w]
    assert [i for i in lines["info"] if "STERE: depth is near bright, measured on 24 masks" in i]
    splits = open_(bright)
    dark, turned = (splits[f"test_{n}"].item(0, RNG)["depth"] for n in ("sip", "stere"))
    assert (dark - turned).abs().max() < 0.01


def test_polarity_is_set_for_all_or_for_one(bright: Path) -> None:
    found = polarities(bright, polarity="near_bright")
    assert {value for value, _ in found.values()} == {"near_bright"}
    found = polarities(bright, polarity_of={"stereo": "near_dark", "ssd100": "near_bright"})
    assert found == {
        "SIP": ("near_dark", True),
        "STERE": ("near_dark", True),
        "SSD": ("near_bright", True),
    }


def test_masks_that_disagree_are_a_warning(tmp_path: Path) -> None:
    scenes = sample.scenes(24, 1)
    sample.write_pairs(tmp_path / "SIP", scenes[:12])
    sample.write_pairs(tmp_path / "SIP", scenes[12:], near_bright=True)
    assert polarities(tmp_path) == {"SIP": ("near_dark", False)}
    assert [w for w in levels(tmp_path)["warning"] if "24 masks disagree" in w and "50%" in w]


def test_small_sets_follow_the_training_images(tmp_path: Path) -> None:
    scenes = sample.scenes(30, 1)
    sample.write_pairs(tmp_path / "RGBD_for_train", scenes[:24], near_bright=True)
    sample.write_pairs(tmp_path / "RGBD_for_test" / "SSD", scenes[24:], near_bright=True)
    found = data.survey(configure(tmp_path))
    assert found.polarity["SSD"].polarity == "near_bright"
    assert found.polarity["SSD"].origin == "as most training images"
    facts = data.facts_of(data.open_splits(configure(tmp_path), found)["train"])
    assert facts["polarity"] == {"RGBD_for_train": "near_bright"}
    assert facts["default_polarity"] == "near_bright"


def test_facts_are_json(root: Path) -> None:
    train = open_(root, percentile=[1, 99], holes="far", hole_value=7)["train"]
    facts = data.facts_of(train)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["input_size"], facts["percentile"], facts["holes"]) == (64, [1.0, 99.0], "far")
    assert facts["hole_value"] == 7


# -- splits -------------------------------------------------------------------------------------


def test_held_out_images_are_drawn_by_stem(tmp_path: Path, made: list[SampleScene]) -> None:
    write_vst(tmp_path, made[:10], made[10:12])
    base = {"val_fraction": 0.3, "polarity": "near_dark"}
    splits = open_(tmp_path, **base)
    held = set(splits["val"].ids)
    assert len(held) == 3
    assert held.isdisjoint(splits["train"].ids)
    assert len(splits["train"]) == 7
    assert set(open_(tmp_path, **base)["val"].ids) == held
    others = [set(open_(tmp_path, **base, split_seed=s)["val"].ids) for s in range(2, 6)]
    assert any(o != held for o in others)
    assert "val" not in open_(tmp_path, val_fraction=0)
    # One more image moves at most itself in.
    sample.write_pairs(tmp_path / "NJUD" / "trainset", made[15:16])
    assert len(held & set(open_(tmp_path, **base)["val"].ids)) >= 2
    assert splits["val"].item(0, RNG)["truth"].max() == 255
    assert leakage(splits) == []


def test_digest_follows_the_content(root: Path) -> None:
    def digests() -> dict[str, str]:
        return {name: split.digest for name, split in open_(root).items()}

    first = digests()
    assert digests() == first
    for kind in ("depth", "GT", "RGB"):
        path = next((root / "RGBD_for_test" / "STERE" / kind).iterdir())
        with Image.open(path) as image:
            changed = np.asarray(image).copy()
        changed[0, 0] = 255 - changed[0, 0]
        Image.fromarray(changed).save(path, quality=95)
        now = digests()
        assert now["test_stere"] != first["test_stere"], kind
        assert now["train"] == first["train"]
        first = now


def test_a_broken_file_stops_with_its_name_or_is_skipped(
    root: Path, made: list[SampleScene]
) -> None:
    path = root / "RGBD_for_train" / "RGB" / f"{made[1].stem}.jpg"
    path.write_bytes(path.read_bytes()[:700])
    train = open_(root)["train"]  # the header is sound
    index = next(i for i, name in enumerate(train.ids) if made[1].stem in name)
    with pytest.raises(DataError, match=path.name):
        train.item(index, RNG)
    assert [e for e in levels(root)["error"] if path.name in e]
    kept = open_(root, on_error="skip")
    assert len(kept["train"]) == len(train) - 1
    assert kept["train"].notes == ["1 scenes of the data were skipped"]
    path.write_bytes(b"")
    with pytest.raises(DataError, match=path.name):
        open_(root)


def test_check_counts(root: Path) -> None:
    lines = levels(root, val_fraction=0)
    text = "\n".join(lines["info"])
    assert "layout bbs" in text
    assert "train: 12 images (RGBD_for_train 12)" in text
    assert "test_stere: 4 images (STERE 4)" in text
    assert "depth 8-bit 12" in text
    assert lines["error"] == []


def test_check_reports_a_missing_folder_as_a_finding(tmp_path: Path) -> None:
    found = data.check(configure(tmp_path / "gone"))
    assert [f.level for f in found] == ["error"]
    with pytest.raises(DataError, match="root is missing"):
        data.survey(configure(None))


def test_percentiles_have_to_rise() -> None:
    with pytest.raises(ValueError, match="low < high"):
        configure(None, percentile=[50, 50])
