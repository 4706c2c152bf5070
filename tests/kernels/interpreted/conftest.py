"""The same cases on a CUDA device: `ZOO_TEST_DEVICE=cuda` makes it the default of every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(autouse=True)
def _rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter makes bfloat16 by cutting bits off; a GPU rounds to the nearest."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cut = builder.create_fp_trunc

    def to_nearest(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (tl.float32, tl.bfloat16):
            return cut(self, source, wanted)
        bits = np.ascontiguousarray(source.data, np.float32).view(np.uint32)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        data = np.where(np.isnan(source.data), 0x7FC0, nearest).astype(np.uint16)
        return interpreter.TensorHandle(data, wanted.scalar)

    monkeypatch.setattr(builder, "create_fp_trunc", to_nearest)
