"""Prediction from a slide file: features as in training, and everything that is drawn."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from tests.running import good, only_run, run_zoo
from zoo.config import resolve
from zoo.domains.medical.wsi_mil import data, marks, sample_slides
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.prediction import slides_at, slides_named
from zoo.domains.medical.wsi_mil.task import WsiMil
from zoo.errors import ConfigError, DataError, WeightsError
from zoo.privacy import alias
from zoo.runs import Run

from .test_annotations import collection, feature, square

pytest.importorskip("openslide", reason="reads slides; pip install '.[pathology]'")
pytest.importorskip("cv2", reason="finds tissue; pip install '.[pathology]'")
pytest.importorskip("tifffile", reason="writes slides; pip install '.[pathology]'")
image_of = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)
SIDE = 768
MPP = 0.5
# Tiles of 64 pixels at 20x, which is level 0; nothing but this process reads.
TILES = ("data.encoder=stats", "data.tiles.patch_size=64", "data.tiles.workers=0")
QUIET = ("tracking.enabled=false", "data.tiles.workers=0", "predict.heatmap_size=150")


def configured(*words: str) -> Config:
    config = resolve(["task=wsi_mil", "preset=sample", "data.tiles.workers=0", *words]).config
    assert isinstance(config, Config)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small slides with outlines of tumours, their features, and a model trained on them."""
    root = tmp_path_factory.mktemp("slides")
    folder = root / "slides"
    folder.mkdir()
    rows = []
    for index in range(8):
        drawn = sample_slides.draw(np.random.default_rng(index), index % 2 == 1, side=SIDE)
        sample_slides.write_pyramid(folder / f"case_{index}.tif", drawn.pixels, mpp=MPP)
        if drawn.tumour is not None:
            sample_slides.write_outline(folder / f"case_{index}.xml", [drawn.tumour])
        label = sample_slides.CLASSES[index % 2]
        rows.append({"slide_id": f"case_{index}", "case_id": f"p{index // 2}", "label": label})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    WsiMil(configured(f"data.slides={folder}", *TILES, "data.tiles.outlines=false")).prepare(
        root / "features", 0, 1
    )
    good(
        "train",
        "task=wsi_mil",
        "preset=sample",
        f"data.root={root / 'features'}",
        f"data.annotations={folder}",
        "data.val_fraction=0",
        "data.standardise=true",
        "trainer.max_steps=8",
        f"out={root / 'runs'}",
        *QUIET,
    )
    return root


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return only_run(place / "runs")


@pytest.fixture(scope="module")
def facts(run: Run) -> dict[str, Any]:
    newest = max((run.path / "checkpoints").glob("step-*/meta.json"))
    found: dict[str, Any] = json.loads(newest.read_text())["facts"]
    return found


def predict(run: Run, out: Path, source: Path | Sequence[Path], *words: str) -> pd.DataFrame:
    given = f"[{','.join(map(str, source))}]" if not isinstance(source, Path) else str(source)
    good("predict", f"weights={run.path}", f"input={given}", f"predict.out={out}", *QUIET, *words)
    return pd.read_csv(out / "predictions.csv")


def failing(run: Run, out: Path, source: Path, *words: str) -> str:
    told = run_zoo(
        "predict", f"weights={run.path}", f"input={source}", f"predict.out={out}", *QUIET, *words
    )
    assert told.code == 2, told.out + told.err
    lines = [line for line in told.err.strip().splitlines() if line.startswith("error")]
    assert len(lines) == 1, told.err
    return told.err.strip()


# -- from file to heat map ----------------------------------------------------------------------


def test_a_slide_is_treated_as_the_training_slides_were(
    place: Path, run: Run, tmp_path: Path
) -> None:
    """The features made at prediction are those that preparation made, and so is the result."""
    slide = place / "slides" / "case_3.tif"
    one = predict(run, tmp_path / "a", slide, f"predict.features={tmp_path / 'kept'}")
    stored = place / "features" / "features_stats" / "case_3.h5"
    two = predict(run, tmp_path / "b", stored)
    pd.testing.assert_frame_equal(one.drop(columns="label"), two.drop(columns="label"), rtol=1e-4)
    with h5py.File(tmp_path / "kept" / "case_3.h5") as made, h5py.File(stored) as prepared:
        np.testing.assert_array_equal(made["coords"][()], prepared["coords"][()])
        # Sums differ in the last place with the alignment of memory.
        np.testing.assert_allclose(
            made["features"][()], prepared["features"][()], rtol=1e-5, atol=1e-7
        )
        assert made["coords"].attrs["patch_size_level0"] == 64
    assert one["id"].tolist() == ["case_3"]
    assert one["predicted"][0] in sample_slides.CLASSES
    assert one["p_normal_tissue"][0] + one["p_tumor_tissue"][0] == pytest.approx(1)


