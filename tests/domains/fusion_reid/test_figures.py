"""Every picture is drawn, says what it shows, and takes what a model may lack."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.domains.reid.fusion_reid import figures


def values(*maps: str, size: tuple[int, int] = (64, 32)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {"preview": rng.integers(0, 255, (*size, 3), dtype=np.uint8)}
    return found | {name: rng.random((8, 4)).astype(np.float16) for name in maps}


def test_cmc_names_every_line_with_its_rank_1() -> None:
    curves = {"model": np.linspace(0.9, 1.0, 20), "colour histogram": np.linspace(0.4, 0.8, 20)}
    (axes,) = figures.cmc(curves, 104).axes
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert texts == ["model, rank-1 0.900", "colour histogram, rank-1 0.400"]
    assert "104 queries" in axes.get_title()
    assert axes.get_ylim()[0] == pytest.approx(0.3)


def test_cmc_of_a_gallery_of_one() -> None:
    (axes,) = figures.cmc({"model": np.ones(1)}, 1).axes
    assert axes.get_ylim()[1] > 1


def test_distances_say_how_much_the_two_overlap() -> None:
    edges = np.linspace(0, 2, 5)
    (axes,) = figures.distances(np.array([3, 1, 0, 0]), np.array([0, 2, 6, 0]), edges).axes
    assert "25.0%" in axes.get_title()
    assert axes.get_xlim() == (0.0, 1.5)
    texts = [t.get_text() for t in axes.get_legend().get_texts()]
    assert "4 pairs, mean 0.38" in texts[0]
    assert "8 pairs, mean 1.12" in texts[1]


def test_distances_without_a_pair_are_drawn() -> None:
    nothing = np.zeros(4, dtype=int)
    (axes,) = figures.distances(nothing, np.array([0, 1, 0, 0]), np.linspace(0, 2, 5)).axes
    assert "0 pairs" in axes.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("maps", "panels"), [(("cnn_map", "transformer_map"), 3), (("transformer_map",), 2)]
)
def test_attention_shows_the_branches_there_are(maps: tuple[str, ...], panels: int) -> None:
    rows = [(f"query {i}", values(*maps)) for i in range(5)]
    figure = figures.attention(rows)
    images = [len(axes.images) for axes in figure.axes]
    assert images.count(1) == 5
    assert images.count(2) == 5 * (panels - 1)
    assert "CNN" in figure.get_supxlabel() or "cnn_map" not in maps


def test_attention_of_a_flat_map_is_drawn() -> None:
    flat = values() | {"cnn_map": np.zeros((8, 4), np.float16)}
    assert figures.attention([("nothing", flat)]).axes


def test_attention_is_written_as_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.png"
    found = figures.write_attention(path, values("cnn_map", "transformer_map"), "a $1 name")
    with Image.open(found) as image:
        assert image.width > image.height / 2
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
