import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.data import item_rng, order_rng
from zoo.domains.medical.wsi_mil import data, sample, tables
from zoo.domains.medical.wsi_mil.layouts import slide_name
from zoo.domains.medical.wsi_mil.sample import Slide
from zoo.errors import DataError
from zoo.task import Split

from .conftest import configure
from .writers import (
    TRIDENT_FOLDER,
    write_acmil,
    write_bracs,
    write_labels,
    write_tensors,
    write_trident,
)

RNG = item_rng(0, 0, 0)
MUSK = Path(__file__).parents[4] / "shared" / "data" / "wsi_mil" / "mil_tables" / "musk1.csv"


def by_id(slides: list[Slide]) -> dict[str, Slide]:
    return {s.id: s for s in slides}


def h5_of(root: Path, slide: Slide) -> Path:
    return root / "features" / "h5_files" / f"{slide.id}.h5"


def names_of(slides: list[Slide], part: str) -> list[str]:
    return [s.id for s in slides if s.part == part]


def one_error(root: Path, *words: str, **settings: Any) -> str:
    """The one-line error that opening the data set gives; it holds all the words."""
    with pytest.raises(DataError) as caught:
        data.open_splits(configure(root, **settings))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def same_items(splits: dict[str, data.WsiSplit], slides: list[Slide], coords: bool = True) -> None:
    known = by_id(slides)
    assert {p: list(s.ids) for p, s in splits.items()} == {
        p: names_of(slides, p) for p in ("train", "val", "test")
    }
    for split in splits.values():
        for index, name in enumerate(split.ids):
            item, slide = split.item(index, RNG), known[name]
            assert item["features"].dtype == torch.float32
            np.testing.assert_array_equal(item["features"], slide.features.astype(np.float32))
            assert item["label"] == slide.label
            if coords:
                assert item["coords"].dtype == torch.int64
                np.testing.assert_array_equal(item["coords"], slide.coords)
            else:
                assert item["coords"] is None


# -- layouts ------------------------------------------------------------------------------------


def test_clam(clam: Path, slides: list[Slide]) -> None:
    splits = data.open_splits(configure(clam))
    same_items(splits, slides)
    item = splits["test"].item(0, RNG)
    slide = by_id(slides)[item["id"]]
    np.testing.assert_array_equal(item["instances"], slide.instances)
    assert item["group"] == slide.patient
    assert item["settings"]["patch_size_level0"] == 512
    assert splits["train"].classes == ("normal_tissue", "tumor_tissue")
    assert data.facts_of(splits["train"])["extraction"]["encoder"] == "synthetic-32"
    assert isinstance(splits["train"], Split)


def test_clam_pt_files_serve_slides_without_h5(clam: Path, slides: list[Slide]) -> None:
    h5_of(clam, slides[0]).unlink()
    train = data.open_splits(configure(clam))["train"]
    item = train.item(0, RNG)
    np.testing.assert_array_equal(item["features"], slides[0].features.astype(np.float32))
    assert item["coords"] is None


def test_clam_flat_folder_and_coordinate_file(tmp_path: Path, slides: list[Slide]) -> None:
    (tmp_path / "feats").mkdir()
    (tmp_path / "patches").mkdir()
    for slide in slides:
        with h5py.File(tmp_path / "feats" / f"{slide.id}.h5", "w") as file:
            file["features"] = slide.features[None]  # leading axis of 1, as some files have
            file["coords"] = slide.coords
        with h5py.File(tmp_path / "patches" / f"{slide.id}.h5", "w") as file:
            file["coords"] = slide.coords
            file["coords"].attrs.update({"patch_size": 256, "downsample": np.array([2.0, 2.0])})
    (tmp_path / "feats" / "._sample_000.h5").write_bytes(b"resource fork")
    write_labels(tmp_path, slides)
    splits = data.open_splits(configure(tmp_path))
    item = splits["train"].item(0, RNG)
    known = by_id(slides)[item["id"]]
    np.testing.assert_array_equal(item["features"], known.features.astype(np.float32))
    assert item["settings"]["patch_size_level0"] == 512
    assert splits["train"].classes == ("0", "1")


def test_acmil_labels_from_attributes_and_seeded_split(tmp_path: Path, slides: list[Slide]) -> None:
    path = write_acmil(tmp_path, slides, seeds=(1, 2))
    with h5py.File(path, "a") as file:
        file["normal_027/feat"] = slides[0].features
    by_seed = [data.open_splits(configure(tmp_path, split_seed=s))["train"].ids for s in (1, 2)]
    assert by_seed[0] != by_seed[1]
    assert set(by_seed[0]) == set(by_seed[1])
    item = data.open_splits(configure(tmp_path, fold=2))["train"].item(0, RNG)
    assert item["id"] == by_seed[1][0]
    assert item["settings"]["encoder"] == "medical_ssl"
    assert item["label"] == by_id(slides)[item["id"]].label
    assert data.available_folds(configure(tmp_path).data) == [1, 2]
    one_error(tmp_path, "no split file number 7", "1, 2", fold=7)


