"""Every shipped tile compiles for the GPUs it is shipped for, without one being there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.kernels.compiling import compile_for

pytest.importorskip("triton")

from zoo.kernels import _launch
from zoo.kernels.gated_attention_pool import triton_path

pytestmark = pytest.mark.slow
SPILLS = 400  # bytes a thread; more sits in the first-level cache no longer
KERNELS = {
    "forward": triton_path.score_tile,
    "backward": triton_path.score_backward_tile,
    "rows": triton_path.rows_backward,
}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
NARROW = ("x", "value", "gate", "d_pooled", "d_both", "stacked", "d_x")
BOUNDS = ("starts", "ends", "bags", "first")
NUMBERS = ("x_stride", "rows", "count")


def shipped() -> Iterator[Any]:
    for capability in (80, 90):
        for dtype, precision in (
            (torch.bfloat16, "tf32"),
            (torch.float16, "tf32"),
            (torch.float32, "tf32"),
            (torch.float32, "ieee"),
        ):
            for kernel in KERNELS:
                for width in (128, 512):
                    for tile in triton_path.tiles(kernel, dtype, width, 128, capability, precision):
                        given = (capability, dtype, precision, kernel, width, tile)
                        words = (capability, NAMES[dtype], precision, kernel, width, *tile)
                        yield pytest.param(*given, id="-".join(map(str, words)))


def types(kernel: Any, dtype: torch.dtype) -> dict[str, str]:
    found = {}
    for name in kernel.arg_names:
        found[name] = "*fp32"
        if name in NARROW:
            found[name] = "*" + NAMES[dtype]
        elif name in BOUNDS:
            found[name] = "*i64"
        elif name in NUMBERS:
            found[name] = "i32"
    return found


@pytest.mark.parametrize(
    ("capability", "dtype", "precision", "kernel", "width", "tile"), list(shipped())
)
def test_compiles_within_the_limits(
    capability: int,
    dtype: torch.dtype,
    precision: str,
    kernel: str,
    width: int,
    tile: _launch.Tile,
) -> None:
    function = KERNELS[kernel]
    beside_half = "tf32x3" if kernel == "forward" else "tf32"
    constants = {
        "D": width,
        "A": 128,
        "K": 5,
        "AP": 128,
        "KP": 16,
        "BN": tile.rows,
        "BK": tile.columns,
        "BD": tile.columns,
        "BA": triton_path.ROWS_STEP,
        "GATE": True,
        "POOL": True,
        "LOGITS": True,
        "RAGGED": True,
        "WIDEN": False,
        "PRECISION": precision,
        "SMALL": precision if dtype == torch.float32 else beside_half,
    }
    constants = {k: v for k, v in constants.items() if k in function.arg_names}
    made = compile_for(
        function, types(function, dtype), constants, capability, tile.warps, tile.stages
    )
    assert made.shared <= _launch.shared_limit(capability)
    assert made.spilled <= SPILLS
    if capability == 90 and dtype != torch.float32:
        assert "wgmma.mma_async" in made.ptx


def test_the_merging_kernel_compiles() -> None:
    kernel = triton_path.merge_tiles
    constants = {"D": 512, "K": 5, "RAGGED": True}
    constants |= {"BT": triton_path.MERGE_TILES, "BD": triton_path.MERGE_COLUMNS}
    for capability in (80, 90):
        types_of = types(kernel, torch.float32)
        assert compile_for(kernel, types_of, constants, capability, 4, 3).spilled == 0
