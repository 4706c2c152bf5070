import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from zoo.domains.medical.wsi_mil import data, sample

from .conftest import configure


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.suffix == ".csv"
    }


def test_sample_is_small_and_clean(tmp_path: Path) -> None:
    start = time.perf_counter()
    sample.write(tmp_path)
    assert time.perf_counter() - start < 20
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < 10e6
    found = data.check(configure(tmp_path))
    assert [f for f in found if f.level != "info"] == []
    splits = data.open_splits(configure(tmp_path))
    assert {k: len(v) for k, v in splits.items()} == {"train": 64, "val": 16, "test": 60}


def test_same_seed_same_slides_another_seed_others() -> None:
    first, again, other = (sample.slides(s, {"train": 6}) for s in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
        np.testing.assert_array_equal(a.coords, b.coords)
        assert a.features.shape != c.features.shape or (a.features != c.features).any()


def test_sample_writes_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sample.write(tmp_path / name)
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    digests = [data.open_splits(configure(tmp_path / n))["train"].digest for n in ("a", "b")]
    assert digests[0] == digests[1]


def test_bags_have_the_traits_of_the_problem() -> None:
    slides = sample.slides(0)
    sizes = [len(s.features) for s in slides]
    assert min(sizes) == 1
    assert sum(1 for n in sizes if 1 < n < 10) >= 10
    assert max(sizes) > 1000
    for slide in slides:
        assert slide.features.dtype == np.float16
        assert slide.features.shape == (len(slide.coords), sample.WIDTH)
        assert len(np.unique(slide.coords, axis=0)) == len(slide.coords)
        assert not (slide.coords % sample.TILE).any()
        if slide.label:
            assert slide.instances.any(), slide.id
            assert len(slide.instances) < 50 or 0.01 < slide.instances.mean() < 0.21
        else:
            assert not slide.instances.any(), slide.id
    single = [s for s in slides if len(s.features) == 1]
    assert {s.label for s in single} == {0, 1}


def test_patients_with_two_slides_stay_in_one_split() -> None:
    slides = sample.slides(0)
    parts: dict[str, set[str]] = {}
    for slide in slides:
        parts.setdefault(slide.patient, set()).add(slide.part)
    assert all(len(p) == 1 for p in parts.values())
    assert len(parts) < len(slides)


def test_planted_instances_can_be_told_apart() -> None:
    slides = sample.slides(0)
    train = [s for s in slides if s.part == "train"]
    x = np.concatenate([s.features for s in train]).astype(np.float64)
    y = np.concatenate([s.instances for s in train])
    model = LogisticRegression(max_iter=500).fit(x, y)
    rest = [s for s in slides if s.part == "test"]
    score = model.score(
        np.concatenate([s.features for s in rest]), np.concatenate([s.instances for s in rest])
    )
    assert score > 0.98


def test_real_layout(tmp_path: Path) -> None:
    sample.write(tmp_path)
    table = pd.read_csv(tmp_path / "dataset_csv" / "sample.csv")
    assert list(table.columns) == ["case_id", "slide_id", "label"]
    assert set(table["label"]) == set(sample.CLASSES)
    split = pd.read_csv(tmp_path / "splits" / "sample" / "splits_0.csv", index_col=0)
    assert list(split.columns) == ["train", "val", "test"]
    assert split["val"].isna().any()
    path = tmp_path / "features" / "h5_files" / f"{table['slide_id'][0]}.h5"
    with h5py.File(path) as file:
        assert set(file) == {"features", "coords", "labels"}
        assert file["features"].dtype == np.float16
        assert file["coords"].attrs["patch_size_level0"] == 512


@pytest.mark.parametrize("deep", [True, False])
def test_every_defect_is_told_with_its_name(tmp_path: Path, deep: bool) -> None:
    sample.write(tmp_path, defects=True)
    found = data.check(configure(tmp_path), deep=deep)
    lines = [f.line() for f in found if f.level in ("error", "warning")]
    assert all("\n" not in line for line in lines)
    for name in (
        "unlabelled",
        "empty",
        "width",
        "no_coords",
        "truncated",
        "no_features",
        "unknown",
    ):
        assert sum(f"defect_{name}" in line for line in lines) == 1, name
    # Whether a value is NaN is only known after reading all of them.
    assert sum("defect_nan" in line for line in lines) == deep
