from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.benchmarks.costs import saved_megabytes
from zoo.domains.saliency.rgbd_sod import plain
from zoo.domains.saliency.rgbd_sod.blocks import ConvPair, joined_conv, scaled_conv, upsample
from zoo.domains.saliency.rgbd_sod.fusion import ChannelGate, DualMutualLearning, SpatialGate
from zoo.kernels import ChannelAttention, MutualAttention

# The worked example of the task's specification: C = 2, N = 3, eps = 0, no scale.
R = [[1.0, 0, 2], [0, 1, 1]]
D = [[0.0, 1, 1], [2, 0, 1]]
P = [[1.0, 1, 0], [0, 1, 2]]
H = [[1.0, 0, 1], [1, 2, 0]]
POSITION = (
    [[0.192450, 0.544331, 0.816497], [0.244504, 0.590284, 0.769274]],
    [[0.751205, 0.220023, 0.622319], [0.451100, 0.451100, 0.770076]],
    [[0.475409, 0.417733, 0.774264], [0.538362, 0.405263, 0.738869]],
)
CHANNEL = (
    [[0.354083, 0.204430, 0.912597], [0.261204, 0.369398, 0.891806]],
    [[0.734510, 0.259688, 0.626943], [0.618703, 0.378877, 0.688229]],
    [[0.680079, 0.638077, 0.361041], [0.662793, 0.674281, 0.325653]],
)
FUSIONS = ["parallel", "position", "channel", "series", "concat"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tensors(*lists: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64).unsqueeze(0) for x in lists]


def make(fusion: str = "parallel", **options: Any) -> DualMutualLearning:
    """A stage of 6 -> 4 channels in float64 whose norms and biases are not at their start."""
    part = DualMutualLearning(6, 4, fusion=fusion, **({"reduction": 2} | options))
    for name, parameter in part.named_parameters():
        if "bn" in name or "bias" in name:
            nn.init.normal_(parameter, mean=0.5 * ("weight" in name), std=0.3)
    return part.double()


def inputs(*size: int) -> list[Tensor]:
    return [torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def same(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], over: list[Tensor], rtol: float
) -> None:
    """Values and gradients of two forms agree to `rtol` of the largest."""
    a, b = ours(), theirs()
    probe = torch.randn_like(a)
    mine = torch.autograd.grad((a * probe).sum(), over)
    other = torch.autograd.grad((b * probe).sum(), over)
    for x, y in zip((a, *mine), (b, *other), strict=True):
        torch.testing.assert_close(
            x, y, rtol=rtol, atol=rtol * float(y.detach().abs().max()) + 1e-300
        )


# -- the definitions ------------------------------------------------------------------------------


def test_similarities_of_the_worked_example() -> None:
    r, d, p, h = tensors(R, D, P, H)
    assert (p.mT @ r)[0].tolist() == [[1, 0, 2], [1, 1, 3], [0, 2, 2]]
    assert (p.mT @ d)[0].tolist() == [[0, 1, 1], [2, 1, 2], [4, 0, 2]]
    assert (r @ h.mT)[0].tolist() == [[3, 1], [1, 2]]
    assert (d @ h.mT)[0].tolist() == [[1, 2], [3, 2]]


