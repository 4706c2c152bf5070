import os
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests.domains.her_seg.picture_files import (
    REAL,
    configure,
    disc,
    needs_real,
    pairs,
    picture,
    save,
    write_json,
)
from zoo.data import item_rng, order_rng
from zoo.domains.medical.her_seg import data
from zoo.domains.medical.her_seg.augment import Augmentation
from zoo.domains.medical.her_seg.augment_slices import SliceAugmentation
from zoo.domains.medical.her_seg.cases import Case, Classes
from zoo.domains.medical.her_seg.image_stack import ImageStack, as_image
from zoo.domains.medical.her_seg.masks import Coding, read_mask
from zoo.domains.medical.her_seg.pictures import Picture, Reader
from zoo.domains.medical.her_seg.stacks import Stack
from zoo.errors import ConfigError, DataError
from zoo.task import Finding

RNG = np.random.default_rng(0)
NAMES = [f"n{i:02d}" for i in range(10)]
LIST = {"train": [f"{n}.png" for n in NAMES[:6]], "valid": NAMES[6:8], "test": NAMES[8:]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    pairs(folder, NAMES)
    write_json(folder / "data_split.json", LIST)
    return folder


def lines(root: Path, level: str = "error", *, deep: bool = True, **given: Any) -> list[str]:
    return [f.line() for f in data.check(configure(root, **given), deep) if f.level == level]


def train(root: Path, **given: Any) -> data.TrainSplit:
    return cast("data.TrainSplit", data.open_splits(configure(root, **given))["train"])


def stack_of(split: Any, index: int) -> Stack:
    return cast("Stack", split.collate([split.item(index, RNG)])["stacks"][0])


# -- splits -------------------------------------------------------------------------------------


def test_list_is_followed(root: Path) -> None:
    splits = data.open_splits(configure(root))
    assert {name: list(split.ids) for name, split in splits.items()} == {
        "train": NAMES[:6],
        "val": NAMES[6:8],
        "test": NAMES[8:],
    }
    assert not lines(root)


def test_training_item_and_batch(root: Path) -> None:
    split = train(root, augment="none", trainer={"batch_size": 4})
    item = split.item(0, RNG)
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert 0 <= item["image"].min() < item["image"].max() <= 1
    assert item["mask"].dtype == torch.int64
    assert set(item["mask"].unique().tolist()) == {0, 1}
    assert item["valid"].all()
    assert "points" not in item
    batch = split.collate([split.item(i, RNG) for i in range(4)])
    assert batch["ids"] == NAMES[:4]
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["mask"].shape == batch["valid"].shape == (4, 32, 32)


def test_prompts_are_drawn_where_asked(root: Path) -> None:
    batch_of = train(root, optim={"prompts": "mixed"})
    batch = batch_of.collate([batch_of.item(i, item_rng(1, 0, i)) for i in range(6)])
    assert batch["points"].shape == (6, 3, 3)
    assert batch["box"].shape == (6, 4)


@pytest.mark.parametrize("fit", ["squash", "letterbox", "tiles"])
def test_items_depend_on_seed_epoch_and_index_alone(root: Path, fit: str) -> None:
    split = train(root, fit=fit)
    first = split.item(3, item_rng(1, 2, 3))
    split.item(4, item_rng(1, 2, 4))
    copy = pickle.loads(pickle.dumps(split))  # as in a worker process
    for other in (split, copy, train(root, fit=fit, in_memory=False)):
        again = other.item(3, item_rng(1, 2, 3))
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["image"], split.item(3, item_rng(1, 3, 3))["image"])


def test_padding_is_marked_invalid(root: Path) -> None:
    item = train(root, fit="letterbox", augment="none").item(0, RNG)
    assert item["valid"].sum() == 32 * round(20 * 32 / 24)
    assert not item["mask"][~item["valid"]].any()
    tile = train(root, fit="tiles", augment="none").item(0, RNG)
    assert tile["valid"].sum() == 24 * 20


