"""Mutual attention: the moment-normalised form at GL-DMNet's stages, the softmax form beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zoo.benchmarks.harness import Form, Row, can_compile, peak_cpu, peak_cuda, rows
from zoo.kernels import signed_sqrt_attention, two_stream_attention
from zoo.kernels.mutual_attention import reference

Attention = Callable[..., tuple[Tensor, ...]]


def twice(query: Tensor, key: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Two calls of PyTorch's attention, which make the same scores twice."""
    return tuple(functional.scaled_dot_product_attention(query, key, v) for v in values)


def flexible(query: Tensor, key: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """PyTorch's flexible attention over both values side by side."""
    from torch.nn.attention.flex_attention import flex_attention

    both = torch.cat(values, dim=-1).unsqueeze(1)
    out: Any = flex_attention(query.unsqueeze(1), key.unsqueeze(1), both)
    return tuple(out.squeeze(1).split([v.shape[-1] for v in values], dim=-1))


FORMS: dict[str, dict[str, Attention]] = {
    "signed_sqrt": {
        "eager": reference.signed_sqrt_attention,
        "torch": signed_sqrt_attention,
        "compile": reference.signed_sqrt_attention,
    },
    "softmax": {
        "eager": reference.two_stream_attention,
        "torch": two_stream_attention,
        "two SDPA": twice,
        "compile": reference.two_stream_attention,
        "flex": flexible,
    },
}
"""Form -> attention; those of `_BUILT` are compiled, and `flex` only for a GPU."""
_BUILT = ("compile", "flex")


def _forward(attend: Attention, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        attend(*inputs)


def _both(attend: Attention, inputs: list[Tensor], probes: list[Tensor]) -> None:
    torch.autograd.grad(attend(*inputs), inputs, probes)


def make(
    kind: str, form: str, mode: str, shapes: tuple[tuple[int, ...], ...], device: str, dtype: str
) -> Form:
    """A run on seeded inputs: rectified maps, or query, key and values."""
    torch.manual_seed(0)
    kept = {"device": device, "dtype": getattr(torch, dtype)}
    inputs = [torch.randn(s).to(**kept) for s in shapes]
    if kind == "signed_sqrt":
        inputs = [x.relu() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    attend = FORMS[kind][form]
    if form in _BUILT:
        torch._dynamo.reset()
        attend = torch.compile(attend, dynamic=False)
        return _bound(kind, attend, mode, inputs, shapes, kept)
    # What the first call ever loads (operators, workspaces of the library) is not the form's own.
    tiny = [x.detach()[:1, :4, :4].requires_grad_() for x in inputs]
    torch.autograd.grad([x.sum() for x in attend(*tiny)], tiny)
    return _bound(kind, attend, mode, inputs, shapes, kept)


def _bound(
    kind: str,
    attend: Attention,
    mode: str,
    inputs: list[Tensor],
    shapes: tuple[tuple[int, ...], ...],
    kept: dict[str, Any],
) -> Form:
    if mode == "fwd":
        return partial(_forward, attend, inputs)
    outs = shapes if kind == "signed_sqrt" else shapes[2:]
    probes = [torch.randn(s).to(**kept) for s in outs]
    return partial(_both, attend, inputs, probes)


def _runs(form: str, device: torch.device, built: bool) -> bool:
    if form not in _BUILT:
        return True
    return built and can_compile(device) and (form != "flex" or device.type == "cuda")


def _works(form: str, run: Form) -> bool:
    """Whether a compiler takes this form at this shape; the rest is measured without it."""
    try:
        run()
    except Exception as error:  # compilers raise all sorts
        print(f"{form} is left out: {(str(error).strip().splitlines() or ['no reason'])[0]}")
        return False
    return True


def _case(
    kind: str,
    shapes: tuple[tuple[int, ...], ...],
    device: torch.device,
    rounds: int,
    memory: bool,
    dtype: str = "float32",
) -> list[Row]:
    found = []
    for mode in ("fwd", "fwd+bwd"):
        forms = [form for form in FORMS[kind] if _runs(form, device, built=memory)]
        arguments = (mode, shapes, device.type, dtype)
        runs = {form: make(kind, form, *arguments) for form in forms}
        runs = {f: run for f, run in runs.items() if f not in _BUILT or _works(f, run)}
        peaks = None
        if memory and device.type == "cuda":
            peaks = {form: peak_cuda(run) for form, run in runs.items()}
        elif memory:
            # A compiler's own memory would be taken for the form's.
            plain = [form for form in runs if form not in _BUILT]
            peaks = {form: peak_cpu(make, kind, form, *arguments) for form in plain}
        case = f"{kind}, {' x '.join(str(n) for n in shapes[0])}, {dtype}"
        if kind == "softmax":
            case += f", values {shapes[2][-1]} + {shapes[3][-1]}"
        found += rows("mutual_attention", case, mode, runs, device, rounds=rounds, memory=peaks)
    return found


def run(device: torch.device, quick: bool = False) -> list[Row]:
    """Times both forms.

    Args:
        device: Where to run.
        quick: Smaller maps and fewer rounds.
    """
    cuda = device.type == "cuda"
    rounds = 30 if cuda else 3 if quick else 7
    channels, positions = (32, 1024) if quick else (64, 4096)
    found = []
    for dtype in ("float32", "bfloat16") if cuda else ("float32",):
        batch = 8 if cuda else 1
        maps = ((batch, channels, positions),) * 3
        found += _case("signed_sqrt", maps, device, rounds, not quick, dtype)
        if not quick:
            deep = ((batch, 128, 1024),) * 3
            found += _case("signed_sqrt", deep, device, rounds, False, dtype)
        tokens = 484 if quick else 1936
        heads = ((batch, tokens, 64),) * 2 + ((batch, tokens, 256),) * 2
        found += _case("softmax", heads, device, rounds, not quick, dtype)
    return found