@pytest.mark.parametrize("form", ["plain", "zoo"])
def test_position_fusion_gives_the_worked_example(form: str) -> None:
    maps = tensors(R, D, P)
    zoo = MutualAttention("signed_sqrt", eps=0.0, l2_scale=False)
    found = zoo(*maps) if form == "zoo" else plain.position_fusion(*maps, 0.0, "map", False)
    for ours, expected in zip(found, POSITION, strict=True):
        torch.testing.assert_close(ours[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["plain", "zoo"])
def test_channel_fusion_gives_the_worked_example(form: str) -> None:
    maps = tensors(R, D, H)
    zoo = ChannelAttention("signed_sqrt", eps=0.0, l2_scale=False)
    found = zoo(*maps) if form == "zoo" else plain.channel_fusion(*maps, 0.0, "map", False)
    for ours, expected in zip(found, CHANNEL, strict=True):
        torch.testing.assert_close(ours[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_slope_of_the_signed_square_root() -> None:
    x = torch.tensor([-4.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(plain.signed_sqrt(x, 1e-6).sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.25, 0, 1 / 6]).double(), atol=1e-6, rtol=0)
    assert slope[1] == 0


def test_scale_makes_the_norm_free_of_the_size() -> None:
    for count in (9, 900):
        maps = [torch.rand(1, 4, count, dtype=torch.float64) for _ in range(3)]
        for made in plain.position_fusion(*maps, 1e-6, "map", True):
            torch.testing.assert_close(made.square().mean(), torch.tensor(1.0).double())


@pytest.mark.parametrize("axis", ["map", "position"])
def test_gradcheck_of_the_definitions(axis: str) -> None:
    maps = [torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for fusion in (plain.position_fusion, plain.channel_fusion):
        assert torch.autograd.gradcheck(lambda *x, f=fusion: f(*x, 1e-6, axis, True), maps)


# -- the module against the plain form ------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_equals_the_plain_form(fusion: str, training: bool) -> None:
    part = make(fusion).train(training)
    maps = inputs(9, 15)  # 135 positions: more than a chunk, and no multiple of it
    over = [*maps, *part.parameters()]
    same(lambda: part(*maps), lambda: plain.fuse(part, *maps), over, 1e-9)


@pytest.mark.parametrize("options", [
    {"spatial_gate": "sigmoid"}, {"spatial_gate": "bn_relu"}, {"l2_axis": "position"},
    {"l2_scale": False}, {"sqrt_eps": 1e-4}, {"reduction": 16},
], ids=str)  # fmt: skip
def test_every_option_equals_the_plain_form(options: dict[str, Any]) -> None:
    defaults, part = make(), make(**options)
    maps = inputs(5, 7)
    over = [*maps, *part.parameters()]
    same(lambda: part(*maps), lambda: plain.fuse(part, *maps), over, 1e-9)
    if "bn_relu" in options.values() or "reduction" in options:  # other parameters
        assert defaults.state_dict().keys() != part.state_dict().keys() or "reduction" in options
    else:
        defaults.load_state_dict(part.state_dict())
        assert not torch.allclose(part.eval()(*maps), defaults.eval()(*maps), rtol=1e-6)


def test_hidden_width_of_the_channel_gate() -> None:
    assert ChannelGate(64).fc1.out_features == 8
    assert ChannelGate(4).fc1.out_features == 1  # where 2 C / 16 would be 0


@pytest.mark.parametrize("path", ["torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_paths_and_precisions_agree(
    path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, maps = make().eval(), [x.detach() for x in inputs(10, 14)]
    exact = part(*maps)
    monkeypatch.setenv("ZOO_KERNELS", path)
    part = part.float()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = part(*(x.float() for x in maps))
    error = (found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_spatial_gate_sees_the_largest_channel_first() -> None:
    gate = SpatialGate(3)
    nn.init.zeros_(gate.conv.weight)
    with torch.no_grad():
        gate.conv.weight[0, 0, 3, 3], gate.conv.weight[0, 1, 3, 3] = 2.0, 10.0
        gate.conv.bias.fill_(0.5)
    x = torch.rand(2, 3, 8, 8)
    expected = 2 * x.max(1, keepdim=True).values + 10 * x.mean(1, keepdim=True) + 0.5
    torch.testing.assert_close(gate.gate(x), expected)


def test_channel_gate_adds_both_pooled_values_without_activation() -> None:
    gate = ChannelGate(4, 4)
    maps = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    flat = torch.cat(maps, 1).flatten(2)
    mlp = nn.Sequential(gate.fc1, nn.ReLU(), gate.fc2)
    torch.testing.assert_close(gate.weights(*maps), mlp(flat.amax(2)) + mlp(flat.mean(2)))
    assert (gate.weights(*maps) < 0).any()


# -- memory and finiteness ------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operator returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return made


def test_no_tensor_of_all_pairs_of_positions_exists() -> None:
    part, maps = make("position").float(), [torch.rand(1, 4, 32, 32).requires_grad_() for _ in "ab"]
    found = {}
    for name, run in {"zoo": part.by_position, "plain": None}.items():
        with Largest() as seen:
            made = run(*maps) if run else plain.by_position(part, *maps)
            made.sum().backward()
        found[name] = seen.numbers
    assert found["plain"] == 1024**2
    assert found["zoo"] < 1024**2 / 50


def test_position_fusion_keeps_a_tenth_at_most() -> None:
    part, maps = make("position").float(), [torch.rand(2, 4, 32, 32).requires_grad_() for _ in "ab"]
    ours = saved_megabytes(lambda: part.by_position(*maps), part)
    theirs = saved_megabytes(lambda: plain.by_position(part, *maps), part)
    assert theirs > 2 * 1024**2 * 4 * 4 / 1e6  # at least four maps of all pairs an image
    assert ours <= theirs / 10


@pytest.mark.parametrize("fusion", FUSIONS)
def test_dead_channels_have_finite_gradients(fusion: str) -> None:
    part = make(fusion).float()
    for pair in (part.reduce_rgb, part.reduce_depth):
        with torch.no_grad():
            pair[1].bn.bias[:2] = -50.0  # two channels that are zero everywhere
    maps = [x.float().detach().requires_grad_() for x in inputs(6, 8)]
    made = part(*maps)
    made.square().sum().backward()
    assert torch.isfinite(made).all()
    for x in (*maps, *part.parameters()):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


# -- the algebra behind it ------------------------------------------------------------------------


@pytest.mark.parametrize("align", [False, True])
def test_convolution_of_a_concatenation_of_enlarged_maps(align: bool) -> None:
    maps = [torch.randn(2, c, s, s + 1, dtype=torch.float64) for c, s in ((3, 8), (4, 4), (2, 2))]
    pair = ConvPair(9, 5).double()
    both = torch.cat([upsample(x, (8, 9), align) for x in maps], 1)
    found = joined_conv(pair.first, maps, (8, 9), align)
    torch.testing.assert_close(found, pair[0].conv(both), rtol=0, atol=1e-13)
    torch.testing.assert_close(pair.after(found), pair(both), rtol=0, atol=1e-12)


def test_convolution_of_scaled_channels() -> None:
    maps = [torch.randn(2, c, 4, 5, dtype=torch.float64) for c in (3, 4)]
    scale, pair = torch.randn(2, 7, dtype=torch.float64), ConvPair(7, 5).double()
    expected = pair[0].conv(torch.cat(maps, 1) * scale[..., None, None])
    torch.testing.assert_close(sum(scaled_conv(pair.first, maps, scale)), expected)
