"""Gated attention pooling against the official eager computation.

`eager` writes out what the official ACMIL code computes: logits with every activation kept, the
branches' softmax and pooled vectors, and once more a softmax and a product for the mean attention.
The training case adds the reduction 1024 -> 512 before it and the pairwise cosine similarity of
the attentions as a loss after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.benchmarks.harness import (
    Form,
    Row,
    can_compile,
    copy_bandwidth,
    on_path,
    peak_cpu,
    peak_cuda,
    rows,
)
from zoo.kernels import GatedAttentionPool
from zoo.kernels.gated_attention_pool.op import Keep

BLOCK = "gated_attention_pool"
FEATURES, WIDTH, ATTENTION, BRANCHES = 1024, 512, 128, 5
POLICIES = ("rows", "bfloat16", "nothing", "15%")
_PEAK = {torch.bfloat16: 798e12, torch.float32: 60e12}  # floating point operations a second, H100
Pooled = tuple[Tensor, Tensor, Tensor]


def official(pool: GatedAttentionPool, x: Tensor) -> Pooled:
    """Branch vectors (K, D), mean vector (1, D) and logits (K, N) of one bag, step by step."""
    value, gate = torch.tanh(pool.value(x)), torch.sigmoid(pool.gate(x))
    logits = pool.score(value * gate).mT
    branches = logits.softmax(dim=1) @ x
    mean = logits.softmax(dim=1).mean(dim=0, keepdim=True) @ x
    return branches, mean, logits


def fused(pool: GatedAttentionPool, x: Tensor) -> Pooled:
    """The same by the block."""
    out = pool(x)
    return out.pooled[0], out.pooled.mean(dim=1), out.logits.mT


def diversity(logits: Tensor) -> Tensor:
    """Mean pairwise cosine similarity of the attentions, from logits (K, N)."""
    attention, found = logits.softmax(dim=-1), []
    for i in range(len(attention)):
        for j in range(i + 1, len(attention)):
            found.append(functional.cosine_similarity(attention[i], attention[j], dim=0))
    return torch.stack(found).mean()


def _loss(out: Pooled) -> Tensor:
    branches, mean, logits = out
    return branches.float().square().sum() + mean.float().sum() + diversity(logits.float())


def training(form: str, count: int, width: int = WIDTH) -> Form:
    """A forward and backward pass from features of one slide.

    Args:
        form: `eager`, `compile` (the same through torch.compile), or a policy.
        count: Rows.
        width: Of the reduced rows.
    """
    torch.manual_seed(0)
    features = torch.randn(count, FEATURES)
    reduction = nn.Linear(FEATURES, width, bias=False)
    pool = GatedAttentionPool(width, ATTENTION, BRANCHES)
    weights = [*reduction.parameters(), *pool.parameters()]

    def plain(pool: GatedAttentionPool, features: Tensor) -> Pooled:
        return official(pool, functional.relu(reduction(features), inplace=True))

    whole = torch.compile(plain, dynamic=False) if form == "compile" else plain

    def run() -> Sequence[Tensor]:
        if form in ("eager", "compile"):
            out = whole(pool, features)
        else:
            keep = cast("Keep", 0.15 if form == "15%" else form)
            pooled, logits, _ = pool.from_features(features, reduction, keep=keep)
            out = pooled[0], pooled.mean(dim=1), logits.mT
        return torch.autograd.grad(_loss(out), weights)

    small = features[:64]
    torch.mm(small, reduction.weight.detach().mT)  # the library's working space is not ours
    return run


def _training(device: torch.device, quick: bool) -> list[Row]:
    count = 10_000 if quick else 100_000
    names = ("eager", *POLICIES)
    memory = {name: peak_cpu(training, name, count) for name in names}
    forms = {name: training(name, count) for name in names}
    if not quick and can_compile(device):  # its compiler's memory is not its own
        forms["compile"] = training("compile", count)
    case = f"{count} x {FEATURES} -> {WIDTH}, A {ATTENTION}, K {BRANCHES}, float32, cosine loss"
    turns = 3 if quick else 5
    return rows(BLOCK, case, "fwd+bwd", forms, device, rounds=turns, memory=memory)


def pooling(
    compute: Callable[[GatedAttentionPool, Tensor], Pooled],
    mode: str,
    x: Tensor,
    pool: GatedAttentionPool,
) -> Form:
    """A run of the pooling alone: `fwd`, `bwd` or `fwd+bwd`."""
    inputs = [x, *pool.parameters()]
    if mode == "fwd":

        def forward() -> Pooled:
            with torch.no_grad():
                return compute(pool, x)

        return forward
    probes = [torch.randn_like(out) for out in compute(pool, x)]

    def whole() -> Sequence[Tensor]:
        return torch.autograd.grad(compute(pool, x), inputs, probes)

    if mode == "fwd+bwd":
        return whole
    made = compute(pool, x)
    return lambda: torch.autograd.grad(made, inputs, probes, retain_graph=True)


def _forms(
    mode: str, x: Tensor, pool: GatedAttentionPool, device: torch.device, quick: bool
) -> dict[str, Form]:
    """`auto` is what runs unasked: for so few rows on the CPU the definition. Others are forced."""
    forms = {"eager": pooling(official, mode, x, pool)}
    if can_compile(device) and not (quick and device.type == "cpu"):
        compiled = torch.compile(official, dynamic=True)
        forms["compile"] = pooling(compiled, mode, x, pool)
    if device.type == "cuda":
        forms["triton"] = _forced("triton", mode, x, pool)
    else:
        forms["auto"] = _forced("auto", mode, x, pool)
    forms["torch"] = _forced("torch", mode, x, pool)
    return forms


def _forced(path: str, mode: str, x: Tensor, pool: GatedAttentionPool) -> Form:
    """The block on a path; its graph, where only the backward pass is timed, made on it too."""
    made: list[Form] = []
    on_path(path, lambda: made.append(pooling(fused, mode, x, pool)))()
    return on_path(path, made[0])


def _bound(count: int, width: int, mode: str, dtype: torch.dtype, bandwidth: float) -> float:
    """Milliseconds of the larger of two bounds: bytes that must move, operations to be done."""
    size = dtype.itemsize
    gates = 4 * count * width * ATTENTION
    forward = count * (width * size + 4 * BRANCHES), gates
    # Rows are read for the gates and for the weights, gate gradients go out and come back twice.
    moved = count * (3 * width * size + 6 * ATTENTION * size + 12 * BRANCHES)
    backward = moved, 3 * gates
    parts = {"fwd": [forward], "bwd": [backward], "fwd+bwd": [forward, backward]}[mode]
    peak = _PEAK[dtype]
    return sum(1e3 * max(moved / bandwidth, work / peak) for moved, work in parts)


def _pooling(device: torch.device, quick: bool) -> list[Row]:
    cuda = device.type == "cuda"
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 50_000, 200_000)
    if not cuda:
        sizes = sizes[:2]
    modes = ("fwd", "bwd", "fwd+bwd") if cuda else ("fwd", "fwd+bwd")
    dtypes = (torch.bfloat16, torch.float32) if cuda else (torch.float32,)
    bandwidth = copy_bandwidth(device) if cuda else None
    found = []
    for dtype in dtypes:
        for count in sizes:
            for width in (128, WIDTH):
                torch.manual_seed(0)
                pool = GatedAttentionPool(width, ATTENTION, BRANCHES).to(device, dtype)
                x = torch.randn(count, width, device=device, dtype=dtype, requires_grad=True)
                case = f"{count} x {width}, {str(dtype).removeprefix('torch.')}"
                for mode in modes:
                    forms = _forms(mode, x, pool, device, quick)
                    for form in forms.values():
                        form()  # compile before memory is read
                    memory = {n: peak_cuda(f) for n, f in forms.items()} if cuda else None
                    bound = _bound(count, width, mode, dtype, bandwidth) if bandwidth else None
                    turns = 30 if cuda else 7
                    found += rows(
                        BLOCK,
                        case,
                        mode,
                        forms,
                        device,
                        rounds=turns,
                        memory=memory,
                        bound_ms=bound,
                    )
    return found


def _ragged(device: torch.device, quick: bool) -> list[Row]:
    """Sixteen bags of different lengths at once against one after the other."""
    lengths = [(i * 37 % 16 + 1) * (20 if quick else 100) for i in range(16)]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pool = GatedAttentionPool(WIDTH, ATTENTION, BRANCHES).to(device, dtype)
    x = torch.randn(int(ends[-1]), WIDTH, device=device, dtype=dtype, requires_grad=True)
    bags, bounds = torch.split(x.detach(), lengths), ends.to(device)
    inputs = [x, *pool.parameters()]

    def one_by_one() -> Sequence[Tensor]:
        parts = [official(pool, bag)[0] for bag in torch.split(x, lengths)]
        return torch.autograd.grad(torch.stack(parts).float().square().sum(), inputs)

    def packed() -> Sequence[Tensor]:
        return torch.autograd.grad(pool(x, bounds).pooled.float().square().sum(), inputs)

    forms: dict[str, Form] = {"eager": one_by_one}
    for path in ("triton", "torch") if device.type == "cuda" else ("torch",):
        forms[path] = on_path(path, packed)
    case = f"{len(bags)} ragged bags, {len(x)} x {WIDTH}"
    return rows(BLOCK, case, "fwd+bwd", forms, device, rounds=7)


def run(device: str | torch.device, quick: bool = False) -> list[Row]:
    """Times the pooling, a packed batch and, on the CPU, a training step with its memory.

    Args:
        device: Where to run.
        quick: Small sizes only.
    """
    where = torch.device(device)
    parts = [partial(_pooling), partial(_ragged)]
    if where.type == "cpu":
        parts.insert(0, partial(_training))
    return [row for part in parts for row in part(where, quick)]
