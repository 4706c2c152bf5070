"""How the recorded preprocessing of `medusa` is run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from tests.domains.medusa.writers import write_dicom
from tests.parity.golden import Case
from zoo.domains.medical import dicom
from zoo.domains.medical.medusa.augment import squeeze
from zoo.domains.medical.medusa.images import (
    Preprocessing,
    as_input,
    load,
    prepare,
    standardised,
)


def exact(case: Case, key: str, ours: np.ndarray) -> None:
    """The recorded numbers with the same library: nothing may differ."""
    expected = case.tensors[key]
    assert expected.dtype == torch.uint8
    torch.testing.assert_close(
        torch.from_numpy(np.ascontiguousarray(ours)), expected, rtol=0, atol=0
    )
    case.open.discard(key)


def preprocess_target(case: Case) -> None:
    size, side = case.info["size"], case.info["semantic_size"]
    for name, image in case.group("input").items():
        number = name.removeprefix("image")
        # As files are read: the grey input of a colour file is decoded, not converted.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            assert cv2.imwrite(str(path), image.numpy())
            raster = load(path)
        assert (raster.colour is None) == (image.ndim == 2)
        for kind, crop, square in (("plain", 0.0, False), ("cropped", 0.08, True)):
            made = prepare(raster, Preprocessing(size, side, crop, square))
            shown = made.image if made.image.ndim == 3 else made.image[..., None].repeat(3, -1)
            exact(case, f"output/{kind}{number}", shown)
            np.testing.assert_array_equal(
                as_input(made.image), shown.transpose(2, 0, 1) / np.float32(255)
            )
            if kind == "plain":
                semantic = torch.from_numpy(standardised(made.semantic)).permute(1, 2, 0)
                close(case, f"output/semantic{number}", semantic)


def close(case: Case, key: str, ours: Tensor) -> None:
    torch.testing.assert_close(ours, case.tensors[key], rtol=0, atol=1e-5)
    case.open.discard(key)


def ratio_target(case: Case) -> None:
    image = case.tensors["input/image"].numpy()
    for seed, changed in case.info["seeds_and_whether_changed"]:
        # The official code draws from numpy's old global generator; ours from what it is handed.
        made = squeeze(image, np.random.RandomState(seed))
        assert (not np.array_equal(made, image)) == changed
        exact(case, f"output/seed{seed}", made[::8, ::8])


def dicom_target(case: Case) -> None:
    inputs = case.group("input")
    assert inputs.keys() == case.info["cases"].keys()
    for name, told in case.info["cases"].items():
        stored = inputs[name].numpy()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.dcm"
            write_dicom(path, stored, **dicom_settings(told))
            exact(case, f"output/{name}", dicom.read_uint8(path)[0])


def dicom_settings(told: dict[str, Any]) -> dict[str, Any]:
    """The case's abbreviations as elements of a data set."""
    names = {
        "bits": "BitsStored",
        "pi": "PhotometricInterpretation",
        "slope": "RescaleSlope",
        "inter": "RescaleIntercept",
        "wc": "WindowCenter",
        "ww": "WindowWidth",
        "func": "VOILUTFunction",
        "signed": "PixelRepresentation",
    }
    settings = {names[key]: value for key, value in told.items() if key in names}
    assert told.keys() <= {*names, "h", "w", "lut"}
    if told.get("lut"):
        settings["lut"] = ((256, 0, 12), [int(4095 * np.sqrt(i / 255)) for i in range(256)])
    return settings


TARGETS = {
    "preprocess": preprocess_target,
    "ratio_resize": ratio_target,
    "dicom_to_uint8": dicom_target,
}
