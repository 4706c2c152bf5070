import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.data import item_rng, order_rng
from zoo.domains.medical.medusa import data, sample
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.data import MedusaSplit
from zoo.errors import ConfigError, DataError
from zoo.task import Split

from .conftest import DATA, PARTS, configure
from .writers import binary_rows, picture, write_covidx, write_dicom, write_image

RNG = item_rng(0, 0, 0)


def opened(root: Path, **settings: Any) -> dict[str, MedusaSplit]:
    return data.open_splits(configure(root, **settings))  # type: ignore[return-value]


# -- items --------------------------------------------------------------------------------------


def test_an_item_is_what_the_model_takes(covidx: Path, drawn: list[sample.Image]) -> None:
    test = opened(covidx)["test"]
    assert isinstance(test, Split)
    known = {i.file: i for i in drawn}
    for index, entry in enumerate(test.entries):
        item, image = test.item(index, RNG), known[entry.path.name]
        assert item["image"].shape == (3, 48, 48)
        assert item["image"].dtype == item["semantic"].dtype == torch.float32
        assert 0 <= item["image"].min() < item["image"].max() <= 1
        assert item["semantic"].shape == (1, 32, 32)
        assert abs(item["semantic"].mean()) < 1e-5
        assert item["label"] == image.label
        assert item["meta"] == {"sex": image.sex, "age": str(image.age), "view": image.view}
        assert max(item["preview"].shape) <= 192
        assert item["preview"].dtype == np.uint8
        # Bones bright in every format: the picture resembles what was drawn.
        ours = cv2.resize(item["preview"], (40, 40)).astype(float).ravel()
        drawn_image = cv2.resize(image.drawn.image, (40, 40)).ravel()
        assert np.corrcoef(ours, drawn_image)[0, 1] > 0.97, entry.path.name
        if item["mask"] is not None:
            lungs = cv2.resize(image.drawn.lungs.astype(np.float32), (32, 32)) > 0.5
            assert (lungs == item["mask"][0].numpy()).mean() > 0.95


def test_every_format_and_both_polarities_are_in_it(drawn: list[sample.Image]) -> None:
    kinds = {i.file.rpartition(".")[2] for i in sample.images(0)}
    assert kinds == {"png", "jpg", "jpeg", "dcm"}


def test_collate(covidx: Path) -> None:
    test = opened(covidx)["test"]
    items = [test.item(i, RNG) for i in range(4)]
    batch = test.collate(items)
    assert batch["image"].shape == (4, 3, 48, 48)
    assert batch["semantic"].shape == batch["mask"].shape == (4, 1, 32, 32)
    assert batch["label"].tolist() == [i["label"] for i in items]
    assert batch["weight"].tolist() == [1.0] * 4
    assert batch["has_mask"].tolist() == [i["mask"] is not None for i in items]
    for known, mask in zip(batch["has_mask"], batch["mask"], strict=True):
        assert bool(mask.any()) == bool(known)
    assert batch["ids"] == list(test.ids[:4])
    assert len(batch["preview"]) == len(batch["meta"]) == len(batch["groups"]) == 4


# -- augmentation and memory --------------------------------------------------------------------


def test_training_is_augmented_and_evaluation_is_not(covidx: Path) -> None:
    splits = opened(covidx)
    for part, split in splits.items():
        first, again, other = (split.item(0, item_rng(0, e, 0)) for e in (0, 0, 1))
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["image"], other["image"]) == (part != "train")
        assert torch.equal(first["semantic"], other["semantic"]) == (part != "train")


def test_aligned_moves_both_inputs_and_the_mask_together(covidx: Path) -> None:
    train = opened(covidx)["train"]
    index = next(i for i, e in enumerate(train.entries) if e.masks)
    for epoch in range(6):
        item = train.item(index, item_rng(0, epoch, index))
        image = cv2.resize(item["image"][0].numpy(), (32, 32)).ravel()
        assert np.corrcoef(image, item["semantic"].numpy().ravel())[0, 1] > 0.98
        inside = item["mask"].numpy().ravel() > 0
        assert item["semantic"].numpy().ravel()[inside].mean() < -0.5  # lungs are dark