def test_batches_are_shuffled_and_whole(root: Path) -> None:
    split = train(root, trainer={"batch_size": 4})
    batches = split.batches(0, order_rng(1, 0))
    assert [len(b) for b in batches] == [4]
    assert batches == split.batches(0, order_rng(1, 0))
    orders = {tuple(split.batches(e, order_rng(1, e))[0]) for e in range(5)}
    assert len(orders) > 2


def test_evaluation_gives_whole_pictures_at_their_size(root: Path) -> None:
    split = data.open_splits(configure(root))["test"]
    item = split.item(0, RNG)
    assert (item["id"], item["group"]) == (NAMES[8], NAMES[8])
    stack = stack_of(split, 0)
    assert (stack.kind, len(stack), stack.spacing) == ("image", 1, None)
    np.testing.assert_allclose(stack.picture(0), picture(disc(seed=8), 8) / np.float32(255))
    np.testing.assert_array_equal(stack.truth(0), disc(seed=8))
    assert stack.instances(0) is None
    assert stack.prompts(0) is None


def test_validation_pictures_are_kept_and_test_pictures_are_not(root: Path) -> None:
    splits = data.open_splits(configure(root))
    assert stack_of(splits["val"], 0) is stack_of(splits["val"], 0)
    assert stack_of(splits["test"], 0) is not stack_of(splits["test"], 0)
    off = data.open_splits(configure(root, in_memory=False))["val"]
    assert stack_of(off, 0) is not stack_of(off, 0)


