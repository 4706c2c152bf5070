"""GL-DMNet: colour and depth in, a map of salience logits out.

Source: "Dual mutual learning network with global-local awareness for RGB-D salient object
detection", arXiv 2501.01648. The authors released neither code nor weights; what the paper leaves
open follows their sister systems or is our choice, and the card lists it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import add

import torch
from torch import Tensor, nn

from zoo.domains.saliency.rgbd_sod.config import RgbdModel
from zoo.domains.saliency.rgbd_sod.decoder import CascadeDecoder
from zoo.domains.saliency.rgbd_sod.encoders import build_encoder
from zoo.domains.saliency.rgbd_sod.fusion import DualMutualLearning
from zoo.domains.saliency.rgbd_sod.pvt import PatchEmbed, make_stages

STRIDE = 32
SMALLEST = 64


class GLDMNet(nn.Module):
    """Two encoders, dual mutual learning and a PVTv2 stage at four scales, cascade decoder.

    Args:
        settings: Sizes and choices; the defaults are the paper's system.

    Raises:
        ValueError: Sizes contradict each other.
    """

    def __init__(self, settings: RgbdModel) -> None:
        super().__init__()
        self.settings = settings
        channels = settings.fusion_channels
        self.encoder_rgb = build_encoder(settings.backbone, settings.width)
        if not settings.share_encoders:
            self.encoder_depth = build_encoder(settings.backbone, settings.width)
        self.fusion = nn.ModuleList(
            DualMutualLearning(
                into,
                out,
                fusion=settings.fusion,
                spatial_gate=settings.spatial_gate,
                reduction=settings.reduction,
                sqrt_eps=settings.sqrt_eps,
                l2_axis=settings.l2_axis,
                l2_scale=settings.l2_scale,
            )
            for into, out in zip(self.encoder_rgb.channels, channels, strict=True)
        )
        widths = settings.embed_dims or channels
        self.transformer: nn.ModuleList | None = None
        if settings.transformer != "none":
            if not settings.patch_embed and widths != channels:
                msg = f"without patch embedding {widths=} must be the fusion channels {channels}"
                raise ValueError(msg)
            embeds = [
                PatchEmbed(c, e) if settings.patch_embed else None
                for c, e in zip(channels, widths, strict=True)
            ]
            stages = make_stages(
                widths, settings.heads, settings.depths, settings.drop_path, embeds
            )
            self.transformer = nn.ModuleList(stages)
        into = channels if self.transformer is None else map(add, channels, widths)
        self.decoder = CascadeDecoder(
            tuple(into), settings.decoder_channels, settings.align_corners
        )

    def forward(
        self, rgb: Tensor, depth: Tensor, return_side: bool = False
    ) -> Tensor | list[Tensor]:
        """Predicts salience.

        Args:
            rgb: (B, 3, H, W), float, normalised by ImageNet's mean and deviation; H and W
                multiples of 32, at least 64.
            depth: (B, 1, H, W) or (B, 3, H, W), float, in [0, 1], near dark.
            return_side: In eval mode, return the maps of all stages as in training.

        Returns:
            In training mode or with `return_side` four maps of logits (B, 1, H, W), the finest
            stage (the prediction) first; otherwise that prediction alone.

        Raises:
            ValueError: Shapes do not fit.
        """
        _check(rgb, depth)
        size = (rgb.shape[2], rgb.shape[3])
        side = self.training or return_side
        fused = [f(*maps) for f, *maps in zip(self.fusion, *self.encode(rgb, depth), strict=True)]
        stages: list[Sequence[Tensor]] = [(x,) for x in fused]
        if self.transformer is not None:
            stages = [(t(x), x) for t, x in zip(self.transformer, fused, strict=True)]
        made: list[Tensor] = self.decoder(stages, size, side)
        return made if side else made[0]

    def encode(self, rgb: Tensor, depth: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The four maps of colour and those of depth; a shared encoder sees both as one batch."""
        depth = depth.expand(-1, 3, -1, -1)
        if self.settings.share_encoders:
            both, batch = self.encoder_rgb(torch.cat([rgb, depth])), rgb.shape[0]
            return [x[:batch] for x in both], [x[batch:] for x in both]
        return self.encoder_rgb(rgb), self.encoder_depth(depth)

    @property
    def encoder_prefixes(self) -> tuple[str, ...]:
        """Module prefixes of the encoders, for phases in which they rest."""
        both = ("encoder_rgb", "encoder_depth")
        return both[:1] if self.settings.share_encoders else both

    @property
    def block_prefixes(self) -> tuple[str, ...]:
        """Module prefixes of PVTv2's own parts, without the new patch embeddings."""
        stages = range(0 if self.transformer is None else len(self.transformer))
        return tuple(chain(*((f"transformer.{i}.blocks", f"transformer.{i}.norm") for i in stages)))


def build_model(settings: RgbdModel) -> GLDMNet:
    """The network with random weights; `convert.load_pretrained` puts ImageNet's in.

    Raises:
        ValueError: Sizes contradict each other.
    """
    return GLDMNet(settings)


def _check(rgb: Tensor, depth: Tensor) -> None:
    fits = rgb.dim() == 4 and rgb.shape[1] == 3 and depth.dim() == 4 and depth.shape[1] in (1, 3)
    if not fits or rgb.shape[0] != depth.shape[0] or rgb.shape[2:] != depth.shape[2:]:
        msg = (
            "rgb (B, 3, H, W) and depth (B, 1, H, W) of one size expected, got "
            f"{tuple(rgb.shape)} and {tuple(depth.shape)}"
        )
        raise ValueError(msg)
    if any(side % STRIDE or side < SMALLEST for side in rgb.shape[2:]):
        msg = (
            f"sides should be multiples of {STRIDE} and at least {SMALLEST} pixels, got "
            f"{rgb.shape[2]} x {rgb.shape[3]}"
        )
        raise ValueError(msg)
