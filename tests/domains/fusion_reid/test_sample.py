from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.domains.reid.fusion_reid import data, sample
from zoo.domains.reid.fusion_reid.pedestrian import CAMERAS, GARMENTS, PATTERNS, draw, people

from .trees import configure


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    sample.write(root, train=8, test=6)
    return root


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defective")
    sample.write(root, defects=True, train=6, test=4)
    return root


def test_clean_and_of_the_layout(small: Path) -> None:
    config = configure(small)
    found = data.check(config, deep=True)
    assert [f.line() for f in found if f.level != "info"] == []
    assert any("layout market1501" in f.what for f in found)
    splits = data.open_splits(config)
    assert splits.keys() == {"train", "test"}
    counts = Counter(splits["train"].labels)
    assert len(counts) == 8
    assert 8 <= min(counts.values()) <= max(counts.values()) <= 12
    roles = Counter(e.role for e in splits["test"].entries)
    assert roles["query"] == 12
    assert (small / "market1501" / "query" / "Thumbs.db").is_file()
    sizes = {Image.open(p).size for p in small.rglob("*.jpg")}
    assert sizes == {(64, 128), (80, 160)}


def test_everybody_is_seen_by_several_cameras(small: Path) -> None:
    splits = data.open_splits(configure(small))
    for split in splits.values():
        seen: dict[str, set[str]] = {}
        for entry in split.entries:
            seen.setdefault(entry.person, set()).add(entry.camera)
        assert min(len(c) for c in seen.values()) >= 3
    gallery = [e for e in splits["test"].entries if e.role == "gallery"]
    assert any(e.person == "distractor" for e in gallery)


def test_same_seed_same_files(tmp_path: Path, small: Path) -> None:
    sample.write(tmp_path / "a", train=8, test=6)
    assert files_of(tmp_path / "a") == files_of(small)
    sample.write(tmp_path / "b", seed=1, train=2, test=2)
    sample.write(tmp_path / "c", seed=2, train=2, test=2)
    assert files_of(tmp_path / "b") != files_of(tmp_path / "c")


def test_every_defect_is_found(defective: Path) -> None:
    config = configure(defective)
    found = data.check(config, deep=True)
    errors = [f.line() for f in found if f.level == "error"]
    assert len(errors) == 3
    assert any("person 7 from the left.jpg" in e and "expected PPPP" in e for e in errors)
    assert any("the image is broken" in e for e in errors)
    assert any("1 identities are in both 'train' and 'test': 9003" in e for e in errors)
    (warning,) = [f.line() for f in found if f.level == "warning" and "queries" in f.what]
    assert "2 of 11 queries have no gallery image under another camera" in warning
    assert "(1 whose person is not in the gallery at all)" in warning
    assert "9001_c1" in warning


def test_people_come_in_pairs_of_the_same_colours() -> None:
    made = people(40, np.random.default_rng(0))
    assert len({tuple(vars(p).values()) for p in made}) == 40
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert {one.upper, one.second, one.lower} == {other.upper, other.second, other.lower}
        assert one.pattern != other.pattern
    assert {p.pattern for p in made} == set(PATTERNS)
    assert {p.garment for p in made} == set(GARMENTS)
    assert len(people(3, np.random.default_rng(0))) == 3


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("garment", GARMENTS)
def test_clothes_are_seen(pattern: str, garment: str) -> None:
    """The second colour and the lower one are in the picture, in the right half."""
    from dataclasses import replace

    person = replace(
        people(1, np.random.default_rng(1))[0],
        upper=(0.9, 0.1, 0.1),
        second=(0.1, 0.1, 0.9),
        lower=(0.1, 0.8, 0.1),
        pattern=pattern,
        garment=garment,
        bag=None,
    )
    image = draw(np.random.default_rng(0), person, CAMERAS[0]).astype(int)
    red, green, blue = np.moveaxis(image, -1, 0)
    top, bottom = slice(0, 64), slice(64, 128)
    assert (red - np.maximum(green, blue) > 80)[top].sum() > 150
    assert (blue - np.maximum(red, green) > 80)[top].sum() > 100
    assert (green - np.maximum(red, blue) > 60)[bottom].sum() > 200


def test_cameras_tint_mildly() -> None:
    person = people(1, np.random.default_rng(2))[0]
    means = [
        np.mean([draw(np.random.default_rng(i), person, c).mean(axis=(0, 1)) for i in range(8)], 0)
        for c in CAMERAS
    ]
    spread = np.ptp(np.array(means), axis=0)
    assert (spread > 5).all()
    assert (spread < 60).all()


def test_a_box_without_a_person_and_one_that_is_off() -> None:
    rng = np.random.default_rng(0)
    empty = draw(rng, None, CAMERAS[1], (160, 80))
    assert empty.shape == (160, 80, 3)
    person = people(1, rng)[0]
    good = draw(np.random.default_rng(3), person, CAMERAS[1])
    far = draw(np.random.default_rng(3), person, CAMERAS[1], off=2.0)
    bare = draw(np.random.default_rng(3), None, CAMERAS[1])

    def clothed(image: np.ndarray) -> int:
        return int((image.max(axis=2).astype(int) - image.min(axis=2) > 90).sum())

    assert clothed(good) > 500
    assert clothed(far) < 50
    assert clothed(bare) < 50


@pytest.mark.slow
def test_the_whole_sample_is_small_and_histograms_find_some(tmp_path: Path) -> None:
    """Colour alone finds the pair, not the person; the design's limits are 60 MB and 20 s."""
    from zoo.domains.reid.fusion_reid.baseline import colour_histogram

    sample.write(tmp_path)
    assert sum(map(len, files_of(tmp_path).values())) < 10e6
    config = configure(tmp_path, model={"input_size": [64, 32]})
    splits = data.open_splits(config)
    assert len(set(splits["train"].labels)) == 100
    test = splits["test"]
    rng = np.random.default_rng(0)
    batch = test.collate([test.item(i, rng) for i in range(len(test))])
    features = colour_histogram(batch["image"]).numpy()
    role, person = np.array(batch["role"]), np.array(batch["person"])
    camera = np.array(batch["camera_name"])
    asked = role == "query"
    assert asked.sum() >= 96
    hits = []
    for i in np.flatnonzero(asked):
        kept = np.flatnonzero(~asked & ~((person == person[i]) & (camera == camera[i])))
        nearest = kept[np.argmax(features[kept] @ features[i])]
        hits.append(person[nearest] == person[i])
    assert 0.3 < np.mean(hits) < 0.7
