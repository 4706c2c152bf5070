"""Scale heads: the body's map acts on one feature map of the backbone.

Source: MEDUSA (Aboutalebi et al., arXiv 2110.06063), scale-specific attention, as the official
code computes it: x + x * conv(resize(map)), without an activation.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from zoo.domains.medical.recomputing import may_recompute
from zoo.kernels import BroadcastGate, legacy_resize

Activation = Literal["none", "sigmoid", "tanh"]
Grid = Literal["legacy", "half_pixel"]

TRUNCATED = 0.87962566103423978
"""Standard deviation of a unit normal cut at 2, by which Keras divides."""


class _Gate(torch.autograd.Function):
    """x times (convolved map + 1), keeping x and the one-channel map.

    The gate has as many numbers as x and costs one convolution of a single channel to make again.
    Its gradients are two products of matrices over the 49 neighbours, which on the CPU take a
    fraction of the time of a convolution's backward pass with one input channel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, level: Tensor, weight: Tensor, one: Tensor, step: int
    ) -> Tensor:
        ctx.save_for_backward(x, level, weight, one)
        ctx.step = step
        return _Gate.gate(x, level, weight, one, step).mul_(x[:, :, ::step, ::step])

    @staticmethod
    def gate(x: Tensor, level: Tensor, weight: Tensor, one: Tensor, step: int) -> Tensor:
        kind, pad = x.dtype, weight.shape[-1] // 2
        made = functional.conv2d(level.to(kind), weight.to(kind), one.to(kind), step, pad)
        return made.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, level, weight, one = ctx.saved_tensors
        step, side = ctx.step, weight.shape[-1]
        need_x, need_level, need_weight, need_one = ctx.needs_input_grad[:4]
        dx = dlevel = dweight = done = None
        if need_level or need_weight or need_one:
            inner = (grad * x[:, :, ::step, ::step]).permute(0, 2, 3, 1).flatten(1, 2)  # (B, hw, C)
            done = inner.sum((0, 1)).to(one.dtype) if need_one else None
            window = {"kernel_size": side, "padding": side // 2, "stride": step}
            if need_weight:
                around = functional.unfold(level.to(grad.dtype), **window)  # (B, 49, hw)
                dweight = (around @ inner).sum(0).mT.reshape(weight.shape).to(weight.dtype)
            if need_level:
                spread = inner @ weight.to(grad.dtype).flatten(1)  # (B, hw, 49)
                dlevel = functional.fold(spread.mT, level.shape[2:], **window).to(level.dtype)
        if need_x:
            made = _Gate.gate(x, level, weight, one, step).mul_(grad)
            dx = made if step == 1 else torch.zeros_like(x)
            if step != 1:
                dx[:, :, ::step, ::step] = made
        return dx, dlevel, dweight, done, None


class ScaleHead(BroadcastGate):
    """x * (1 + act(conv(resize(map)))) for one scale of the backbone.

    Args:
        channels: Channels C of the scale.
        activation: Of the convolved map; `none` as released.
        grid: Of the bilinear resize: `legacy` as TensorFlow 1, or `half_pixel`.
        zero: Whether kernel and bias begin at 0, which makes the head the identity; else
            He-normal and 0, as released.
    """

    def __init__(
        self,
        channels: int,
        *,
        activation: Activation = "none",
        grid: Grid = "legacy",
        zero: bool = False,
    ) -> None:
        super().__init__(channels, "map")
        self.activation, self.grid = activation, grid
        bias = self.conv.bias
        assert bias is not None
        nn.init.zeros_(bias)
        if zero:
            nn.init.zeros_(self.conv.weight)
        else:
            deviation = math.sqrt(2 / self.conv.weight[0].numel()) / TRUNCATED
            nn.init.trunc_normal_(
                self.conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation
            )

    def resized(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        """The body's map (B, 1, *size) on the head's grid."""
        if self.grid == "legacy":
            return legacy_resize(level, size)
        return functional.interpolate(level, size, mode="bilinear", align_corners=False)

    def attention(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        """What the features are multiplied by, less one: (B, C, *size).

        Args:
            level: (B, 1, T, U) map of the body.
            size: Height and width of the features.
        """
        made: Tensor = self.conv(self.resized(level, size))
        return made if self.activation == "none" else getattr(torch, self.activation)(made)

    def forward(self, x: Tensor, level: Tensor | None = None, step: int = 1) -> Tensor:
        """Gates features.

        Args:
            x: (B, C, H, W).
            level: (B, 1, T, U) map of the body.
            step: Every how many-th row and column is wanted; what the next stage does not read
                is not computed.

        Returns:
            (B, C, ceil(H / step), ceil(W / step)).

        Raises:
            ValueError: The map is missing or of the wrong shape.
        """
        if level is None or level.dim() != 4 or level.shape[:2] != (x.shape[0], 1):
            got = None if level is None else tuple(level.shape)
            msg = f"a scale head needs a map ({x.shape[0]}, 1, T, U), got {got}"
            raise ValueError(msg)
        size, conv = (x.shape[2], x.shape[3]), self.conv
        if self.activation != "none":
            return _thinned(x * (1 + self.attention(level, size)), step)
        bias = conv.bias
        assert bias is not None
        one, small = bias + 1, self.resized(level, size)
        if may_recompute(x):
            made: Tensor = _Gate.apply(x, small, conv.weight, one, step)
            return made
        return _thinned(x, step) * functional.conv2d(small, conv.weight, one, step, conv.padding)


def _thinned(x: Tensor, step: int) -> Tensor:
    """Every `step`-th row and column."""
    return x if step == 1 else x[:, :, ::step, ::step]