def test_acmil_file_as_root(tmp_path: Path, slides: list[Slide]) -> None:
    path = write_acmil(tmp_path, slides)
    splits = data.open_splits(configure(path, val_fraction=0.3, splits="splits/camelyon"))
    assert len(splits["test"]) == 6
    drawn = data.open_splits(configure(path, val_fraction=0.3))
    assert sum(len(s) for s in drawn.values()) == len(slides)


def test_camelyon_table_before_attributes(tmp_path: Path, slides: list[Slide]) -> None:
    write_acmil(tmp_path, slides)
    write_labels(tmp_path, slides, ending=".tif")
    splits = data.open_splits(configure(tmp_path))
    assert splits["train"].groups[1] == by_id(slides)[splits["train"].ids[1]].patient


def test_trident(tmp_path: Path, slides: list[Slide]) -> None:
    write_trident(tmp_path, slides)
    write_labels(tmp_path, slides, ending=".svs")
    rows = [{"slide": s.id, "split": s.part} for s in slides]
    pd.DataFrame(rows).to_csv(tmp_path / "splits.csv", index=False)
    splits = data.open_splits(configure(tmp_path))
    same_items(splits, slides)
    settings = splits["train"].item(0, RNG)["settings"]
    assert settings == {
        "encoder": "uni_v1",
        "target_magnification": 20,
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "overlap": 0,
    }


def test_trident_encoders_are_chosen(tmp_path: Path, slides: list[Slide]) -> None:
    write_trident(tmp_path, slides)
    shutil.copytree(
        tmp_path / TRIDENT_FOLDER / "features_uni_v1", tmp_path / TRIDENT_FOLDER / "features_conch"
    )
    write_labels(tmp_path, slides)
    one_error(tmp_path, "2 feature sets", "data.features=", "features_conch", val_fraction=0)
    chosen = configure(tmp_path, features=f"{TRIDENT_FOLDER}/features_conch", val_fraction=0)
    train = data.open_splits(chosen)["train"]
    assert data.facts_of(train)["extraction"]["encoder"] == "conch"


def test_trident_coordinates_from_patches(tmp_path: Path, slides: list[Slide]) -> None:
    folder = write_trident(tmp_path, slides)
    write_labels(tmp_path, slides)
    with h5py.File(folder / f"{slides[4].id}.h5", "a") as file:
        del file["coords"]
    for split in data.open_splits(configure(tmp_path, val_fraction=0)).values():
        for index, name in enumerate(split.ids):
            np.testing.assert_array_equal(
                split.item(index, RNG)["coords"], by_id(slides)[name].coords
            )


def test_tensors(tmp_path: Path, slides: list[Slide]) -> None:
    write_tensors(tmp_path, slides)
    write_labels(tmp_path, slides)
    (tmp_path / "splits").mkdir()
    every = [s.id for s in slides]
    marks = {p: [s.part == p for s in slides] for p in ("train", "val", "test")}
    pd.DataFrame(marks, index=every).to_csv(tmp_path / "splits" / "splits_0_bool.csv")
    (tmp_path / "splits" / "splits_0_descriptor.csv").write_text(",train\nnormal,4\n")
    same_items(data.open_splits(configure(tmp_path)), slides, coords=False)


def test_old_and_half_tensors(tmp_path: Path, slides: list[Slide]) -> None:
    write_tensors(tmp_path, slides)
    write_labels(tmp_path, slides)
    features = torch.from_numpy(slides[0].features)
    path = tmp_path / "tensors" / f"{slides[0].id}.pt"
    torch.save(features.bfloat16()[None], path, _use_new_zipfile_serialization=False)
    splits = data.open_splits(configure(tmp_path, val_fraction=0))
    part = next(s for s in splits.values() if slides[0].id in s.ids)
    item = part.item(list(part.ids).index(slides[0].id), RNG)
    torch.testing.assert_close(item["features"], features.bfloat16().float())


def test_bracs_table_with_seven_three_and_two_classes(tmp_path: Path, slides: list[Slide]) -> None:
    write_acmil(tmp_path, slides)
    shutil.rmtree(tmp_path / "splits")
    write_bracs(tmp_path, slides)
    seven = data.open_splits(configure(tmp_path))
    assert seven["train"].classes == tuple("0123456")
    assert list(seven["test"].ids) == names_of(slides, "test")
    assert seven["train"].labels == [i % 7 for i in range(8)]
    three = data.open_splits(configure(tmp_path, merge=tables.BRACS_3))
    assert three["train"].classes == ("0", "1", "2")
    assert three["train"].labels == [0, 0, 0, 1, 1, 2, 2, 0]
    two = data.open_splits(
        configure(tmp_path, merge={int(k): int(v) for k, v in tables.BRACS_2.items()})
    )
    assert two["train"].labels == [0, 0, 0, 1, 1, 1, 1, 0]
    one_error(tmp_path, "data.merge names '9'", merge={"9": "1"})


