"""Overlays, Grad-CAM, and maps of a body at rest."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.medusa import explain, resting
from zoo.domains.medical.medusa.resting import RestingMaps

RNG = np.random.default_rng(0)


# -- overlays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_overlay_pixel_by_pixel(colour: bool, masked: bool) -> None:
    image = RNG.random((3, 4, 3) if colour else (3, 4))
    heat, alpha = RNG.random((3, 4)), 0.2
    ours = explain.overlay(image, heat, alpha, masked)
    for y in range(3):
        for x in range(4):
            jet = np.array(colormaps["jet"](round(255 * heat[y, x]))[:3])
            strength = alpha * heat[y, x] if masked else alpha
            mixed = strength * jet + (1 - strength) * image[y, x]
            assert ours[y, x].tolist() == (mixed * 255).astype(int).tolist()


def test_overlay_of_strength_zero_is_the_radiograph() -> None:
    image = np.array([[0.0, 0.5], [0.2, 1.0]])
    shown = explain.overlay(image, np.ones((2, 2)), alpha=0.0)
    assert shown.tolist() == [[[0] * 3, [127] * 3], [[51] * 3, [255] * 3]]


def test_stretching() -> None:
    assert explain.unit(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert explain.unit(np.full((2, 2), 7)).tolist() == [[0, 0], [0, 0]]
    grown = explain.resized(np.array([[0.0, 1.0]]), (1, 4))
    np.testing.assert_allclose(grown, [[0.0, 0.25, 0.75, 1.0]])


def test_scale_heat_is_the_mean_magnitude_over_channels() -> None:
    maps = [torch.tensor([[[[1.0]], [[-3.0]]]]), torch.zeros(1, 5, 2, 3)]
    first, second = explain.scale_heat(maps)
    assert first.tolist() == [[[2.0]]]
    assert second.shape == (1, 2, 3)


# -- Grad-CAM -----------------------------------------------------------------------------------


class Small(nn.Module):
    """Two inputs, as the real model; the map scales the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, stride=2)
        self.top = nn.Linear(4, 3)

    def forward(self, image: Tensor, semantic: Tensor) -> Tensor:
        gate = functional.interpolate(semantic, image.shape[2:])
        made: Tensor = self.top(self.features(image * (1 + gate)).relu().mean((2, 3)))
        return made


def test_gradcam_by_hand() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    net = Small().eval()
    image, semantic = torch.rand(3, 3, 9, 11), torch.rand(3, 1, 4, 4)
    target = [2, 0, 1]
    with torch.no_grad(), warnings.catch_warnings():  # as the engine calls it
        warnings.simplefilter("error")
        ours = explain.gradcam(net, net.features, (image, semantic), target)
    gate = functional.interpolate(semantic, image.shape[2:])
    values = net.features(image * (1 + gate)).detach().requires_grad_(True)
    logits = net.top(values.relu().mean((2, 3)))
    (slope,) = torch.autograd.grad(logits[range(3), target].sum(), values)
    expected = (slope.mean((2, 3), keepdim=True) * values).sum(1).relu()
    assert ours.shape == (3, 4, 5)
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_gradcam_of_a_frozen_model() -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    net = Small().eval()
    inputs = (torch.rand(1, 3, 9, 9), torch.rand(1, 1, 4, 4))
    before = explain.gradcam(net, net.features, inputs, [1])
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    np.testing.assert_array_equal(explain.gradcam(net, net.features, inputs, [1]), before)


# -- maps of a body at rest ---------------------------------------------------------------------


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.calls = 0

    def forward(self, semantic: Tensor) -> Tensor:
        self.calls += len(semantic)
        made: Tensor = self.conv(semantic).sigmoid()
        return made


@pytest.fixture
def body() -> Body:
    torch.manual_seed(0)
    return Body()


def test_a_map_is_computed_once_and_alone(body: Body) -> None:
    maps, semantic = RestingMaps(), torch.rand(5, 1, 8, 8)
    first = maps(body, semantic)
    again = maps(body, semantic.flip(0)[:3])
    assert body.calls == 5
    assert (maps.hits, maps.misses) == (3, 5)
    alone = torch.cat([body(one[None]) for one in semantic]).detach()
    assert torch.equal(first, alone)
    assert torch.equal(again, alone.flip(0)[:3])
    assert not first.requires_grad


def test_the_value_does_not_depend_on_what_was_remembered(body: Body) -> None:
    semantic = torch.rand(6, 1, 8, 8)
    warm, cold, none = RestingMaps(), RestingMaps(), RestingMaps(share=0.0)
    warm(body, semantic[:4])
    assert torch.equal(warm(body, semantic), cold(body, semantic))
    assert torch.equal(warm(body, semantic), none(body, semantic))
    assert (len(warm), len(none)) == (6, 0)


def test_another_input_is_another_map_whatever_it_is_called(body: Body) -> None:
    maps, semantic = RestingMaps(), torch.rand(1, 1, 8, 8)
    first = maps(body, semantic)
    assert not torch.equal(maps(body, semantic + 1e-3), first)
    assert maps.hits == 0


@pytest.mark.parametrize("kind", ["adam", "foreach", "load", "buffer"])
def test_a_changed_body_forgets(body: Body, kind: str) -> None:
    body.register_buffer("shift", torch.zeros(1))
    maps, semantic = RestingMaps(), torch.rand(2, 1, 8, 8)
    before = maps(body, semantic)
    if kind == "load":
        body.load_state_dict({k: v + 1 for k, v in body.state_dict().items()})
    elif kind == "buffer":
        body.get_buffer("shift").add_(1)
    else:
        how = {"foreach": {"foreach": True}, "fused": {"fused": True}}.get(kind, {})
        optimiser = torch.optim.Adam(body.parameters(), lr=0.1, **how)
        body(semantic).sum().backward()
        optimiser.step()
    calls = body.calls
    after = maps(body, semantic)
    assert body.calls == calls + 2
    assert torch.equal(after, before) == (kind == "buffer")


def test_a_step_of_frozen_parameters_keeps_the_maps(body: Body) -> None:
    other = nn.Linear(2, 2)
    optimiser = torch.optim.Adam([*body.parameters(), *other.parameters()], lr=0.1)
    body.requires_grad_(False)
    maps, semantic = RestingMaps(), torch.rand(2, 1, 8, 8)
    maps(body, semantic)
    other(torch.rand(3, 2)).sum().backward()
    optimiser.step()
    maps(body, semantic)
    assert maps.hits == 2


def test_another_body_forgets(body: Body) -> None:
    maps, semantic = RestingMaps(), torch.rand(2, 1, 8, 8)
    maps(body, semantic)
    torch.manual_seed(1)
    other = Body()
    assert torch.equal(maps(other, semantic), RestingMaps()(other, semantic))
    assert maps.hits == 0


def test_arithmetic_of_the_trainer(body: Body) -> None:
    semantic = torch.rand(2, 1, 8, 8)
    mixed = RestingMaps("bf16-mixed")(body, semantic)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.cat([body(one[None]) for one in semantic])
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, expected.float())
    assert RestingMaps("64-true")(body.double(), semantic).dtype == torch.float64


def test_memory_is_not_filled(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 2 * 3 * 8 * 8 * 4 + 100

    monkeypatch.setattr(resting.psutil, "virtual_memory", Memory)
    maps = RestingMaps(share=0.5)
    maps(body, torch.rand(7, 1, 8, 8))
    assert len(maps) == 3
