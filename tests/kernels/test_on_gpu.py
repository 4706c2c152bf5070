"""Runs the files of `interpreted/` on a CUDA device, where the kernels are really compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.test_interpreted import FILES, FOLDER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_on_the_device(file: Path) -> None:
    environment = {**os.environ, "ZOO_TEST_DEVICE": "cuda", "ZOO_KERNELS": "triton"}
    environment.pop("TRITON_INTERPRET", None)
    # The conftest of all tests needs the whole zoo; kernels need torch and triton alone.
    command = [sys.executable, "-m", "pytest", "-q", str(file), f"--confcutdir={FOLDER}"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER.parents[2],
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
