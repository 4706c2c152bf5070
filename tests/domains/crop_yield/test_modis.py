from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield import plain
from zoo.domains.remote_sensing.crop_yield.config import Config
from zoo.domains.remote_sensing.crop_yield.model import build_model
from zoo.domains.remote_sensing.crop_yield.modis import ConvBlock, DFYPNet, SameConv2d
from zoo.errors import ConfigError

SMALL = {
    "channels": (4, 6, 6, 8, 8, 8),
    "dense": 10,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "head_size": 8,
    "mlp": 24,
}
YEARS = torch.tensor([2009, 2011, 2012, 2003])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(facts: dict[str, Any] | None = None, **more: Any) -> DFYPNet:
    data = {"sensor": "modis", "steps": more.pop("steps", 32), "year": more.pop("year", None)}
    config = Config(task="crop_yield", preset="paper", data=data, model=SMALL | more)
    made = build_model(config, facts or {})
    assert isinstance(made, DFYPNet)
    return made


def histograms(steps: int = 32) -> Tensor:
    return torch.rand(4, 9, steps, 32, dtype=torch.float64)


def gradients(y: Tensor, net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    (y * torch.arange(1, len(y) + 1)).sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    # Batch statistics take a convolution's bias out again: its gradient is rounding noise.
    largest = max(float(grad.abs().max()) for grad in other.values())
    for name, grad in other.items():
        torch.testing.assert_close(mine[name], grad, rtol=1e-9, atol=1e-12 * largest, msg=name)


def test_released_size_has_the_released_parameters() -> None:
    config = Config(task="crop_yield", preset="paper", data={"sensor": "modis"})
    with torch.device("meta"):
        net = build_model(config, {})
    assert sum(p.numel() for p in net.parameters()) == 26_790_713


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("steps", [32, 12, 20, 28])
def test_equals_the_plain_form(steps: int, training: bool) -> None:
    net = build(steps=steps, dropout=0, embedding_dropout=0).double().train(training)
    x = histograms(steps)
    ours, theirs = net(x, YEARS), plain.plain_modis(net, x, YEARS)
    assert ours.shape == (4,)
    torch.testing.assert_close(ours, theirs)
    assert_same(gradients(net(x, YEARS), net), gradients(plain.plain_modis(net, x, YEARS), net))


def test_batch_statistics_move_as_in_the_plain_form() -> None:
    net, x = build(dropout=0).double().train(), histograms()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(x, YEARS)
    ours = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net.load_state_dict(before)
    plain.plain_modis(net, x, YEARS)
    assert len(ours) == 12
    for key, value in ours.items():
        assert not torch.equal(value, before[key])
        torch.testing.assert_close(net.state_dict()[key], value)


def test_folded_dense_layers_are_exact() -> None:
    net = build().double().eval()
    x = histograms()
    layers = net.cnn.dense[-1](net.cnn.last_dense(x, YEARS))
    torch.testing.assert_close(net.cnn(x, YEARS), layers, rtol=1e-13, atol=1e-13)
    single, bias = net.float().cnn.folded()
    assert single.shape == (1, 8 * 4 * 4)
    assert bias.shape == (1,)


@pytest.mark.parametrize(("size", "stride"), [(32, 2), (7, 2), (8, 1), (10, 3)])
@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_same_padding_puts_the_odd_zero_below_and_right(
    size: int, stride: int, kernel: int
) -> None:
    conv = SameConv2d(2, 3, kernel, stride).double()
    x = torch.randn(1, 2, size, size + 1, dtype=torch.float64)
    # By hand: enough zeros everywhere, then the window that starts in the right place.
    ends = [-(-n // stride) for n in x.shape[2:]]
    total = [max(0, (e - 1) * stride + kernel - n) for e, n in zip(ends, x.shape[2:], strict=True)]
    wide = functional.pad(x, (kernel,) * 4)
    top, left = (kernel - t // 2 for t in total)
    sliced = wide[..., top : top + size + total[0], left : left + size + 1 + total[1]]
    expected = functional.conv2d(sliced, conv.weight, conv.bias, stride)
    assert conv(x).shape[2:] == torch.Size(ends)
    torch.testing.assert_close(conv(x), expected)


def test_band_mean_is_taken_off_and_targets_are_scaled_back() -> None:
    mean = [0.01 * i for i in range(9)]
    net, other = build({"band_mean": mean}), build()
    weights = {k: v for k, v in net.state_dict().items() if k not in ("band_mean", "target")}
    other.load_state_dict(weights, strict=False)
    net.eval().double(), other.eval().double()
    net.band_mean = torch.tensor(mean, dtype=torch.float64)
    x = histograms()
    expected = other(x - net.band_mean.view(-1, 1, 1), YEARS)
    torch.testing.assert_close(net(x, YEARS), expected)
    net.target = torch.tensor([40.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(net(x, YEARS), 40 + 9 * expected)
    facts = {"target_mean": 40.0, "target_deviation": 9.0}
    assert build(facts).target.tolist() == [40.0, 9.0]


def test_dropout_is_drawn_in_training_only() -> None:
    net, x = build(), histograms().float()
    assert not torch.equal(net(x, YEARS), net(x, YEARS))
    net.eval()
    assert torch.equal(net(x, YEARS), net(x, YEARS))


def test_one_step_from_the_same_seed_is_repeated_exactly() -> None:
    net, x = build(), histograms().float()
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(gradients(net(x, YEARS), net))
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name


def test_operators_follow_the_configuration() -> None:
    assert build().operators_of([2009, 2003]) == ["scharr", "learnable"]
    assert build(operator="sobel").operators_of([2009, 2003]) == ["sobel", "sobel"]
    by_year = build(routing="per_prediction_year", year=2010)
    assert by_year.operators_of([2003, 2011]) == ["scharr", "scharr"]
    told = build({"year": 2011}, routing="per_prediction_year")
    later = build({"year": 2011}, routing="per_prediction_year", year=2009)
    assert later.operators_of([2009]) == told.operators_of([2009])  # the trained year decides
    assert told.operators_of([2003]) == ["sobel"]
    assert build(unknown_year="nearest").operators_of([2003, 2020]) == ["scharr", "sobel"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"routing": "per_prediction_year"}, "set data.year"),
        ({"steps": 30}, "data.steps=30: no multiple of model.patch=4"),
    ],
)
def test_what_does_not_go_together_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**settings)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match=r"histograms \(B, 9, T, K\) expected, got \(4, 7, 32, 32"):
        build()(torch.rand(4, 7, 32, 32))


def test_attention_has_one_factor_a_band() -> None:
    net = build(rca_hidden=4, rca_pool="mean")
    factors = net.band_attention(histograms().float())
    assert factors.shape == (4, 9)
    assert bool(((factors > 0) & (factors < 1)).all())
    assert 0 <= float(net.attention_alive(histograms().float())) <= 1


def test_block_keeps_only_what_its_gradient_needs() -> None:
    """The rectifier, dropout and their mask leave one tensor behind, not three."""
    block, x = ConvBlock(3, 8, 1, 0.5), torch.randn(2, 3, 16, 16)
    kept: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        if t.numel() == 2 * 8 * 16 * 16:
            kept.add(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block(x)
    assert len(kept) == 2


def test_exported_network_routes_by_year_whatever_the_batch() -> None:
    net, x = build().eval(), histograms().float()
    rows = {0: torch.export.Dim("county_years")}
    program = torch.export.export(net, (x, YEARS), dynamic_shapes=(rows, rows), strict=False)
    for years in (YEARS, torch.tensor([2015, 2013, 2003, 2009]), YEARS[:3]):
        part = x[: len(years)]
        torch.testing.assert_close(
            program.module()(part, years), net(part, years), rtol=1e-4, atol=1e-5
        )
