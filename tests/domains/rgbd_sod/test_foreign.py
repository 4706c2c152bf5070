"""Folders of other programs' maps: where they may lie, what may be wrong, what is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.running import good, run_zoo
from zoo.domains.saliency.rgbd_sod import data, foreign
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.metrics import image_scores
from zoo.domains.saliency.rgbd_sod.split import RgbdSplit
from zoo.errors import DataError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "rgbd_sod" / "DES_sample"
GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "rgbd_sod"
HEIGHT, WIDTH = 60, 80
STEMS = {"DES": ("RGBD_data_1", "RGBD_data_2", "RGBD_data_3"), "SIP": ("7", "8")}


def truth(index: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (np.hypot(y - 25 - 3 * index, x - 40) < 12 + index).astype(np.uint8) * 255


def write(path: Path, values: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def guess(index: int, strength: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(index)
    noisy = strength * truth(index) + rng.uniform(0, 40, (HEIGHT, WIDTH))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two test sets."""
    for name, stems in STEMS.items():
        for i, stem in enumerate(stems):
            place = tmp_path / "data" / name
            grey = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
            write(place / "RGB" / f"{stem}.png", np.repeat(grey[..., None], 3, 2))
            write(place / "depth" / f"{stem}.png", np.ascontiguousarray(grey[::-1]))
            write(place / "GT" / f"{stem}.png", truth(i))
    return tmp_path / "data"


@pytest.fixture
def method(tmp_path: Path) -> Path:
    return maps(tmp_path / "Ours_1")


def maps(folder: Path, ending: str = ".png", strength: float = 0.8) -> Path:
    for name, stems in STEMS.items():
        for i, stem in enumerate(stems):
            write(folder / name / f"{stem}{ending}", guess(i, strength))
    return folder


def configure(root: Path, **settings: Any) -> Config:
    return Config.model_validate(
        {"task": "rgbd_sod", "preset": "sample", "data": {"root": root, **settings}}
    )


def held_out(config: Config) -> dict[str, RgbdSplit]:
    return {k: v for k, v in data.open_splits(config).items() if k.startswith("test")}


def scored(root: Path, folder: Path, **settings: Any) -> foreign.ForeignRecords:
    config = configure(root, **settings)
    return foreign.foreign_splits(folder, held_out(config), config)


def same(found: foreign.ForeignRecords, **endings: Any) -> None:
    """Every map of the fixture is scored as the arrays are."""
    assert list(found) == ["test_des", "test_sip"]
    for name, records in zip(STEMS, found.values(), strict=True):
        assert [r.id for r in records] == [f"{name}/{stem}" for stem in STEMS[name]]
        for i, record in enumerate(records):
            for key, value in image_scores(guess(i), truth(i)).items():
                np.testing.assert_array_equal(record.values[key], value)


# -- layouts ------------------------------------------------------------------------------------


def test_a_folder_a_set(root: Path, method: Path) -> None:
    found = scored(root, method)
    same(found)
    assert found.notes == []


def test_a_set_under_another_of_its_names(root: Path, method: Path) -> None:
    (method / "DES").rename(method / "RGBD-135")
    (method / "SIP").rename(method / "sip")
    same(scored(root, method))


def test_of_several_folders_of_a_set_the_one_that_fits_is_taken(root: Path, method: Path) -> None:
    (method / "DES").rename(method / "RGBD135")
    write(method / "DES-RGBD135" / "RGBD_data_1.png", guess(2))
    same(scored(root, method))


def test_maps_in_the_folder_itself(root: Path, method: Path) -> None:
    for path in list(method.rglob("*.png")):
        path.rename(method / path.name)
    same(scored(root, method))


def test_maps_of_one_set_in_the_folder_itself(root: Path, method: Path) -> None:
    found = scored(root, method / "DES")
    assert list(found) == ["test_des"]
    assert found.notes == ["SIP: no maps, left out"]


def test_an_ending_that_all_maps_share(root: Path, tmp_path: Path) -> None:
    same(scored(root, maps(tmp_path / "x", "_Net-V2.png")))


