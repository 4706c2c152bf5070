from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.holding import close_to_float64, export_of_reference_is_aten_only
from zoo.kernels import ChannelAttention, channel_attention, channel_mutual_attention

R = [[1.0, 0, 2], [0, 1, 1]]
D = [[0.0, 1, 1], [2, 0, 1]]
H = [[1.0, 0, 1], [1, 2, 0]]
EXPECTED = (
    [[0.354083, 0.204430, 0.912597], [0.261204, 0.369398, 0.891806]],
    [[0.734510, 0.259688, 0.626943], [0.618703, 0.378877, 0.688229]],
    [[0.680079, 0.638077, 0.361041], [0.662793, 0.674281, 0.325653]],
)
SHAPES = [(1, 1, 1), (2, 3, 7), (1, 16, 63), (2, 5, 130)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def literal(rgb: Tensor, depth: Tensor, fused: Tensor) -> tuple[Tensor, ...]:
    """The formula of the paper, product by product."""

    def moment(x: Tensor) -> Tensor:
        return x.sign() * (x.abs() + 1e-6).sqrt()

    like_rgb, like_depth = moment(rgb @ fused.mT), moment(depth @ fused.mT)
    raw = (like_rgb @ rgb, like_depth @ depth, (like_rgb + like_depth) @ fused)
    return tuple(
        x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) * x.shape[-1] ** 0.5 for x in raw
    )


def subtracting(x: Tensor, values: Tensor) -> Tensor:
    """The softmax form as its authors write it, with the row maximum."""
    energy = x @ x.mT
    return (energy.amax(-1, keepdim=True) - energy).softmax(-1) @ values


def test_worked_example() -> None:
    module = ChannelAttention("signed_sqrt", eps=0.0, l2_scale=False)
    found = module(*(torch.tensor(x, dtype=torch.float64).unsqueeze(0) for x in (R, D, H)))
    for mine, expected in zip(found, EXPECTED, strict=True):
        torch.testing.assert_close(mine[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_gradchecks() -> None:
    three = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(channel_mutual_attention, three)
    assert torch.autograd.gradcheck(channel_attention, three[:2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_the_literal_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    three = [torch.randn(shape).to(dtype) for _ in range(3)]

    def wide(form: Any) -> Any:
        def run(*xs: Tensor) -> Any:
            out = form(*(x.double() if x.dtype == torch.float64 else x.float() for x in xs))
            single = isinstance(out, Tensor)
            return out.to(xs[0].dtype) if single else tuple(x.to(xs[0].dtype) for x in out)

        return run

    # Slopes of up to 500 at small similarities magnify their rounding, differently in each form.
    exact = 1e-5 if dtype == torch.float32 else None
    close_to_float64(channel_mutual_attention, wide(literal), three, exact=exact)
    close_to_float64(channel_attention, wide(subtracting), three[:2])


def test_large_similarities_do_not_overflow_half_precision() -> None:
    x = torch.full((1, 2, 4096), 8.0, dtype=torch.float16)
    assert torch.isfinite(channel_attention(x)).all()
    assert all(torch.isfinite(y).all() for y in channel_mutual_attention(x, x, x))


def test_values_of_another_width_and_maps() -> None:
    x, values = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 7)
    assert ChannelAttention()(x, values).shape == (2, 3, 7)
    assert torch.equal(ChannelAttention()(x).flatten(2), channel_attention(x.flatten(2)))
    three = ChannelAttention("signed_sqrt")(x, x, x)
    assert [y.shape for y in three] == [x.shape] * 3


def test_expanded_gradients_and_two_runs() -> None:
    three = [torch.randn(2, 30, 6).mT.requires_grad_() for _ in range(3)]
    runs = []
    for _ in range(2):
        out = channel_mutual_attention(*three)
        runs.append([*out, *torch.autograd.grad([x.sum() for x in out], three)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("form", ["softmax", "signed_sqrt"])
def test_compiles_and_exports(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 if form == "softmax" else 3
    inputs = tuple(torch.randn(1, 3, 20) for _ in range(count))
    export_of_reference_is_aten_only(ChannelAttention(form), inputs, monkeypatch)
    compiled = torch.compile(ChannelAttention(form), backend="aot_eager", fullgraph=True)
    for positions in (20, 31):
        inputs = tuple(torch.randn(1, 3, positions) for _ in range(count))
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 2)
        torch.testing.assert_close(compiled(*inputs), ChannelAttention(form)(*inputs))


def test_autocast_does_not_lower_the_similarities() -> None:
    x = torch.randn(1, 4, 30)
    exact = channel_attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(channel_attention(x), exact)


def test_wrong_arguments_are_named() -> None:
    x = torch.randn(1, 2, 5)
    with pytest.raises(ValueError, match="same B and C"):
        channel_attention(x, x[:, :1])
    with pytest.raises(ValueError, match="three maps of one shape"):
        channel_mutual_attention(x, x, x[..., :4])
    with pytest.raises(ValueError, match="rgb, depth and fused"):
        ChannelAttention("signed_sqrt")(x, x)
    with pytest.raises(ValueError, match="rgb, depth and fused"):
        ChannelAttention("softmax")(x, x, x)
    with pytest.raises(ValueError, match="form is one of"):
        ChannelAttention("mean")
