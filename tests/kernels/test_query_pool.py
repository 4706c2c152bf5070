from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from zoo.kernels import QueryPool, bag_bounds, softmax_pool
from zoo.kernels.query_pool import absorb_queries, explicit_attention, project_values, query_logits

BOUNDS = torch.tensor([0, 3, 3, 4, 7])
VARIANTS = [
    {},
    {"bias": False, "key_norm": True},
    {"inner": 4, "out_bias": False},
    {"query_dim": 10, "key_norm": True, "norm_eps": 1e-6},
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(options: dict[str, object]) -> QueryPool:
    module = QueryPool(6, 2, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def explicit(
    module: QueryPool, queries: Tensor, kv: Tensor, bounds: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens = kv if module.key_norm is None else module.key_norm(kv)
    merged, logits = explicit_attention(
        module.query(queries),
        tokens,
        kv,
        (module.key.weight, module.key.bias),
        (module.value.weight, module.value.bias),
        module.heads,
        bounds,
    )
    return module.out(merged), logits


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("count", [1, 3])
def test_absorbed_form_equals_explicit_keys_and_values(
    options: dict[str, object], count: int
) -> None:
    module = make(options)
    queries = torch.randn(count, module.query.in_features, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    inputs = [queries, kv, *module.parameters()]
    found = module(queries, kv, BOUNDS)
    expected, logits = explicit(module, queries, kv, BOUNDS)
    torch.testing.assert_close(found.features, expected)
    torch.testing.assert_close(found.logits, logits)
    probe, probe_logits = torch.randn_like(expected), torch.randn_like(logits)
    ours = torch.autograd.grad(
        (found.features * probe).sum() + (found.logits * probe_logits).sum(), inputs
    )
    theirs = torch.autograd.grad((expected * probe).sum() + (logits * probe_logits).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_explicit_definition_agrees_with_the_attention_of_torch() -> None:
    module = make({})
    queries, kv = (torch.randn(n, 6, dtype=torch.float64) for n in (3, 7))
    split = [z.view(-1, 2, 3).transpose(0, 1) for z in (module.query(queries), module.key(kv))]
    values = module.value(kv).view(-1, 2, 3).transpose(0, 1)
    merged = nn.functional.scaled_dot_product_attention(*split, values)
    expected = module.out(merged.transpose(0, 1).flatten(1))
    torch.testing.assert_close(explicit(module, queries, kv, None)[0][0], expected)


def test_gradcheck_of_the_definition_on_ragged_bags() -> None:
    def run(q: Tensor, kv: Tensor, wk: Tensor, bk: Tensor, wv: Tensor, bv: Tensor) -> Tensor:
        logits = query_logits(*absorb_queries(q, wk, bk, 2), kv)
        pooled, lse = softmax_pool(logits, kv, BOUNDS)
        return project_values(pooled, wv, bv, 2, lse != float("-inf"))

    shapes = [(2, 4), (7, 3), (4, 3), (4,), (4, 3), (4,)]
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(run, inputs)


def test_two_op_form_with_a_mask_equals_the_module() -> None:
    module = make({"key_norm": True})
    queries, kv = torch.randn(3, 6).double(), torch.randn(7, 6).double()
    mask = torch.rand(7, 6) < 0.3
    mask[:, 0] = False
    whole = module(queries, kv, BOUNDS, mask)
    pooled, lse = softmax_pool(module.query_logits(queries, kv), kv, BOUNDS, mask)
    assert torch.equal(whole.features, module.project(pooled, lse != float("-inf")))
    assert (whole.logits[mask] == -1e9).all()
    hidden = kv.clone()
    for head, query in itertools.product(range(2), range(3)):
        column = head * 3 + query
        assert torch.equal(mask[:, column], whole.logits[:, column] == -1e9)
    hidden[2] += 5  # masked for one column only, so the others must move
    assert not torch.allclose(module(queries, hidden, BOUNDS, mask).features, whole.features)


def test_masked_token_has_no_influence() -> None:
    module = make({})
    queries, kv = torch.randn(1, 6).double(), torch.randn(5, 6).double()
    mask = torch.zeros(5, 2, dtype=torch.bool)
    mask[2] = True
    whole = module(queries, kv, mask=mask).features
    kv[2] = 9.0
    torch.testing.assert_close(module(queries, kv, mask=mask).features, whole)


def test_dense_batches_equal_packed_bags() -> None:
    module = make({"key_norm": True, "bias": False})
    kv = torch.randn(2, 4, 6).double().requires_grad_()
    shared = torch.randn(3, 6).double()
    packed = module(shared, kv.flatten(0, 1), torch.tensor([0, 4, 8]))
    dense = module(shared, kv)
    torch.testing.assert_close(dense.features, packed.features)
    torch.testing.assert_close(dense.logits.flatten(0, 1), packed.logits)
    own = torch.randn(2, 3, 6).double()
    both = module(own, kv)
    for bag in range(2):
        one = module(own[bag], kv[bag])
        torch.testing.assert_close(both.features[bag], one.features[0])
        torch.testing.assert_close(both.logits[bag], one.logits)


def test_module_equals_its_bags_one_by_one_with_gradients() -> None:
    module = make({})
    queries = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    inputs = [queries, kv, *module.parameters()]
    packed = module(queries, kv, BOUNDS)
    single = torch.cat([module(queries, kv[a:b]).features for a, b in bag_bounds(BOUNDS, 7)])
    torch.testing.assert_close(packed.features, single)
    probe = torch.randn_like(single)
    ours = torch.autograd.grad((packed.features * probe).sum(), inputs)
    for mine, other in zip(ours, torch.autograd.grad((single * probe).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, other)


def test_empty_bag_has_the_output_bias_alone() -> None:
    module = make({})
    out = module(torch.randn(2, 6).double(), torch.randn(7, 6).double(), BOUNDS)
    torch.testing.assert_close(out.features[1], module.out.bias.expand(2, 6))
    assert torch.isneginf(out.lse[1]).all()


def test_nan_stays_in_its_bag_forward_and_backward() -> None:
    module = make({"key_norm": True})
    queries, kv = torch.randn(2, 6).double(), torch.randn(7, 6).double()
    clean = module(queries, kv, BOUNDS)
    kv[1] = float("nan")
    kv.requires_grad_()
    spoilt = module(queries, kv, BOUNDS)
    assert spoilt.features[0].isnan().all()
    assert torch.equal(spoilt.features[1:], clean.features[1:])
    (gradient,) = torch.autograd.grad(spoilt.features[2:].sum(), kv)
    assert torch.isfinite(gradient[3:]).all()


def test_strided_tokens() -> None:
    module = make({})
    wide, queries = torch.randn(7, 20).double(), torch.randn(1, 6).double()
    strided = module(queries, wide[:, 3:9], BOUNDS).features
    torch.testing.assert_close(strided, module(queries, wide[:, 3:9].contiguous(), BOUNDS).features)


def test_half_precision_tokens_keep_logits_in_float32() -> None:
    module = QueryPool(16, 4)
    queries, kv = torch.randn(2, 16), torch.randn(200, 16)
    half = module(queries, kv.bfloat16())
    assert half.logits.dtype == torch.float32
    torch.testing.assert_close(half.features, module(queries, kv).features, atol=2e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.query_logits(queries, kv), module(queries, kv).logits)


def test_nothing_of_the_size_of_keys_is_kept_for_backward() -> None:
    tokens, width = 500, 32
    module, kv = QueryPool(width, 4), torch.randn(tokens, width, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != kv.data_ptr():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(torch.randn(1, width), kv)
    assert max(kept) < tokens * width


def test_wrong_shapes_are_named() -> None:
    module = QueryPool(6, 2)
    with pytest.raises(ValueError, match="tokens"):
        module(torch.randn(2, 1, 6), torch.randn(7, 6))
    with pytest.raises(ValueError, match="heads must divide"):
        QueryPool(6, 4)
    with pytest.raises(ValueError, match="heads must divide"):
        QueryPool(6, 0)


def test_parameters_have_the_names_that_later_forms_keep() -> None:
    keys = set(QueryPool(6, 2, key_norm=True, bias=False).state_dict())
    assert keys == {
        "query.weight",
        "key.weight",
        "value.weight",
        "out.weight",
        "out.bias",
        "key_norm.weight",
        "key_norm.bias",
    }
