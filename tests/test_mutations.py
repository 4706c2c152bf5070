"""Damaged data sets through check, training's reading and prediction: a line, or nothing at all.

What a failure prints is the command that shows it again: `python -m tests.mutating …`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.mutating.sets import SETS
from tests.mutating.trial import KINDS, Bench, Verdict, scratch
from zoo import hdf5
from zoo.data import ListSplit, plain_name, read_csv, read_json, read_text
from zoo.errors import DataError

TASKS = list(dict.fromkeys(s.task for s in SETS))
QUICK, MANY = 200, 1000
SEED = 11


@pytest.fixture(scope="module", params=TASKS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="zoo-mutating-", dir=scratch()) as folder:
        yield Bench(request.param, Path(folder))


def run(bench: Bench, first: int, count: int) -> list[Verdict]:
    """`count` mutations; any fault of one fails."""
    done: list[Verdict] = []
    faults: list[str] = []
    number = first
    while len(done) < count:
        verdict = bench.trial(SEED, number)
        if verdict is not None:
            done.append(verdict)
            if verdict.faults:
                told = f"--task {verdict.set.task} --seed {SEED} --only {number}"
                faults.append(f"{told}  {verdict}: {verdict.faults}")
        number += 1
    assert not faults, "\n".join(faults)
    return done


def test_damaged_files_are_told_in_a_line(bench: Bench) -> None:
    done = run(bench, 0, QUICK)
    # Otherwise nothing is damaged, or nobody looks.
    assert sum(verdict.told() for verdict in done) > QUICK // 4
    assert len({verdict.damage.kind for verdict in done}) > 15


@pytest.mark.slow
def test_many_damaged_files_are_told_in_a_line(bench: Bench) -> None:
    run(bench, 10_000, MANY)


def test_every_kind_of_damage_is_drawn() -> None:
    assert len(set(KINDS)) > 30


# -- shared readers -----------------------------------------------------------------------------


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    os.mkfifo(path)
    for read in (read_text, read_json):
        with pytest.raises(DataError, match=r"a\.json: is no plain file"):
            read(path)
    with pytest.raises(DataError, match=r"a\.json: is no plain file"), hdf5.opened(path):
        pass


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"9" * 5000, "cannot be read as JSON"),
    ],
)
def test_json_that_breaks_parsers(tmp_path: Path, body: bytes, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(body)
    with pytest.raises(DataError, match=told) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))


def test_cells_that_would_fall_off_a_row_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2,\n3,4,\n")
    assert read_csv(path).to_numpy().tolist() == [["1", "2"], ["3", "4"]]
    path.write_text("a,b\n1,2,\n3,4,5\n")
    with pytest.raises(DataError, match=r"a\.csv: row 3 has 3 cells, the first row 2"):
        read_csv(path)


def test_names_that_no_file_can_have() -> None:
    assert plain_name("ü" * 127, "list") == "ü" * 127
    with pytest.raises(DataError, match="is longer than a file's name can be"):
        plain_name("ü" * 128, "list")
    name = os.fsdecode(b"caf\xe9.png")
    with pytest.raises(DataError, match=r"caf\\udce9\.png: the file's name is no text in UTF-8"):
        ListSplit([name], [name], "")


def test_hdf5_that_claims_what_it_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["sound"] = np.zeros((3, 4))
        file.create_dataset("packed", (2**20,), "u1", compression="gzip")
        file.create_dataset("bomb", (2**33, 8), "f4", chunks=(1024, 8), compression="gzip")
        file["nothing"] = h5py.Empty("f4")
    with hdf5.opened(path) as file:
        assert hdf5.own(file["sound"], "here").shape == (3, 4)
        assert hdf5.own(file["packed"], "here").shape == (2**20,)
        with pytest.raises(DataError, match=r"here claims 274\.9 GB, of which the file holds 0\.0"):
            hdf5.own(file["bomb"], "here")
        with pytest.raises(DataError, match="here is empty"):
            hdf5.own(file["nothing"], "here")
