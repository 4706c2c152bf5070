"""The module that owns the parameters of gated attention pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from zoo.kernels._ragged import Pooled, lowered, mask_logits
from zoo.kernels.gated_attention_pool.op import (
    Keep,
    Weights,
    gated_logits,
    gated_pool,
    pool_from_features,
    softmax_pool,
)
from zoo.kernels.official import Names, OfficialModule, layers, read


class GatedAttentionPool(OfficialModule):
    """Pools bags of instances into K vectors each by gated attention.

    The parameters are three Linear layers: `value` and `gate` (D -> A) and `score` (A -> K). They
    are those of ACMIL's `Attention_Gated` (github dazhangyu123/ACMIL, e53d19c) and of CLAM's
    `Attn_Net_Gated` (github mahmoodlab/CLAM, 0266041, models/model_clam.py).

    Args:
        dim: Width D of an instance.
        attn_dim: Width A of the scorer.
        branches: Number K of attention distributions, each with its own pooled vector.

    Raises:
        ValueError: A size is below 1.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {
        "acmil": Names(
            layers(
                {"attention_V.0": "value", "attention_U.0": "gate", "attention_weights": "score"}
            )
        ),
        "clam": Names(
            layers({"attention_a.0": "value", "attention_b.0": "gate", "attention_c": "score"})
        ),
    }

    def __init__(self, dim: int, attn_dim: int = 128, branches: int = 1) -> None:
        super().__init__()
        if min(dim, attn_dim, branches) < 1:
            msg = f"sizes must be positive, got {dim=}, {attn_dim=}, {branches=}"
            raise ValueError(msg)
        self.value = nn.Linear(dim, attn_dim)
        self.gate = nn.Linear(dim, attn_dim)
        self.score = nn.Linear(attn_dim, branches)

    @staticmethod
    def from_official(
        state: Mapping[str, Tensor], prefix: str = "", system: str | None = None
    ) -> GatedAttentionPool:
        """The block of an official checkpoint, of the size that its tensors have.

        Args:
            state: Official keys, with or without `module.` in front.
            prefix: What stands before the block's keys, such as `attention.`.
            system: `acmil` or `clam`; None: whichever names are there.

        Raises:
            ValueError: A key below the prefix is missing or unknown, or a shape does not fit.
        """
        part = read(GatedAttentionPool, state, prefix, system)
        attn_dim, dim = part.shape("value.weight", 2)
        branches = part.shape("score.weight", 2)[0]
        return part.fill(lambda: GatedAttentionPool(dim, attn_dim, branches))

    def gated_logits(self, x: Tensor) -> Tensor:
        """Attention logits (N, K), float32, of instances x (N, D)."""
        return gated_logits(x, *self._weights())

    def forward(
        self, x: Tensor, cu_seqlens: Tensor | None = None, mask: Tensor | None = None
    ) -> Pooled:
        """Pools every bag.

        To choose the mask by the logits, call `gated_logits` and `softmax_pool` one by one.

        Args:
            x: (N, D) instances of packed bags.
            cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
            mask: (N, K) bool, True where a branch must not look at an instance.

        Returns:
            pooled (B, K, D), logits (N, K) after masking, lse (B, K).

        Raises:
            ValueError: Shapes do not fit, or the bounds are wrong.
        """
        if mask is None:
            return gated_pool(x, self._weights(), cu_seqlens)
        x = lowered(x)  # once for both
        logits = mask_logits(self.gated_logits(x), mask)
        pooled, lse = softmax_pool(logits, x, cu_seqlens)
        return Pooled(pooled, logits, lse)

    def from_features(
        self,
        features: Tensor,
        reduction: nn.Linear,
        cu_seqlens: Tensor | None = None,
        keep: Keep = "rows",
    ) -> Pooled:
        """Pools the rows relu(reduction(features)) without a second copy of them.

        The reduction runs chunk by chunk together with the pooling. Outputs are the same for
        every `keep`; the peak memory of a training step on the CPU falls from one policy to the
        next, and the last one pays for it with a second run of the reduction.

        Args:
            features: (N, F) features of packed bags.
            reduction: The layer F -> D, with or without bias.
            cu_seqlens: (B + 1,) integer bounds of the bags; None: one bag.
            keep: What is kept of the rows for the backward pass: the `rows`, their `bfloat16`
                rounding (gradients get a relative error of about 2^-9), `nothing`, or a share of
                the rows, such as 0.15.

        Returns:
            pooled (B, K, D), logits (N, K), lse (B, K).

        Raises:
            ValueError: Shapes do not fit, the bounds are wrong, or `keep` is none of these.
        """
        weights = self._weights()
        return pool_from_features(
            features, reduction.weight, reduction.bias, weights, cu_seqlens, keep
        )

    def _weights(self) -> Weights:
        value, gate, score = self.value, self.gate, self.score
        return value.weight, value.bias, gate.weight, gate.bias, score.weight, score.bias