def test_what_is_written_of_a_slide(place: Path, run: Run, tmp_path: Path) -> None:
    slide = place / "slides" / "case_3.tif"
    predict(
        run,
        tmp_path,
        slide,
        f"predict.annotations={place / 'slides'}",
        "predict.heatmap_size=400",
    )
    dense = tmp_path / "dense"
    endings = (".csv", ".geojson", ".h5", "_heatmap.png", "_top.png")
    assert sorted(p.name for p in dense.iterdir()) == [f"case_3{e}" for e in endings]
    with h5py.File(dense / "case_3.h5") as file:
        coords, attention = file["coords"][()], file["attention"][()]
    features = json.loads((dense / "case_3.geojson").read_text())["features"]
    assert len(features) == len(coords)
    corners = [f["geometry"]["coordinates"][0][0] for f in features]
    np.testing.assert_array_equal(corners, coords)
    told = [f["properties"]["measurements"]["attention"] for f in features]
    np.testing.assert_allclose(told, attention, rtol=1e-5)
    best = int(np.argmax(attention))
    assert features[best]["properties"]["measurements"]["attention percentile"] == 100
    assert "top" in features[best]["properties"]["classification"]["name"]
    with image_of.open(dense / "case_3_heatmap.png") as picture:
        assert min(picture.size) > 600
    # Attention of the mean and of each of the five branches beside the plain slide.
    assert sum("branch" in k for k in features[0]["properties"]["measurements"]) == 5


def test_outlines_are_drawn_where_there_are_some(place: Path, run: Run, tmp_path: Path) -> None:
    slide = place / "slides" / "case_3.tif"
    few = ("predict.top_patches=0", "predict.geojson=none", "predict.heatmap_size=200")
    predict(run, tmp_path / "a", slide, *few)
    predict(run, tmp_path / "b", slide, *few, f"predict.annotations={place / 'slides'}")
    pictures = []
    for name in "ab":
        with image_of.open(tmp_path / name / "dense" / "case_3_heatmap.png") as picture:
            pictures.append(np.asarray(picture.convert("L")))
    assert pictures[0].shape == pictures[1].shape
    # Near-black pixels of the outline, on every panel.
    assert (pictures[1] < 40).sum() > (pictures[0] < 40).sum() + 500


def test_pictures_of_features_whose_slides_are_named(place: Path, run: Run, tmp_path: Path) -> None:
    folder = place / "features" / "features_stats"
    predict(run, tmp_path / "a", folder)
    assert {p.suffix for p in (tmp_path / "a" / "dense").iterdir()} == {".h5", ".csv"}
    only = ("predict.heatmap=none", "predict.top_patches=2", "predict.format=csv")
    predict(run, tmp_path / "b", folder, f"predict.slides={place / 'slides'}", *only)
    names = sorted(p.name for p in (tmp_path / "b" / "dense").iterdir())
    assert len(names) == 3 * 8
    assert names[:3] == ["case_0.csv", "case_0.geojson", "case_0_top.png"]


@pytest.mark.parametrize(
    ("words", "suffixes"),
    [
        (["predict.heatmap=none", "predict.top_patches=0", "predict.geojson=none"], []),
        (["predict.heatmap=none", "predict.top_patches=0"], [".geojson"]),
        (["predict.heatmap=official", "predict.top_patches=0", "predict.geojson=none"], [".png"]),
    ],
)
def test_outputs_can_be_left_out(
    place: Path, run: Run, tmp_path: Path, words: list[str], suffixes: list[str]
) -> None:
    slide = place / "slides" / "case_0.tif"
    predict(run, tmp_path, slide, "predict.format=csv", "predict.heatmap_size=100", *words)
    found = sorted(p.suffix for p in (tmp_path / "dense").iterdir())
    assert found == sorted([".csv", *suffixes])


def test_a_folder_of_slides_and_plain_images(place: Path, run: Run, tmp_path: Path) -> None:
    """A photograph without resolution is a slide as well, once the resolution is given."""
    folder = tmp_path / "in"
    folder.mkdir()
    drawn = sample_slides.draw(np.random.default_rng(50), True, side=SIDE)
    image_of.fromarray(drawn.pixels).save(folder / "photo.png")
    sample_slides.write_pyramid(folder / "scan.tif", drawn.pixels, mpp=MPP)
    rows = predict(run, tmp_path / "out", folder, f"data.mpp={MPP}", "predict.dense=false")
    assert rows["id"].tolist() == ["photo", "scan"]
    # One picture, two formats; only the pyramid's coarse level, where tissue is found, differs.
    np.testing.assert_allclose(rows["p_tumor_tissue"][0], rows["p_tumor_tissue"][1], atol=0.1)
    told = failing(run, tmp_path / "none", folder / "photo.png")
    assert "data.mpp" in told


