"""From cells and hyper-vectors to masks: two transposed convolutions and a dot product.

Both transposed convolutions have 2 x 2 kernels and stride 2: every output pixel comes from one
input cell, so they are products over the channels whose results are cells in another order. The
order is put right once, on the masks, which are 64 times smaller than what they are made of. All
in front of that runs chunk by chunk and again in the backward pass; what is kept is the result of
the first convolution.

Letters: B images, N = h w cells of D channels, M masks, E = D / 4, F = D / 8.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.her_seg.layers import LayerNorm2d
from zoo.domains.medical.her_seg.recompute import as_given, recomputes
from zoo.kernels.products import linear

CHUNK = 1024
"""Rows of E channels that are worked on at a time, so that they stay in the cache."""

aten: Any = torch.ops.aten


def _matrix(weight: Tensor) -> Tensor:
    """(I, O, 2, 2) of a transposed convolution as (4 O, I): place in the square, then channel."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2)


def _fourfold(bias: Tensor | None) -> Tensor:
    """(O) for each of the four places."""
    assert bias is not None
    return bias.repeat(4)


def _dots(
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    second: tuple[Tensor, Tensor],
    hyper: Tensor,
) -> Tensor:
    """The definition: (B, R, E) rows to (B, 4 R, M) values."""
    x = functional.gelu(functional.layer_norm(z, scale.shape, scale, shift, eps))
    x = functional.gelu(functional.linear(x, *second))
    dots: Tensor = torch.unflatten(x, -1, (4, -1)).flatten(1, 2) @ hyper.mT
    return dots


class _Dots(torch.autograd.Function):
    """The same by chunks, keeping z alone."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        hyper: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(z, scale, shift, weight, bias, hyper)
        ctx.eps = eps
        out = z.new_empty(z.shape[0], z.shape[1], 4, hyper.shape[1])
        with as_given(z):
            for item in range(z.shape[0]):
                columns = hyper[item].T
                for cut in range(0, z.shape[1], CHUNK):
                    rows = z[item, cut : cut + CHUNK]
                    x = functional.gelu(functional.layer_norm(rows, scale.shape, scale, shift, eps))
                    x = functional.gelu(torch.addmm(bias, x, weight.T))
                    out[item, cut : cut + CHUNK] = torch.unflatten(x, 1, (4, -1)) @ columns
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        z, scale, shift, weight, bias, hyper = ctx.saved_tensors
        d_z = torch.empty_like(z)
        d_weight, d_bias, d_hyper = (torch.zeros_like(x) for x in (weight, bias, hyper))
        d_scale, d_shift = torch.zeros_like(scale), torch.zeros_like(shift)
        shape = list(scale.shape)
        grad = torch.unflatten(grad, 1, (-1, 4))
        with as_given(z):
            for item in range(z.shape[0]):
                for cut in range(0, z.shape[1], CHUNK):
                    rows = z[item, cut : cut + CHUNK]
                    y, mean, inverse = aten.native_layer_norm(rows, shape, scale, shift, ctx.eps)
                    x = functional.gelu(y)
                    u = torch.addmm(bias, x, weight.T)
                    d_out = grad[item, cut : cut + CHUNK].reshape(-1, grad.shape[-1])
                    d_hyper[item].addmm_(d_out.T, functional.gelu(u).view(len(d_out), -1))
                    d_u = aten.gelu_backward((d_out @ hyper[item]).view_as(u), u)
                    d_weight.addmm_(d_u.T, x)
                    d_bias += d_u.sum(dim=0)
                    d_y = aten.gelu_backward(d_u @ weight, y)
                    d_rows, by_scale, by_shift = aten.native_layer_norm_backward(
                        d_y, rows, shape, mean, inverse, scale, shift, [True, True, True]
                    )
                    d_z[item, cut : cut + CHUNK] = d_rows
                    d_scale += by_scale
                    d_shift += by_shift
        return d_z, d_scale, d_shift, d_weight, d_bias, d_hyper, None


def low_resolution_masks(
    cells: Tensor, grid: tuple[int, int], upscaling: nn.Sequential, hyper: Tensor
) -> Tensor:
    """Logits of the masks at four pixels a cell's side.

    Args:
        cells: (B, N, D).
        grid: h and w.
        upscaling: Transposed convolution D -> E, LayerNorm2d, GELU, transposed convolution
            E -> F, GELU.
        hyper: (B, M, F).

    Returns:
        (B, M, 4 h, 4 w).
    """
    first, second = (cast(nn.ConvTranspose2d, upscaling[i]) for i in (0, 3))
    norm = cast(LayerNorm2d, upscaling[1])
    z = linear(cells, _matrix(first.weight), _fourfold(first.bias))
    z = torch.unflatten(z, -1, (4, -1)).flatten(1, 2)  # (B, 4 N, E)
    weight, bias = _matrix(second.weight), _fourfold(second.bias)
    if recomputes(z):
        given = (x.to(z.dtype) for x in (norm.weight, norm.bias, weight, bias, hyper))
        dots: Tensor = _Dots.apply(z, *given, norm.eps)
    else:
        dots = _dots(z, norm.weight, norm.bias, norm.eps, (weight, bias), hyper)
    height, width = grid
    # Row and column of the cell, of the first square in it, of the second square in that.
    parts = dots.view(dots.shape[0], height, width, 2, 2, 2, 2, -1)
    ordered = parts.permute(0, 7, 1, 3, 5, 2, 4, 6)
    return ordered.reshape(dots.shape[0], -1, 4 * height, 4 * width)
