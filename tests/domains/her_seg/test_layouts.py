"""Tiny copies of the trees in which data sets are handed around."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from zoo.domains.medical.her_seg.found import Found
from zoo.domains.medical.her_seg.layouts import find_pictures
from zoo.domains.medical.her_seg.masks import coding_of
from zoo.domains.medical.her_seg.pictures import Picture, Reader
from zoo.errors import DataError


def find(root: Path, **data: Any) -> Found:
    found = find_pictures(root, configure(root, **data).data)
    assert found is not None
    return found


def by_id(found: Found) -> dict[str, Picture]:
    return {p.id: p for p in found.pictures}


def truth(found: Found, name: str, **data: Any) -> np.ndarray:
    reader = Reader(coding_of(configure(None, **data).data, found.usual))
    chosen = by_id(found)[name]
    read = reader.truth(chosen, reader.image(chosen).shape[:2])
    assert read is not None
    return read


# -- the official layout ------------------------------------------------------------------------


def test_official_layout(tmp_path: Path) -> None:
    made = pairs(tmp_path, ["1", "2", "3"], "image_1024/{}.png", "mask_1024/{}.png")
    found = find(tmp_path)
    assert found.layout == "her"
    assert sorted(by_id(found)) == ["1", "2", "3"]
    np.testing.assert_array_equal(truth(found, "2"), made["2"])
    assert found.key("2.v1.png") == "2"


def test_official_layout_names_with_dots_are_reported(tmp_path: Path) -> None:
    pairs(tmp_path, ["1", "2.b"], "image_1024/{}.png", "mask_1024/{}.png")
    found = find(tmp_path)
    assert sorted(by_id(found)) == ["1"]
    assert "2.b.png" in found.findings[0].line()
    assert "first dot" in found.findings[0].what


def test_official_layout_cup_and_disc_are_chosen_by_target(tmp_path: Path) -> None:
    pairs(tmp_path, ["1"], "image_1024/{}.png", "mask_1024_c1/{}.png")
    cup = np.zeros((24, 20), bool)
    save(tmp_path / "mask_1024_c2" / "1.png", cup)
    for target in ("mask_1024_c2", "c2"):
        assert not truth(find(tmp_path, target=target), "1").any()
    assert truth(find(tmp_path, target="c1"), "1").any()
    with pytest.raises(DataError, match=r"choose one by data\.target"):
        find(tmp_path)
    with pytest.raises(DataError, match="mask_1024_c1, mask_1024_c2"):
        find(tmp_path, target="c3")


def organs(root: Path) -> None:
    names = [f"case000{c}_slice00{s}" for c in (1, 2) for s in (0, 1)]
    for organ in ("liver", "rk"):
        pairs(root / "all", names, "image_1024/{}.png", f"mask_1024_{organ}/{{}}.png")
    lists = {"liver": [f"{n}.png" for n in names[:2]], "rk": [names[0]]}
    write_json(root / "train_data_split.json", lists)
    write_json(root / "test_data_split.json", {"liver": names[2:], "rk": names[3:]})


def test_official_organs_train_and_test_by_their_own_lists(tmp_path: Path) -> None:
    organs(tmp_path)
    found = find(tmp_path, target="liver")
    assert {p.part: p.group for p in found.pictures} == {"train": "case0001", "test": "case0002"}
    assert len(found.pictures) == 4
    assert [p.id for p in find(tmp_path, target="rk").pictures if p.part == "train"] == [
        "case0001_slice000"
    ]
    with pytest.raises(DataError, match="liver, rk"):
        find(tmp_path)


# -- named data sets ----------------------------------------------------------------------------


def test_isic(tmp_path: Path) -> None:
    train = "ISIC2018_Task1-2_Training_Input"
    masks = "ISIC2018_Task1_Training_GroundTruth"
    made = pairs(
        tmp_path,
        ["ISIC_0000000", "ISIC_0000001"],
        f"{train}/{{}}.jpg",
        f"{masks}/{{}}_segmentation.png",
    )
    pairs(
        tmp_path,
        ["ISIC_9"],
        "ISIC2018_Task1-2_Validation_Input/{}.jpg",
        "ISIC2018_Task1_Validation_GroundTruth/{}_segmentation.png",
    )
    save(tmp_path / "ISIC2018_Task1-2_Test_Input" / "ISIC_7.jpg", picture(disc()))
    save(tmp_path / train / "ISIC_0000000_superpixels.png", picture(disc()))
    for folder in (train, masks):
        (tmp_path / folder / "LICENSE.txt").write_text("CC-0")
    found = find(tmp_path)
    assert found.layout == "isic"
    assert {p.id: p.part for p in found.pictures} == {
        "ISIC_0000000": "train",
        "ISIC_0000001": "train",
        "ISIC_9": "val",
    }
    np.testing.assert_array_equal(truth(found, "ISIC_0000001"), made["ISIC_0000001"])
    assert [f.what[:34] for f in found.findings] == ["1 photographs have no ground truth"]


def test_isic_names_of_2016_and_2017(tmp_path: Path) -> None:
    for images, masks in (
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    ):
        root = tmp_path / images
        pairs(root, ["ISIC_1"], f"{images}/{{}}.jpg", f"{masks}/{{}}_segmentation.png")
        found = find(root)
        assert found.layout == "isic"
        assert found.pictures[0].part == ("train" if "Training" in images else "test")


def test_polyps(tmp_path: Path) -> None:
    pairs(tmp_path, ["1", "2"], "TrainDataset/image/{}.png", "TrainDataset/masks/{}.png")
    for name in ("CVC-300", "Kvasir"):
        pairs(
            tmp_path,
            ["1"],
            f"TestDataset/{name}/images/{{}}.png",
            f"TestDataset/{name}/masks/{{}}.png",
        )
    found = find(tmp_path)
    assert found.layout == "polyp"
    assert {p.id: p.part for p in found.pictures} == {
        "1": "train",
        "2": "train",
        "CVC-300/1": "test_cvc_300",
        "Kvasir/1": "test_kvasir",
    }


def test_lungs_of_the_kaggle_mirror(tmp_path: Path) -> None:
    pairs(tmp_path, ["MCUCXR_0001_0"], "CXR_png/{}.png", "masks/{}.png")
    pairs(tmp_path, ["CHNCXR_0001_0"], "CXR_png/{}.png", "masks/{}_mask.png")
    save(tmp_path / "CXR_png" / "CHNCXR_0002_0.png", picture(disc()))
    found = find(tmp_path)
    assert found.layout == "lungs"
    assert {p.id: p.labelled for p in found.pictures} == {
        "MCUCXR_0001_0": True,
        "CHNCXR_0001_0": True,
        "CHNCXR_0002_0": False,
    }
    assert found.masks_optional


def test_lungs_of_montgomery_are_the_union_of_both(tmp_path: Path) -> None:
    made = pairs(
        tmp_path,
        ["MCUCXR_0001_0"],
        "MontgomerySet/CXR_png/{}.png",
        "MontgomerySet/ManualMask/leftMask/{}.png",
    )["MCUCXR_0001_0"]
    right = disc(seed=9)
    save(tmp_path / "MontgomerySet/ManualMask/rightMask/MCUCXR_0001_0.png", right)
    np.testing.assert_array_equal(truth(find(tmp_path), "MCUCXR_0001_0"), made | right)


def test_refuge(tmp_path: Path) -> None:
    codes = np.full((24, 20), 255, np.uint8)
    codes[4:16, 4:16], codes[8:12, 8:12] = 128, 0
    for folder, name in (("Training400/Glaucoma", "g0001"), ("REFUGE-Validation400", "V0001")):
        save(tmp_path / folder / f"{name}.jpg", picture(disc()))
        save(tmp_path / f"Annotation-{folder}" / f"{name}.bmp", codes)
    found = find(tmp_path)
    assert found.layout == "refuge"
    assert {p.id: p.part for p in found.pictures} == {"g0001": "train", "V0001": "val"}
    both = truth(found, "g0001")
    assert np.bincount(both.reshape(-1)).tolist() == [480 - 144, 144 - 16, 16]
    assert truth(found, "g0001", target="cup").sum() == 16
    disc_only = find(tmp_path, target="disc")
    assert truth(disc_only, "g0001", target="disc").sum() == 144


def test_busi_and_udiat(tmp_path: Path) -> None:
    busi = tmp_path / "busi"
    made = pairs(busi, ["benign (1)"], "benign/{}.png", "benign/{}_mask.png")["benign (1)"]
    second = disc(seed=8)
    save(busi / "benign" / "benign (1)_mask_1.png", second)
    save(busi / "normal" / "normal (1).png", picture(disc()))
    save(busi / "normal" / "normal (1)_mask.png", np.zeros((24, 20), bool))
    found = find(busi)
    assert found.layout == "busi"
    np.testing.assert_array_equal(truth(found, "benign (1)"), made | second)
    assert not truth(found, "normal (1)").any()
    pairs(tmp_path / "udiat", ["000001"], "original/{}.png", "GT/{}.png")
    assert find(tmp_path / "udiat").layout == "busi"


def test_nuclei_have_a_file_each(tmp_path: Path) -> None:
    name = "ab12"
    folder = tmp_path / "stage1_train" / name
    save(folder / "images" / f"{name}.png", picture(disc()))
    first, second = disc(seed=1), disc(seed=2)
    save(folder / "masks" / "x.png", first)
    save(folder / "masks" / "y.png", second)
    empty = tmp_path / "stage1_train" / "cd34"
    save(empty / "images" / "cd34.png", picture(disc()))
    (empty / "masks").mkdir()
    (tmp_path / "stage1_train" / "ef56" / "images").mkdir(parents=True)
    (tmp_path / "stage1_train" / "ef56" / "masks").mkdir()
    found = find(tmp_path)
    assert found.layout == "dsb2018"
    np.testing.assert_array_equal(truth(found, name), first | second)
    assert not truth(found, "cd34").any()  # a picture without nuclei is no picture without truth
    assert "expected one picture named ef56" in found.findings[0].what


@needs_real
def test_real_nuclei_are_found() -> None:
    found = find(REAL / "dsb2018")
    assert (found.layout, len(found.pictures)) == ("dsb2018", 31)


# -- nnU-Net ------------------------------------------------------------------------------------


def nnunet(root: Path, **more: Any) -> None:
    body: dict[str, Any] = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".png"}
    write_json(root / "dataset.json", body | {"channel_names": {"0": "R"}} | more)
    for folder, name in (("Tr", "x_1"), ("Tr", "x_2"), ("Ts", "x_3")):
        save(root / f"images{folder}" / f"{name}_0000.png", picture(disc()))
        save(root / f"labels{folder}" / f"{name}.png", disc().astype(np.uint8) * 2)


def test_nnunet_of_pictures(tmp_path: Path) -> None:
    nnunet(tmp_path)
    found = find(tmp_path)
    assert found.layout == "nnunet"
    assert {p.id: p.part for p in found.pictures} == {"x_1": None, "x_2": None, "x_3": "test"}
    assert set(np.unique(truth(found, "x_1"))) == {0, 2}
    assert coding_of(configure(None).data, found.usual).classes.names == ("a", "b")


def test_nnunet_labels_of_its_first_version(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"0": "background", "1": "a", "2": "b"})
    assert find(tmp_path).usual == {"a": (1,), "b": (2,)}


def test_nnunet_channels_become_colours(tmp_path: Path) -> None:
    nnunet(tmp_path)
    planes = [picture(disc())[..., 0], np.full((24, 20), 7, np.uint8)]
    for k, plane in enumerate(planes):
        save(tmp_path / "imagesTr" / f"x_1_000{k}.png", plane)
    read = Reader(coding_of(configure(None).data)).image(by_id(find(tmp_path))["x_1"])
    np.testing.assert_array_equal(read, np.stack([planes[0], planes[1], planes[1]], axis=2))


def test_nnunet_of_volumes_is_left_to_their_reader(tmp_path: Path) -> None:
    nnunet(tmp_path, file_ending=".nii.gz")
    assert find_pictures(tmp_path, configure(tmp_path).data) is None


def test_nnunet_regions_that_overlap_are_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "whole": [1, 2], "core": 2})
    with pytest.raises(DataError, match="regions that overlap"):
        find(tmp_path)


def test_nnunet_folds(tmp_path: Path) -> None:
    nnunet(tmp_path)
    folds = [{"train": ["x_1"], "val": ["x_2"]}, {"train": ["x_2"], "val": ["x_1"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    parts = {p.id: p.part for p in find(tmp_path, fold=1).pictures}
    assert parts == {"x_1": "val", "x_2": "train", "x_3": "test"}
    shutil.rmtree(tmp_path / "labelsTs")
    parts = {p.id: p.part for p in find(tmp_path).pictures}
    assert parts == {"x_1": "train", "x_2": "test"}
    with pytest.raises(DataError, match=r"data\.fold=2: .* has folds 0 to 1"):
        find(tmp_path, fold=2)
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["x_9"], "val": []}]))
    with pytest.raises(DataError, match="not there: x_9"):
        find(tmp_path)


def test_nnunet_ignore_label_is_explained(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "a": 1, "ignore": 2})
    with pytest.raises(DataError, match="'ignore' label"):
        find(tmp_path)
    named = {"a": 1, "background": 2}
    assert not truth(find(tmp_path, labels=named), "x_1", labels=named).any()


# -- folders ------------------------------------------------------------------------------------


def test_drive_takes_the_manual_and_not_the_field_of_view(tmp_path: Path) -> None:
    made = {}
    for part, tail in (("training", "training"), ("test", "test")):
        names = ["21", "22"] if part == "training" else ["01", "02"]
        made |= pairs(
            tmp_path / part,
            names,
            f"images/{{}}_{tail}.tif",
            "1st_manual/{}_manual1.gif",
        )
        for name in names:
            save(tmp_path / part / "mask" / f"{name}_{tail}_mask.gif", np.ones((24, 20), bool))
    found = find(tmp_path)
    assert found.layout == "folders"
    assert {p.id: p.part for p in found.pictures} == {
        "21_training": "train",
        "22_training": "train",
        "01_test": "test",
        "02_test": "test",
    }
    np.testing.assert_array_equal(truth(found, "22_training"), made["22"])


def test_drive_test_without_truth_is_not_used(tmp_path: Path) -> None:
    pairs(tmp_path / "training", ["21"], "images/{}_training.tif", "1st_manual/{}_manual1.gif")
    pairs(tmp_path / "test", ["01"], "images/{}_test.tif", "mask/{}_test_mask.gif")
    found = find(tmp_path)
    assert [p.id for p in found.pictures] == ["21_training"]
    assert "have no masks" in found.findings[0].what


def test_parts_inside_of_the_folders(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        pairs(tmp_path, ["1", "2"], f"img/{part}/{{}}.jpg", f"labels/{part}/{{}}.png")
    found = find(tmp_path)
    assert {p.id: p.part for p in found.pictures} == {
        f"{part}/{n}": part for part in ("train", "val", "test") for n in "12"
    }


def test_folders_of_patients_keep_together(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        pairs(tmp_path, ["1", "2"], f"images/{patient}/{{}}.png", f"masks/{patient}/{{}}.png")
    assert {p.group for p in find(tmp_path).pictures} == {"p1", "p2"}


def test_folders_are_named_by_the_user(tmp_path: Path) -> None:
    pairs(tmp_path, ["a", "b"], "photo/{}.png", "truth/semantic/{}-seg.png")
    assert find_pictures(tmp_path, configure(tmp_path).data) is None
    found = find(tmp_path, images="photo", masks="truth/semantic")
    assert sorted(by_id(found)) == ["a", "b"]
    with pytest.raises(DataError, match="there is no folder"):
        find(tmp_path, images="photo", masks="nothing")
    with pytest.raises(DataError, match="name both"):
        find(tmp_path, images="photo")


def test_mask_folder_of_a_picture_holds_its_objects(tmp_path: Path) -> None:
    made = pairs(tmp_path, ["a", "b"])
    (tmp_path / "masks" / "b.png").unlink()
    first, second = disc(seed=5), disc(seed=6)
    save(tmp_path / "masks" / "b_mask" / "1.png", first)
    save(tmp_path / "masks" / "b_mask" / "2.png", second)
    found = find(tmp_path)
    assert by_id(found)["b"].how == "objects"
    np.testing.assert_array_equal(truth(found, "b"), first | second)
    np.testing.assert_array_equal(truth(found, "a"), made["a"])


def test_missing_masks_and_idle_ones_are_told(tmp_path: Path) -> None:
    pairs(tmp_path, ["a", "b"])
    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "zzz.png")
    found = find(tmp_path)
    assert "b.png: no mask found for it in" in found.lacking["b"]
    assert "1 masks belong to no picture (zzz)" in found.findings[0].what


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"])
    save(tmp_path / "images" / "a.jpg", picture(disc()))
    with pytest.raises(DataError, match="same stem"):
        find(tmp_path)


def test_nothing_is_found_in_an_empty_folder(tmp_path: Path) -> None:
    assert find_pictures(tmp_path, configure(tmp_path).data) is None
    save(tmp_path / "a.png", picture(disc()))
    assert find_pictures(tmp_path, configure(tmp_path).data) is None
