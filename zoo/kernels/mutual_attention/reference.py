"""Definitions of mutual attention in plain PyTorch.

Source: GL-DMNet, "Dual mutual learning network with global-local awareness for RGB-D salient
object detection" (arXiv 2501.01648), equations 6-11; the normalisation is read as the signed
square root, since the printed exponent -1/2 has no value for negative similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.kernels._moment import Axis, l2_normalise, signed_sqrt
from zoo.kernels._ragged import full_precision, statistics_dtype


def moment_products(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float) -> tuple[Tensor, ...]:
    """The three attended maps before their L2 norm.

    With A = fused^T rgb, B = fused^T depth and m the signed square root, these are rgb m(A),
    depth m(B) and fused (m(A) + m(B)).

    Args:
        rgb: (B, C, N).
        depth: (B, C, N).
        fused: (B, C, N).
        eps: Of the signed square root.

    Returns:
        Three of (B, C, N), float32 (float64 for float64 maps).
    """
    precise = statistics_dtype(fused)
    with full_precision(fused):
        rgb, depth, fused = rgb.to(precise), depth.to(precise), fused.to(precise)
        like_rgb = signed_sqrt(fused.mT @ rgb, eps)
        like_depth = signed_sqrt(fused.mT @ depth, eps)
        return rgb @ like_rgb, depth @ like_depth, fused @ (like_rgb + like_depth)


def signed_sqrt_attention(
    rgb: Tensor,
    depth: Tensor,
    fused: Tensor,
    eps: float = 1e-6,
    l2_axis: Axis = "map",
    l2_scale: bool = True,
) -> tuple[Tensor, ...]:
    """Position mutual attention: `moment_products`, each L2-normalised.

    Args:
        rgb: (B, C, N) features of the first modality.
        depth: (B, C, N) of the second.
        fused: (B, C, N) of both, which are compared with each of them.
        eps: Of the signed square root.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) then.

    Returns:
        Attended rgb, depth and fused, each (B, C, N) in the dtype of the inputs.
    """
    raw = moment_products(rgb, depth, fused, eps)
    return tuple(l2_normalise(x, l2_axis, l2_scale).to(fused.dtype) for x in raw)


def two_stream_attention(
    query: Tensor, key: Tensor, first: Tensor, second: Tensor | None, scale: float | None = None
) -> tuple[Tensor, ...]:
    """softmax(scale query key^T) applied to one or two value streams.

    Args:
        query: (..., N, E).
        key: (..., M, E).
        first: (..., M, V1).
        second: (..., M, V2) or None.
        scale: None: 1 / sqrt(E).

    Returns:
        (..., N, V1) and, if there is a second stream, (..., N, V2).
    """
    precise = statistics_dtype(query)
    with full_precision(query):
        scores = query.to(precise) @ key.to(precise).mT
        weights = (scores * (query.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
        values = [first] if second is None else [first, second]
        return tuple((weights @ value.to(precise)).to(value.dtype) for value in values)


def check_maps(rgb: Tensor, depth: Tensor, fused: Tensor) -> None:
    """Raises unless the three maps have one shape (B, C, N), one dtype and one device.

    Raises:
        ValueError: They do not.
    """
    alike = all(
        x.shape == rgb.shape and x.dtype == rgb.dtype and x.device == rgb.device
        for x in (depth, fused)
    )
    if not alike or rgb.dim() != 3 or not torch.is_floating_point(rgb):
        got = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in (rgb, depth, fused))
        msg = f"mutual attention: three maps of one shape and floating dtype expected, got {got}"
        raise ValueError(msg)
