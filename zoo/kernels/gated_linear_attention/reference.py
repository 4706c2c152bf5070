"""Definition of gated linear attention in plain PyTorch.

Source: Han et al., "Demystify Mamba in vision: a linear attention perspective" (arXiv 2405.16605),
whose block HER-Seg takes over; linear attention itself is Katharopoulos et al. (arXiv 2006.16236).

Letters: N = h w tokens, row by row; C channels; H heads of d = C / H channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels._ragged import full_precision, statistics_dtype

EPS = 1e-6
"""Added to the denominator of the attention."""


def rotary_table(
    grid: tuple[int, int],
    channels: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each pair of channels is turned at each token.

    Pair p < C / 4 is turned by row * 10000^(-p / (C / 4)), pair p >= C / 4 by
    column * 10000^(-(p - C / 4) / (C / 4)); rows and columns count from 0.

    Args:
        grid: Rows h and columns w.
        channels: C, a multiple of 4.
        device: Of the result.
        dtype: Of the result.

    Returns:
        Two of (N, C / 2).
    """
    height, width = grid
    quarter = channels // 4
    place = torch.arange(quarter, device=device, dtype=dtype) / quarter
    speed = 10000.0**-place
    rows = torch.arange(height, device=device, dtype=dtype).unsqueeze(1) * speed
    columns = torch.arange(width, device=device, dtype=dtype).unsqueeze(1) * speed

    def spread(by_row: Tensor, by_column: Tensor) -> Tensor:
        shape = (height, width, quarter)
        parts = [by_row.unsqueeze(1).expand(shape), by_column.unsqueeze(0).expand(shape)]
        return torch.cat(parts, dim=-1).flatten(0, 1)

    # A token's angles are those of its row and its column: no cosine is taken twice.
    return spread(rows.cos(), columns.cos()), spread(rows.sin(), columns.sin())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (2p, 2p + 1): (a, b) -> (a cos - b sin, a sin + b cos).

    Args:
        x: (..., N, C).
        cos: (N, C / 2).
        sin: (N, C / 2).

    Returns:
        (..., N, C).
    """
    a, b = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def feature(x: Tensor) -> Tensor:
    """Computes elu(x) + 1, which is positive; without the cancellation at negative x."""
    return x.clamp_max(0).exp() + x.relu()


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    lepe_weight: Tensor,
    lepe_bias: Tensor | None,
    grid: tuple[int, int],
    heads: int,
) -> Tensor:
    """Linear attention over all tokens, plus a 3 x 3 depthwise convolution, times a gate.

    With f(x) = elu(x) + 1 and R the rotation, for each head

        o_n = R f(q_n) (1 / N sum_j (R f(k_j))^T v_j) / (f(q_n) . mean_j f(k_j) + 1e-6)

    and the result is (o + conv(v)) * silu(gate). The mean, the sum and the quotient are computed
    in float32 whatever the dtype of the tokens.

    Args:
        q: (B, N, C) queries before f.
        k: (B, N, C) keys before f.
        v: (B, N, C) values.
        gate: (B, N, C) before SiLU, or None: no gate.
        lepe_weight: (C, 1, 3, 3), the locally enhanced position encoding.
        lepe_bias: (C,) or None.
        grid: Rows and columns; their product is N.
        heads: H.

    Returns:
        (B, N, C) in the dtype of the values.
    """
    precise = statistics_dtype(v)
    with full_precision(v):
        cos, sin = rotary_table(grid, q.shape[-1], q.device, precise)
        fq, fk = feature(q.to(precise)), feature(k.to(precise))

        def split(x: Tensor) -> Tensor:
            return torch.unflatten(x, -1, (heads, -1)).transpose(-3, -2)  # (B, H, N, d)

        values = v.to(precise)
        mean = split(fk).mean(dim=-2, keepdim=True)
        share = 1 / ((split(fq) * mean).sum(dim=-1, keepdim=True) + EPS)
        state = split(rotate(fk, cos, sin)).mT @ split(values) / v.shape[1]
        mixed = (split(rotate(fq, cos, sin)) @ state * share).transpose(-3, -2).flatten(-2)
        maps = torch.unflatten(values.mT, -1, grid)
        bias = None if lepe_bias is None else lepe_bias.to(precise)
        local = functional.conv2d(
            maps, lepe_weight.to(precise), bias, padding=1, groups=v.shape[-1]
        )
        out = mixed + local.flatten(2).mT
        if gate is not None:
            out = out * functional.silu(gate.to(precise))
        return out.to(v.dtype)


def check(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, grid: tuple[int, int], heads: int
) -> None:
    """Raises unless tokens, grid and heads fit together.

    Raises:
        ValueError: They do not.
    """
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        got = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        msg = f"gated linear attention: q, k, v of one shape (B, N, C) expected, got {got}"
        raise ValueError(msg)
    if gate is not None and gate.shape != v.shape:
        msg = f"gated linear attention: a gate {tuple(v.shape)} expected, got {tuple(gate.shape)}"
        raise ValueError(msg)
    if grid[0] * grid[1] != q.shape[1] or min(grid) < 1:
        msg = (
            f"gated linear attention: {q.shape[1]} tokens do not fill a grid of {grid[0]} rows and "
            f"{grid[1]} columns; pass grid=(rows, columns)"
        )
        raise ValueError(msg)
    if heads < 1 or q.shape[2] % heads or q.shape[2] % 4:
        msg = (
            "gated linear attention: channels must be a multiple of 4 and of the heads, got "
            f"{q.shape[2]} channels and {heads} heads"
        )
        raise ValueError(msg)
