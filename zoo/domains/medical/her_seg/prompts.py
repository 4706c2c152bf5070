"""Prompts and the encoder of Segment Anything that turns them into tokens.

Source: arXiv 2304.02643, section 3 and appendix A, and its code (Apache-2.0). HER-Seg as published
gives no prompts: then there are no prompt tokens, and every cell of the grid gets one learnt
vector. Names of parameters are the official ones, so Segment Anything's own weights fit.

Letters: B images, D channels, h x w cells of the grid, N = h w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi
from typing import cast

import torch
from torch import Tensor, nn

from zoo.domains.medical.her_seg.layers import LayerNorm2d

CORNERS = (2, 3)
"""Which of the point embeddings the corners of a box get."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of a batch, in pixels of the model's square: x to the right, y down.

    Attributes:
        points: (B, N, 2) x and y, or None.
        labels: (B, N) integers: 1 inside, 0 outside, -1 padding; None without points.
        boxes: (B, M, 4) left, top, right, bottom, or None; a row of NaN is padding.
        mask: (B, 1, H / 4, W / 4) rough logits or probabilities of the mask, or None.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Checks shapes.

        Raises:
            ValueError: They do not fit together.
        """
        points, labels, boxes, mask = self.points, self.labels, self.boxes, self.mask
        if (points is None) != (labels is None):
            msg = "points come with labels (1 inside, 0 outside, -1 padding)"
            raise ValueError(msg)
        if points is not None and labels is not None:
            wrong = points.dim() != 3 or points.shape[-1] != 2 or labels.shape != points.shape[:2]
            if wrong:
                msg = (
                    "points should be (B, N, 2) and labels (B, N), got "
                    f"{tuple(points.shape)} and {tuple(labels.shape)}"
                )
                raise ValueError(msg)
        if boxes is not None and (boxes.dim() != 3 or boxes.shape[-1] != 4):
            msg = f"boxes should be (B, M, 4), got {tuple(boxes.shape)}"
            raise ValueError(msg)
        if mask is not None and (mask.dim() != 4 or mask.shape[1] != 1):
            msg = f"mask prompts should be (B, 1, H, W), got {tuple(mask.shape)}"
            raise ValueError(msg)
        sizes = {len(part) for part in (points, boxes, mask) if part is not None}
        if len(sizes) > 1:
            msg = f"points, boxes and masks of one batch expected, got sizes {sorted(sizes)}"
            raise ValueError(msg)

    def to(self, device: torch.device | str) -> PromptBatch:
        """The same on a device."""
        parts = {name: getattr(self, name) for name in ("points", "labels", "boxes", "mask")}
        moved = {name: None if x is None else x.to(device) for name, x in parts.items()}
        return replace(self, **moved)


class PositionEncoding(nn.Module):
    """Random Fourier features of places in the unit square.

    Args:
        features: Number of frequencies, half of D.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        # Drawn once and never trained, so it has to come with the weights.
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))
        self._dense: tuple[Tensor, int, tuple[int, int], Tensor] | None = None

    def forward(self, places: Tensor) -> Tensor:
        """(..., 2) x and y in [0, 1] to (..., D): sine, then cosine of 2 pi (2 p - 1) G."""
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * pi * ((2 * places.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _cells(self, grid: tuple[int, int]) -> Tensor:
        matrix = self.positional_encoding_gaussian_matrix
        y, x = (
            (torch.arange(count, device=matrix.device, dtype=matrix.dtype) + 0.5) / count
            for count in grid
        )
        places = torch.stack([x.expand(grid), y.unsqueeze(1).expand(grid)], dim=-1)
        made: Tensor = self(places.flatten(0, 1))
        return made

    def dense(self, grid: tuple[int, int]) -> Tensor:
        """(N, D) encoding of the middles of all cells, kept for the next call."""
        if torch.compiler.is_compiling():
            return self._cells(grid)
        matrix = self.positional_encoding_gaussian_matrix
        # Loading weights writes into the matrix, moving it makes another one.
        version = 0 if matrix.is_inference() else matrix._version
        kept = self._dense
        if kept is None or kept[0] is not matrix or kept[1:3] != (version, grid):
            with torch.inference_mode(False), torch.no_grad():
                kept = self._dense = (matrix, version, grid, self._cells(grid))
        return kept[3]


class PromptEncoder(nn.Module):
    """Points, boxes and rough masks as tokens and as a map.

    Args:
        dim: D, a multiple of 4.
        mask_channels: Width in front of the last convolution of masks.
    """

    def __init__(self, dim: int = 256, mask_channels: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.pe_layer = PositionEncoding(dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        quarter = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, quarter, 2, stride=2),
            LayerNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_pe(self, grid: tuple[int, int]) -> Tensor:
        """(1, D, h, w) encoding of the cells of a grid."""
        return torch.unflatten(self.pe_layer.dense(grid).T, 1, grid).unsqueeze(0)

    def forward(
        self, prompts: PromptBatch | None, image_size: tuple[int, int], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Tokens and map of prompts.

        Args:
            prompts: None: there are none.
            image_size: H and W of the square that the prompts are in, in pixels.
            grid: h and w.

        Returns:
            Tokens (B, T, D), points before boxes, and a map (B, D, h, w) to be added to the
            image's. Without prompts (1, 0, D) and (1, D, h, w), for any batch.

        Raises:
            ValueError: The mask is not four cells a cell.
        """
        prompts = PromptBatch() if prompts is None else prompts
        parts = []
        if prompts.points is not None and prompts.labels is not None:
            parts.append(
                self._points(prompts.points, prompts.labels, image_size, prompts.boxes is None)
            )
        if prompts.boxes is not None:
            parts.append(self._boxes(prompts.boxes, image_size))
        weight = self.no_mask_embed.weight
        given = [x for x in (prompts.points, prompts.boxes, prompts.mask) if x is not None]
        batch = given[0].shape[0] if given else 1
        sparse = torch.cat(parts, dim=1) if parts else weight.new_zeros((batch, 0, self.dim))
        if prompts.mask is None:
            # A copy: a view of a parameter asks for a gradient even where none is recorded.
            return sparse, weight.clone().view(1, -1, 1, 1).expand(batch, -1, *grid)
        if prompts.mask.shape[2:] != (4 * grid[0], 4 * grid[1]):
            msg = (
                f"mask prompts should be {4 * grid[0]} x {4 * grid[1]} here, a quarter of the "
                f"image's sides, got {prompts.mask.shape[2]} x {prompts.mask.shape[3]}"
            )
            raise ValueError(msg)
        return sparse, self.mask_downscaling(prompts.mask.to(weight.dtype))

    def _encode(self, places: Tensor, image_size: tuple[int, int]) -> Tensor:
        """(..., 2) pixels, whose middles are half a pixel further, to (..., D)."""
        height, width = image_size
        size = torch.tensor([width, height], device=places.device, dtype=places.dtype)
        made: Tensor = self.pe_layer((places + 0.5) / size)
        return made

    def _table(self, *which: int) -> Tensor:
        """(len(which), D) point embeddings."""
        return torch.cat([cast(nn.Embedding, self.point_embeddings[i]).weight for i in which])

    def _points(
        self, points: Tensor, labels: Tensor, image_size: tuple[int, int], pad: bool
    ) -> Tensor:
        if pad:  # Segment Anything does so where no box follows
            points = torch.cat([points, points.new_zeros((len(points), 1, 2))], dim=1)
            labels = torch.cat([labels, -labels.new_ones((len(labels), 1))], dim=1)
        places = self._encode(points, image_size)
        padding = (labels < 0).unsqueeze(-1)
        kinds = self._table(0, 1)[labels.clamp(0, 1).long()]
        return torch.where(padding, self.not_a_point_embed.weight, places + kinds)

    def _boxes(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        padding = boxes.isnan().any(dim=-1, keepdim=True)  # (B, M, 1)
        corners = torch.unflatten(boxes.nan_to_num(0.0), -1, (2, 2))  # (B, M, 2, 2)
        tokens = self._encode(corners, image_size) + self._table(*CORNERS)
        tokens = torch.where(padding.unsqueeze(-1), self.not_a_point_embed.weight, tokens)
        return tokens.flatten(1, 2)
