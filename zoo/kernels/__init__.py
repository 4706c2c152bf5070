"""Attention blocks that several systems share, usable with torch alone.

Each block is a folder: `reference.py` holds the definition in plain PyTorch, `module.py` the
module that owns the parameters. Faster forms keep the names, signatures and state_dict keys.
"""

if not __name__.startswith("zoo."):
    # A second copy of a package under another name registers its ops twice and silently wins.
    msg = f"'{__name__}' is a door to browse the code by; import 'zoo.kernels' instead"
    raise ImportError(msg)

from zoo.kernels._ragged import (
    MASKED,
    Pooled,
    bag_bounds,
    full_precision,
    mask_logits,
    softmax_pool,
)
from zoo.kernels.gated_attention_pool import GatedAttentionPool, gated_logits
from zoo.kernels.query_pool import QueryPool, QueryPooled, project_values, query_logits

__all__ = [
    "MASKED",
    "GatedAttentionPool",
    "Pooled",
    "QueryPool",
    "QueryPooled",
    "bag_bounds",
    "full_precision",
    "gated_logits",
    "mask_logits",
    "project_values",
    "query_logits",
    "softmax_pool",
]
