"""Few queries attending to many tokens, without ever forming the keys and values."""

from zoo.kernels.query_pool.module import QueryPool, QueryPooled
from zoo.kernels.query_pool.reference import (
    absorb_queries,
    explicit_attention,
    project_values,
    query_logits,
)

__all__ = [
    "QueryPool",
    "QueryPooled",
    "absorb_queries",
    "explicit_attention",
    "project_values",
    "query_logits",
]
