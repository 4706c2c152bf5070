"""Previews, pictures and tables of a split, and what prediction writes besides masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.domains.her_seg.fakes import Bright, FakeStack, disc, painted, settings
from zoo.domains.medical.her_seg.figures import all_figures, chosen, errors, examples, palette
from zoo.domains.medical.her_seg.inference import Segmenter, Way
from zoo.domains.medical.her_seg.overlays import outlined
from zoo.domains.medical.her_seg.previews import Panel, panels_of, spread
from zoo.domains.medical.her_seg.prompting import PromptSource
from zoo.domains.medical.her_seg.records import Looking, Unit
from zoo.domains.medical.her_seg.tables import all_tables, prediction_rows
from zoo.errors import ConfigError, DataError
from zoo.evaluation import load_records, save_records
from zoo.privacy import alias
from zoo.task import Record

THING = ["thing"]


def record_of(stack: FakeStack, *words: str, classes: int = 1, **more: Any) -> Record:
    config = settings("model.image_size=64", *words)
    names = THING if classes == 1 else [f"c{i + 1}" for i in range(classes)]
    looking = Looking(names, config, PromptSource(config.predict), **more)
    model = Bright(1 if classes == 1 else classes + 1)
    with torch.no_grad():
        return Unit(stack, Segmenter(model, Way.of(config)), looking).record()


def image(name: str, radius: float = 20, truth: float | None = 20, **more: Any) -> FakeStack:
    shape = (64, 96)
    mask = disc(shape, (30, 48), radius)
    known = [] if truth is None else [disc(shape, (30, 48), truth)]
    return FakeStack(name, [painted(mask, seed=1)], known, group=name, **more)


def volume(name: str = "v") -> FakeStack:
    z, y, x = np.mgrid[:10, :40, :60]
    mask = (((z - 6) / 3) ** 2 + ((y - 12) / 8) ** 2 + ((x - 40) / 10) ** 2 <= 1).astype(np.uint8)
    return FakeStack(
        name, [painted(m) for m in mask], list(mask), kind="volume", spacing=(3.0, 1.0, 0.5)
    )


def clip(name: str = "c", frames: int = 8, every: int = 2) -> FakeStack:
    masks = [disc((48, 64), (24, 12 + 5 * i), 8) for i in range(frames)]
    truths = [m if i % every == 0 else None for i, m in enumerate(masks)]
    return FakeStack(name, [painted(m) for m in masks], truths, kind="clip")


# -- previews -----------------------------------------------------------------------------------


def test_a_large_image_keeps_a_small_picture() -> None:
    mask = disc((400, 800), (200, 500), 150)
    (panel,) = panels_of(record_of(FakeStack("a", [painted(mask)], [mask])).values)
    assert panel.picture.shape == (128, 256, 3)
    assert panel.picture.dtype == panel.labels.dtype == np.uint8
    assert panel.truth is not None
    assert panel.truth.shape == panel.labels.shape == (128, 256)
    assert panel.truth.mean() == pytest.approx(mask.mean(), rel=0.02)


def test_previews_are_kept_where_they_are_wanted() -> None:
    record = record_of(image("a"), pictured=False, distances=False)
    assert panels_of(record.values) == []
    assert "hd95" not in record.values
    assert "dice" in record.values
    (panel,) = panels_of(record_of(image("a", truth=None)).values)
    assert panel.truth is None


def test_three_planes_of_a_volume_go_through_its_middle_of_things() -> None:
    axial, coronal, sagittal = panels_of(record_of(volume()).values)
    assert [p.title for p in (axial, coronal, sagittal)] == ["axial 6", "coronal 12", "sagittal 40"]
    assert axial.labels.shape == (40, 60)
    assert coronal.labels.shape == (10, 60)
    assert sagittal.labels.shape == (10, 40)
    assert [p.aspect for p in (axial, coronal, sagittal)] == [2.0, 6.0, 3.0]
    # The slice with the larger number is drawn above.
    assert coronal.labels[:5].sum() > coronal.labels[5:].sum()
    for panel in (axial, coronal, sagittal):
        assert panel.truth is not None
        assert panel.truth.any()


def test_planes_are_named_after_the_slicing() -> None:
    for axis, names in (
        ("coronal", ["coronal", "axial", "sagittal"]),
        ("sagittal", ["sagittal", "axial", "coronal"]),
    ):
        panels = panels_of(record_of(volume(), f"data.axis={axis}").values)
        assert [p.title.split()[0] for p in panels] == names


def test_neighbouring_slices_as_channels_are_not_shown_as_colours() -> None:
    stack = volume()
    stack.pictures = [p * np.array([0, 1, 0], np.float32) for p in stack.pictures]
    plain, shown = (
        panels_of(record_of(stack, f"data.neighbours={word}").values)[0]
        for word in ("false", "true")
    )
    assert plain.picture[..., 0].max() == 0
    assert np.array_equal(shown.picture[..., 0], plain.picture[..., 1])


def test_an_empty_volume_shows_its_middle() -> None:
    nothing = np.zeros((8, 32, 32), np.uint8)
    stack = FakeStack("v", [painted(m) for m in nothing], list(nothing), kind="volume")
    panels = panels_of(record_of(stack).values)
    assert [p.title for p in panels] == ["axial 4", "coronal 16", "sagittal 16"]
    assert [p.aspect for p in panels] == [1.0, 1.0, 1.0]


def test_frames_with_a_truth_are_shown() -> None:
    panels = panels_of(record_of(clip(frames=20, every=3)).values)
    assert [p.title for p in panels] == [f"frame {i}" for i in (0, 6, 9, 12, 18)]
    assert all(p.truth is not None for p in panels)
    bare = panels_of(record_of(clip(every=99)).values)
    assert [p.title for p in bare] == [f"frame {i}" for i in (0, 2, 4, 5, 7)]


def test_places_are_spread() -> None:
    assert spread(5, 10) == {0, 1, 2, 3, 4}
    assert spread(10, 5) == {0, 2, 4, 6, 8}
    assert len(spread(1001, 150)) <= 150


def test_records_with_previews_are_stored_and_read_back(tmp_path: Path) -> None:
    records = [record_of(image("a")), record_of(volume("b")), record_of(clip("c"))]
    save_records(tmp_path / "r.npz", records)
    for before, after in zip(records, load_records(tmp_path / "r.npz"), strict=True):
        assert before.values.keys() == after.values.keys()
        for a, b in zip(panels_of(before.values), panels_of(after.values), strict=True):
            assert (a.title, a.aspect) == (b.title, b.aspect)
            assert np.array_equal(a.picture, b.picture)


# -- pictures -----------------------------------------------------------------------------------


def test_worst_middle_and_best_are_chosen() -> None:
    records = [
        record_of(image(n, radius=r)) for n, r in zip("abcde", (20, 5, 14, 18, 9), strict=True)
    ]
    assert [(w, r.id) for w, r in chosen(records)] == [
        ("worst", "b"), ("middle", "c"), ("best", "a"),
    ]  # fmt: skip
    assert [w for w, _ in chosen(records[:2])] == ["worst", "best"]
    assert [w for w, _ in chosen(records[:1])] == [""]
    bare = [record_of(image(n, truth=None)) for n in "fg"]
    assert [(w, r.id) for w, r in chosen(bare)] == [("", "f"), ("", "g")]


def titles(figure: Any) -> list[str]:
    return [a.get_title(loc="left") for a in figure.axes if a.get_title(loc="left")]


def test_examples_of_every_kind_are_drawn() -> None:
    kinds = {
        "image": ([image(n, radius=r) for n, r in zip("abc", (8, 14, 20), strict=True)], 9),
        "volume": ([volume("a"), volume("b")], 12),
        "clip": ([clip("a")], 8),
    }
    for stacks, cells in kinds.values():
        records = [record_of(s) for s in stacks]
        figure = examples(records, THING)
        figure.draw_without_rendering()
        assert len(titles(figure)) == cells
        # Names of patients stay out of reports.
        assert alias("a") in "".join(titles(figure))
        assert "Dice" in titles(figure)[0]
    legend = figure.legends[0]
    told = [t.get_text() for t in legend.get_texts()]
    assert told == ["prediction", "truth", "right", "false positive", "missed"]
    assert legend.get_title().get_text() == "Research software. Not for diagnosis."


def test_without_a_truth_there_are_no_errors_to_see() -> None:
    figure = examples([record_of(image("a", truth=None))], THING)
    assert len(titles(figure)) == 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["prediction"]


def test_colours_of_errors() -> None:
    truth = np.array([[0, 1, 1, 0, 2]], np.uint8)
    labels = np.array([[0, 1, 0, 1, 1]], np.uint8)
    shown = errors(Panel("", np.full((1, 5, 3), 128, np.uint8), labels, truth))
    plain, right, missed, invented, wrong = shown[0]
    assert np.ptp(plain) == 0
    assert right.argmax() == 1
    assert missed.argmax() == 2
    assert invented.argmax() == 0
    assert len({tuple(c) for c in shown[0]}) == 5
    assert wrong[2] > wrong[1]


def test_figures_of_several_classes_and_of_nothing() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:20], mask[30:50, 10:30] = 2, 1
    record = record_of(FakeStack("a", [painted(mask, 2)], [mask]), classes=2)
    made = dict(all_figures([record], ["cup", "$disc_1"]))
    assert list(made) == ["examples", "scores"]
    for figure in made.values():
        figure.draw_without_rendering()
    told = [t.get_text() for t in made["examples"].legends[0].get_texts()]
    assert told == ["cup", r"\$disc_1", "truth", "right", "false positive", "missed", "wrong class"]
    assert dict(all_figures([Record("a", "a", {})], THING)) == {}


# -- tables -------------------------------------------------------------------------------------


def test_tables_tell_how_it_was_scored() -> None:
    records = [record_of(volume()), record_of(image("a"))]
    found = dict(all_tables(records[:1], THING, settings("model.image_size=64")))
    (row,) = found["How it was scored"]
    assert row["volumes"] == 1
    assert row["hd95, asd in"] == "mm"
    assert row["pictures were"].startswith("stretched to 64 x 64")
    assert row["scored at"] == "their own size"
    assert row["prompts"] == "none"
    (row,) = dict(
        all_tables(records, THING, settings("model.image_size=96", "predict.native=false"))
    )["How it was scored"]
    assert row["scored at"] == "96 x 96"
    assert row["units"] == 2
    assert row["hd95, asd in"] == "mm where known, else pixels"


def test_the_smallest_dice_stands_first_without_the_patient_s_name() -> None:
    records = [record_of(image(n, radius=r)) for n, r in zip("abc", (20, 5, 14), strict=True)]
    rows = dict(all_tables(records, THING, settings()))["Smallest Dice first"]
    assert [r["id"] for r in rows] == [alias("b"), alias("c"), alias("a")]
    assert rows[2]["dice"] > 0.99


def test_empty_masks_are_listed() -> None:
    nothing = np.zeros((64, 96), np.uint8)
    records = [
        record_of(image("a", radius=0.1, truth=0.1)),
        record_of(FakeStack("b", [painted(nothing)], [disc((64, 96), (30, 30), 9)])),
        record_of(FakeStack("c", [painted(nothing)], [nothing])),
    ]
    (title,) = [t for t, _ in all_tables(records, THING, settings()) if "Empty" in t]
    rows = dict(all_tables(records, THING, settings()))[title]
    cases = {r["case"].split(":")[0]: r["masks"] for r in rows}
    assert cases == {"neither has any": 1, "missed whole": 1}


def test_what_smoothing_did_is_a_table() -> None:
    record = record_of(clip(), "video.momentum=0.5")
    found = dict(all_tables([record], THING, settings("video.momentum=0.5")))
    assert found["How it was scored"][0]["frames"] == "smoothed, momentum 0.5"
    (row,) = found["Smoothing over frames"]
    assert row["clip"] == alias("c")
    assert row["smoothed"] > row["IoU of frames in a row, each for itself"]
    # These blobs move on: here smoothing costs accuracy, and the table says so.
    assert row["Dice, smoothed"] < row["Dice, each for itself"]


def test_rows_of_a_prediction() -> None:
    (row,) = prediction_rows([record_of(image("p/a", truth=None))], THING)
    assert (row["id"], row["kind"], row["height"], row["width"]) == ("p/a", "image", 64, 96)
    assert row["share_thing"] == pytest.approx(disc((64, 96), (30, 48), 20).mean(), rel=0.1)
    assert "dice" not in row
    (row,) = prediction_rows([record_of(image("a"))], THING)
    assert row["dice"] > 0.95


# -- what prediction writes ---------------------------------------------------------------------


def files_of(record: Record, folder: Path) -> list[str]:
    assert record.write is not None
    return sorted(str(p.relative_to(folder)) for p in record.write(folder))


def test_outlines_over_the_image_at_its_own_size(tmp_path: Path) -> None:
    names = files_of(record_of(image("a", truth=None)), tmp_path)
    assert names == ["a-overlay.png", "a.npy"]
    pixels = np.asarray(Image.open(tmp_path / "a-overlay.png"))
    assert pixels.shape == (64, 96, 3)
    drawn = (pixels == palette()[0]).all(axis=2)
    assert 80 < drawn.sum() < 200
    assert files_of(record_of(image("a"), "predict.overlay=false"), tmp_path / "b") == ["a.npy"]


def test_lines_grow_with_the_picture_and_the_truth_is_white() -> None:
    small, large = (disc((n, n), (n / 2, n / 2), n / 4) for n in (200, 2400))
    for mask, most in ((small, 2), (large, 9)):
        shown = outlined(painted(mask) * 0.5, mask, None)
        row = (shown[mask.shape[0] // 2] == palette()[0]).all(axis=1)
        assert 2 <= row.sum() <= 2 * most
    both = outlined(painted(small) * 0.5, small * 0, small)
    assert (both == 255).all(axis=2).sum() > 100


def test_numbered_objects_are_written(tmp_path: Path) -> None:
    mask = disc((64, 96), (20, 20), 9) | disc((64, 96), (40, 70), 12)
    stack = FakeStack("a", [painted(mask)], [])
    names = files_of(record_of(stack, "predict.instances=true"), tmp_path)
    assert "a-objects.png" in names
    objects = np.asarray(Image.open(tmp_path / "a-objects.png"))
    assert objects.dtype == np.uint16
    assert np.unique(objects).tolist() == [0, 1, 2]
    names = files_of(record_of(clip(), "predict.instances=true"), tmp_path / "clip")
    assert [n for n in names if "objects" in n] == [f"c-objects/{i:05d}.png" for i in range(8)]
    with pytest.raises(ConfigError, match="not in volumes"):
        files_of(record_of(volume(), "predict.instances=true"), tmp_path)


def test_planes_and_frames_are_written_as_one_picture(tmp_path: Path) -> None:
    for stack in (volume(), clip()):
        assert f"{stack.id}-overlay.png" in files_of(record_of(stack), tmp_path)
        height, width, _ = np.asarray(Image.open(tmp_path / f"{stack.id}-overlay.png")).shape
        assert width > height > 100


def test_folders_in_names_stay_below_the_output(tmp_path: Path) -> None:
    record = record_of(image("a", truth=None))
    stack = image("../a", truth=None)
    bad = record_of(stack)
    assert bad.write is not None
    with pytest.raises((DataError, OSError)):
        bad.write(tmp_path / "deep")
    assert not (tmp_path / "a-overlay.png").exists()
    assert record.id == "a"
