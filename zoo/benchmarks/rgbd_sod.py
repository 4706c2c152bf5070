"""GL-DMNet: its first position fusion and a whole training step, beside the plain form.

The plain form makes every map of the paper's equations, with the same modules and weights. Of
each form the rows tell the time and, in the columns of memory, the megabytes (MB) that the forward
pass saves for the backward pass: every tensor storage once, parameters left out. The case of the
step names parameters and multiply-adds of one image with all four maps, the products of the
transformer's attention included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.benchmarks.costs import multiply_adds, saved_megabytes
from zoo.benchmarks.harness import Row, rows
from zoo.benchmarks.whole import both, forward, part_of

TASK = "rgbd_sod"
QUICK = {"backbone": "small", "width": 8, "fusion_channels": (16, 32, 40, 64), "input_size": 64}
LAMBDAS = (0.8, 0.6, 0.4, 0.2)

part = partial(part_of, TASK)


def position_fusion(
    model: nn.Module, side: int, batch: int, device: torch.device, rounds: int
) -> list[Row]:
    """Rows of the first stage's position fusion, from reduced maps to its result."""
    stage: Any = model.fusion[0]  # type: ignore[index]  # a list of modules
    channels = stage.reduce_rgb.first.shape[0]
    maps = [torch.randn(batch, channels, side, side, device=device).relu_() for _ in range(2)]
    maps = [x.requires_grad_() for x in maps]
    plain = partial(part("plain").by_position, stage, *maps)
    own = partial(stage.by_position, *maps)

    runs = {"plain": plain, "zoo": own}
    saved = {name: saved_megabytes(run, stage) for name, run in runs.items()}
    case = f"PMF stage 1, {batch} x {channels} x {side} x {side}, MB saved"
    found = []
    for mode, how in (("fwd", forward), ("fwd+bwd", both)):
        forms = {name: partial(how, run) for name, run in runs.items()}
        found += rows(TASK, case, mode, forms, device, rounds=rounds, memory=saved)
    stage.zero_grad(set_to_none=True)
    return found


def training_step(
    model: nn.Module, side: int, batch: int, device: torch.device, rounds: int
) -> list[Row]:
    """Rows of a whole step: forward, loss, backward, Adam."""
    rgb = torch.randn(batch, 3, side, side, device=device)
    depth = torch.rand(batch, 1, side, side, device=device)
    mask = (torch.rand(batch, 1, side, side, device=device) > 0.8).float()
    equations, losses = part("plain").forward, part("losses").deep_supervision

    def plain() -> Tensor:
        loss: Tensor = part("plain").bce_iou(equations(model, rgb, depth), mask, LAMBDAS)
        return loss

    def own() -> Tensor:
        loss: Tensor = losses(model(rgb, depth), mask, "bce+iou", LAMBDAS)["loss"]
        return loss

    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step(loss: Callable[[], Tensor]) -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        optimiser.step()

    model.train()
    runs = {"plain": plain, "zoo": own}
    saved = {name: saved_megabytes(run, model) for name, run in runs.items()}
    model.eval()
    one = rgb[:1], depth[:1], True
    work = [multiply_adds(partial(form, *one)) for form in (partial(equations, model), model)]
    model.train()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    case = (
        f"training step, {batch} x {side} x {side}, MB saved; {size:.2f} M parameters, "
        f"{work[0]:.2f} GMAC plain, {work[1]:.2f} ours"
    )
    forms = {name: partial(step, run) for name, run in runs.items()}
    return rows(TASK, case, "fwd+bwd", forms, device, rounds=rounds, memory=saved)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: A small network on small images, and fewer rounds.
    """
    torch.manual_seed(0)
    settings = part("config").RgbdModel(**(QUICK if quick else {}))
    model: nn.Module = part("model").build_model(settings).to(device)
    side, cuda = settings.input_size, device.type == "cuda"
    rounds = 20 if cuda else 3 if quick else 7
    batch = 4 if cuda or quick else 2
    found = position_fusion(model, side // 4, batch, device, rounds)
    return found + training_step(model, side, batch, device, rounds if cuda else 3)
