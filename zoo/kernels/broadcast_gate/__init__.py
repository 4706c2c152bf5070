"""Gates with fewer numbers than what they scale: one a pixel, or one a channel."""

from zoo.kernels.broadcast_gate.module import BroadcastGate
from zoo.kernels.broadcast_gate.op import legacy_resize
from zoo.kernels.broadcast_gate.reference import broadcast_gate

__all__ = ["BroadcastGate", "broadcast_gate", "legacy_resize"]