def test_splits_are_drawn_by_patient_without_a_list(tmp_path: Path) -> None:
    names = [f"p{p}_{v}" for p in range(8) for v in "abc"]
    pairs(tmp_path, names)
    config = configure(tmp_path, patient="(p[0-9]+)_", test_fraction=0.25, val_fraction=0.25)
    found = data.survey(config)
    parts = {name: {c.group for c in cases} for name, cases in found.parts.items()}
    assert {name: len(groups) for name, groups in parts.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert not parts["train"] & parts["val"]
    assert not parts["train"] & parts["test"]
    assert sum(map(len, found.parts.values())) == 24
    assert "drawn from 8 patients" in " ".join(f.what for f in found.findings)
    other = data.survey(configure(tmp_path, patient="(p[0-9]+)_", split_seed=2)).parts
    assert {c.name for c in other["test"]} != {c.name for c in found.parts["test"]}


def test_what_a_list_leaves_open_is_drawn(root: Path) -> None:
    write_json(root / "data_split.json", {"train": NAMES[:8], "test": NAMES[8:]})
    parts = data.survey(configure(root)).parts
    assert list(parts) == ["train", "val", "test"]
    assert len(parts["test"]) == 2
    write_json(root / "data_split.json", {"train": NAMES[:8], "val": NAMES[8:]})
    assert list(data.survey(configure(root)).parts) == ["train", "val"]
    assert "no test part" in lines(root, "warning")[0]
    assert list(data.survey(configure(root, val_fraction=0.0)).parts) == ["train", "val"]


def test_patient_in_two_parts_is_an_error(root: Path) -> None:
    rows = [f"{n},train,p{i}" for i, n in enumerate(NAMES[:6])] + [f"{NAMES[8]},test,p2"]
    (root / "data_split.json").unlink()
    (root / "split.csv").write_text("\n".join(["image,split,patient", *rows]))
    assert any("'train' and 'test': p2" in line for line in lines(root))


def test_same_picture_under_two_names_in_two_parts_is_an_error(root: Path) -> None:
    body = (root / "images" / "n00.png").read_bytes()
    (root / "images" / "n09.png").write_bytes(body)
    (told,) = lines(root)
    assert "n09.png: the same picture as" in told
    with pytest.raises(DataError, match="the same picture"):
        data.open_splits(configure(root))


def test_test_sets_of_a_bundle_are_each_a_split(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES, "TrainDataset/image/{}.png", "TrainDataset/masks/{}.png", (24, 20))
    for i, name in enumerate(("CVC-300", "Kvasir")):
        folder = f"TestDataset/{name}"
        save(tmp_path / folder / "images" / "x.png", picture(disc(seed=50 + i), 50 + i))
        save(tmp_path / folder / "masks" / "x.png", disc(seed=50 + i))
    assert list(data.open_splits(configure(tmp_path))) == [
        *("train", "val", "test_cvc_300", "test_kvasir"),
    ]


def test_thresholds_that_layouts_are_known_for(tmp_path: Path) -> None:
    faint = np.where(disc(), 90, 0).astype(np.uint8)
    faint[0, 0] = 255
    official = tmp_path / "official"
    pairs(official, NAMES, "image_1024/{}.png", "mask_1024/{}.png")
    save(official / "mask_1024" / "n00.png", faint)
    write_json(official / "x_data_split.json", LIST)
    assert train(official).cases[0].open().truth(0).sum() == disc().sum() + (not disc()[0, 0])
    polyps = tmp_path / "polyps"
    pairs(polyps, NAMES, "TrainDataset/image/{}.png", "TrainDataset/masks/{}.png")
    save(polyps / "TrainDataset" / "masks" / "n00.png", faint)
    (polyps / "TestDataset").mkdir()
    cases = data.survey(configure(polyps)).parts.values()
    case = next(c for part in cases for c in part if c.name == "n00")
    assert case.open().truth(0).sum() == 1


def test_nuclei_have_instances(tmp_path: Path) -> None:
    for k in range(6):
        folder = tmp_path / "stage1_train" / f"id{k}"
        save(folder / "images" / f"id{k}.png", picture(disc(seed=k), k))
        save(folder / "masks" / "a.png", disc(seed=k))
        if k == 5:
            save(folder / "masks" / "b.png", disc(seed=99) & ~disc(seed=5))
    parts = data.survey(configure(tmp_path, val_fraction=0.0)).parts
    case = next(c for cases in parts.values() for c in cases if c.name == "id5")
    objects = case.open().instances(0)
    assert objects is not None
    assert objects.dtype == np.int32
    assert objects.max() == 2
    np.testing.assert_array_equal(objects > 0, case.open().truth(0))


# -- where data are -----------------------------------------------------------------------------


def test_data_set_inside_of_the_folder_is_found(root: Path) -> None:
    found = data.survey(configure(root.parent))
    assert found.root == root
    pairs(root.parent / "other", NAMES[:2])
    with pytest.raises(DataError, match=r"several data sets.*other \(folders\), set \(folders\)"):
        data.survey(configure(root.parent))


def test_folders_without_lists_are_one_data_set(tmp_path: Path) -> None:
    for seed, site in enumerate(("north", "south")):
        for k in range(4):
            mask = disc(seed=10 * seed + k)
            save(tmp_path / site / "images" / f"{k}.png", picture(mask, 10 * seed + k))
            save(tmp_path / site / "masks" / f"{k}.png", mask)
    found = data.survey(configure(tmp_path))
    names = {c.name for cases in found.parts.values() for c in cases}
    assert names == {f"{site}/{k}" for site in ("north", "south") for k in range(4)}


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "no data set found; looked for" in lines(tmp_path)[0]
    assert "in the layout 'isic'" in lines(tmp_path, layout="isic")[0]
    assert "there is no such folder" in lines(tmp_path / "none")[0]
    with pytest.raises(DataError, match=r"data\.root is missing"):
        data.survey(configure(None))


def test_named_layout_is_the_only_one_tried(root: Path) -> None:
    assert data.survey(configure(root, layout="folders")).layout == "folders"
    assert "no data set found in the layout 'dsb2018'" in lines(root, layout="dsb2018")[0]


# -- faults -------------------------------------------------------------------------------------


def spoil(root: Path, name: str) -> None:
    image, mask = root / "images" / "n01.png", root / "masks" / "n01.png"
    if name == "missing mask":
        mask.unlink()
    elif name == "missing image":
        image.unlink()
    elif name == "sizes":
        save(mask, disc((30, 20)))
    elif name == "truncated":
        save(image, np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8))
        image.write_bytes(image.read_bytes()[:700])
    elif name == "corrupt":
        save(image, np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8))
        body = image.read_bytes()
        image.write_bytes(body[:500] + bytes(64) + body[564:])
    elif name == "corrupt mask":
        mask.write_bytes(mask.read_bytes()[:40] + b"IEND")
    elif name == "out of range":
        save(mask, disc(seed=1).astype(np.uint8) * 5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing mask", "n01.png: no mask found for it in"),
        ("missing image", "'n01.png' is listed, and there is no such picture in"),
        ("sizes", "n01.png: the mask is 20 x 30 pixels and its picture 20 x 24"),
        ("truncated", "n01.png: the image is broken"),
        ("corrupt", "n01.png: the image is broken"),
        ("corrupt mask", "masks/n01.png: the image is broken"),
    ],
)
def test_every_fault_is_one_line_and_can_be_skipped(root: Path, name: str, told: str) -> None:
    spoil(root, name)
    (line,) = lines(root)
    assert told in line
    assert "\n" not in line
    assert not lines(root, on_error="skip")
    assert any(
        "skipped" in text and told in text for text in lines(root, "warning", on_error="skip")
    )
    kept = data.open_splits(configure(root, on_error="skip"))["train"]
    assert list(kept.ids) == [n for n in NAMES[:6] if n != "n01"]


