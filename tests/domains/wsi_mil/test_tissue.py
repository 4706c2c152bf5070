"""Tissue segmentation by CLAM's method."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from zoo.domains.medical.wsi_mil.sample_slides import SlideImage
from zoo.domains.medical.wsi_mil.tissue import (
    PRESETS,
    Tissue,
    TissueSettings,
    area_of,
    find_tissue,
    outlines,
    tissue_mask,
)
from zoo.errors import ConfigError, DataError

from .slide_files import CanvasSlide, picture

FINE = TissueSettings(sthresh=15, mthresh=7, close=4, a_t=0.02, a_h=0.005)


@pytest.fixture(scope="module")
def image() -> SlideImage:
    return picture()


def filled(tissue: Tissue, shape: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        cv2.fillPoly(mask, [contour - corner], 1)
        cv2.fillPoly(mask, [h - corner for h in holes], 0)
    return mask > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_outlines_are_the_tissue_without_its_hole(image: SlideImage) -> None:
    tissue = find_tissue(CanvasSlide(image.pixels, (1024, 1024)), FINE)
    assert tissue.fallback == 0
    assert [len(h) for h in tissue.holes] in ([0, 1], [1, 0])
    assert overlap(filled(tissue, image.tissue.shape), image.tissue) > 0.97


def test_otsu_finds_the_threshold_itself(image: SlideImage) -> None:
    slide = CanvasSlide(image.pixels, (1024, 1024))
    tissue = find_tissue(slide, replace(FINE, sthresh=254, use_otsu=True))
    assert overlap(filled(tissue, image.tissue.shape), image.tissue) > 0.95
    assert not find_tissue(slide, replace(FINE, sthresh=254, fallback=False)).contours


def test_small_areas_need_the_fallback_and_say_so(image: SlideImage) -> None:
    slide = CanvasSlide(image.pixels, (1024, 1024))
    strict = TissueSettings(sthresh=15, fallback=False)
    assert not find_tissue(slide, strict).contours
    found = find_tissue(slide, replace(strict, fallback=True))
    assert found.fallback == 1
    assert found.settings.a_t == 1
    assert len(found.contours) == 1  # the small piece is below one square of 512 pixels


def test_a_slide_without_tissue_stays_without() -> None:
    blank = np.full((256, 256, 3), 250, np.uint8)
    tissue = find_tissue(CanvasSlide(blank, (256, 256)), TissueSettings())
    assert not tissue.contours
    assert not tissue.holes
    assert tissue.fallback == 2


def test_a_huge_offset_costs_nothing_and_shifts_the_outlines(image: SlideImage) -> None:
    corner = (180_000, 90_000)
    slide = CanvasSlide(image.pixels, (200_000, 100_000), corner)
    tissue = find_tissue(slide, FINE)
    assert slide.largest_read == image.tissue.size
    near = find_tissue(CanvasSlide(image.pixels, (1024, 1024)), FINE)
    for far, here in zip(tissue.contours, near.contours, strict=True):
        assert (far - corner == here).all()
    assert overlap(filled(tissue, image.tissue.shape, corner), image.tissue) > 0.97


def test_a_level_too_large_to_be_read_whole_is_refused(image: SlideImage) -> None:
    slide = CanvasSlide(image.pixels, (20_000, 20_000), bounded=False)
    with pytest.raises(DataError, match=r"too large.*write a pyramid") as caught:
        find_tissue(slide, FINE)
    assert "\n" not in str(caught.value)


def test_the_level_is_the_one_64_times_smaller(image: SlideImage) -> None:
    big = image.pixels.repeat(8, axis=0).repeat(8, axis=1)
    slide = CanvasSlide(big, (8192, 8192), downsamples=(1, 4, 16, 32))
    found = find_tissue(slide, replace(FINE, a_t=1, a_h=1, mthresh=3, close=2))
    assert found.level == 3
    exact = image.tissue.repeat(8, axis=0).repeat(8, axis=1)
    assert overlap(filled(found, exact.shape), exact) > 0.9
    assert find_tissue(slide, replace(FINE, seg_level=2)).level == 2
    one_more = CanvasSlide(big, (8192, 8192), downsamples=(1, 4, 16, 32, 128))
    assert find_tissue(one_more, FINE).level == 3


def test_a_level_that_is_not_there_names_the_key(image: SlideImage) -> None:
    with pytest.raises(ConfigError, match=r"data\.tissue\.seg_level=4.*levels 0 to 0"):
        find_tissue(CanvasSlide(image.pixels, (1024, 1024)), replace(FINE, seg_level=4))


def test_areas_count_in_squares_of_512_level_0_pixels() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[10:75, 10:75] = 255  # 64 x 64 pixels along its outline
    mask[20:31, 20:31] = 0
    mask[40:71, 40:71] = 0
    scale = (8.0, 8.0)  # 64 x 64 of these pixels are one square
    holes = 12**2 + 32**2  # a hole's outline runs through the pixels around it
    net = (64**2 - holes) / 64**2
    for a_t, kept in ((net - 0.01, 1), (net + 0.01, 0)):
        found, _ = outlines(mask, scale, replace(FINE, a_t=a_t))
        assert len(found) == kept
    for a_h, count in ((0.02, 2), (0.1, 1), (0.3, 0)):
        _, inner = outlines(mask, scale, replace(FINE, a_t=0.1, a_h=a_h))
        assert len(inner[0]) == count
    _, inner = outlines(mask, scale, replace(FINE, a_t=0.1, a_h=0.0, max_n_holes=1))
    assert [area_of(h) for h in inner[0]] == pytest.approx([32**2], rel=0.01)


def test_closing_joins_what_a_thin_gap_parts() -> None:
    image = np.full((100, 100, 3), 255, np.uint8)
    image[20:80, 20:80] = (220, 100, 160)
    image[20:80, 49:51] = 255
    apart = tissue_mask(image, replace(FINE, close=0, mthresh=1))
    joined = tissue_mask(image, replace(FINE, close=4, mthresh=1))
    assert cv2.connectedComponents(apart)[0] - 1 == 2
    assert cv2.connectedComponents(joined)[0] - 1 == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("acmil", (8, 7, 4, False, 100, 16, 8)),
        ("bwh_biopsy", (15, 11, 2, False, 1, 1, 2)),
        ("bwh_resection", (15, 11, 4, False, 100, 16, 8)),
        ("tcga", (8, 7, 4, False, 16, 4, 8)),
    ],
)
def test_presets_are_those_of_clam_and_acmil(name: str, values: tuple[float, ...]) -> None:
    own = PRESETS[name]
    assert (own.sthresh, own.mthresh, own.close) == values[:3]
    assert (own.use_otsu, own.a_t, own.a_h, own.max_n_holes) == values[3:]
