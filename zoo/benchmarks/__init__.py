"""What `zoo bench` runs: one file a block, and the committed table of results.

Everything here runs with torch, triton and numpy alone: `python -m zoo.benchmarks NAME`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BLOCKS = {
    "broadcast_gate": "zoo.benchmarks.broadcast_gate",
    "channel_attention": "zoo.benchmarks.channel_attention",
    "gated_attention_pool": "zoo.benchmarks.gated_attention_pool",
    "gated_linear_attention": "zoo.benchmarks.gated_linear_attention",
    "mutual_attention": "zoo.benchmarks.mutual_attention",
    "query_pool": "zoo.benchmarks.query_pool",
    "rank_counts": "zoo.benchmarks.rank_counts",
}
"""Name -> module with `run(device, quick=False) -> list[Row]`."""


def module(name: str) -> Any:
    """The module of a benchmark, imported when it is asked for.

    Raises:
        KeyError: There is none of that name.
    """
    return import_module(BLOCKS[name])