@pytest.mark.parametrize("name", ["missing mask", "missing image", "sizes", "truncated"])
def test_training_does_not_start_on_what_headers_show(root: Path, name: str) -> None:
    spoil(root, name)
    with pytest.raises(DataError, match="n01"):
        data.open_splits(configure(root))


def test_what_only_decoding_shows_stops_training_with_the_file(root: Path) -> None:
    spoil(root, "corrupt")
    split = train(root)
    with pytest.raises(DataError, match=r"images/n01\.png: the image is broken"):
        split.item(1, RNG)


def test_label_values_out_of_range(root: Path) -> None:
    for path in (root / "masks").iterdir():
        with Image.open(path) as image:
            mask = np.asarray(image) > 0
        save(path, mask.astype(np.uint8) * 2)
    labels = {"tumour": 2, "organ": 1}
    assert not lines(root, labels=labels)
    spoil(root, "out of range")
    (line,) = lines(root, labels=labels)
    assert "masks/n01.png: label value 5 belongs to no class" in line
    assert data.facts_of(train(root, labels=labels))["classes"] == ["tumour", "organ"]


def test_contradicting_settings_are_told(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels: value 1"):
        data.survey(configure(root, labels={"a": 1, "b": 1}))


def test_config_refuses_what_cannot_be(root: Path) -> None:
    for given, told in (
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave something"),
        ({"patient": "(p["}, "no regular expression"),
        ({"patient": "p[0-9]+"}, "group in brackets"),
    ):
        with pytest.raises(ValueError, match=told):
            configure(root, **given)


def test_doubtful_masks_are_warned_of(root: Path) -> None:
    save(root / "masks" / "n00.png", np.zeros((24, 20), bool))
    save(root / "masks" / "n01.png", np.ones((24, 20), bool))
    levels = np.zeros((24, 20), np.uint8)
    levels[:8], levels[8:16] = 100, 255
    save(root / "masks" / "n02.png", levels)
    assert any("n00.png: the mask is empty" in text for text in lines(root, "info"))
    warned = lines(root, "warning")
    assert any("n01.png: the mask is all foreground" in text for text in warned)
    assert any("n02.png: the mask has values 0, 100, 255, read as one class" in t for t in warned)
    assert not lines(root, "warning", deep=False)


def test_picture_turned_by_exif_and_mask_as_stored(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "n00.png").unlink()
    save(root / "images" / "n00.jpg", picture(disc(seed=0), 0), exif=exif)
    assert not lines(root)
    stack = train(root).cases[0].open()
    assert stack.picture(0).shape == (24, 20, 3)
    # With the mask as displayed, the picture is turned.
    save(root / "masks" / "n00.png", np.rot90(disc(seed=0), -1))
    assert not lines(root)
    assert train(root).cases[0].open().picture(0).shape == (20, 24, 3)


def test_check_counts_what_is_there(root: Path) -> None:
    told = lines(root, "info")
    assert "layout folders, 10 pictures; classes: foreground" in told[0]
    assert "train: 6 pictures; width 20 to 20, height 24 to 24; RGB 6" in told[1]


def test_findings_are_sorted_by_weight(root: Path) -> None:
    spoil(root, "sizes")
    levels = [f.level for f in data.check(configure(root))]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)


