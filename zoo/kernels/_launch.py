"""What all Triton kernels here share: tiles, precision of products, maps of ragged tiles.

Triton's interpreter computes `tl.dot` on bfloat16 blocks wrongly and silently, and it cannot run
the autotuner. So every product goes through `_jit.dot`, which widens both operands there, and
kernels are launched with a tile chosen in Python: the shipped one, a measured one
(`ZOO_KERNELS_TUNE=1`), or the one a test asks for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoo.kernels._dispatch import interpreting

INTERPRETED = interpreting()
"""Read when the kernels are decorated, as Triton itself does."""

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory one block may use, by compute capability."""

copies = 0
"""How often an operand had to be copied because of its strides (for debugging)."""


class Tile(NamedTuple):
    """How a kernel is cut.

    Attributes:
        rows: Rows of a tile.
        columns: Columns of a step along the features.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
    """

    rows: int
    columns: int
    warps: int
    stages: int


_forced: Tile | None = None
_measured: dict[tuple[object, ...], Tile] = {}


@contextmanager
def use_tile(tile: Tile) -> Iterator[None]:
    """Every launch within the context is cut by this tile (tests)."""
    global _forced
    before, _forced = _forced, tile
    try:
        yield
    finally:
        _forced = before


def choose(
    key: tuple[object, ...], candidates: Sequence[Tile], run: Callable[[Tile], object]
) -> Tile:
    """The tile to launch with.

    Args:
        key: What the choice depends on: kernel, widths, dtype and `bucket(rows)`.
        candidates: Tiles that fit the device, the shipped one first.
        run: Launches the kernel with a tile; called only if measuring was asked for.
    """
    if _forced is not None:
        return _forced
    if INTERPRETED or len(candidates) < 2 or os.environ.get("ZOO_KERNELS_TUNE") != "1":
        return candidates[0]
    if key not in _measured:
        from triton.testing import do_bench

        _measured[key] = min(candidates, key=lambda tile: float(do_bench(lambda: run(tile))))
    return _measured[key]


def bucket(rows: int) -> int:
    """Power of four that covers `rows`: similar sizes share a tile."""
    return (max(rows, 1).bit_length() + 1) // 2


def capability(device: torch.device) -> int:
    """Compute capability such as 90; the interpreter counts as the newest."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_limit(capability: int) -> int:
    """Bytes of shared memory one block may use on a device of that capability."""
    known = [value for value in SHARED_MEMORY if value <= capability]
    return SHARED_MEMORY[max(known)] if known else 48 * 1024


def precision(x: Tensor) -> str:
    """How products of float32 operands are computed, following the setting of PyTorch."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def padded(size: int) -> int:
    """Smallest power of two that covers `size`, at least the 16 a matrix instruction needs."""
    return max(16, 1 << (size - 1).bit_length())


def rows_of(x: Tensor) -> Tensor:
    """`x` itself if its innermost stride is 1, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else _copied(x)


def whole(x: Tensor) -> Tensor:
    """`x` itself if it is contiguous, else a contiguous copy."""
    return x if x.is_contiguous() else _copied(x)


def _copied(x: Tensor) -> Tensor:
    global copies
    copies += 1
    return x.contiguous()


class TileMap(NamedTuple):
    """Which rows each tile covers; made on the device, without waiting for it.

    Attributes:
        programs: How many to launch, an upper bound of the tiles needed.
        starts: (T,) first row of each tile; a tile too many starts at N.
        ends: (T,) first row past the bag of each tile.
        bags: (T,) bag of each tile.
        first: (B + 1,) first tile of each bag.
    """

    programs: int
    starts: Tensor
    ends: Tensor
    bags: Tensor
    first: Tensor


def tile_map(cu_seqlens: Tensor | None, rows: int, size: int, like: Tensor) -> TileMap:
    """Cuts packed bags into tiles of `size` rows that never cross a border.

    Args:
        cu_seqlens: (B + 1,) integer bounds; None: one bag, for which kernels need no map.
        rows: Number of rows N.
        size: Rows of a tile.
        like: A tensor on the device of the kernel; stands in for the map of a single bag.
    """
    if cu_seqlens is None:
        return TileMap(max(1, triton.cdiv(rows, size)), like, like, like, like)
    # Wrong bounds must not lead outside of the rows, and reading them here would stall the device.
    cu = cu_seqlens.to(torch.int64).clamp(0, rows)
    first = torch.zeros_like(cu)
    torch.cumsum((cu[1:] - cu[:-1] + size - 1).clamp_min(0) // size, 0, out=first[1:])
    count = rows // size + cu.numel() - 1
    tile = torch.arange(count, device=cu.device)
    bags = torch.searchsorted(first[1:], tile, right=True).clamp_max(cu.numel() - 2)
    starts = cu[bags] + (tile - first[bags]) * size
    return TileMap(count, torch.where(tile < first[-1], starts, rows), cu[bags + 1], bags, first)


def keywords(tile: Tile) -> dict[str, Any]:
    """Launch options of a tile."""
    return {"num_warps": tile.warps, "num_stages": tile.stages}
