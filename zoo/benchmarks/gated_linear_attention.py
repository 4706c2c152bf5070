"""Gated linear attention at HER-Seg's grid against the form of its authors and the definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from zoo.benchmarks.harness import Form, Row, can_compile, peak_cpu, peak_cuda, rows
from zoo.kernels import gated_linear_attention, rotary_table
from zoo.kernels.gated_linear_attention import reference

Attention = Callable[..., Tensor]
_SIDE = 64


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    lepe: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    heads: int,
) -> Tensor:
    """The usual way: complex rotation, scaled copies, layouts moved for heads and convolution."""
    count, channels = v.shape[1:]
    cos, sin = rotary_table(grid, channels, v.device)
    turns = torch.complex(cos, sin)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)

    def split(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (heads, -1)).permute(0, 2, 1, 3)

    fq, fk = functional.elu(q) + 1.0, functional.elu(k) + 1.0
    share = 1 / (split(fq) @ split(fk).mean(dim=-2, keepdim=True).mT + 1e-6)
    state = (split(turned(fk)).mT * count**-0.5) @ (split(v) * count**-0.5)
    mixed = (split(turned(fq)) @ state * share).transpose(1, 2).flatten(2)
    maps = torch.unflatten(v.mT.contiguous(), 2, grid)
    local = functional.conv2d(maps, lepe, bias, padding=1, groups=channels)
    out: Tensor = (mixed + local.flatten(2).mT) * functional.silu(gate)
    return out


FORMS: dict[str, Attention] = {
    "eager": written_out,
    "definition": reference.gated_linear_attention,
    "torch": gated_linear_attention,
    "compile": written_out,
}
_COMPILED = (8, 96)
"""Batch and channels of the case that torch.compile is asked for: it takes half a minute."""


def _forward(attend: Attention, inputs: list[Tensor], side: int, heads: int) -> None:
    with torch.no_grad():
        attend(*inputs, (side, side), heads)


def _both(attend: Attention, inputs: list[Tensor], side: int, heads: int, probe: Tensor) -> None:
    torch.autograd.grad(attend(*inputs, (side, side), heads), inputs, probe)


def make(
    form: str, mode: str, batch: int, channels: int, heads: int, device: str, dtype: str
) -> Form:
    """A run on seeded tokens of a 64 x 64 grid."""
    torch.manual_seed(0)
    kept = {"device": device, "dtype": getattr(torch, dtype)}

    def inputs(side: int, images: int) -> list[Tensor]:
        shapes = [(images, side * side, channels)] * 4 + [(channels, 1, 3, 3), (channels,)]
        return [torch.randn(s).to(**kept).requires_grad_() for s in shapes]

    attend, tokens, few = FORMS[form], inputs(_SIDE, batch), inputs(2, 1)
    if form == "compile":
        torch._dynamo.reset()
        attend = torch.compile(attend, dynamic=False)
    # What the first call ever loads (operators, workspaces of the library) is not the form's own.
    torch.autograd.grad(attend(*few, (2, 2), heads).sum(), few)
    if mode == "fwd":
        return partial(_forward, attend, tokens, _SIDE, heads)
    return partial(_both, attend, tokens, _SIDE, heads, torch.randn(tokens[0].shape).to(**kept))


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times the core of the block, projections left out.

    Args:
        device: Where to run.
        quick: Fewer sizes and rounds.
    """
    found: list[Row] = []
    cuda = device.type == "cuda"
    cases = [(1, 96, 6)] if quick else [(1, 96, 6), (1, 192, 12), (8, 96, 6), (8, 192, 12)]
    for dtype in ("float32", "bfloat16") if cuda else ("float32",):
        for batch, channels, heads in cases:
            for mode in ("fwd", "fwd+bwd"):
                size = (mode, batch, channels, heads, device.type, dtype)
                asked = (batch, channels) == _COMPILED and can_compile(device)
                forms = [form for form in FORMS if form != "compile" or asked]
                runs = {form: make(form, *size) for form in forms}
                peaks = None
                if not quick:
                    peaks = {
                        form: peak_cuda(one) if cuda else peak_cpu(make, form, *size)
                        for form, one in runs.items()
                        if cuda or form != "compile"  # its compiler's memory is not its own
                    }
                case = f"{batch} x {_SIDE**2} x {channels}, {heads} heads, {dtype}"
                rounds = 30 if cuda else 5 if quick else 9
                found += rows(
                    "gated_linear_attention", case, mode, runs, device, rounds=rounds, memory=peaks
                )
    return found
