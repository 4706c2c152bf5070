"""Channel attention and edge operators of both networks.

Sources: DFYP (arXiv 2507.05849) and its released code; the operators' constants are those of the
code. Only operators that occur are computed, each on its own samples.

Letters: B samples, C bands or colours, H x W the plane (time x histogram bin for MODIS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.remote_sensing.crop_yield.chance import fuses

Operator = Literal["sobel", "scharr", "learnable"]
UnknownYear = Literal["sobel", "scharr", "learnable", "nearest"]
OPERATORS: tuple[Operator, ...] = ("sobel", "scharr", "learnable")
STENCILS = {"sobel": (1.0, 2.0), "scharr": (3.0, 10.0)}
"""Corner and centre of each fixed kernel: its rows are (-c, 0, c), (-e, 0, e), (-c, 0, c)."""
EPS = {"sobel": 1e-8, "scharr": 1e-8, "learnable": 1e-6}
YEAR_OPERATORS: dict[int, Operator] = {
    2009: "scharr",
    2010: "scharr",
    2011: "sobel",
    2012: "learnable",
    2013: "scharr",
    2014: "learnable",
    2015: "sobel",
}
"""The released routing of MODIS samples."""
CROP_OPERATORS: dict[str, Operator] = {
    "corn": "sobel",
    "cotton": "scharr",
    "soybean": "sobel",
    "winterwheat": "scharr",
}
"""The released choice of each Sentinel-2 network."""
GRAY = (0.299, 0.587, 0.114)


class ResolutionAwareAttention(nn.Module):
    """RCA: every channel times a factor in (0, 1) that follows from all channels' pooled values.

    Max pooling for the coarse sensor, mean pooling for the fine one. With one hidden unit, as
    published, the factors are exactly 0.5 and without gradient wherever that unit is not positive;
    `alive` tells how often it is.

    Args:
        channels: C.
        hidden: Units of the bottleneck.
        pool: `max` or `mean` over the plane.
    """

    def __init__(self, channels: int, hidden: int, pool: Literal["max", "mean"]) -> None:
        super().__init__()
        self.pool = pool
        self.reduce = nn.Linear(channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, channels, bias=False)

    def hidden(self, x: Tensor) -> Tensor:
        """The bottleneck before its rectifier, (B, hidden), of x (B, C, H, W)."""
        pooled = x.amax(dim=(2, 3)) if self.pool == "max" else x.mean(dim=(2, 3))
        made: Tensor = self.reduce(pooled)
        return made

    def factors(self, x: Tensor) -> Tensor:
        """The factor of every channel, (B, C), of x (B, C, H, W)."""
        return torch.sigmoid(self.expand(functional.relu(self.hidden(x))))

    @torch.no_grad()
    def alive(self, x: Tensor) -> Tensor:
        """Share of bottleneck units above 0, a scalar; those at 0 learn nothing."""
        return (self.hidden(x) > 0).float().mean()

    def forward(self, x: Tensor) -> Tensor:
        """Scaled channels (B, C, H, W)."""
        return x * self.factors(x)[:, :, None, None]


# -- edge magnitude -------------------------------------------------------------------------------


def _sides(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences across columns (B, C, H + 2, W) and across rows (B, C, H, W + 2)."""
    wide = functional.pad(x, (1, 1, 1, 1))
    return wide[..., 2:] - wide[..., :-2], wide[..., 2:, :] - wide[..., :-2, :]


