"""DICOM series: order, geometry, gaps, mixed series, labels as NIfTI and as DICOM SEG."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import generate_uid

from zoo.domains.medical.her_seg import data
from zoo.domains.medical.her_seg.cases import Case
from zoo.domains.medical.her_seg.nifti import write_new
from zoo.domains.medical.her_seg.series import SeriesSource, read_series
from zoo.domains.medical.her_seg.video import stacks_from
from zoo.domains.medical.her_seg.volume_stack import VolumeStack
from zoo.domains.medical.her_seg.volumes import volume_cases, volume_layout
from zoo.errors import DataError
from zoo.privacy import alias

from .volume_files import AXIAL, configure, dicom_seg, dicom_series, dicom_slice

COS, SIN = np.cos(0.3), np.sin(0.3)
OBLIQUE = (1.0, 0.0, 0.0, 0.0, COS, SIN)
SAGITTAL = (0.0, 1.0, 0, 0, 0, -1.0)


def volume(slices: int = 7, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    """(slices, rows, columns) of different whole numbers from -500 on."""
    return np.arange(slices * size[0] * size[1]).reshape(slices, *size) - 500


def thing(shape: tuple[int, ...] = (7, 8, 10)) -> np.ndarray:
    found = np.zeros(shape, bool)
    found[1:4, 2:6, 3:9] = True
    return found


def one(root: Path, **settings: object) -> Case:
    (case,) = volume_cases(root, configure(root, **settings))
    return case


def labels_of(case: Case) -> np.ndarray:
    stack = case.open()
    assert isinstance(stack, VolumeStack)
    return np.stack([stack.truth(i) for i in range(len(stack))])


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE, SAGITTAL])
def test_slices_are_ordered_by_position_and_placed_in_space(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    values = volume()
    dicom_series(tmp_path, values, orientation=orientation)
    source = SeriesSource(tmp_path)
    grid = source.image()
    assert np.array_equal(grid.values, values.transpose(2, 1, 0))
    # Where a pixel lies, by the equation of DICOM PS3.3 C.7.6.2.1.1, with left and back negated.
    column, row, k = 3, 5, 4
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    origin = np.array([-30.0, -40, 10]) + 2.5 * k * np.cross(across, down)
    patient = origin + across * 0.6 * column + down * 0.8 * row
    assert grid.affine is not None
    found = (grid.affine @ [column, row, k, 1])[:3]
    assert np.allclose(found, patient * (-1, -1, 1))


def test_an_axial_series_is_shown_as_it_was_taken(tmp_path: Path) -> None:
    values = volume()
    dicom_series(tmp_path, values)
    assert volume_layout(tmp_path) == "dicom"
    stack = one(tmp_path, window=(-500, 500)).open()
    assert stack.spacing == (2.5, 0.8, 0.6)
    shown = np.stack([stack.picture(i)[..., 0] for i in range(len(stack))])
    assert np.allclose(shown, (values + 500) / 1000, atol=1e-4)


def test_a_prediction_is_nifti_in_the_geometry_of_the_series(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan", volume(), orientation=OBLIQUE)
    stack = one(tmp_path, axis="coronal").open()
    marked = np.zeros((len(stack), *stack.picture(0).shape[:2]), np.uint8)
    marked[2, 1, 3] = 1
    (written,) = stack.write(tmp_path / "out", lambda i: marked[i])
    back = nibabel.load(written)
    assert written == tmp_path / "out" / "scan.nii.gz"
    assert back.shape == (10, 8, 7)
    assert np.allclose(back.affine, read_series(tmp_path / "scan").affine, atol=1e-5)
    assert int(np.asarray(back.dataobj).sum()) == 1
    assert int(back.header["qform_code"]) == 1


def test_labels_as_nifti_of_the_same_grid(tmp_path: Path) -> None:
    dicom_series(tmp_path / "p1", volume())
    affine = read_series(tmp_path / "p1").affine
    labels = thing().astype(np.uint8) * 3
    write_new(tmp_path / "labels" / "p1.nii.gz", labels.transpose(2, 1, 0), affine)
    case = one(tmp_path, labels={"organ": 3})
    assert case.labelled
    assert np.array_equal(labels_of(case), labels // 3)
    assert case.slices() == [(i, 1 <= i < 4) for i in range(7)]
    assert case.look(False) == []
    affine[2, 3] += 2
    write_new(tmp_path / "labels" / "p1.nii.gz", labels.transpose(2, 1, 0), affine)
    (finding,) = case.look(False)
    assert "up to 2 mm from those of the image" in finding.what


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_labels_as_dicom_segmentation(
    tmp_path: Path, kind: str, orientation: tuple[float, ...]
) -> None:
    uid = dicom_series(tmp_path / "p1" / "scan", volume(), orientation=orientation)
    first, second = thing(), np.zeros((7, 8, 10), bool)
    second[5, 1:3, 1:7] = True
    path = tmp_path / "p1" / "other" / "seg.dcm"
    dicom_seg(path, {1: first, 4: second}, uid, orientation, kind=kind)
    dicom_series(tmp_path / "p2" / "scan", volume(3), orientation=orientation)
    cases = volume_cases(tmp_path, configure(tmp_path, labels={"a": 1, "b": 4}))
    assert [(c.name, c.labelled) for c in cases] == [("p1/scan", True), ("p2/scan", False)]
    want = first.astype(np.uint8) + 2 * second
    assert np.array_equal(labels_of(cases[0]), want)
    assert cases[0].look(True) == []


def test_segmentations_that_overlap_or_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    uid = dicom_series(tmp_path / "scan", volume())
    path = tmp_path / "seg" / "seg.dcm"
    dicom_seg(path, {1: thing(), 2: thing()}, uid)
    with pytest.raises(DataError, match=r"seg.dcm: segments overlap"):
        labels_of(one(tmp_path))
    for changed in ({"step": 1.7}, {"orientation": OBLIQUE}):
        dicom_seg(path, {1: thing()}, uid, **changed)
        with pytest.raises(DataError, match=r"seg.dcm: a frame lies on another grid"):
            labels_of(one(tmp_path))
    dicom_seg(path, {1: thing()}, uid)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"seg.dcm"):
        labels_of(one(tmp_path))


def test_gaps_doubles_and_mixtures_are_told(tmp_path: Path) -> None:
    def told(name: str) -> str:
        with pytest.raises(DataError) as caught:
            read_series(tmp_path / name)
        assert "Secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    uid = dicom_series(tmp_path / "gap", volume(9))
    for path in (tmp_path / "gap").iterdir():
        if abs(_position(path) - 20) < 0.01:
            path.unlink()
    assert "5 mm apart where slices are 2.5 mm apart" in told("gap")

    dicom_series(tmp_path / "double", volume(4), uid)
    dicom_slice(tmp_path / "double" / "IM9", volume(1)[0], (-30, -40, 12.5), uid)
    assert "lie in one place" in told("double")

    dicom_series(tmp_path / "mixed", volume(4))
    dicom_slice(tmp_path / "mixed" / "scout", volume(1)[0], (-30, -40, 99), generate_uid())
    assert "2 DICOM series are mixed (4, 1 images)" in told("mixed")

    dicom_series(tmp_path / "planes", volume(4), uid)
    dicom_slice(
        tmp_path / "planes" / "IM9",
        volume(1)[0],
        (-30, -40, 99),
        uid,
        ImageOrientationPatient=list(SAGITTAL),
    )
    assert "has another plane or size" in told("planes")

    dicom_slice(tmp_path / "nowhere" / "a", volume(1)[0], (0, 0, 0), uid, ImagePositionPatient=None)
    assert "does not say where it lies" in told("nowhere")

    dicom_slice(tmp_path / "frames" / "a", volume(1)[0], (0, 0, 0), uid, NumberOfFrames=12)
    assert "12 frames; convert multi-frame DICOM" in told("frames")

    (tmp_path / "empty").mkdir()
    assert "holds no DICOM image" in told("empty")


def _position(path: Path) -> float:
    import pydicom

    return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


def test_a_cut_slice_is_named_and_nothing_of_the_patient(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan", volume())
    broken = tmp_path / "scan" / "IM0003"
    broken.write_bytes(broken.read_bytes()[:-60])
    findings = one(tmp_path).look(True)
    errors = [f for f in findings if f.level == "error"]
    assert len(errors) == 1
    assert errors[0].what.startswith(str(broken))
    assert "Secret" not in errors[0].line()


def test_the_group_is_a_stand_in_for_the_patient(tmp_path: Path) -> None:
    dicom_series(tmp_path / "a", volume(2))
    dicom_series(tmp_path / "b", volume(2))
    cases = volume_cases(tmp_path, configure(tmp_path))
    assert {c.group for c in cases} == {alias("Secret^Person")}


def test_a_folder_of_slices_is_predicted_as_one_volume(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan", volume())
    facts = {"classes": ["organ"], "kind": "volume", "values": [[7]]}
    (stack,) = stacks_from([tmp_path / "scan"], configure(), facts)
    assert (stack.id, len(stack)) == ("scan", 7)
    split = data.inputs([tmp_path], facts, configure())
    assert [s.id for s in split.stacks] == ["scan"]
    (written,) = stack.write(tmp_path / "out", lambda i: thing()[i].astype(np.uint8))
    assert set(np.unique(nibabel.load(written).dataobj)) == {0, 7}
