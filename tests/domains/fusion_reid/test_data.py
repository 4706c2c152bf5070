import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.fusion_reid_data import has_the_properties
from zoo.data import leakage
from zoo.domains.reid.fusion_reid import data, split
from zoo.domains.reid.fusion_reid.data import ReidSplit
from zoo.domains.reid.fusion_reid.layouts import Entry
from zoo.domains.reid.fusion_reid.survey import queries_and_gallery
from zoo.errors import ConfigError, DataError
from zoo.loader import Feed
from zoo.task import Split

from .trees import (
    DUKE,
    MARKET,
    configure,
    write_boxes,
    write_crop,
    write_cuhk03,
    write_msmt17,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def market(tmp_path: Path) -> Path:
    return write_boxes(tmp_path / "market1501", MARKET)


def opened(root: Path, **options: Any) -> dict[str, ReidSplit]:
    return data.open_splits(configure(root, **options))


def lines(root: Path, level: str, deep: bool = True, **options: Any) -> list[str]:
    found = data.check(configure(root, **options), deep=deep)
    return [f.line() for f in found if f.level == level]


# -- items --------------------------------------------------------------------------------------


def test_splits_and_what_their_items_hold(market: Path) -> None:
    splits = opened(market)
    assert list(splits) == ["train", "test"]
    train, test = splits["train"], splits["test"]
    assert isinstance(train, Split)
    assert train.groups == ["market1501:0002"] * 2 + ["market1501:0007"] * 2
    assert train.labels == [0, 0, 1, 1]
    assert train.ids[0] == "train/0002_c1s1_000451_03.jpg"
    assert test.ids[0] == "query/0001_c1s1_001051_00.jpg"
    assert test.ids[2] == "gallery/0000_c3s3_094992_04.jpg"
    item = test.item(0, rng())
    image = item.pop("image")
    assert image.shape == (3, 16, 8)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.5 < image.max() <= 1
    body = (market / "query" / "0001_c1s1_001051_00.jpg").read_bytes()
    assert item == {
        "id": "query/0001_c1s1_001051_00.jpg",
        "label": -1,
        "person": "0001",
        "camera": 0,
        "camera_name": "1",
        "domain": "market1501",
        "role": "query",
        "path": "query/0001_c1s1_001051_00.jpg",
        "content": hashlib.sha256(body).hexdigest(),
        "group": "market1501:0001",
    }
    assert test.item(2, rng())["person"] == "distractor"
    item = train.item(3, rng())
    assert (item["label"], item["camera"], item["camera_name"]) == (1, 2, "3")
    assert item["content"] == ""
    assert test.files[test.ids[0]] == market / "query" / "0001_c1s1_001051_00.jpg"


def test_a_batch(market: Path) -> None:
    train = opened(market)["train"]
    batch = train.collate([train.item(i, rng(i)) for i in (0, 1, 3)])
    assert batch["image"].shape == (3, 3, 16, 8)
    assert batch["label"].tolist() == [0, 0, 1]
    assert batch["camera"].tolist() == [0, 1, 2]
    assert batch["label"].dtype == batch["camera"].dtype == torch.int64
    assert batch["person"] == ["0002", "0002", "0007"]
    assert batch["role"] == ["train"] * 3


def test_training_batches_are_p_by_k(market: Path) -> None:
    train = opened(market)["train"]
    for epoch in range(5):
        batches = train.batches(epoch, rng(epoch))
        assert batches == train.batches(epoch, rng(epoch))
        has_the_properties(batches, train.labels, 4, 2)
    assert opened(market)["test"].batches(0, rng()) == [[0, 1, 2, 3], [4, 5]]


def test_instances_that_do_not_fit_are_told(market: Path) -> None:
    (warning,) = lines(market, "warning", instances=3)
    assert "trainer.batch_size=4 must be data.instances=3 times a number of identities" in warning
    splits = opened(market, instances=3)  # evaluation may go on
    with pytest.raises(ConfigError, match="is no multiple of"):
        splits["train"].batches(0, rng())


def test_test_images_are_resized_bilinearly_and_nothing_else(market: Path) -> None:
    from torchvision.transforms.functional import resize, to_tensor

    test = opened(market)["test"]
    for index in range(3):
        from PIL import Image

        picture = Image.fromarray(test.picture(index))
        torch.testing.assert_close(
            test.item(index, rng(1))["image"], to_tensor(resize(picture, [16, 8])), rtol=0, atol=0
        )


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_training_images_are_resized_as_configured(market: Path, how: str) -> None:
    from zoo.domains.reid.fusion_reid.images import resized, unit

    train = opened(market, flip=0, pad=0, erase=0, resize=how)["train"]
    expected = unit(resized(train.picture(0), (16, 8), how))
    np.testing.assert_array_equal(train.item(0, rng())["image"].numpy(), expected)


def test_augmentation_is_the_items_generators(market: Path) -> None:
    train = opened(market)["train"]
    first = train.item(0, rng(3))["image"]
    assert torch.equal(first, train.item(0, rng(3))["image"])
    assert any(not torch.equal(first, train.item(0, rng(i))["image"]) for i in range(4, 8))


@pytest.mark.parametrize("size", [(16, 8), (6, 3)])
def test_images_in_memory_are_the_same(
    market: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept at the smaller of the two sizes, whichever that is."""
    model = {"input_size": size}
    kept = opened(market, model=model)["train"]
    fresh = opened(market, model=model, in_memory=False)["train"]
    for _ in range(2):
        for i in range(len(kept)):
            one, other = kept.item(i, rng(i)), fresh.item(i, rng(i))
            assert torch.equal(one.pop("image"), other.pop("image"))
            assert one == other
    assert len(kept._kept) == len(kept)
    assert not fresh._kept
    assert {k[0].shape[0] for k in kept._kept.values()} == {min(size[0], 12)}
    assert not pickle.loads(pickle.dumps(kept))._kept
    monkeypatch.setattr(split, "_room", lambda: False)
    full = opened(market, model=model)["train"]
    full.item(0, rng())
    assert not full._kept


def test_validation_stays_in_memory_with_its_hashes_and_a_test_does_not(tmp_path: Path) -> None:
    files = {
        "bounding_box_train": [
            f"{p:04d}_c{c}s1_000001_00.jpg" for p in range(1, 7) for c in (1, 2, 3)
        ],
        "query": ["0030_c3s3_045628_00.jpg"],
        "bounding_box_test": ["0030_c1s2_000401_00.jpg"],
    }
    splits = opened(write_boxes(tmp_path, files), val_fraction=0.4)
    val, test = splits["val"], splits["test"]
    rows = [val.item(0, rng())["content"] for _ in range(2)]
    assert rows[0] == rows[1] == hashlib.sha256(val.entries[0].path.read_bytes()).hexdigest()
    assert len(val._kept) == 1
    test.item(0, rng())
    assert not test._kept


def test_occluded_duke_has_the_cameras_of_duke(tmp_path: Path) -> None:
    model = {"camera": "none"}
    first = opened(write_boxes(tmp_path / "Occluded_Duke", DUKE), model=model)["train"]
    facts = data.facts_of(first)
    second = opened(write_boxes(tmp_path / "dukemtmc", DUKE), model=model)["train"]
    batch = second.collate([second.item(i, rng()) for i in range(3)])
    assert facts["domain"] == "dukemtmc"
    assert data.embedding_index(batch, facts).tolist() == batch["camera"].tolist() == [0, 1, 2]


def test_worker_processes_read_the_same(market: Path) -> None:
    train = opened(market)["train"]
    batches = train.batches(0, rng())
    found = [
        [b["image"] for _, b in Feed(train, batches, seed=1, epoch=0, workers=w) if b]
        for w in (0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_digest_tells_data_apart(market: Path) -> None:
    first = opened(market)["test"].digest
    assert opened(market)["test"].digest == first
    write_crop(market / "query" / "0001_c2s1_000999_00.jpg")
    second = opened(market)["test"].digest
    assert second != first
    path = market / "query" / "0001_c2s1_000999_00.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert opened(market)["test"].digest not in (first, second)


# -- facts and cameras --------------------------------------------------------------------------


def test_facts_are_sorted_and_json(market: Path) -> None:
    facts = data.facts_of(opened(market)["train"])
    assert json.loads(json.dumps(facts)) == {
        "identities": ["0002", "0007"],
        "cameras": ["1", "2", "3"],
        "domain": "market1501",
        "input_size": [16, 8],
    }


def test_cameras_are_sorted_as_numbers(tmp_path: Path) -> None:
    files = [f"{p}_c{c}s1_000001_00.jpg" for p in ("0001", "0002") for c in (10, 2, 9, 1)]
    write_boxes(tmp_path, {"bounding_box_train": files})
    train = opened(tmp_path)["train"]
    assert train.cameras == ("1", "2", "9", "10")
    found = {e.camera: train.camera(i) for i, e in enumerate(train.entries)}
    assert found == {"1": 0, "2": 1, "9": 2, "10": 3}


def test_a_camera_without_embedding_is_an_error(market: Path) -> None:
    write_crop(market / "query" / "0001_c5s1_000777_00.jpg")
    (error,) = lines(market, "error")
    assert "1 images are of cameras without training images (5)" in error
    assert "3 camera embeddings" in error
    assert "model.camera=none" in error
    with pytest.raises(DataError, match="camera embeddings"):
        opened(market)
    for camera in ("none", "view"):
        test = opened(market, model={"camera": camera})["test"]
        assert test.item(test.ids.index("query/0001_c5s1_000777_00.jpg"), rng())["camera"] == -1


def test_another_data_set_is_its_own_test_and_has_no_embeddings(
    market: Path, tmp_path: Path
) -> None:
    duke = write_boxes(tmp_path / "duke", DUKE)
    own = tmp_path / "Own crops"
    write_crop(own / "query" / "1_1_a.jpg")
    write_crop(own / "gallery" / "1_2_a.jpg")
    splits = opened(market, test=[f"dukemtmc:{duke}", str(own), str(duke)])
    assert list(splits) == [
        "train",
        "test",
        "test_dukemtmc",
        "test_own_crops",
        "test_dukemtmc_2",
    ]
    batch = splits["test_dukemtmc"].collate(
        [splits["test_dukemtmc"].item(i, rng()) for i in (0, 1)]
    )
    assert batch["camera"].tolist() == [-1, -1]
    assert batch["camera_name"] == ["2", "5"]
    assert batch["domain"] == ["", ""]
    # 0005 of Duke is nobody of Market-1501, and 0001 trains there and is tested here.
    assert not leakage({k: v for k, v in splits.items() if k != "test"})


def test_cameras_of_a_trained_model_count(market: Path, tmp_path: Path) -> None:
    """At evaluation another data set may be data.root; its cameras have numbers of their own."""
    facts = data.facts_of(opened(market)["train"])
    duke = opened(write_boxes(tmp_path / "duke", DUKE), model={"camera": "none"})["test"]
    batch = duke.collate([duke.item(i, rng()) for i in range(len(duke))])
    assert data.embedding_index(batch, facts).tolist() == [-1] * 3
    test = opened(market)["test"]
    batch = test.collate([test.item(i, rng()) for i in range(len(test))])
    assert data.embedding_index(batch, facts).tolist() == batch["camera"].tolist()
    fewer = facts | {"cameras": ["3", "1"]}
    assert data.embedding_index(batch, fewer).tolist() == [1, 0, 0, 1, -1, 1]


# -- identities ---------------------------------------------------------------------------------


def test_an_identity_in_train_and_test(market: Path) -> None:
    write_crop(market / "query" / "0002_c3s1_000777_00.jpg")
    (error,) = lines(market, "error")
    assert "1 identities are in both 'train' and 'test': 0002" in error
    with pytest.raises(DataError, match="in both 'train' and 'test'"):
        opened(market, on_error="skip")


def test_msmt17_starts_at_0_twice(tmp_path: Path) -> None:
    splits = opened(write_msmt17(tmp_path), model={"camera": "none"})
    assert splits["train"].groups[0] == "msmt17-train:0000"
    assert splits["test"].groups[0] == "msmt17-test:0000"
    assert not leakage(splits)


def test_the_same_files_under_another_name_are_found(market: Path, tmp_path: Path) -> None:
    copy = write_boxes(tmp_path / "copy", MARKET)
    name = MARKET["bounding_box_train"][0]
    write_crop(copy / "query" / name)
    (error,) = lines(market, "error", test=[str(copy)])
    assert (
        f"1 images of 'test_market1501' have name and size of one that trains, query/{name}"
        in error
    )


def test_held_out_identities_make_queries_and_gallery(tmp_path: Path) -> None:
    names = [
        f"{p:04d}_c{c}s1_{f:06d}_00.jpg" for p in range(1, 11) for c in (1, 2, 3) for f in (1, 2)
    ]
    write_boxes(tmp_path, {"bounding_box_train": names})
    splits = opened(tmp_path, val_fraction=0.3)
    assert list(splits) == ["train", "val"]
    assert len(set(splits["train"].groups)) == 7
    assert splits["train"].identities == tuple(sorted({e.person for e in splits["train"].entries}))
    val = splits["val"]
    asked = [e for e in val.entries if e.role == "query"]
    assert len(asked) == 9
    assert val.ids[0].startswith("query/")
    assert val.item(0, rng())["label"] == -1
    assert not leakage(splits)
    assert opened(tmp_path, val_fraction=0.3)["val"].ids == val.ids
    assert opened(tmp_path, val_fraction=0.3, split_seed=2)["val"].ids != val.ids
    assert "val" not in opened(tmp_path)
    assert len(set(opened(tmp_path, val_fraction=0.99)["train"].identities)) == 2


def crop(person: str, camera: str, number: int) -> Entry:
    name = f"train/{person}_{camera}_{number}.jpg"
    return Entry(Path(name), name, "train", person, camera, "x", 1)


@pytest.mark.parametrize(
    ("cameras", "queries"),
    [("112233", 3), ("123", 2), ("12", 1), ("1", 0), ("11", 0), ("112", 1), ("1122", 2)],
)
def test_every_query_keeps_a_match(cameras: str, queries: int) -> None:
    entries = [crop("a", c, n) for n, c in enumerate(cameras)]
    found = queries_and_gallery(entries, 1)
    asked = [e for e in found if e.role == "query"]
    gallery = [e for e in found if e.role == "gallery"]
    assert len(asked) == queries
    assert {e.path for e in found} == {e.path for e in entries}
    assert all(any(g.camera != q.camera for g in gallery) for q in asked)


# -- what is wrong ------------------------------------------------------------------------------


def test_queries_without_a_match_are_counted(market: Path) -> None:
    for name in ("0050_c1s1_000001_00.jpg", "0051_c2s1_000001_00.jpg"):
        write_crop(market / "query" / name)
    write_crop(market / "bounding_box_test" / "0050_c1s1_000002_00.jpg")
    (warning,) = lines(market, "warning")
    assert "2 of 4 queries have no gallery image under another camera" in warning
    assert "(1 whose person is not in the gallery at all)" in warning
    assert "query/0050_c1s1_000001_00.jpg is the first" in warning


def test_no_query_with_a_match_is_an_error(market: Path) -> None:
    for path in (market / "query").glob("000*.jpg"):
        path.unlink()
    write_crop(market / "query" / "0051_c2s1_000001_00.jpg")
    (error,) = lines(market, "error")
    assert "no query has a gallery image of its person under another camera" in error


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("bounding_box_test", "test: the gallery is empty; 2 queries have nothing to find"),
        ("query", "test: there are no queries for 4 gallery images"),
    ],
)
def test_an_empty_gallery_or_no_queries(market: Path, folder: str, words: str) -> None:
    for path in (market / folder).glob("0*.jpg"):
        path.unlink()
    (error,) = lines(market, "error")
    assert words in error
    with pytest.raises(DataError, match=words[:20]):
        opened(market)


def test_a_gallery_of_junk_is_empty(market: Path) -> None:
    for path in (market / "bounding_box_test").glob("0*.jpg"):
        path.unlink()
    assert "the gallery is empty" in lines(market, "error")[0]


def test_training_alone_and_testing_alone(market: Path, tmp_path: Path) -> None:
    names = {k: MARKET[k] for k in ("query", "bounding_box_test")}
    assert list(opened(write_boxes(tmp_path / "a", names))) == ["test"]
    only = {"bounding_box_train": MARKET["bounding_box_train"]}
    root = write_boxes(tmp_path / "b", only)
    assert list(opened(root)) == ["train"]
    (warning,) = lines(root, "warning")
    assert "nothing will be tested" in warning
    root = write_boxes(tmp_path / "c", {"bounding_box_train": MARKET["bounding_box_train"][:1]})
    assert "training needs two identities or more, found 1" in lines(root, "error")[0]


def test_a_badly_named_file(market: Path) -> None:
    write_crop(market / "query" / "me.jpg")
    (error,) = lines(market, "error")
    assert "me.jpg: its name tells no person and camera; expected PPPP_cCsS_FFFFFF_BB.jpg" in error
    with pytest.raises(DataError, match=r"me\.jpg"):
        opened(market)
    splits = opened(market, on_error="skip")
    assert len(splits["test"]) == 6
    assert "1 images of the data were skipped" in splits["train"].notes
    (warning,) = lines(market, "warning", on_error="skip")
    assert warning.startswith(str(market / "query" / "me.jpg"))


def test_a_broken_image(market: Path) -> None:
    path = market / "bounding_box_train" / MARKET["bounding_box_train"][0]
    path.write_bytes(path.read_bytes()[:300])
    assert lines(market, "error", deep=False) == []
    (error,) = lines(market, "error", deep=True)
    assert path.name in error
    assert "the image is broken" in error
    splits = opened(market)
    with pytest.raises(DataError, match=path.name):
        splits["train"].item(0, rng())
    assert len(opened(market, on_error="skip")["train"]) == 3


def test_an_empty_file_is_seen_without_reading(market: Path) -> None:
    (market / "query" / MARKET["query"][0]).write_bytes(b"")
    (error,) = lines(market, "error", deep=False)
    assert "the file is empty" in error


def test_check_tells_what_there_is(market: Path) -> None:
    told = lines(market, "info")
    assert any("train: 4 images, 2 identities, 3 cameras, 2 images each" in t for t in told)
    assert any("test, gallery: 4 images, 2 identities, 3 cameras" in t for t in told)
    assert any("1 distractors" in t for t in told)
    assert any("gallery: 1 images marked as junk" in t for t in told)
    assert any("1 image sizes, width x height: 6 x 12 (10)" in t for t in told)
    assert any("at most 1 batches an epoch, 2 x 2" in t for t in told)
    assert lines(market.parent / "nowhere", "error")[0].endswith(
        "set data.root to the folder of the data set"
    )


# -- prediction ---------------------------------------------------------------------------------


@pytest.fixture
def facts(market: Path) -> dict[str, Any]:
    return data.facts_of(opened(market)["train"])


def ask(market: Path, facts: Any, *paths: Path, gallery: Path | None = None, **options: Any) -> Any:
    return data.inputs(paths, gallery, facts, configure(market, **options))


def test_folders_of_queries_and_gallery(market: Path, facts: Any) -> None:
    found = ask(market, facts, market / "query", gallery=market / "bounding_box_test")
    assert found.ids == opened(market)["test"].ids
    assert [e.role for e in found.entries].count("gallery") == 4
    item = found.item(0, rng())
    assert (item["person"], item["camera"], item["camera_name"]) == ("0001", 0, "1")
    assert item["label"] == -1
    assert len(item["content"]) == 64
    assert found.notes == ["1 gallery images marked as junk are left out"]


def test_names_that_tell_nothing_are_welcome(market: Path, facts: Any, tmp_path: Path) -> None:
    path = write_crop(tmp_path / "IMG_1234.jpg")
    found = ask(market, facts, path)
    item = found.item(0, rng())
    assert (item["id"], item["person"], item["camera"]) == ("query/IMG_1234.jpg", "", -1)
    assert item["camera_name"] == ""
    (note,) = found.notes
    assert "1 of 1 file names tell no camera" in note


def test_names_of_another_data_set_tell_who_but_no_embedding(
    market: Path, facts: Any, tmp_path: Path
) -> None:
    duke = write_crop(tmp_path / "0001_c2_f0046182.jpg")
    msmt = write_crop(tmp_path / "0000_000_01_0303morning_0008_0.jpg")
    strange = write_crop(tmp_path / "0009_c6s1_000001_00.jpg")
    found = ask(market, facts, duke, msmt, strange)
    rows = [found.item(i, rng()) for i in range(3)]
    assert [(r["person"], r["camera_name"], r["camera"]) for r in rows] == [
        ("0001", "2", -1),
        ("0000", "1", -1),
        ("0009", "6", -1),
    ]
    assert "3 of 3 images are of cameras the model was not trained on" in found.notes[0]
    batch = found.collate(rows)
    assert data.embedding_index(batch, facts).tolist() == [-1] * 3


def test_own_folders_read_names_as_in_training(tmp_path: Path) -> None:
    for name in ("train/1_1_a.jpg", "train/1_2_a.jpg", "train/2_1_a.jpg", "train/2_2_a.jpg"):
        write_crop(tmp_path / "own" / name)
    facts = data.facts_of(opened(tmp_path / "own")["train"])
    asked = [write_crop(tmp_path / n) for n in ("7_2_x.jpg", "IMG_1234.jpg", "portrait.jpg")]
    found = ask(tmp_path / "own", facts, *asked)
    assert [(e.person, found.camera(i)) for i, e in enumerate(found.entries)] == [
        ("0007", 1),
        ("", -1),
        ("", -1),
    ]
    pattern = r"^(?P<pid>[a-z]+)-(?P<cam>\d+)"
    write_crop(tmp_path / "more" / "anna-2.jpg")
    found = ask(tmp_path / "own", facts, tmp_path / "more", layout="folder", pattern=pattern)
    assert (found.entries[0].person, found.camera(0)) == ("anna", 1)


def test_a_junk_query_is_a_query(market: Path, facts: Any) -> None:
    found = ask(market, facts, market / "bounding_box_test" / "-1_c1s1_000401_03.jpg")
    assert (found.entries[0].person, found.camera(0)) == ("", 0)


def test_input_that_cannot_be(market: Path, facts: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("x")
    for path, words in (
        (tmp_path / "nowhere.jpg", "no such file"),
        (tmp_path / "empty", "no images in this folder"),
        (tmp_path / "list.txt", "is no image"),
    ):
        with pytest.raises(DataError, match=words):
            ask(market, facts, path)
    query = market / "query"
    with pytest.raises(DataError, match=r"predict\.gallery=.* no such folder"):
        ask(market, facts, query, gallery=tmp_path / "nowhere")
    junk = tmp_path / "junk"
    write_crop(junk / "-1_c1s1_000401_03.jpg")
    with pytest.raises(DataError, match="every image in it is marked as junk"):
        ask(market, facts, query, gallery=junk)
    other = tmp_path / "other" / MARKET["query"][0]
    write_crop(other)
    with pytest.raises(DataError, match="are both called"):
        ask(market, facts, query, other)


def test_broken_input_is_named_or_skipped(market: Path, facts: Any) -> None:
    path = market / "query" / MARKET["query"][0]
    path.write_bytes(path.read_bytes()[:300])
    found = ask(market, facts, market / "query")
    with pytest.raises(DataError, match=path.name):
        found.item(0, rng())
    found = ask(market, facts, market / "query", on_error="skip")
    assert len(found) == 1
    assert path.name in found.notes[0]
    with pytest.raises(DataError, match=path.name):
        ask(market, facts, path, on_error="skip")


def test_names_of_cuhk03_are_not_taken_for_msmt17s(tmp_path: Path) -> None:
    train = opened(write_cuhk03(tmp_path / "cuhk03"))["train"]
    facts = data.facts_of(train)
    assert facts["identities"] == ["1_001", "2_007"]
    asked = write_crop(tmp_path / "5_003_2_09.png")
    strange = write_crop(tmp_path / "portrait.png")
    found = ask(tmp_path / "cuhk03", facts, asked, strange)
    rows = [found.item(i, rng()) for i in range(2)]
    assert [(r["person"], r["camera"]) for r in rows] == [("5_003", 1), ("", -1)]
