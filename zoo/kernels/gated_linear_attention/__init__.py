"""Gated linear attention with a 2-D rotary embedding: cost linear in the number of tokens."""

from zoo.kernels.gated_linear_attention.module import GatedLinearAttention, is_rotary_table
from zoo.kernels.gated_linear_attention.op import gated_linear_attention
from zoo.kernels.gated_linear_attention.reference import rotary_table, rotate

__all__ = [
    "GatedLinearAttention",
    "gated_linear_attention",
    "is_rotary_table",
    "rotary_table",
    "rotate",
]
