"""Registration of operators with PyTorch.

`torch.library.custom_op` would do the same in one decorator, but its first call imports the whole
compiler: a second and 150 MB for a process that only wants to pool some bags. What it adds beyond
that, the check that outputs share no memory with inputs, `torch.library.opcheck` does in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Registers `zoo::name` for all devices.

    Args:
        name: Name within the namespace `zoo`.
        schema: Arguments and returns, without marks of mutation: the operator is functional.
        run: Computes it; returns fresh tensors that share no memory with an argument.
        fake: The same on tensors without data: shapes, dtypes and strides only.

    Returns:
        The operator, to be called with all arguments in the order of the schema.
    """
    qualified = f"zoo::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "default", run)
    torch.library.register_fake(qualified, fake)
    found: Callable[..., Any] = getattr(torch.ops.zoo, name).default
    return found


def differentiable(
    name: str, backward: Callable[..., Any], setup: Callable[..., None] | None = None
) -> None:
    """Gives `zoo::name` its gradient.

    Args:
        name: Name within the namespace `zoo`.
        backward: Maps context and gradients of the outputs to gradients of the arguments.
        setup: Saves what `backward` needs from inputs and output.
    """
    torch.library.register_autograd(f"zoo::{name}", backward, setup_context=setup)
