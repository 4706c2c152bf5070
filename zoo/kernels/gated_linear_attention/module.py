"""The module that owns the projections of gated linear attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from zoo.kernels.gated_linear_attention.op import gated_linear_attention


class GatedLinearAttention(nn.Module):
    """HER-Seg's token mixer: linear attention, rotary embedding, local convolution, two gates.

    The parameters are the Linear layers `qk` (C -> 2C, queries first), `up` (C -> bottleneck) and
    `down` (bottleneck -> C) of the values with SiLU between, `gate` (C -> C), if there is one, and
    the depthwise convolution `lepe`. The rotary table is made when it is needed: it depends on the
    grid and is no state. There is no output projection.

    Args:
        dim: Width C of the tokens, a multiple of 4 and of the heads.
        heads: Number of heads.
        bottleneck: Width between `up` and `down`; None: C / 4.
        gate: Whether the result is multiplied by silu(gate(x)).

    Raises:
        ValueError: The sizes do not fit.
    """

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
