"""Gated linear attention through Triton's interpreter; run by test_interpreted.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.agreement import guarded, poisoned
from tests.kernels.holding import close_to_float64
from tests.kernels.test_gated_linear_attention import inputs, using
from zoo.kernels import GatedLinearAttention, _launch, gated_linear_attention
from zoo.kernels._launch import Tile, use_tile
from zoo.kernels.gated_linear_attention import reference, triton_path

SMALL = Tile(16, triton_path.BLOCK, 4, 1)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [  # batch, grid, channels, heads
    (1, (1, 1), 4, 1),
    (2, (3, 5), 8, 2),
    (1, (7, 9), 24, 6),
    (2, (4, 4), 48, 12),
    (1, (2, 15), 96, 3),
    (1, (3, 7), 40, 5),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check(case: Any, dtype: torch.dtype, gate: bool = True) -> None:
    made = [x.to(dtype) for x in inputs(case, gate)]
    own = [poisoned(x) if x.dim() == 3 else x for x in made]
    close_to_float64(
        using(gated_linear_attention, case, gate),
        using(reference.gated_linear_attention, case, gate),
        own,
    )


@pytest.mark.parametrize(
    ("tile", "dtype"),
    list(zip((*triton_path.TILES, *triton_path.TILES_BACKWARD), (*DTYPES, DTYPES[0]), strict=True)),
    ids=str,
)
def test_shipped_tiles(tile: Tile, dtype: torch.dtype) -> None:
    with use_tile(tile), guarded():
        check((1, (3, tile.rows // 2), 8, 2), dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_agree_with_the_definition(case: Any) -> None:
    with use_tile(SMALL), guarded():
        check(case, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_without_a_gate(dtype: torch.dtype) -> None:
    with use_tile(SMALL), guarded():
        check(CASES[1], dtype, False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_cases(seed: int) -> None:
    draw = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def below(top: int) -> int:
        return int(torch.randint(1, top, (), generator=draw))

    head = (2, 4, 8, 16, 32)[seed % 5]
    heads = below(1 + 72 // head) * (2 if head == 2 else 1)
    case = (below(3), (below(9), below(12)), head * heads, heads)
    with use_tile(SMALL), guarded():
        check(case, DTYPES[seed % 3], bool(seed % 2))


def test_two_runs_and_items_agree_bit_by_bit() -> None:
    case = (2, (3, 7), 8, 2)
    own = [x.requires_grad_() for x in inputs(case)]
    run = using(gated_linear_attention, case)
    with use_tile(SMALL):
        runs = [[y := run(*own), *torch.autograd.grad(y.square().sum(), own)] for _ in range(2)]
        single = run(*(x[1:] for x in own[:4]), *own[4:])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert torch.equal(runs[0][0][1], single[0])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_autocast_lowers_the_tokens(dtype: torch.dtype) -> None:
    case = (2, (3, 7), 8, 2)
    own = [x.requires_grad_() for x in inputs(case)]
    run, device = using(gated_linear_attention, case), own[0].device.type
    with use_tile(SMALL):
        expected = run(*(x.to(dtype) for x in own[:4]), *own[4:])
        with torch.autocast(device, dtype):
            found = run(*own)
        grads = torch.autograd.grad(found.float().sum(), own)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_copies_for_the_sake_of_strides_are_counted() -> None:
    case = (2, (3, 7), 8, 2)
    own = inputs(case)
    strange = [x.mT.contiguous().mT for x in own[:4]]
    run = using(gated_linear_attention, case)
    with use_tile(SMALL):
        before = _launch.copies
        expected = run(*own)
        assert _launch.copies == before
        assert torch.equal(run(*strange, *own[4:]), expected)
    assert _launch.copies == before + 4  # q, k, v and the gate


def test_nan_stays_in_its_item() -> None:
    case = (2, (4, 5), 8, 2)
    own = inputs(case)
    with use_tile(SMALL):
        clean = using(gated_linear_attention, case)(*own)
        own[1][0, 3] = float("nan")
        spoilt = using(gated_linear_attention, case)(*own)
    assert torch.equal(spoilt[1], clean[1])
    assert spoilt[0].isnan().all()


def test_module_with_views_of_one_projection_and_expanded_gradients() -> None:
    module, x = GatedLinearAttention(8, 2), torch.randn(2, 12, 8, requires_grad=True)
    with use_tile(SMALL):
        out = module(x, (3, 4))
        (mine,) = torch.autograd.grad(out.sum(), x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_KERNELS", "reference")
        plain = module(x, (3, 4))
        torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-4)
        (other,) = torch.autograd.grad(plain.sum(), x)
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_opcheck() -> None:
    case = (1, (2, 3), 4, 2)
    own = [x.requires_grad_() for x in inputs(case)]
    with use_tile(SMALL):
        torch.library.opcheck(
            torch.ops.zoo.gated_linear_attention.default, (*own, *case[1], case[3])
        )


def test_what_the_kernels_do_not_take_is_refused_in_words() -> None:
    with pytest.raises(RuntimeError, match="2 to 32 channels, got 64"):
        GatedLinearAttention(64, 1)(torch.randn(1, 4, 64))
    with pytest.raises(RuntimeError, match="no tokens of"):
        GatedLinearAttention(8, 1).double()(torch.randn(1, 4, 8).double())