@pytest.mark.skipif(not MUSK.is_file(), reason="the MUSK1 table is not beside this checkout")
def test_musk1() -> None:
    config = configure(MUSK, folds=5, fold=0, val_fraction=0)
    splits = data.open_splits(config)
    assert set(splits) == {"train", "test"}
    train, test = splits["train"], splits["test"]
    assert len(train) + len(test) == 92
    assert train.width == 166
    assert Counter(train.labels + test.labels) == {1: 47, 0: 45}
    assert sum(p.count for p in train.peeks + test.peeks) == 476
    first = test if "1" in test.ids else train
    item = first.item(list(first.ids).index("1"), RNG)
    assert item["features"][0, :3].tolist() == [42, -198, -109]
    assert item["coords"] is None
    mean, deviation = data.instance_statistics(train)
    values = np.concatenate([train.bag(i).features for i in range(len(train))]).astype(np.float64)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(deviation, values.std(axis=0), rtol=1e-12)


def test_table_with_header(tmp_path: Path) -> None:
    rows = [
        {"bag_id": f"0{i // 2}", "patient": f"p{i // 4}", "label": ["no", "yes"][i // 4 % 2]}
        | {"f0": i, "f1": -i, "instance_label": i % 2}
        for i in range(24)
    ]
    path = tmp_path / "bags.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    splits = data.open_splits(configure(tmp_path, val_fraction=0))
    train = splits["train"]
    assert train.classes == ("no", "yes")
    assert train.width == 2
    assert all(len(name) > 1 and name[0] == "0" for name in train.ids)  # zeros are kept
    item = train.item(0, RNG)
    first = int(item["id"]) * 2
    assert item["features"].tolist() == [[first, -first], [first + 1, -first - 1]]
    assert item["instances"].tolist() == [0, 1]
    assert item["group"] == f"p{first // 4}"
    text = path.read_text()
    path.write_text(text.replace("00,p0,no,1", "00,p0,yes,1"))
    one_error(path, "bags.csv", "bag '00'", "several values")
    path.write_text(text.replace("00,p0,no,1", "00,p0,no,abc"))
    one_error(path, "bags.csv", "'abc'", "f0", "row 2")


# -- tables and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("tumor_001.tif", "tumor_001"),
        ("TCGA-A1-A0SB-01Z-00-DX1.B34C267B.svs", "TCGA-A1-A0SB-01Z-00-DX1.B34C267B"),
        ("a.SVS.h5", "a"),
        ("007", "007"),
        (".h5", ".h5"),
    ],
)
def test_slide_names(text: str, name: str) -> None:
    assert slide_name(text) == name


def test_ids_that_look_like_numbers(tmp_path: Path) -> None:
    made = sample.slides(0, {"train": 6, "val": 2, "test": 4})
    renamed = [
        Slide(f"{i + 1:d}", s.patient, s.part, s.label, s.features, s.coords, s.instances)
        for i, s in enumerate(made)
    ]
    sample.write_clam(tmp_path, renamed)
    path = tmp_path / "splits" / "sample" / "splits_0.csv"
    table = pd.read_csv(path, index_col=0)
    assert table["val"].dtype == np.float64
    table.to_csv(path)  # now with 7.0 and 8.0
    assert "7.0" in path.read_text()
    same_items(data.open_splits(configure(tmp_path)), renamed)


def test_class_names_and_order(clam: Path) -> None:
    order = ["tumor_tissue", "normal_tissue"]
    assert data.open_splits(configure(clam, classes=order))["train"].classes == tuple(order)
    one_error(clam, "sample.csv", "'tumor_tissue'", "data.classes", classes=["normal_tissue", "b"])
    merged = {"normal_tissue": "x", "tumor_tissue": "x"}
    one_error(clam, "at least two different classes", merge=merged)
    assert data.classes(configure(clam)) == ("normal_tissue", "tumor_tissue")


def test_columns_by_name(clam: Path, slides: list[Slide]) -> None:
    path = clam / "dataset_csv" / "sample.csv"
    pd.read_csv(path).set_axis(["who", "what", "diagnosis"], axis=1).to_csv(path, index=False)
    one_error(clam, "no labels found", "data.labels")
    one_error(clam, "sample.csv", "data.id_column", "who", labels="dataset_csv/sample.csv")
    named: dict[str, Any] = {
        "id_column": "what",
        "label_column": "diagnosis",
        "patient_column": "who",
    }
    same_items(data.open_splits(configure(clam, **named)), slides)
    one_error(clam, "sample.csv", "no column 'nope'", **(named | {"patient_column": "nope"}))


