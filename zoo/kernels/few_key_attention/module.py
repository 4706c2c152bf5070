"""The module that owns the projections of attention to few keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from zoo.kernels.few_key_attention.reference import (
    explicit_attention,
    fold_keys,
    fold_values,
    folded_attention,
)
from zoo.kernels.official import PROJECTIONS, Names, OfficialModule, read

FEW = 16
"""Up to so many keys the folded form may run; beyond, the plain one does."""


class FewKeyAttention(OfficialModule):
    """Multi-head attention of many tokens to few keys, by folded projections.

    Neither queries nor merged heads of all tokens exist where the keys are few enough. The
    parameters are the Linear layers `query` (C -> I), `key`, `value` (key_dim -> I) and `out`
    (I -> C): those of HER-Seg's decoder from the image to tokens, which is Segment Anything's.

    Args:
        dim: Width C of the tokens and of the output.
        heads: Number H of heads.
        inner: Width I of the projections; None: C. H must divide it.
        key_dim: Width of keys and values; None: C.
        bias: Whether the four layers have biases.

    Raises:
        ValueError: A size is below 1, or the heads do not divide `inner`.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {"her_seg": Names(PROJECTIONS)}

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        inner: int | None = None,
        key_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        inner = dim if inner is None else inner
        key_dim = dim if key_dim is None else key_dim
        if min(dim, heads, inner, key_dim) < 1 or inner % heads:
            msg = f"heads must divide the projected width, all positive, got {inner=}, {heads=}"
            raise ValueError(msg)
        self.heads = heads
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(key_dim, inner, bias=bias)
        self.value = nn.Linear(key_dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)

    @staticmethod
    def from_official(
        state: Mapping[str, Tensor], prefix: str = "", system: str | None = None, *, heads: int
    ) -> FewKeyAttention:
        """The block of an official checkpoint, of the size that its tensors have.

        Args:
            state: Official keys, with or without `module.` in front.
            prefix: What stands before the block's keys, such as
                `mask_decoder.transformer.layers.0.cross_attn_image_to_token.`.
            system: `her_seg` or None.
            heads: Number H of heads, which no tensor tells: 8 in HER-Seg.

        Raises:
            ValueError: A key below the prefix is missing or unknown, or a shape does not fit.
        """
        part = read(FewKeyAttention, state, prefix, system)
        inner, dim = part.shape("query.weight", 2)
        key_dim = part.shape("key.weight", 2)[1]
        return part.fill(lambda: FewKeyAttention(dim, heads, inner=inner, key_dim=key_dim))

    def folds(self, keys: int) -> bool:
        """Whether so many keys are few: the folded form does less work than the plain one."""
        return keys <= FEW and keys * self.heads < self.query.out_features

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor | None = None) -> Tensor:
        """Lets every token attend to the keys.

        Args:
            tokens: (N, C) or (B, N, C).
            keys: (T, key_dim) shared by all, or (B, T, key_dim).
            values: Shaped like the keys; None: the keys.

        Returns:
            Shaped like the tokens.

        Raises:
            ValueError: Batch axes, widths or lengths do not fit.
        """
        values = keys if values is None else values
        self._check(tokens, keys, values)
        key, value = self.key(keys), self.value(values)
        query = (self.query.weight, self.query.bias)
        if not self.folds(keys.shape[-2]):
            merged: Tensor = self.out(explicit_attention(tokens, key, value, query, self.heads))
            return merged
        vectors, offsets = fold_keys(key, query, self.heads)
        folded = fold_values(value, self.out.weight, self.heads)
        attended = folded_attention(tokens, vectors, offsets, folded, self.heads)
        return attended if self.out.bias is None else attended + self.out.bias.to(attended.dtype)

    def _check(self, tokens: Tensor, keys: Tensor, values: Tensor) -> None:
        width, key_width = self.query.in_features, self.key.in_features
        fits = tokens.dim() in (2, 3) and tokens.shape[-1] == width
        fits = fits and keys.shape == values.shape and keys.shape[-1] == key_width
        fits = fits and keys.dim() >= 2 and keys.shape[-2] > 0
        fits = fits and (keys.dim() == 2 or keys.shape[:-2] == tokens.shape[:-2])
        if not fits:
            msg = (
                f"tokens (N, {width}) or (B, N, {width}) attend to one or more keys and values "
                f"(T, {key_width}) or (B, T, {key_width}); got {tuple(tokens.shape)}, "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
            raise ValueError(msg)
