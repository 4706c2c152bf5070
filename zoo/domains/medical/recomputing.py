"""What operations that keep less for the backward pass have in common.

Such an operation keeps one side of an activation or normalisation and makes the other again when a
gradient asks for it; see `recompute.py` of the tasks, and `batch_norm.py` beside this.

Letters: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

aten: Any = torch.ops.aten

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def may_recompute(x: Tensor) -> bool:
    """Whether an operation may run in its own form on this tensor.

    Not while a graph is traced (`torch.export`, `torch.compile`), which is to hold plain operators,
    and not where `ZOO_KERNELS=reference` asks for them.
    """
    plain = os.environ.get("ZOO_KERNELS") == "reference" or torch.compiler.is_compiling()
    return x.device.type in ("cpu", "cuda") and not plain


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    *,
    padding: tuple[int, int] = (0, 0),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Gradients:
    """Gradients of a convolution.

    Args:
        grad: (B, C', h, w) of the result.
        x: (B, C, H, W).
        weight: (C', C / groups, k, l), in the dtype of x.
        wanted: Whether those of x, weight and bias are asked for.
        padding: Zeros on both sides of each axis.
        stride: In both axes.
        dilation: In both axes.
        groups: Of channels.

    Returns:
        Gradients of x, of weight and (C') of a bias; None where one isn't wanted.
    """
    made: Gradients = aten.convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        [stride, stride],
        list(padding),
        [dilation, dilation],
        False,
        [0, 0],
        groups,
        list(wanted),
    )
    return made