def test_conflicting_labels(clam: Path, slides: list[Slide]) -> None:
    with (clam / "dataset_csv" / "sample.csv").open("a") as file:
        file.write(f"p,{slides[0].id},tumor_tissue\n")
    one_error(clam, "sample.csv", slides[0].id, "two labels")


def test_two_label_tables(clam: Path) -> None:
    shutil.copy(clam / "dataset_csv" / "sample.csv", clam / "other.csv")
    one_error(clam, "2 label tables", "data.labels=other.csv or dataset_csv/sample.csv")


# -- splits -------------------------------------------------------------------------------------


def test_split_of_unknown_slide(clam: Path) -> None:
    path = clam / "splits" / "sample" / "splits_0.csv"
    path.write_text(path.read_text() + "99,ghost,,\n")
    one_error(clam, "splits_0.csv", "'ghost'", "no features", "no label")
    skipped = data.open_splits(configure(clam, on_error="skip"))
    assert len(skipped["train"]) == 8
    assert skipped["train"].notes == ["1 slides of the data set were skipped"]


def test_split_names_are_plain(clam: Path) -> None:
    path = clam / "splits" / "sample" / "splits_0.csv"
    path.write_text(path.read_text() + "99,../../etc/passwd,,\n")
    one_error(clam, "splits_0.csv", "'../../etc/passwd'", "no plain name")


def test_label_names_are_plain(clam: Path) -> None:
    with (clam / "dataset_csv" / "sample.csv").open("a") as file:
        file.write("p,..\\secret,tumor_tissue\n")
    one_error(clam, "sample.csv", "secret", "no plain name")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.json", "{", ["s.json", "JSON"]),
        ("s.json", "[]", ["s.json", "train_names"]),
        ("s.json", '{"train_names": "a"}', ["s.json", "no list"]),
        ("s.json", '{"train_names": []}', ["s.json", "lists no slides"]),
        ("s.json", '{"train_names": ["a", "a"]}', ["s.json", "'a' is listed twice"]),
        ("s.csv", "", ["s.csv", "cannot be read as csv"]),
        ("s.csv", "a,b\n", ["s.csv", "no rows"]),
        ("s.csv", "a,b\n1,2\n", ["s.csv", "columns a, b are no split"]),
    ],
)
def test_broken_split_files(clam: Path, name: str, text: str, words: list[str]) -> None:
    (clam / name).write_text(text)
    one_error(clam, *words, splits=name)


def test_split_settings_that_contradict(clam: Path) -> None:
    one_error(clam, "exclude one another", folds=3, splits="splits/sample")
    one_error(clam, "no split file number 4", fold=4)
    one_error(clam, "one file", fold=0, splits="splits/sample/splits_0.csv")
    one_error(clam, "no such split file", splits="nowhere")
    shutil.copytree(clam / "splits" / "sample", clam / "splits" / "other")
    one_error(clam, "2 folders hold split files", "data.splits=splits/other or splits/sample")
    shutil.rmtree(clam / "splits")
    one_error(clam, "needs data.folds", fold=1)


def test_drawn_splits(clam: Path) -> None:
    shutil.rmtree(clam / "splits")
    first, again, other = (
        data.open_splits(configure(clam, split_seed=s, val_fraction=0.25)) for s in (1, 1, 5)
    )
    assert {p: s.ids for p, s in first.items()} == {p: s.ids for p, s in again.items()}
    assert first["train"].digest == again["train"].digest
    assert first["train"].ids != other["train"].ids
    groups = [set(s.groups) for s in first.values()]
    assert len(set.union(*groups)) == sum(map(len, groups))
    for split in first.values():
        assert set(split.labels) == {0, 1}
    assert "val" not in data.open_splits(configure(clam, val_fraction=0))


def test_folds_divide_the_patients(clam: Path, slides: list[Slide]) -> None:
    tested: list[str] = []
    for fold in range(3):
        splits = data.open_splits(configure(clam, folds=3, fold=fold, val_fraction=0.2))
        assert set(splits) == {"train", "val", "test"}
        assert sum(len(s) for s in splits.values()) == len(slides)
        groups = [set(s.groups) for s in splits.values()]
        assert len(set.union(*groups)) == sum(map(len, groups))
        tested += splits["test"].ids
    assert sorted(tested) == sorted(s.id for s in slides)
    assert data.available_folds(configure(clam, folds=3).data) == [0, 1, 2]
    one_error(clam, "data.fold=3", "0 to 2", folds=3, fold=3)
    one_error(clam, "patients cannot make 40 folds", folds=40)


