from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.domains.remote_sensing.crop_yield import operators, plain
from zoo.domains.remote_sensing.crop_yield.operators import (
    OPERATORS,
    OperatorGate,
    OperatorRouter,
    ResolutionAwareAttention,
    edge_magnitude,
)

YEARS = torch.tensor([2009, 2011, 2012, 2003, 2011])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def maps(channels: int = 9) -> Tensor:
    return torch.randn(5, channels, 7, 6, dtype=torch.float64, requires_grad=True)


def router(**settings: object) -> OperatorRouter:
    return OperatorRouter(**settings).double()


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_edges_have_the_gradients_of_differences(
    channels: int, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reference:
        monkeypatch.setenv("ZOO_KERNELS", "reference")
    x = maps(channels)[:2]
    corner = torch.tensor(0.35, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: edge_magnitude(x, c, 1.0, 1e-2), (x, corner))


@pytest.mark.parametrize("years", [YEARS, YEARS[1:2].expand(5), None])
def test_routing_equals_computing_every_operator(years: Tensor | None) -> None:
    part, x = router(), maps()
    ours, theirs = part(x, years), plain.plain_router(part, x, years)
    torch.testing.assert_close(ours, theirs)
    over, probe = [x, part.blend], torch.randn_like(ours)
    if years is None or len(years.unique()) > 1:
        over += [part.alpha, part.scale]
    mine = torch.autograd.grad((ours * probe).sum(), over)
    other = torch.autograd.grad((theirs * probe).sum(), over)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_only_operators_that_occur_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    part, seen = router(), []
    made = part.edges
    monkeypatch.setattr(part, "edges", lambda x, name: seen.append((name, len(x))) or made(x, name))
    part(maps(), YEARS)
    assert sorted(seen) == [("learnable", 2), ("scharr", 1), ("sobel", 2)]
    seen.clear()
    part(maps(), torch.tensor([2003] * 5))
    assert seen == [("learnable", 5)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["scharr", "learnable", "learnable", "sobel"]),
        ({"unknown": "sobel"}, ["scharr", "sobel", "sobel", "sobel"]),
        ({"unknown": "nearest"}, ["scharr", "scharr", "sobel", "sobel"]),
        ({"always": "scharr"}, ["scharr"] * 4),
        ({"years": {2000: "sobel", 2004: "scharr"}, "unknown": "nearest"}, ["scharr"] * 4),
    ],
)
def test_rule_for_years(settings: dict[str, object], expected: list[str]) -> None:
    assert router(**settings).operators_of([2010, 2003, 2019, 2015]) == expected


def test_nearest_year_of_two_is_the_earlier() -> None:
    part = router(years={2000: "sobel", 2004: "scharr"}, unknown="nearest")
    assert part.operator_of(2002) == "sobel"


@pytest.mark.parametrize("unknown", ["learnable", "nearest"])
def test_traced_routing_gives_the_same(unknown: str) -> None:
    part, x = router(unknown=unknown), maps()
    years = torch.tensor([2002, 2011, 2012, 2030, 2009])
    torch.testing.assert_close(part._route_traced(x, years), part.route(x, years))


def test_learnable_corner_lies_between_the_fixed_operators() -> None:
    part = router()
    assert part.corner().item() == pytest.approx(0.34960, abs=1e-5)
    for alpha, limit in ((-40.0, 0.3), (40.0, 0.5)):
        part.alpha.data.fill_(alpha)
        assert part.corner().item() == pytest.approx(limit)


@pytest.mark.parametrize("name", ["sobel", "scharr"])
def test_gate_equals_the_plain_form(name: str) -> None:
    from zoo.domains.remote_sensing.crop_yield.sentinel import SentinelConvNet

    net, x = SentinelConvNet(name, 0.5).double(), maps(3)
    ours, theirs = net.gate(x), plain.plain_gate(net, x)
    torch.testing.assert_close(ours, theirs)
    probe = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * probe).sum(), [x, net.gate.blend])
    other = torch.autograd.grad((theirs * probe).sum(), [x, net.gate.blend])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_gate_has_no_learnable_operator() -> None:
    with pytest.raises(ValueError, match="sobel, scharr, not 'learnable'"):
        OperatorGate("learnable")


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_attention_scales_channels_by_pooled_values(pool: str) -> None:
    part, x = ResolutionAwareAttention(9, 4, pool).double(), maps()
    torch.testing.assert_close(part(x), plain.plain_rca(part, x))
    factors = part.factors(x)
    assert factors.shape == (5, 9)
    torch.testing.assert_close(part(x)[2, 3], x[2, 3] * factors[2, 3])


def test_dead_attention_is_one_half_and_is_told() -> None:
    part, x = ResolutionAwareAttention(9, 1, "max").double(), maps()
    part.reduce.weight.data.fill_(-1.0)
    assert float(part.alive(x)) == 0
    assert torch.equal(part.factors(x), torch.full((5, 9), 0.5, dtype=torch.float64))
    part.reduce.weight.data.fill_(1.0)
    assert float(part.alive(x)) == 1


def test_released_tables_name_operators_that_exist() -> None:
    assert set(operators.YEAR_OPERATORS) == set(range(2009, 2016))
    assert set(operators.YEAR_OPERATORS.values()) == set(OPERATORS)
    assert set(operators.CROP_OPERATORS.values()) == set(operators.STENCILS)
