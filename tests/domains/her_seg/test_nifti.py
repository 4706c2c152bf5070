"""NIfTI: headers kept, faults told in one line, orientations undone exactly."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from zoo.domains.medical.her_seg import nifti, sample_volumes
from zoo.domains.medical.her_seg.grids import Resampling, View, view_of, voxel_size
from zoo.domains.medical.her_seg.volumes import volume_cases
from zoo.errors import DataError

from . import volume_files
from .volume_files import configure

CODES = ("RAS", "LPS", "PIR", "ASL", "SRP", "LIA")


def box(shape: tuple[int, int, int] = (6, 7, 5)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


# -- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("code", CODES)
def test_a_picture_lies_as_radiologists_show_it(code: str, axis: str) -> None:
    """Coordinates written into voxels say where each picture's rows and columns run."""
    shape = (5, 6, 7)
    coordinates = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    image = nibabel.Nifti1Image(coordinates[..., 0].astype(np.int16), np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(np.eye(4)), nibabel.orientations.axcodes2ornt(code)
    )
    affine = image.as_reoriented(turn).affine
    turned = nibabel.orientations.apply_orientation(coordinates, turn)
    view = view_of(affine, axis)
    stack = view.stack(turned)  # (S, H, W, 3): right, anterior, superior of each voxel
    slices, rows, columns = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[axis]
    step = np.diff(stack[:, 0, 0, slices]), np.diff(stack[0, :, 0, rows])
    assert (step[0] == 1).all()
    assert (step[1] == -1).all()
    assert (np.diff(stack[0, 0, :, columns]) == -1).all()
    assert np.array_equal(view.back(stack[..., 0]), turned[..., 0])
    # The affine of the view takes (slice, row, column) to the same place as the file's.
    at = np.array([1, 2, 3, 1])
    assert np.allclose((view.affine(affine, turned.shape) @ at)[:3], stack[1, 2, 3], atol=1e-9)


def test_an_oblique_file_takes_the_nearest_plane() -> None:
    angle = np.deg2rad(20)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (-1.5, -1.5, 4)
    view = view_of(affine, "axial")
    assert view == View((2, 1, 0), (False, False, False))
    assert voxel_size(affine) == (1.5, 1.5, 4)


def test_resampling_and_back_is_close_and_of_the_size_before() -> None:
    labels = np.zeros((10, 24, 20), np.uint8)
    labels[3:7, 6:18, 5:15] = 2
    change = Resampling((10, 24, 20), (4.0, 1.0, 1.0), (2.0, 0.8, 0.8))
    there = change.labels(labels)
    assert there.shape[0] in (19, 20)
    assert set(np.unique(there)) == {0, 2}
    back = change.back(there)
    assert back.shape == labels.shape
    both = ((back > 0) & (labels > 0)).sum()
    assert 2 * both / ((back > 0).sum() + (labels > 0).sum()) > 0.9
    image = change.image(labels[..., None].astype(np.float32))
    assert image.shape == (*there.shape, 1)
    assert np.abs(image[..., 0] - there).mean() < 0.1


# -- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_labels_are_written_with_the_images_own_header(tmp_path: Path, kind: type) -> None:
    affine = np.array([[0, 0, 2.5, -7], [-1.2, 0, 0, 3], [0, 0.7, 0, 11], [0, 0, 0, 1]])
    image = kind(np.linspace(-3, 5, 120).reshape(4, 5, 6).astype(np.float32), affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=2)
    image.header["descrip"] = b"a scanner"
    image.header["cal_max"] = 400
    image.header.set_xyzt_units("mm", "sec")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Secret Person"))
    nibabel.save(image, tmp_path / "image.nii.gz")
    head = nifti.read_head(tmp_path / "image.nii.gz")
    labels = (np.arange(120).reshape(4, 5, 6) % 3).astype(np.uint8)
    nifti.write_like(tmp_path / "deep" / "labels.nii.gz", labels, head)
    back = nibabel.load(tmp_path / "deep" / "labels.nii.gz")
    assert type(back) is kind
    assert np.array_equal(np.asarray(back.dataobj), labels)
    assert back.get_data_dtype() == np.uint8
    assert np.array_equal(back.affine, head.image.affine)
    for name in ("sform_code", "qform_code", "descrip", "xyzt_units", "pixdim", "quatern_b", "dim"):
        assert np.array_equal(back.header[name], head.image.header[name]), name
    assert back.header["cal_max"] == 0
    assert not back.header.extensions
    # The same labels make the same bytes, whenever they are written.
    nifti.write_like(tmp_path / "again.nii.gz", labels, head)
    first = (tmp_path / "deep" / "labels.nii.gz").read_bytes()
    assert (tmp_path / "again.nii.gz").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.nii.gz", "deep", "image.nii.gz"]


