"""Gated linear attention in Triton: two kernels forward, two backward, and a sum between each.

Heads are 2 to 32 channels wide, too narrow for matrix instructions, so a program takes a block of
32 channels, which holds whole heads, forms its full 32 x 32 state and masks what joins different
heads. Channel pairs (2p, 2p + 1) are held as two halves of 16; the rotation turns one against the
other in registers, by angles computed from the token's row and column.

Forward: `states` sums a chunk of tokens into partial states, PyTorch adds the chunks up, `mix`
writes the result with the local convolution and the gate. Backward: `mix_backward` writes the
gradients of q and the gate and sums partial gradients of the state, the mean and the convolution;
`keys_backward` writes those of k and v. No atomics: two runs agree bit by bit.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs
# ruff: noqa: ANN001, ANN201, ANN202 (Triton gives arguments their types at launch)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.kernels import _launch
from zoo.kernels._launch import Tile
from zoo.kernels.gated_linear_attention.reference import EPS
from zoo.kernels.gated_linear_attention.torch_path import Gradients, Tokens

BLOCK = 32  # channels of a program; constants of the kernels below follow from it
ROWS = 33  # of a partial sum: 16 + 16 of the state, one of the mean
ROWS_BACKWARD = 43  # the same, nine taps and the bias
TILES = (Tile(64, BLOCK, 4, 1), Tile(128, BLOCK, 8, 1))
# The first of these spills least on compute capability 9.0, the second below it.
TILES_BACKWARD = (Tile(64, BLOCK, 8, 1), Tile(32, BLOCK, 8, 1))
_TILES_A_CHUNK = 4


@triton.jit
def _feature(x):
    """Computes elu(x) + 1; a minimum with 0 would turn NaN into a number."""
    return tl.where(x > 0, x + 1.0, tl.exp(x))


@triton.jit
def _halves(x, BN: tl.constexpr):
    """Even and odd channels (BN, 16) of (BN, 32)."""
    return tl.split(tl.reshape(x, (BN, 16, 2)))


@triton.jit
def _turns(n, block, width, C: tl.constexpr):
    """Cosine and sine (BN, 16) for tokens n and the pairs of a block of channels."""
    pair = block * 16 + tl.arange(0, 16)
    by_row = pair < C // 4
    step = tl.where(by_row, pair, pair - C // 4).to(tl.float32) / (C // 4)
    speed = tl.exp(step * -9.210340371976184)  # -log(10000)
    row = (n // width).to(tl.float32)
    column = (n % width).to(tl.float32)
    angle = tl.where(by_row[None, :], row[:, None], column[:, None]) * speed[None, :]
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _tokens(x, stride, batch_stride, item, n, c, N, C: tl.constexpr):
    """(BN, 32) of tokens in float32, zeros outside."""
    there = ((n >= 0) & (n < N))[:, None] & (c < C)[None, :]
    at = item * batch_stride + n.to(tl.int64)[:, None] * stride + c[None, :]
    return tl.load(x + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _state(sums, at, scale, HEAD: tl.constexpr):
    """Even and odd rows (16, 32) of a block's state, with other heads masked."""
    p = tl.arange(0, 16)
    c = tl.arange(0, 32)
    same = (2 * p // HEAD)[:, None] == (c // HEAD)[None, :]
    where = sums + at + p[:, None] * 32 + c[None, :]
    even = tl.where(same, tl.load(where) * scale, 0.0)
    odd = tl.where(same, tl.load(where + 16 * 32) * scale, 0.0)
    return even, odd


@triton.jit
def _mean(sums, at, scale):
    """Even and odd halves (16,) of row 32 of a block's sums."""
    p = tl.arange(0, 16)
    return tl.load(sums + at + 32 * 32 + p) * scale, tl.load(sums + at + 32 * 32 + 16 + p) * scale


@triton.jit
def _by_head(x, BN: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, TO: tl.constexpr):
    """Sums of x (BN, WIDTH) over each head, repeated over TO columns."""
    HEADS: tl.constexpr = 32 // HEAD
    total = tl.sum(tl.reshape(x, (BN, HEADS, WIDTH // HEADS)), axis=2)
    spread = tl.broadcast_to(total[:, :, None], (BN, HEADS, TO // HEADS))
    return tl.reshape(spread, (BN, TO))


@triton.jit
def _local(
    v, v_stride, v_batch, lepe, lepe_bias, item, n, c, N, height, width,
    C: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """The 3 x 3 depthwise convolution (BN, 32) of the values at tokens n."""
    row = n // width
    column = n % width
    total = tl.zeros((n.shape[0], c.shape[0]), dtype=tl.float32)
    if BIAS:
        total += tl.load(lepe_bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    for tap in range(9):
        y = row + (tap // 3 - 1)
        x = column + (tap % 3 - 1)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        moved = tl.where(inside, y * width + x, -1)
        weight = tl.load(lepe + c * 9 + tap, mask=c < C, other=0.0).to(tl.float32)
        total += _tokens(v, v_stride, v_batch, item, moved, c, N, C) * weight[None, :]
    return total


@triton.jit
def states(
    k, k_stride, k_batch, v, v_stride, v_batch, sums, N, width,
    C: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial (R f(k))^T v and sums of f(k) of one chunk, one block and one item."""
    chunk = tl.program_id(0)
    block = tl.program_id(1)
    item = tl.program_id(2).to(tl.int64)
    c = block * 32 + tl.arange(0, 32)
    p = tl.arange(0, 16)
    even = tl.zeros((16, 32), dtype=tl.float32)
    odd = tl.zeros((16, 32), dtype=tl.float32)
    mean_even = tl.zeros((16,), dtype=tl.float32)
    mean_odd = tl.zeros((16,), dtype=tl.float32)
    for t in range(TILES):
        n = (chunk * TILES + t) * BN + tl.arange(0, BN)
        live = (n < N)[:, None]
        f = _feature(_tokens(k, k_stride, k_batch, item, n, c, N, C))
        a, b = _halves(tl.where(live & (c < C)[None, :], f, 0.0), BN)
        mean_even += tl.sum(a, axis=0)
        mean_odd += tl.sum(b, axis=0)
        cos, sin = _turns(n, block, width, C)
        values = _tokens(v, v_stride, v_batch, item, n, c, N, C)
        even = tl.dot(tl.trans(a * cos - b * sin), values, even, input_precision=PRECISION)
        odd = tl.dot(tl.trans(a * sin + b * cos), values, odd, input_precision=PRECISION)
    blocks = tl.num_programs(1)
    items = tl.num_programs(2)
    to = sums + (((chunk * items + item) * blocks + block) * 33).to(tl.int64) * 32
    j = tl.arange(0, 32)
    tl.store(to + p[:, None] * 32 + j[None, :], even)
    tl.store(to + (16 + p)[:, None] * 32 + j[None, :], odd)
    tl.store(to + 32 * 32 + p, mean_even)
    tl.store(to + 32 * 32 + 16 + p, mean_odd)


@triton.jit
def _mixed(
    q, q_stride, q_batch, sums, at, item, n, c, block, N, width, scale, eps,
    C: tl.constexpr, HEAD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """f(q) in halves, its rotation in halves, (R f(q)) M and one over the sum of weights."""
    f = _feature(_tokens(q, q_stride, q_batch, item, n, c, N, C))
    a, b = _halves(tl.where((c < C)[None, :], f, 0.0), BN)
    cos, sin = _turns(n, block, width, C)
    turned_a = a * cos - b * sin
    turned_b = a * sin + b * cos
    even, odd = _state(sums, at, scale, HEAD)
    raw = tl.zeros((BN, 32), dtype=tl.float32)
    raw = tl.dot(turned_a, even, raw, input_precision=PRECISION)
    raw = tl.dot(turned_b, odd, raw, input_precision=PRECISION)
    mean_a, mean_b = _mean(sums, at, scale)
    weights = a * mean_a[None, :] + b * mean_b[None, :]
    return a, b, turned_a, turned_b, raw, weights


@triton.jit
def mix(
    q, q_stride, q_batch, v, v_stride, v_batch, gate, lepe, lepe_bias, sums, out, N, height, width,
    scale, eps,
    C: tl.constexpr, HEAD: tl.constexpr, BN: tl.constexpr,
    GATE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The result for a tile of tokens, one block and one item."""
    block = tl.program_id(1)
    item = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c = block * 32 + tl.arange(0, 32)
    at = (item * tl.num_programs(1) + block) * 33 * 32
    _a, _b, _turned_a, _turned_b, raw, weights = _mixed(
        q, q_stride, q_batch, sums, at, item, n, c, block, N, width, scale, eps,
        C, HEAD, BN, PRECISION,
    )  # fmt: skip
    y = raw / (_by_head(weights, BN, HEAD, 16, 32) + eps)
    y += _local(v, v_stride, v_batch, lepe, lepe_bias, item, n, c, N, height, width, C, BIAS)
    if GATE:
        g = _tokens(gate, C, N.to(tl.int64) * C, item, n, c, N, C)
        y *= g * tl.sigmoid(g)
    to = out + item * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])


@triton.jit
def _put_pairs(to, item, n, c, N, even, odd, C: tl.constexpr, BN: tl.constexpr):
    """Stores (BN, 32) from its even and odd channels."""
    value = tl.reshape(tl.join(even, odd), (BN, 32))
    at = to + item * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(at, value.to(to.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])


@triton.jit
def mix_backward(
    grad, q, q_stride, q_batch, v, v_stride, v_batch, gate, lepe, lepe_bias, sums,
    d_q, d_gate, parts, N, height, width, scale, eps,
    C: tl.constexpr, HEAD: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr,
    GATE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q and gate for one chunk, and its part of those that sum over tokens."""
    chunk = tl.program_id(0)
    block = tl.program_id(1)
    item = tl.program_id(2).to(tl.int64)
    c = block * 32 + tl.arange(0, 32)
    p = tl.arange(0, 16)
    at = (item * tl.num_programs(1) + block) * 33 * 32
    even, odd = _state(sums, at, scale, HEAD)
    mean_a, mean_b = _mean(sums, at, scale)
    part_even = tl.zeros((16, 32), dtype=tl.float32)
    part_odd = tl.zeros((16, 32), dtype=tl.float32)
    mean_even = tl.zeros((16,), dtype=tl.float32)
    mean_odd = tl.zeros((16,), dtype=tl.float32)
    part_bias = tl.zeros((32,), dtype=tl.float32)
    whole = N.to(tl.int64) * C
    j = tl.arange(0, 32)
    to = ((chunk * tl.num_programs(2) + item) * tl.num_programs(1) + block).to(tl.int64) * 43 * 32
    for t in range(TILES):
        n = (chunk * TILES + t) * BN + tl.arange(0, BN)
        d_out = _tokens(grad, C, whole, item, n, c, N, C)
        a, b, turned_a, turned_b, raw, weights = _mixed(
            q, q_stride, q_batch, sums, at, item, n, c, block, N, width, scale, eps,
            C, HEAD, BN, PRECISION,
        )  # fmt: skip
        if GATE:
            y = raw / (_by_head(weights, BN, HEAD, 16, 32) + eps)
            y += _local(
                v, v_stride, v_batch, lepe, lepe_bias, item, n, c, N, height, width, C, BIAS
            )
            g = _tokens(gate, C, whole, item, n, c, N, C)
            s = tl.sigmoid(g)
            slope = d_out * y * s * (1.0 + g * (1.0 - s))
            there = (n < N)[:, None] & (c < C)[None, :]
            where = d_gate + item * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
            tl.store(where, slope.to(d_gate.dtype.element_ty), mask=there)
            d_out *= g * s
        share = 1.0 / (_by_head(weights, BN, HEAD, 16, 16) + eps)
        weighted = d_out / (_by_head(weights, BN, HEAD, 16, 32) + eps)
        part_even = tl.dot(tl.trans(turned_a), weighted, part_even, input_precision=PRECISION)
        part_odd = tl.dot(tl.trans(turned_b), weighted, part_odd, input_precision=PRECISION)
        e = -share * share * _by_head(d_out * raw, BN, HEAD, 32, 16)
        mean_even += tl.sum(e * a, axis=0)
        mean_odd += tl.sum(e * b, axis=0)
        part_bias += tl.sum(d_out, axis=0)
        none = tl.zeros((BN, 16), dtype=tl.float32)
        d_a = tl.dot(weighted, tl.trans(even), none, input_precision=PRECISION)
        d_b = tl.dot(weighted, tl.trans(odd), none, input_precision=PRECISION)
        cos, sin = _turns(n, block, width, C)
        d_even = d_a * cos + d_b * sin + e * mean_a[None, :]
        d_odd = d_b * cos - d_a * sin + e * mean_b[None, :]
        # f' is 1 above 0 and f itself below, where f is smaller than 1.
        d_even *= tl.minimum(a, 1.0)
        d_odd *= tl.minimum(b, 1.0)
        _put_pairs(d_q, item, n, c, N, d_even, d_odd, C, BN)
    tl.store(parts + to + p[:, None] * 32 + j[None, :], part_even)
    tl.store(parts + to + (16 + p)[:, None] * 32 + j[None, :], part_odd)
    tl.store(parts + to + 32 * 32 + p, mean_even)
    tl.store(parts + to + 32 * 32 + 16 + p, mean_odd)
    tl.store(parts + to + 42 * 32 + j, part_bias)
    for tap in range(9):
        part = tl.zeros((32,), dtype=tl.float32)
        for t in range(TILES):
            n = (chunk * TILES + t) * BN + tl.arange(0, BN)
            y = n // width + (tap // 3 - 1)
            x = n % width + (tap % 3 - 1)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (n < N)
            moved = tl.where(inside, y * width + x, -1)
            d_out = _tokens(grad, C, whole, item, n, c, N, C)
            if GATE:
                g = _tokens(gate, C, whole, item, n, c, N, C)
                d_out *= g * tl.sigmoid(g)
            part += tl.sum(d_out * _tokens(v, v_stride, v_batch, item, moved, c, N, C), axis=0)
        tl.store(parts + to + (33 + tap) * 32 + j, part)


@triton.jit
def keys_backward(
    grad, gate, k, k_stride, k_batch, v, v_stride, v_batch, lepe, parts, d_k, d_v,
    N, height, width, scale,
    C: tl.constexpr, HEAD: tl.constexpr, BN: tl.constexpr,
    GATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v for a tile of tokens, one block and one item."""
    block = tl.program_id(1)
    item = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c = block * 32 + tl.arange(0, 32)
    at = (item * tl.num_programs(1) + block) * 43 * 32
    even, odd = _state(parts, at, scale, HEAD)
    mean_a, mean_b = _mean(parts, at, scale)
    f = _feature(_tokens(k, k_stride, k_batch, item, n, c, N, C))
    a, b = _halves(f, BN)
    cos, sin = _turns(n, block, width, C)
    values = _tokens(v, v_stride, v_batch, item, n, c, N, C)
    none = tl.zeros((BN, 16), dtype=tl.float32)
    d_a = tl.dot(values, tl.trans(even), none, input_precision=PRECISION)
    d_b = tl.dot(values, tl.trans(odd), none, input_precision=PRECISION)
    d_even = (d_a * cos + d_b * sin + mean_a[None, :]) * tl.minimum(a, 1.0)
    d_odd = (d_b * cos - d_a * sin + mean_b[None, :]) * tl.minimum(b, 1.0)
    _put_pairs(d_k, item, n, c, N, d_even, d_odd, C, BN)
    total = tl.zeros((BN, 32), dtype=tl.float32)
    total = tl.dot(a * cos - b * sin, even, total, input_precision=PRECISION)
    total = tl.dot(a * sin + b * cos, odd, total, input_precision=PRECISION)
    row = n // width
    column = n % width
    whole = N.to(tl.int64) * C
    for tap in range(9):
        # The transposed convolution: a token feeds the neighbour on the other side of each tap.
        y = row - (tap // 3 - 1)
        x = column - (tap % 3 - 1)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        moved = tl.where(inside, y * width + x, -1)
        d_out = _tokens(grad, C, whole, item, moved, c, N, C)
        if GATE:
            g = _tokens(gate, C, whole, item, moved, c, N, C)
            d_out *= g * tl.sigmoid(g)
        weight = tl.load(lepe + c * 9 + tap, mask=c < C, other=0.0).to(tl.float32)
        total += d_out * weight[None, :]
    to = d_v + item * N * C + n.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(to, total.to(d_v.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])


def supports(v: Tensor, heads: int) -> str:
    """Why the kernels do not take such tokens and heads; empty if they do."""
    head = v.shape[2] // heads
    if v.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernels of gated linear attention take no tokens of {v.dtype}"
    if head not in (2, 4, 8, 16, 32):
        return f"the kernels of gated linear attention take heads of 2 to 32 channels, got {head}"
    return ""


def tiles(kernel: str, capability: int) -> tuple[Tile, ...]:
    """Tiles shipped for a kernel on a device of that capability, the default first."""
    if kernel != "mix_backward":
        return TILES
    return TILES_BACKWARD if capability >= 90 else TILES_BACKWARD[1:]


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """Tokens with innermost stride 1, and their strides."""
    x = _launch.rows_of(x)
    return x, x.stride(1), x.stride(0)


class _Launch:
    """What all launches on the same tokens share."""

    def __init__(self, tokens: Tokens) -> None:
        self.batch, self.count, self.channels = tokens.v.shape
        self.blocks = triton.cdiv(self.channels, BLOCK)
        self.height, self.width = tokens.grid
        self.q, self.k, self.v = (_rows(x) for x in (tokens.q, tokens.k, tokens.v))
        self.gate = None if tokens.gate is None else _launch.whole(tokens.gate)
        self.lepe = _launch.whole(tokens.lepe)
        self.bias = None if tokens.lepe_bias is None else _launch.whole(tokens.lepe_bias)
        exact = tokens.v.dtype == torch.float32
        self.common: dict[str, Any] = {
            "C": self.channels,
            # Everything is widened when it is loaded; tf32 keeps more than 16-bit inputs have.
            "PRECISION": _launch.precision(tokens.v) if exact else "tf32",
        }
        self.head = self.channels // tokens.heads

    def tile(self, name: str, run: Any) -> Tile:
        x = self.v[0]
        capability = _launch.capability(x.device)
        how = self.common["PRECISION"]
        key = ("linear " + name, capability, how, self.channels, self.head, x.dtype)
        return _launch.choose((*key, _launch.bucket(self.count)), tiles(name, capability), run)

    def chunks(self, tile: Tile) -> int:
        return -(-self.count // (tile.rows * _TILES_A_CHUNK))

    def parts(self, tile: Tile, rows: int) -> Tensor:
        """(chunks, B, blocks, rows, 32) partial sums."""
        shape = (self.chunks(tile), self.batch, self.blocks, rows, BLOCK)
        return self.v[0].new_empty(shape, dtype=torch.float32)


def forward(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The result (B, N, C) in the dtype of the values, and sums (B, blocks, 33, 32) float32."""
    launch = _Launch(tokens)
    sums: list[Tensor] = []

    def first(tile: Tile) -> None:
        parts = launch.parts(tile, ROWS)
        states[(parts.shape[0], launch.blocks, launch.batch)](
            *launch.k, *launch.v, parts, launch.count, launch.width,
            BN=tile.rows, TILES=_TILES_A_CHUNK, **launch.common, **_launch.keywords(tile),
        )  # fmt: skip
        sums[:] = [parts.sum(dim=0)]

    first(launch.tile("states", first))
    out = launch.v[0].new_empty(launch.v[0].shape)
    stand_in = launch.v[0]

    def second(tile: Tile) -> None:
        grid = (triton.cdiv(launch.count, tile.rows), launch.blocks, launch.batch)
        mix[grid](
            *launch.q, *launch.v, stand_in if launch.gate is None else launch.gate, launch.lepe,
            stand_in if launch.bias is None else launch.bias, sums[0], out,
            launch.count, launch.height, launch.width, 1 / launch.count, EPS,
            HEAD=launch.head, BN=tile.rows, GATE=launch.gate is not None,
            BIAS=launch.bias is not None, **launch.common, **_launch.keywords(tile),
        )  # fmt: skip

    second(launch.tile("mix", second))
    return out, sums[0]


def backward(grad: Tensor, tokens: Tokens, sums: Tensor) -> Gradients:
    """Gradients of all inputs.

    Args:
        grad: (B, N, C) of the output.
        tokens: The inputs.
        sums: What `forward` returned beside its result.
    """
    launch = _Launch(tokens)
    grad = _launch.whole(grad)
    like = launch.v[0]
    d_q, d_k, d_v = (like.new_empty(like.shape) for _ in range(3))
    d_gate = None if launch.gate is None else like.new_empty(like.shape)
    gate = like if launch.gate is None else launch.gate
    sizes = (launch.count, launch.height, launch.width)
    flags = {"HEAD": launch.head, "GATE": launch.gate is not None, **launch.common}
    total: list[Tensor] = []

    def first(tile: Tile) -> None:
        parts = launch.parts(tile, ROWS_BACKWARD)
        mix_backward[(parts.shape[0], launch.blocks, launch.batch)](
            grad, *launch.q, *launch.v, gate, launch.lepe,
            like if launch.bias is None else launch.bias, sums, d_q,
            like if d_gate is None else d_gate, parts, *sizes, 1 / launch.count, EPS,
            BN=tile.rows, TILES=_TILES_A_CHUNK, BIAS=launch.bias is not None,
            **flags, **_launch.keywords(tile),
        )  # fmt: skip
        total[:] = [parts.sum(dim=0)]

    first(launch.tile("mix_backward", first))

    def second(tile: Tile) -> None:
        grid = (triton.cdiv(launch.count, tile.rows), launch.blocks, launch.batch)
        keys_backward[grid](
            grad, gate, *launch.k, *launch.v, launch.lepe, total[0], d_k, d_v, *sizes,
            1 / launch.count, BN=tile.rows, **flags, **_launch.keywords(tile),
        )  # fmt: skip

    second(launch.tile("keys_backward", second))
    taps = total[0][:, :, ROWS:].sum(dim=0).transpose(0, 1).flatten(1)[:, : launch.channels]
    bias = None if tokens.lepe_bias is None else taps[9]
    return Gradients(d_q, d_k, d_v, d_gate, taps[:9].mT.reshape(tokens.lepe.shape), bias)
