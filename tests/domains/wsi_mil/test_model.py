from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.wsi_mil.losses import mil_losses
from zoo.domains.medical.wsi_mil.model import AcmilGA, MilModel, build_model, default_inner
from zoo.domains.medical.wsi_mil.parts import (
    BagAttention,
    BranchAttention,
    Classifier,
    DimReduction,
    stkim_mask,
)
from zoo.kernels import MASKED

ARCHS = ["acmil_ga", "acmil_mha", "abmil", "mha"]
BOUNDS = torch.tensor([0, 12, 13, 40, 44])  # among them one instance, and fewer than `masked`
LABELS = torch.tensor([0, 2, 1, 1])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(arch: str, **options: float) -> MilModel:
    settings = {"branches": 3, "attention": 6, "dropout": 0.0, **options}
    model = build_model(arch, 10, 16, 3, **settings)
    for name, parameter in model.named_parameters():
        if "norm.weight" not in name:
            nn.init.normal_(parameter, std=0.4)  # queries are nearly 0 otherwise
    return model.double()


def slices(bounds: Tensor) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_several_slides_equal_the_slides_one_by_one(arch: str, training: bool) -> None:
    model = make(arch).train(training)
    features = torch.randn(44, 10, dtype=torch.float64, requires_grad=True)
    inputs = [features, *model.parameters()]

    packed = model(features, BOUNDS, generator=torch.Generator().manual_seed(5))
    loss = mil_losses(packed, LABELS, BOUNDS)
    ours = torch.autograd.grad(loss.total, inputs, allow_unused=True)

    generator = torch.Generator().manual_seed(5)
    each = [model(features[rows], generator=generator) for rows in slices(BOUNDS)]
    torch.testing.assert_close(packed.logits, torch.cat([one.logits for one in each]))
    torch.testing.assert_close(packed.branch_logits, torch.cat([one.branch_logits for one in each]))
    torch.testing.assert_close(packed.attention, torch.cat([one.attention for one in each], -1))
    singles = [mil_losses(one, LABELS[i : i + 1]) for i, one in enumerate(each)]
    for name in loss._fields:
        mean = torch.stack([getattr(single, name) for single in singles]).mean()
        torch.testing.assert_close(getattr(loss, name), mean)
    total = torch.stack([single.total for single in singles]).mean()
    theirs = torch.autograd.grad(total, inputs, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("arch", ARCHS)
def test_gradcheck_of_a_training_step(arch: str) -> None:
    model = build_model(arch, 3, 8, 2, branches=2, attention=3, masked=2, mask_drop=0.5, dropout=0)
    model.double().train()
    bounds = torch.tensor([0, 3, 3, 4, 6])
    maps = 8 if arch == "acmil_mha" else 1
    draws = [torch.rand(maps, 2, k) for k in (2, 0, 1, 2)]

    def loss(features: Tensor, *_: Tensor) -> Tensor:
        output = model(features, bounds, draws=draws)
        return mil_losses(output._replace(attention=output.attention[..., :3]), labels).total

    labels = torch.tensor([0, 1, 1, 0])
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (features, *model.parameters()))


def test_slide_vector_is_the_pooling_by_the_mean_attention() -> None:
    model = make("acmil_ga").eval()
    features = torch.randn(20, 10).double()
    weights = model(features).attention.softmax(-1).mean(1)
    expected = weights @ model.reduce(features)
    torch.testing.assert_close(model.bag_feature(features), expected)


def test_multi_head_model_equals_explicit_keys_and_values() -> None:
    model = make("acmil_mha").eval()
    features = torch.randn(9, 10).double()
    h = functional.relu(features @ model.reduce.linear.weight.T)
    shares, branch_logits = [], []
    for k, branch in enumerate(model.branches):
        pool = branch.pool
        query, keys, values = pool.query(model.queries[k]), pool.key(h), pool.value(h)
        share = torch.stack(
            [
                torch.softmax(keys[:, j : j + 2] @ query[j : j + 2] / 2**0.5, 0)
                for j in range(0, 16, 2)
            ]
        )
        merged = torch.cat([share[j] @ values[:, 2 * j : 2 * j + 2] for j in range(8)])
        vector = branch.norm(pool.out(merged))
        branch_logits.append(model.branch_classifiers[k](vector))
        shares.append(share)
    output = model(features)
    torch.testing.assert_close(output.branch_logits[0], torch.stack(branch_logits))
    torch.testing.assert_close(output.attention.softmax(-1), torch.stack(shares, 1))
    mean, values = torch.stack(shares).mean(0), model.bag.value(h)
    merged = torch.cat([mean[j] @ values[:, 2 * j : 2 * j + 2] for j in range(8)])
    slide = model.bag.norm(model.bag.out(merged))
    torch.testing.assert_close(output.logits[0], model.slide_classifier(slide))


