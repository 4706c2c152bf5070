"""The two operators behind gated attention pooling: registration, gradients, choice of path.

One opaque forward operator and one backward operator serve four uses: scoring and pooling, scoring
alone, pooling given logits, and all of it on rows made from wider features by relu(W f + b).
Nothing of the size N x A is kept for the backward pass: it reads the rows, the logits, the pooled
vectors and their softmax statistics. They compute in the dtype of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.kernels._dispatch import choice, path_for
from zoo.kernels._ragged import full_precision
from zoo.kernels._registration import differentiable, operator
from zoo.kernels.gated_attention_pool import torch_path
from zoo.kernels.gated_attention_pool.torch_path import Gate, Incoming, Reduction, Rows, statistics

_PARAMETERS = (
    "Tensor x, Tensor? value, Tensor? value_bias, Tensor? gate, Tensor? gate_bias, "
    "Tensor? score, Tensor? score_bias, Tensor? logits, Tensor? reduction, Tensor? reduction_bias, "
    "Tensor? cu_seqlens"
)
_COUNT = 10  # the first ten of them may have gradients


def _gate(weights: Sequence[Tensor | None], dtype: torch.dtype, small: torch.dtype) -> Gate | None:
    value, value_bias, gate, gate_bias, score, score_bias = weights
    if (
        value is None
        or gate is None
        or value_bias is None
        or gate_bias is None
        or score is None
        or score_bias is None
    ):
        return None
    return Gate(
        torch.cat([value, gate]).to(dtype),
        torch.cat([value_bias, gate_bias]).to(small),
        score.to(small).contiguous(),
        score_bias.to(small),
    )


def _path(x: Tensor, weights: Sequence[Tensor | None], branches: int) -> str:
    """`triton` or `torch`; what the Triton path supports is asked only where it may run."""
    if not x.is_cuda and choice() != "triton":
        return "torch"
    why_not = "Triton cannot be imported"
    try:
        from zoo.kernels.gated_attention_pool import triton_path
    except ImportError:
        return path_for(x, False, why_not)
    attention = 0 if weights[4] is None else weights[4].shape[1]
    why_not = triton_path.supports(x, attention, branches)
    return path_for(x, not why_not, why_not)


def _branches(score: Tensor | None, logits: Tensor | None) -> int:
    if score is not None:
        return score.shape[0]
    assert logits is not None  # one of the two is always given by the callers below
    return logits.shape[1]


def _outputs(
    x: Tensor,
    branches: int,
    reduction: Tensor | None,
    cu_seqlens: Tensor | None,
    given: bool,
    pool: bool,
    keep: str,
    thousandths: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised pooled, logits, stats and kept rows; those that are not wanted are empty."""
    precise = statistics(x.dtype)
    width = x.shape[1] if reduction is None else reduction.shape[0]
    bags = (1 if cu_seqlens is None else cu_seqlens.shape[0] - 1) if pool else 0
    kept = {"rows": x.dtype, "bfloat16": torch.bfloat16}.get(keep)
    count = x.shape[0] if thousandths == 1000 else x.shape[0] * thousandths // 1000
    return (
        x.new_empty((bags, branches, width), dtype=precise),
        x.new_empty((0 if given else x.shape[0], branches), dtype=precise),
        x.new_empty((2, bags, branches), dtype=precise),
        x.new_empty((0 if kept is None else count, width), dtype=kept or x.dtype),
    )