def test_legacy_leaves_the_bodys_input_and_mask_as_they_are(covidx: Path) -> None:
    train, plain = (opened(covidx, augment=a)["train"] for a in ("legacy", "none"))
    changed = 0
    for index in range(6):
        item, still = train.item(index, item_rng(0, 0, index)), plain.item(index, RNG)
        assert torch.equal(item["semantic"], still["semantic"])
        changed += not torch.equal(item["image"], still["image"])
    assert changed == 6


@pytest.mark.parametrize("augment", ["aligned", "legacy", "none"])
def test_kept_images_change_nothing(covidx: Path, augment: str) -> None:
    kept, fresh = (opened(covidx, augment=augment, in_memory=m)["train"] for m in (True, False))
    for epoch in range(2):
        for index in range(4):
            a, b = (s.item(index, item_rng(0, epoch, index)) for s in (kept, fresh))
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["semantic"], b["semantic"])
            a["image"].zero_()
            a["semantic"].zero_()
            a["preview"][:] = 0
    assert len(kept._kept) == 4
    assert not fresh._kept


def test_kept_images_need_no_file(covidx: Path) -> None:
    train = opened(covidx)["train"]
    train.item(3, RNG)
    train.paths[3].unlink()
    train.item(3, item_rng(0, 1, 3))
    with pytest.raises(DataError, match="cannot be read"):
        pickle.loads(pickle.dumps(train)).item(3, RNG)


