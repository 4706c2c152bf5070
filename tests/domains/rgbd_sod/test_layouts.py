from pathlib import Path
from typing import Any

import pytest

from zoo.domains.saliency.rgbd_sod import data, layouts, sample
from zoo.domains.saliency.rgbd_sod.config import LAYOUTS
from zoo.domains.saliency.rgbd_sod.sample import SampleScene
from zoo.errors import DataError

from .conftest import configure
from .writers import WRITERS, renamed, write_caver, write_list, write_vst


def ids(root: Path, **settings: Any) -> dict[str, list[str]]:
    config = configure(root, val_fraction=0, **settings)
    return {name: list(split.ids) for name, split in data.open_splits(config).items()}


def one_error(root: Path, *words: str, **settings: Any) -> str:
    """The one-line error that opening the data gives; it holds all the words."""
    with pytest.raises(DataError) as caught:
        data.open_splits(configure(root, **settings))
    text = str(caught.value)
    assert "\n" not in text, text
    for word in words:
        assert word in text, text
    return text


def warnings(root: Path, **settings: Any) -> list[str]:
    found = data.check(configure(root, **settings))
    return [f.line() for f in found if f.level != "info"]


# What each arrangement gives by itself: split -> (set, train or test scenes).
EXPECTED = {
    "bbs": {"train": ("RGBD_for_train", 0), "test_stere": ("STERE", 1)},
    "spnet": {"train": ("TrainDataset", 0), "test_stere": ("STERE", 1)},
    "vst": {"train": ("NJU2K", 0), "test_nju2k": ("NJU2K", 1), "test_stere": ("STERE", 1)},
    "author": {"train": ("train_2185", 0), "test_stere": ("STERE", 1)},
    "come": {
        "train": ("COME15K", 0),
        "test_come_te_e": ("COME-TE-E", 1),
        "test_come_te_h": ("COME-TE-H", 1),
    },
    "nlpr_raw": {"train": ("NLPR", 0), "test_nlpr": ("NLPR", 1)},
    "plain": {"train": ("mine", 0), "test_mine": ("mine", 1)},
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_layout_is_found_and_paired(
    tmp_path: Path, made: list[SampleScene], name: str
) -> None:
    root = tmp_path / "NLPR" if name == "nlpr_raw" else tmp_path / "data"
    parts = made[:12], made[12:]
    WRITERS[name](root, *parts)
    found = ids(root)
    assert found == {
        split: [f"{set_}/{s.stem}" for s in parts[part]]
        for split, (set_, part) in EXPECTED[name].items()
    }
    layout = {"spnet": "bbs"}.get(name, name)
    assert layout in LAYOUTS
    assert ids(root, layout=layout) == found


def test_full_folders_are_divided_by_the_lists_beside_them(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    train, test = made[:12], made[12:]
    write_caver(tmp_path, train, test)
    # DUT's two folders number alike; NJUD is in one folder, which its lists divide.
    found = ids(tmp_path, train=["NJUD"], test=["NJUD", "STERE"])
    assert found == {
        "train": [f"NJU2K/{s.stem}" for s in train],
        "test_nju2k": [f"NJU2K/{s.stem}" for s in test],
        "test_stere": [f"STERE/{s.stem}" for s in test],
    }
    places = {(p.set, p.role, p.layout) for p in layouts.find_places(tmp_path)}
    assert ("NJU2K", "any", "caver") in places
    assert ("DUT-RGBD", "train", "caver") in places


def test_two_folders_that_number_alike_are_no_leak(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "DUT-RGBD" / "train_data", made[:4])
    sample.write_pairs(tmp_path / "DUT-RGBD" / "test_data", renamed(made[12:], made))
    found = ids(tmp_path)
    assert found["train"] == [f"DUT-RGBD-train/{s.stem}" for s in made[:4]]
    assert found["test_dut_rgbd"] == [f"DUT-RGBD/{s.stem}" for s in made[:4]]
    assert warnings(tmp_path, val_fraction=0, polarity="near_dark") == []


def test_standard_training_sets_from_lists(tmp_path: Path, made: list[SampleScene]) -> None:
    """1485 + 700 (+ 800): full folders with lists, a training folder with none."""
    nju, nlpr, dut = made[:6], made[6:10], made[10:13]
    for name, scenes in (("NJU2K", nju), ("NLPR", nlpr)):
        sample.write_pairs(tmp_path / name, scenes)
        write_list(tmp_path / f"{name}.lst", scenes[:-1])
        write_list(tmp_path / f"{name}_rest.lst", scenes[-1:])
    sample.write_pairs(tmp_path / "DUT-RGBD" / "trainset", dut)
    chosen = {
        "train": ["NJUD:NJU2K.lst", f"NLPR:{tmp_path / 'NLPR.lst'}", "DUT"],
        "test": ["nju2k:NJU2K_rest.lst", "nlpr:NLPR_rest.lst"],
    }
    found = ids(tmp_path, **chosen)
    assert found["train"] == [
        *(f"NJU2K/{s.stem}" for s in nju[:-1]),
        *(f"NLPR/{s.stem}" for s in nlpr[:-1]),
        *(f"DUT-RGBD/{s.stem}" for s in dut),
    ]
    assert found["test_nlpr"] == [f"NLPR/{nlpr[-1].stem}"]


def test_training_on_a_tested_stem_is_refused(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "NJU2K", made[:4])
    train = write_list(tmp_path / "a.lst", made[:3])
    write_list(tmp_path / "b.lst", made[2:4])
    one_error(
        tmp_path, "1 stems", made[2].stem, str(train), train=["NJU2K:a.lst"], test=["NJU2K:b.lst"]
    )
    # The same in a folder joined from several sets, whose images were compressed anew.
    joined, test = tmp_path / "b" / "RGBD_for_train", tmp_path / "b" / "RGBD_for_test" / "NLPR"
    sample.write_pairs(joined, made[:4])
    sample.write_pairs(test, renamed(made[8:10], made[3:]))
    one_error(tmp_path / "b", "1 stems", "NLPR")
    # A set that numbers its images alike is another matter.
    (tmp_path / "b" / "RGBD_for_test" / "NLPR").rename(tmp_path / "b" / "RGBD_for_test" / "SIP")
    assert ids(tmp_path / "b")["test_sip"] == [f"SIP/{s.stem}" for s in made[3:5]]


def test_the_same_image_under_another_name_is_a_leak(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    write_vst(tmp_path, made[:4], made[4:6])
    for kind in ("RGB", "depth", "GT"):
        source = next((tmp_path / "NJUD" / "trainset" / kind).glob(f"{made[1].stem}.*"))
        copy = tmp_path / "STERE" / kind / f"other{source.suffix}"
        copy.write_bytes(source.read_bytes())
    one_error(tmp_path, "other.jpg", "same image", made[1].stem)


def test_names_of_sets() -> None:
    same = {
        "NJU2K": ["NJUD", "NJUDS2000", "NJU2000", "NJUD_FULL", "NJUD-485"],
        "NLPR": ["RGBD1000", "NLPR_FULL"],
        "STERE": ["STEREO", "SSB", "STEREO1000", "STERE-797"],
        "DES": ["RGBD135", "DES-RGBD135"],
        "SSD": ["SSD100"],
        "DUT-RGBD": ["DUTLF-Depth", "DUTLF-D"],
    }
    for usual, others in same.items():
        for name in (usual, *others):
            assert layouts.canonical(name) == usual
    assert layouts.canonical("mine") is None


def test_two_versions_of_a_set_keep_their_names(tmp_path: Path, made: list[SampleScene]) -> None:
    for name in ("STERE-797", "STERE-1000", "train_2985"):
        part = "train" if name.startswith("train") else "test"
        scenes = made[:4] if part == "train" else made[4:6]
        folders = {k: f"{part}_{v}" for k, v in zip(("rgb", "depth", "mask"), PARTS, strict=True)}
        sample.write_pairs(tmp_path / name, scenes, **folders)
    assert set(ids(tmp_path)) == {"train", "test_stere_797", "test_stere_1000"}
    assert set(ids(tmp_path, test=["STERE-797"])) == {"train", "test_stere_797"}
    one_error(tmp_path, "data.test=SSB", "2 folders", "STERE-1000", test=["SSB"])


PARTS = ("images", "depth", "masks")


def test_stems() -> None:
    for name in ("10_03-31-22_Depth.mat", "10_03-31-22_depth.PNG", "10_03-31-22_GT.png"):
        assert layouts.without_tail(layouts.stem_of(name)) == "10_03-31-22"
    assert layouts.stem_of("10_03-31-22") == "10_03-31-22"
    assert layouts.stem_of("a.b.jpg") == "a.b"


def test_a_tail_counts_only_where_the_whole_stem_has_no_image() -> None:
    files = {name: Path(f"{name}.png") for name in ("a_mask", "a_mask_GT", "b_GT", "c", "c_GT")}
    found, idle = layouts.matched(files, {"a_mask", "b", "c"})
    assert {stem: path.stem for stem, path in found.items()} == {
        "a_mask": "a_mask",
        "b": "b_GT",
        "c": "c",
    }
    assert idle == ["a_mask_GT", "c_GT"]


def test_files_are_paired_by_stem_and_not_by_order(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:3])
    (tmp_path / "SIP" / "depth" / f"{made[0].stem}.png").rename(
        tmp_path / "SIP" / "depth" / f"{made[0].stem}_Depth.png"
    )
    (tmp_path / "SIP" / "GT" / f"{made[2].stem}.png").rename(
        tmp_path / "SIP" / "GT" / f"{made[2].stem}_GT.png"
    )
    for pair in data.open_splits(configure(tmp_path))["test_sip"].pairs:
        assert pair.depth is not None
        assert pair.mask is not None
        assert pair.stem in pair.depth.name
        assert pair.stem in pair.mask.name


def test_what_has_no_counterpart_is_named(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:6])
    gone = tmp_path / "SIP" / "GT" / f"{made[1].stem}.png"
    gone.unlink()
    one_error(tmp_path, made[1].stem, "no mask", str(gone.parent))
    kept = ids(tmp_path, on_error="skip")["test_sip"]
    assert kept == [f"SIP/{s.stem}" for i, s in enumerate(made[:6]) if i != 1]
    lines = warnings(tmp_path, on_error="skip")
    assert sum("skipped" in line and made[1].stem in line for line in lines) == 1
    # Maps without an image are told, and harm nothing.
    (tmp_path / "SIP" / "RGB" / f"{made[1].stem}.jpg").unlink()
    lines = [line for line in warnings(tmp_path) if "no image" in line]
    assert len(lines) == 1
    assert made[1].stem in lines[0]


def test_two_files_with_one_stem_are_refused(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:2])
    image = tmp_path / "SIP" / "RGB" / f"{made[0].stem}.jpg"
    image.with_suffix(".jpeg").write_bytes(image.read_bytes())
    one_error(tmp_path, "same stem", made[0].stem)


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "desktop.ini", "._scene.jpg", "a.txt"])
def test_strays_are_passed_over(tmp_path: Path, made: list[SampleScene], name: str) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:2])
    for kind in ("RGB", "depth", "GT"):
        (tmp_path / "SIP" / kind / name).write_bytes(b"\0")
    assert len(ids(tmp_path)["test_sip"]) == 2


