"""Attention on the slide: colours, overlaps, edges, legend."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure

from zoo.domains.medical.wsi_mil.annotations import read_annotation
from zoo.domains.medical.wsi_mil.heatmap import blended, heatmap, painted, scaled

from .test_annotations import collection, feature, square

RNG = np.random.default_rng(0)


def texts(figure: Figure) -> str:
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


# -- values -------------------------------------------------------------------------------------


def test_percentiles_are_ranks() -> None:
    weights = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    assert scaled(weights).tolist() == [[0.25, 1.0, 0.5, 0.75], [0.625] * 4]
    assert scaled(np.array([1.0])).tolist() == [1.0]
    rows = RNG.dirichlet(np.ones(100), 3)
    np.testing.assert_array_equal(np.sort(scaled(rows), axis=1), [np.arange(1, 101) / 100] * 3)


def test_official_colours_are_attention_against_the_average() -> None:
    weights = np.array([0.05, 0.1, 0.25, 0.6])
    np.testing.assert_allclose(scaled(weights, "official"), [0.2, 0.4, 1.0, 1.0])
    np.testing.assert_allclose(scaled(weights, "official", 0.5), [0.1, 0.2, 0.5, 1.0])


# -- painting -----------------------------------------------------------------------------------


def test_patches_take_their_place_and_overlaps_are_averaged() -> None:
    corners = np.array([[0, 0], [20, 0], [10, 0], [40, 40]])
    got = painted((6, 8), 10, corners, 20, np.array([1.0, 0.0, 0.5, 0.25]))
    expected = np.full((6, 8), np.nan)
    # In units of thumbnail pixels: patches of 2 x 2 at x = 0, 2 and, over both, at 1.
    expected[0:2, 0:4] = [1.0, 0.75, 0.25, 0.0]
    expected[4:6, 4:6] = 0.25
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_painting_agrees_with_patch_by_patch() -> None:
    corners = RNG.integers(-150, 1050, (300, 2))
    values = RNG.random(300)
    factor, side = 7.3, 61.0
    sums, counts = np.zeros((140, 120)), np.zeros((140, 120))
    for (x, y), value in zip(corners, values, strict=True):
        x0, y0 = (max(0, round(v / factor)) for v in (x, y))
        x1, y1 = (max(0, round((v + side) / factor)) for v in (x, y))
        sums[y0:y1, x0:x1] += value
        counts[y0:y1, x0:x1] += 1
    expected = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    got = painted((140, 120), factor, corners, side, values)
    assert 0.3 < np.isnan(got).mean() < 0.95
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_neighbours_leave_no_gap_at_any_factor() -> None:
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) * 224
    for factor in (3.7, 31.9, 100.0):
        size = int(20 * 224 / factor)
        got = painted((size, size), factor, grid, 224, np.ones(len(grid)))
        assert (got == 1).all(), factor


def test_patches_smaller_than_a_pixel_are_still_seen() -> None:
    got = painted((10, 10), 1000, np.array([[2100, 3100], [2150, 3150]]), 50, np.array([1.0, 0.0]))
    assert np.argwhere(~np.isnan(got)).tolist() == [[3, 2]]
    assert got[3, 2] == 0.5


def test_patches_outside_of_the_slide_leave_no_trace() -> None:
    corners = np.array([[-500, 0], [0, -500], [5000, 0], [0, 5000], [-50, -50], [950, 950]])
    got = painted((10, 10), 100, corners, 100, np.ones(6))
    # Only the one that covers a quarter of the first pixel is seen.
    assert np.argwhere(~np.isnan(got)).tolist() == [[0, 0]]


def test_blending_is_exact() -> None:
    thumbnail = np.full((2, 2, 3), 200, np.uint8)
    values = np.array([[0.0, 1.0], [np.nan, 0.5]])
    got = blended(thumbnail, values, "jet", 0.4)
    assert got[1, 0].tolist() == [200, 200, 200]
    for place in ((0, 0), (0, 1), (1, 1)):
        colour = np.array(colormaps["jet"](values[place])[:3]) * 255
        np.testing.assert_array_equal(got[place], np.rint(200 * 0.6 + colour * 0.4))
    assert thumbnail.min() == 200


# -- the picture --------------------------------------------------------------------------------


def drawn(
    tmp_path: Path,
    branches: int = 3,
    title: str = "slide abc, predicted tumour 0.9",
    **options: Any,
) -> Figure:
    path = tmp_path / "s.geojson"
    rings = [square(10, 10, 60), square(30, 30, 10)]
    path.write_text(collection(feature(rings), feature([square(5, 5, 9)], "hole")))
    corners = np.stack(np.meshgrid(np.arange(4), np.arange(6)), -1).reshape(-1, 2) * 20
    weights = RNG.dirichlet(np.ones(24), branches)
    maps = {"mean": weights.mean(0)} | {f"branch {k}": w for k, w in enumerate(weights)}
    return heatmap(
        np.full((60, 40, 3), 240, np.uint8),
        2.0,
        corners,
        20,
        maps,
        title=title,
        annotation=read_annotation(path),
        **options,
    )


def test_a_panel_for_the_slide_the_mean_and_every_branch(tmp_path: Path) -> None:
    figure = drawn(tmp_path)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["slide", "mean", "branch 0", "branch 1", "branch 2"]
    # Outer ring solid, its inner ring and the hole dashed, on every panel.
    for axes in figure.axes[:5]:
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "--"]
        np.testing.assert_allclose(axes.lines[0].get_xdata()[:2], [4.5, 34.5])
    assert figure.axes[0].images[0].get_array().min() == 240
    assert figure.axes[1].images[0].get_array().min() < 240
    told = texts(figure)
    assert "Not for diagnosis" in told
    assert "dashed: cut out" in told
    assert "predicted tumour 0.9" in told


@pytest.mark.parametrize(
    ("scaling", "zoom", "told"),
    [
        ("percentile", 1.0, "rank of attention within the slide"),
        ("official", 1.0, "1: 1 x average attention or more"),
        ("official", 0.25, "1: 4 x average attention or more"),
    ],
)
def test_the_bar_says_what_colours_mean(
    tmp_path: Path, scaling: str, zoom: float, told: str
) -> None:
    assert told in texts(drawn(tmp_path, scaling=scaling, zoom=zoom))


@pytest.mark.parametrize("branches", [1, 2, 4, 5, 8])
def test_panels_fill_their_rows(tmp_path: Path, branches: int) -> None:
    figure = drawn(tmp_path, branches)
    panels = branches + 2
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    empty = grid.nrows * grid.ncols - panels
    assert 0 <= empty < grid.nrows


def test_a_class_name_is_no_formula(tmp_path: Path) -> None:
    assert "predicted $x^{" in texts(drawn(tmp_path, 1, title="predicted $x^{ 0.9 $"))