def test_workers_give_the_same_batches(covidx: Path) -> None:
    train = opened(covidx)["train"]
    plain = [train.item(i, item_rng(0, 0, i))["image"] for i in range(8)]

    class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> torch.Tensor:
            return train.item(i, item_rng(0, 0, i))["image"]

    for ours, theirs in zip(
        plain, DataLoader(Items(), batch_size=None, num_workers=2), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_balanced_batches(covidx: Path) -> None:
    train = opened(covidx, batch_size=6)["train"]
    batches = train.batches(0, order_rng(0, 0))
    assert sum(map(len, batches)) == train.labels.count(0)
    assert all(sum(train.labels[i] for i in b) == max(1, len(b) // 2) for b in batches)
    assert batches != train.batches(1, order_rng(0, 1))
    everything = opened(covidx, batch_size=6, balance=0)["train"].batches(0, order_rng(0, 0))
    assert sorted(i for b in everything for i in b) == list(range(24))
    test = opened(covidx, batch_size=5)["test"]
    assert test.batches(0, order_rng(0, 0)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


# -- identity -----------------------------------------------------------------------------------


def test_digest_tells_contents_and_labels_apart(covidx: Path) -> None:
    first = {p: s.digest for p, s in opened(covidx).items()}
    assert {p: s.digest for p, s in opened(covidx).items()} == first
    path = covidx / "test.txt"
    path.write_text(
        path.read_text()
        .replace("positive", "x")
        .replace("negative", "positive")
        .replace("x", "negative")
    )
    assert opened(covidx)["test"].digest != first["test"]
    entry = opened(covidx)["train"].entries[1]
    write_image(entry.path, picture(99, shape=(50, 50)))
    assert opened(covidx)["train"].digest != first["train"]


def test_no_patient_leaves_the_adapter(tmp_path: Path) -> None:
    """Header names and ids are in no id, group, record, note, finding or error."""
    for i in range(20):
        write_dicom(
            tmp_path / "d" / f"{i}.dcm",
            picture(i),
            PatientID=f"MRN-{i}",
            PatientName=f"Doe^Jane{i}",
            AccessionNumber="ACC-1",
        )
    rows = [f"{i}.dcm,{('a', 'b')[i % 2]}" for i in range(20)]
    (tmp_path / "d" / "t.csv").write_text("file,label\n" + "\n".join(rows))
    config = configure(tmp_path / "d")
    splits = data.open_splits(config)
    told = [f.line() for f in data.check(config, deep=True)]
    for split in splits.values():
        batch = split.collate([split.item(i, RNG) for i in range(2)])
        told += [*split.ids, *split.groups, repr(batch), repr(split.entries), repr(split.notes)]
    facts = data.facts_of(splits["train"])
    predicted = data.inputs([tmp_path / "d" / "3.dcm"], facts, config)
    told += [*predicted.ids, *predicted.groups, repr(predicted.item(0, RNG)), json.dumps(facts)]
    for secret in ("MRN", "Doe", "Jane", "ACC-1"):
        assert not any(secret in line for line in told)
    assert predicted.groups[0] in {g for s in splits.values() for g in s.groups}


def test_groups_of_unlike_patients_are_unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.domains.medical.medusa import survey

    monkeypatch.setattr(survey, "alias", lambda name: "same")
    made = survey.aliases(["a", "b", "c", "a"])
    assert len(set(made.values())) == 3


def test_facts_are_json(covidx: Path) -> None:
    facts = data.facts_of(opened(covidx)["train"])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["preprocessing"] == {
        "image_size": 48,
        "body_size": 32,
        "crop_top": 0.0,
        "square": False,
    }
    assert (facts["classes"], facts["positive"]) == (["negative", "positive"], 1)


def test_crops_reach_the_items(covidx: Path) -> None:
    plain, cropped = (opened(covidx, **c)["test"] for c in ({}, {"crop_top": 0.2, "square": True}))
    assert not torch.equal(plain.item(0, RNG)["image"], cropped.item(0, RNG)["image"])
    assert data.facts_of(cropped)["preprocessing"]["crop_top"] == 0.2
    preview = cropped.item(0, RNG)["preview"]
    assert preview.shape[0] == preview.shape[1]


# -- defects ------------------------------------------------------------------------------------


DEFECTS = {
    "truncated.dcm": "break",
    "colour.dcm": "RGB",
    "frames.dcm": "2 frames",
    "no_dicom.dcm": "DICOM",
    "truncated.png": "breaks off",
    "empty.png": "empty",
    "12_bit.png": "16-bit",
    "missing.png": "not in",
    "twice.png": "otherwise than in line",
}
SEEN_WITHOUT_DECODING = {"truncated.png", "empty.png", "missing.png", "twice.png"}


@pytest.mark.parametrize("deep", [True, False])
def test_every_defect_is_one_line(tmp_path: Path, deep: bool) -> None:
    sample.write(tmp_path, defects=True, parts=PARTS)
    found = data.check(configure(tmp_path), deep=deep)
    lines = [f.line() for f in found if f.level == "error"]
    assert all("\n" not in line for line in lines)
    for name, words in DEFECTS.items():
        mine = [line for line in lines if f"defect_{name}" in line]
        assert len(mine) == int(deep or name in SEEN_WITHOUT_DECODING), (name, mine)
        assert all(words in line for line in mine), mine
    assert sum("2 columns" in line for line in lines) == 1
    assert sum("patients are in both 'train' and 'test'" in line for line in lines) == 1
    count = len(DEFECTS) if deep else len(SEEN_WITHOUT_DECODING)
    assert len(lines) == count + 2


def test_defects_can_be_skipped_but_a_leak_cannot(tmp_path: Path) -> None:
    sample.write(tmp_path, defects=True, parts=PARTS)
    settings: dict[str, Any] = {"on_error": "skip", "missing": "skip"}
    lines = [f.line() for f in data.check(configure(tmp_path, **settings)) if f.level == "error"]
    assert len(lines) == 1
    assert "patients are in both" in lines[0]
    rows = (tmp_path / "test.txt").read_text().splitlines()
    (tmp_path / "test.txt").write_text("\n".join(rows[:-1]))
    splits = opened(tmp_path, **settings)
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 25, "val": 8, "test": 12}
    assert "listed radiographs were not used" in splits["train"].notes[0]


def test_a_broken_file_stops_with_its_name(covidx: Path) -> None:
    train = opened(covidx)["train"]
    index = next(i for i, e in enumerate(train.entries) if e.path.suffix == ".png")
    train.paths[index].write_bytes(b"gone")
    with pytest.raises(
        DataError, match=train.paths[index].name.replace("(", r"\(").replace(")", r"\)")
    ):
        train.item(index, RNG)


def test_an_image_of_one_value_is_a_warning(tmp_path: Path) -> None:
    rows = {"train": binary_rows("train", 8), "test": binary_rows("test", 4)}
    write_covidx(tmp_path, rows)
    write_image(tmp_path / "test" / "test-2.png", np.full((30, 30), 9, np.uint8))
    lines = [f.line() for f in data.check(configure(tmp_path)) if f.level == "warning"]
    assert len(lines) == 1
    assert "test-2.png: the image has one grey value only" in lines[0]
    item = opened(tmp_path)["test"].item(2, RNG)
    assert not item["semantic"].any()


def test_tiny_sets(tmp_path: Path) -> None:
    write_covidx(tmp_path, {"train": binary_rows("train", 2), "test": binary_rows("test", 2)})
    splits = opened(tmp_path, val_fraction=0)
    assert {p: len(s.ids) for p, s in splits.items()} == {"train": 2, "test": 2}
    (tmp_path / "test.txt").write_text("p test-0.png negative cohen\n")
    lines = [
        f.line() for f in data.check(configure(tmp_path, val_fraction=0)) if f.level == "warning"
    ]
    assert any("split 'test' has no image of 'positive'" in line for line in lines)
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "none")


# -- prediction ---------------------------------------------------------------------------------


@pytest.fixture
def facts() -> dict[str, Any]:
    return {
        "classes": ["negative", "positive"],
        "merge": {},
        "preprocessing": {"image_size": 40, "body_size": 16, "crop_top": 0.0, "square": False},
    }


def predicted(paths: list[Path], facts: dict[str, Any], **settings: Any) -> MedusaSplit:
    return data.inputs(paths, facts, configure(Path("unused"), **settings))  # type: ignore[return-value]


def test_inputs_files_and_folders(tmp_path: Path, facts: dict[str, Any]) -> None:
    write_image(tmp_path / "f" / "a.png")
    write_image(tmp_path / "f" / "deep" / "b.jpg")
    write_dicom(tmp_path / "f" / "IM0001", picture(), PatientID="p", ViewPosition="LL")
    (tmp_path / "f" / "notes.txt").write_text("x")
    split = predicted([tmp_path / "f", write_image(tmp_path / "c.png")], facts)
    assert len(split.ids) == 4
    assert {"a.png", "b.jpg", "c.png"} < set(split.ids)
    assert split.labels == [-1] * 4
    item = split.item(0, RNG)
    assert item["image"].shape == (3, 40, 40)  # of the model, not of the configuration
    assert split.notes == ["1 images are no frontal views (LL); predictions on them mean nothing"]


def test_inputs_a_data_set_brings_its_labels(covidx: Path, facts: dict[str, Any]) -> None:
    split = predicted([covidx], facts)
    assert len(split.ids) == 44
    assert split.labels == [int("positive" in e.label) for e in split.entries]
    other = predicted([covidx], facts | {"classes": ["normal", "pneumonia", "COVID-19"]})
    assert set(other.labels) == {-1}
    merged = predicted([covidx], facts | {"merge": {"positive": "negative"}})
    assert set(merged.labels) == {0}


def test_inputs_that_are_wrong(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "bad.png").write_bytes(b"x")
    one, two = (write_image(tmp_path / n / "a.png") for n in ("x", "y"))
    for paths, words in (
        ([tmp_path / "e"], "no radiographs in this folder"),
        ([tmp_path / "none"], "no such file"),
        ([tmp_path / "bad.png"], "neither PNG"),
        ([one, two], "is also that of"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            predicted(paths, facts)
        assert "\n" not in str(caught.value)
    split = predicted([one, tmp_path / "bad.png"], facts, on_error="skip")
    assert len(split.ids) == 1
    assert "skipped" in split.notes[0]
    with pytest.raises(DataError, match=r"bad\.png"):
        predicted([tmp_path / "bad.png"], facts, on_error="skip")


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
def test_inputs_real_dicom(facts: dict[str, Any]) -> None:
    split = predicted([DATA / "dicom", DATA / "rsna_mini", DATA / "nih"], facts)
    assert len(split.ids) == 6
    assert sum(i.startswith("dicom-") for i in split.ids) == 4
    # One patient under both polarities.
    assert sorted(np.unique(split.groups, return_counts=True)[1]) == [1, 1, 1, 1, 2]
    for index in range(6):
        assert split.item(index, RNG)["preview"].max() > 200


# -- configuration ------------------------------------------------------------------------------


def test_whole_numbers_as_labels() -> None:
    made = Config.model_validate(
        {
            "task": "medusa",
            "preset": "paper",
            "data": {"classes": [0, 1], "merge": {2: 1}},
        }
    )
    assert made.data.classes == ["0", "1"]
    assert made.data.merge == {"2": "1"}


def test_a_missing_library_is_told(covidx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ConfigError, match="opencv"):
        data.check(configure(covidx), deep=True)