def test_folders_in_another_case(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "lfsd", made[:2], rgb="rgb", depth="Depth", mask="gt")
    assert ids(tmp_path)["test_lfsd"] == [f"LFSD/{s.stem}" for s in made[:2]]


def test_raw_or_smoothed_depth(tmp_path: Path, made: list[SampleScene]) -> None:
    root = tmp_path / "NLPR"
    WRITERS["nlpr_raw"](root, made[:4], made[4:8])
    for choice, name in (("smoothed", "smoothedDepth"), ("raw", "rawDepth")):
        split = data.open_splits(configure(root, depth_from=choice))["test_nlpr"]
        paths = [pair.depth for pair in split.pairs]
        assert {p.parent.name for p in paths if p} == {name}
        assert {p.suffix for p in paths if p} == {".mat"}  # exact, unlike the picture beside it


# -- mistakes of the user -----------------------------------------------------------------------


def test_nothing_there(tmp_path: Path, made: list[SampleScene]) -> None:
    one_error(tmp_path / "gone", "no such folder", "gone")
    (tmp_path / "pictures").mkdir()
    one_error(tmp_path, "no data set found", "RGB", str(tmp_path))
    sample.write_pairs(tmp_path / "RGBD_for_test" / "SIP", made[:2])
    one_error(tmp_path, "data.layout=come", "found: bbs", layout="come")


