"""Gated linear attention with small products per head and a backward pass written out.

Per head, with F = f(q), G = f(k), z = 1 / (F . mean G + 1e-6), M = (R G)^T v / N and o = z (R F) M,
the gradient do of o gives

    dM = (R F)^T (z do),  e = -z^2 sum_d do ((R F) M),  dmean = sum_n e F
    dF = R^T (z do M^T) + e mean,  dG = R^T (v dM^T) / N + dmean / N,  dv = (R G) dM / N
    dq = dF f'(q) with f' = 1 or f, and the same for k

Only the inputs, M and mean G are kept. The rotation is one complex product: by far its fastest
form on a CPU, and out of sight of export and of 16-bit tensors in here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels.gated_linear_attention.reference import EPS, rotary_table


class Tokens(NamedTuple):
    """Inputs in the dtype that is computed with, float32 or float64.

    Attributes:
        q: (B, N, C).
        k: (B, N, C).
        v: (B, N, C).
        gate: (B, N, C) or None.
        lepe: (C, 1, 3, 3).
        lepe_bias: (C,) or None.
        grid: Rows and columns.
        heads: H.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None
    lepe: Tensor
    lepe_bias: Tensor | None
    grid: tuple[int, int]
    heads: int


def _feature(x: Tensor) -> Tensor:
    return x.clamp_max(0).exp_().add_(x.relu())


def _turns(tokens: Tokens) -> Tensor:
    """(N, C / 2) complex unit numbers."""
    x = tokens.v
    return torch.complex(*rotary_table(tokens.grid, x.shape[2], x.device, x.dtype))


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) as (B, H, N, d)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(B, H, N, d) as (B, N, C); with heads of one channel flattening alone would be a view."""
    return x.transpose(1, 2).flatten(2).contiguous()


def _maps(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, h, w) view of tokens, which makes it channels-last: no copy."""
    return torch.unflatten(x, 1, grid).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """Tokens (B, N, C) of maps (B, C, h, w)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _local(tokens: Tokens) -> Tensor:
    """The depthwise convolution of the values, (B, N, C)."""
    maps = _maps(tokens.v, tokens.grid)
    channels = tokens.v.shape[2]
    return _rows(functional.conv2d(maps, tokens.lepe, tokens.lepe_bias, padding=1, groups=channels))


def _share(fq: Tensor, mean: Tensor, heads: int) -> Tensor:
    """(B, H, N, 1), one over the sum of a token's weights."""
    total = torch.unflatten(fq, -1, (heads, -1)) * torch.unflatten(mean, -1, (heads, -1))[:, None]
    return total.sum(dim=-1).add_(EPS).reciprocal_().transpose(1, 2).unsqueeze(-1)


def _items(tokens: Tokens) -> list[slice]:
    """Parts of the batch: single items on a CPU, where their steps then stay in the cache."""
    batch = tokens.v.shape[0]
    one_by_one = tokens.v.device.type == "cpu" and batch > 1 and tokens.v[0].numel() >= 2**15
    return [slice(b, b + 1) for b in range(batch)] if one_by_one else [slice(None)]


def _part(tokens: Tokens, item: slice) -> Tokens:
    gate = None if tokens.gate is None else tokens.gate[item]
    return tokens._replace(q=tokens.q[item], k=tokens.k[item], v=tokens.v[item], gate=gate)


