"""Holding one form of a computation to another, outputs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.kernels.holding import products_by
from zoo.domains.medical.her_seg import decoder, mask_head, recompute

EXACT = 1e-9


@contextmanager
def forced(*, fold: bool = False, chunk: int = 1024) -> Iterator[None]:
    """The forms that large inputs run in, on small ones."""
    before = recompute.LARGE, decoder.FOLD_FROM, mask_head.CHUNK
    recompute.LARGE = 0
    decoder.FOLD_FROM, mask_head.CHUNK = 1 if fold else 2**62, chunk
    try:
        with products_by(onednn=True):
            yield
    finally:
        recompute.LARGE, decoder.FOLD_FROM, mask_head.CHUNK = before


def close(ours: Tensor, exact: Tensor, share: float = EXACT) -> None:
    """Compares against the largest number."""
    assert ours.shape == exact.shape
    if ours.numel():
        ours, exact = ours.detach().double(), exact.detach().double()
        error = float((ours - exact).abs().max())
        assert error <= share * max(float(exact.abs().max()), 1.0), error


def agree(
    own: Callable[[Any], Callable[..., Tensor]],
    plain: Callable[[Any], Callable[..., Tensor]],
    module: nn.Module,
    inputs: Sequence[Tensor],
    share: float = EXACT,
) -> None:
    """Runs both forms on copies of a module: results, all gradients and buffers are the same.

    Args:
        own: Module -> the form in question.
        plain: Module -> what it has to agree with.
        module: Copied for both; modules in training move their statistics.
        inputs: Differentiated where they are floating point.
        share: Largest difference over the largest number.
    """
    found = []
    for make in (own, plain):
        part = copy.deepcopy(module)
        given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        torch.manual_seed(5)
        out = make(part)(*given)
        wave = torch.linspace(0, 9, out.numel(), dtype=out.dtype).cos().view(out.shape)
        (out * wave).sum().backward()
        found.append((part, given, out))
    (ours, a, x), (theirs, b, y) = found
    close(x, y, share)
    for p, q in zip(a, b, strict=True):
        if p.is_floating_point():
            assert p.grad is not None
            assert q.grad is not None
            close(p.grad, q.grad, share)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        g, h = (torch.zeros_like(t) if t.grad is None else t.grad for t in (p, q))
        close(g, h, share)
    for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(p, q, share)


def stirred(module: nn.Module) -> nn.Module:
    """The module in float64 with no parameter at a special value such as a zero gamma."""
    generator = torch.Generator().manual_seed(3)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.05 if parameter.dim() > 1 else 0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.3, generator=generator)
    return module