@pytest.mark.parametrize("arch", ARCHS)
def test_nan_stays_in_its_slide(arch: str) -> None:
    model = make(arch).eval()
    features = torch.randn(44, 10).double()
    clean = model(features, BOUNDS)
    features[20] = float("nan")
    spoilt = model(features, BOUNDS)
    assert spoilt.logits[2].isnan().all()
    others = [0, 1, 3]
    assert torch.equal(spoilt.logits[others], clean.logits[others])
    assert torch.equal(spoilt.branch_logits[others], clean.branch_logits[others])
    assert torch.equal(spoilt.attention[..., :13], clean.attention[..., :13])


def test_stkim_masks_int_k_times_drop_of_the_largest() -> None:
    attention = torch.randn(2, 3, 50)
    mask = stkim_mask(attention, None, 10, 0.6)
    assert (mask.sum(-1) == 6).all()
    top = torch.zeros_like(mask).scatter_(-1, attention.topk(10).indices, value=True)
    assert not (mask & ~top).any()


@pytest.mark.parametrize(
    ("count", "masked", "drop", "expected"),
    [(1, 10, 0.6, 0), (2, 10, 0.6, 1), (4, 10, 0.6, 2), (3, 10, 1.0, 3), (9, 10, 0.0, 0)],
)
def test_stkim_truncates_in_small_bags(count: int, masked: int, drop: float, expected: int) -> None:
    assert (stkim_mask(torch.randn(1, 2, count), None, masked, drop).sum(-1) == expected).all()


def test_stkim_follows_given_draws() -> None:
    attention = torch.tensor([[[0.0, 3.0, 1.0, 2.0, -1.0]]])
    draws = [torch.tensor([[[0.9, 0.1, 0.5]]])]  # for the instances 1, 3, 2 in that order
    mask = stkim_mask(attention, None, 3, 0.67, draws=draws)
    assert mask[0, 0].tolist() == [False, False, True, True, False]


