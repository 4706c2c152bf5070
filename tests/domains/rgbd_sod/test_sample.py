from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.domains.saliency.rgbd_sod import data, sample
from zoo.domains.saliency.rgbd_sod.depth import DepthRules, canonical
from zoo.domains.saliency.rgbd_sod.images import RawDepth, read_depth

from .conftest import configure


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample")
    sample.write(out)
    return out


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write` leaves with defects, and with fewer scenes beside them."""
    out = tmp_path_factory.mktemp("defects")
    train = out / "RGBD_for_train"
    sample.write_pairs(train, sample.scenes(8, 0, "train"))
    sample.write_defects(train, sample.scenes(12, 0, "defect"))
    return out


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def test_sample_is_small_and_clean(written: Path) -> None:
    assert sum(p.stat().st_size for p in written.rglob("*") if p.is_file()) < 10e6
    findings = data.check(configure(written))
    assert [f.line() for f in findings if f.level != "info"] == []
    splits = data.open_splits(configure(written))
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 304, "val": 16, "test_sample": 48, "test_sample_bright": 32}


def test_it_lies_as_the_real_sets_do(written: Path) -> None:
    train = written / "RGBD_for_train"
    assert sorted(p.name for p in train.iterdir()) == ["GT", "RGB", "depth"]
    assert {p.suffix for p in (train / "depth").iterdir()} == {".png", ".jpg", ".bmp", ".mat"}
    assert {p.suffix for p in (train / "RGB").iterdir()} == {".jpg"}
    modes = set()
    for path in (train / "depth").glob("*.png"):
        with Image.open(path) as image:
            modes.add(image.mode)
    assert modes == {"L", "I;16"}
    sizes = {np.asarray(Image.open(p)).shape for p in (train / "GT").iterdir()}
    assert {a > b for a, b in sizes} == {True, False}
    assert min(min(s) for s in sizes) >= 96
    assert max(max(s) for s in sizes) <= 160


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sample.write_pairs(
            tmp_path / name, sample.scenes(5, seed), formats=("png", "mat", "png16", "jpg", "bmp")
        )
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 15
    for file in files:
        first, again, other = ((tmp_path / n / file).read_bytes() for n in ("a", "b", "c"))
        assert first == again, file
        assert first != other, file


def test_scenes_of_the_parts_differ() -> None:
    a, b = sample.scenes(2, 0, "train")[0], sample.scenes(2, 0, "sample")[0]
    assert a.rgb.shape != b.rgb.shape or (a.rgb != b.rgb).any()


def test_polarity_of_each_set_is_found(written: Path) -> None:
    found = data.survey(configure(written))
    assert {k: (m.polarity, m.sure) for k, m in found.polarity.items()} == {
        "RGBD_for_train": ("near_dark", True),
        "SAMPLE": ("near_dark", True),
        "SAMPLE-BRIGHT": ("near_bright", True),
    }


def test_the_three_shapes_are_alike_and_apart() -> None:
    for scene in sample.scenes(40):
        areas = [shape.sum() for shape in (scene.mask, scene.twin, scene.patch)]
        assert max(areas) - min(areas) <= 0.1 * max(areas)
        assert not (scene.mask & scene.twin).any()
        assert not ((scene.mask | scene.twin) & scene.patch).any()
        assert 0.01 < scene.mask.mean() < 0.1
        assert 0.01 < scene.holes.mean() < 0.06


def test_neither_colour_nor_depth_alone_tells() -> None:
    """The best that a threshold on depth, or knowing both coloured ellipses, can give."""
    rows = []
    for scene in sample.scenes(60, 0, "sample"):
        near = canonical(sample_depth(scene), DepthRules()).values
        # The best single threshold of every scene, chosen with the truth: an upper bound.
        by_depth = max(iou(near <= t, scene.mask) for t in np.linspace(0.02, 0.7, 35))
        colour = iou(scene.mask | scene.twin, scene.mask)
        everything = iou(np.ones_like(scene.mask), scene.mask)
        both = iou((near < 0.4) & (scene.mask | scene.twin), scene.mask)
        rows.append((by_depth, colour, everything, both))
    by_depth, colour, everything, both = np.mean(rows, axis=0)
    assert by_depth < 0.65
    assert colour < 0.55
    assert everything < 0.1
    assert both > 0.95


def sample_depth(scene: sample.SampleScene) -> RawDepth:
    return RawDepth(np.rint(scene.depth * 255).astype(np.uint8), "8-bit", False)


def test_ellipses_share_a_colour_that_the_patch_does_not_have() -> None:
    """In brightness as well, since augmentation may take all saturation away."""
    close, apart, hidden = [], [], []
    for scene in sample.scenes(60):
        grey = scene.rgb.astype(float).mean(axis=2)
        ground = ~(scene.mask | scene.twin | scene.patch)
        inside, twin, patch = (grey[m].mean() for m in (scene.mask, scene.twin, scene.patch))
        close.append(abs(inside - twin))
        apart.append(abs(inside - grey[ground].mean()))
        hidden.append(abs(patch - grey[ground].mean()))
    assert np.mean(close) < 8
    assert np.mean(apart) > 40
    assert np.mean(hidden) < 20


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "png16", "mat"])
@pytest.mark.parametrize("near_bright", [False, True])
def test_depth_of_every_format_comes_back(
    tmp_path: Path, kind: sample.DepthFormat, near_bright: bool
) -> None:
    scene = sample.scenes(1)[0]
    sample.write_depth(tmp_path / "d", scene, kind, near_bright=near_bright)
    raw = read_depth(next(tmp_path.iterdir()))
    depth = canonical(raw, DepthRules(), "near_bright" if near_bright else "near_dark")
    unit = (scene.depth - scene.depth.min()) / np.ptp(scene.depth)
    whole = ~depth.holes
    assert depth.holes.any() == (kind in ("png16", "mat"))
    assert np.abs(depth.values - unit)[whole].mean() < 0.02


DEFECTS = {
    # Name -> words of its line, and whether it is told without reading the files whole.
    "no_depth": ("error", "no depth map", True),
    "no_mask": ("error", "no mask", True),
    "turned": ("error", "lies on its side", True),
    "truncated": ("error", "copy the file again", False),
    "coloured": ("error", "coloured", False),
    "constant": ("warning", "constant or empty", False),
    "empty_mask": ("warning", "no foreground", False),
}


@pytest.mark.parametrize("deep", [True, False])
def test_every_defect_is_told_with_its_name(defective: Path, deep: bool) -> None:
    found = data.check(configure(defective, polarity="near_dark"), deep=deep)
    lines = [(f.level, f.line()) for f in found if f.level != "info"]
    assert all("\n" not in line for _, line in lines)
    for name, (level, words, quick) in DEFECTS.items():
        mine = [line for its, line in lines if f"defect_{name}" in line and its == level]
        assert len(mine) == (deep or quick), (name, lines)
        assert all(words in line for line in mine)
    sizes = [line for _, line in lines if "another size" in line]
    assert len(sizes) == 1
    assert "defect_size" in sizes[0]
    # Everything else that looks odd is read as it should be.
    assert len(lines) == sum(deep or quick for _, _, quick in DEFECTS.values()) + 1


def test_defects_are_written_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_TRAIN", 2)
    monkeypatch.setattr(sample, "_TEST", {"SAMPLE": 1})
    for defects in (False, True):
        sample.write(tmp_path / str(defects), defects=defects)
        names = {p.name for p in (tmp_path / str(defects)).rglob("*") if p.is_file()}
        assert ("Thumbs.db" in names) == defects
        assert any(name.startswith("defect_") for name in names) == defects


def test_defects_can_be_skipped(defective: Path) -> None:
    splits = data.open_splits(configure(defective, on_error="skip", val_fraction=0))
    names = {i.partition("/")[2] for i in splits["train"].ids if "defect" in i}
    wanted = {"constant", "empty_mask", "1bit", "01", "jpeg_mask", "suffix", "size"}
    assert names == {f"defect_{name}" for name in wanted}
    assert splits["train"].notes == ["5 scenes of the data were skipped"]
    for index, name in enumerate(splits["train"].ids):
        if "defect" in name:
            item = splits["train"].item(index, np.random.default_rng(0))
            assert bool(item["mask"].any()) == ("empty" not in name)
            assert item["depth_valid"] == ("constant" not in name)
