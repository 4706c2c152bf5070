"""Definitions of the resample and the gates in plain PyTorch.

Sources: MEDUSA (Aboutalebi et al., arXiv 2110.06063), scale-specific attention as its released
TensorFlow 1 code computes it; Hu et al., "Squeeze-and-excitation networks" (CVPR 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def legacy_grid(out: int, of: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where each output cell lies on the input axis, on the grid of TensorFlow 1.

    Source coordinate = output index * (of / out), in float32; no half-pixel shift, corners not
    aligned, no smoothing.

    Args:
        out: Output size.
        of: Input size.
        device: Of the result.

    Returns:
        (out,) lower neighbour, (out,) upper neighbour, and (out,) weight of the upper one.
    """
    place = torch.arange(out, device=device, dtype=torch.float32) * (of / out)
    low = place.floor()
    index = low.long().clamp_max(of - 1)
    return index, (index + 1).clamp_max(of - 1), place - low


def legacy_resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize on the grid of TensorFlow 1.

    Args:
        x: (B, C, H, W).
        size: Output (height, width).

    Returns:
        (B, C, *size).
    """
    low, high, weight = legacy_grid(size[1], x.shape[3], x.device)
    weight = weight.to(x.dtype)
    left = x.index_select(3, low)
    across = left + (x.index_select(3, high) - left) * weight
    low, high, weight = legacy_grid(size[0], x.shape[2], x.device)
    weight = weight.to(x.dtype).unsqueeze(1)
    top = across.index_select(2, low)
    return top + (across.index_select(2, high) - top) * weight


def broadcast_gate(x: Tensor, level: Tensor, residual: bool = False) -> Tensor:
    """Multiplies: x * sigmoid(level), or x * (1 + sigmoid(level)) if `residual`.

    The sigmoid is taken before anything is broadcast, so a level of one channel costs one pixel
    map, and its gradient is summed straight to its own shape.

    Args:
        x: (B, C, H, W).
        level: (B, 1, H, W) one a pixel, (B, C, 1, 1) one a channel, or (B, C, H, W).
        residual: Whether `x` itself is added.

    Returns:
        (B, C, H, W) in the dtype of `x`.

    Raises:
        ValueError: The level does not broadcast to `x`.
    """
    fits = level.dim() == 4 and all(
        own in (1, whole) for own, whole in zip(level.shape, x.shape, strict=True)
    )
    if x.dim() != 4 or not fits or level.shape[0] != x.shape[0]:
        msg = (
            "broadcast gate: x (B, C, H, W) and a level of 1 or the same size in each of the last "
            f"three axes expected, got {tuple(x.shape)} and {tuple(level.shape)}"
        )
        raise ValueError(msg)
    gate = level.sigmoid().to(x.dtype)
    return torch.addcmul(x, x, gate) if residual else x * gate


def squeeze(
    x: Tensor, down: tuple[Tensor, Tensor | None], up: tuple[Tensor, Tensor | None]
) -> Tensor:
    """Levels of a squeeze-and-excitation gate: up(relu(down(mean over pixels))).

    Args:
        x: (B, C, H, W).
        down: Weight (C / r, C) and bias or None.
        up: Weight (C, C / r) and bias or None.

    Returns:
        (B, C, 1, 1) before the sigmoid.
    """
    hidden = functional.linear(x.mean(dim=(2, 3)), *down).relu()
    return functional.linear(hidden, *up)[:, :, None, None]
