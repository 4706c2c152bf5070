"""Many tokens attending to few keys, without projecting the many."""

from zoo.kernels.few_key_attention.module import FewKeyAttention
from zoo.kernels.few_key_attention.reference import (
    explicit_attention,
    fold_keys,
    fold_values,
    folded_attention,
)

__all__ = [
    "FewKeyAttention",
    "explicit_attention",
    "fold_keys",
    "fold_values",
    "folded_attention",
]
