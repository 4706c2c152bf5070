"""Attention of one slide as files for other tools: HDF5 for programs, csv for tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from zoo import files
from zoo.task import NOTICE


def write_attention(
    folder: Path,
    *,
    name: str,
    branches: np.ndarray,
    coords: np.ndarray | None,
    settings: Mapping[str, Any],
    formats: Literal["h5", "csv", "both"] = "both",
) -> list[Path]:
    """Write `<name>.h5` and/or `<name>.csv` below `folder`.

    Args:
        folder: Where to write.
        name: Slide id.
        branches: (K, N) softmax attention of each branch; each row sums to 1.
        coords: (N, 2) top-left corners of the tiles in level-0 pixels, if known.
        settings: Extraction settings that go into the attributes, such as `patch_size_level0`.
        formats: Which files.

    Returns:
        The files written: `attention` is the mean over branches and sums to 1; a tile of average
        attention has 1 / N.
    """
    written = []
    if formats in ("h5", "both"):
        path = folder / f"{name}.h5"
        files.write_whole(path, lambda p: _h5(p, name, branches, coords, settings))
        written.append(path)
    if formats in ("csv", "both"):
        path = folder / f"{name}.csv"
        table = _table(branches, coords)
        files.write_whole(path, lambda p: table.to_csv(p, index=False, float_format="%.8g"))
        written.append(path)
    return written


def _h5(
    path: Path,
    name: str,
    branches: np.ndarray,
    coords: np.ndarray | None,
    settings: Mapping[str, Any],
) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["slide_id"] = name
        file.attrs["note"] = NOTICE
        file.create_dataset("attention", data=branches.mean(0).astype(np.float32))
        file.create_dataset("branch_attention", data=branches.astype(np.float32))
        if coords is not None:
            made = file.create_dataset("coords", data=coords.astype(np.int64))
            for key, value in settings.items():
                made.attrs[key] = value


def _table(branches: np.ndarray, coords: np.ndarray | None) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {"instance": np.arange(branches.shape[1])}
    if coords is not None:
        columns |= {"x": coords[:, 0], "y": coords[:, 1]}
    columns["attention"] = branches.mean(0)
    columns |= {f"branch_{k}": row for k, row in enumerate(branches)}
    return pd.DataFrame(columns)
