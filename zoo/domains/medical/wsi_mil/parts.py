"""The parts the ACMIL models are built of, and the STKIM mask.

Letters as in `model.py`: B slides, N instances, F feature width, L inner width, K branches,
H heads, C classes, M attention maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.kernels import QueryPool, bag_bounds, project_values, softmax_pool

HEADS = 8
"""Heads of every multi-head attention of the published models."""


def stkim_mask(
    attention: Tensor,
    cu_seqlens: Tensor | None,
    masked: int,
    mask_drop: float,
    *,
    draws: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Chooses the instances that STKIM hides: a random part of the most attended ones.

    In each row (map, branch) of each bag the k = min(masked, n) largest logits are ranked by
    uniform draws and the first int(k * mask_drop) of them are masked. The paper (section on
    stochastic top-k instance masking) drops each with a probability; the official code drops
    exactly that many, and so does this.

    Args:
        attention: (M, K, N) attention logits of packed bags.
        cu_seqlens: (B + 1,) bounds of the bags; None: one bag.
        masked: How many of the most attended instances are candidates.
        mask_drop: Share of the candidates to mask, 0 to 1.
        draws: One (M, K, k) tensor of uniform numbers a bag; None: drawn here.
        generator: Where they are drawn from; None: the global generator of the device.

    Returns:
        (M, K, N) bool, True where masked.

    Raises:
        ValueError: The draws do not fit the bags.
    """
    maps, branches, rows = attention.shape
    bounds = bag_bounds(cu_seqlens, rows)
    if draws is not None and len(draws) != len(bounds):
        msg = f"draws must hold one tensor a bag, got {len(draws)} for {len(bounds)} bags"
        raise ValueError(msg)
    mask = torch.zeros(attention.shape, dtype=torch.bool, device=attention.device)
    for bag, (start, end) in enumerate(bounds):
        k = min(masked, end - start)
        if draws is None:
            where = attention.device if generator is None else generator.device
            # Branch by branch, the order in which the official code consumes its generator.
            uniform = torch.rand(branches, maps, k, generator=generator, device=where)
            uniform = uniform.transpose(0, 1)
        else:
            uniform = draws[bag]
        if uniform.shape != (maps, branches, k):
            msg = f"draws of bag {bag} must be {(maps, branches, k)}, got {tuple(uniform.shape)}"
            raise ValueError(msg)
        # Rows are made contiguous since ties in top-k may break differently with strides.
        top = attention[..., start:end].detach().contiguous().topk(k, dim=-1).indices
        order = uniform.to(attention.device).argsort(dim=-1)[..., : int(k * mask_drop)]
        mask[..., start:end].scatter_(-1, top.gather(-1, order), value=True)
    return mask


class ResidualBlock(nn.Module):
    """x + relu(second(relu(first(x)))), both Linear layers without bias, width L."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L) -> (N, L)."""
        return x + functional.relu(self.second(functional.relu(self.first(x))))


class DimReduction(nn.Module):
    """relu(linear(x)) without bias, F -> L, and optional residual blocks after it.

    Args:
        feature_dim: Input width F.
        inner: Output width L.
        blocks: Number of residual blocks; the published models have none.
    """

    def __init__(self, feature_dim: int, inner: int, blocks: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, inner, bias=False)
        self.blocks = nn.ModuleList(ResidualBlock(inner) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(N, F), any floating dtype -> (N, L) in the dtype of the weights."""
        x = functional.relu(self.linear(x.to(self.linear.weight.dtype)), inplace=True)
        for block in self.blocks:
            x = block(x)
        return x


class SkipReduction(nn.Module):
    """relu(linear(x) + x) with bias: the variant for features that are narrow already, F = L."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L) -> (N, L)."""
        return functional.relu(self.linear(x) + x)


class Classifier(nn.Module):
    """Optional dropout and a Linear layer, L -> C.

    Args:
        inner: Input width L.
        classes: Number of classes C.
        dropout: Rate of the dropout before the layer.
    """

    def __init__(self, inner: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, C)."""
        logits: Tensor = self.linear(self.dropout(x))
        return logits


class BranchAttention(nn.Module):
    """Multi-head attention of learned queries, then dropout and LayerNorm; no residual.

    Args:
        inner: Width L of queries, tokens and output.
        heads: Number of heads H.
        downsample: The attention works at the width L / downsample, a multiple of H.
        dropout: Rate after the output projection.

    Raises:
        ValueError: The widths do not divide.
    """

    def __init__(
        self, inner: int, heads: int = HEADS, downsample: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if inner % (downsample * heads):
            msg = f"{inner=} must be a multiple of {downsample=} times {heads=}"
            raise ValueError(msg)
        self.pool = QueryPool(inner, heads, inner=inner // downsample)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(inner, eps=1e-6)

    def finish(self, pooled: Tensor, mass: Tensor | None = None) -> Tensor:
        """Pooled tokens (B, H * Q, L) and their weight (B, H * Q) -> features (B, Q, L)."""
        features: Tensor = self.norm(self.dropout(self.pool.project(pooled, mass)))
        return features

    def forward(
        self, queries: Tensor, tokens: Tensor, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Lets queries (Q, L) attend to packed tokens (N, L).

        Returns:
            Features (B, Q, L) and attention logits (H, Q, N).
        """
        logits = self.pool.query_logits(queries, tokens)
        pooled, lse = softmax_pool(logits, tokens, cu_seqlens)
        attention = torch.unflatten(logits.mT, 0, (self.pool.heads, -1))
        return self.finish(pooled, bag_mass(lse)), attention


class BagAttention(nn.Module):
    """Multi-head attention whose weights come from elsewhere, then dropout and LayerNorm.

    Args:
        inner: Width L of tokens and output.
        heads: Number of heads H.
        dropout: Rate after the output projection.
    """

    def __init__(self, inner: int, heads: int = HEADS, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(inner, inner)
        self.out = nn.Linear(inner, inner)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(inner, eps=1e-6)

    def forward(self, pooled: Tensor, mass: Tensor | None = None) -> Tensor:
        """Features of bags whose tokens are weighted and summed already.

        Args:
            pooled: (B, H, L) sums of the tokens, weighted per head.
            mass: (B, H) sums of those weights; None: 1.

        Returns:
            (B, L).
        """
        values = project_values(pooled, self.value.weight, self.value.bias, self.heads, mass)
        features: Tensor = self.norm(self.dropout(self.out(values.squeeze(-2))))
        return features

    def from_weights(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """Features (1, L) of one bag of tokens (N, L) under ready weights (H, N)."""
        pooled, mass = weights @ tokens, weights.sum(dim=-1)
        features: Tensor = self(pooled.unsqueeze(0), mass.unsqueeze(0))
        return features


def bag_mass(lse: Tensor) -> Tensor:
    """Sum of the softmax weights of each bag: 1, or 0 where the bag is empty (lse = -inf)."""
    mass: Tensor = (lse != float("-inf")).to(lse.dtype)
    return mass
