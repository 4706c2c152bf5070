"""The global attention body: a U-Net that draws one map for all scales of the backbone.

Source: the lung segmenter of imlab-uiip/lung-segmentation-2d (MIT), which MEDUSA (Aboutalebi et
al., arXiv 2110.06063) takes as its body; layer numbers are those of the official code.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from zoo.domains.medical.medusa.recompute import convolve, max_pool
from zoo.domains.medical.medusa.upsampling import upsampled_conv

WIDTH = 32
MULTIPLE = 16
"""Sides of the body's input are multiples of it: four halvings."""

LAYERS: dict[int, tuple[int, int]] = {
    **{1: (0, 1), 2: (1, 1), 4: (1, 2), 5: (2, 2), 7: (2, 2), 8: (2, 2), 10: (2, 4), 11: (4, 4)},
    **{13: (4, 8), 15: (8, 8), 16: (8, 8), 18: (12, 8), 20: (8, 8), 21: (8, 8), 23: (10, 8)},
    **{25: (8, 4), 26: (4, 4), 28: (6, 4), 30: (4, 2), 31: (2, 2), 33: (3, 2), 34: (2, 0)},
}
"""Official layer number -> channels in and out as multiples of the width; 0 is a single channel."""

ENCODER = ((1, 2), (4, 5), (7, 8), (10, 11))
DECODER = ((15, 16, 18), (20, 21, 23), (25, 26, 28), (30, 31, 33))
"""Layers of each level; the last of a decoder level reads the skip and the upsampled path."""


class Body(nn.Module):
    """U-Net from a normalised radiograph to one attention map.

    Without normalisation or dropout, so training and evaluation are the same function.

    Args:
        width: Channels of the first level; 32 as released.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        for number, (wide_in, wide_out) in LAYERS.items():
            conv = nn.Conv2d(max(1, wide_in * width), max(1, wide_out * width), 3, padding=1)
            self.add_module(f"conv{number}", conv)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform kernels and biases of 0, as Keras begins."""
        for number in LAYERS:
            nn.init.xavier_uniform_(self._layer(number).weight)
            nn.init.zeros_(self._bias(number))

    def _layer(self, number: int) -> nn.Conv2d:
        layer = self.get_submodule(f"conv{number}")
        return cast("nn.Conv2d", layer)

    def _bias(self, number: int) -> Tensor:
        bias = self._layer(number).bias
        assert bias is not None
        return bias

    def _conv(self, number: int, x: Tensor) -> Tensor:
        return convolve(x, self._layer(number).weight, self._bias(number), (1, 1)).relu_()

    def _joined(self, number: int, skip: Tensor, x: Tensor) -> Tensor:
        """The layer on skip and x side by side, without laying them side by side."""
        weight, of_skip = self._layer(number).weight, skip.shape[1]
        y = convolve(skip, weight[:, :of_skip], self._bias(number), (1, 1))
        return y.add_(convolve(x, weight[:, of_skip:], None, (1, 1))).relu_()

    def logits(self, semantic: Tensor) -> Tensor:
        """The map before the sigmoid.

        Args:
            semantic: (B, 1, T, U) radiographs of zero mean and unit deviation; sides are
                multiples of 16.

        Returns:
            (B, 1, T, U).

        Raises:
            ValueError: The shape is another.
        """
        if semantic.dim() != 4 or semantic.shape[1] != 1 or min(semantic.shape[2:]) < MULTIPLE:
            msg = f"the body's input should be (B, 1, T, U), got {tuple(semantic.shape)}"
            raise ValueError(msg)
        if any(side % MULTIPLE for side in semantic.shape[2:]):
            msg = (
                f"sides of the body's input are multiples of {MULTIPLE}, got "
                f"{tuple(semantic.shape[2:])}"
            )
            raise ValueError(msg)
        x = semantic.contiguous(memory_format=torch.channels_last)
        skips = []
        for first, second in ENCODER:
            x = self._conv(second, self._conv(first, x))
            skips.append(x)
            x = max_pool(x, 2, 2)
        x = self._conv(13, x)
        for (first, second, third), skip in zip(DECODER, reversed(skips), strict=True):
            x = upsampled_conv(x, self._layer(first).weight, self._bias(first)).relu_()
            x = self._joined(third, skip, self._conv(second, x))
        return convolve(x, self._layer(34).weight, self._bias(34), (1, 1))

    def forward(self, semantic: Tensor) -> Tensor:
        """The attention map (B, 1, T, U) in (0, 1), at least in float32; see `logits`."""
        found = self.logits(semantic)
        return found.to(torch.promote_types(found.dtype, torch.float32)).sigmoid()