def test_too_few_patients(tmp_path: Path) -> None:
    made = sample.slides(0, {"train": 2})
    sample.write_clam(tmp_path, made)
    shutil.rmtree(tmp_path / "splits")
    one_error(tmp_path, "2 patients are too few for 3 splits")


def test_shots(clam: Path, slides: list[Slide]) -> None:
    train = data.open_splits(configure(clam, shots=2))["train"]
    assert Counter(train.labels) == {0: 2, 1: 2}
    assert train.ids == data.open_splits(configure(clam, shots=2))["train"].ids
    assert len(data.open_splits(configure(clam, shots=99))["train"]) == 8


def test_training_slides_of_one_class(clam: Path, slides: list[Slide]) -> None:
    names = [s.id for s in slides if s.label == 0]
    (clam / "one.json").write_text(json.dumps({"train": names, "test": [slides[1].id]}))
    one_error(clam, "one.json", "one class only", splits="one.json")


# -- broken and unsafe files --------------------------------------------------------------------


def test_missing_root(tmp_path: Path) -> None:
    one_error(tmp_path / "nowhere", "nowhere", "no such file or folder", "data.root")
    one_error(tmp_path, "no features of any layout", "h5_files")
    one_error(tmp_path, "no such feature", "data.features", features="x")


def test_layout_that_is_not_there(clam: Path) -> None:
    one_error(clam, "layout 'trident'", layout="trident")


def test_label_without_features(clam: Path, slides: list[Slide]) -> None:
    shutil.rmtree(clam / "splits")
    with (clam / "dataset_csv" / "sample.csv").open("a") as file:
        file.write("p,lonely,tumor_tissue\n")
    one_error(clam, "sample.csv", "'lonely'", "no features")
    kept = data.open_splits(configure(clam, on_error="skip"))
    assert sum(len(s) for s in kept.values()) == len(slides)


def test_features_without_label_are_told(clam: Path, slides: list[Slide]) -> None:
    shutil.copy(h5_of(clam, slides[0]), clam / "features" / "h5_files" / "extra.h5")
    data.open_splits(configure(clam))
    told = [f for f in data.check(configure(clam)) if f.level == "warning"]
    assert len(told) == 1
    assert "1 slides have features but no label" in told[0].line()
    assert "extra" in told[0].line()


def change(path: Path, **arrays: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        for name, values in arrays.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"coords": None}, ["no data set 'coords'"]),
        ({"features": None}, ["no data set 'features' or 'feat'"]),
        ({"features": np.zeros((0, 32), "f2"), "coords": np.zeros((0, 2))}, ["the bag is empty"]),
        ({"features": np.zeros((1, 31), "f2")}, ["31 features", "other slides 32"]),
        ({"features": np.zeros(32, "f2")}, ["shape (32,)", "(N, F)"]),
        ({"features": np.zeros((1, 32), "i4")}, ["int32", "floating-point"]),
        ({"features": np.array([b"x"])}, ["expected numbers"]),
        ({"coords": np.zeros((3, 2))}, ["1 instances but coords of shape (3, 2)"]),
        ({"coords": np.full((1, 2), np.nan)}, ["coords hold values that are not finite"]),
        ({"labels": np.zeros(3)}, ["1 instances but 3 instance labels"]),
    ],
    ids=[
        "no-coords",
        "no-features",
        "empty",
        "width",
        "shape",
        "dtype",
        "text",
        "length",
        "coords-nan",
        "marks",
    ],
)
def test_broken_bags(
    clam: Path, slides: list[Slide], arrays: dict[str, np.ndarray | None], words: list[str]
) -> None:
    path = h5_of(clam, slides[0])  # a slide with one instance
    change(path, **arrays)
    errors = [f.line() for f in data.check(configure(clam)) if f.level == "error"]
    assert len(errors) == 1
    assert all(word in errors[0] for word in [path.name, *words])
    if "labels" not in arrays and "finite" not in words[0]:  # those are told when values are read
        one_error(clam, path.name, *words)
    skipped = data.open_splits(configure(clam, on_error="skip"))["train"]
    assert slides[0].id not in skipped.ids


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(clam: Path, slides: list[Slide], value: float) -> None:
    slide = next(s for s in slides if s.part == "train" and len(s.features) > 2)
    features = slide.features.copy()
    features[2, 5] = value
    change(h5_of(clam, slide), features=features)
    train = data.open_splits(configure(clam))["train"]
    index = list(train.ids).index(slide.id)
    with pytest.raises(DataError, match=rf"{slide.id}\.h5: 1 of .* row 2"):
        train.item(index, RNG)
    errors = [f.line() for f in data.check(configure(clam)) if f.level == "error"]
    assert len(errors) == 1
    assert slide.id in errors[0]
    assert slide.id not in data.open_splits(configure(clam, on_error="skip"))["train"].ids