def test_digests_follow_the_content(root: Path) -> None:
    first = train(root).digest
    assert train(root).digest == first
    save(root / "masks" / "n03.png", ~disc(seed=3))
    assert train(root).digest != first


# -- facts and prediction -----------------------------------------------------------------------


def test_facts_are_what_prediction_needs(root: Path) -> None:
    assert data.facts_of(train(root, fit="letterbox")) == {
        "classes": ["foreground"],
        "values": [[]],
        "kind": "image",
        "image_size": 32,
        "fit": "letterbox",
    }


FACTS = {"classes": ["foreground"], "values": [[]], "kind": "image"}


def test_prediction_on_files_and_folders(root: Path) -> None:
    config = configure(None)
    one = data.inputs([root / "images" / "n03.png"], FACTS, config)
    assert list(one.ids) == ["n03"]
    assert stack_of(one, 0).truth(0) is None
    assert list(data.inputs([root / "images"], FACTS, config).ids) == NAMES
    both = data.inputs([root / "images" / "n03.png", root / "images"], FACTS, config)
    assert both.ids[0] == "n03"
    assert "n03-2" in both.ids


def test_prediction_on_a_data_set_has_its_truth(root: Path) -> None:
    split = data.inputs([root], FACTS, configure(None))
    assert sorted(split.ids) == NAMES
    index = list(split.ids).index("n04")
    np.testing.assert_array_equal(stack_of(split, index).truth(0), disc(seed=4))


def test_broken_pictures_are_told_before_predicting_or_skipped(root: Path) -> None:
    spoil(root, "truncated")
    (root / "images" / "n05.png").write_text("x")
    with pytest.raises(DataError, match=r"n01\.png[^\n]*\n[^\n]*n05\.png"):
        data.inputs([root / "images"], FACTS, configure(None))
    split = data.inputs([root / "images"], FACTS, configure(None, on_error="skip"))
    assert list(split.ids) == [n for n in NAMES if n not in ("n01", "n05")]
    assert [note[:8] for note in split.notes] == ["skipped:"] * 2
    with pytest.raises(DataError, match="n05"):
        data.inputs([root / "images" / "n05.png"], FACTS, configure(None, on_error="skip"))


def test_prediction_on_nothing_is_an_error(tmp_path: Path) -> None:
    config = configure(None)
    with pytest.raises(DataError, match="no such file"):
        data.inputs([tmp_path / "x.png"], FACTS, config)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt"):
        data.inputs([tmp_path / "notes.txt"], FACTS, config)
    with pytest.raises(DataError, match="holds no"):
        data.inputs([tmp_path], FACTS, config)


# -- stacks -------------------------------------------------------------------------------------


def stack(tmp_path: Path, classes: Classes | None = None, name: str = "a") -> ImageStack:
    path = save(tmp_path / "a.png", picture(disc()))
    return ImageStack(Picture(name, name, (path,)), Reader(Coding(classes or Classes())))


def test_mask_is_written_as_black_and_white(tmp_path: Path) -> None:
    labels = disc().astype(np.uint8)
    (path,) = stack(tmp_path, name="set/a").write(tmp_path / "out", lambda i: labels)
    assert path == tmp_path / "out" / "set" / "a.png"
    with Image.open(path) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), labels * 255)


def test_classes_are_written_with_a_palette_and_read_back(tmp_path: Path) -> None:
    classes = Classes(("a", "b"), ((1,), (2,)))
    labels = np.where(disc(), 2, disc(seed=4)).astype(np.uint8)
    (path,) = stack(tmp_path, classes).write(tmp_path / "out", lambda i: labels)
    np.testing.assert_array_equal(read_mask(path, Coding(classes)), labels)
    assert len(set(np.asarray(as_image(labels, classes).convert("RGB")).reshape(-1, 3).sum(1))) == 3


def test_a_name_that_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    bad = stack(tmp_path, name="../a")
    with pytest.raises(DataError, match="plain name"):
        bad.write(tmp_path / "out", lambda i: disc().astype(np.uint8))