def test_scaled_integers_are_read_by_their_slope_and_written_without(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(box(), np.eye(4))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii")
    head = nifti.read_head(tmp_path / "a.nii")
    values = nifti.read_values(head, tmp_path / "a.nii")
    assert values.dtype == np.float32
    assert np.array_equal(values, 0.5 * box() - 10)
    nifti.write_like(tmp_path / "b.nii", np.ones((6, 7, 5), np.uint16) * 300, head)
    assert (np.asarray(nibabel.load(tmp_path / "b.nii").dataobj) == 300).all()


def test_axes_of_length_one_come_back(tmp_path: Path) -> None:
    for name, shape in {"flat": (6, 7), "thin": (6, 7, 1), "timed": (6, 7, 5, 1)}.items():
        path = volume_files.nifti(tmp_path / f"{name}.nii.gz", np.zeros(shape, np.int16))
        head = nifti.read_head(path)
        assert len(head.shape) == 3
        nifti.write_like(tmp_path / "out.nii.gz", np.ones(head.shape, np.uint8), head)
        assert nibabel.load(tmp_path / "out.nii.gz").shape == shape


def test_a_new_file_holds_sheared_geometry_in_its_sform(tmp_path: Path) -> None:
    affine = np.array([[-0.6, 0, 0, 30], [0, -0.8, 0.4, 40], [0, 0, 2.4, 10], [0, 0, 0, 1]])
    nifti.write_new(tmp_path / "tilted.nii.gz", box().astype(np.uint16), affine)
    back = nibabel.load(tmp_path / "tilted.nii.gz")
    assert np.allclose(back.affine, affine, atol=1e-6)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 0)
    nifti.write_new(tmp_path / "straight.nii.gz", box().astype(np.uint16), np.diag([2.0, 2, 3, 1]))
    assert int(nibabel.load(tmp_path / "straight.nii.gz").header["qform_code"]) == 1


# -- faults -------------------------------------------------------------------------------------


def test_every_defect_of_the_sample_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    sample_volumes.write_volumes(tmp_path, defects=True)
    told = {}
    for case in volume_cases(tmp_path, configure(tmp_path)):
        found = case.look(True)
        if not case.name.startswith("defect_"):
            assert found == []
            continue
        (finding,) = found
        told[case.name.removeprefix("defect_")] = finding
        assert case.name in finding.line()
        assert "\n" not in finding.line()
    wanted = {
        "no_affine": "has no affine",
        "singular": "voxel size that is 0|singular",
        "no_voxels": "24 x 24 x 0",
        "four_axes": "four axes",
        "out_of_range": "label value 7 belongs to no class",
        "negative": "label value -1 is outside",
        "fractions": "label value 0.75 is no whole number",
        "other_size": "8 x 22 x 24 voxels",
        "other_place": "up to 25 mm",
        "not_finite": "no voxel is a finite number",
        "no_label": "has no labels",
        "no_image": "labels without an image",
        "cut_off": "cannot be read",
    }
    assert set(told) == set(wanted)
    for name, text in wanted.items():
        assert any(t in told[name].what for t in text.split("|")), told[name]
        assert told[name].level == ("warning" if name == "no_label" else "error")


def test_a_cut_header_and_other_files_are_told(tmp_path: Path) -> None:
    good = volume_files.nifti(tmp_path / "good.nii.gz", box())
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(good.read_bytes()[:40])
    plain = tmp_path / "plain.nii"
    plain.write_bytes(gzip.decompress(good.read_bytes())[:200])
    text = tmp_path / "text.nii.gz"
    text.write_bytes(gzip.compress(b"no volume"))
    for path in (cut, plain, text, tmp_path / "absent.nii.gz"):
        with pytest.raises(DataError) as caught:
            nifti.read_head(path)
        assert str(caught.value).startswith(str(path))
        assert str(caught.value).count(str(path)) == 1
        assert "\n" not in str(caught.value)


def test_a_header_that_claims_too_much_is_refused_unread(tmp_path: Path) -> None:
    path = volume_files.nifti(tmp_path / "huge.nii", box())
    body = bytearray(path.read_bytes())
    body[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(bytes(body))
    with pytest.raises(DataError, match="claims 30000 x 30000 x 30000 voxels"):
        nifti.read_head(path)


def test_colour_and_complex_voxels_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, values in {"rgb": colour, "complex": np.zeros((4, 4, 4), np.complex64)}.items():
        path = volume_files.nifti(tmp_path / f"{name}.nii.gz", values)
        with pytest.raises(DataError, match="are no numbers"):
            nifti.read_head(path)


def test_labels_off_by_rounding_are_integers() -> None:
    values = np.array([0, 0.9998, 2.0002, 4], np.float32)
    assert nifti.whole_numbers(values, "x").tolist() == [0, 1, 2, 4]
    for bad in (0.4, np.nan, np.inf):
        with pytest.raises(DataError, match="no whole number"):
            nifti.whole_numbers(np.array([1, bad], np.float32), "x")
    with pytest.raises(DataError, match="outside of 0 to 65535"):
        nifti.whole_numbers(np.array([70000]), "x")
