import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.domains.her_seg.picture_files import configure
from zoo.domains.medical.her_seg import data, sample
from zoo.domains.medical.her_seg.sample_pictures import draw, draw_nuclei


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "out"
    sample.write_pictures(root)
    sample.write_nuclei(root / "nuclei")
    return root


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("broken") / "out"
    sample.write_pictures(root, defects=True)
    return root


def content(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_seed_decides_everything(folder: Path, tmp_path: Path) -> None:
    sample.write_pictures(tmp_path / "a")
    sample.write_nuclei(tmp_path / "a" / "nuclei")
    first = content(folder)
    assert content(tmp_path / "a") == first
    sample.write_nuclei(tmp_path / "b", seed=1)
    pictures = {k: v for k, v in content(tmp_path / "b").items() if "/images/" in k}
    assert len(pictures) == 24
    assert not set(pictures.values()) & set(first.values())


def test_sample_is_clean_and_split_as_listed(folder: Path) -> None:
    config = configure(folder)
    findings = data.check(config)
    assert not [f.line() for f in findings if f.level != "info"]
    parts = data.survey(config).parts
    assert {k: len(v) for k, v in parts.items()} == {"train": 40, "val": 8, "test": 12}


def test_sample_has_the_kinds_of_file_that_exist(folder: Path) -> None:
    modes = set()
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            modes.add((image.format, image.mode))
            assert 96 <= min(image.size) <= max(image.size) <= 160
    assert modes == {("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB")}
    masks = set()
    for path in (folder / "masks").glob("*.*"):
        with Image.open(path) as image:
            masks.add((image.format, image.mode))
    assert masks == {
        *(("PNG", mode) for mode in ("L", "RGB", "RGBA", "P", "1")),
        ("JPEG", "L"),
    }
    assert len(list((folder / "masks" / "p003_2_mask").iterdir())) >= 1
    with Image.open(folder / "images" / "p004_2.jpg") as image:
        assert image.getexif()[0x0112] == 6


def test_sample_masks_read_alike_whatever_their_kind(folder: Path) -> None:
    split = data.open_splits(configure(folder))["train"]
    shares = {}
    for index, name in enumerate(split.ids):
        truth = split.cases[index].open().truth(0)  # type: ignore[attr-defined]
        shares[name] = float(truth.mean())
    assert shares.pop("p002_2") == 0  # the empty one
    assert all(0.01 < share < 0.5 for share in shares.values())


def test_thresholds_do_not_solve_it() -> None:
    """Bodies are brighter than what surrounds them, and the ground is uneven by more than that."""
    rng = np.random.default_rng(5)
    best, every = [], []
    for _ in range(12):
        made = draw((128, 128), rng, 2)
        grey, truth = made.rgb.mean(axis=2), made.objects > 0
        best.append(max(_dice(grey > level, truth) for level in range(16, 250, 12)))
        every.append(_dice(np.ones_like(truth), truth))
    assert np.mean(best) < 0.7  # the best threshold of each picture
    assert np.mean(every) < 0.4


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def test_nuclei_are_in_the_layout_of_the_contest(folder: Path) -> None:
    config = configure(folder / "nuclei")
    found = data.survey(config, deep=True)
    assert found.layout == "dsb2018"
    assert {k: len(v) for k, v in found.parts.items()} == {"train": 16, "val": 4, "test": 4}
    assert not [f.line() for f in data.check(config, found=found) if f.level != "info"]
    objects = found.parts["train"][0].open().instances(0)
    assert objects is not None
    assert objects.max() >= 4


def test_nuclei_do_not_overlap_and_have_no_gaps_in_their_numbers() -> None:
    for stained in (False, True):
        made = draw_nuclei((96, 96), np.random.default_rng(1), stained=stained)
        assert np.array_equal(np.unique(made.objects), np.arange(made.objects.max() + 1))
        inside, outside = made.rgb[made.objects > 0].mean(), made.rgb[made.objects == 0].mean()
        assert (inside < outside) == stained


def test_every_defect_is_found_by_name(broken: Path) -> None:
    told = [f.line() for f in data.check(configure(broken)) if f.level == "error"]
    names = ("no_mask", "other_size", "cut_off", "damaged", "empty_file", "no_image", "several")
    for name in (*names, "missing", "twin"):
        assert sum(f"bad_{name}" in line for line in told) == 1, name
    assert len(told) == len(names) + 2


def test_defects_can_be_skipped_but_not_the_twin(broken: Path) -> None:
    told = [f for f in data.check(configure(broken, on_error="skip")) if f.level == "error"]
    assert len(told) == 1
    assert "bad_twin" in told[0].line()
