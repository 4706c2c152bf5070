"""How kernels are cut, tuned and launched: the parts that need Triton but no device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from zoo.kernels import _launch
from zoo.kernels._launch import Tile
from zoo.kernels.gated_attention_pool import triton_path as gated
from zoo.kernels.gated_linear_attention import triton_path as linear
from zoo.kernels.mutual_attention import triton_path as mutual

ONE, TWO = Tile(16, 16, 4, 1), Tile(32, 16, 4, 1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "_measured", {})
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    monkeypatch.delenv("ZOO_KERNELS_TUNE", raising=False)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bounds", [[0, 40], [0, 3, 3, 4, 60, 97], [0, 0, 0], [0, 16, 32, 33]])
def test_tiles_cover_every_row_once_and_cross_no_border(
    bounds: list[int], dtype: torch.dtype
) -> None:
    rows, size = bounds[-1], 16
    found = _launch.tile_map(torch.tensor(bounds, dtype=dtype), rows, size, torch.zeros(1))
    assert found.programs == rows // size + len(bounds) - 1
    covered = []
    for start, end, bag in zip(found.starts, found.ends, found.bags, strict=True):
        own = range(int(start), min(int(start) + size, int(end)))
        covered += own
        if len(own):
            assert bounds[bag] <= own[0] < own[-1] + 1 <= bounds[bag + 1]
        else:
            assert start == rows  # one too many
    assert sorted(covered) == list(range(rows))
    assert found.first.tolist()[0] == 0


def test_wrong_bounds_lead_nowhere_outside_of_the_rows() -> None:
    found = _launch.tile_map(torch.tensor([0, 50, 20, 900]), 97, 16, torch.zeros(1))
    assert int(found.starts.min()) >= 0
    assert int(found.ends.max()) <= 97


def test_one_bag_needs_no_map() -> None:
    like = torch.zeros(1)
    assert _launch.tile_map(None, 33, 16, like).programs == 3
    assert _launch.tile_map(None, 0, 16, like).programs == 1
    assert _launch.tile_map(None, 33, 16, like).starts is like


def test_tiles_are_measured_only_when_asked_for_and_once_a_bucket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Tile] = []
    monkeypatch.setattr("triton.testing.do_bench", lambda run: run())

    def run(tile: Tile) -> float:
        asked.append(tile)
        return {ONE: 2.0, TWO: 1.0}[tile]

    def choose(rows: int) -> Tile:
        return _launch.choose(("kernel", 512, _launch.bucket(rows)), (ONE, TWO), run)

    assert choose(1000) == ONE
    assert not asked
    monkeypatch.setenv("ZOO_KERNELS_TUNE", "1")
    assert choose(1000) == TWO
    assert asked == [ONE, TWO]
    assert choose(1023) == TWO
    assert len(asked) == 2
    assert choose(5000) == TWO
    assert len(asked) == 4  # another bucket
    assert _launch.choose(("kernel",), (ONE,), run) == ONE
    monkeypatch.setattr(_launch, "INTERPRETED", True)
    assert choose(10**6) == ONE
    assert len(asked) == 4
    with _launch.use_tile(TWO):
        assert choose(1) == TWO


def test_buckets_are_powers_of_four() -> None:
    assert [_launch.bucket(n) for n in (0, 1, 3, 4, 15, 16, 63, 64, 2**20)] == [
        1, 1, 1, 2, 2, 3, 3, 4, 11
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")]
)
def test_precision_is_that_of_pytorch(setting: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert _launch.precision(torch.zeros(1)) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def needed(kernel: str, tile: Tile, dtype: torch.dtype) -> int:
    """Bytes that a tile's operands take in shared memory: the gates' weights are 2 x 128 wide."""
    size = 4 if dtype == torch.float32 else 2
    other = tile.columns if kernel == "rows" else 256
    step = gated.ROWS_STEP if kernel == "rows" else tile.columns
    return step * (tile.rows + other) * size * tile.stages


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_device_gets_tiles_that_fit(dtype: torch.dtype, capability: int) -> None:
    limit = _launch.shared_limit(capability)
    assert limit <= 227 * 1024
    for precision in ("ieee", "tf32"):
        for kernel in ("forward", "backward", "rows"):
            found = gated.tiles(kernel, dtype, 512, 128, capability, precision)
            assert found
            if capability >= 80:
                assert all(needed(kernel, tile, dtype) <= limit for tile in found)
        assert mutual.tiles(dtype, 64, capability, precision)
        assert mutual.tiles(dtype, 128, capability, precision)
    for kernel in ("states", "mix", "mix_backward", "keys_backward"):
        assert linear.tiles(kernel, capability)


def test_copies_are_made_for_strides_alone() -> None:
    x, before = torch.randn(6, 4), _launch.copies
    keep: list[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = [
        (_launch.rows_of, x), (_launch.rows_of, x[:, 1:3]), (_launch.whole, x),
    ]  # fmt: skip
    for form, given in keep:
        assert form(given) is given
    assert _launch.copies == before
    assert _launch.rows_of(x.mT).is_contiguous()
    assert _launch.whole(x[:, 1:3]).is_contiguous()
    assert _launch.copies == before + 2
