"""MATLAB files: what scipy reads of sound ones, one line of damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from zoo import matlab
from zoo.errors import DataError


def write(path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    cells = np.empty((3, 1), object)
    cells[:, 0] = ["one.png", "", "zwei-ü.jpg"]
    body = {
        "depth": rng.integers(0, 60_000, (7, 5)).astype(np.uint16),
        "cube": rng.normal(size=(3, 4, 2)),
        "single": rng.normal(size=(6, 1)).astype(np.float32),
        "small": np.array([[1, -2]], np.int8),
        "flags": np.array([[True, False]]),
        "nothing": np.zeros((0, 3)),
        "text": "tête",
        "cells": cells,
        "complex": np.array([[1 + 2j]]),
        "struct": {"field": 1.0},
    }
    savemat(path, body, do_compression=packed)


@pytest.mark.parametrize("packed", [False, True])
def test_values_are_scipys(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.mat"
    write(path, packed)
    found, wanted = matlab.variables(path), loadmat(path)
    assert list(found) == [n for n in wanted if not n.startswith("__")]
    for name in ("depth", "cube", "single", "small", "flags", "nothing"):
        values = found[name].values()
        assert found[name].shape == values.shape == wanted[name].shape
        assert found[name].kind == values.dtype.name
        assert (values == wanted[name]).all()
    assert found["text"].values() == "tête"
    assert found["cells"].values()[:, 0].tolist() == ["one.png", "", "zwei-ü.jpg"]
    for name in ("complex", "struct"):
        assert found[name].kind == "other"
        with pytest.raises(DataError, match=r"a\.mat: a variable of \(1, 1\) is neither"):
            found[name].values()


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_one_line(tmp_path: Path, packed: bool) -> None:
    """scipy's own reader ends the process at some of these."""
    path = tmp_path / "a.mat"
    write(path, packed)
    body, rng = path.read_bytes(), np.random.default_rng(1)
    told: list[str] = []
    for i in range(300):
        damaged = bytearray(body if i % 3 else body[: rng.integers(len(body))])
        for place in rng.integers(len(damaged) or 1, size=4)[: len(damaged)]:
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            for variable in matlab.variables(path).values():
                if variable.kind != "other":
                    variable.values()
        except DataError as error:
            told.append(str(error))
    assert len(told) > 100
    assert all(line.startswith(str(path)) and "\n" not in line for line in told)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"depth": np.zeros((17_000, 16_000), np.uint8)}, do_compression=True)
    with pytest.raises(DataError, match=r"a\.mat: cannot be read as a MATLAB file \(0\.3 GB in"):
        matlab.variables(path)["depth"].values()
