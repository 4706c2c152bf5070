"""Gated attention pooling in chunks of rows: nothing of the size N x A ever exists.

Per chunk one product with the stacked weights [V; U], gates in place, and an online softmax that
carries maximum, sum and weighted rows from chunk to chunk. The backward pass repeats the chunk's
gates instead of storing them; from dZ = d_pooled and dS = d_logits it forms, row by row,

    P = exp(S - top) / mass,  dP = x dZ^T,  ds = P * (dP - dZ . Z) + dS,  dq = ds w,
    dh = dq * s * (1 - t^2),  dg = dq * t * s * (1 - s),  dx = dh V + dg U + P dZ

with t = tanh(x V^T + b_V), s = sigmoid(x U^T + b_U). The rows may themselves be relu(W1 f + b1) of
wider features; then those are formed chunk by chunk as well.

Chunks never cross the border of a bag, so a bag gives the same bits alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels._ragged import bag_bounds
from zoo.kernels.products import by_convolution, gram, product

_CHUNK_CPU = 2048  # rows whose activations stay in the cache between the steps
_CHUNK_DEVICE = 32768  # elsewhere launches cost more than memory traffic


class Gate(NamedTuple):
    """Parameters of the gated scorer in the dtype they are computed with.

    Attributes:
        stacked: (2A, D), the value weights above the gate weights.
        bias: (2A,).
        score: (K, A).
        score_bias: (K,).
    """

    stacked: Tensor
    bias: Tensor
    score: Tensor
    score_bias: Tensor


class Reduction(NamedTuple):
    """A Linear layer with ReLU that makes the rows: weight (D, F), bias (D,) or None."""

    weight: Tensor
    bias: Tensor | None


class Gradients(NamedTuple):
    """What a backward pass returns; None where nothing was asked for.

    Attributes:
        rows: (N, D), or (N, F) if a reduction makes the rows.
        logits: (N, K), only without a gate.
        stacked: (2A, D) gradient of the stacked weights.
        bias: (2A,).
        score: (K, A).
        score_bias: (K,).
        reduction: (D, F).
        reduction_bias: (D,).
    """

    rows: Tensor | None = None
    logits: Tensor | None = None
    stacked: Tensor | None = None
    bias: Tensor | None = None
    score: Tensor | None = None
    score_bias: Tensor | None = None
    reduction: Tensor | None = None
    reduction_bias: Tensor | None = None


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products: 16-bit rows are widened on the CPU, where that is faster."""
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return x.dtype


