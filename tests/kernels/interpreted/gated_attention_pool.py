"""Gated attention pooling through Triton's interpreter; run by test_interpreted.py."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.kernels.agreement import guarded
from tests.kernels.gated import Case, build, check, check_and_shrink, run
from tests.kernels.test_gated_attention_pool_paths import calls, random_case
from zoo.kernels import GatedAttentionPool, _launch
from zoo.kernels._launch import Tile, use_tile
from zoo.kernels.gated_attention_pool import triton_path

HALF = (torch.bfloat16, torch.float16)
SHIPPED = [
    *((tile, torch.float32) for tile in {*triton_path.FORWARD_FULL, *triton_path.BACKWARD_FULL}),
    *((tile, torch.bfloat16) for tile in {*triton_path.FORWARD_HALF, *triton_path.BACKWARD_HALF}),
    *((tile, torch.float16) for tile in triton_path.ROWS_HALF),
    *((tile, torch.float32) for tile in triton_path.ROWS_FULL),
]
SMALL = Tile(16, 16, 4, 2)
CASES = [
    *(Case(use=use, dtype=dtype) for use in ("pool", "mask") for dtype in (torch.float32, *HALF)),
    *(Case(use=use) for use in ("logits", "softmax", "rows", "bfloat16", "nothing", "half")),
    Case(use="pool", grads="pooled"),
    Case(use="pool", grads="logits"),
    Case(bounds=None, rows=49, dim=33, branches=1, attn=7),
    Case(bounds=(0, 1, 2, 3), rows=3, branches=16),
    Case(bounds=(0, 0, 0), rows=0),
    Case(use="mask", spread=1e4),
    Case(use="pool", spread=0.0),
]


@pytest.mark.parametrize(("tile", "dtype"), SHIPPED, ids=str)
def test_shipped_tiles(tile: Tile, dtype: torch.dtype) -> None:
    rows = tile.rows + 1  # one tile and a bit, and a border inside
    bounds = (0, 1, 1, tile.rows // 2, rows)
    with use_tile(tile), guarded():
        check(Case(bounds=bounds, rows=rows, dim=tile.columns + 8, dtype=dtype), "triton")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_agree_with_the_definition(case: Case) -> None:
    with use_tile(SMALL), guarded():
        check(case, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_cases(seed: int) -> None:
    with use_tile(SMALL), guarded():
        check_and_shrink(random_case(seed), lambda case: check(case, "triton"))


def test_runs_and_packing_agree_bit_by_bit() -> None:
    given = build(Case())
    cu = given.x.new_tensor([0, 3, 3, 4, 60, 97]).long()
    with use_tile(SMALL):
        first, second = run(Case(), given), run(Case(), given)
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
        for bag, (start, end) in enumerate(pairwise(cu.tolist())):
            single = given.module(given.x[start:end])
            assert torch.equal(first["pooled"][bag], single.pooled[0])
            assert torch.equal(first["logits"][start:end], single.logits)
            assert torch.equal(first["lse"][bag], single.lse[0])


@pytest.mark.parametrize("shape", ["sum", "transposed"])
def test_incoming_gradients_may_be_expanded_or_transposed(shape: str) -> None:
    given = build(Case())
    x = given.x.clone().requires_grad_()
    inputs, cu = [x, *given.module.parameters()], Case().cu_seqlens
    with use_tile(SMALL):
        out = given.module(x, cu)[:2]
        strange = [torch.ones(()).expand(value.shape) for value in out]
        if shape == "transposed":
            strange = [torch.randn(v.shape[::-1]).permute(*range(v.dim())[::-1]) for v in out]
        found = torch.autograd.grad(out, inputs, strange, retain_graph=True)
        expected = torch.autograd.grad(out, inputs, [probe.contiguous() for probe in strange])
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_lowers_rows_and_wide_weights_alone(dtype: torch.dtype) -> None:
    given, cu = build(Case()), Case().cu_seqlens
    x, device = given.x.clone().requires_grad_(), given.x.device.type
    inputs = [x, *given.module.parameters()]
    with use_tile(SMALL):
        expected = given.module(x.to(dtype), cu)
        with torch.autocast(device, dtype):
            found = given.module(x, cu)
            with torch.autocast(device, enabled=False):
                exact = given.module(x, cu)
        plain = given.module(x, cu)
        grads = torch.autograd.grad([found.pooled.float().sum(), found.logits.sum()], inputs)
    for mine, other in zip((*found, *exact), (*expected, *plain), strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)
    assert found.pooled.dtype == dtype
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_bounds_of_32_bits() -> None:
    given, cu = build(Case()), Case().cu_seqlens
    assert cu is not None
    with use_tile(SMALL):
        pairs = zip(given.module(given.x, cu.int()), given.module(given.x, cu), strict=True)
        assert all(torch.equal(mine, other) for mine, other in pairs)


def test_rows_further_apart_than_32_bits_reach(tmp_path: Path) -> None:
    if torch.get_default_device().type != "cpu":
        pytest.skip("the memory is a file of holes, which a device has not")
    module, rows, stride = GatedAttentionPool(24, 16, 2), torch.randn(3, 24), 2**30 + 8
    file, count = str(tmp_path / "holes"), 2 * stride + 24
    x = torch.from_file(file, shared=True, size=count).as_strided((3, 24), (stride, 1))
    x.copy_(rows)
    with use_tile(SMALL):
        for mine, other in zip(module(x), module(rows), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("use", ["pool", "logits", "softmax", "rows"])
def test_opcheck(use: str) -> None:
    for grad in (False, True):
        with use_tile(SMALL):
            torch.library.opcheck(torch.ops.zoo.scored_pool.default, calls()[use](grad))


def test_nan_stays_in_its_bag() -> None:
    module, x = GatedAttentionPool(24, 16, 2), torch.randn(40, 24)
    cu = torch.tensor([0, 10, 40])
    with use_tile(SMALL):
        clean = module(x, cu)
        x[3] = float("nan")
        x.requires_grad_()
        spoilt = module(x, cu)
        assert spoilt.pooled[0].isnan().all()
        assert torch.equal(spoilt.pooled[1], clean.pooled[1])
        (gradient,) = torch.autograd.grad(spoilt.pooled[1].sum() + spoilt.logits[10:].sum(), x)
        assert torch.isfinite(gradient[10:]).all()


def test_rows_with_an_inner_stride_are_copied_once_and_counted() -> None:
    module, x = GatedAttentionPool(24, 16, 2), torch.randn(24, 20).mT
    before = _launch.copies
    with use_tile(SMALL):
        torch.testing.assert_close(module(x).pooled, module(x.contiguous()).pooled)
    assert _launch.copies == before + 1


def test_sizes_the_kernels_do_not_take_are_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="go up to 128 units and 64 branches, got 256"):
        GatedAttentionPool(8, 256)(torch.randn(3, 8))
    with pytest.raises(RuntimeError, match="no rows of"):
        GatedAttentionPool(8, 16).double()(torch.randn(3, 8).double())
