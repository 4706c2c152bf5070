"""Definitions of channel attention in plain PyTorch, which are also the fast forms.

Two batched matrix products and a softmax over C x C numbers: no kernel would gain on that.
Sources: Fu et al., "Dual attention network for scene segmentation" (CVPR 2019), equation 3 with
the row maximum that its code subtracts from; GL-DMNet (arXiv 2501.01648), equations 15-20.
"""

from __future__ import annotations

from torch import Tensor

from zoo.kernels._moment import Axis, l2_normalise, signed_sqrt
from zoo.kernels._ragged import full_precision, statistics_dtype


def channel_attention(x: Tensor, values: Tensor | None = None) -> Tensor:
    """softmax(-x x^T) values: each channel attends to those it resembles least.

    softmax(rowmax(E) - E) of E = x x^T is the same, since a softmax ignores what a row shares.

    Args:
        x: (B, C, N) channels that are compared.
        values: (B, C, N') channels that are mixed; None: `x`.

    Returns:
        (B, C, N') in the dtype of the values.

    Raises:
        ValueError: Shapes do not fit.
    """
    values = x if values is None else values
    if x.dim() != 3 or values.dim() != 3 or x.shape[:2] != values.shape[:2]:
        msg = (
            "channel attention: (B, C, N) and values of the same B and C expected, got "
            f"{tuple(x.shape)} and {tuple(values.shape)}"
        )
        raise ValueError(msg)
    precise = statistics_dtype(x)
    with full_precision(x):
        # Sums over thousands of positions overflow 16-bit numbers, and the exponents are unscaled.
        wide = x.to(precise)
        weights = (-(wide @ wide.mT)).softmax(dim=-1)
        return (weights @ values.to(precise)).to(values.dtype)


def channel_mutual_attention(
    rgb: Tensor,
    depth: Tensor,
    fused: Tensor,
    eps: float = 1e-6,
    l2_axis: Axis = "map",
    l2_scale: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Channel mutual fusion: channels of two modalities compared with those of both fused.

    With m the signed square root and n the L2 norm, T_r = m(rgb fused^T) and T_d = m(depth fused^T)
    give n(T_r rgb), n(T_d depth) and n((T_r + T_d) fused).

    Args:
        rgb: (B, C, N).
        depth: (B, C, N).
        fused: (B, C, N).
        eps: Of the signed square root.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) then.

    Returns:
        Three of (B, C, N) in the dtype of the inputs.

    Raises:
        ValueError: Shapes do not fit.
    """
    if rgb.dim() != 3 or rgb.shape != depth.shape or rgb.shape != fused.shape:
        got = ", ".join(str(tuple(x.shape)) for x in (rgb, depth, fused))
        msg = f"channel attention: three maps of one shape (B, C, N) expected, got {got}"
        raise ValueError(msg)
    precise = statistics_dtype(fused)
    with full_precision(fused):
        rgb, depth, wide = rgb.to(precise), depth.to(precise), fused.to(precise)
        like_rgb, like_depth = signed_sqrt(rgb @ wide.mT, eps), signed_sqrt(depth @ wide.mT, eps)
        raw = (like_rgb @ rgb, like_depth @ depth, (like_rgb + like_depth) @ wide)
        made = [l2_normalise(x, l2_axis, l2_scale).to(fused.dtype) for x in raw]
    return made[0], made[1], made[2]
