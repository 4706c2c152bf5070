"""The sheet of the most attended patches."""

import io
from pathlib import Path

import numpy as np
import pytest

from zoo.domains.medical.wsi_mil.contact import contact_sheet, read_patch, top_patches
from zoo.domains.medical.wsi_mil.slides import Slide, open_slide

pytest.importorskip("openslide", reason="reads slides; pip install '.[pathology]'")
image_of = pytest.importorskip("PIL.Image")

# Every square of 64 pixels has its own colour: row in red, column in green.
SIDE = 64


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    pixels = np.zeros((6 * SIDE, 8 * SIDE, 3), np.uint8)
    pixels[..., 0] = (np.arange(6 * SIDE) // SIDE * 40)[:, None]
    pixels[..., 1] = (np.arange(8 * SIDE) // SIDE * 30)[None]
    image_of.fromarray(pixels).save(tmp_path / "s.png")
    return open_slide(tmp_path / "s.png")


def grid() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(8), np.arange(6)), -1).reshape(-1, 2) * SIDE


def test_the_best_patches_do_not_overlap() -> None:
    corners = np.array([[0, 0], [32, 0], [64, 0], [0, 64], [300, 300], [310, 310]])
    scores = np.array([0.3, 0.5, 0.1, 0.2, 0.05, 0.04])
    # 1 covers half of 0 and of 2; 4 covers most of 5.
    assert top_patches(corners, 64, scores, 10).tolist() == [1, 3, 4]
    assert top_patches(corners, 64, scores, 2).tolist() == [1, 3]
    assert top_patches(corners, 32, scores, 10).tolist() == [1, 0, 3, 2, 4]
    assert top_patches(corners[:1], 64, scores[:1], 4).tolist() == [0]


def test_a_patch_is_read_where_it_lies(slide: Slide) -> None:
    patch = read_patch(slide, np.array([3 * SIDE, 2 * SIDE]), SIDE, 64)
    assert patch.shape == (64, 64, 3)
    assert (patch == [80, 90, 0]).all()
    small = read_patch(slide, np.array([3 * SIDE, 2 * SIDE]), SIDE, 16)
    assert small.shape == (16, 16, 3)
    assert (small[4:12, 4:12] == [80, 90, 0]).all()
    # Past the edge there is background.
    edge = read_patch(slide, np.array([7 * SIDE + 32, 0]), SIDE, 64)
    assert (edge[:, 40:] == 255).all()


def test_the_sheet_shows_patches_in_order_with_score_and_place(slide: Slide) -> None:
    attention = np.full(48, 0.5 / 46)
    attention[[10, 33]] = [0.4, 0.1]
    attention /= attention.sum()
    figure = contact_sheet(slide, grid(), SIDE, attention, count=7, pixels=32, title="slide abc")
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 7
    first, second = (axes.get_title() for axes in shown[:2])
    assert first == "1.  19.2 x average\nx 128, y 64"
    assert second == "2.  4.8 x average\nx 64, y 256"
    picture = shown[0].images[0].get_array()
    assert (np.asarray(picture)[8:24, 8:24] == [40, 60, 0]).all()
    told = "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))
    assert "slide abc" in told
    assert "Not for diagnosis" in told


@pytest.mark.parametrize(("patches", "count", "shown"), [(48, 1, 1), (48, 2, 2), (5, 100, 5)])
def test_sheets_of_any_size(slide: Slide, patches: int, count: int, shown: int) -> None:
    attention = np.full(patches, 1 / patches)
    figure = contact_sheet(slide, grid()[:patches], SIDE, attention, count=count, pixels=16)
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    assert sum(bool(axes.images) for axes in figure.axes) == shown
