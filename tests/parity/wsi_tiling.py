"""How the recorded target `tiling` of `wsi_mil` is run: CLAM's tissue and grid on a real slide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.golden import REPOSITORY, Case
from zoo import files
from zoo.domains.medical.wsi_mil.slides import open_slide
from zoo.domains.medical.wsi_mil.tiling import Plan, TileSettings, plan_tiles, settings_from
from zoo.domains.medical.wsi_mil.tissue import TissueSettings, area_of

OTHER_OPENCV = 0.02  # what the recorded tolerance grants to another version of OpenCV
OF_THE_PLACE = {"name"}  # the recorded file had another name


def places(case: Case) -> Iterator[Path]:
    """Folders in which the case's slide may lie: beside it, and the project's data."""
    yield case.path.parent
    for base in (*case.path.parents, REPOSITORY.parent / "shared"):
        yield base / "data" / "wsi_mil"


def slide_of(case: Case) -> Path:
    """The slide of a case; the test is skipped where it is not on this machine."""
    name = str(case.info["slide"]).split(" ")[0]
    for place in places(case):
        if place.is_dir():
            for path in sorted(place.rglob(name)):
                if files.sha256(path) == case.info["slide_sha256"]:
                    return path
    pytest.skip(f"slide {name} of the recorded case is not on this machine")


def settings(config: dict[str, Any]) -> TileSettings:
    """Our settings for a recorded set of CLAM's parameters."""
    segmentation = dict(config["segmentation"])
    patching = dict(config["patching"])
    level = segmentation.pop("seg_level", -1)
    segmentation |= config["filter"]
    made = TileSettings(
        patch_size=patching.pop("patch_size"),
        overlap=config["patching"]["patch_size"] - patching.pop("step_size"),
        magnification=None,
        patch_level=patching.pop("patch_level"),
        contour_fn=patching.pop("contour_fn"),
        use_padding=patching.pop("use_padding"),
        tissue=TissueSettings(**segmentation, seg_level=level, fallback=False),
    )
    assert not patching, f"recorded parameters that are not used: {sorted(patching)}"
    return made


def same_opencv(case: Case) -> bool:
    import cv2

    recorded = str(case.info["opencv"]).split(".")[:3]
    return cv2.__version__.split(".")[: len(recorded)] == recorded


def compare_attributes(expected: dict[str, Any], plan: Plan) -> None:
    for key in expected.keys() - OF_THE_PLACE:
        ours = np.asarray(plan.attributes[key])
        np.testing.assert_allclose(ours, np.asarray(expected[key]), err_msg=key)


def tiling_target(case: Case) -> None:
    share = 0.0 if same_opencv(case) else OTHER_OPENCV
    with open_slide(slide_of(case)) as slide:
        for number, config in enumerate(case.info["configs"]):
            asked = settings(config)
            plan = plan_tiles(slide, asked)
            assert plan.tissue.level == config["seg_level"]
            key = f"output/{number}."
            theirs = {tuple(c) for c in case.tensors[key + "coords"].tolist()}
            ours = {tuple(c) for c in plan.coords.tolist()}
            assert len(plan.coords) == len(ours)
            assert len(theirs) == config["n_coords"]
            assert len(ours ^ theirs) <= share * len(theirs), (
                f"{key}coords: {sorted(ours ^ theirs)}"
            )
            areas = [area_of(c) for c in plan.tissue.contours]
            expected = case.tensors[key + "contour_area"].tolist()
            assert len(areas) == len(expected) == config["n_contours"]
            for area, recorded in zip(areas, expected, strict=True):
                assert math.isclose(area, recorded, rel_tol=share)
            holes = [len(own) for own in plan.tissue.holes]
            assert holes == [int(n) for n in case.tensors[key + "n_holes"].tolist()]
            compare_attributes(config["coords_attrs"], plan)
            assert settings_from(plan.attributes) == asked
            case.open.difference_update(key + n for n in ("coords", "contour_area", "n_holes"))


TARGETS = {"tiling": tiling_target}
