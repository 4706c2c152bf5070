"""Volumes as stacks of slices: layouts, intensities, classes, round trips, the cache."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from zoo.domains.medical.her_seg import data, intensities, volume_stack
from zoo.domains.medical.her_seg.cases import Case, Classes
from zoo.domains.medical.her_seg.intensities import Limits, limits, scaled
from zoo.domains.medical.her_seg.volume_stack import VolumeStack
from zoo.domains.medical.her_seg.volumes import volume_cases, volume_layout
from zoo.errors import ConfigError, DataError

from .volume_files import brats, configure, nifti, real, reoriented

RNG = np.random.default_rng(0)


def one(root: Path, **settings: object) -> Case:
    (case,) = volume_cases(root, configure(root, **settings))
    return case


def stack_of(case: Case) -> VolumeStack:
    stack = case.open()
    assert isinstance(stack, VolumeStack)
    return stack


def labels_of(stack: VolumeStack) -> np.ndarray:
    return np.stack([stack.truth(i) for i in range(len(stack))])


def pair(root: Path, name: str, labels: np.ndarray, folder: str = "") -> None:
    image = RNG.normal(0, 1, labels.shape).astype(np.float32) + labels
    nifti(root / folder / "images" / f"{name}.nii.gz", image)
    nifti(root / folder / "labels" / f"{name}.nii.gz", labels)


def cube(value: int = 1, shape: tuple[int, int, int] = (8, 9, 6)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 3:6, 1:4] = value
    return labels


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("code", [None, "RAS", "PIR", "ASL"])
def test_the_truth_of_a_real_patient_comes_back_from_any_orientation(
    tmp_path: Path, code: str | None, axis: str
) -> None:
    brats(tmp_path / "patient", code)
    label = tmp_path / "patient" / "OTMultiClass.nii.gz"
    case = one(tmp_path, axis=axis, labels={"a": 1, "b": [2, 3], "c": 4})
    stack = stack_of(case)
    truth = labels_of(stack)
    assert set(np.unique(truth)) == {0, 1, 2, 3}
    (written,) = stack.write(tmp_path / "out", stack.truth)
    back, before = nibabel.load(written), nibabel.load(label)
    image = nibabel.load(tmp_path / "patient" / "Flair_subtrMeanDivStd.nii.gz")
    values, wanted = np.asarray(back.dataobj), np.asarray(before.dataobj)
    assert np.array_equal(values, np.where(wanted == 3, 2, wanted))
    assert back.shape == image.shape
    assert np.array_equal(back.affine, image.affine)
    assert back.header["sform_code"] == image.header["sform_code"]
    assert back.get_data_dtype() == np.uint8


def test_a_volume_looks_the_same_from_every_orientation(tmp_path: Path) -> None:
    shown = []
    for number, code in enumerate((None, "RAS", "PIR", "SLA")):
        brats(tmp_path / str(number) / "patient", code)
        stack = stack_of(one(tmp_path / str(number)))
        pictures = np.stack([stack.picture(i) for i in range(len(stack))])
        shown.append((pictures, labels_of(stack), stack.spacing))
        assert pictures.dtype == np.float32
        assert (pictures.min(), pictures.max()) == (0, 1)
    for pictures, labels, spacing in shown[1:]:
        assert np.array_equal(pictures, shown[0][0])
        assert np.array_equal(labels, shown[0][1])
        assert spacing == shown[0][2] == (2, 2, 2)


def test_labels_may_lie_in_another_orientation_than_the_image(tmp_path: Path) -> None:
    _, label = brats(tmp_path / "patient")
    straight = labels_of(stack_of(one(tmp_path)))
    reoriented(label, label, "RIP")
    assert np.array_equal(labels_of(stack_of(one(tmp_path))), straight)
    assert one(tmp_path).look(False) == []


@pytest.mark.slow
@pytest.mark.parametrize("code", [None, "RAS", "PIR", "ASL"])
def test_a_whole_real_volume_comes_back(tmp_path: Path, code: str | None) -> None:
    root = real("brats2015_nifti", "validation", "brats_2013_pat0004_1")
    for name in ("Flair_subtrMeanDivStd.nii.gz", "OTMultiClass.nii.gz"):
        if code:
            reoriented(root / name, tmp_path / "patient" / name, code)
        else:
            nibabel.save(nibabel.load(root / name), tmp_path / name)
    stack = stack_of(one(tmp_path, labels={str(i): i for i in range(1, 5)}))
    (written,) = stack.write(tmp_path / "out", stack.truth)
    label = next(tmp_path.rglob("OTMultiClass.nii.gz"))
    assert np.array_equal(nibabel.load(written).dataobj, nibabel.load(label).dataobj)
    assert sum(stack.foreground()) == 73
    assert len(stack) == 155


def test_the_real_folders_are_found(tmp_path: Path) -> None:
    root = real("brats2015_nifti")
    cases = volume_cases(root, configure(root))
    told = [(c.name, c.group, c.part, [p.name for p in c.files]) for c in cases]
    files = ["Flair_subtrMeanDivStd.nii.gz", "OTMultiClass.nii.gz"]
    assert told == [
        ("train/brats_2013_pat0006_1", "brats_2013_pat0006_1", "train", files),
        ("validation/brats_2013_pat0004_1", "brats_2013_pat0004_1", "val", files),
    ]
    assert all(c.look(False) == [] for c in cases)


# -- intensities --------------------------------------------------------------------------------


def shown_of(values: np.ndarray, window: Limits | None = None, span: Limits | None = None) -> Any:
    return scaled(values, limits(values, window, span, (0.5, 99.5), Path("x")))


def test_a_background_that_is_the_minimum_does_not_count_in_percentiles() -> None:
    values = np.full((4, 20, 20, 1), -7.5, np.float32)
    values[:, 5:15, 5:15, 0] = RNG.normal(0, 1, (4, 10, 10))
    shown = shown_of(values)
    inside = values[:, 5:15, 5:15]
    low, high = np.percentile(inside, (0.5, 99.5))
    want = np.clip((inside - low) / (high - low), 0, 1)
    assert np.allclose(shown[:, 5:15, 5:15], want, atol=1e-6)
    assert shown[:, :5].max() == 0


def test_a_window_wins_and_what_is_not_finite_is_dark() -> None:
    values = np.array([-200.0, -100, 50, 200, 900, np.nan, np.inf]).reshape(1, 1, 7, 1)
    assert shown_of(values, (-100, 200), (0, 1)).ravel().tolist() == [0, 0, 0.5, 1, 1, 0, 0]
    assert shown_of(values, span=(0, 100)).ravel()[2] == pytest.approx(0.5)
    assert not shown_of(np.full((2, 3, 3, 1), 5.0)).any()
    with pytest.raises(DataError, match="no voxel is a finite number"):
        shown_of(np.full((1, 2, 2, 1), np.nan))


def test_absurd_intensities_are_told_and_beyond_float32_are_dark() -> None:
    values = np.array([0.0, 1, 2, 3e38, -3e38, 1e300]).reshape(1, 1, 6, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"x: intensities from .* are no scanner's"):
            shown_of(values)
        assert shown_of(values, (0, 2)).ravel().tolist() == [0, 0.5, 1, 1, 0, 0]


def test_percentiles_of_large_volumes_are_taken_of_some_voxels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = RNG.normal(0, 1, (30, 40, 50, 1))
    exact = limits(values, None, None, (1, 99), Path("x"))[0]
    monkeypatch.setattr(intensities, "_MOST", 10000)
    some = limits(values, None, None, (1, 99), Path("x"))[0]
    assert some != exact
    assert np.allclose(some, exact, atol=0.15)


def test_neighbours_and_channels_become_colours(tmp_path: Path) -> None:
    values = np.zeros((6, 5, 4), np.float32)
    values[...] = np.arange(4) * 10
    path = nifti(tmp_path / "images" / "a.nii.gz", values)
    nifti(tmp_path / "labels" / "a.nii.gz", np.zeros((6, 5, 4), np.uint8))
    window = {"window": (0, 30)}
    stack = stack_of(one(tmp_path, neighbours=True, **window))
    centre = [stack.picture(i)[2, 2].tolist() for i in range(4)]
    third = 1 / 3
    assert np.allclose(
        centre, [[0, 0, third], [0, third, 2 * third], [third, 2 * third, 1], [2 * third, 1, 1]]
    )
    several = np.stack([values, values * 0, values * 0 + 30, values], axis=-1)
    nifti(path, several)
    with pytest.raises(DataError, match=r"has four axes \(6 x 5 x 4 x 4\)"):
        len(stack_of(one(tmp_path, **window)))
    stack = stack_of(one(tmp_path, channels=[2, 3], **window))
    assert np.allclose(stack.picture(1)[0, 0], [1, third, third])
    with pytest.raises(DataError, match="has 4 channels"):
        len(stack_of(one(tmp_path, channels=[4], **window)))
    with pytest.raises(DataError, match="choose it by data"):
        len(stack_of(one(tmp_path, channels=[0, 1], neighbours=True, **window)))


def test_spacing_is_resampled_and_undone_on_writing(tmp_path: Path) -> None:
    labels = np.zeros((24, 20, 10), np.uint8)
    labels[6:18, 5:15, 2:8] = 3
    pair(tmp_path, "a", labels)
    stack = stack_of(one(tmp_path, spacing=(1.0, 1.0, 2.0), labels={"thing": 3}))
    assert stack.spacing == (2.0, 1.0, 1.0)
    assert stack.picture(0).shape[0] > 35
    (written,) = stack.write(tmp_path / "out", stack.truth)
    back = nibabel.load(written)
    values = np.asarray(back.dataobj)
    assert values.shape == labels.shape
    assert set(np.unique(values)) == {0, 3}
    both = ((values == 3) & (labels == 3)).sum()
    assert 2 * both / ((values == 3).sum() + (labels == 3).sum()) > 0.9
    assert np.array_equal(back.affine, np.diag([2.0, 2, 3, 1]))


# -- classes ------------------------------------------------------------------------------------


def test_values_become_classes_and_each_class_its_first_value() -> None:
    classes = Classes.of({"core": [1, 4], "oedema": 2, "background": [3]}, "x")
    values = np.array([0, 1, 2, 3, 4])
    assert classes.indices(values, "x").tolist() == [0, 1, 2, 0, 1]
    assert classes.as_written(np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert classes.as_written(np.array([0, 1])).dtype == np.uint8
    with pytest.raises(DataError, match=r"f.nii: label value 5, 9 belongs to no class"):
        classes.indices(np.array([5, 9, 0]), "f.nii")
    assert Classes().indices(values, "x").tolist() == [0, 1, 1, 1, 1]
    high = Classes(("a",), ((300,),))
    assert high.as_written(np.array([0, 1])).dtype == np.uint16
    facts = {"classes": ["core", "oedema"], "values": [[1, 4], [2]]}
    assert Classes.of_facts(facts).written == (1, 2)
    assert Classes.of_facts({"classes": ["a"]}) == Classes(("a",))
    for bad in ({"a": 1, "b": 1}, {"a": 0}, {"a": []}, {"a": [1, 1]}):
        with pytest.raises(DataError, match="x: "):
            Classes.of(bad, "x")


def test_a_value_out_of_range_is_told_by_the_check(tmp_path: Path) -> None:
    pair(tmp_path, "good", cube())
    pair(tmp_path, "wrong", cube(9))
    root = tmp_path
    found = data.check(configure(root, layout="volumes", labels={"organ": 1}))
    errors = [f for f in found if f.level == "error"]
    assert len(errors) == 1
    assert "wrong.nii.gz: label value 9 belongs to no class (organ: 1)" in errors[0].line()


# -- layouts ------------------------------------------------------------------------------------


def test_folders_of_images_and_labels_pair_by_name(tmp_path: Path) -> None:
    for part in ("Training", "test"):
        for name in ("p2", "p10"):
            image = nifti(tmp_path / part / "imgs" / f"{name}_0000.nii.gz", cube().astype("f4"))
            nifti(tmp_path / part / "segmentations" / f"{name}_seg.nii.gz", cube())
    cases = volume_cases(tmp_path, configure(tmp_path))
    assert [(c.name, c.group, c.part) for c in cases] == [
        ("test/p2", "p2", "test"),
        ("test/p10", "p10", "test"),
        ("Training/p2", "p2", "train"),
        ("Training/p10", "p10", "train"),
    ]
    (tmp_path / "test" / "segmentations" / "p2_seg.nii.gz").rename(tmp_path / "x.nii.gz")
    unlabelled = next(c for c in volume_cases(tmp_path, configure(tmp_path)) if c.name == "test/p2")
    assert not unlabelled.labelled
    image.unlink()
    with pytest.raises(DataError, match="no image of that name"):
        volume_cases(tmp_path, configure(tmp_path))


def test_a_patients_folder_may_hold_several_times(tmp_path: Path) -> None:
    """ACDC: `patient001/patient001_frame01.nii.gz` and `…_gt.nii.gz`, and the whole beat."""
    for name in ("frame01", "frame12"):
        nifti(tmp_path / "patient001" / f"patient001_{name}.nii.gz", cube().astype("f4"))
        nifti(tmp_path / "patient001" / f"patient001_{name}_gt.nii.gz", cube())
    nifti(tmp_path / "patient001" / "patient001_4d.nii.gz", np.zeros((4, 4, 3, 2), np.float32))
    cases = volume_cases(tmp_path, configure(tmp_path))
    assert [(c.name, c.group) for c in cases] == [
        ("patient001/patient001_frame01", "patient001"),
        ("patient001/patient001_frame12", "patient001"),
    ]


def test_several_images_of_a_patient_ask_for_a_pattern(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        for name in ("flair", "t1", "brain_mask"):
            nifti(tmp_path / patient / f"{patient}_{name}.nii.gz", cube().astype("f4"))
        nifti(tmp_path / patient / f"{patient}_seg.nii.gz", cube())
    with pytest.raises(DataError, match=r"2 images and 1 label files .*data.images='\*/a_flair"):
        volume_cases(tmp_path, configure(tmp_path))
    chosen = configure(tmp_path, images="*/*_flair.nii.gz", masks="*/*_seg.nii.gz")
    cases = volume_cases(tmp_path, chosen)
    assert [(c.name, [p.name for p in c.files]) for c in cases] == [
        ("a", ["a_flair.nii.gz", "a_seg.nii.gz"]),
        ("b", ["b_flair.nii.gz", "b_seg.nii.gz"]),
    ]
    for bad in ("../*.nii.gz", "*/nothing.nii.gz"):
        with pytest.raises(DataError, match="data"):
            volume_cases(tmp_path, configure(tmp_path, images=bad))


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert volume_layout(tmp_path) is None
    with pytest.raises(DataError, match="no volume was found"):
        volume_cases(tmp_path, configure(tmp_path))


def test_numbered_slices_are_a_volume_in_natural_order(tmp_path: Path) -> None:
    for name in ("image", "label"):
        (tmp_path / name).mkdir()
    for i in range(12):
        Image.fromarray(np.full((6, 8), 20 * i, np.uint8)).save(tmp_path / "image" / f"{i}.png")
        mask = np.zeros((6, 8), np.uint8)
        mask[: i // 2] = 255
        Image.fromarray(mask).save(tmp_path / "label" / f"{i}.png")
    stack = stack_of(one(tmp_path, layout="volumes"))
    assert stack.spacing is None
    assert [round(255 * float(stack.picture(i)[0, 0, 0])) for i in range(12)] == list(
        range(0, 240, 20)
    )
    assert [int(stack.truth(i).sum()) for i in range(12)] == [8 * (i // 2) for i in range(12)]
    assert stack.foreground() == [False] * 2 + [True] * 10
    flipped = stack_of(one(tmp_path, layout="volumes", invert=True))
    assert (labels_of(flipped) == 1 - labels_of(stack)).all()
    written = stack.write(tmp_path / "out", stack.truth)
    assert [p.name for p in written[:3]] == ["0.png", "1.png", "2.png"]
    with Image.open(written[11]) as image, Image.open(tmp_path / "label" / "11.png") as before:
        assert np.array_equal(np.asarray(image), np.asarray(before))
    with pytest.raises(ConfigError, match="files that say how they lie"):
        len(stack_of(one(tmp_path, layout="volumes", axis="coronal")))
    (tmp_path / "label" / "7.png").unlink()
    with pytest.raises(DataError, match="no picture '7'"):
        volume_cases(tmp_path, configure(tmp_path, layout="volumes"))


def test_the_real_membranes_as_a_volume() -> None:
    stack = stack_of(one(real("isbi2012_membrane"), layout="volumes", invert=True))
    assert len(stack) == 6
    assert stack.picture(0).shape == (512, 512, 3)
    # Membranes are the smaller part: 255 is the inside of cells.
    assert 0.15 < labels_of(stack).mean() < 0.3


def test_tiff_stacks_pair_by_name(tmp_path: Path) -> None:
    planes = [Image.fromarray(np.full((5, 7), 10 * i, np.uint8)) for i in range(4)]
    masks = [Image.fromarray(np.full((5, 7), 255 * (i % 2), np.uint8)) for i in range(4)]
    for name, pages in {"train-volume.tif": planes, "train-labels.tif": masks}.items():
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    stack = stack_of(one(tmp_path))
    assert len(stack) == 4
    assert [bool(stack.truth(i).all()) for i in range(4)] == [False, True, False, True]
    assert stack.write(tmp_path / "out", stack.truth)[0].name == "train-volume_0000.png"


def synapse(root: Path) -> None:
    for folder in ("train_npz", "test_vol_h5"):
        (root / folder).mkdir()
    for i in range(11):
        labels = np.full((6, 6), i % 9, np.float32)
        body = {"image": np.full((6, 6), i / 20, np.float32), "label": labels}
        np.savez(root / "train_npz" / f"case0005_slice{i:03d}.npz", **body)
    with h5py.File(root / "test_vol_h5" / "case0001.npy.h5", "w") as file:
        file["image"] = np.linspace(0, 1, 3 * 36).reshape(3, 6, 6)
        file["label"] = np.full((3, 6, 6), 8.0, np.float32)


def test_synapse_as_transunet_ships_it(tmp_path: Path) -> None:
    synapse(tmp_path)
    assert volume_layout(tmp_path) == "synapse"
    test, train = volume_cases(tmp_path, configure(tmp_path))
    assert (train.name, train.part, test.name, test.part) == (
        *("case0005", "train"),
        *("case0001", "test"),
    )
    assert train.classes.names[4] == "liver"
    stack = stack_of(train)
    assert len(stack) == 11
    # Intensities were scaled when the files were made: they are taken as they are.
    assert stack.picture(4)[0, 0, 0] == pytest.approx(0.2, abs=1e-4)
    assert [int(stack.truth(i)[0, 0]) for i in range(11)] == [*range(9), 0, 1]
    (written,) = stack_of(test).write(tmp_path / "out", stack_of(test).truth)
    with np.load(written, allow_pickle=False) as body:
        assert (body["label"] == 8).all()
    one_organ = volume_cases(tmp_path, configure(tmp_path, target="stomach"))[0]
    assert one_organ.classes.names == ("stomach",)
    (tmp_path / "train_npz" / "case0005_slice003.npz").unlink()
    with pytest.raises(DataError, match="case0005 lacks slice 3"):
        volume_cases(tmp_path, configure(tmp_path))


def test_broken_arrays_are_told(tmp_path: Path) -> None:
    synapse(tmp_path)
    broken = tmp_path / "train_npz" / "case0005_slice002.npz"
    broken.write_bytes(broken.read_bytes()[:100])
    with h5py.File(tmp_path / "test_vol_h5" / "case0001.npy.h5", "a") as file:
        del file["label"]
        file["label"] = h5py.ExternalLink("other.h5", "label")
    lines = [f.line() for c in volume_cases(tmp_path, configure(tmp_path)) for f in c.look(True)]
    assert len(lines) == 2
    assert "external link" in lines[0]
    assert "case0005_slice002.npz: cannot be read as npz" in lines[1]


# -- training on slices -------------------------------------------------------------------------


def test_slices_are_found_once_and_mapped_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = cube()
    pair(tmp_path, "a", labels)
    case = one(tmp_path)
    want = [(i, 1 <= i < 4) for i in range(6)]
    assert case.slices() == want
    first = stack_of(case)
    pictures = [first.picture(i) for i in range(6)]

    def refuse(*_: object) -> None:
        msg = "a volume was read again"
        raise AssertionError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(volume_stack, "decode", refuse)
        again = one(tmp_path)
        assert again.slices() == want
        mapped = stack_of(again)
        assert all(np.array_equal(mapped.picture(i), pictures[i]) for i in range(6))
        assert isinstance(mapped.decoded().pictures, np.memmap)
        assert pickle.loads(pickle.dumps(mapped))._decoded is None
        # Another reading of the same files is another entry.
        with pytest.raises(AssertionError, match="read again"):
            one(tmp_path, window=(0, 1)).slices()
    # A changed file is read anew.
    labels[:, :, 5] = 1
    pair(tmp_path, "a", labels)
    assert one(tmp_path).slices()[5] == (5, True)


def test_a_damaged_entry_of_the_cache_is_passed_over(tmp_path: Path, cache: Path) -> None:
    folder = cache / "her_seg" / "volumes"
    before = set(folder.glob("*"))
    pair(tmp_path, "a", cube())
    want = one(tmp_path).slices()
    (entry,) = (p for p in set(folder.glob("*")) - before if p.is_dir())
    for name in ("index.json", "pictures.npy"):
        (entry / name).write_bytes(b"")
        assert one(tmp_path).slices() == want
        assert stack_of(one(tmp_path)).picture(0).shape == (9, 8, 3)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(tmp_path, "a", cube())
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "her_seg").write_text("")  # a file where its folder would be
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    case = one(tmp_path)
    assert sum(full for _, full in case.slices()) == 3
    assert stack_of(case).picture(0).shape == (9, 8, 3)


def test_the_adapter_trains_on_slices_of_volumes(tmp_path: Path) -> None:
    for number in range(5):
        pair(tmp_path, f"p{number}", cube())
    (tmp_path / "split.json").write_text(
        json.dumps({"train": ["p0", "p1", "p2"], "valid": ["p3"], "test": ["p4"]})
    )
    splits = data.open_splits(configure(tmp_path, layout="volumes"))
    train = splits["train"]
    assert len(train.ids) == 18
    assert train.ids[0] == "p0/0"
    assert data.facts_of(train)["kind"] == "volume"
    (stack,) = splits["test"].collate([splits["test"].item(0, RNG)])["stacks"]
    assert stack.kind == "volume"
    assert stack.spacing == (3, 2, 2)
