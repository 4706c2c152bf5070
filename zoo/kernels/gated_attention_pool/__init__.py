"""Gated attention pooling: softmax over instances of a gated score, weighted mean of them."""

from zoo.kernels.gated_attention_pool.module import GatedAttentionPool
from zoo.kernels.gated_attention_pool.op import pool_from_features, softmax_pool
from zoo.kernels.gated_attention_pool.reference import gated_attention_pool, gated_logits

__all__ = [
    "GatedAttentionPool",
    "gated_attention_pool",
    "gated_logits",
    "pool_from_features",
    "softmax_pool",
]
