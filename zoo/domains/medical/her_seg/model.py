"""HER-Seg: high-resolution segmentation by a linear-attention encoder and a prompted decoder.

Source: arXiv 2504.06205 ("HER-Seg: Holistically Efficient Segmentation for High-Resolution Medical
Images") and its code (xq141839/HER-Seg, commit 7672f188, class MHRMedSeg). Where they differ the
code is followed, and what the paper draws is an option: `meta_pooling`, `task_queries`.

Letters: B images of S x S pixels, D channels of neck and decoder, h = w = S / 16 cells.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.her_seg.config import SegModel
from zoo.domains.medical.her_seg.decoder import MaskDecoder, TwoWayTransformer
from zoo.domains.medical.her_seg.encoder import Encoder
from zoo.domains.medical.her_seg.layers import LayerNorm2d, as_maps
from zoo.domains.medical.her_seg.prompts import PromptBatch, PromptEncoder
from zoo.kernels.products import linear

__all__ = ["HerSegModel", "Neck", "Normalise", "PromptBatch", "build_model"]

MASKS = 3
"""Mask tokens of the published model, which uses one."""

Scaling = Literal["imagenet", "official_eval"]
MEAN = (0.485, 0.456, 0.406)
SCALES: dict[Scaling, tuple[float, float, float]] = {
    "imagenet": (0.229, 0.224, 0.225),
    "official_eval": MEAN,
}
"""What is divided by. The official evaluation and distillation divide by the mean by mistake."""


class Normalise(nn.Module):
    """Shifts and scales images in [0, 1]; buffers, so that it travels with the weights.

    Args:
        scaling: `imagenet` as trained, `official_eval` as in evaluation and distillation.
    """

    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(self, scaling: Scaling = "imagenet") -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("pixel_scale", torch.tensor(SCALES[scaling]).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to the same."""
        return (image - self.pixel_mean) / self.pixel_scale


class Neck(nn.Sequential):
    """Tokens to the decoder's width: 1 x 1 and 3 x 3 convolution, each with a LayerNorm2d.

    Args:
        dim: Width of the tokens.
        outputs: D.
    """

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(dim, outputs, 1, bias=False),
            LayerNorm2d(outputs),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            LayerNorm2d(outputs),
        )

    def embed(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) to maps (B, D, h, w)."""
        first, norm, second, last = self
        x = linear(tokens, cast(nn.Conv2d, first).weight.flatten(1))
        maps = as_maps(cast(LayerNorm2d, norm).rows(x), grid)
        made: Tensor = last(second(maps))
        return made


class HerSegModel(nn.Module):
    """The whole network.

    The parts can be frozen by their names: `image_encoder`, `neck`, `prompt_encoder`,
    `mask_decoder`.

    Args:
        settings: The configuration's section `model`.
        classes: Number of foreground classes; 1: one map of logits, for a sigmoid; more: one map
            a class after that of the background, for a softmax.
    """

    def __init__(self, settings: SegModel, classes: int = 1) -> None:
        super().__init__()
        if classes < 1:
            msg = f"there is at least one class to segment, got {classes}"
            raise ValueError(msg)
        width = settings.decoder_dim
        self.settings, self.classes = settings, classes
        self.outputs = 1 if classes == 1 else classes + 1
        self.normalise = Normalise(settings.normalisation)
        self.image_encoder = Encoder(
            settings.dim,
            settings.depths,
            settings.heads,
            drop_path=settings.drop_path,
            checkpointing=settings.checkpointing,
        )
        self.neck = Neck(settings.dim, width)
        self.prompt_encoder = PromptEncoder(width)
        transformer = TwoWayTransformer(
            dim=width,
            heads=settings.decoder_heads,
            hidden=settings.decoder_mlp,
            pooling=settings.meta_pooling,
        )
        self.mask_decoder = MaskDecoder(
            transformer, width, max(MASKS, self.outputs), settings.task_queries
        )

    def segment(self, normalised: Tensor, prompts: PromptBatch | None = None) -> Tensor:
        """Low-resolution logits of normalised images; see `low_resolution`."""
        grid = self.image_encoder.grid(normalised)
        embedding = self.neck.embed(self.image_encoder(normalised), grid)
        size = (normalised.shape[2], normalised.shape[3])
        sparse, dense = self.prompt_encoder(prompts, size, grid)
        pe = self.prompt_encoder.dense_pe(grid)
        made: Tensor = self.mask_decoder(embedding, pe, sparse, dense, self.outputs)
        return made

    def low_resolution(self, image: Tensor, prompts: PromptBatch | None = None) -> Tensor:
        """Logits at a quarter of the image's sides, before they are enlarged.

        Args:
            image: (B, 3, S, S) in [0, 1].
            prompts: None: there are none, as published.

        Returns:
            (B, K, S / 4, S / 4), K = 1 or classes + 1 with the background first.

        Raises:
            ValueError: The image is not made of patches of 16 pixels, or prompts do not fit.
        """
        return self.segment(self.normalise(image), prompts)

    def forward(
        self, image: Tensor, prompts: PromptBatch | None = None, *, small: bool = False
    ) -> Tensor:
        """Logits of every pixel.

        Args:
            image: (B, 3, S, S) in [0, 1]; any S that is a multiple of 16.
            prompts: None: there are none, as published.
            small: Give those of `low_resolution`, for `enlarged.low_resolution_loss`. A method of
                its own would pass by the wrappers that precision and several processes need.

        Returns:
            (B, K, S, S), K = 1 or classes + 1 with the background first.

        Raises:
            ValueError: The image is not made of patches of 16 pixels, or prompts do not fit.
        """
        low = self.low_resolution(image, prompts)
        if small:
            return low
        return functional.interpolate(
            low, (image.shape[2], image.shape[3]), mode="bilinear", align_corners=False
        )


def build_model(settings: SegModel, classes: int = 1) -> HerSegModel:
    """The network of the settings with fresh weights; no file is read.

    Args:
        settings: The configuration's section `model`.
        classes: Number of foreground classes.

    Raises:
        ValueError: There is no class.
    """
    return HerSegModel(settings, classes)
