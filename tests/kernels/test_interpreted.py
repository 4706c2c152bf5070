"""Runs the files of `interpreted/`, each in a process whose kernels were decorated for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(p for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "conftest"))


def run(file: Path, marks: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "ZOO_KERNELS": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(file), "-m", marks]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER.parents[2],
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(file: Path) -> None:
    pytest.importorskip("triton")
    run(file, "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_random_cases_in_the_interpreter(file: Path) -> None:
    pytest.importorskip("triton")
    run(file, "slow")