@pytest.mark.parametrize("ending", [".bmp", ".PNG", ".tif"])
def test_formats(root: Path, tmp_path: Path, ending: str) -> None:
    same(scored(root, maps(tmp_path / "x", ending)))


def test_jpeg_maps(root: Path, tmp_path: Path) -> None:
    found = scored(root, maps(tmp_path / "x", ".jpg"))
    assert len(found["test_des"]) == 3


def test_a_level_above_every_folder_is_a_method(root: Path, tmp_path: Path) -> None:
    for name in ("B", "A"):
        maps(tmp_path / "results" / name)
    (tmp_path / "results" / "notes").mkdir()
    splits = held_out(configure(root))
    found = foreign.method_folders(tmp_path / "results", splits)
    assert found == {n: tmp_path / "results" / n for n in ("A", "B")}
    one = foreign.method_folders(tmp_path / "results" / "A", splits)
    assert one == {"A": tmp_path / "results" / "A"}
    flat = foreign.method_folders(tmp_path / "results" / "A" / "DES", splits)
    assert list(flat) == ["DES"]


def test_a_folder_without_any_map_gives_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    assert scored(root, tmp_path / "x") == {}
    assert foreign.method_folders(tmp_path / "x", held_out(configure(root))) == {
        "x": tmp_path / "x"
    }


def test_maps_of_nothing_are_noted(root: Path, method: Path) -> None:
    write(method / "DES" / "stranger.png", guess(0))
    found = scored(root, method)
    same(found)
    assert found.notes == ["DES: 1 maps belong to no image of the set, left out"]


def test_hidden_files_are_no_maps(root: Path, method: Path) -> None:
    (method / "DES" / "._RGBD_data_1.png").write_bytes(b"resource fork")
    (method / "DES" / "Thumbs.db").write_bytes(b"")
    assert scored(root, method).notes == []


# -- sizes and kinds ----------------------------------------------------------------------------


def test_maps_of_another_size_are_resized_and_noted(root: Path, method: Path) -> None:
    small = np.asarray(Image.fromarray(guess(0)).resize((40, 30), Image.Resampling.BILINEAR))
    write(method / "DES" / "RGBD_data_1.png", small)
    found = scored(root, method)
    assert found.notes == [
        "DES: 1 of 3 maps were resized to their truth (bilinear), for instance RGBD_data_1.png, "
        "40 x 30 to 80 x 60"
    ]
    large = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    expected = image_scores(np.asarray(large), truth(0))
    np.testing.assert_array_equal(found["test_des"][0].values["fm"], expected["fm"])


def test_scores_at_256_are_of_both_resized(root: Path, method: Path) -> None:
    found = scored(root, method, eval_size="256")
    side = (256, 256)
    wide = Image.fromarray(guess(0)).resize(side, Image.Resampling.BILINEAR)
    real = Image.fromarray(truth(0)).resize(side, Image.Resampling.NEAREST)
    expected = image_scores(np.asarray(wide), np.asarray(real))
    for name, value in expected.items():
        np.testing.assert_array_equal(found["test_des"][0].values[name], value)
    assert found.notes == []  # as asked for


@pytest.mark.parametrize(
    "stored",
    [
        lambda v: v,
        lambda v: np.repeat(v[..., None], 3, axis=2),
        lambda v: np.dstack([v, v, v, np.full_like(v, 9)]),
        lambda v: np.dstack([v, np.full_like(v, 9)]),
        lambda v: v.astype(np.uint16) * 257,
    ],
    ids=["grey", "colour", "rgba", "la", "16-bit"],
)
def test_every_kind_of_grey_is_read(
    tmp_path: Path, stored: Callable[[np.ndarray], np.ndarray]
) -> None:
    values = guess(0)
    values[0, 0] = 255
    write(tmp_path / "x.png", stored(values))
    np.testing.assert_array_equal(foreign.read_map(tmp_path / "x.png"), values)


