"""What `zoo bench` runs: blocks, tasks and the loop, one file each, and committed results.

Blocks run with torch, triton and numpy alone: `python -m zoo.benchmarks NAME`. Tasks need the
whole zoo and the extras of their field.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BLOCKS = {
    "broadcast_gate": ("zoo.benchmarks.broadcast_gate",),
    "channel_attention": ("zoo.benchmarks.channel_attention",),
    "gated_attention_pool": ("zoo.benchmarks.gated_attention_pool",),
    "gated_linear_attention": ("zoo.benchmarks.gated_linear_attention",),
    "mutual_attention": ("zoo.benchmarks.mutual_attention",),
    "query_pool": ("zoo.benchmarks.query_pool",),
    "rank_counts": ("zoo.benchmarks.rank_counts",),
}
"""Name of a block -> modules with `run(device, quick=False) -> list[Row]`."""

TASKS = {
    "crop_yield": ("zoo.benchmarks.crop_yield",),
    "fusion_reid": ("zoo.benchmarks.fusion_reid",),
    "her_seg": ("zoo.benchmarks.her_seg",),
    "medusa": ("zoo.benchmarks.medusa",),
    "reid-eval": ("zoo.benchmarks.rank_counts",),
    "rgbd_sod": ("zoo.benchmarks.rgbd_sod", "zoo.benchmarks.rgbd_sod_metrics"),
    "wsi_mil": ("zoo.benchmarks.wsi_prepare",),
}
"""The same for what a task costs as a whole."""

LOOP = {
    "download": ("zoo.benchmarks.download",),
    "engine": ("zoo.benchmarks.engine",),
    "scaling": ("zoo.benchmarks.scaling",),
}
"""The same for what is around the models."""

NAMES = BLOCKS | TASKS | LOOP


def run(name: str, device: Any, quick: bool = False) -> list[Any]:
    """Rows of a benchmark; its modules are imported when it is asked for.

    Raises:
        KeyError: There is none of that name.
    """
    return [row for part in NAMES[name] for row in import_module(part).run(device, quick=quick)]


def run_on(name: str, device: str, quick: bool, threads: int) -> list[Any]:
    """`run` in a process of its own, which cannot find functions of `__main__`."""
    import torch

    torch.set_num_threads(threads)
    return run(name, torch.device(device), quick)
