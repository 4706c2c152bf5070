"""Attention between channels: softmax (as in DANet) or moment-normalised (GL-DMNet)."""

from zoo.kernels.channel_attention.module import ChannelAttention
from zoo.kernels.channel_attention.reference import channel_attention, channel_mutual_attention

__all__ = ["ChannelAttention", "channel_attention", "channel_mutual_attention"]