def test_float64_beyond_float32_is_not_finite(clam: Path, slides: list[Slide]) -> None:
    change(h5_of(clam, slides[0]), features=np.full((1, 32), 1e300))
    errors = [f.line() for f in data.check(configure(clam)) if f.level == "error"]
    assert len(errors) == 1
    assert slides[0].id in errors[0]


def test_features_of_another_encoder(clam: Path, slides: list[Slide]) -> None:
    width = slides[0].features.shape[1]
    assert data.open_splits(configure(clam, width=width))["train"].width == width
    one_error(clam, f"{width} features an instance, but data.width=1024", "preset", width=1024)


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all", None], ids=["empty", "text", "cut"])
def test_corrupt_h5(clam: Path, slides: list[Slide], content: bytes | None) -> None:
    path = h5_of(clam, slides[0])
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    one_error(clam, path.name, "cannot be read as HDF5")


def test_all_broken_files_are_told(clam: Path, slides: list[Slide]) -> None:
    for slide in slides[:3]:
        h5_of(clam, slide).write_bytes(b"x")
    errors = [f.line() for f in data.check(configure(clam)) if f.level == "error"]
    assert [s.id in line for s, line in zip(slides[:3], errors, strict=True)] == [True] * 3


def test_links_to_other_files_are_refused(clam: Path, slides: list[Slide], tmp_path: Path) -> None:
    path = h5_of(clam, slides[0])
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["features"] = np.zeros((1, 32), "f2")
    (tmp_path / "raw.bin").write_bytes(bytes(128))
    layout = h5py.VirtualLayout((1, 32), "f2")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "features", (1, 32))
    for kind, words in (
        ("link", "an external link"),
        ("dangling", "an external link"),
        ("soft", "a soft link"),
        ("virtual", "from other files"),
        ("storage", "from other files"),
    ):
        change(path, features=None)
        with h5py.File(path, "a") as file:
            if kind == "link":
                file["features"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/features")
            elif kind == "dangling":
                file["features"] = h5py.ExternalLink("/nowhere.h5", "/features")
            elif kind == "soft":
                file["features"] = h5py.SoftLink("/coords")
            elif kind == "virtual":
                file.create_virtual_dataset("features", layout)
            else:
                raw = [(str(tmp_path / "raw.bin"), 0, 128)]
                file.create_dataset("features", (1, 32), "f4", external=raw)
        one_error(clam, path.name, words)


def test_acmil_group_that_is_a_link(tmp_path: Path, slides: list[Slide]) -> None:
    path = write_acmil(tmp_path, slides)
    with h5py.File(path, "a") as file:
        del file[slides[0].id]
        file[slides[0].id] = h5py.ExternalLink("/nowhere.h5", "/x")
    shutil.rmtree(tmp_path / "splits")
    one_error(tmp_path, path.name, slides[0].id, "an external link")
    splits = data.open_splits(configure(tmp_path, on_error="skip"))
    assert sum(len(s) for s in splits.values()) == len(slides) - 1


def test_clinical_table_is_no_feature_table(tmp_path: Path) -> None:
    (tmp_path / "clinic.csv").write_text(
        "slide_id,label,age,centre,grade\na,0,50,1,2\nb,1,60,2,3\n"
    )
    one_error(tmp_path, "no features of any layout")


def test_pickles_are_refused(tmp_path: Path, slides: list[Slide]) -> None:
    write_tensors(tmp_path, slides)
    write_labels(tmp_path, slides)
    path = tmp_path / "tensors" / f"{slides[0].id}.pt"
    proof = tmp_path / "proof"

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(proof),)

    path.write_bytes(pickle.dumps(Harm()))
    one_error(tmp_path, path.name, "refused")
    torch.save(Harm(), path)
    one_error(tmp_path, path.name, "not a file of plain tensors")
    assert not proof.exists()
    torch.save({"features": torch.zeros(2, 32)}, path)
    one_error(tmp_path, path.name, "holds dict")
    torch.save(torch.zeros(2, 32, dtype=torch.int64), path)
    one_error(tmp_path, path.name, "int64")
    torch.save(torch.zeros(1, 1).expand(1_000_000, 32), path)
    one_error(tmp_path, path.name, "claims 32000000 values, of which the file holds 1;")
    torch.save(torch.zeros(2, 32), path)
    path.write_bytes(path.read_bytes()[:-200])
    one_error(tmp_path, path.name)


# -- the check ----------------------------------------------------------------------------------