def _run(
    x: Tensor,
    value: Tensor | None,
    value_bias: Tensor | None,
    gate: Tensor | None,
    gate_bias: Tensor | None,
    score: Tensor | None,
    score_bias: Tensor | None,
    logits: Tensor | None,
    reduction: Tensor | None,
    reduction_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    pool: bool,
    keep: str,
    thousandths: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled (B, K, D), logits (N, K), stats (2, B, K), kept rows (N, D); unwanted ones empty."""
    weights = (value, value_bias, gate, gate_bias, score, score_bias)
    branches = _branches(score, logits)
    out = _outputs(x, branches, reduction, cu_seqlens, logits is not None, pool, keep, thousandths)
    pooled, made, stats, kept = out
    with full_precision(x):
        if _path(x, weights, branches) == "triton":
            from zoo.kernels.gated_attention_pool import triton_path

            rows = x if reduction is None else reduced(x, reduction, reduction_bias)
            if kept.shape[0]:
                kept = rows[: kept.shape[0]].to(kept.dtype, copy=True)
            scores = made if logits is None else logits.to(made.dtype).contiguous()
            scorer = _gate(weights, x.dtype, made.dtype)
            found = triton_path.forward(rows, cu_seqlens, scorer, scores, pool)
            pooled, stats = (pooled, stats) if found is None else found
        else:
            source = Rows(x, _reduction(x, reduction, reduction_bias))
            scorer = _gate(weights, source.dtype, source.dtype)
            scorer = (
                None
                if scorer is None
                else scorer._replace(
                    score=scorer.score.to(made.dtype), score_bias=scorer.score_bias.to(made.dtype)
                )
            )
            scores = made if logits is None else logits.to(made.dtype)
            torch_path.forward(
                source,
                cu_seqlens,
                scorer,
                scores,
                pooled if pool else None,
                stats if pool else None,
                kept if kept.shape[0] else None,
            )
    return pooled, made, stats, kept


def _reduction(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Reduction | None:
    if weight is None:
        return None
    dtype = torch_path.compute_dtype(x)
    return Reduction(weight.to(dtype), None if bias is None else bias.to(dtype))


def reduced(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """relu(W x + b), all rows at once: where one large product is the fastest."""
    return torch.nn.functional.linear(
        x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    ).relu_()


def _fake(
    x: Tensor,
    value: Tensor | None,
    value_bias: Tensor | None,
    gate: Tensor | None,
    gate_bias: Tensor | None,
    score: Tensor | None,
    score_bias: Tensor | None,
    logits: Tensor | None,
    reduction: Tensor | None,
    reduction_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    pool: bool,
    keep: str,
    thousandths: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    branches = _branches(score, logits)
    return _outputs(x, branches, reduction, cu_seqlens, logits is not None, pool, keep, thousandths)


_BACKWARD = (
    f"(Tensor? d_pooled, Tensor? d_logits, {_PARAMETERS}, Tensor pooled, Tensor made, "
    "Tensor stats, Tensor kept, bool[] needs) -> (" + ", ".join(["Tensor"] * _COUNT) + ")"
)


def _run_backward(
    d_pooled: Tensor | None, d_logits: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of the ten tensor inputs of the forward operator; empty where not needed."""
    inputs, cu_seqlens, (pooled, made, stats, kept), needs = _split(rest)
    x, weights, logits = inputs[0], inputs[1:7], inputs[7]
    scores = made if logits is None else logits.to(made.dtype)
    incoming = Incoming(d_pooled, d_logits, scores, pooled, stats)
    with full_precision(x):
        run = (
            _backward_triton if _path(x, weights, scores.shape[1]) == "triton" else _backward_torch
        )
        found = run(inputs, cu_seqlens, incoming, kept, needs)
    # The wide gradients are made stacked; each half is handed out as a tensor of its own.
    stacked = (None, None) if found.stacked is None else found.stacked.chunk(2)
    bias = (None, None) if found.bias is None else found.bias.chunk(2)
    grads = (
        found.rows,
        stacked[0],
        bias[0],
        stacked[1],
        bias[1],
        found.score,
        found.score_bias,
        found.logits,
        found.reduction,
        found.reduction_bias,
    )
    return tuple(
        x.new_empty(0) if grad is None or of is None or not need else _own(grad, of)
        for grad, of, need in zip(grads, inputs, needs, strict=True)
    )


def _own(grad: Tensor, of: Tensor) -> Tensor:
    """The gradient in the dtype of its input, contiguous, sharing no memory with another one."""
    if grad.untyped_storage().nbytes() > grad.nbytes:
        return torch.empty_like(of, memory_format=torch.contiguous_format).copy_(grad)
    return grad.to(of.dtype).contiguous()


def _split(rest: Sequence[Any]) -> tuple[Any, Tensor | None, Any, Sequence[bool]]:
    """Inputs, bounds, outputs and needs out of the flat arguments of the backward operator."""
    return rest[:_COUNT], rest[_COUNT], rest[_COUNT + 1 : _COUNT + 5], rest[_COUNT + 5]


def _backward_torch(
    inputs: Sequence[Any],
    cu_seqlens: Tensor | None,
    incoming: Incoming,
    kept: Tensor,
    needs: Sequence[bool],
) -> torch_path.Gradients:
    x, precise = inputs[0], incoming.logits.dtype
    source = Rows(x, _reduction(x, inputs[8], inputs[9]), kept if kept.shape[0] else None)
    gate = _gate(inputs[1:7], source.dtype, source.dtype)
    if gate is not None:
        gate = gate._replace(score=gate.score.to(precise), score_bias=gate.score_bias.to(precise))
    return torch_path.backward(
        source,
        cu_seqlens,
        gate,
        incoming,
        need_rows=needs[0],
        need_gate=any(needs[1:7]),
        need_reduction=any(needs[8:10]),
    )


def _backward_triton(
    inputs: Sequence[Any],
    cu_seqlens: Tensor | None,
    incoming: Incoming,
    kept: Tensor,
    needs: Sequence[bool],
) -> torch_path.Gradients:
    from zoo.kernels.gated_attention_pool import triton_path

    x, reduction, reduction_bias = inputs[0], inputs[8], inputs[9]
    rows = x
    if reduction is not None:
        known = kept.shape[0]
        rows = kept.to(x.dtype)
        if known < x.shape[0]:
            rows = torch.cat([rows, reduced(x[known:], reduction, reduction_bias)])
    found = triton_path.backward(
        rows,
        cu_seqlens,
        _gate(inputs[1:7], x.dtype, incoming.logits.dtype),
        incoming,
        need_rows=needs[0] or any(needs[8:10]),
        need_gate=any(needs[1:7]),
    )
    if reduction is None or found.rows is None:
        return found
    d_rows = torch.ops.aten.threshold_backward(found.rows, rows, 0)
    return found._replace(
        rows=d_rows @ reduction.to(x.dtype) if needs[0] else None,
        reduction=d_rows.mT @ x if needs[8] else None,
        reduction_bias=d_rows.float().sum(dim=0) if needs[9] else None,
    )


def _fake_backward(
    d_pooled: Tensor | None, d_logits: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    inputs, _, _, needs = _split(rest)
    return tuple(
        inputs[0].new_empty(0)
        if of is None or not need
        else torch.empty_like(of, memory_format=torch.contiguous_format)
        for of, need in zip(inputs, needs, strict=True)
    )


scored_pool = operator(
    "scored_pool",
    f"({_PARAMETERS}, bool pool, str keep, int thousandths) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
"""Pooled, logits, softmax statistics and kept rows; arguments as in `_run`."""
_scored_pool_backward = operator("scored_pool_backward", _BACKWARD, _run_backward, _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pooled, made, stats, kept = output
    ctx.mark_non_differentiable(stats, kept)
    ctx.set_materialize_grads(False)
    ctx.pools = inputs[_COUNT + 1]
    ctx.save_for_backward(*inputs[: _COUNT + 1], pooled, made, stats, kept)


def _gradient(ctx: Any, d_pooled: Tensor | None, d_logits: Tensor | None, *_: Any) -> Any:
    saved = ctx.saved_tensors
    # Outputs that were not wanted are empty; a gradient of them means nothing.
    d_pooled = d_pooled if ctx.pools else None
    d_logits = None if saved[7] is not None else d_logits
    needs = list(ctx.needs_input_grad[:_COUNT])
    if d_pooled is None and d_logits is None:
        return (None,) * (_COUNT + 4)
    grads = _scored_pool_backward(d_pooled, d_logits, *saved, needs)
    found = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return *found, None, None, None, None


def _no_second(ctx: Any, *_: Any) -> Any:
    msg = (
        "gated attention pooling has no second derivative; set ZOO_KERNELS=reference to "
        "differentiate twice"
    )
    raise RuntimeError(msg)


differentiable("scored_pool", _gradient, _setup)
differentiable("scored_pool_backward", _no_second)