# -- volumes and clips in the same form ---------------------------------------------------------


class Ramp:
    """A stack of flat pictures whose brightness is their number."""

    kind = "volume"
    spacing = None

    def __init__(self, name: str, full: list[bool]) -> None:
        self.id = self.group = name
        self.full = full

    def __len__(self) -> int:
        return len(self.full)

    def picture(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index / 255, np.float32)

    def truth(self, index: int) -> np.ndarray:
        return np.full((8, 8), self.full[index], np.uint8)


def ramp_case(name: str, full: list[bool], opened: list[str]) -> Case:
    def open_() -> Stack:
        opened.append(name)
        return cast("Stack", Ramp(name, full))

    def look(deep: bool) -> list[Finding]:
        return []

    return Case(name, name, "volume", (), Classes(), open_, lambda: list(enumerate(full)), look)


def test_slices_with_labels_are_drawn_more_often() -> None:
    opened: list[str] = []
    full = [i % 5 == 0 for i in range(30)]
    cases = [ramp_case(n, full, opened) for n in ("v", "w")]
    config = configure(None, foreground_share=0.5, augment="none", trainer={"batch_size": 4})
    split = data.TrainSplit(cases, config, {"v": "", "w": ""})
    assert split.ids[1] == "v/1"
    batches = split.batches(0, order_rng(1, 0))
    chosen = np.concatenate(batches)
    assert len(chosen) == 60
    wanted = np.isin(chosen % 5, 0)
    assert wanted.sum() == 30
    # None of them twice more than another.
    assert set(np.bincount(chosen[wanted], minlength=60)[[0, 5, 35]]) <= {2, 3}
    item = split.item(33, RNG)
    assert item["image"].max() == pytest.approx(3 / 255)
    split.item(34, RNG)
    assert opened == ["w"]


def test_slices_are_augmented_as_slices_by_our_preset_alone() -> None:
    case = ramp_case("v", [True], [])
    kinds = {
        name: type(data.TrainSplit([case], configure(None, augment=name), {"v": ""})._augment)
        for name in ("standard", "official", "none")
    }
    assert kinds["standard"] is SliceAugmentation
    assert kinds["official"] is kinds["none"] is Augmentation


def test_no_slice_to_train_on_is_an_error() -> None:
    case = ramp_case("v", [], [])
    with pytest.raises(DataError, match="no picture with a mask"):
        data.TrainSplit([case], configure(None), {"v": ""})


# -- real data ----------------------------------------------------------------------------------


@needs_real
def test_real_nuclei_are_split_by_their_list() -> None:
    found = data.survey(configure(REAL / "dsb2018"))
    assert {name: len(cases) for name, cases in found.parts.items()} == {
        "train": 21,
        "val": 6,
        "test": 4,
    }
    assert (found.layout, found.classes.names) == ("dsb2018", ("nucleus",))
    split = data.open_splits(configure(REAL / "dsb2018", size=256), found)["test"]
    covered = []
    for i in range(4):
        truth = stack_of(split, i).truth(0)
        assert truth is not None
        covered.append(truth.mean())
    assert 0.01 < min(covered) < max(covered) < 0.5


@needs_real
def test_real_membranes_are_inverted_on_request() -> None:
    root = REAL / "isbi2012_membrane"
    share = {}
    for invert in (False, True):
        split = train(root, invert=invert, augment="none", size=128)
        share[invert] = split.item(0, RNG)["mask"].float().mean().item()
    assert share[False] + share[True] == pytest.approx(1)
    assert share[True] < 0.35  # membranes are the smaller part


@pytest.mark.parametrize("ending", [".png", ".mp4"])
def test_names_that_are_no_text_are_told_with_their_folder(root: Path, ending: str) -> None:
    strange = root / "images" / os.fsdecode(b"n\xff" + ending.encode())
    (root / "images" / "n03.png").rename(strange)
    with pytest.raises(DataError, match=rf"images/n\\udcff\{ending}: the file's name is no text"):
        data.inputs([strange], FACTS, configure(None))
