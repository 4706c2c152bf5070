"""Kernels of mutual and gated linear attention compile for GPUs without one being there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from tests.kernels.compiling import compile_for

pytest.importorskip("triton")

from zoo.kernels import (
    BroadcastGate,
    FewKeyAttention,
    GatedLinearAttention,
    MutualAttention,
    QueryPool,
    _launch,
)
from zoo.kernels._launch import Tile
from zoo.kernels.gated_linear_attention import triton_path as linear
from zoo.kernels.mutual_attention import triton_path as mutual

pytestmark = pytest.mark.slow
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# PyTorch's default for float32 is "highest", which is ieee here.
PRECISIONS = {torch.float32: ("tf32", "ieee"), torch.bfloat16: ("tf32",), torch.float16: ("tf32",)}
MAPS = ("r", "d", "p", "g_r", "g_d", "g_p")
SPILLS = 700  # bytes a thread
LINEAR: dict[str, tuple[str, ...]] = {
    "states": ("TILES",),
    "mix": ("HEAD", "GATE", "BIAS"),
    "mix_backward": ("TILES", "HEAD", "GATE", "BIAS"),
    "keys_backward": ("HEAD", "GATE"),
}


def mutual_cases() -> Iterator[Any]:
    for capability in (80, 90):
        for dtype in (torch.float32, torch.bfloat16):
            for channels in (64, 128):
                for precision in PRECISIONS[dtype]:
                    shipped = mutual.tiles(dtype, channels, capability, precision)
                    for tile, name in product(shipped, ("products", "by_column", "by_row")):
                        given = (capability, dtype, channels, tile, name, precision)
                        words = (capability, NAMES[dtype], channels, *tile[:2], name, precision)
                        yield pytest.param(*given, id="-".join(map(str, words)))


@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "tile", "name", "precision"), list(mutual_cases())
)
def test_mutual_attention(
    capability: int, dtype: torch.dtype, channels: int, tile: Tile, name: str, precision: str
) -> None:
    kernel = getattr(mutual, name)
    types = {n: NAMES[dtype] if n in MAPS else "*fp32" for n in kernel.arg_names}
    types |= {"N": "i32", "eps": "fp32"}
    constants = {
        "C": channels,
        "CP": channels,
        "BI": tile.rows,
        "BJ": tile.columns,
        "WIDEN": False,
        "PRECISION": precision,
    }
    made = compile_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert made.shared <= _launch.shared_limit(capability)
    assert made.spilled <= SPILLS
    assert capability < 90 or precision == "ieee" or "wgmma" in made.ptx


def linear_cases() -> Iterator[Any]:
    for capability in (80, 90):
        for dtype, name in product(NAMES, LINEAR):
            for tile, precision in product(linear.tiles(name, capability), PRECISIONS[dtype]):
                yield pytest.param(
                    capability, dtype, tile, name, precision,
                    id=f"{capability}-{NAMES[dtype]}-{tile.rows}-{name}-{precision}",
                )  # fmt: skip


@pytest.mark.parametrize(("capability", "dtype", "tile", "name", "precision"), list(linear_cases()))
def test_linear_attention(
    capability: int, dtype: torch.dtype, tile: Tile, name: str, precision: str
) -> None:
    kernel, types = getattr(linear, name), {}
    for n in kernel.arg_names:
        number = n in ("N", "height", "width") or n.endswith(("_stride", "_batch"))
        types[n] = "i32" if number else "*fp32" if n in ("sums", "parts") else NAMES[dtype]
    types |= {"scale": "fp32", "eps": "fp32"}
    given = {"TILES": 4, "HEAD": 16, "GATE": True, "BIAS": True}
    constants = {"C": 96, "BN": tile.rows, "PRECISION": precision}
    constants |= {n: given[n] for n in LINEAR[name]}
    made = compile_for(kernel, types, constants, capability, tile.warps, tile.stages)
    assert made.shared <= _launch.shared_limit(capability)
    assert made.spilled <= SPILLS


def blocks() -> dict[str, tuple[torch.nn.Module, tuple[Any, ...]]]:
    """Block -> module and inputs; those with a gradient are compared by it too."""
    torch.manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, requires_grad=True)

    return {
        "mutual, signed_sqrt": (
            MutualAttention("signed_sqrt"),
            tuple(some(1, 4, 30) for _ in range(3)),
        ),
        "gated linear": (GatedLinearAttention(16, 4), (some(2, 30, 16), (5, 6))),
        "query pool": (QueryPool(16, 4), (some(2, 3, 16), some(2, 30, 16))),
        "few keys": (FewKeyAttention(16, 4), (some(2, 30, 16), some(2, 3, 16))),
        "broadcast gate": (BroadcastGate(6), (some(2, 6, 9, 9), some(2, 1, 16, 16))),
    }


@pytest.mark.parametrize("name", list(blocks()))
def test_inductor_compiles_around_the_operator(name: str) -> None:
    module, inputs = blocks()[name]
    compiled = torch.compile(module, fullgraph=True)
    wanted = [*module.parameters(), *(x for x in inputs if isinstance(x, torch.Tensor))]
    found = []
    for form in (compiled, module):
        out = form(*inputs)
        parts = [out] if isinstance(out, torch.Tensor) else [x for x in out if x is not None]
        total = sum(x.square().sum() for x in parts)
        found.append((parts, torch.autograd.grad(total, wanted, allow_unused=True)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
