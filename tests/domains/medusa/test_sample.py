from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from sklearn.linear_model import LogisticRegression

from zoo.domains.medical.medusa import data, sample
from zoo.domains.medical.medusa.sample_phantom import draw

from .conftest import configure


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    sample.write(root)
    return root


@pytest.fixture(scope="module")
def everything() -> list[sample.Image]:
    return sample.images()


def test_small_and_clean(whole: Path) -> None:
    assert sum(map(len, files_of(whole).values())) < 30e6
    found = data.check(configure(whole), deep=True)
    assert [f.line() for f in found if f.level != "info"] == []
    splits = data.open_splits(configure(whole))
    assert {k: len(v.ids) for k, v in splits.items()} == {"train": 256, "val": 64, "test": 96}


def test_same_seed_same_files(tmp_path: Path) -> None:
    parts = {"train": 34, "test": 4}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sample.write_covidx(tmp_path / name, sample.images(seed, parts))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a") != files_of(tmp_path / "c")


def test_formats(whole: Path) -> None:
    kinds = Counter(p.suffix for p in (whole / "train").iterdir())
    assert kinds.keys() == {".png", ".jpg", ".jpeg", ".dcm"}
    assert 10 < kinds[".dcm"] < 25
    read = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in (whole / "train").glob("*.png")]
    forms = Counter((str(i.dtype), i.shape[2] if i.ndim == 3 else 1) for i in read)
    assert forms.keys() == {("uint8", 1), ("uint8", 3), ("uint8", 4), ("uint16", 1)}
    headers = [pydicom.dcmread(p) for p in whole.glob("*/*.dcm")]
    assert {h.PhotometricInterpretation for h in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {h.BitsStored for h in headers} == {8, 12}
    assert {"WindowCenter" in h for h in headers} == {True, False}
    sizes = {i.shape[:2] for i in read}
    assert len(sizes) > 50


def test_rows_of_every_length(whole: Path) -> None:
    rows = [
        r for p in ("train", "val", "test") for r in (whole / f"{p}.txt").read_text().splitlines()
    ]
    assert Counter(len(r.split()) for r in rows).keys() == {3, 4, 5}
    assert any(r.endswith(" rnsa") for r in rows)
    assert any("(" in r for r in rows)


def test_patients_stay_in_one_split_and_one_class(everything: list[sample.Image]) -> None:
    parts: dict[str, set[tuple[str, int]]] = {}
    for image in everything:
        parts.setdefault(image.patient, set()).add((image.part, image.label))
    assert all(len(p) == 1 for p in parts.values())
    assert max(Counter(i.patient for i in everything).values()) == 3


def test_nothing_but_the_picture_tells_the_class(everything: list[sample.Image]) -> None:
    """Source, format, size, sex, age and view must not: a net would learn them instead."""
    y = np.array([i.label for i in everything])
    assert y.mean() == pytest.approx(0.5, abs=0.02)
    for kind in ("source", "sex", "view"):
        values = [getattr(i, kind) for i in everything]
        for value in set(values):
            mine = np.array([v == value for v in values])
            assert 0.3 < y[mine].mean() < 0.7, (kind, value)
    suffixes = [i.file.rpartition(".")[2] for i in everything]
    for value in set(suffixes):
        assert 0.25 < y[np.array(suffixes) == value].mean() < 0.75, value
    easy = np.array(
        [
            [*i.drawn.image.shape, i.age, i.drawn.image.mean(), i.drawn.image.std()]
            for i in everything
        ]
    )
    easy = (easy - easy.mean(0)) / easy.std(0)
    train = np.array([i.part == "train" for i in everything])
    fitted = LogisticRegression(max_iter=500).fit(easy[train], y[train])
    assert fitted.score(easy[~train], y[~train]) < 0.75


def test_opacities_are_in_the_lungs_and_can_be_found(everything: list[sample.Image]) -> None:
    """The brightest spot within the mask, measured against the lung's own level, tells a lot."""
    measured = []
    for image in everything:
        smooth = cv2.GaussianBlur(image.drawn.image, (0, 0), image.drawn.image.shape[1] / 40)
        inside = cv2.erode(image.drawn.lungs.astype(np.uint8), np.ones((15, 15))) > 0
        lung = smooth[inside]
        measured.append([(np.quantile(lung, 0.97) - np.median(lung)) / lung.std(), lung.std()])
    x, y = np.array(measured), np.array([i.label for i in everything])
    train = np.array([i.part == "train" for i in everything])
    fitted = LogisticRegression(max_iter=500).fit(x[train], y[train])
    assert fitted.score(x[~train], y[~train]) > 0.85


def test_phantom() -> None:
    rng = np.random.default_rng(0)
    for positive in (False, True):
        made = draw(rng, 120, 100, positive)
        assert made.image.shape == made.lungs.shape == (120, 100)
        assert 0 <= made.image.min() < made.image.max() <= 1
        assert made.image[made.lungs].mean() < made.image[40:100, 20:80].mean()
        assert 0.1 < made.lungs.mean() < 0.35
        assert (made.zones > 0) == positive
        assert made.zones <= 6