def test_leakage_of_patients(clam: Path, slides: list[Slide]) -> None:
    path = clam / "dataset_csv" / "sample.csv"
    table = pd.read_csv(path)
    train, test = names_of(slides, "train")[0], names_of(slides, "test")[0]
    table.loc[table["slide_id"].isin([train, test]), "case_id"] = "shared_patient"
    table.to_csv(path, index=False)
    errors = [f.line() for f in data.check(configure(clam)) if f.level == "error"]
    assert len(errors) == 1
    assert "both 'train' and 'test'" in errors[0]
    assert "shared_patient" in errors[0]
    # Both are named: which of the two is wrong cannot be known.
    assert "sample.csv" in errors[0]
    assert "splits_0.csv" in errors[0]


def test_check_of_a_missing_data_set(tmp_path: Path) -> None:
    found = data.check(configure(tmp_path / "nowhere"))
    assert [f.level for f in found] == ["error"]
    assert "nowhere" in found[0].line()


def test_cut_patient_ids(tmp_path: Path) -> None:
    made = sample.slides(0, {"train": 16})
    named = [
        Slide(f"patient_{i:03d}_node_1", f"patient_{i:03d}"[:10], *vars_of(s))
        for i, s in enumerate(made)
    ]
    sample.write_clam(tmp_path, named)
    told = [f.line() for f in data.check(configure(tmp_path)) if f.level == "warning"]
    assert len(told) == 1
    assert "'patient_00' for slide 'patient_000_node_1'" in told[0]


def vars_of(s: Slide) -> tuple[Any, ...]:
    return s.part, s.label, s.features, s.coords, s.instances


def test_check_tells_counts_and_mixed_extraction(clam: Path, slides: list[Slide]) -> None:
    with h5py.File(h5_of(clam, slides[0]), "a") as file:
        file["coords"].attrs["encoder"] = "another"
    found = data.check(configure(clam), deep=False)
    lines = [f.line() for f in found]
    assert any(line.startswith("train: 8 slides of") and "tumor_tissue 4" in line for line in lines)
    assert any("min 1" in line for line in lines)
    assert "different encoder" in lines[0]
    assert found[0].level == "warning"


# -- splits as the engine uses them -------------------------------------------------------------


def test_collate_packs_bags(clam: Path) -> None:
    train = data.open_splits(configure(clam, batch_size=3))["train"]
    items = [train.item(i, RNG) for i in (4, 0, 2)]
    batch = train.collate(items)
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["cu_seqlens"].tolist()[0] == 0
    assert batch["features"].shape == (batch["cu_seqlens"][-1], 32)
    for b, item in enumerate(items):
        first, last = batch["cu_seqlens"][b : b + 2]
        assert torch.equal(batch["features"][first:last], item["features"])
        assert batch["labels"][b] == item["label"]
        for key in ("coords", "instances"):
            assert torch.equal(batch[key][b], item[key])
    assert batch["labels"].dtype == torch.int64
    assert batch["ids"] == [item["id"] for item in items]
    assert batch["groups"] == [item["group"] for item in items]


