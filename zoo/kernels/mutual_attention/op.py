"""The operators behind mutual attention: registration, gradients and the choice of path.

Autocast lowers the softmax form, as it does PyTorch's own attention, but not the maps of the
moments: where a similarity nearly cancels, rounding decides its sign, and the slope of the signed
root is up to 500 there. Maps that convolutions made within autocast have its dtype already, and the
kernels multiply them in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zoo.kernels._dispatch import choice, path_for
from zoo.kernels._moment import AXES, Axis, l2_normalise
from zoo.kernels._ragged import full_precision, lowered, statistics_dtype
from zoo.kernels.mutual_attention import cpu_path, reference, torch_path

Three = tuple[Tensor, Tensor, Tensor]


def _on_triton(x: Tensor) -> bool:
    """Whether the kernels run on maps like `x`; they are asked only where they may run."""
    if not x.is_cuda and choice() != "triton":
        return False
    try:
        from zoo.kernels.mutual_attention import triton_path
    except ImportError:
        return path_for(x, False, "Triton cannot be imported") == "triton"
    why_not = triton_path.supports(x)
    return path_for(x, not why_not, why_not) == "triton"


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("zoo::moment_products", mutates_args=())
def _products(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float) -> Three:
    """The three products of (B, C, N) maps, before their norm, float32 or float64."""
    precise = statistics_dtype(fused)
    out = _like(rgb, precise), _like(depth, precise), _like(fused, precise)
    if _on_triton(fused):
        from zoo.kernels.mutual_attention import triton_path

        triton_path.forward((rgb, depth, fused), eps, out)
        return out
    form = cpu_path if fused.device.type == "cpu" else torch_path
    with full_precision(fused):
        form.forward(rgb.to(precise), depth.to(precise), fused.to(precise), eps, out)
    return out


@_products.register_fake
def _(rgb: Tensor, depth: Tensor, fused: Tensor, eps: float) -> Three:
    precise = statistics_dtype(fused)
    return _like(rgb, precise), _like(depth, precise), _like(fused, precise)


@torch.library.custom_op("zoo::moment_products_backward", mutates_args=())
def _products_backward(
    g_rgb: Tensor,
    g_depth: Tensor,
    g_fused: Tensor,
    rgb: Tensor,
    depth: Tensor,
    fused: Tensor,
    eps: float,
) -> Three:
    """Gradients of rgb, depth and fused in their dtype."""
    precise = statistics_dtype(fused)
    out = _like(rgb, precise), _like(depth, precise), _like(fused, precise)
    if _on_triton(fused):
        from zoo.kernels.mutual_attention import triton_path

        triton_path.backward((g_rgb, g_depth, g_fused), (rgb, depth, fused), eps, out)
    else:
        # Gradients may come expanded (from a sum), which matrix products take but slowly.
        grads = tuple(g.to(precise).contiguous() for g in (g_rgb, g_depth, g_fused))
        form = cpu_path if fused.device.type == "cpu" else torch_path
        with full_precision(fused):
            maps = (rgb.to(precise), depth.to(precise), fused.to(precise))
            form.backward((grads[0], grads[1], grads[2]), maps, eps, out)
    return out[0].to(rgb.dtype), out[1].to(depth.dtype), out[2].to(fused.dtype)


@_products_backward.register_fake
def _(
    g_rgb: Tensor,
    g_depth: Tensor,
    g_fused: Tensor,
    rgb: Tensor,
    depth: Tensor,
    fused: Tensor,
    eps: float,
) -> Three:
    return _like(rgb, rgb.dtype), _like(depth, depth.dtype), _like(fused, fused.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.eps = inputs[3]


def _gradient(ctx: Any, *grads: Tensor) -> Any:
    found = _products_backward(*grads, *ctx.saved_tensors, ctx.eps)
    return *found, None


def _no_second(ctx: Any, *_: Any) -> Any:
    msg = (
        "mutual attention has no second derivative; set ZOO_KERNELS=reference to "
        "differentiate twice"
    )
    raise RuntimeError(msg)


_products.register_autograd(_gradient, setup_context=_setup)
_products_backward.register_autograd(_no_second)


# -- what modules call ---------------------------------------------------------------------------


def signed_sqrt_attention(
    rgb: Tensor,
    depth: Tensor,
    fused: Tensor,
    eps: float = 1e-6,
    l2_axis: Axis = "map",
    l2_scale: bool = True,
) -> Three:
    """Position mutual attention of GL-DMNet; see the definition for the formula.

    Args:
        rgb: (B, C, N) features of the first modality.
        depth: (B, C, N) of the second.
        fused: (B, C, N) of both.
        eps: Of the signed square root, at least 0.
        l2_axis: `map`: unit norm of each channel over positions; `position`: over channels.
        l2_scale: Whether to multiply by sqrt(N) then.

    Returns:
        Attended rgb, depth and fused, each (B, C, N) in the dtype of the inputs.

    Raises:
        ValueError: Shapes, dtypes or settings do not fit.
    """
    reference.check_maps(rgb, depth, fused)
    if l2_axis not in AXES or eps < 0:
        msg = f"mutual attention: l2_axis is one of {AXES} and eps >= 0, got {l2_axis=}, {eps=}"
        raise ValueError(msg)
    if choice() == "reference":
        found = reference.signed_sqrt_attention(rgb, depth, fused, eps, l2_axis, l2_scale)
        return found[0], found[1], found[2]
    raw = _products(rgb, depth, fused, eps)
    with full_precision(fused):
        made = [l2_normalise(x, l2_axis, l2_scale).to(fused.dtype) for x in raw]
    return made[0], made[1], made[2]


def two_stream_attention(
    query: Tensor,
    key: Tensor,
    first: Tensor,
    second: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """softmax(scale query key^T) applied to one or two value streams, scores computed once.

    Args:
        query: (..., N, E).
        key: (..., M, E).
        first: (..., M, V1).
        second: (..., M, V2) or None.
        scale: None: 1 / sqrt(E).

    Returns:
        (..., N, V1) and, if there is a second stream, (..., N, V2), in the dtype of the inputs
        (of autocast within it).

    Raises:
        ValueError: Shapes do not fit.
    """
    values = [first] if second is None else [first, second]
    fits = query.shape[-1] == key.shape[-1] and query.shape[:-2] == key.shape[:-2]
    if not fits or any(x.shape[:-1] != key.shape[:-1] for x in values):
        got = ", ".join(str(tuple(x.shape)) for x in (query, key, *values))
        msg = (
            "mutual attention: query (..., N, E), key (..., M, E) and values (..., M, V) "
            f"expected, got {got}"
        )
        raise ValueError(msg)
    if choice() == "reference":
        query, key, first = lowered(query), lowered(key), lowered(first)
        second = None if second is None else lowered(second)
        return reference.two_stream_attention(query, key, first, second, scale)
    both = first if second is None else torch.cat(values, dim=-1)
    out = functional.scaled_dot_product_attention(query, key, both, scale=scale)
    return (out,) if second is None else torch.split(out, [v.shape[-1] for v in values], dim=-1)
