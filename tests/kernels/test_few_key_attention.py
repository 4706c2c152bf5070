from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.kernels import FewKeyAttention
from zoo.kernels.few_key_attention import explicit_attention, fold_keys, fold_values
from zoo.kernels.few_key_attention.reference import folded_attention


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(**options: object) -> FewKeyAttention:
    module = FewKeyAttention(6, 2, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def plain(module: FewKeyAttention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    query = (module.query.weight, module.query.bias)
    merged = explicit_attention(tokens, module.key(keys), module.value(values), query, module.heads)
    return module.out(merged)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", [{"inner": 8}, {"inner": 16, "key_dim": 5, "bias": False}])
def test_folded_form_equals_the_definition_with_all_gradients(
    options: dict[str, object], shared: bool, batch: tuple[int, ...]
) -> None:
    module = make(**options)
    lead, width = () if shared else batch, module.key.in_features
    tokens = torch.randn(*batch, 9, 6, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(*lead, 3, width, dtype=torch.float64, requires_grad=True)
    values = torch.randn(*lead, 3, width, dtype=torch.float64, requires_grad=True)
    assert module.folds(3)
    inputs = [tokens, keys, values, *module.parameters()]
    found, expected = module(tokens, keys, values), plain(module, tokens, keys, values)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    ours = torch.autograd.grad((found * probe).sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad((expected * probe).sum(), inputs, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradcheck_of_the_folded_form() -> None:
    def run(x: Tensor, k: Tensor, v: Tensor, wq: Tensor, bq: Tensor, wo: Tensor) -> Tensor:
        vectors, offsets = fold_keys(k, (wq, bq), 2)
        return folded_attention(x, vectors, offsets, fold_values(v, wo, 2), 2)

    shapes = [(5, 3), (2, 4), (2, 4), (4, 3), (4,), (3, 4)]
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(run, inputs)


def test_definition_agrees_with_the_attention_of_torch() -> None:
    module = make(inner=8)
    tokens, keys = torch.randn(2, 9, 6).double(), torch.randn(2, 3, 6).double()
    split = [
        torch.unflatten(z, -1, (2, 4)).transpose(1, 2)
        for z in (module.query(tokens), module.key(keys), module.value(keys))
    ]
    merged = nn.functional.scaled_dot_product_attention(*split)
    expected = module.out(merged.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(tokens, keys), expected)


@pytest.mark.parametrize("count", [4, 17])
def test_many_keys_take_the_plain_form_and_agree(count: int) -> None:
    module = make(inner=8)
    assert not module.folds(count)
    tokens, keys = torch.randn(5, 6).double(), torch.randn(count, 6).double()
    torch.testing.assert_close(module(tokens, keys), plain(module, tokens, keys, keys))


def test_nothing_of_the_size_of_queries_is_kept_for_backward() -> None:
    module = FewKeyAttention(32, 2, inner=64)
    tokens = torch.randn(500, 32, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != tokens.data_ptr():
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(tokens, torch.randn(4, 32))
    assert max(kept) < 500 * 32


def test_half_precision_and_autocast() -> None:
    module = FewKeyAttention(16, 2, inner=64)
    tokens, keys = torch.randn(50, 16), torch.randn(3, 16)
    exact = module(tokens, keys)
    half = FewKeyAttention(16, 2, inner=64).bfloat16()
    half.load_state_dict(module.state_dict())
    found = half(tokens.bfloat16(), keys.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=3e-2, rtol=3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(tokens, keys).float(), exact, atol=3e-2, rtol=3e-2)


def test_wrong_shapes_are_named() -> None:
    module = FewKeyAttention(6, 2)
    for tokens, keys in [((7, 5), (2, 6)), ((7, 6), (3, 2, 6)), ((7, 6), (0, 6))]:
        with pytest.raises(ValueError, match="attend to one or more keys"):
            module(torch.randn(*tokens), torch.randn(*keys))
    with pytest.raises(ValueError, match="heads must divide"):
        FewKeyAttention(6, 4)


def test_parameters_have_the_names_that_later_forms_keep() -> None:
    layers = ("query", "key", "value", "out")
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(FewKeyAttention(6, 2).state_dict()) == expected