def _derivatives(x: Tensor, corner: Tensor | float, centre: float) -> tuple[Tensor, Tensor]:
    """The two filtered planes, each (B, C, H, W), with zeros around x.

    One plane is filtered by differences. Several go through depthwise convolutions, whose order of
    sums is the released one: where a histogram is nearly flat the gradient's third digit hangs on
    it, because the root is steep there.
    """
    if x.shape[1] == 1:
        across, down = _sides(x)
        gx = corner * (across[..., :-2, :] + across[..., 2:, :]) + centre * across[..., 1:-1, :]
        gy = corner * (down[..., :-2] + down[..., 2:]) + centre * down[..., 1:-1]
        return gx, gy
    c = torch.as_tensor(corner).to(x)
    e, none = torch.full_like(c, centre), torch.zeros_like(c)
    kernel = torch.stack([-c, none, c, -e, none, e, -c, none, c]).view(3, 3)
    gx, gy = (
        functional.conv2d(x, k.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        for k in (kernel, kernel.T)
    )
    return gx, gy


class _EdgeMagnitude(torch.autograd.Function):
    """Keeps x and the magnitude; the filtered planes are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, corner: Tensor, centre: float, eps: float) -> Tensor:
        gx, gy = _derivatives(x, corner, centre)
        m = gx.mul_(gx).addcmul_(gy, gy).add_(eps).sqrt_()
        ctx.save_for_backward(x, corner, m)
        ctx.centre = centre
        return m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, corner, m = ctx.saved_tensors
        gx, gy = _derivatives(x, corner, ctx.centre)
        share = grad / m
        gx.mul_(share)
        gy.mul_(share)
        dx = dcorner = None
        if ctx.needs_input_grad[0]:
            # Odd across and even along: the adjoint of such a kernel is its negative.
            dx = _derivatives(gx, corner, ctx.centre)[0]
            dx = dx.add_(_derivatives(gy, corner, ctx.centre)[1]).neg_()
        if ctx.needs_input_grad[1]:
            across, down = _sides(x)
            dcorner = ((across[..., :-2, :] + across[..., 2:, :]) * gx).sum()
            dcorner = dcorner + ((down[..., :-2] + down[..., 2:]) * gy).sum()
        return dx, dcorner, None, None


def edge_magnitude(x: Tensor, corner: Tensor | float, centre: float, eps: float) -> Tensor:
    """sqrt(gx^2 + gy^2 + eps) of 3 x 3 derivative kernels, each channel by itself, zeros around.

    Args:
        x: (B, C, H, W).
        corner: c of the kernel with rows (-c, 0, c), (-e, 0, e), (-c, 0, c); a scalar tensor is
            differentiable.
        centre: e.
        eps: Keeps the root differentiable at 0.

    Returns:
        (B, C, H, W).
    """
    if fuses(x):
        made: Tensor = _EdgeMagnitude.apply(x, torch.as_tensor(corner).to(x), centre, eps)
        return made
    gx, gy = _derivatives(x, corner, centre)
    return torch.sqrt(gx * gx + gy * gy + eps)


def fixed_edges(x: Tensor, operator: str) -> Tensor:
    """Magnitude of `sobel` or `scharr` on x (B, C, H, W)."""
    return edge_magnitude(x, *STENCILS[operator], EPS[operator])


# -- MODIS: operator by year ----------------------------------------------------------------------


class OperatorRouter(nn.Module):
    """Edges of each sample by the operator of its year, blended with the sample.

    The learnable kernel mixes Sobel's and Scharr's and is divided by its largest entry, which
    leaves 1 at the centre and c = (3 - 2a) / (10 - 8a) in the corners, a = sigmoid(alpha).

    Args:
        years: Year -> operator; None: the released table.
        unknown: Operator of years that are not in it; `nearest`: that of the closest year there,
            the earlier of two.
        always: One operator for all samples whatever their year.
    """

    def __init__(
        self,
        years: Mapping[int, Operator] | None = None,
        unknown: UnknownYear = "learnable",
        always: Operator | None = None,
    ) -> None:
        super().__init__()
        self.years = dict(YEAR_OPERATORS if years is None else years)
        self.unknown, self.always = unknown, always
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.tensor([0.1]))
        self.blend = nn.Parameter(torch.tensor(0.5))

    @property
    def default(self) -> Operator:
        """Operator of a sample without a year."""
        if self.always is not None:
            return self.always
        return "learnable" if self.unknown == "nearest" else self.unknown

    def operator_of(self, year: int) -> Operator:
        """Operator of one year."""
        if self.always is not None:
            return self.always
        if year in self.years:
            return self.years[year]
        if self.unknown != "nearest" or not self.years:
            return self.default
        return self.years[min(self.years, key=lambda known: (abs(known - year), known))]

    def operators_of(self, years: Sequence[int]) -> list[Operator]:
        """Operator of each year."""
        return [self.operator_of(int(year)) for year in years]

    def corner(self) -> Tensor:
        """Corner of the learnable kernel, between 0.3 (Scharr) and 0.5 (Sobel)."""
        a = torch.sigmoid(self.alpha)
        return (3 - 2 * a) / (10 - 8 * a)

    def edges(self, x: Tensor, operator: Operator) -> Tensor:
        """Magnitude of one operator on x (B, C, H, W)."""
        if operator != "learnable":
            return fixed_edges(x, operator)
        return edge_magnitude(x, self.corner(), 1.0, EPS[operator]) * torch.sigmoid(self.scale)

    def route(self, x: Tensor, years: Tensor | None) -> Tensor:
        """Magnitudes (B, C, H, W), each sample's by its operator; see `forward`."""
        if years is None or self.always is not None:
            return self.edges(x, self.default)
        if torch.compiler.is_compiling():
            return self._route_traced(x, years)
        chosen = self.operators_of(years.tolist())
        found = [operator for operator in OPERATORS if operator in chosen]
        if len(found) == 1:
            return self.edges(x, found[0])
        rows = [[i for i, own in enumerate(chosen) if own == name] for name in found]
        order = torch.tensor([i for own in rows for i in own], device=x.device)
        parts = torch.split(x[order], [len(own) for own in rows])
        made = [self.edges(part, name) for part, name in zip(parts, found, strict=True)]
        return torch.cat(made)[order.argsort()]

    def _route_traced(self, x: Tensor, years: Tensor) -> Tensor:
        """The same where values cannot decide what is computed: all operators, then a choice."""
        made = {name: self.edges(x, name) for name in OPERATORS}
        out = made[self.default]
        if self.unknown == "nearest" and self.years:
            known = torch.tensor(sorted(self.years), device=x.device)
            years = known[(years[:, None] - known).abs().argmin(dim=1)]
        for year, name in self.years.items():
            out = torch.where((years == year)[:, None, None, None], made[name], out)
        return out

    def forward(self, x: Tensor, years: Tensor | None = None) -> Tensor:
        """W * edges + (1 - w) * x.

        Args:
            x: (B, C, H, W).
            years: (B,) whole numbers; None: all samples take the default operator.

        Returns:
            (B, C, H, W).
        """
        return torch.lerp(x, self.route(x, years), self.blend)


# -- Sentinel-2: one operator a network -----------------------------------------------------------


class OperatorGate(nn.Module):
    """Edges of the gray picture, blended with each colour.

    Args:
        operator: `sobel` or `scharr`.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        if operator not in STENCILS:
            msg = f"the Sentinel-2 network knows {', '.join(STENCILS)}, not '{operator}'"
            raise ValueError(msg)
        self.operator = operator
        self.blend = nn.Parameter(torch.tensor(0.5))

    def magnitude(self, x: Tensor) -> Tensor:
        """Edges (B, 1, H, W) of x (B, 3, H, W)."""
        red, green, blue = torch.split(x, 1, dim=1)
        gray = torch.add(red * GRAY[0], green, alpha=GRAY[1]).add(blue, alpha=GRAY[2])
        return fixed_edges(gray, self.operator)

    def forward(self, x: Tensor) -> Tensor:
        """W * edges + (1 - w) * x, both (B, 3, H, W)."""
        return torch.lerp(x, self.magnitude(x), self.blend)
