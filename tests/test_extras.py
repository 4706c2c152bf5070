"""Packages of extras: given when they are there, asked for in one line when not."""

from __future__ import annotations

import json
import sys

import pytest

from zoo.errors import ConfigError
from zoo.extras import opencv, optional


def test_a_module_that_is_there_is_given() -> None:
    assert optional("json", "texts are read by", "all") is json


@pytest.mark.parametrize(
    ("module", "package"),
    [("zoo_no_such", "zoo_no_such"), ("zoo_no_such.part", "zoo_no_such")],
)
def test_what_is_missing_is_one_line_with_the_command(module: str, package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        optional(module, "things are read by", "medical")
    assert str(caught.value) == (
        f"things are read by the package '{package}', which is missing: pip install '.[medical]'"
    )


def test_a_package_is_called_as_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"'opencv-python-headless'.*\.\[saliency\]"):
        opencv("pictures are read by", "saliency")


def test_opencv_has_no_threads_of_its_own() -> None:
    assert opencv("pictures are read by", "medical").getNumThreads() == 1