def test_batches(clam: Path) -> None:
    splits = data.open_splits(configure(clam, batch_size=3))
    first, again, next_ = (splits["train"].batches(e, order_rng(1, e)) for e in (0, 0, 1))
    assert first == again != next_
    assert [len(b) for b in first] == [3, 3]  # the smaller last batch is dropped in training
    assert splits["test"].batches(0, order_rng(1, 0)) == [[0, 1, 2], [3, 4, 5]]
    assert splits["val"].batches(0, order_rng(1, 0)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("in_memory", [True, False])
def test_items_are_copies(clam: Path, in_memory: bool) -> None:
    train = data.open_splits(configure(clam, in_memory=in_memory))["train"]
    item = train.item(3, RNG)
    item["features"].zero_()
    item["coords"].zero_()
    again = train.item(3, RNG)
    assert again["features"].any()
    assert again["coords"].any()


def test_memory_holds_bags_and_stays_home(
    clam: Path, slides: list[Slide], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = data.open_splits(configure(clam))
    train, test = splits["train"], splits["test"]
    sent = pickle.loads(pickle.dumps(train))
    kept = train.item(0, RNG)["features"]
    assert len(pickle.dumps(train)) < 2 * len(pickle.dumps(sent))
    monkeypatch.setattr(data, "_room", lambda: False)
    test.item(0, RNG)
    for path in (clam / "features").rglob("*.h5"):
        path.unlink()
    assert torch.equal(train.item(0, RNG)["features"], kept)
    with pytest.raises(DataError, match="no such file"):
        test.item(0, RNG)


class _Loaded(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, split: data.WsiSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> torch.Tensor:
        features: torch.Tensor = self.split.item(index, RNG)["features"]
        return features.sum()


def test_workers_read_the_same(clam: Path) -> None:
    train = data.open_splits(configure(clam))["train"]
    here = [train.item(i, RNG)["features"].sum() for i in range(len(train))]
    there = list(DataLoader(_Loaded(train), batch_size=None, num_workers=2))
    assert here == there


def test_digest_tells_content_not_place(clam: Path, slides: list[Slide], tmp_path: Path) -> None:
    before = data.open_splits(configure(clam))["train"].digest
    moved = tmp_path / "elsewhere"
    for name in ("features", "dataset_csv", "splits"):
        shutil.copytree(clam / name, moved / name)
    assert data.open_splits(configure(moved))["train"].digest == before
    slide = next(s for s in slides if s.part == "train" and len(s.features) > 2)
    change(h5_of(moved, slide), features=slide.features + np.float16(1))
    assert data.open_splits(configure(moved))["train"].digest != before


def test_standardisation_facts(clam: Path, slides: list[Slide]) -> None:
    train = data.open_splits(configure(clam))["train"]
    every = np.concatenate([s.features for s in slides if s.part == "train"]).astype(np.float64)
    mean, deviation = data.instance_statistics(train)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(deviation, every.std(axis=0), rtol=1e-12)


def test_constant_feature_has_deviation_one(clam: Path, slides: list[Slide]) -> None:
    for slide in slides:
        features = slide.features.copy()
        features[:, 3], features[:, 4] = 0.1, 0
        change(h5_of(clam, slide), features=features)
    _, deviation = data.instance_statistics(data.open_splits(configure(clam))["train"])
    assert deviation[3] == deviation[4] == 1


# -- prediction ---------------------------------------------------------------------------------


def test_inputs(clam: Path, slides: list[Slide], tmp_path: Path) -> None:
    facts = json.loads(json.dumps(data.facts_of(data.open_splits(configure(clam))["train"])))
    folder = data.inputs([clam / "features"], facts)
    assert folder.ids == sorted(s.id for s in slides)
    assert folder.notes == []
    one = data.inputs([h5_of(clam, slides[3])], facts)
    item = one.item(0, RNG)
    np.testing.assert_array_equal(item["features"], slides[3].features.astype(np.float32))
    assert item["label"] == -1
    two = data.inputs([h5_of(clam, slides[3]), clam / "features/pt_files/sample_000.pt"], facts)
    assert two.ids == ["sample_000", slides[3].id]
    with pytest.raises(DataError, match=r"sample_000.*is also in"):
        data.inputs([h5_of(clam, slides[0]), clam / "features/pt_files/sample_000.pt"], facts)
    with pytest.raises(DataError, match="no such file"):
        data.inputs([tmp_path / "nowhere.h5"], facts)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no features found"):
        data.inputs([tmp_path / "none"], facts)


def test_inputs_of_another_encoder(tmp_path: Path, slides: list[Slide]) -> None:
    path = write_acmil(tmp_path, slides)
    facts = {"width": 32, "classes": ["0", "1"], "extraction": {"encoder": "uni_v1"}}
    split = data.inputs([path], facts)
    assert len(split.notes) == 1
    assert "another encoder" in split.notes[0]
    assert split.labels == [by_id(slides)[name].label for name in split.ids]
    with pytest.raises(DataError, match=r"pretrain.*32 features.*trained on 1024 \(uni_v1\)"):
        data.inputs([path], facts | {"width": 1024})


def test_inputs_from_a_table_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("bag,f0,f1,f2\na,1,2,3\na,4,5,6\nb,7,8,9\n")
    split = data.inputs([path], {"width": 3, "classes": ["0", "1"]})
    assert split.ids == ["a", "b"]
    assert split.labels == [-1, -1]
    assert split.item(0, RNG)["features"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_loose_files_do_not_hide_a_feature_folder(clam: Path, slides: list[Slide]) -> None:
    shutil.copy(h5_of(clam, slides[0]), clam / "loose.h5")
    one_error(clam, "2 feature sets", "data.features=. or features")
    same_items(data.open_splits(configure(clam, features="features")), slides)


def test_two_files_of_one_slide(clam: Path, slides: list[Slide]) -> None:
    path = h5_of(clam, slides[0])
    shutil.copy(path, path.with_name(f"{slides[0].id}.svs.h5"))
    one_error(clam, f"slide '{slides[0].id}' has a second feature file", path.name)


def test_split_that_loses_all_slides(clam: Path, slides: list[Slide]) -> None:
    for slide in slides:
        if slide.part == "val":
            h5_of(clam, slide).write_bytes(b"x")
    one_error(clam, "split 'val' has no usable slide", on_error="skip")


def test_class_missing_in_a_split(clam: Path, slides: list[Slide]) -> None:
    names = {p: names_of(slides, p) for p in ("train", "test")}
    names["val"] = [names["test"].pop(1)]
    (clam / "s.json").write_text(json.dumps(names))
    told = [f.line() for f in data.check(configure(clam, splits="s.json")) if f.level == "warning"]
    assert told == ["split 'val' has no slide of 'normal_tissue'"]
