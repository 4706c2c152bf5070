import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.domains.saliency.rgbd_sod import data, sample
from zoo.domains.saliency.rgbd_sod.sample import SampleScene
from zoo.errors import DataError

from .conftest import configure
from .writers import WRITERS

FACTS = {
    "input_size": 96,
    "polarity": {"NJU2K": "near_dark"},
    "default_polarity": "near_bright",
    "holes": "far",
    "percentile": [2, 98],
}


def inputs(*paths: Path, facts: dict[str, Any] = FACTS, **settings: Any) -> data.RgbdSplit:
    return data.inputs(list(paths), facts, configure(None, **settings))


def one_error(*paths: Path, words: list[str], **settings: Any) -> None:
    with pytest.raises(DataError) as caught:
        inputs(*paths, **settings)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.fixture
def photo(tmp_path: Path, made: list[SampleScene]) -> Path:
    """An image without depth in a folder of its own."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(made[0].rgb).save(folder / "photo.jpg")
    return folder / "photo.jpg"


@pytest.mark.parametrize("name", ["bbs", "vst", "caver", "author", "come", "nlpr_raw", "plain"])
def test_folders_in_any_layout_need_no_masks(
    tmp_path: Path, made: list[SampleScene], name: str
) -> None:
    WRITERS[name](tmp_path / "data", made[:3], made[12:14])
    for folder in [p for p in (tmp_path / "data").rglob("*") if p.is_dir()]:
        if folder.name.lower() in ("gt", "mask", "masks", "gt_right", "groundtruth"):
            shutil.rmtree(folder)
    # Full folders are predicted whole: there is nothing to divide.
    split = inputs(tmp_path / "data")
    assert {f"{s.stem}" for s in (*made[:3], *made[12:14])} == {p.stem for p in split.pairs}
    item = split.item(0, np.random.default_rng(0))
    assert item["id"].endswith(split.pairs[0].stem)
    assert item["rgb"].shape == (3, 96, 96)
    assert "mask" not in item
    assert "truth" not in item
    assert item["preview_rgb"].ndim == 3


def test_one_pair_in_every_way_it_can_be_given(photo: Path, made: list[SampleScene]) -> None:
    rows = []
    for place in ("photo_depth", "photo_Depth", "depth/photo", "Depth/photo_Depth", "../other"):
        target = photo.parent / place
        target.parent.mkdir(exist_ok=True)
        sample.write_depth(target, made[0], "png16")
        file = target.with_name(f"{target.name}.png")
        given = [photo, file] if "other" in place else [photo]
        for paths in (given, given[::-1]):
            split = inputs(*paths)
            assert list(split.ids) == ["photo"], place
            rows.append(split.item(0, np.random.default_rng(0))["depth"])
        file.unlink()
        if target.parent != photo.parent and "other" not in place:
            target.parent.rmdir()
    assert all(np.array_equal(rows[0], row) for row in rows)


def test_an_image_of_a_data_set_finds_its_depth(tmp_path: Path, made: list[SampleScene]) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:3], tail="_Depth")
    image = tmp_path / "SIP" / "RGB" / f"{made[1].stem}.jpg"
    pair = inputs(image).pairs[0]
    assert pair.depth is not None
    assert pair.depth.name == f"{made[1].stem}_Depth.png"
    both = inputs(image, tmp_path / "SIP" / "RGB" / f"{made[0].stem}.jpg")
    assert [p.stem for p in both.pairs] == [made[1].stem, made[0].stem]
    # The image folder alone, and both folders named.
    folder, depth = tmp_path / "SIP" / "RGB", tmp_path / "SIP" / "depth"
    for paths in ([folder], [folder, depth], [depth, folder]):
        assert list(inputs(*paths).ids) == [f"SIP/{s.stem}" for s in made[:3]]


def test_a_folder_of_images_with_maps_beside_them(tmp_path: Path, made: list[SampleScene]) -> None:
    for scene in made[:3]:
        Image.fromarray(scene.rgb).save(tmp_path / f"{scene.stem}.jpg")
        sample.write_depth(tmp_path / f"{scene.stem}_depth", scene, "png")
        sample.write_mask(tmp_path / f"{scene.stem}_GT", scene.mask, "png")
    assert list(inputs(tmp_path).ids) == [s.stem for s in made[:3]]


def test_image_without_depth_is_refused_unless_asked_for(photo: Path) -> None:
    words = ["photo.jpg", "no depth map", "photo_depth", "data.depth=zeros"]
    one_error(photo, words=words)
    one_error(photo.parent, words=words)
    split = inputs(photo, depth="zeros")
    item = split.item(0, np.random.default_rng(0))
    assert not item["depth"].any()
    assert item["depth_valid"] is False
    assert any("no depth is used" in note for note in split.notes)
    assert not inputs(photo, facts={**FACTS, "depth": "zeros"}, depth="zeros").pairs[0].depth


def test_folder_without_depth_is_refused_unless_asked_for(
    tmp_path: Path, made: list[SampleScene]
) -> None:
    sample.write_pairs(tmp_path / "SIP", made[:3])
    missing = tmp_path / "SIP" / "depth" / f"{made[1].stem}.png"
    missing.unlink()
    one_error(tmp_path / "SIP", words=[made[1].stem, "no depth map", "data.depth=zeros"])
    split = inputs(tmp_path / "SIP", on_error="skip")
    assert len(split) == 2
    assert any(made[1].stem in note and note.startswith("skipped") for note in split.notes)
    shutil.rmtree(missing.parent)
    one_error(tmp_path / "SIP", words=["no folder of depth maps", "data.depth=zeros"])
    assert len(inputs(tmp_path / "SIP", depth="zeros")) == 3


def test_depth_is_read_as_in_training(tmp_path: Path, made: list[SampleScene]) -> None:
    for name in ("NJU2K", "SIP"):
        sample.write_pairs(tmp_path / name, made[:2])
    split = inputs(tmp_path)
    dark, bright = (
        split.item(i, np.random.default_rng(0))["depth"]
        for i in (split.ids.index(f"{n}/{made[0].stem}") for n in ("NJU2K", "SIP"))
    )
    np.testing.assert_allclose(dark, 1 - bright, atol=1e-5)
    assert any("near bright and near dark" in note for note in split.notes)
    assert split.reading.rules.holes == "far"
    assert split.reading.rules.percentile == (2.0, 98.0)
    # What is said of the files given wins.
    for settings in ({"polarity": "near_dark"}, {"polarity_of": {"SIP": "near_dark"}}):
        told = inputs(tmp_path, **settings)
        item = told.item(told.ids.index(f"SIP/{made[0].stem}"), np.random.default_rng(0))
        np.testing.assert_array_equal(item["depth"], dark)


def test_what_cannot_be_an_input_is_one_line(photo: Path, made: list[SampleScene]) -> None:
    folder = photo.parent
    (folder / "notes.txt").write_text("x")
    one_error(folder / "notes.txt", words=["notes.txt", "no image"])
    one_error(folder / "gone.jpg", words=["gone.jpg", "no such file"])
    (folder / "empty").mkdir()
    one_error(folder / "empty", words=["empty", "no images found"])
    (folder / "set" / "RGB").mkdir(parents=True)
    one_error(folder / "set", words=["set", "no folder of depth maps"])
    one_error(folder / "set", words=["there is no image in it"], depth="zeros")
    one_error(folder / "set", words=["data.layout=come", "found: plain"], layout="come")
    sample.write_depth(folder / "photo_depth", made[0], "png")
    one_error(folder / "photo_depth.png", words=["is a depth map", "give its image"])
    (folder / "photo_depth.png").write_bytes(b"broken")
    one_error(photo, words=["photo_depth.png", "no image"])


def test_two_images_with_one_name_are_refused(tmp_path: Path, made: list[SampleScene]) -> None:
    for name in ("a", "b"):
        sample.write_pairs(tmp_path / name / "SIP", made[:1])
    one_error(tmp_path / "a", tmp_path / "b", words=["both called", made[0].stem])
    one_error(tmp_path, words=["both hold set 'SIP'", "data.root"])


def test_digest_follows_the_files(photo: Path, made: list[SampleScene]) -> None:
    sample.write_depth(photo.parent / "photo_depth", made[0], "png")
    first = inputs(photo).digest
    assert inputs(photo).digest == first
    sample.write_depth(photo.parent / "photo_depth", made[0], "png", near_bright=True)
    assert inputs(photo).digest != first
