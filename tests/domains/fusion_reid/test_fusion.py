from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.benchmarks.costs import multiply_adds
from zoo.domains.reid.fusion_reid import plain
from zoo.domains.reid.fusion_reid.fusion import (
    EncodingUnit,
    FusionUnit,
    LocalRefinement,
    Transmission,
    TransmissionLayer,
)
from zoo.domains.reid.fusion_reid.heads import GeM, Head

D, HEADS = 24, 12


def shaken(module: nn.Module) -> nn.Module:
    """Random norms and statistics, so that nothing is an identity by chance; float64."""
    torch.manual_seed(1)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.dim() == 1 and value.is_floating_point():
            noise = torch.rand_like(value) + 0.5
            value.data.copy_(noise if "var" in name or "weight" in name else noise - 1)
    return module.double()


def gradients(y: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    return torch.autograd.grad((y * torch.randn(y.shape, dtype=y.dtype)).sum(), given)


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


# -- pooling --------------------------------------------------------------------------------------


def test_gem_is_the_generalised_mean() -> None:
    pool, x = GeM(2.5), torch.rand(2, 3, 4, 5)
    expected = x.pow(2.5).mean((2, 3)).pow(1 / 2.5)
    torch.testing.assert_close(pool(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(pool(x), expected)


def test_gem_of_negative_channels_is_its_floor_and_finite() -> None:
    pool = GeM()
    x = torch.full((1, 2, 3, 3), -1.0, requires_grad=True)
    y = pool(x)
    torch.testing.assert_close(y, torch.full((1, 2), 1e-6))
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
    assert pool.p.grad is not None
    assert pool.p.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gem_survives_half_precision(dtype: torch.dtype) -> None:
    pool = GeM().to(dtype)
    x = torch.full((1, 1, 2, 2), -1.0, dtype=dtype, requires_grad=True)
    y = pool(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert pool.p.grad is not None
    assert pool.p.grad.isfinite().all()


def test_gem_shares_sum_to_one_and_follow_the_map() -> None:
    x = torch.zeros(1, 2, 3, 3)
    x[0, :, 1, 2] = 1
    shares = GeM().shares(x)
    assert shares.shape == (1, 3, 3)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    assert shares[0, 1, 2] > 0.99


def test_the_neck_has_no_learnt_shift() -> None:
    head = Head(6, 4)
    assert not head.neck.bias.requires_grad
    assert {name for name, _ in head.classifier.named_parameters()} == {"weight"}
    assert head(torch.randn(3, 6)).shape == (3, 4)
    assert 2e-4 < float(head.classifier.weight.detach().std()) < 2e-3


# -- refinement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kernel", "depthwise"), [(1, True), (3, True), (1, False)])
def test_refinement_is_the_plain_one(training: bool, kernel: int, depthwise: bool) -> None:
    unit = shaken(LocalRefinement(8, 12, kernel, depthwise)).train(training)
    assert isinstance(unit, LocalRefinement)
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    made = []
    for form in (unit, lambda x: plain.refine(unit, x)):
        y = form(x)
        made.append((y, *gradients(y, [x, *unit.parameters()])))
    assert made[0][0].shape == (3, 12, 6 - kernel, 5 - kernel)
    same(*made)


def test_a_kernel_larger_than_the_map_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"kernel of 3 is larger than the map of 4 x 2; .*lru_kernel"
    ):
        LocalRefinement(8, 12, 3)(torch.randn(1, 8, 4, 2))


# -- encoding and fusion --------------------------------------------------------------------------


def test_encoding_has_its_norm_last() -> None:
    unit = shaken(EncodingUnit(D, depth=2))
    assert isinstance(unit, EncodingUnit)
    x = torch.randn(2, 7, D, dtype=torch.float64)
    torch.testing.assert_close(unit(x), plain.encoding(unit, x))
    torch.testing.assert_close(unit.first(x)[0], unit(x)[:, 0])


# Both sides of the size from which tokens are walked bag by bag.
@pytest.mark.parametrize(("width", "count"), [(D, 9), (192, 180)])
@pytest.mark.parametrize("batch", [1, 3])
def test_fusion_is_the_key_value_form(width: int, count: int, batch: int) -> None:
    unit = shaken(FusionUnit(width))
    assert isinstance(unit, FusionUnit)
    query = torch.randn(batch, width, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(batch, count, width, dtype=torch.float64, requires_grad=True)
    given = [query, tokens, *unit.parameters()]
    ours, theirs = unit(query, tokens)[0], plain.fusion(unit, query, tokens)
    assert ours.shape == (batch, width)
    same((ours, *gradients(ours, given)), (theirs, *gradients(theirs, given)))


@pytest.mark.parametrize("sharing", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_a_layer_is_the_plain_one(sharing: int, mode: int) -> None:
    layer = shaken(TransmissionLayer(D, sharing, mode))
    assert isinstance(layer, TransmissionLayer)
    queries = tuple(torch.randn(2, D, dtype=torch.float64, requires_grad=True) for _ in "ct")
    tokens = tuple(torch.randn(2, n, D, dtype=torch.float64, requires_grad=True) for n in (8, 11))
    given = [*queries, *tokens, *layer.parameters()]
    made = []
    for form in (lambda: layer(queries, tokens)[:2], lambda: plain.layer(layer, queries, tokens)):
        y = torch.cat(form())
        made.append((y, *gradients(y, given)))  # every parameter takes part
    same(*made)


@pytest.mark.parametrize(
    ("sharing", "units"),
    [
        (0, {"encode", "fuse_cnn", "fuse_transformer"}),
        (1, {"encode_cnn", "encode_transformer", "fuse_cnn", "fuse_transformer"}),
        (2, {"encode_cnn", "encode_transformer", "fuse"}),
        (3, {"encode", "fuse"}),
    ],
)
def test_what_a_sharing_pattern_shares(sharing: int, units: set[str]) -> None:
    assert {name for name, _ in TransmissionLayer(D, sharing).named_children()} == units


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_shares_sum_to_one_and_change_nothing(mode: int) -> None:
    torch.manual_seed(0)
    module = Transmission(D, 2, mode=mode)
    queries = torch.randn(2, D), torch.randn(2, D)
    tokens = torch.randn(2, 8, D), torch.randn(2, 11, D)
    made = module(queries, tokens, shares=True)
    silent = module(queries, tokens)
    assert silent.cnn_shares is silent.transformer_shares is None
    torch.testing.assert_close(made.cnn, silent.cnn)
    torch.testing.assert_close(made.transformer, silent.transformer)
    assert made.cnn_shares.shape == (2, 8)
    assert made.transformer_shares.shape == (2, 11)
    for shares in (made.cnn_shares, made.transformer_shares):
        torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_fuse_only_tells_the_share_each_token_was_read_with() -> None:
    torch.manual_seed(0)
    layer = TransmissionLayer(D, mode=2)
    queries, tokens = (torch.randn(1, D),) * 2, (torch.randn(1, 4, D), torch.randn(1, 5, D))
    _, logits = layer.fuse_transformer(queries[1], tokens[0])
    made = layer(queries, tokens, shares=True)
    torch.testing.assert_close(made.cnn_shares, logits.softmax(1).mean(2))


def test_every_layer_reads_the_same_tokens() -> None:
    torch.manual_seed(0)
    module = Transmission(D, 3)
    queries = torch.randn(2, D), torch.randn(2, D)
    tokens = torch.randn(2, 8, D), torch.randn(2, 11, D)
    expected = queries
    for layer in module.layers:
        expected = layer(expected, tokens)[:2]
    torch.testing.assert_close(module(queries, tokens)[:2], expected)
    torch.testing.assert_close(Transmission(D, 0)(queries, tokens)[:2], queries)


def test_fusion_needs_no_keys_and_values() -> None:
    """248 M multiply-adds of keys and values shrink to what 12 absorbed queries take."""
    count, width = 210, 768
    with FakeTensorMode():
        unit = FusionUnit(width)
        query, tokens = torch.empty(1, width), torch.empty(1, count, width)
        theirs = multiply_adds(lambda: plain.fusion(unit, query, tokens))
        ours = multiply_adds(lambda: unit(query, tokens))
    around = (2 + 8) * width**2  # query and output, and the MLP of one token
    assert theirs == pytest.approx((2 * count * width**2 + 2 * count * width + around) / 1e9)
    assert ours == pytest.approx((2 * width**2 + 2 * 12 * count * width + around) / 1e9)


def test_the_operator_counts_its_work() -> None:
    unit = FusionUnit(192)
    count = 200
    found = multiply_adds(lambda: unit(torch.randn(1, 192), torch.randn(1, count, 192)))
    assert found == pytest.approx((12 * 192**2 + 2 * HEADS * count * 192) / 1e9)