def test_pictures_show_the_alias(
    place: Path, facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.domains.medical.wsi_mil import outputs

    titles: list[str] = []
    for name in ("heatmap", "contact_sheet"):
        whole = getattr(outputs, name)

        def watched(*args: Any, whole: Any = whole, **options: Any) -> Any:
            titles.append(options["title"])
            return whole(*args, **options)

        monkeypatch.setattr(outputs, name, watched)
    drawn = sample_slides.draw(np.random.default_rng(1), True, side=SIDE)
    sample_slides.write_pyramid(tmp_path / "JANE_DOE.tif", drawn.pixels, mpp=MPP)
    task = WsiMil(configured("predict.heatmap_size=100", "predict.top_patches=1"))
    split = task.inputs([tmp_path / "JANE_DOE.tif"], facts)
    batch = split.collate([split.item(0, RNG)])
    with torch.no_grad():
        (record,) = task.records(task.model(facts).eval(), batch)
    assert record.write is not None
    record.write(tmp_path / "out")
    assert len(titles) == 2
    for title in titles:
        assert "JANE" not in title
        assert alias("JANE_DOE") in title
        assert "predicted" in title


# -- annotations at prediction ------------------------------------------------------------------


def test_an_unreadable_annotation_is_one_line(place: Path, run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "case_3.xml"
    broken.write_text("<ASAP_Annotations><Annotations>")
    slide = place / "slides" / "case_3.tif"
    told = failing(run, tmp_path / "out", slide, f"predict.annotations={tmp_path}")
    assert str(broken) in told
    assert "cannot be read as XML" in told
    assert len(told.splitlines()) <= 3
    told = failing(run, tmp_path / "out", slide, f"predict.annotations={tmp_path / 'none'}")
    assert "no such folder of annotations" in told


def test_training_with_outlines_labels_patches(run: Run, place: Path) -> None:
    """The outlines given to the training made patch labels of the test slides."""
    assert "instance_auc" in {k.partition("/")[2] for row in run.metrics() for k in row["values"]}
    config = configured(f"data.root={place / 'features'}", f"data.annotations={place / 'slides'}")
    for split in data.open_splits(config).values():
        for i, name in enumerate(split.ids):
            instances = split.item(i, RNG)["instances"]
            assert (instances is None) == (int(name[-1]) % 2 == 0)
            if instances is not None:
                assert 0 < instances.float().mean() < 0.5


def test_qupath_counts_from_the_scanned_part_of_the_slide(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "case_1.geojson").write_text(collection(feature([square(0, 0, 64)])))
    slides = {"case_1": place / "slides" / "case_1.tif"}
    whole = marks.open_slide

    def cropped(path: Path) -> Any:
        slide = whole(path)
        slide.bounds = (200, 100, 300, 300)
        return slide

    monkeypatch.setattr(marks, "open_slide", cropped)
    found = marks.marking(configured(), tmp_path, slides)
    assert found is not None
    corners = np.array([[0, 0], [200, 100], [264, 100]])
    got = found.marks("case_1", corners, {"patch_size_level0": 64})
    assert got is not None
    assert got.labels.tolist() == [0, 1, 0]
    assert marks.outlines_of(got, configured()).box == (200.0, 100.0, 264.0, 164.0)
    blind = marks.marking(configured(), tmp_path)
    assert blind is not None
    got = blind.marks("case_1", corners, {"patch_size_level0": 64})
    assert got is not None
    assert got.labels.tolist() == [1, 0, 0]


# -- what cannot be predicted on ----------------------------------------------------------------


def without(facts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    extraction = {k: v for k, v in facts["extraction"].items() if k not in changes}
    return facts | {"extraction": extraction | {k: v for k, v in changes.items() if v is not None}}


@pytest.mark.parametrize(
    ("changes", "words", "error", "told"),
    [
        ({"encoder": None}, [], ConfigError, "predict.encoder=NAME"),
        ({"encoder": "synthetic-32"}, [], ConfigError, "'synthetic-32', which cannot be rebuilt"),
        ({"encoder": "resnet18", "encoder_sha256": "0" * 64}, [], WeightsError, "encoder_weights"),
        ({"patch_size": None}, [], ConfigError, "tile size"),
        ({"target_magnification": None}, [], ConfigError, "magnification"),
        ({}, ["data.encoder_weights=none.pt"], ConfigError, "no such file"),
        ({}, ["trainer.accelerator=cuda"], ConfigError, "no CUDA device"),
    ],
)
def test_what_the_training_features_do_not_tell(
    place: Path,
    facts: dict[str, Any],
    changes: dict[str, Any],
    words: list[str],
    error: type[Exception],
    told: str,
) -> None:
    if "cuda" in told.lower() and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    slide = place / "slides" / "case_0.tif"
    with pytest.raises(error, match=told) as failure:
        data.inputs([slide], without(facts, **changes), config=configured(*words))
    assert "\n" not in str(failure.value)


def test_an_encoder_of_another_width(place: Path, facts: dict[str, Any]) -> None:
    slide = place / "slides" / "case_0.tif"
    with pytest.raises(DataError, match="gives 42 features a tile, but the model was trained on 7"):
        data.inputs([slide], facts | {"width": 7}, config=configured())


def test_the_encoder_can_be_named(place: Path, facts: dict[str, Any]) -> None:
    slide = place / "slides" / "case_0.tif"
    named = data.inputs(
        [slide], without(facts, encoder=None), config=configured("predict.encoder=stats")
    )
    plain = data.inputs([slide], facts, config=configured())
    np.testing.assert_allclose(
        named.item(0, RNG)["features"], plain.item(0, RNG)["features"], rtol=1e-5, atol=1e-7
    )
    assert named.item(0, RNG)["slide"] == slide


def test_slides_that_give_nothing(place: Path, facts: dict[str, Any], tmp_path: Path) -> None:
    blank = tmp_path / "blank.tif"
    sample_slides.write_pyramid(blank, np.full((SIDE, SIDE, 3), 255, np.uint8), mpp=MPP)
    with pytest.raises(DataError, match=r"blank.tif: no tissue found"):
        data.inputs([blank], facts, config=configured())
    broken = tmp_path / "broken.tif"
    body = (place / "slides" / "case_0.tif").read_bytes()
    broken.write_bytes(body[: len(body) // 3])
    with pytest.raises(DataError, match=r"broken.tif"):
        data.inputs([broken], facts, config=configured())
    several = [blank, broken, place / "slides" / "case_0.tif"]
    skipping = configured("data.on_error=skip")
    split = data.inputs(several[::2], facts, config=skipping, skip=True)
    assert split.ids == ["case_0"]
    assert any("skipped" in note and "no tissue" in note for note in split.notes)
    with pytest.raises(DataError, match=r"blank.tif: no tissue found"):
        data.inputs([blank], facts, config=skipping, skip=True)


def test_a_slide_that_is_given_twice(place: Path, facts: dict[str, Any]) -> None:
    slide = place / "slides" / "case_0.tif"
    stored = place / "features" / "features_stats" / "case_0.h5"
    for both in ([slide, slide], [stored, slide]):
        with pytest.raises(DataError, match="slide 'case_0' is also in"):
            data.inputs(both, facts, config=configured())


def test_features_made_for_a_prediction_go_with_it(place: Path, facts: dict[str, Any]) -> None:
    split = data.inputs([place / "slides" / "case_0.tif"], facts, config=configured())
    folder = Path(split.folder.name)
    assert [p.name for p in folder.iterdir()] == ["case_0.h5"]
    split.folder = None
    with suppress(FileNotFoundError):
        assert not list(folder.iterdir())
    assert not folder.exists()


# -- finding slides -----------------------------------------------------------------------------


def test_slides_of_features_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.svs", "b.tiff", "b.jpg", "sub/deep/c.ndpi", "d.txt", ".a.svs"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = slides_named(["a", "b", "c", "d"], tmp_path)
    assert {k: v.name for k, v in found.items()} == {"a": "a.svs", "b": "b.tiff", "c": "c.ndpi"}
    assert slides_named(["a"], None) == {}
    assert slides_named(["a"], tmp_path / "sub" / "a.svs") == {"a": tmp_path / "sub" / "a.svs"}
    with pytest.raises(DataError, match="no such folder of slides"):
        slides_named(["a"], tmp_path / "none")


def test_what_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert slides_at(tmp_path) == {}
    assert slides_at(tmp_path / "notes.txt") == {}


def test_slides_that_do_not_fit_are_told(
    place: Path, facts: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "other.svs").write_bytes(b"")
    stored = place / "features" / "features_stats" / "case_0.h5"
    split = data.inputs([stored], facts, config=configured(f"predict.slides={tmp_path}"))
    assert any("no slide of these names" in note for note in split.notes)
