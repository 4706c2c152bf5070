"""Each block once, for what holds of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels import GatedAttentionPool, GatedLinearAttention, MutualAttention, QueryPool

NAMES = ("gated pool", "query pool", "gated linear", "mutual")


def some(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def build(name: str) -> tuple[nn.Module, Callable[[int], tuple[Any, ...]]]:
    """A block, and what makes inputs of so many rows, a multiple of 5."""
    found: dict[str, tuple[nn.Module, Callable[[int], tuple[Any, ...]]]] = {
        "gated pool": (GatedAttentionPool(16, 8, 3), lambda n: (some(n, 16),)),
        "query pool": (QueryPool(16, 4, key_norm=True), lambda n: (some(2, 16), some(n, 16))),
        "gated linear": (GatedLinearAttention(16, 4), lambda n: (some(1, n, 16), (n // 5, 5))),
        "mutual": (MutualAttention("signed_sqrt"), lambda n: tuple(some(1, 4, n) for _ in "rdf")),
    }
    return found[name]


def outputs(out: Any) -> tuple[Tensor, ...]:
    """What a block returned, as a plain tuple."""
    return (out,) if isinstance(out, Tensor) else tuple(out)
