"""The module that owns the projections of gated linear attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.kernels.gated_linear_attention.op import gated_linear_attention
from zoo.kernels.gated_linear_attention.reference import rotary_table
from zoo.kernels.official import Names, OfficialModule, layers, read


def is_rotary_table(table: Tensor) -> bool:
    """Whether a stored table (h, w, C / 2, 2) of cosines and sines is the one computed here."""
    if table.dim() != 4 or table.shape[-1] != 2 or table.shape[2] % 2:
        return False
    grid = (table.shape[0], table.shape[1])
    made = torch.stack(rotary_table(grid, 2 * table.shape[2], table.device), dim=-1)
    # The angles reach some hundred radians, whose rounding is that of the table.
    near = max(1e-6 * max(grid), 1e-6)
    return torch.allclose(table.flatten(0, 1).to(made.dtype), made, rtol=1e-6, atol=near)


def _names(attention: str, more: Mapping[str, str] | None = None, beside: str = "") -> Names:
    """Names of HER-Seg, where the attention's own keys begin with a prefix."""
    own = {"qk": "qk", "up_proj": "up", "down_proj": "down", "lepe": "lepe"}
    named = layers({attention + key: ours for key, ours in own.items()} | dict(more or {}))
    return Names(named, beside=beside, derived={f"{attention}rope.rotations": is_rotary_table})


class GatedLinearAttention(OfficialModule):
    """HER-Seg's token mixer: linear attention, rotary embedding, local convolution, two gates.

    The parameters are the Linear layers `qk` (C -> 2C, queries first), `up` (C -> bottleneck) and
    `down` (bottleneck -> C) of the values with SiLU between, `gate` (C -> C), if there is one, and
    the depthwise convolution `lepe`. The rotary table is made when it is needed: it depends on the
    grid and is no state. There is no output projection.

    Of an official `LGViTBlock` of HER-Seg these are the keys below `attn.` and the gate, which is
    `act_proj` of the block around; the rest of that block is no part of this one.

    Args:
        dim: Width C of the tokens, a multiple of 4 and of the heads.
        heads: Number of heads.
        bottleneck: Width between `up` and `down`; None: C / 4.
        gate: Whether the result is multiplied by silu(gate(x)).

    Raises:
        ValueError: The sizes do not fit.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {
        "her_seg": _names("attn.", {"act_proj": "gate"}, r"(norm[12]|mlp\.fc[12]|out_proj)\.\w+"),
        "her_seg_attention": _names(""),
    }

    def __init__(
        self, dim: int, heads: int, *, bottleneck: int | None = None, gate: bool = True
    ) -> None:
        super().__init__()
        bottleneck = dim // 4 if bottleneck is None else bottleneck
        if min(dim, heads, bottleneck) < 1 or dim % heads or dim % 4:
            msg = (
                "the width must be a multiple of 4 and of the heads, all sizes positive; got "
                f"{dim=}, {heads=}, {bottleneck=}"
            )
            raise ValueError(msg)
        self.heads = heads
        self.qk = nn.Linear(dim, 2 * dim)
        self.up = nn.Linear(dim, bottleneck)
        self.down = nn.Linear(bottleneck, dim)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.gate = nn.Linear(dim, dim) if gate else None

    @staticmethod
    def from_official(
        state: Mapping[str, Tensor], prefix: str = "", system: str | None = None, *, heads: int
    ) -> GatedLinearAttention:
        """The block of an official checkpoint, of the size that its tensors have.

        A stored rotary table is compared with the computed one and left out.

        Args:
            state: Official keys, with or without `module.` in front.
            prefix: What stands before the block's keys, such as
                `image_encoder.layers.1.blocks.0.`.
            system: `her_seg` (an `LGViTBlock`) or `her_seg_attention` (its `LinearAttention`,
                which has no gate); None: whichever names are there.
            heads: Number of heads, which no tensor tells: 6, 12 and 24 in HER-Seg's last stages.

        Raises:
            ValueError: A key below the prefix is missing or unknown, a shape does not fit, or the
                rotary table is another one.
        """
        part = read(GatedLinearAttention, state, prefix, system)
        dim = part.shape("qk.weight", 2)[1]
        bottleneck = part.shape("up.weight", 2)[0]
        gate = "gate.weight" in part.tensors
        return part.fill(lambda: GatedLinearAttention(dim, heads, bottleneck=bottleneck, gate=gate))

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens.

        Args:
            x: (B, N, C) tokens, row by row.
            grid: Rows and columns; None: a square.

        Returns:
            (B, N, C).

        Raises:
            ValueError: The tokens do not fill the grid.
        """
        if grid is None:
            side = int(x.shape[1] ** 0.5 + 0.5)  # math.isqrt cannot be traced with a dynamic size
            grid = (side, side)
        q, k = self.qk(x).chunk(2, dim=-1)
        v = self.down(functional.silu(self.up(x)))
        gate = None if self.gate is None else self.gate(x)
        lepe = self.lepe
        return gated_linear_attention(q, k, v, gate, lepe.weight, lepe.bias, grid, self.heads)