def test_one_bit_palette_and_float_maps_are_read(tmp_path: Path) -> None:
    Image.fromarray(truth(0)).convert("1").save(tmp_path / "bit.png")
    np.testing.assert_array_equal(foreign.read_map(tmp_path / "bit.png"), truth(0))
    Image.fromarray(guess(0)).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(foreign.read_map(tmp_path / "palette.png"), guess(0))
    write(tmp_path / "float.tif", guess(0).astype(np.float32) / 255)
    np.testing.assert_array_equal(foreign.read_map(tmp_path / "float.tif"), guess(0))


# -- what may be wrong --------------------------------------------------------------------------


def missing(method: Path) -> str:
    (method / "DES" / "RGBD_data_2.png").unlink()
    return r"Ours_1/DES: DES: 1 of 3 maps are missing \(RGBD_data_2\); data.on_error=skip"


def broken(method: Path) -> str:
    path = method / "SIP" / "7.png"
    path.write_bytes(path.read_bytes()[:200])
    return r"SIP/7.png: cannot be read \(.*\); copy the file again"


def no_image(method: Path) -> str:
    (method / "SIP" / "7.png").write_text("hello")
    return r"SIP/7.png: is no image that can be read"


def coloured(method: Path) -> str:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    write(method / "SIP" / "7.png", colours)
    return r"SIP/7.png: is a coloured picture; a salience map is grey"


def out_of_range(method: Path) -> str:
    (method / "SIP" / "7.png").unlink()
    write(method / "SIP" / "7.tif", guess(0).astype(np.float32) - 20)
    return r"SIP/7.tif: values from -20 to "


@pytest.mark.parametrize("spoil", [missing, broken, no_image, coloured, out_of_range])
def test_what_is_wrong_with_a_map_is_one_line_or_skipped(
    root: Path, method: Path, spoil: Callable[[Path], str]
) -> None:
    told = spoil(method)
    with pytest.raises(DataError, match=told) as caught:
        scored(root, method)
    assert "\n" not in str(caught.value)
    found = scored(root, method, on_error="skip")
    assert sum(map(len, found.values())) == 4
    assert len(found.notes) == 1


def test_two_maps_of_one_image_are_refused(root: Path, method: Path) -> None:
    write(method / "DES" / "RGBD_data_1.bmp", guess(0))
    told = r"RGBD_data_1.png: RGBD_data_1.bmp is a map of the same image; remove one"
    with pytest.raises(DataError, match=told):
        scored(root, method)


def test_a_map_that_could_be_of_two_sets_is_refused(root: Path, tmp_path: Path) -> None:
    for folder in ("RGB", "depth", "GT"):
        for stem in STEMS["SIP"]:
            place = root / "SIP" / folder
            (place / f"{stem}.png").rename(place / f"RGBD_data_{int(stem) - 6}.png")
    for i, stem in enumerate(STEMS["DES"]):
        write(tmp_path / "x" / f"{stem}.png", guess(i))
    with pytest.raises(DataError, match="sets DES and SIP both have an image of that name"):
        scored(root, tmp_path / "x")


def test_a_file_is_no_folder_of_maps(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "x.png", guess(0))
    with pytest.raises(DataError, match="is no folder"):
        scored(root, tmp_path / "x.png")


# -- pictures -----------------------------------------------------------------------------------


def test_small_pictures_come_with_what_figures_show(root: Path, method: Path) -> None:
    record = scored(root, method)["test_sip"][0]
    values = record.values
    assert values["preview_rgb"].shape == (HEIGHT, WIDTH, 3)
    assert values["preview_depth"].shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(values["preview_truth"], truth(0))
    np.testing.assert_array_equal(values["preview_maps"], guess(0)[None])
    assert all(values[n].dtype == np.uint8 for n in values if n.startswith("preview"))


def test_foreign_records_of_one_split(root: Path, method: Path) -> None:
    config = configure(root)
    split = held_out(config)["test_sip"]
    assert [r.id for r in foreign.foreign_records(method, split, config)] == ["SIP/7", "SIP/8"]
    assert foreign.foreign_records(method / "DES", split, config) == []


