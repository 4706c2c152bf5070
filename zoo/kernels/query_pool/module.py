"""The module that owns the projections of few-query attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from zoo.kernels._ragged import mask_logits
from zoo.kernels.gated_attention_pool.op import softmax_pool
from zoo.kernels.official import PROJECTIONS, Names, OfficialModule, layers, read
from zoo.kernels.query_pool.op import attend, has_fast_form
from zoo.kernels.query_pool.reference import (
    absorb_queries,
    check_tokens,
    project_values,
    query_logits,
)


class QueryPooled(NamedTuple):
    """What `QueryPool` returns.

    Attributes:
        features: (B, Q, query_dim) attended values after the output projection.
        logits: (N, H * Q) or (B, N, H * Q) logits after masking; column h * Q + q is head h of
            query q. float32 (float64 for float64 tokens).
        lse: (B, H * Q) log of the sum of exp(logits), without gradient; -inf for an empty bag.
    """

    features: Tensor
    logits: Tensor
    lse: Tensor


class QueryPool(OfficialModule):
    """Multi-head attention of few queries to many tokens, by absorbed projections.

    No keys and no values of all tokens exist at any time. The parameters are the Linear layers
    `query` (query_dim -> I), `key`, `value` (C -> I), `out` (I -> query_dim) and, if asked for,
    the LayerNorm `key_norm` over the tokens that only the keys see. Nothing is folded in them:
    they are those of the attention of ACMIL's branches (whose own LayerNorm follows and is no part
    of this block), of HER-Seg's decoder from tokens to the image, which is Segment Anything's, and
    of FusionReID's Mutual Fusion Unit.

    Args:
        dim: Width C of the tokens.
        heads: Number H of heads.
        inner: Width I of the projections; None: C. H must divide it.
        query_dim: Width of the queries and of the output; None: C.
        bias: Whether `query`, `key` and `value` have biases.
        out_bias: Whether `out` has one.
        key_norm: Whether keys are made of LayerNorm(tokens), values of the tokens themselves.
        norm_eps: Epsilon of that LayerNorm.

    Raises:
        ValueError: A size is below 1, or the heads do not divide `inner`.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {
        "her_seg": Names(PROJECTIONS),
        "acmil": Names(PROJECTIONS, beside=r"layer_norm\.(weight|bias)"),
        "fusion_reid": Names(
            layers({"q": "query", "k": "key", "v": "value", "proj": "out", "norm": "key_norm"}),
            optional=frozenset({"q.bias", "k.bias", "v.bias"}),
        ),
    }

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner: int | None = None,
        query_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        key_norm: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inner = dim if inner is None else inner
        query_dim = dim if query_dim is None else query_dim
        if min(dim, heads, inner, query_dim) < 1 or inner % heads:
            msg = f"heads must divide the projected width, all positive, got {inner=}, {heads=}"
            raise ValueError(msg)
        self.heads = heads
        self.query = nn.Linear(query_dim, inner, bias=bias)
        self.key = nn.Linear(dim, inner, bias=bias)
        self.value = nn.Linear(dim, inner, bias=bias)
        self.out = nn.Linear(inner, query_dim, bias=out_bias)
        self.key_norm = nn.LayerNorm(dim, eps=norm_eps) if key_norm else None

    @staticmethod
    def from_official(
        state: Mapping[str, Tensor], prefix: str = "", system: str | None = None, *, heads: int
    ) -> QueryPool:
        """The block of an official checkpoint, of the size that its tensors have.

        Args:
            state: Official keys, with or without `module.` in front.
            prefix: What stands before the block's keys, such as `sub_attention.0.`.
            system: `acmil`, `her_seg` or `fusion_reid`; None: whichever names are there.
            heads: Number H of heads, which no tensor tells: 8 in ACMIL and HER-Seg, 12 in
                FusionReID.

        Raises:
            ValueError: A key below the prefix is missing or unknown, or a shape does not fit.
        """
        part = read(QueryPool, state, prefix, system)
        inner, query_dim = part.shape("query.weight", 2)
        dim = part.shape("key.weight", 2)[1]
        bias, normed = "query.bias" in part.tensors, "key_norm.weight" in part.tensors
        return part.fill(
            lambda: QueryPool(
                dim, heads, inner=inner, query_dim=query_dim, bias=bias, key_norm=normed
            )
        )

    def absorb(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (..., Q, query_dim) as vectors (..., H * Q, C) and offsets (..., H * Q).

        Concatenate those of several pools over the same tokens to score them in one product.
        Autocast lowers the projection like any layer, but not the vectors: every logit has them.
        """
        key = self.key
        projected = self.query(queries).to(key.weight.dtype)
        return absorb_queries(projected, key.weight, key.bias, self.heads)

    def query_logits(self, queries: Tensor, kv: Tensor) -> Tensor:
        """Attention logits, to be masked if need be and given to `softmax_pool` with `kv`.

        Args:
            queries: (Q, query_dim) shared by all bags, or (B, Q, query_dim) with a batch axis.
            kv: (N, C) packed tokens, or (B, N, C).

        Returns:
            (N, H * Q) or (B, N, H * Q) logits, float32 (float64 for float64 tokens).

        Raises:
            ValueError: Batch axes or widths do not fit.
        """
        tokens: Tensor = kv if self.key_norm is None else self.key_norm(kv)
        return query_logits(*self.absorb(queries), tokens)

    def project(self, pooled: Tensor, mass: Tensor | None = None) -> Tensor:
        """Value and output projection of pooled tokens.

        Args:
            pooled: (..., H * Q, C) weighted sums of tokens from `softmax_pool`.
            mass: (..., H * Q) sums of the weights; None: 1, as after a softmax.

        Returns:
            (..., Q, query_dim).
        """
        values = project_values(pooled, self.value.weight, self.value.bias, self.heads, mass)
        projected: Tensor = self.out(values)
        return projected

    def forward(
        self,
        queries: Tensor,
        kv: Tensor,
        cu_seqlens: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> QueryPooled:
        """Lets each query attend to the tokens of each bag.

        Args:
            queries: (Q, query_dim) shared by all bags, or (B, Q, query_dim) with a batch axis.
            kv: (N, C) packed tokens, or (B, N, C) where all bags are equally long.
            cu_seqlens: (B + 1,) integer bounds of packed bags; None: one bag.
            mask: bool, shaped like the logits; True where a token must not be looked at.

        Returns:
            features (B, Q, query_dim), logits after masking, lse (B, H * Q). An empty bag has
            only the output bias as its features, as an empty sum of values would.

        Raises:
            ValueError: Shapes do not fit, or the bounds are wrong.
        """
        if mask is None and has_fast_form(kv):
            vectors, offsets = self.absorb(queries)
            check_tokens(vectors, kv, cu_seqlens)
            pooled, logits, lse = attend(kv, vectors, offsets, cu_seqlens, self.key_norm)
            return QueryPooled(self.project(pooled, lse != float("-inf")), logits, lse)
        logits = self.query_logits(queries, kv)
        if mask is not None:
            logits = mask_logits(logits, mask)
        pooled, lse = softmax_pool(logits, kv, cu_seqlens)
        return QueryPooled(self.project(pooled, lse != float("-inf")), logits, lse)
