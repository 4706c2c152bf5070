"""Gated attention pooling in Triton: four kernels that also serve its two halves.

Forward: `score_tile` scores a tile of rows and pools it, `merge_tiles` joins the tiles of a bag.
Backward: `score_backward_tile` recomputes the gates of a tile and forms the gradients of its
logits, its gates and, as partial sums, of the small parameters; `rows_backward` writes the
gradient of the rows. The gradient of the wide weights is one matrix product over the stored gate
gradients. GATE and POOL switch the two halves: scoring alone, pooling given logits, or both.

There are no atomics: tiles meet in a second launch, in a fixed order, so two runs agree bit by bit.
Letters: N rows, D width, A gate width (AP padded), K branches (KP padded), B bags, T tiles.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, ANN202 (Triton gives arguments their types at launch)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels import _launch
from zoo.kernels._jit import dot, tile_rows
from zoo.kernels._launch import Tile
from zoo.kernels.gated_attention_pool.torch_path import Gate, Gradients, Incoming

MAX_ATTENTION, MAX_BRANCHES = 128, 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Both halves of a program's scorer live in registers: 2 x rows x A float32 over its warps.
FORWARD_HALF = (Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 4, 3))
FORWARD_FULL = (Tile(64, 32, 8, 2), Tile(32, 32, 4, 2))
BACKWARD_HALF = (Tile(64, 64, 8, 2), Tile(64, 32, 8, 3))
BACKWARD_FULL = (Tile(32, 32, 8, 2), Tile(64, 32, 8, 2))
ROWS_HALF = (Tile(128, 128, 8, 3), Tile(64, 128, 4, 3))
ROWS_FULL = (Tile(64, 64, 4, 2), Tile(64, 64, 8, 2))
ROWS_STEP = 32  # gate columns a step of `rows_backward`
MERGE_TILES, MERGE_COLUMNS = 64, 32


def _shipped(kernel: str, full: bool, capability: int, precision: str) -> tuple[Tile, ...]:
    """Tiles of a kernel, less those of the backward pass whose registers spill there."""
    if kernel == "forward":
        return FORWARD_FULL if full else FORWARD_HALF
    if kernel == "rows":
        return ROWS_FULL if full else ROWS_HALF
    newest = capability >= 90  # its matrix instructions read both operands from shared memory
    if full:
        return BACKWARD_FULL[1:] if newest and precision != "ieee" else BACKWARD_FULL[:1]
    return BACKWARD_HALF if newest else BACKWARD_HALF[1:]


def tiles(
    kernel: str,
    dtype: torch.dtype,
    width: int,
    attention: int,
    capability: int,
    precision: str = "tf32",
) -> list[Tile]:
    """Tiles shipped for a kernel that fit the shared memory, the default first.

    Args:
        kernel: `forward`, `backward` or `rows`.
        dtype: Of the rows.
        width: D.
        attention: A, or 0 without a gate.
        capability: Of the device, such as 90.
        precision: Of products of float32 operands, `ieee` or `tf32`.
    """
    full = dtype == torch.float32
    shipped = _shipped(kernel, full, capability, precision)
    bytes_each = 4 if full else 2
    limit = _launch.shared_limit(capability)
    wide = 2 * _launch.padded(attention) if attention else 16

    def needed(tile: Tile) -> int:
        if kernel == "rows":
            return ROWS_STEP * (tile.rows + tile.columns) * bytes_each * tile.stages
        moving = tile.columns * (tile.rows + wide) * bytes_each * tile.stages
        return moving + tile.rows * wide * 2  # gates pass through on their way to a product

    fitting = [tile for tile in shipped if needed(tile) <= limit] or [min(shipped, key=needed)]
    if width <= 128 and kernel == "forward" and not full:
        fitting.sort(key=lambda tile: tile.rows)  # short rows: more programs hide the latency
    return fitting


@triton.jit
def _gates(
    x_rows, live, value, gate, bias, d_pooled, h, g, through,
    D: tl.constexpr, A: tl.constexpr, K: tl.constexpr, AP: tl.constexpr, KP: tl.constexpr,
    BK: tl.constexpr, GATE: tl.constexpr, POOL: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One walk along the features: value and gate products, and x dZ^T if POOL."""
    a = tl.arange(0, AP)
    k = tl.arange(0, KP)
    for d0 in range(0, D, BK):
        d = d0 + tl.arange(0, BK)
        inside = d < D
        x = tl.load(x_rows + d[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        if GATE:
            at = a[None, :] * D + d[:, None]
            there = inside[:, None] & (a < A)[None, :]
            h = dot(x, tl.load(value + at, mask=there, other=0.0), h, WIDEN, PRECISION)
            g = dot(x, tl.load(gate + at, mask=there, other=0.0), g, WIDEN, PRECISION)
        if POOL:
            there_k = inside[:, None] & (k < K)[None, :]
            z = tl.load(d_pooled + k[None, :] * D + d[:, None], mask=there_k, other=0.0)
            through = dot(x, z, through, WIDEN, PRECISION)
    if GATE:
        h += tl.load(bias + a, mask=a < A, other=0.0)[None, :]
        g += tl.load(bias + A + a, mask=a < A, other=0.0)[None, :]
    return h, g, through


@triton.jit
def score_tile(
    x, x_stride, value, gate, bias, score, score_bias, logits, tops, masses, sums,
    starts, ends, bags, rows,
    D: tl.constexpr, A: tl.constexpr, K: tl.constexpr, AP: tl.constexpr, KP: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, POOL: tl.constexpr,
    RAGGED: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """Logits of a tile, and its softmax statistics and weighted rows, still to be merged."""
    t = tl.program_id(0)
    index, live, _ = tile_rows(t, starts, ends, bags, rows, BN, RAGGED)
    x_rows = x + index[:, None] * x_stride
    k = tl.arange(0, KP)
    at = index[:, None] * K + k[None, :]
    there = live[:, None] & (k < K)[None, :]
    if GATE:
        a = tl.arange(0, AP)
        h = tl.zeros((BN, AP), dtype=tl.float32)
        g = tl.zeros((BN, AP), dtype=tl.float32)
        none = tl.zeros((BN, KP), dtype=tl.float32)
        h, g, none = _gates(
            x_rows, live, value, gate, bias, x, h, g, none,
            D, A, K, AP, KP, BK, True, False, WIDEN, PRECISION,
        )  # fmt: skip
        q = (2.0 * tl.sigmoid(2.0 * h) - 1.0) * tl.sigmoid(g)
        w = tl.load(
            score + k[None, :] * A + a[:, None], mask=(a < A)[:, None] & (k < K)[None, :], other=0.0
        )
        s = dot(q, w, tl.zeros((BN, KP), dtype=tl.float32), WIDEN, SMALL)
        s += tl.load(score_bias + k, mask=k < K, other=0.0)[None, :]
        tl.store(logits + at, s, mask=there)
    else:
        s = tl.load(logits + at, mask=there, other=0.0)
    if POOL:
        s = tl.where(there, s, float("-inf"))
        top = tl.max(s, axis=0)
        base = tl.where(top > float("-inf"), top, 0.0)  # columns and tiles that hold nothing
        p = tl.where(there, tl.exp(s - base[None, :]), 0.0)
        stat = t.to(tl.int64) * K + k
        tl.store(tops + stat, top, mask=k < K)
        tl.store(masses + stat, tl.sum(p, axis=0), mask=k < K)
        p = tl.trans(p)
        for d0 in range(0, D, BK):
            d = d0 + tl.arange(0, BK)
            inside = d < D
            again = tl.load(x_rows + d[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            part = tl.zeros((KP, BK), dtype=tl.float32)
            part = dot(p.to(again.dtype), again, part, WIDEN, PRECISION)
            at_sum = stat[:, None] * D + d[None, :]
            tl.store(sums + at_sum, part, mask=(k < K)[:, None] & inside[None, :])


@triton.jit
def merge_tiles(
    tops, masses, sums, first, pooled, stats, count,
    D: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Joins the tiles of one bag and branch for BD columns; an empty bag gives zeros."""
    bag = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    d = tl.program_id(2) * BD + tl.arange(0, BD)
    if RAGGED:
        begin = tl.load(first + bag)
        end = tl.load(first + bag + 1)
    else:
        begin = bag * 0
        end = begin + count
    top = tl.full((1,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((1,), dtype=tl.float32)
    total = tl.zeros((BD,), dtype=tl.float32)
    for t0 in range(begin, end, BT):
        t = t0 + tl.arange(0, BT)
        live = t < end
        tile_top = tl.load(tops + t * K + k, mask=live, other=float("-inf"))
        higher = tl.maximum(top, tl.max(tile_top, axis=0))
        weight = tl.where(live, tl.exp(tile_top - higher), 0.0)
        shrink = tl.exp(top - higher)
        tile_mass = tl.load(masses + t * K + k, mask=live, other=0.0)
        mass = mass * shrink + tl.sum(weight * tile_mass, axis=0)
        at = (t[:, None] * K + k) * D + d[None, :]
        part = tl.load(sums + at, mask=live[:, None] & (d < D)[None, :], other=0.0)
        total = total * shrink + tl.sum(weight[:, None] * part, axis=0)
        top = higher
    filled = end > begin
    out = tl.where(filled, total / tl.where(filled, mass, 1.0), 0.0)
    tl.store(pooled + (bag * K + k) * D + d, out, mask=d < D)
    if tl.program_id(2) == 0:
        one = bag * K + k + tl.arange(0, 1)
        tl.store(stats + one, top)
        tl.store(stats + tl.num_programs(0) * K + one, mass)


@triton.jit
def score_backward_tile(
    x, x_stride, value, gate, bias, score, logits, tops, masses, delta, d_pooled, d_logits,
    d_scores, d_both, d_score, d_bias, d_score_bias, starts, ends, bags, rows,
    D: tl.constexpr, A: tl.constexpr, K: tl.constexpr, AP: tl.constexpr, KP: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, GATE: tl.constexpr, POOL: tl.constexpr,
    LOGITS: tl.constexpr, RAGGED: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile's logits and gates, and its share of the small parameters' gradients."""
    t = tl.program_id(0)
    index, live, bag = tile_rows(t, starts, ends, bags, rows, BN, RAGGED)
    x_rows = x + index[:, None] * x_stride
    a = tl.arange(0, AP)
    k = tl.arange(0, KP)
    at = index[:, None] * K + k[None, :]
    there = live[:, None] & (k < K)[None, :]
    h = tl.zeros((BN, AP), dtype=tl.float32)
    g = tl.zeros((BN, AP), dtype=tl.float32)
    ds = tl.zeros((BN, KP), dtype=tl.float32)
    h, g, ds = _gates(
        x_rows, live, value, gate, bias, d_pooled + bag * K * D, h, g, ds,
        D, A, K, AP, KP, BK, GATE, POOL, WIDEN, PRECISION,
    )  # fmt: skip
    if POOL:
        s = tl.load(logits + at, mask=there, other=0.0)
        p = tl.exp(s - tl.load(tops + bag * K + k, mask=k < K, other=0.0)[None, :])
        p /= tl.load(masses + bag * K + k, mask=k < K, other=1.0)[None, :]
        ds = p * (ds - tl.load(delta + bag * K + k, mask=k < K, other=0.0)[None, :])
    if LOGITS:
        ds += tl.load(d_logits + at, mask=there, other=0.0)
    ds = tl.where(there, ds, 0.0)
    if not GATE:
        tl.store(d_scores + at, ds, mask=there)
    else:
        tanh = 2.0 * tl.sigmoid(2.0 * h) - 1.0
        sigmoid = tl.sigmoid(g)
        q = tl.where(live[:, None], tanh * sigmoid, 0.0)
        there_a = (a < A)[None, :] & (k < K)[:, None]
        w = tl.load(score + k[:, None] * A + a[None, :], mask=there_a, other=0.0)
        dq = dot(ds, w, tl.zeros((BN, AP), dtype=tl.float32), WIDEN, SMALL)
        # A row of zeros in ds is a row of zeros here, whatever x holds in the bag next door.
        dh = tl.where(live[:, None], dq * (sigmoid - q * tanh), 0.0)
        dg = tl.where(live[:, None], dq * q * (1.0 - sigmoid), 0.0)
        inside = live[:, None] & (a < A)[None, :]
        both = d_both + index[:, None] * (2 * A) + a[None, :]
        tl.store(both, dh.to(d_both.dtype.element_ty), mask=inside)
        tl.store(both + A, dg.to(d_both.dtype.element_ty), mask=inside)
        tile = t.to(tl.int64)
        part = dot(tl.trans(ds), q, tl.zeros((KP, AP), dtype=tl.float32), WIDEN, SMALL)
        tl.store(d_score + tile * K * A + k[:, None] * A + a[None, :], part, mask=there_a)
        tl.store(d_bias + tile * 2 * A + a, tl.sum(dh, axis=0), mask=a < A)
        tl.store(d_bias + tile * 2 * A + A + a, tl.sum(dg, axis=0), mask=a < A)
        tl.store(d_score_bias + tile * K + k, tl.sum(ds, axis=0), mask=k < K)


@triton.jit
def rows_backward(
    d_both, stacked, logits, tops, masses, d_pooled, d_x, starts, ends, bags, rows,
    D: tl.constexpr, A: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BN: tl.constexpr,
    BD: tl.constexpr, BA: tl.constexpr, GATE: tl.constexpr, RAGGED: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile's rows: gate gradients times weights, plus P dZ."""
    index, live, bag = tile_rows(tl.program_id(0), starts, ends, bags, rows, BN, RAGGED)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    k = tl.arange(0, KP)
    inside = (d < D)[None, :]
    there = live[:, None] & (k < K)[None, :]
    s = tl.load(logits + index[:, None] * K + k[None, :], mask=there, other=0.0)
    top = tl.load(tops + bag * K + k, mask=k < K, other=0.0)[None, :]
    mass = tl.load(masses + bag * K + k, mask=k < K, other=1.0)[None, :]
    p = tl.where(there, tl.exp(s - top) / mass, 0.0)
    z_at = d_pooled + (bag * K + k[:, None]) * D + d[None, :]
    z = tl.load(z_at, mask=(k < K)[:, None] & inside, other=0.0)
    # Weights of a large bag are too small for 16-bit numbers, so this product is a wide one.
    total = dot(p, z.to(tl.float32), tl.zeros((BN, BD), dtype=tl.float32), WIDEN, SMALL)
    if GATE:
        for a0 in range(0, 2 * A, BA):
            a = a0 + tl.arange(0, BA)
            left = tl.load(
                d_both + index[:, None] * (2 * A) + a[None, :],
                mask=live[:, None] & (a < 2 * A)[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(
                stacked + a[:, None] * D + d[None, :], mask=(a < 2 * A)[:, None] & inside, other=0.0
            )
            total = dot(left, right, total, WIDEN, PRECISION)
    at = d_x + index[:, None] * D + d[None, :]
    tl.store(at, total.to(d_x.dtype.element_ty), mask=live[:, None] & inside)


def supports(x: Tensor, attention: int, branches: int) -> str:
    """Why the kernels do not take such rows and sizes; empty if they do."""
    if x.dtype not in DTYPES:
        return f"the kernels of gated pooling take no rows of {x.dtype}"
    if attention > MAX_ATTENTION or branches > MAX_BRANCHES:
        return (
            f"the kernels of gated pooling go up to {MAX_ATTENTION} units and {MAX_BRANCHES} "
            f"branches, got {attention} and {branches}"
        )
    return ""


def _sizes(x: Tensor, scorer: Gate | None, branches: int, beside_half: str) -> dict[str, object]:
    """Constants all kernels take; small float32 products beside 16-bit rows by `beside_half`."""
    attention = 16 if scorer is None else scorer.score.shape[1]
    precision = _launch.precision(x)
    return {
        "D": x.shape[1],
        "A": attention,
        "K": branches,
        "AP": _launch.padded(attention),
        "KP": _launch.padded(branches),
        "GATE": scorer is not None,
        "WIDEN": _launch.INTERPRETED,
        "PRECISION": precision,
        "SMALL": precision if x.dtype == torch.float32 else beside_half,
    }


def _halves(scorer: Gate | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pointers of value weights, gate weights, bias, score and score bias; stand-ins without."""
    if scorer is None:
        return x, x, x, x, x
    value, gate = scorer.stacked.chunk(2)
    return value, gate, scorer.bias, scorer.score, scorer.score_bias


def forward(
    x: Tensor, cu_seqlens: Tensor | None, scorer: Gate | None, logits: Tensor, pool: bool
) -> tuple[Tensor, Tensor] | None:
    """Scores and pools rows; see the torch path for the meaning of the arguments.

    Args:
        x: (N, D).
        cu_seqlens: (B + 1,) or None.
        scorer: None if the logits (N, K) float32 are given, else they are written.
        logits: (N, K) contiguous.
        pool: Whether to pool.

    Returns:
        pooled (B, K, D) float32 and stats (2, B, K), or None.
    """
    x = _launch.rows_of(x)
    (rows, width), branches = x.shape, logits.shape[1]
    # Logits are as exact as in float32; gradients of 16-bit rows need less, and fewer registers.
    sizes = _sizes(x, scorer, branches, "tf32x3")
    empty = logits.new_empty
    bags = 1 if cu_seqlens is None else cu_seqlens.numel() - 1
    pooled = empty(bags, branches, width) if pool else logits
    stats = empty(2, bags, branches) if pool else logits

    def run(tile: Tile) -> None:
        where = _launch.tile_map(cu_seqlens, rows, tile.rows, logits)
        count = where.programs
        tops, masses = empty(2, count, branches) if pool else (logits, logits)
        sums = empty(count, branches, width) if pool else logits
        score_tile[(count,)](
            x, x.stride(0), *_halves(scorer, x), logits, tops, masses, sums,
            where.starts, where.ends, where.bags, rows,
            BN=tile.rows, BK=tile.columns, POOL=pool, RAGGED=cu_seqlens is not None,
            **sizes, **_launch.keywords(tile),
        )  # fmt: skip
        if pool:
            grid = (bags, branches, triton.cdiv(width, MERGE_COLUMNS))
            merge_tiles[grid](
                tops, masses, sums, where.first, pooled, stats, count if rows else 0,
                D=width, K=branches, BT=MERGE_TILES, BD=MERGE_COLUMNS,
                RAGGED=cu_seqlens is not None, num_warps=4,
            )  # fmt: skip

    run(_pick("forward", x, scorer, run))
    return (pooled, stats) if pool else None


def _pick(kernel: str, x: Tensor, scorer: Gate | None, run: object) -> Tile:
    attention = 0 if scorer is None else scorer.score.shape[1]
    capability = _launch.capability(x.device)
    precision = _launch.precision(x)
    shipped = tiles(kernel, x.dtype, x.shape[1], attention, capability, precision)
    key = (
        kernel,
        capability,
        precision,
        x.shape[1],
        attention,
        x.dtype,
        _launch.bucket(x.shape[0]),
    )
    return _launch.choose(key, shipped, run)  # type: ignore[arg-type]


def backward(
    x: Tensor,
    cu_seqlens: Tensor | None,
    scorer: Gate | None,
    incoming: Incoming,
    *,
    need_rows: bool,
    need_gate: bool,
) -> Gradients:
    """Gradients of rows (N, D), given logits (N, K), or the scorer's parameters in float32.

    Args:
        x: (N, D).
        cu_seqlens: (B + 1,) or None.
        scorer: None if the logits were given.
        incoming: Gradients of the outputs, and the outputs.
        need_rows: Whether the rows want a gradient.
        need_gate: Whether any parameter of the scorer does.
    """
    x = _launch.rows_of(x)
    logits, d_logits = _launch.whole(incoming.logits), incoming.d_logits
    rows, branches = logits.shape
    pool = incoming.d_pooled is not None
    ragged = cu_seqlens is not None
    sizes = _sizes(x, scorer, branches, "tf32")
    attention = 16 if scorer is None else scorer.score.shape[1]
    d_pooled = delta = logits
    if incoming.d_pooled is not None and incoming.pooled is not None:
        # Rounded before delta is formed, so that the parts of dP all rows share cancel exactly.
        d_pooled = _launch.whole(incoming.d_pooled.to(x.dtype))
        delta = (d_pooled.float() * incoming.pooled).sum(dim=2)
    tops, masses = (logits, logits) if incoming.stats is None or not pool else incoming.stats
    d_logits = None if d_logits is None else _launch.whole(d_logits.to(logits.dtype))
    d_scores = logits.new_empty(logits.shape) if scorer is None else logits
    d_both = x.new_empty(rows, 2 * attention) if scorer is not None else x
    parts: list[Tensor] = []

    def run(tile: Tile) -> None:
        where = _launch.tile_map(cu_seqlens, rows, tile.rows, logits)
        shapes = ((branches, attention), (2 * attention,), (branches,))
        parts[:] = [
            logits.new_empty(where.programs if scorer is not None else 0, *s) for s in shapes
        ]
        score_backward_tile[(where.programs,)](
            x, x.stride(0), *_halves(scorer, x)[:4], logits, tops, masses, delta, d_pooled,
            logits if d_logits is None else d_logits, d_scores, d_both, *parts,
            where.starts, where.ends, where.bags, rows,
            BN=tile.rows, BK=tile.columns, POOL=pool, LOGITS=d_logits is not None, RAGGED=ragged,
            **sizes, **_launch.keywords(tile),
        )  # fmt: skip

    run(_pick("backward", x, scorer, run))
    d_x = None
    if need_rows:
        d_x = _rows(x, cu_seqlens, scorer, logits, (tops, masses), d_pooled, d_both, sizes, pool)
    if scorer is None:
        return Gradients(d_x, d_scores)
    if not need_gate:
        return Gradients(d_x)
    score, bias, score_bias = (part.sum(dim=0) for part in parts)
    return Gradients(d_x, None, (d_both.mT @ x).float(), bias, score, score_bias)


def _rows(
    x: Tensor,
    cu_seqlens: Tensor | None,
    scorer: Gate | None,
    logits: Tensor,
    stats: tuple[Tensor, Tensor],
    d_pooled: Tensor,
    d_both: Tensor,
    sizes: dict[str, object],
    pool: bool,
) -> Tensor:
    if not pool:
        return x.new_zeros(x.shape) if scorer is None else d_both @ scorer.stacked
    d_x = x.new_empty(x.shape)
    rows, width = x.shape
    shared = {key: value for key, value in sizes.items() if key != "AP"}

    def run(tile: Tile) -> None:
        where = _launch.tile_map(cu_seqlens, rows, tile.rows, logits)
        rows_backward[(where.programs, triton.cdiv(width, tile.columns))](
            d_both, x if scorer is None else scorer.stacked, logits, *stats, d_pooled, d_x,
            where.starts, where.ends, where.bags, rows,
            BN=tile.rows, BD=tile.columns, BA=ROWS_STEP, RAGGED=cu_seqlens is not None,
            **shared, **_launch.keywords(tile),
        )  # fmt: skip

    run(_pick("rows", x, scorer, run))
    return d_x