# -- real maps ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the DES sample is not beside this checkout")
def test_published_maps_of_real_images(tmp_path: Path) -> None:
    shutil.copytree(REAL, tmp_path / "data" / "DES")
    shutil.rmtree(tmp_path / "data" / "DES" / "pred_JLDCF")
    found = scored(tmp_path / "data", REAL / "pred_JLDCF", val_fraction=0)
    records = {r.id: r for r in found["test_des"]}
    assert len(records) == 4
    # Recorded on every second pixel of the same pairs.
    recorded = json.loads((GOLDEN / "metrics_real.json").read_text())["scalars"]
    for number, expected in recorded.items():
        values = records[f"DES/RGBD_data_{number}"].values
        for name in ("mae", "sm", "wfm", "adp_fm", "adp_em"):
            assert float(values[name]) == pytest.approx(expected[name], abs=0.01)
        prediction, mask = (
            np.asarray(Image.open(path).convert("L"))[::2, ::2]
            for path in (
                REAL / "pred_JLDCF" / f"RGBD_data_{number}.png",
                REAL / "GT" / f"RGBD_data_{number}.png",
            )
        )
        exact = image_scores(prediction, mask)
        for name in ("mae", "sm", "wfm", "adp_fm", "adp_em", "adp_iou", "adp_dice"):
            assert float(exact[name]) == pytest.approx(expected[name], abs=1e-9)


# -- from the command line ----------------------------------------------------------------------


def test_eval_of_several_methods(root: Path, method: Path, tmp_path: Path) -> None:
    other = maps(tmp_path / "other", strength=0.3)
    shutil.rmtree(other / "SIP")
    out = tmp_path / "scored"
    words = ["task=rgbd_sod", f"data.root={root}", f"predict.foreign=[{method},{other}]"]
    shown = good("eval", *words, f"predict.out={out}").out
    assert "warning: other: SIP: no maps, left out" in shown
    table = pd.read_csv(out / "comparison.csv")
    assert table[["method", "set", "images"]].values.tolist() == [
        ["Ours_1", "DES", 3],
        ["Ours_1", "SIP", 2],
        ["other", "DES", 3],
    ]
    results = json.loads((out / "metrics.json").read_text())
    assert results["other/test_des/mae"] == pytest.approx(table["mae"][2])
    names = ["comparison.md", "comparison.tex", "curves.csv", "figures/pr.png"]
    names += ["figures/f_threshold.png", "Ours_1/test_sip/predictions.csv"]
    names += ["other/test_des/predictions.csv", "other/figures/test_des_examples.png"]
    assert all((out / name).is_file() for name in names)
    curves = pd.read_csv(out / "curves.csv")
    assert len(curves) == 3 * 256
    rows = pd.read_csv(out / "Ours_1" / "test_des" / "predictions.csv")
    assert rows["mae"].is_monotonic_decreasing


def test_eval_of_a_folder_of_methods(root: Path, tmp_path: Path) -> None:
    for name in ("A", "B"):
        maps(tmp_path / "results" / name)
    out = tmp_path / "scored"
    words = ["task=rgbd_sod", f"data.root={root}", f"predict.foreign={tmp_path / 'results'}"]
    good("eval", *words, f"predict.out={out}", "predict.tables=[md]")
    assert set(pd.read_csv(out / "comparison.csv")["method"]) == {"A", "B"}
    assert (out / "comparison.md").is_file()
    assert not (out / "comparison.tex").exists()


@pytest.mark.parametrize("spoil", [missing, broken, no_image])
def test_a_wrong_map_is_one_line_and_nothing_is_written(
    root: Path, method: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    spoil(method)
    words = ["task=rgbd_sod", f"data.root={root}", f"predict.foreign={method}"]
    result = run_zoo("eval", *words, f"predict.out={tmp_path / 'out'}")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_maps_of_other_images_are_one_line(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "x" / "DES" / "cat.png", guess(0))
    words = ["task=rgbd_sod", f"data.root={root}", f"predict.foreign={tmp_path / 'x'}"]
    result = run_zoo("eval", *words)
    assert result.code == 2
    assert f"predict.foreign={tmp_path / 'x'}: no prediction fits" in result.err