def forward(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """The result.

    Returns:
        out (B, N, C), state M (B, H, d, d), mean f(k) (B, C).
    """
    items, turns = _items(tokens), _turns(tokens)
    if len(items) == 1:
        return _forward(tokens, turns)
    v, heads = tokens.v, tokens.heads
    size = v.shape[2] // heads
    out = torch.empty_like(v)
    state, mean = v.new_empty(v.shape[0], heads, size, size), v.new_empty(v.shape[0], v.shape[2])
    for item in items:
        found = _forward(_part(tokens, item), turns)
        for whole, part in zip((out, state, mean), found, strict=True):
            whole[item] = part
    return out, state, mean


def _forward(tokens: Tokens, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = tokens.heads
    fk = _feature(tokens.k)
    mean = fk.mean(dim=1)
    rk = _heads(_turned(fk, turns), heads)
    state = (rk.mT @ _heads(tokens.v, heads)).div_(tokens.v.shape[1])
    fq = _feature(tokens.q)
    mixed = _heads(_turned(fq, turns), heads) @ state
    mixed *= _share(fq, mean, heads)
    out = _local(tokens).add_(_joined(mixed))
    if tokens.gate is not None:
        out *= functional.silu(tokens.gate)
    return out, state, mean


class Gradients(NamedTuple):
    """Gradients of the six tensor inputs, in their order."""

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None
    lepe: Tensor
    lepe_bias: Tensor | None


def backward(grad: Tensor, tokens: Tokens, state: Tensor, mean: Tensor) -> Gradients:
    """Gradients of all inputs.

    Args:
        grad: (B, N, C) of the output, contiguous.
        tokens: The inputs.
        state: (B, H, d, d) of the forward pass.
        mean: (B, C) of the forward pass.
    """
    items, turns = _items(tokens), _turns(tokens)
    if len(items) == 1:
        return _backward(grad, tokens, state, mean, turns)
    v = tokens.v
    whole = Gradients(
        torch.empty_like(v),
        torch.empty_like(v),
        torch.empty_like(v),
        None if tokens.gate is None else torch.empty_like(v),
        torch.zeros_like(tokens.lepe),
        None if tokens.lepe_bias is None else torch.zeros_like(tokens.lepe_bias),
    )
    for item in items:
        own = _backward(grad[item], _part(tokens, item), state[item], mean[item], turns)
        for total, part in zip(whole[:4], own[:4], strict=True):
            if total is not None and part is not None:
                total[item] = part
        whole.lepe.add_(own.lepe)
        if whole.lepe_bias is not None and own.lepe_bias is not None:
            whole.lepe_bias.add_(own.lepe_bias)
    return whole


def _backward(
    grad: Tensor, tokens: Tokens, state: Tensor, mean: Tensor, turns: Tensor
) -> Gradients:
    heads = tokens.heads
    count = tokens.v.shape[1]
    fq, fk = _feature(tokens.q), _feature(tokens.k)
    rq, rk = (_heads(_turned(f, turns), heads) for f in (fq, fk))
    raw, share = rq @ state, _share(fq, mean, heads)
    d_gate = None
    d_out = grad
    if tokens.gate is not None:
        out = _local(tokens).add_(_joined(raw * share))
        sigmoid = tokens.gate.sigmoid()
        d_out = grad * (tokens.gate * sigmoid)
        # silu' = s (1 + g (1 - s))
        slope = (1 - sigmoid).mul_(tokens.gate).add_(1).mul_(sigmoid)
        d_gate = slope.mul_(grad).mul_(out)
    d_mixed = _heads(d_out, heads)
    weighted = d_mixed * share
    d_share = (d_mixed * raw).sum(dim=-1, keepdim=True).mul_(share.square()).neg_()  # e
    d_state = rq.mT @ weighted
    d_mean = (d_share * _heads(fq, heads)).sum(dim=2).flatten(1)
    back = turns.conj()
    d_fq = _turned(_joined(weighted @ state.mT), back)
    d_fq += _joined(d_share * torch.unflatten(mean, -1, (heads, 1, -1)))
    d_fk = _turned(_joined(_heads(tokens.v, heads) @ d_state.mT), back)
    d_fk += d_mean.unsqueeze(1)
    d_v = _joined(rk @ d_state).div_(count)
    d_maps, d_lepe, d_bias = torch.ops.aten.convolution_backward(
        _maps(d_out, tokens.grid),
        _maps(tokens.v, tokens.grid),
        tokens.lepe,
        None if tokens.lepe_bias is None else [tokens.v.shape[2]],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        tokens.v.shape[2],
        [True, True, tokens.lepe_bias is not None],
    )
    # f' is 1 above 0 and f itself below, where f is smaller than 1.
    return Gradients(
        d_fq.mul_(fq.clamp_max_(1)),
        d_fk.mul_(fk.clamp_max_(1)).div_(count),
        d_v.add_(_rows(d_maps)),
        d_gate,
        d_lepe,
        d_bias,
    )
