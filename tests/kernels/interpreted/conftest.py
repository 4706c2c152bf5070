"""The same cases on a CUDA device: `ZOO_TEST_DEVICE=cuda` makes it the default of every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    named = os.environ.get("ZOO_TEST_DEVICE")
    if not named:
        yield
        return
    torch.set_default_device(named)
    yield
    torch.set_default_device(None)
