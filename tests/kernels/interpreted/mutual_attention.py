"""Mutual attention through Triton's interpreter; run by test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.agreement import guarded, poisoned
from tests.kernels.holding import close_to_float64
from zoo.kernels import _launch, signed_sqrt_attention
from zoo.kernels._launch import Tile, use_tile
from zoo.kernels.mutual_attention import reference, triton_path

SMALL = Tile(16, 16, 4, 1)
SHIPPED = [
    *((tile, torch.bfloat16, 5) for tile in triton_path.HALF),
    *((tile, torch.bfloat16, 65) for tile in triton_path.HALF_WIDE),
    *((tile, torch.float32, 5) for tile in (*triton_path.FULL, *triton_path.EXACT)),
    *((tile, torch.float32, 65) for tile in triton_path.EXACT_WIDE),
    *((tile, torch.float16, 65) for tile in triton_path.FULL_WIDE),
]
CASES = [
    ((1, 1, 1), torch.float32),
    ((2, 3, 15), torch.float32),
    ((1, 16, 16), torch.float32),
    ((2, 17, 33), torch.float32),
    ((1, 5, 50), torch.bfloat16),
    ((1, 5, 50), torch.float16),
]


def maps(shape: tuple[int, ...], dtype: torch.dtype, sign: str, seed: int = 0) -> list[Tensor]:
    seeded = torch.Generator(torch.get_default_device()).manual_seed(seed)
    if sign == "rectified":
        made = [torch.randn(shape, generator=seeded).relu() for _ in range(3)]
        made[0][..., 0] = 0.0
    else:
        # Similarities of both signs, but none near 0: there the slope jumps from 0 to 500, and
        # rounding decides on which side a cancelling sum falls.
        made = [torch.rand(shape, generator=seeded) + 0.5 for _ in range(3)]
        flips = [torch.rand(shape[0], 1, shape[2], generator=seeded) < 0.5 for _ in range(3)]
        made = [torch.where(flip, -x, x) for flip, x in zip(flips, made, strict=True)]
    return [x.to(dtype) for x in made]


def check(given: list[Tensor], sign: str) -> None:
    inputs = [poisoned(x) for x in given]
    # Signed terms cancel, and the kernel rounds their moments to bfloat16 where the definition has
    # float32 throughout: the rounding errors of all terms add up beside a sum that is small.
    cancels = sign == "signed" and inputs[0].dtype == torch.bfloat16
    exact = 1.2e-2 if cancels else None
    close_to_float64(
        lambda *xs: torch.ops.zoo.moment_products(*xs, 1e-6),
        lambda *xs: reference.moment_products(*xs, 1e-6),
        inputs,
        exact=exact,
    )


@pytest.mark.parametrize(("tile", "dtype", "channels"), SHIPPED, ids=str)
def test_shipped_tiles(tile: Tile, dtype: torch.dtype, channels: int) -> None:
    with use_tile(tile), guarded():
        shape = (1, channels, max(tile.rows, tile.columns) + 3)
        check(maps(shape, dtype, "rectified"), "rectified")


@pytest.mark.parametrize("sign", ["signed", "rectified"])
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_kernels_agree_with_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, sign: str
) -> None:
    with use_tile(SMALL), guarded():
        check(maps(shape, dtype, sign), sign)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_random_cases(seed: int) -> None:
    draw = torch.Generator(torch.get_default_device()).manual_seed(seed)
    sizes = [int(torch.randint(1, top, (), generator=draw)) for top in (3, 40, 70)]
    dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
    sign = ("signed", "rectified")[seed // 3 % 2]
    with use_tile(SMALL), guarded():
        check(maps((sizes[0], sizes[1], sizes[2]), dtype, sign, seed), sign)


def test_two_runs_and_items_agree_bit_by_bit() -> None:
    inputs = [x.requires_grad_() for x in maps((2, 5, 20), torch.float32, "signed")]
    runs = []
    with use_tile(SMALL):
        for _ in range(2):
            out = signed_sqrt_attention(*inputs)
            runs.append([*out, *torch.autograd.grad([x.square().sum() for x in out], inputs)])
        single = signed_sqrt_attention(*(x[1:] for x in inputs))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all(torch.equal(a[1], b[0]) for a, b in zip(runs[0], single, strict=False))


def test_nan_stays_in_its_item() -> None:
    inputs = maps((2, 3, 20), torch.float32, "signed")
    with use_tile(SMALL):
        clean = signed_sqrt_attention(*inputs)
        inputs[2][0, 1, 2] = float("nan")
        spoilt = signed_sqrt_attention(*inputs)
    for one, other in zip(spoilt, clean, strict=True):
        assert torch.equal(one[1], other[1])
        assert one[0].isnan().any()


def test_incoming_gradients_may_be_expanded() -> None:
    inputs = [x.requires_grad_() for x in maps((2, 5, 20), torch.float32, "signed")]
    with use_tile(SMALL):
        raw = torch.ops.zoo.moment_products(*inputs, 1e-6)
        expanded = torch.autograd.grad([x.sum() for x in raw], inputs, retain_graph=True)
        dense = torch.autograd.grad(raw, inputs, [torch.ones(x.shape) for x in raw])
    assert all(torch.equal(a, b) for a, b in zip(expanded, dense, strict=True))


def test_copies_for_the_sake_of_strides_are_counted() -> None:
    inputs = maps((2, 5, 20), torch.float32, "signed")
    strange = [x.mT.contiguous().mT for x in inputs]
    with use_tile(SMALL):
        before = _launch.copies
        expected = signed_sqrt_attention(*inputs)
        assert _launch.copies == before
        for mine, other in zip(signed_sqrt_attention(*strange), expected, strict=True):
            assert torch.equal(mine, other)
    assert _launch.copies == before + 3


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    inputs = [x.requires_grad_(grad) for x in maps((2, 3, 10), torch.float32, "signed")]
    with use_tile(SMALL):
        torch.library.opcheck(torch.ops.zoo.moment_products.default, (*inputs, 1e-6))


def test_zero_eps_has_finite_gradients() -> None:
    inputs = [x.requires_grad_() for x in maps((1, 3, 9), torch.float32, "rectified")]
    with use_tile(SMALL):
        out = signed_sqrt_attention(*inputs, eps=0.0)
        grads = torch.autograd.grad([x.sum() for x in out], inputs)
    assert all(torch.isfinite(x).all() for x in grads)


def test_what_the_kernels_do_not_take_is_refused_in_words() -> None:
    wide = maps((1, 129, 4), torch.float32, "signed")
    with pytest.raises(RuntimeError, match="up to 128 channels, got 129"):
        signed_sqrt_attention(*wide)
    with pytest.raises(RuntimeError, match=r"no maps of torch\.float64"):
        signed_sqrt_attention(*(x[:, :3].double() for x in wide))
