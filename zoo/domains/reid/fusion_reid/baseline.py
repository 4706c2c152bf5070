"""The baseline beside every trained model: colour histograms of horizontal stripes.

Six stripes over the height of a person are what hand-made features of the field have used since
Gray and Tao, "Viewpoint Invariant Pedestrian Recognition" (ECCV 2008). Nothing is learnt; what
such a histogram ranks well needs no network.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIPES = 6
BINS = (12, 3, 3)  # hue, saturation, value
WIDTH = STRIPES * BINS[0] * BINS[1] * BINS[2]
# Crops are 128 x 64 or thereabouts; more pixels than that are made by resizing.
_ROWS = 128


def hue_saturation_value(images: Tensor) -> Tensor:
    """HSV of RGB images (B, 3, H, W) in [0, 1], each of the three in [0, 1].

    The hexcone model of Smith (SIGGRAPH 1978); grey has hue 0.
    """
    red, green, blue = images.unbind(dim=1)
    value, place = images.max(dim=1)
    spread = value - images.amin(dim=1)
    safe = torch.where(spread > 0, spread, 1.0)
    sectors = torch.stack(
        [(green - blue) / safe, (blue - red) / safe + 2.0, (red - green) / safe + 4.0], dim=1
    )
    hue = sectors.gather(1, place[:, None])[:, 0] / 6.0 % 1.0
    hue = torch.where(spread > 0, hue, 0.0)
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1.0), 0.0)
    return torch.stack([hue, saturation, value], dim=1)


def colour_histogram(images: Tensor) -> Tensor:
    """Square roots of joint HSV histograms of six stripes: (B, 648) of unit length, float32.

    The Euclidean distance of two of them is sqrt(2) times the Hellinger distance of the
    distributions, averaged over stripes.

    Args:
        images: (B, 3, H, W) in [0, 1].
    """
    every = max(1, images.shape[-2] // _ROWS)
    parts = hue_saturation_value(images.float()[..., ::every, ::every].clamp(0.0, 1.0))
    batch, _, height, width = parts.shape
    cells = torch.zeros(parts.shape[0], height, width, dtype=torch.long, device=parts.device)
    for channel, bins in enumerate(BINS):
        cells = cells * bins + (parts[:, channel] * bins).long().clamp(max=bins - 1)
    stripe = torch.arange(height, device=parts.device) * STRIPES // height
    cells += stripe[None, :, None] * (WIDTH // STRIPES)
    flat = cells.reshape(batch, height * width)
    counts = torch.zeros(batch, WIDTH, device=parts.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype))
    return (counts / (height * width)).sqrt()
