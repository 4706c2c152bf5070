"""Moment normalisation: what GL-DMNet puts in the place of a softmax.

Source: Lin and Maji, "Improved bilinear pooling with CNNs" (BMVC 2017), section 3.2: element-wise
signed square root, then an L2 norm.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Axis = Literal["map", "position"]
AXES = ("map", "position")
_BLOCK = 1 << 16  # numbers that stay in a core's own cache from one step to the next


def signed_sqrt(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Computes sign(x) sqrt(|x| + eps), element by element; value and gradient are 0 at 0.

    Args:
        x: Any shape, floating point.
        eps: Keeps the gradient below 0.5 / sqrt(eps); may be 0.
    """
    # At 0 the root is taken of 1, so that its gradient is finite before the sign sets it to 0.
    size = torch.where(x == 0, 1.0, x.abs() + eps)
    return x.sign() * size.sqrt()


def moment_(x: Tensor, eps: float, positive: bool = False) -> Tensor:
    """`signed_sqrt` in place, without a gradient.

    Args:
        x: Any shape, floating point, contiguous.
        eps: At least 0.
        positive: Promises that no entry is negative; on a CPU, where looking for a 0 does not
            wait for a device, two steps are then enough where there is none.
    """
    on_cpu = x.device.type == "cpu"
    for part in torch.split(x.view(-1), _BLOCK) if on_cpu else (x,):
        if positive and on_cpu and bool(part.amin() > 0):
            part.add_(eps).sqrt_()
        else:
            size = part.abs().add_(eps).sqrt_()
            part.sign_().mul_(size)
    return x


def by_moment_(grad: Tensor, moment: Tensor, positive: bool = False) -> Tensor:
    """Divides by |m(x)| in place, or gives 0 where m(x) is 0: twice m'(x) times the gradient.

    Args:
        grad: Any shape.
        moment: m(x), of the same shape.
        positive: Promises that no entry of it is negative.
    """
    size = moment if positive else moment.abs()
    grad.div_(size)
    if grad.device.type == "cpu" and bool(size.amin() > 0):
        return grad
    return grad.masked_fill_(size == 0, 0.0)


def l2_normalise(x: Tensor, axis: Axis = "map", scale: bool = True) -> Tensor:
    """Divides by the L2 norm, and multiplies by sqrt(N) if `scale`.

    Args:
        x: (B, C, N).
        axis: `map`: each channel over its N positions; `position`: each position over C channels.
        scale: Whether entries stay near 1 whatever N is.

    Raises:
        ValueError: `axis` is none of the two.
    """
    if axis not in AXES:
        msg = f"l2_axis must be one of {', '.join(AXES)}, got {axis!r}"
        raise ValueError(msg)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1 if axis == "map" else -2, keepdim=True)
    normal = x / norm.clamp_min(1e-12)
    return normal * float(x.shape[-1] ** 0.5) if scale else normal


def flat(x: Tensor) -> Tensor:
    """(B, C, N) of maps (B, C, H, W) or of (B, C, N)."""
    return x.flatten(2) if x.dim() == 4 else x