def test_two_folders_with_one_set(tmp_path: Path, made: list[SampleScene]) -> None:
    for name in ("a", "b"):
        sample.write_pairs(tmp_path / name / "SIP", made[:2])
    one_error(tmp_path, "both hold set 'SIP'", "a/SIP", "b/SIP", "data.root")
    assert ids(tmp_path / "a")["test_sip"] == [f"SIP/{s.stem}" for s in made[:2]]


def test_unknown_set_names_those_there_are(tmp_path: Path, made: list[SampleScene]) -> None:
    write_vst(tmp_path, made[:4], made[4:6])
    one_error(tmp_path, "data.train=DUT", "NJU2K (train)", "STERE (any)", train=["DUT"])
    one_error(tmp_path, "data.test=NLPR", test=["NLPR"])
    one_error(tmp_path, "named twice", train=["NJUD", "NJU2K"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no list", "wanted.lst"]),
        (b"", ["empty"]),
        (b"a\na\n", ["'a'", "twice"]),
        (b"\xff\xfe\x00", ["cannot be read as a list"]),
        (b"not_there\n", ["not_there", "no image", "no depth map", "no mask"]),
        (b"..\n", ["no plain name"]),
    ],
)
def test_bad_lists(
    tmp_path: Path, made: list[SampleScene], content: bytes | None, words: list[str]
) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:2])
    if content is not None:
        (tmp_path / "wanted.lst").write_bytes(content)
    one_error(tmp_path, *words, test=["SIP:wanted.lst"])


