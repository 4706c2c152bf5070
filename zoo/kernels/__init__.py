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
)
from zoo.kernels.broadcast_gate import BroadcastGate, broadcast_gate, legacy_resize
from zoo.kernels.channel_attention import (
    ChannelAttention,
    channel_attention,
    channel_mutual_attention,
)
from zoo.kernels.few_key_attention import FewKeyAttention
from zoo.kernels.gated_attention_pool import (
    GatedAttentionPool,
    gated_logits,
    pool_from_features,
    softmax_pool,
)
from zoo.kernels.gated_linear_attention import (
    GatedLinearAttention,
    gated_linear_attention,
    rotary_table,
    rotate,
)
from zoo.kernels.mutual_attention import (
    MutualAttention,
    signed_sqrt_attention,
    two_stream_attention,
)
from zoo.kernels.query_pool import QueryPool, QueryPooled, project_values, query_logits
from zoo.kernels.rank_counts import RankResult, rank_counts

__all__ = [
    "MASKED",
    "BroadcastGate",
    "ChannelAttention",
    "FewKeyAttention",
    "GatedAttentionPool",
    "GatedLinearAttention",
    "MutualAttention",
    "Pooled",
    "QueryPool",
    "QueryPooled",
    "RankResult",
    "bag_bounds",
    "broadcast_gate",
    "channel_attention",
    "channel_mutual_attention",
    "full_precision",
    "gated_linear_attention",
    "gated_logits",
    "legacy_resize",
    "mask_logits",
    "pool_from_features",
    "project_values",
    "query_logits",
    "rank_counts",
    "rotary_table",
    "rotate",
    "signed_sqrt_attention",
    "softmax_pool",
    "two_stream_attention",
]
