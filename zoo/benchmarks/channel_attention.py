"""Channel attention against the form its authors wrote, at GL-DMNet's stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zoo.benchmarks.harness import Row, can_compile, rows
from zoo.kernels import channel_attention, channel_mutual_attention

Attention = Callable[..., Tensor | tuple[Tensor, ...]]


def plain_softmax(x: Tensor, values: Tensor) -> Tensor:
    """The softmax form with the row maximum that cancels."""
    energy = torch.bmm(x, x.mT)
    energy = energy.amax(-1, keepdim=True).expand_as(energy) - energy
    return torch.bmm(energy.softmax(-1), values)


def _forward(attend: Attention, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        attend(*inputs)


def _both(attend: Attention, inputs: list[Tensor]) -> None:
    out = attend(*inputs)
    outs = [out] if isinstance(out, Tensor) else list(out)
    torch.autograd.grad([x.sum() for x in outs], inputs)


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: Fewer sizes and rounds.
    """
    found = []
    sizes = ((64, 4096), (512, 64)) if quick else ((64, 4096), (128, 1024), (512, 64), (512, 484))
    # The signed square root form has one form only; its row is there to be compared with others.
    cases: dict[str, tuple[int, dict[str, Attention]]] = {
        "signed_sqrt": (3, {"eager": channel_mutual_attention}),
        "softmax": (2, {"eager": plain_softmax, "torch": channel_attention}),
    }
    for kind, (count, forms) in cases.items():
        for channels, positions in sizes:
            inputs = [
                torch.rand(2, channels, positions, device=device).requires_grad_()
                for _ in range(count)
            ]
            for mode, run_one in (("fwd", _forward), ("fwd+bwd", _both)):
                tried = dict(forms)
                if kind == "softmax" and not quick and can_compile(device):
                    torch._dynamo.reset()
                    tried["compile"] = torch.compile(plain_softmax, dynamic=False)
                runs = {name: partial(run_one, attend, inputs) for name, attend in tried.items()}
                case = f"{kind}, 2 x {channels} x {positions}, float32"
                found += rows(
                    "channel_attention", case, mode, runs, device, rounds=5 if quick else 15
                )
    return found
