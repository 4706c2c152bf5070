"""Feature pyramid of the announced SAM 2 variant of HER-Seg.

The released class of that variant cannot run: its encoder gives one map, this neck wants four. The
neck itself is sound (SAM 2, arXiv 2408.00714, and its code, Apache-2.0) and stands here for whoever
puts an encoder of several scales in front of it; no preset uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


def sine_positions(
    size: tuple[int, int],
    channels: int,
    *,
    normalise: bool = True,
    temperature: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """Sines and cosines of rows, then of columns, counted from 1.

    Args:
        size: Rows h and columns w.
        channels: D, a multiple of 4.
        normalise: Whether places run up to 2 pi, not up to the number of rows or columns.
        temperature: Ratio of the longest wave to the shortest.
        device: Of the result.

    Returns:
        (D, h, w).
    """
    half = channels // 2
    index = torch.arange(half, device=device, dtype=torch.float32)
    wave = temperature ** (2 * (index // 2) / half)
    parts = []
    for count in size:
        place = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        if normalise:
            place = place / (place[-1] + 1e-6) * 2 * pi
        angle = place.unsqueeze(1) / wave
        pairs = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1)
        parts.append(pairs.flatten(1).T)  # (D / 2, count)
    height, width = size
    rows = parts[0].unsqueeze(2).expand(-1, height, width)
    columns = parts[1].unsqueeze(1).expand(-1, height, width)
    return torch.cat([rows, columns])


class FpnNeck(nn.Module):
    """Maps of several scales at one width, coarser ones added to finer ones where asked.

    Args:
        dim: D of the results.
        channels: Of the maps that come in, the coarsest first.
        top_down: Levels (0 is the finest) that get the next coarser result added.
        interpolation: How that is enlarged.
        fuse: `sum`, or `avg` for the mean of both.
        normalise: Of the positions, see `sine_positions`.
        temperature: Of the positions.
    """

    def __init__(
        self,
        dim: int,
        channels: Sequence[int],
        top_down: Sequence[int] | None = None,
        interpolation: Literal["nearest", "bilinear"] = "bilinear",
        fuse: Literal["sum", "avg"] = "sum",
        *,
        normalise: bool = True,
        temperature: float = 10000.0,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, dim, 1))) for width in channels
        )
        self.top_down = set(range(len(channels)) if top_down is None else top_down)
        self.interpolation, self.fuse = interpolation, fuse
        self.normalise, self.temperature, self.dim = normalise, temperature, dim

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features and positions of each level.

        Args:
            maps: (B, C_i, h_i, w_i), the finest first, each twice as fine as the next.

        Returns:
            Two lists of (B, D, h_i, w_i), the finest first.
        """
        found: list[Tensor] = []
        for level, conv in zip(reversed(range(len(maps))), self.convs, strict=True):
            own: Tensor = conv(maps[level])
            if found and level in self.top_down:
                flag = None if self.interpolation == "nearest" else False
                coarser = found[0].float()
                own = own + functional.interpolate(
                    coarser, scale_factor=2.0, mode=self.interpolation, align_corners=flag
                )
                own = own / 2 if self.fuse == "avg" else own
            found.insert(0, own)
        return found, [self._positions(x) for x in found]

    def _positions(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        made = sine_positions(
            size,
            self.dim,
            normalise=self.normalise,
            temperature=self.temperature,
            device=x.device,
        )
        return made.to(x.dtype).expand(x.shape[0], -1, -1, -1)
