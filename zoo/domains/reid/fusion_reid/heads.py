"""Pooling of maps, and the heads that identities are told from in training.

Sources: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation" (arXiv
1711.02512) for the pooling; Luo et al., "Bag of tricks" (arXiv 1903.07071) for the neck.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from zoo.kernels import full_precision

FLOOR = 1e-6


class GeM(nn.Module):
    """Generalised mean over a map, y_c = (mean of max(x_c, 1e-6)^p)^(1/p), with a learnt p.

    Computed in float32: in float16 the floor's third power would be 0 and the root's gradient
    infinite.

    Args:
        p: First exponent, shared by all channels.
        floor: Smaller values count as this and take no gradient.
    """

    def __init__(self, p: float = 3.0, floor: float = FLOOR) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), float(p)))
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        """Pools a map (B, C, H, W) to (B, C), in the dtype of `x` (float32 under autocast)."""
        with full_precision(x):
            mean = self.powers(x).mean((2, 3))
            made = mean.pow(1 / self.p.to(mean.dtype))
        return made if torch.is_autocast_enabled(x.device.type) else made.to(x.dtype)

    def powers(self, x: Tensor) -> Tensor:
        """(B, C, H, W) values that the mean is taken of, float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=self.floor)
        eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if eager and x.device.type == "cpu":
            # A power by a plain number takes half the time of one by a tensor.
            return x.pow(float(self.p))
        return x.pow(self.p.to(x.dtype))

    def shares(self, x: Tensor) -> Tensor:
        """What each cell of a map (B, C, H, W) gives to the pooled vector: (B, H, W), sum 1."""
        cells = self.powers(x)
        cells = (cells / cells.sum((2, 3), keepdim=True)).mean(1)
        return cells / cells.sum((1, 2), keepdim=True)


class Head(nn.Module):
    """Batch norm neck without a learnt shift, then a classifier without bias.

    Args:
        width: Of the feature.
        classes: Number of training identities.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor) -> Tensor:
        """Scores (B, classes) of features (B, width) before the neck."""
        return cast(Tensor, self.classifier(self.neck(feature)))
