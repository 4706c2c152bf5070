"""MEDUSA: the body's upsampling layers, the body, and a whole training pass, beside the plain form.

The plain form is the network as published on the same weights (`plain.py` of the task), once in
PyTorch's usual memory layout and once with channels last. In the columns of memory stand the
megabytes (MB) that a forward pass saves for the backward pass: every tensor storage once,
parameters left out. A case names the multiply-adds of one image, plain and ours; the error of the
upsampling layers is against float64. Batch statistics are those of training.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.benchmarks.costs import multiply_adds
from zoo.benchmarks.harness import Row
from zoo.benchmarks.whole import Run, part_of, passes

TASK = "medusa"
QUICK = {
    "backbone": "small",
    "width": 8,
    "blocks": (1, 1, 1, 1),
    "body_width": 4,
    "image_size": 64,
    "body_size": 64,
    "global_pool": True,
}
UPSAMPLED = (15, 20, 25, 30)

part = partial(part_of, TASK)


def work(forms: dict[str, Run]) -> str:
    """Multiply-adds of the first and the last form in words."""
    each = [multiply_adds(run) for run in forms.values()]
    return f"{each[0]:.2f} GMAC plain, {each[-1]:.2f} ours"


def upsampling(body: nn.Module, side: int, device: torch.device, rounds: int) -> list[Row]:
    """Rows of each of the body's four layers that follow an enlargement.

    Args:
        body: The body.
        side: Of its input in pixels.
        device: Where to run.
        rounds: How often each form is timed.
    """
    ours = part("upsampling").upsampled_conv
    found = []
    for level, number in enumerate(UPSAMPLED):
        layer: Any = body.get_submodule(f"conv{number}")
        small = side >> (4 - level)
        x = torch.rand(1, layer.in_channels, small, small, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

        def enlarged(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            large = functional.interpolate(x, scale_factor=2, mode="nearest")
            return functional.conv2d(large, weight, bias, padding=1)

        given = (layer.weight, layer.bias)
        exact = enlarged(*(t.detach().double() for t in (x, *given)))
        runs: dict[str, Run] = {
            "plain": partial(enlarged, x, *given),
            "zoo": partial(ours, x, *given),
        }
        with torch.no_grad():
            errors = {
                n: float((f() - exact).abs().max() / exact.abs().max()) for n, f in runs.items()
            }
        wide = f"{layer.in_channels} to {layer.out_channels} channels"
        case = f"layer {number}: {wide}, {small} to {2 * small} px, MB saved; {work(runs)}"
        found += passes(TASK, case, runs, body, device, rounds, errors=errors)
    return found


def whole(settings: Any, device: torch.device, rounds: int) -> list[Row]:
    """Rows of the body alone and of the whole network with its loss.

    Args:
        settings: The configuration's section `model`.
        device: Where to run.
        rounds: How often each form is timed.
    """
    plain = part("plain")
    model: Any = part("model").build_model(settings, 2).to(device)
    usual = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    image = torch.rand(1, 3, settings.image_size, settings.image_size, device=device)
    last = image.contiguous(memory_format=torch.channels_last)
    semantic = torch.randn(1, 1, settings.body_size, settings.body_size, device=device)
    label = torch.tensor([1], device=device)

    def loss(logits: Run) -> Tensor:
        return functional.cross_entropy(logits(), label)

    bodies: dict[str, Run] = {
        "plain": partial(plain.plain_body, usual.body, semantic),
        "plain, channels last": partial(plain.plain_body, model.body, semantic),
        "zoo": partial(model.body, semantic),
    }
    networks: dict[str, Run] = {
        "plain": partial(plain.plain_medusa, usual, image, semantic),
        "plain, channels last": partial(plain.plain_medusa, model, last, semantic),
        "zoo": partial(model, image, semantic),
    }
    both = nn.ModuleList([model, usual])
    size = sum(p.numel() for p in model.parameters()) / 1e6
    case = f"body, 1 x {settings.body_size} px, MB saved; {work(bodies)}"
    found = passes(TASK, case, bodies, both, device, rounds)
    both.train()
    case = (
        f"network, 1 x {settings.image_size} px, body {settings.body_size} px, MB saved; "
        f"{size:.2f} M parameters, {work(networks)}"
    )
    losses: dict[str, Run] = {name: partial(loss, run) for name, run in networks.items()}
    return found + passes(TASK, case, losses, both, device, rounds)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: A small network on small images, and fewer rounds.
    """
    torch.manual_seed(0)
    settings = part("config").MedusaModel(**(QUICK if quick else {}))
    rounds = 20 if device.type == "cuda" else 3 if quick else 7
    body = part("model").build_body(settings).to(device)
    found = upsampling(body, settings.body_size, device, rounds)
    return found + whole(settings, device, rounds)
