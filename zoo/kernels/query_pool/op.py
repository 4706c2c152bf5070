"""The operator behind `QueryPool` on the CPU: scores, softmax and pooling in one walk.

On other devices the same algebra runs as plain PyTorch operators, which batch better there.

Autocast lowers the projections around it and its result, but not the tokens: they meet a few dozen
vectors, so the time is that of reading them, and lowering would read and write them once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.kernels._dispatch import choice
from zoo.kernels._ragged import autocast_dtype, full_precision
from zoo.kernels._registration import differentiable, operator
from zoo.kernels.gated_attention_pool.torch_path import Rows, statistics
from zoo.kernels.query_pool import torch_path
from zoo.kernels.query_pool.torch_path import Saved, Scorer

SMALL_BAG = 32768
"""Below so many numbers in each bag of a batch the definition is chosen, unless `ZOO_KERNELS`
forces a path: one batched product then costs less than a walk from bag to bag."""

_INPUTS = "Tensor x, Tensor vectors, Tensor offsets, Tensor? cu_seqlens, float? eps"


def _outputs(
    x: Tensor, vectors: Tensor, cu_seqlens: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = statistics(x.dtype)
    bags = vectors.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    queries = vectors.shape[1]
    return (
        x.new_empty((bags, queries, x.shape[1]), dtype=dtype),
        x.new_empty((x.shape[0], queries), dtype=dtype),
        x.new_empty((2, bags, queries), dtype=dtype),
        x.new_empty((2, 0 if eps is None else x.shape[0]), dtype=dtype),
    )


def _scorer(x: Tensor, vectors: Tensor, offsets: Tensor, eps: float | None) -> Scorer:
    dtype = statistics(x.dtype)
    return Scorer(vectors.to(dtype).contiguous(), offsets.to(dtype).contiguous(), eps)


def _run(
    x: Tensor, vectors: Tensor, offsets: Tensor, cu_seqlens: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled (B, R, C), logits (N, R), statistics (2, B, R), moments (2, N) of packed tokens."""
    out = _outputs(x, vectors, cu_seqlens, eps)
    with full_precision(x):
        scorer = _scorer(x, vectors, offsets, eps)
        torch_path.forward(Rows(x), cu_seqlens, out[0].shape[0], scorer, *out)
    return out


def _fake(
    x: Tensor, vectors: Tensor, offsets: Tensor, cu_seqlens: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, vectors, cu_seqlens, eps)


def _run_backward(
    d_pooled: Tensor | None,
    d_logits: Tensor | None,
    x: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None,
    eps: float | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens (empty if not needed), vectors and offsets."""
    saved, need_rows = Saved(*rest[:4]), rest[4]
    # They come expanded from a sum, or transposed.
    d_pooled = None if d_pooled is None else d_pooled.contiguous()
    d_logits = None if d_logits is None else d_logits.contiguous()
    with full_precision(x):
        scorer = _scorer(x, vectors, offsets, eps)
        bags = saved.pooled.shape[0]
        d_x, d_vectors, d_offsets = torch_path.backward(
            Rows(x), cu_seqlens, bags, scorer, saved, d_pooled, d_logits, need_rows
        )
    d_x = x.new_empty(0) if d_x is None else d_x
    return d_x, d_vectors.to(vectors.dtype), d_offsets.to(offsets.dtype)


def _fake_backward(
    d_pooled: Tensor | None,
    d_logits: Tensor | None,
    x: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None,
    eps: float | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    keep = torch.contiguous_format
    d_x = torch.empty_like(x, memory_format=keep) if rest[4] else x.new_empty(0)
    return (
        d_x,
        torch.empty_like(vectors, memory_format=keep),
        torch.empty_like(offsets, memory_format=keep),
    )


_query_pool = operator(
    "query_pool", f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _run, _fake
)
_query_pool_backward = operator(
    "query_pool_backward",
    f"(Tensor? d_pooled, Tensor? d_logits, {_INPUTS}, Tensor pooled, Tensor logits, "
    "Tensor stats, Tensor moments, bool need_rows) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, eps = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.eps = eps
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx: Any, d_pooled: Tensor | None, d_logits: Tensor | None, *_: Any) -> Any:
    tensors, output = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    if d_pooled is None and d_logits is None:
        return (None,) * 5
    need = ctx.needs_input_grad
    d_x, d_vectors, d_offsets = _query_pool_backward(
        d_pooled, d_logits, *tensors, ctx.eps, *output, need[0]
    )
    return (
        d_x if need[0] else None,
        d_vectors if need[1] else None,
        d_offsets if need[2] else None,
        None,
        None,
    )


def _no_second(ctx: Any, *_: Any) -> Any:
    msg = "QueryPool has no second derivative; set ZOO_KERNELS=reference to differentiate twice"
    raise RuntimeError(msg)


differentiable("query_pool", _gradient, _setup)
differentiable("query_pool_backward", _no_second)


def has_fast_form(x: Tensor) -> bool:
    """Whether the operator is what runs for such tokens.

    A traced graph serves any number of tokens, so there the number does not choose.
    """
    chosen = choice()
    if x.device.type != "cpu" or chosen == "reference":
        return False
    if chosen != "auto" or x.dim() != 3 or torch.compiler.is_compiling():
        return True
    return x.shape[1] * x.shape[2] >= SMALL_BAG


def attend(
    x: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None = None,
    norm: torch.nn.LayerNorm | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and pools tokens by absorbed queries.

    Args:
        x: (N, C) packed tokens or (B, N, C).
        vectors: (R, C) absorbed queries shared by all bags, or (B, R, C).
        offsets: (R,) or (B, R).
        cu_seqlens: (B + 1,) bounds of packed bags; None: one bag, or those of the batch axis.
        norm: LayerNorm through which the scores see the tokens; the sums see them raw.

    Returns:
        pooled (B, R, C) in the dtype of `x` (of autocast within it), logits (N, R) or (B, N, R),
        lse (B, R).
    """
    dense = x.dim() == 3
    if vectors.dim() == 2:
        vectors, offsets = vectors.unsqueeze(0), offsets.unsqueeze(0)
    if dense and vectors.shape[0] != x.shape[0]:
        vectors, offsets = (z.expand(x.shape[0], *z.shape[1:]) for z in (vectors, offsets))
    eps = None
    if norm is not None:
        # LayerNorm(x) . a = rho x . (w a - mean(w a)) + b . a
        offsets = offsets + vectors @ norm.bias.to(vectors.dtype)
        vectors = vectors * norm.weight.to(vectors.dtype)
        vectors = vectors - vectors.mean(dim=-1, keepdim=True)
        eps = norm.eps
    rows = x.flatten(0, 1) if dense else x
    pooled, logits, stats, _ = _query_pool(rows, vectors, offsets, cu_seqlens, eps)
    if dense:
        logits = torch.unflatten(logits, 0, x.shape[:2])
    return pooled.to(autocast_dtype(x)), logits, stats[0] + stats[1].log()
