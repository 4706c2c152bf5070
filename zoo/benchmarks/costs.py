"""What a model costs besides time: activations kept for the gradient, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_megabytes(loss: Callable[[], Tensor], model: nn.Module) -> float:
    """Megabytes of storages that `loss` keeps for its gradient, parameters of `model` left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = loss()
    total = sum(kept.values()) / 1e6
    del result
    return total


def multiply_adds(forward: Callable[[], Any]) -> float:
    """Multiply-adds (10^9) of a forward pass: convolutions and all matrix products.

    The counter knows no fused attention on the CPU, so that is written out while it counts.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    import zoo.kernels.flops  # noqa: F401 (registers their counts)

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    return float(counter.get_total_flops() / 2e9)