def statistics(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, sums and maxima that goes with rows of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Rows:
    """Rows of packed bags, handed out chunk by chunk.

    Args:
        source: (N, D) rows, or (N, F) features if `reduction` makes the rows of them.
        reduction: How rows come from features; None: they are given.
        stored: (M, D) first rows, made before, that are read instead of made again.
    """

    def __init__(
        self, source: Tensor, reduction: Reduction | None = None, stored: Tensor | None = None
    ) -> None:
        self.source, self.reduction, self.stored = source, reduction, stored
        self.dtype = compute_dtype(source)
        self.size = _CHUNK_CPU if source.device.type == "cpu" else _CHUNK_DEVICE
        self.width = source.shape[1] if reduction is None else reduction.weight.shape[0]
        self._buffers: dict[str, Tensor] = {}

    def chunks(self, cu_seqlens: Tensor | None) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Each bag and the first and last-plus-one rows of its chunks."""
        for bag, (start, end) in enumerate(bag_bounds(cu_seqlens, self.source.shape[0])):
            cuts = range(start, end, self.size)
            yield bag, [(cut, min(end, cut + self.size)) for cut in cuts]

    def buffer(self, name: str, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """(rows, width) scratch memory; the same memory whenever the name is the same."""
        found = self._buffers.get(name)
        if found is None:
            height = min(self.size, self.source.shape[0])
            found = self.source.new_empty(height, width, dtype=dtype or self.dtype)
            self._buffers[name] = found
        return found[:rows]

    def features(self, start: int, end: int) -> Tensor:
        """Rows of the source in the dtype of the products."""
        return self._widened("features", self.source[start:end])

    def get(self, start: int, end: int) -> Tensor:
        """Rows (end - start, D); valid until the next call."""
        if self.stored is not None and end <= self.stored.shape[0]:
            return self._widened("stored", self.stored[start:end])
        if self.reduction is None:
            return self.features(start, end)
        made = self.linear("rows", self.features(start, end), *self.reduction)
        return made.relu_()

    def linear(self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Linear layer x weight^T + bias of a chunk; valid until the next of the same name."""
        if by_convolution(x, x.shape[0], x.numel() * weight.shape[0]):
            return product(x, weight, bias)
        out = self.buffer(name, x.shape[0], weight.shape[0])
        if bias is None:
            return torch.mm(x, weight.mT, out=out)
        return torch.addmm(bias, x, weight.mT, out=out)

    def _widened(self, name: str, rows: Tensor) -> Tensor:
        if rows.dtype == self.dtype:
            return rows
        return self.buffer(name, rows.shape[0], rows.shape[1]).copy_(rows)


def _gates(rows: Rows, x: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """The tanh and sigmoid halves (n, A) of a chunk, as views of one buffer."""
    both = rows.linear("gates", x, gate.stacked, gate.bias)
    precise = statistics(x.dtype)
    if both.dtype != precise:
        both = rows.buffer("wide gates", x.shape[0], both.shape[1], precise).copy_(both)
    value, sigmoid = both.chunk(2, dim=1)
    return value.tanh_(), sigmoid.sigmoid_()


def forward(
    rows: Rows,
    cu_seqlens: Tensor | None,
    gate: Gate | None,
    logits: Tensor,
    pooled: Tensor | None,
    stats: Tensor | None,
    keep: Tensor | None = None,
) -> None:
    """Scores and pools; writes into the tensors given.

    Args:
        rows: The instances.
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
        gate: The scorer; None: `logits` are given.
        logits: (N, K), written if there is a scorer.
        pooled: (B, K, D) output; None: only the logits are wanted.
        stats: (2, B, K) output beside `pooled`: largest logit and sum of exp(logit - largest). An
            empty bag has -inf and 0.
        keep: (M, D), where the first rows go for the backward pass; None: nowhere.
    """
    for bag, cuts in rows.chunks(cu_seqlens):
        top = logits.new_full((logits.shape[1],), float("-inf"))
        mass = torch.zeros_like(top)
        total = logits.new_zeros(logits.shape[1], rows.width)
        for start, end in cuts:
            x = rows.get(start, end)
            scores = logits[start:end]
            if gate is not None:
                value, sigmoid = _gates(rows, x, gate)
                scores.copy_(torch.addmm(gate.score_bias, value.mul_(sigmoid), gate.score.mT))
            if keep is not None and end <= keep.shape[0]:
                keep[start:end] = x
            if pooled is None:
                continue
            higher = torch.maximum(top, scores.amax(dim=0))
            shrink = (top - higher).exp_()
            weights = (scores - higher).exp_()
            mass.mul_(shrink).add_(weights.sum(dim=0))
            total.mul_(shrink.unsqueeze(1)).addmm_(weights.mT, x.to(weights.dtype))
            top = higher
        if pooled is not None and stats is not None:
            stats[0, bag], stats[1, bag] = top, mass
            if cuts:
                torch.div(total, mass.unsqueeze(1), out=pooled[bag])
            else:
                pooled[bag].zero_()


class Incoming(NamedTuple):
    """Gradients of the outputs and what the forward pass left.

    Attributes:
        d_pooled: (B, K, D) or None.
        d_logits: (N, K) or None.
        logits: (N, K).
        pooled: (B, K, D) or None if nothing was pooled.
        stats: (2, B, K) largest logits and masses, or None. Their sum lse would not do: it
            rounds the mass away where logits are large, as those of masked rows are.
    """

    d_pooled: Tensor | None
    d_logits: Tensor | None
    logits: Tensor
    pooled: Tensor | None
    stats: Tensor | None


def backward(
    rows: Rows,
    cu_seqlens: Tensor | None,
    gate: Gate | None,
    incoming: Incoming,
    *,
    need_rows: bool,
    need_gate: bool,
    need_reduction: bool = False,
) -> Gradients:
    """Gradients of everything that is needed.

    Args:
        rows: The instances.
        cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
        gate: The scorer; None: the logits were given.
        incoming: Gradients of the outputs, and the outputs.
        need_rows: Whether the rows (or the features they are made of) want a gradient.
        need_gate: Whether any parameter of the scorer wants one.
        need_reduction: Whether the reduction does.
    """
    grads = _allocate(rows, gate, incoming, need_rows, need_gate, need_reduction)
    for bag, cuts in rows.chunks(cu_seqlens):
        d_pooled = delta = top = None
        if incoming.d_pooled is not None and incoming.pooled is not None:
            assert incoming.stats is not None
            top, mass = incoming.stats[:, bag]
            d_pooled = incoming.d_pooled[bag].to(top.dtype).contiguous()
            delta = (d_pooled * incoming.pooled[bag]).sum(dim=1)
        for start, end in cuts:
            x = rows.get(start, end)
            scores, weights = incoming.logits[start:end], None
            d_scores = None if incoming.d_logits is None else incoming.d_logits[start:end]
            if d_pooled is not None and top is not None and delta is not None:
                weights = (scores - top).exp_().div_(mass)
                through = (x.to(weights.dtype) @ d_pooled.mT).sub_(delta).mul_(weights)
                d_scores = through if d_scores is None else through.add_(d_scores)
            if d_scores is None:
                continue
            d_scores = d_scores.to(scores.dtype)
            if grads.logits is not None:
                grads.logits[start:end] = d_scores
            pooling = None if weights is None or d_pooled is None else (weights, d_pooled)
            wanted = need_rows or need_reduction
            d_x = _chunk(rows, x, gate, grads, d_scores, pooling, wanted)
            if d_x is not None:
                _finish(rows, x, d_x, grads, start, end)
    return grads


def _allocate(
    rows: Rows,
    gate: Gate | None,
    incoming: Incoming,
    need_rows: bool,
    need_gate: bool,
    need_reduction: bool,
) -> Gradients:
    precise = incoming.logits.dtype
    reduction = rows.reduction if need_reduction else None
    found = Gradients(
        rows=torch.zeros_like(rows.source, memory_format=torch.contiguous_format)
        if need_rows
        else None,
        logits=torch.zeros_like(incoming.logits) if gate is None else None,
        reduction=None if reduction is None else torch.zeros_like(reduction.weight, dtype=precise),
        reduction_bias=None
        if reduction is None or reduction.bias is None
        else torch.zeros_like(reduction.bias, dtype=precise),
    )
    if gate is None or not need_gate:
        return found
    return found._replace(
        stacked=torch.zeros_like(gate.stacked, dtype=precise),
        bias=torch.zeros_like(gate.bias, dtype=precise),
        score=torch.zeros_like(gate.score, dtype=precise),
        score_bias=torch.zeros_like(gate.score_bias, dtype=precise),
    )


def _chunk(
    rows: Rows,
    x: Tensor,
    gate: Gate | None,
    grads: Gradients,
    d_scores: Tensor,
    pooling: tuple[Tensor, Tensor] | None,
    wanted: bool,
) -> Tensor | None:
    """Adds the weight gradients of one chunk.

    Args:
        rows: Where the chunk comes from.
        x: The chunk, (n, D).
        gate: The scorer; None: the logits were given.
        grads: What is added to.
        d_scores: (n, K).
        pooling: Softmax weights (n, K) and the gradient (K, D) of what they pooled, if they did.
        wanted: Whether the gradient of the chunk is.

    Returns:
        The gradient of the chunk, (n, D), if it is wanted and there is one.
    """
    precise = d_scores.dtype
    if gate is None:
        return (pooling[0] @ pooling[1]).to(x.dtype) if wanted and pooling is not None else None
    value, sigmoid = _gates(rows, x, gate)
    d_both = rows.buffer("d_gates", x.shape[0], gate.stacked.shape[0], precise)
    d_value, d_sigmoid = d_both.chunk(2, dim=1)
    torch.mul(value, sigmoid, out=d_sigmoid)  # t s, before it turns into its gradient
    if grads.score is not None and grads.score_bias is not None:
        grads.score.addmm_(d_scores.mT, d_sigmoid)
        grads.score_bias.add_(d_scores.sum(dim=0))
    d_gated = d_scores @ gate.score
    # dh = dq (s - t s t) and dg = dq t s (1 - s), in place in the buffer.
    torch.addcmul(sigmoid, d_sigmoid, value, value=-1.0, out=d_value)
    d_value.mul_(d_gated)
    d_sigmoid.mul_(d_gated).mul_(sigmoid.neg_().add_(1.0))
    narrow = d_both.to(x.dtype)
    if grads.stacked is not None and grads.bias is not None:
        _accumulate(grads.stacked, narrow, x)
        grads.bias.add_(d_both.sum(dim=0))
    if not wanted:
        return None
    d_x = rows.linear("d_rows", narrow, gate.stacked.mT)
    if pooling is not None and d_x.dtype == precise:
        d_x.addmm_(*pooling)
    elif pooling is not None:
        d_x.add_((pooling[0] @ pooling[1]).to(d_x.dtype))
    return d_x


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left^T right to `total`."""
    if total.dtype == left.dtype and not by_convolution(left, left.shape[0] // 2):
        total.addmm_(left.mT, right)
    else:
        total.add_(gram(left, right))


def _finish(rows: Rows, x: Tensor, d_x: Tensor, grads: Gradients, start: int, end: int) -> None:
    """Sends the gradient of a chunk's rows on, through the reduction if there is one."""
    if rows.reduction is None:
        if grads.rows is not None:
            grads.rows[start:end] = d_x
        return
    torch.ops.aten.threshold_backward(d_x, x, 0, grad_input=d_x)
    features = rows.features(start, end)
    if grads.reduction is not None:
        _accumulate(grads.reduction, d_x, features)
    if grads.reduction_bias is not None:
        grads.reduction_bias.add_(d_x.sum(dim=0))
    if grads.rows is not None:
        grads.rows[start:end] = product(d_x, rows.reduction.weight.mT)
