"""mAP, CMC and mINP of a retrieval by counting what lies nearer, without sorting the gallery."""

from zoo.kernels.rank_counts.op import rank_counts
from zoo.kernels.rank_counts.reference import RankResult

__all__ = ["RankResult", "rank_counts"]
