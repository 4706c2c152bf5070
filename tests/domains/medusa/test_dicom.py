import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from zoo.domains.medical import dicom
from zoo.errors import ConfigError, DataError

from .conftest import DATA
from .writers import picture, write_dicom

SUMS = {
    "dicom/RG1_J2KI.dcm": 680785642,
    "dicom/RG3_J2KI.dcm": 539697608,
    "dicom/rsna_monochrome1_relabelled.dcm": 99197346,
    "rsna_mini/stage_2_test_images/16d7f894-55d7-4d95-8957-d18987f0e981.dcm": 168189534,
}
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
@pytest.mark.parametrize("name", SUMS)
def test_real_files(name: str) -> None:
    pixels, header = dicom.read_uint8(DATA / name)
    # Lossy decoders may differ by a few grey levels.
    assert abs(int(pixels.sum(dtype=np.int64)) - SUMS[name]) <= pixels.size // 100
    assert header.patient not in repr(header)
    assert header.patient
    if "relabelled" in name:
        return  # its polarity is wrong on purpose
    middle = pixels[:, pixels.shape[1] // 2 - 40 : pixels.shape[1] // 2 + 40]
    lung = pixels[
        pixels.shape[0] // 3 : pixels.shape[0] // 2, pixels.shape[1] // 4 : pixels.shape[1] // 3
    ]
    if "RG3" not in name:  # a leg
        assert middle.mean() > lung.mean() + 20


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
def test_the_same_image_under_both_polarities() -> None:
    plain, turned = (dicom.read_uint8(DATA / n)[0] for n in (list(SUMS)[3], list(SUMS)[2]))
    np.testing.assert_array_equal(plain, 255 - turned)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "image.dcm"


def shown(path: Path, stored: np.ndarray, **settings: Any) -> np.ndarray:
    return dicom.read_uint8(write_dicom(path, stored, **settings))[0]


def test_8_bit_is_taken_as_it_is_even_with_a_window(path: Path) -> None:
    image = picture()
    np.testing.assert_array_equal(shown(path, image, WindowCenter=100, WindowWidth=50), image)
    inverted = shown(path, image, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(inverted, 255 - image)


def test_8_bit_in_two_bytes_is_not(path: Path) -> None:
    image = (picture() // 4).astype(np.uint16)
    made = shown(path, image, BitsStored=8)
    assert made.max() == 255
    assert made.min() == 0


def test_the_window_comes_before_the_inversion(path: Path) -> None:
    """Windowing the inverted values would keep the other end of the range."""
    settings = {"BitsStored": 12, "WindowCenter": 1024, "WindowWidth": 1024}
    made = shown(path, RAMP, PhotometricInterpretation="MONOCHROME1", **settings).ravel()
    assert (made[:500] == 255).all()
    assert (made[1600:] == 0).all()
    assert 100 < made[1024] < 155
    np.testing.assert_array_equal(made, np.sort(made)[::-1])


def test_lookup_table_before_window_first_window_of_several(path: Path) -> None:
    steps = [0] * 2048 + [4095] * 2048
    table = ((4096, 0, 12), steps)
    made = shown(path, RAMP, BitsStored=12, lut=table, WindowCenter=10, WindowWidth=20)
    assert np.unique(made).tolist() == [0, 255]
    assert (made.ravel()[:2048] == 0).all()
    several = {"WindowCenter": [1000, 3000], "WindowWidth": [500, 500]}
    first = {"WindowCenter": 1000, "WindowWidth": 500}
    np.testing.assert_array_equal(
        shown(path, RAMP, BitsStored=12, **several), shown(path, RAMP, BitsStored=12, **first)
    )


def test_a_lookup_table_of_8_bit_entries_is_not_wrapped(path: Path) -> None:
    """pydicom 3.0.2 counts its index in 8 bit, which folds 4096 entries to 256."""
    made = shown(path, RAMP, BitsStored=12, lut=((4096, 0, 8), [i // 16 for i in range(4096)]))
    np.testing.assert_array_equal(made.ravel(), np.arange(4096) // 16)
    offset = shown(path, RAMP, BitsStored=12, lut=((256, 1000, 8), list(range(256))))
    assert (offset.ravel()[:1001] == 0).all()
    assert (offset.ravel()[1255:] == 255).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions(path: Path, function: str) -> None:
    settings = {"WindowCenter": 2048, "WindowWidth": 1000, "VOILUTFunction": function}
    made = shown(path, RAMP, BitsStored=12, **settings).ravel()
    assert (np.diff(made.astype(int)) >= 0).all()
    assert made[0] == 0
    assert made[-1] == 255
    x = (np.arange(4096) - 2048) / 1000
    ideal = 1 / (1 + np.exp(-4 * x)) if function == "SIGMOID" else np.clip(x + 0.5, 0, 1)
    assert np.abs(made / 255 - ideal).max() < 0.012


def test_rescale_moves_the_window(path: Path) -> None:
    settings = {"RescaleSlope": 2, "RescaleIntercept": -100}
    settings |= {"WindowCenter": 3000, "WindowWidth": 4000}
    made = shown(path, RAMP, BitsStored=12, **settings).ravel()
    assert made[550] == 0  # 2 * 550 - 100 = 1000, the window's lower end
    assert made[560] > 0
    assert made[2549] >= 254
    rescaled = dicom.rescaled(dicom.read(path))
    assert rescaled.dtype == np.float64
    np.testing.assert_array_equal(rescaled, 2.0 * RAMP - 100)


def test_negative_values_are_not_wrapped(path: Path) -> None:
    """Slope 1 and intercept 0 send the original through 16 bit without sign."""
    stored = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    made = shown(path, stored, BitsStored=16, RescaleSlope=1, RescaleIntercept=0).ravel()
    assert made[0] == 0
    assert made[-1] == 255
    assert (np.diff(made.astype(int)) >= 0).all()


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("settings", [{}, {"WindowCenter": -40, "WindowWidth": 2000}])
@pytest.mark.parametrize("rescale", [(1, 0), (2, -1000)])
def test_a_picture_in_bands_is_the_whole_one(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    polarity: str,
    settings: dict[str, int],
    rescale: tuple[int, int],
) -> None:
    # Only the last rows have negative values, and the range of each band is another.
    stored = (31 * np.arange(48 * 40) - 100).reshape(48, 40)[::-1].astype(np.int16)
    settings = settings | {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    whole = shown(path, stored, PhotometricInterpretation=polarity, **settings)
    assert len(np.unique(whole)) > 5
    monkeypatch.setattr(dicom, "_AT_ONCE", 7 * 40)
    np.testing.assert_array_equal(dicom.read_uint8(path)[0], whole)


def _deflated(path: Path, side: int) -> Path:
    write_dicom(path, np.arange(side * side, dtype=np.uint16).reshape(side, side))
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(path)
    return path


def test_deflated_files_are_read_as_far_as_they_are_no_bombs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(40 * 40).reshape(40, 40) / (40 * 40 - 1)
    expected = (255.0 * values).astype(np.uint8)
    np.testing.assert_array_equal(dicom.read_uint8(_deflated(path, 40))[0], expected)
    monkeypatch.setattr(dicom, "_MOST_UNPACKED", 2 * 40 * 40)  # and there is a header as well
    for read in (dicom.read_uint8, dicom.read_header):
        with pytest.raises(DataError, match=r"image\.dcm: unpacks to more than any radiograph"):
            read(path)
    # Cut off, it is damaged, not large.
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="breaks off or is damaged"):
        dicom.read_header(path)


def test_one_value_gives_zeros(path: Path) -> None:
    stored = np.full((8, 8), 700, np.uint16)
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        assert not shown(path, stored, BitsStored=12, PhotometricInterpretation=kind).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "RGB: only MONOCHROME1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "no photometric"),
        ({"NumberOfFrames": 3}, "3 frames"),
        ({"PixelData": b"\0" * 100}, "break off"),
        ({"Rows": 30000, "Columns": 30000}, "more pixels"),
        ({"BitsStored": 12, "WindowCenter": 5, "WindowWidth": 0}, "window or VOI LUT"),
        ({"BitsStored": 12, "VOILUTFunction": "X", "WindowCenter": 5, "WindowWidth": 9}, "VOI"),
    ],
)
def test_what_is_no_radiograph_is_one_line(
    path: Path, settings: dict[str, Any], words: str
) -> None:
    secret = {"PatientID": "4711", "PatientName": "Doe^Jane"}
    with pytest.raises(DataError, match=words) as caught:
        shown(path, RAMP, **secret, **settings)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert "4711" not in text
    assert "Doe" not in text


def test_colour_pixels_are_refused(path: Path) -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    settings = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    with pytest.raises(DataError, match="RGB"):
        shown(path, colour, **settings)


@pytest.mark.parametrize("keep", [0, 50, 140, 400, 3000])
def test_truncated_files_are_one_line(path: Path, keep: int) -> None:
    whole = write_dicom(path, RAMP, PatientName="Doe^Jane", BitsStored=12).read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(DataError) as caught:
        dicom.read_uint8(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real radiographs are not beside this checkout")
@pytest.mark.parametrize("name", ["dicom/RG1_J2KI.dcm", list(SUMS)[3]])
def test_truncated_compressed_files_are_one_line(tmp_path: Path, name: str) -> None:
    whole = (DATA / name).read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        dicom.read_uint8(path)
    assert "cut.dcm" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\x89PNG" + b"x" * 300)
    with pytest.raises(DataError, match="not a DICOM file"):
        dicom.read(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="no such file"):
        dicom.read(tmp_path / "b.dcm")
    assert dicom.is_dicom(tmp_path / "a.dcm")  # by its name
    named = write_dicom(tmp_path / "IM000001", picture())
    assert dicom.is_dicom(named)  # by its content
    assert not dicom.is_dicom(tmp_path / "none")


def test_header(path: Path) -> None:
    write_dicom(
        path,
        RAMP,
        PatientID=" 4711 ",
        PatientSex="x",
        PatientAge="008M",
        ViewPosition="ll",
        InstanceNumber="7",
    )
    header = dicom.read_header(path)
    assert (header.patient, header.sex, header.age, header.view) == ("4711", "", "0", "LL")
    assert (header.number, header.frames, header.photometric) == (7, 1, "MONOCHROME2")
    assert "4711" not in repr(header)
    write_dicom(path, RAMP, PatientName="Doe^Jane")
    assert dicom.read_header(path).patient == "Doe^Jane"


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("062Y", "62"),
        ("62", "62"),
        ("50+", "50"),
        ("8M", "0"),
        ("104W", "2"),
        ("45.0", "45"),
        ("", ""),
        ("old", ""),
        ("1962", ""),
    ],
)
def test_ages(text: str, age: str) -> None:
    assert dicom.years(text) == age


def test_warnings_of_pydicom_do_not_quote_the_header(path: Path) -> None:
    write_dicom(path, RAMP, BitsStored=12)
    body = path.read_bytes()
    # An identifier too long for its type makes pydicom warn with the value.
    write_dicom(path, RAMP, BitsStored=12, AccessionNumber="Doe Jane 1962-03-04 accession")
    assert path.read_bytes() != body
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dicom.read_uint8(path)
    assert not caught


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    write_dicom(path, RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[medical\]'"):
        dicom.read(path)
