"""Dense attention of two streams at once: moment-normalised (GL-DMNet) or softmax."""

from zoo.kernels.mutual_attention.module import MutualAttention
from zoo.kernels.mutual_attention.op import signed_sqrt_attention, two_stream_attention

__all__ = ["MutualAttention", "signed_sqrt_attention", "two_stream_attention"]
