"""The grid, the sizes of tiles, reading them, and settings as attributes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.parity.golden import Case
from tests.parity.wsi_tiling import tiling_target
from zoo.domains.medical.wsi_mil.bags import H5Bag
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.extract import Extraction, write_features
from zoo.domains.medical.wsi_mil.grid import Check, inside, passes, tile_grid
from zoo.domains.medical.wsi_mil.sample_slides import write_pyramid
from zoo.domains.medical.wsi_mil.settings import (
    EncoderSettings,
    TileSettings,
    setting_attributes,
    settings_from,
    settings_of,
)
from zoo.domains.medical.wsi_mil.slides import open_slide
from zoo.domains.medical.wsi_mil.tiling import TileReader, plan_tiles, resized, scale_of
from zoo.domains.medical.wsi_mil.tissue import TissueSettings
from zoo.errors import ConfigError, DataError

from .slide_files import CMU, CanvasSlide, damage, picture

SQUARE = np.array([[100, 50], [300, 50], [300, 150], [100, 150]], np.int32)
FINE = TissueSettings(sthresh=15, a_t=0.02, a_h=0.005)
BY_LEVEL = TileSettings(magnification=None, patch_level=0, patch_size=64, tissue=FINE)


def one_line(kind: type[Exception], act: Callable[[], Any], *words: str) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# -- the grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 3, 16.37])
def test_inside_agrees_with_opencv_everywhere(scale: float) -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(6):
        noise = cv2.GaussianBlur(rng.random((60, 60)).astype(np.float32), (0, 0), 2)
        mask = (noise > 0.5).astype(np.uint8) * 255
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for outline in found:
            polygon = (outline[:, 0] * scale).astype(np.int32)
            points = np.concatenate([rng.integers(0, int(60 * scale), (60, 2)), polygon[:20]])
            for shift in (0, 0.5):
                ours = inside(points + shift, polygon)
                theirs = [
                    np.sign(cv2.pointPolygonTest(polygon, (float(x), float(y)), False))
                    for x, y in points + shift
                ]
                assert ours.tolist() == theirs
                seen |= set(theirs)
    assert seen == {-1, 0, 1}


def test_on_the_outline_is_told_apart() -> None:
    points = np.array([[100, 50], [200, 50], [300, 100], [200, 100], [99, 100], [200, 151]])
    assert inside(points, SQUARE).tolist() == [0, 0, 0, 1, -1, -1]


@pytest.mark.parametrize(
    ("check", "kept"),
    [
        ("basic", {100, 260, 280, 300}),
        ("center", {80, 100, 260, 280}),
        ("four_pt", {80, 100, 260, 280}),
        ("four_pt_hard", {100, 260}),
    ],
)
def test_each_check_looks_at_its_own_points(check: Check, kept: set[int]) -> None:
    corners = np.array([[x, 100] for x in (60, 80, 100, 260, 280, 300, 320)])
    passed = corners[passes(corners, SQUARE, tile=40, check=check)]
    assert {int(x) for x, _ in passed} == kept


def test_four_points_are_half_way_to_the_corners() -> None:
    def passed(x: int, check: Check) -> bool:
        return bool(passes(np.array([[x, 80]]), SQUARE, tile=40, check=check)[0])

    # The points right of the centre are at x + 30, those left of it at x + 10.
    assert passed(70, "four_pt")
    assert not passed(69, "four_pt")
    assert passed(90, "four_pt_hard")
    assert not passed(89, "four_pt_hard")


def test_the_grid_starts_at_the_outline_and_runs_down_its_columns() -> None:
    found = tile_grid(
        SQUARE, [], tile=50, step=50, dimensions=(1000, 1000), padding=True, check="basic"
    )
    columns, rows = (100, 150, 200, 250, 300), (50, 100, 150)
    assert found.tolist() == [[x, y] for x in columns for y in rows]


def test_padding_decides_about_tiles_over_the_edge() -> None:
    options: dict[str, Any] = {"tile": 64, "step": 64, "check": "basic"}
    inner = tile_grid(SQUARE, [], dimensions=(310, 152), padding=False, **options)
    assert (inner + 64 <= (310, 152)).all()
    assert len(inner) == 3
    over = tile_grid(SQUARE, [], dimensions=(310, 152), padding=True, **options)
    assert len(over) > len(inner)
    assert (over + 64 > (310, 152)).any()


def test_a_tile_whose_centre_is_in_a_hole_is_left_out() -> None:
    hole = np.array([[170, 70], [230, 70], [230, 130], [170, 130]], np.int32)
    options: dict[str, Any] = {"tile": 20, "step": 20, "check": "center"}
    whole = tile_grid(SQUARE, [], dimensions=(999, 999), padding=True, **options)
    cut = tile_grid(SQUARE, [hole], dimensions=(999, 999), padding=True, **options)
    gone = {tuple(c) for c in whole.tolist()} - {tuple(c) for c in cut.tolist()}
    assert gone == {
        tuple(c) for c in whole.tolist() if 170 < c[0] + 10 < 230 and 70 < c[1] + 10 < 130
    }
    assert gone
    # On the hole's outline is not inside of it.
    edge = np.array([[160, 90]])
    assert inside(edge + 10, hole).tolist() == [0]
    assert (160, 90) in {tuple(c) for c in cut.tolist()}


# -- sizes --------------------------------------------------------------------------------------


def blank(mpp: float | None, downsamples: tuple[int, ...] = (1, 4, 16)) -> CanvasSlide:
    white = np.full((64, 64, 3), 255, np.uint8)
    return CanvasSlide(white, (4096, 4096), mpp=mpp, downsamples=downsamples)


@pytest.mark.parametrize(
    ("mpp", "wanted", "tile", "level", "size"),
    [
        (0.25, 20, 512, 0, 512),
        (0.243, 20, 512, 0, 512),
        (0.226, 10, 1024, 1, 256),
        (0.5, 20, 256, 0, 256),
        (0.5, 5, 1024, 1, 256),
        (0.25, 2.5, 4096, 2, 256),
        (0.17, 20, 768, 0, 768),
        (0.25, 15, 682, 0, 682),
    ],
)
def test_a_magnification_gives_trident_s_sizes(
    mpp: float, wanted: float, tile: int, level: int, size: int
) -> None:
    scale = scale_of(blank(mpp), TileSettings(magnification=wanted))
    assert (scale.tile, scale.level, scale.size) == (tile, level, size)
    assert scale.patch_size == 256
    assert scale.downsample == tile / 256


def test_micrometres_give_the_same_physical_size_on_every_scanner() -> None:
    settings = TileSettings(magnification=None, target_mpp=0.5, patch_size=224, overlap=56)
    for mpp in (0.226, 0.243, 0.25, 0.5):
        scale = scale_of(blank(mpp), settings)
        assert scale.tile * mpp == pytest.approx(112, abs=mpp)
        assert scale.step == pytest.approx(0.75 * scale.tile, abs=1)


def test_a_level_gives_clam_s_sizes() -> None:
    settings = TileSettings(magnification=None, patch_level=1, patch_size=256, overlap=64)
    scale = scale_of(blank(None), settings)
    assert (scale.tile, scale.step, scale.level, scale.size) == (1024, 768, 1, 256)


def test_a_level_slightly_coarser_than_its_factor_is_used() -> None:
    slide = blank(0.25)
    slide.level_downsamples = (1.0, 4.0004, 16.002)
    assert scale_of(slide, TileSettings(magnification=10)).level == 1


def test_without_a_resolution_the_message_names_data_mpp() -> None:
    for wanted in (TileSettings(), TileSettings(magnification=None, target_mpp=0.5)):
        one_line(DataError, lambda w=wanted: scale_of(blank(None), w), "canvas.svs", "data.mpp")


def test_objective_power_is_enough_for_a_magnification() -> None:
    slide = blank(None)
    slide.power = 40
    assert scale_of(slide, TileSettings(magnification=20)).tile == 512


@pytest.mark.parametrize(
    ("mpp", "settings", "words"),
    [
        (0.5, TileSettings(magnification=40), ("20x", "magnification=40")),
        (1.0, TileSettings(magnification=None, target_mpp=0.5), ("1 um", "target_mpp=0.5")),
        (3.0, TileSettings(), ("coarser than 5x", "target_mpp")),
    ],
)
def test_detail_is_not_invented(mpp: float, settings: TileSettings, words: tuple[str, ...]) -> None:
    one_line(DataError, lambda: scale_of(blank(mpp), settings), "canvas.svs", *words)


def test_settings_that_make_no_grid_name_the_key() -> None:
    one_line(ConfigError, lambda: TileSettings(target_mpp=0.5), "data.tiles.target_mpp")
    one_line(ConfigError, lambda: TileSettings(overlap=256), "data.tiles.overlap=256")
    asked = replace(BY_LEVEL, patch_level=7)
    one_line(ConfigError, lambda: scale_of(blank(0.25), asked), "data.tiles.level=7")


# -- plans --------------------------------------------------------------------------------------


def test_tiles_lie_on_the_tissue_and_not_in_its_hole() -> None:
    image = picture()
    plan = plan_tiles(CanvasSlide(image.pixels, (1024, 1024)), BY_LEVEL)
    centres = plan.coords + 32
    assert len(plan.coords) > 60
    kept = (centres < 1024).all(axis=1)
    on = image.tissue[centres[kept, 1], centres[kept, 0]]
    assert on.mean() > 0.85  # of the four points a tile needs one
    hole = np.array([0.33, 0.36]) * 1024
    assert np.abs(centres - hole).max(axis=1).min() > 30
    hard = plan_tiles(
        CanvasSlide(image.pixels, (1024, 1024)), replace(BY_LEVEL, contour_fn="center")
    )
    centres = hard.coords + 32
    assert image.tissue[centres[:, 1], centres[:, 0]].mean() > 0.98


def test_tissue_over_the_edge_is_tiled_with_padding_only() -> None:
    slide = CanvasSlide(picture(edge=True).pixels, (1024, 1024))
    padded = plan_tiles(slide, BY_LEVEL).coords
    inner = plan_tiles(slide, replace(BY_LEVEL, use_padding=False)).coords
    assert (padded + 64).max() > 1024
    assert (inner + 64).max() <= 1024
    assert 0 < len(inner) < len(padded)


def test_a_huge_offset_moves_the_tiles_and_nothing_else() -> None:
    pixels, corner = picture().pixels, (150_016, 80_000)
    here = plan_tiles(CanvasSlide(pixels, (1024, 1024)), BY_LEVEL)
    far = plan_tiles(CanvasSlide(pixels, (160_000, 90_000), corner), BY_LEVEL)
    assert (far.coords - corner == here.coords).all()


def test_outlines_that_give_too_few_tiles_can_be_dropped() -> None:
    slide = CanvasSlide(picture().pixels, (1024, 1024))
    every = plan_tiles(slide, BY_LEVEL)
    counts = len(every.tissue.contours)
    large = plan_tiles(slide, replace(BY_LEVEL, min_patches=12))
    assert counts == 2
    assert 0 < len(large.coords) < len(every.coords)
    assert large.coords[:, 0].max() < 800  # the small piece lies to the right


# -- reading ------------------------------------------------------------------------------------


def test_tiles_are_read_at_the_best_level_and_resized(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pixels = picture().pixels
    write_pyramid(path, pixels)
    settings = TileSettings(patch_size=32, magnification=5)
    with open_slide(path) as slide:
        scale = scale_of(slide, settings)
    assert (scale.tile, scale.level, scale.size) == (256, 1, 64)
    reader = TileReader(path, None, scale)
    tiles = reader(np.array([[256, 512], [900, 900]]))
    reader.close()
    assert tiles.shape == (2, 32, 32, 3)
    block = pixels[512:768, 256:512].reshape(32, 8, 32, 8, 3).mean((1, 3))
    assert np.abs(tiles[0] - block).mean() < 8
    assert (tiles[1][20:, :] == 255).all()
    assert reader.rescued == 0


def test_a_tile_that_is_damaged_comes_from_the_next_level(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pixels = picture().pixels
    write_pyramid(path, pixels)
    sound = TileReader(path, None, scale_of(open_slide(path), TileSettings(patch_size=64)))
    expected = sound(np.array([[256, 512], [512, 512]]))
    sound.close()
    damage(path, 0, 9)  # the tile of x 256 to 512 and y 512 to 768
    reader = TileReader(path, None, sound._scale)
    found = reader(np.array([[256, 512], [512, 512]]))
    reader.close()
    assert reader.rescued == 1
    assert (found[1] == expected[1]).all()
    difference = np.abs(found[0].astype(int) - expected[0]).mean()
    assert 0 < difference < 30  # coarser, but the same place
    for level in (1, 2):
        damage(path, level, 0)
    reader = TileReader(path, None, sound._scale)
    one_line(DataError, lambda: reader(np.array([[256, 512]])), str(path), "(256, 512)")


def test_shrinking_averages() -> None:
    board = np.indices((8, 8)).sum(axis=0)[..., None] % 2 * np.full(3, 200)
    assert (resized(board.astype(np.uint8), 4) == 100).all()
    assert resized(board.astype(np.uint8), 8).shape == (8, 8, 3)


# -- settings and attributes --------------------------------------------------------------------

EVERY = [
    TileSettings(),
    TileSettings(magnification=None, target_mpp=0.5, overlap=32, patch_size=224),
    TileSettings(
        magnification=None,
        patch_level=1,
        contour_fn="four_pt_hard",
        use_padding=False,
        min_patches=2,
        mpp=0.23,
        tissue=TissueSettings(9, 5, 0, True, 0.5, 0.25, 3, 2, False),
        encoder=EncoderSettings(
            "timm:vit_small_patch16_224",
            None,
            "ab" * 32,
            256,
            (0.5, 0.5, 0.5),
            (0.25, 0.25, 0.25),
            {"init_values": 1e-5, "dynamic_img_size": True},
        ),
    ),
]


@pytest.mark.parametrize("settings", EVERY)
def test_settings_survive_the_feature_file(tmp_path: Path, settings: TileSettings) -> None:
    path = tmp_path / "slide.h5"
    found = Extraction(
        np.zeros((3, 2), np.int64), np.ones((3, 5), np.float32), setting_attributes(settings)
    )
    write_features(path, found)
    told = json.loads(json.dumps(dict(H5Bag("slide", path).peek().settings)))  # facts are JSON
    assert settings_from(told) == settings


def test_a_file_of_weights_is_told_by_name_and_hash_alone() -> None:
    encoder = EncoderSettings("resnet18", Path("/home/me/net.pth"), "cd" * 32)
    told = setting_attributes(TileSettings(encoder=encoder))
    assert told["encoder_weights"] == "net.pth"
    assert "/home" not in json.dumps(told)
    assert settings_from(told).encoder == replace(encoder, weights=None)


def test_settings_of_other_tools_are_understood() -> None:
    trident = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "target_magnification": 20.0,
        "overlap": 0,
        "encoder": "resnet50",
    }
    assert settings_from(trident) == TileSettings()
    clam = {"patch_size": 256, "patch_level": 1, "step_size": 128, "encoder": "resnet50"}
    found = settings_from(clam, mpp=0.5)
    assert (found.patch_level, found.magnification, found.overlap, found.mpp) == (1, None, 128, 0.5)


def test_what_features_do_not_tell_is_named() -> None:
    one_line(
        ConfigError, lambda: settings_from({}), "tile size", "magnification", "data.encoder", "same"
    )
    told = {"patch_size": 256, "patch_level": 0}
    one_line(ConfigError, lambda: settings_from(told), "encoder (give it with data.encoder)")
    assert settings_from(told, encoder=EncoderSettings("stats")).encoder.name == "stats"


def configured(**data: Any) -> TileSettings:
    body = {"task": "wsi_mil", "preset": "paper", "data": data}
    return settings_of(Config.model_validate(body).data)


def test_single_values_replace_those_of_a_preset() -> None:
    assert configured().tissue == TissueSettings()
    found = configured(tissue={"preset": "bwh_biopsy", "a_t": 3, "use_otsu": True}).tissue
    assert found == TissueSettings(15, 11, 2, True, 3, 1, 2)


def test_another_resolution_replaces_the_magnification() -> None:
    assert configured(tiles={"target_mpp": 0.5}).magnification is None
    assert configured(tiles={"level": 0}).patch_level == 0
    assert configured(tiles={"magnification": 10}).magnification == 10
    one_line(
        ConfigError, lambda: configured(tiles={"target_mpp": 0.5, "level": 0}), "data.tiles.level"
    )
    one_line(ConfigError, lambda: configured(encoder_weights="gone.pth"), "gone.pth", "no such")
    with pytest.raises(ValueError, match="should be odd"):
        configured(tissue={"mthresh": 6})


def test_options_of_an_encoder_are_numbers_where_they_look_like_it() -> None:
    from zoo.config import resolve

    words = ["data.encoder_options.init_values=1e-5", "data.encoder_options.act_layer=gelu"]
    config = resolve(["task=wsi_mil", *words, "data.encoder_options.dynamic_img_size=true"]).config
    options = settings_of(config.data).encoder.options
    assert options == {"init_values": 1e-5, "act_layer": "gelu", "dynamic_img_size": True}


# -- the recorded case --------------------------------------------------------------------------


@pytest.mark.skipif(not CMU.is_file(), reason="the shared real slide is not on this machine")
@pytest.mark.parametrize("part", ["coords", "contour_area", "n_holes"])
def test_a_wrong_recorded_case_fails(tmp_path: Path, part: str) -> None:
    source = CMU.parents[3] / "golden" / "wsi_mil" / "tiling_cmu_small_region.json"
    if not source.is_file():
        pytest.skip("the recorded cases are not on this machine")
    info = json.loads(source.read_text())
    info["slide"] = re.sub(r" .*", "", info["slide"])
    info["configs"] = info["configs"][:1]
    tensors = load_file(source.with_suffix(".safetensors"))
    tensors = {k: v.clone() for k, v in tensors.items() if k.startswith("output/0.")}
    tensors[f"output/0.{part}"].add_(300)
    (tmp_path / CMU.name).symlink_to(CMU)
    copy = tmp_path / "case.json"
    copy.write_text(json.dumps(info))
    save_file(tensors, copy.with_suffix(".safetensors"))
    with pytest.raises(AssertionError):
        tiling_target(Case(copy))


def test_features_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Extraction(np.zeros((2, 2), np.int64), np.ones((2, 4), np.float32), {"encoder": "x"})
    write_features(tmp_path / "a.h5", found, "float16")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].dtype == np.float16
        assert file["coords"].dtype == np.int64

    def fail(*_: Any, **__: Any) -> None:
        msg = "disk"
        raise OSError(msg)

    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    with pytest.raises(OSError, match="disk"):
        write_features(tmp_path / "b.h5", found)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
