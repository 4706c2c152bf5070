"""Autocast: rows are lowered to its dtype, logits and statistics are not, on every path."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels import test_query_pool_paths as queries
from tests.kernels.agreement import hold, path
from tests.kernels.gated import Case, build, run, scales
from tests.kernels.test_gated_linear_attention import inputs, using
from zoo.kernels import (
    GatedAttentionPool,
    GatedLinearAttention,
    QueryPool,
    gated_linear_attention,
    signed_sqrt_attention,
    softmax_pool,
    two_stream_attention,
)
from zoo.kernels.gated_attention_pool import op, torch_path
from zoo.kernels.query_pool import torch_path as query_path

LOW = (torch.bfloat16, torch.float16)
PATHS = ("reference", "torch", "auto")
USES = ("pool", "mask", "logits", "softmax", "rows", "nothing", "half")
BOUNDS = torch.tensor([0, 3, 3, 4, 60, 97])
LINEAR = (2, (5, 7), 24, 6)


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_path, "_CHUNK_CPU", 16)
    monkeypatch.setattr(query_path, "_CHUNK", 16)
    monkeypatch.delenv("ZOO_KERNELS", raising=False)
    torch.manual_seed(0)


def cast(dtype: torch.dtype = torch.bfloat16, *, enabled: bool = True) -> Any:
    return torch.autocast("cpu", dtype, enabled=enabled)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("which", ["torch", "auto"])
@pytest.mark.parametrize("use", USES)
def test_gated_pooling_agrees_with_the_definition(use: str, which: str, dtype: torch.dtype) -> None:
    case = Case(use=use)
    given = build(case)
    with path("reference"):
        exact = run(case, given, exact=True)
        with cast(dtype):
            plain = run(case, given)
    with path(which), cast(dtype):
        found = run(case, given)
    hold(found, plain, exact, dtype, scales(case, given))
    for name, value in found.items():
        assert value.dtype == (dtype if name == "pooled" else torch.float32), name
        assert plain[name].dtype == value.dtype, name


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_query_pooling_agrees_with_the_definition(
    norm: bool, dense: bool, dtype: torch.dtype
) -> None:
    case = queries.Case(norm=norm, **({"dense": 5, "bounds": None} if dense else {}))
    built = queries.build(case)
    with path("reference"):
        exact = queries.run(case, *built, exact=True)
        with cast(dtype):
            plain = queries.run(case, *built)
    with path("torch"), cast(dtype):
        found = queries.run(case, *built)
    hold(found, plain, exact, dtype, {"d key.bias": float(case.rows)})
    for name, value in found.items():
        assert value.dtype == (dtype if name == "features" else torch.float32), name
        assert plain[name].dtype == value.dtype, name


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("which", PATHS)
def test_linear_attention_is_that_of_lowered_tokens(which: str, dtype: torch.dtype) -> None:
    given = inputs(LINEAR)
    attend = using(gated_linear_attention, LINEAR)
    with path(which):
        lowered = attend(*(x.to(dtype) for x in given[:4]), *given[4:])
        with cast(dtype):
            found = attend(*(x.requires_grad_() for x in given))
        grads = torch.autograd.grad(found.float().square().sum(), given)
    assert found.dtype == dtype
    assert torch.equal(found, lowered)
    assert {g.dtype for g in grads} == {torch.float32}


@pytest.mark.parametrize("which", PATHS)
def test_gated_pooling_is_that_of_lowered_rows(which: str) -> None:
    module, x = GatedAttentionPool(16, 8, 3), torch.randn(97, 16)
    reduction = nn.Linear(16, 16)
    with path(which):
        expected = module(x.bfloat16(), BOUNDS)
        reduced = module.from_features(x.bfloat16(), reduction, BOUNDS)
        with cast():
            found, made = module(x, BOUNDS), module.from_features(x, reduction, BOUNDS)
    for mine, other in zip((*found, *made), (*expected, *reduced), strict=True):
        assert torch.equal(mine, other)
        assert mine.dtype == other.dtype
    assert not torch.equal(found.logits, module(x, BOUNDS).logits)


@pytest.mark.parametrize("which", PATHS)
def test_given_logits_are_not_lowered(which: str) -> None:
    logits = torch.tensor([[1000.0], [1000.5], [1001.0]])  # one number in bfloat16
    x = torch.eye(3)
    with path(which), cast():
        pooled, lse = softmax_pool(logits, x)
    weights = logits.softmax(0)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled[0, 0].float(), weights[:, 0], atol=2e-3, rtol=0)
    assert torch.equal(lse, logits.logsumexp(0)[None])


@pytest.mark.parametrize("which", PATHS)
def test_an_inner_context_that_is_off_is_obeyed(which: str) -> None:
    pool, x = GatedAttentionPool(16, 8, 3), torch.randn(97, 16)
    query, tokens = QueryPool(16, 4, key_norm=True), torch.randn(2, 30, 16)
    linear = GatedLinearAttention(16, 4)

    def everything() -> list[Tensor]:
        return [
            *pool(x, BOUNDS),
            *pool.from_features(x, nn.Linear(16, 16, bias=False).requires_grad_(False), BOUNDS)[1:],
            *query(tokens[:, :2], tokens),
            linear(tokens, (5, 6)),
            *two_stream_attention(tokens, tokens, tokens, tokens),
        ]

    with path(which):
        torch.manual_seed(1)
        expected = everything()
        torch.manual_seed(1)
        with cast(), cast(enabled=False):
            found = everything()
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("which", PATHS)
def test_double_precision_is_left_alone(which: str) -> None:
    pool, x = GatedAttentionPool(16, 8, 3).double(), torch.randn(9, 16).double()
    given = [z.double() for z in inputs(LINEAR)]
    with path(which):
        expected = [*pool(x), using(gated_linear_attention, LINEAR)(*given)]
        with cast():
            found = [*pool(x), using(gated_linear_attention, LINEAR)(*given)]
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)


def test_gradients_do_not_ask_where_backward_is_called() -> None:
    pool, x = GatedAttentionPool(16, 8, 3), torch.randn(97, 16, requires_grad=True)
    given = [z.requires_grad_() for z in inputs(LINEAR)]
    wanted = [x, *pool.parameters(), *given]
    with path("torch"):
        with cast():
            parts = pool(x, BOUNDS).pooled, using(gated_linear_attention, LINEAR)(*given)
            total = sum(part.float().square().sum() for part in parts)
            inside = torch.autograd.grad(total, wanted, retain_graph=True)
        outside = torch.autograd.grad(total, wanted)
    for one, other in zip(inside, outside, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("which", PATHS)
@pytest.mark.parametrize("given", LOW, ids=str)
def test_queries_and_tokens_may_come_lowered(which: str, given: torch.dtype) -> None:
    module, query, tokens = QueryPool(16, 4), torch.randn(2, 16), torch.randn(30, 16)
    expected = module(query, tokens)
    with path(which), cast():
        found = module(query.to(given), tokens.to(given))
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(found.features.float(), expected.features, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("which", PATHS)
def test_the_softmax_of_two_streams_is_lowered_and_moments_are_not(which: str) -> None:
    given = [torch.randn(1, 6, 8) for _ in range(4)]
    with path(which):
        exact, moments = two_stream_attention(*given), signed_sqrt_attention(*given[:3])
        with cast():
            found, same = two_stream_attention(*given), signed_sqrt_attention(*given[:3])
    for mine, other in zip(found, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), other, atol=2e-2, rtol=2e-2)
    assert all(torch.equal(a, b) for a, b in zip(same, moments, strict=True))


@pytest.mark.parametrize("native", [False, True])
def test_few_rows_are_widened_where_their_products_are_slow_unless_the_definition_is_forced(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = op.reference.gated_logits

    def noted(x: Tensor, *weights: Tensor) -> Tensor:
        seen.append(x.dtype)
        return inner(x, *weights)

    monkeypatch.setattr(op.reference, "gated_logits", noted)
    monkeypatch.setattr(op, "bfloat16_is_native", lambda: native)
    module, x = GatedAttentionPool(16, 8, 3), torch.randn(9, 16)
    for which, dtype in product(("auto", "reference"), LOW):
        with path(which), cast(dtype):
            module.gated_logits(x)
    wide = torch.float32
    assert seen == [torch.bfloat16 if native else wide, wide, torch.bfloat16, torch.float16]