def test_lists_with_folders_endings_and_two_columns(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:3])
    stems = [s.stem for s in made[:3]]
    text = f"# chosen\nSIP/RGB/{stems[0]}.jpg SIP/depth/{stems[0]}.png\r\n\nx\\{stems[2]}.jpg\n"
    (tmp_path / "l.lst").write_text("\ufeff" + text, encoding="utf-8")
    found = ids(tmp_path, test=["SIP:l.lst"])
    assert found["test_sip"] == [f"SIP/{stems[0]}", f"SIP/{stems[2]}"]


def test_folders_that_are_missing(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:2], mask="")
    one_error(tmp_path, "SIP", "no folder of masks")
    sample.write_pairs(tmp_path / "b" / "SIP", made[:2], depth="odd")
    one_error(tmp_path / "b", "no folder of depth maps", "data.depth=zeros")
    assert len(ids(tmp_path / "b", depth="zeros")["test_sip"]) == 2


def test_a_folder_to_test_on_alone_says_how_to_train(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    sample.write_pairs(tmp_path / "mine", made[:3])
    lines = warnings(tmp_path, polarity="near_dark")
    assert len(lines) == 1
    assert "data.train=[NAME]" in lines[0]
    assert "mine (any)" in lines[0]
    assert set(ids(tmp_path)) == {"test_mine"}
    assert set(ids(tmp_path, train=["mine"])) == {"train"}