def test_stkim_draws_are_repeatable_and_new_for_each_call() -> None:
    attention = torch.randn(8, 2, 40)
    again = [
        stkim_mask(attention, None, 10, 0.5, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*again)
    one = torch.Generator().manual_seed(1)
    first, second = (stkim_mask(attention, None, 10, 0.5, generator=one) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    first = stkim_mask(attention, None, 10, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, stkim_mask(attention, None, 10, 0.5))


def test_stkim_only_in_training_or_when_asked_for() -> None:
    model = make("acmil_ga")
    features = torch.randn(30, 10).double()
    assert (model.train()(features).attention == MASKED).sum() == 3 * 6
    assert not (model.eval()(features).attention == MASKED).any()
    plain = model.bag_feature(features)
    assert not torch.equal(plain, model.bag_feature(features, masked=True))
    assert torch.equal(plain, model.train().bag_feature(features))
    assert not (make("acmil_ga", masked=0).train()(features).attention == MASKED).any()


def test_wrong_draws_are_named() -> None:
    with pytest.raises(ValueError, match="one tensor a bag, got 1 for 2"):
        stkim_mask(torch.randn(1, 1, 5), torch.tensor([0, 2, 5]), 3, 0.5, draws=[torch.rand(1)])
    with pytest.raises(ValueError, match=r"draws of bag 0 must be \(1, 1, 3\)"):
        stkim_mask(torch.randn(1, 1, 5), None, 3, 0.5, draws=[torch.rand(1, 1, 2)])


def test_dropout_of_the_multi_head_models_acts_in_training_only() -> None:
    features = torch.randn(30, 10).double()
    model = make("mha", dropout=0.5)
    assert not torch.equal(model.train()(features).logits, model(features).logits)
    assert torch.equal(model.eval()(features).logits, model(features).logits)
    assert model.attention.dropout.p == 0.5


def test_features_of_any_dtype_are_taken() -> None:
    model = build_model("acmil_ga", 10, 16, 3).eval()
    features = torch.randn(6, 10).half()
    assert torch.equal(model(features).logits, model(features.float()).logits)


@pytest.mark.parametrize("arch", ARCHS)
def test_autocast_keeps_attention_in_float32(arch: str) -> None:
    model = build_model(arch, 10, 16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(20, 10))
        loss = mil_losses(output, torch.tensor([1]))
    assert output.attention.dtype == loss.total.dtype == torch.float32
    loss.total.backward()


def test_a_batch_axis_and_a_wrong_width_are_refused() -> None:
    model = make("abmil")
    with pytest.raises(ValueError, match=r"\(instances, 10\), got \(2, 5, 10\); pack several"):
        model(torch.randn(2, 5, 10))
    with pytest.raises(ValueError, match=r"got \(5, 9\)"):
        model(torch.randn(5, 9))


@pytest.mark.parametrize(
    ("arch", "options", "words"),
    [
        ("acmil", {}, "unknown architecture 'acmil'"),
        ("acmil_ga", {"mask_drop": 1.5}, "mask_drop=1.5"),
        ("acmil_ga", {"masked": -1}, "masked=-1"),
        ("acmil_ga", {"branches": 0}, "branches=0"),
        ("acmil_mha", {"branches": 0}, "at least one branch"),
    ],
)
def test_wrong_settings_are_named(arch: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_model(arch, 10, 16, 2, **options)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="classes=1"):
        build_model("abmil", 10, 16, 1)
    with pytest.raises(ValueError, match="inner=20 must be a multiple"):
        build_model("mha", 10, 20, 2)
    with pytest.raises(ValueError, match="downsample=4"):
        BranchAttention(16, downsample=4)


# Measured on the official code with two classes.
COUNTS = {
    (384, 128): (82_821, 84_369, 149_380, 416_140, 82_563, 115_842),
    (512, 256): (198_021, 200_593, 528_132, 1_585_932, 197_507, 395_522),
    (768, 384): (395_141, 398_737, 1_185_412, 3_558_540, 394_371, 888_194),
    (1024, 512): (657_797, 662_417, 2_104_836, 6_317_580, 656_771, 1_577_474),
    (1536, 768): (1_379_717, 1_386_385, 4_730_116, 14_194_956, 1_378_179, 3_545_858),
}
KINDS = [("acmil_ga", 1), ("acmil_ga", 5), ("acmil_mha", 1), ("acmil_mha", 5)]


@pytest.mark.parametrize(("widths", "counts"), COUNTS.items())
def test_parameter_counts_are_the_official_ones(
    widths: tuple[int, int], counts: tuple[int, ...]
) -> None:
    for (arch, branches), count in zip([*KINDS, ("abmil", 1), ("mha", 1)], counts, strict=True):
        for classes in (2, 5):
            with torch.device("meta"):
                model = build_model(arch, *widths, classes, branches=branches)
            more = (classes - 2) * (widths[1] + 1) * (branches + 1 if "acmil" in arch else 1)
            assert sum(p.numel() for p in model.parameters()) == count + more


@pytest.mark.parametrize("widths", list(COUNTS))
def test_published_widths(widths: tuple[int, int]) -> None:
    assert default_inner(widths[0]) == widths[1]


def test_other_widths_suit_eight_heads() -> None:
    assert [default_inner(width) for width in (4, 42, 166, 2048)] == [8, 16, 80, 1024]


@pytest.mark.parametrize("arch", ARCHS)
def test_export_with_any_number_of_instances(arch: str) -> None:
    model = build_model(arch, 10, 16, 3, branches=2).eval()
    shapes = {"features": {0: torch.export.Dim("instances", min=1)}}
    exported = torch.export.export(model, (torch.randn(7, 10),), dynamic_shapes=shapes)
    run = exported.module()
    for count in (1, 2, 300):
        features = torch.randn(count, 10)
        for ours, theirs in zip(model(features), run(features), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_multi_head_training_keeps_no_keys_or_values() -> None:
    model = build_model("acmil_mha", 10, 64, 2, branches=2, dropout=0.0)
    count, sizes = 400, []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append((t.untyped_storage().data_ptr(), t.numel())), t)[1], lambda t: t
    )
    with hooks:
        model(torch.randn(count, 10))
    large = {where for where, numel in sizes if numel >= count * 64}
    assert len(large) == 1  # the reduced instances, nothing else of that size


def test_parts() -> None:
    x = torch.randn(5, 8)
    reduction = DimReduction(8, 8, blocks=1)
    first, second = reduction.blocks[0].first.weight, reduction.blocks[0].second.weight
    h = (x @ reduction.linear.weight.T).relu()
    expected = h + ((h @ first.T).relu() @ second.T).relu()
    torch.testing.assert_close(reduction(x), expected)
    assert Classifier(8, 2, 0.5).train()(x).shape == (5, 2)
    assert list(Classifier(8, 2, 0.5).state_dict()) == list(Classifier(8, 2).state_dict())
    bag = BagAttention(8, heads=2).eval()
    assert bag.norm.eps == BranchAttention(8).norm.eps == 1e-6
    half = torch.full((2, 5), 0.1)  # sums to one half: the value bias counts by half
    values = (half.sum(-1)[:, None] * bag.value(x).mean(0).view(2, 4)).flatten()
    torch.testing.assert_close(bag.from_weights(half, x)[0], bag.norm(bag.out(values)))


def test_models_are_usable_without_options() -> None:
    output = AcmilGA(10, 16, 2)(torch.randn(20, 10))
    assert [tuple(value.shape) for value in output] == [(1, 2), (1, 5, 2), (1, 5, 20)]
