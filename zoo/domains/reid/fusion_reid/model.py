"""FusionReID: an image of a person in, an embedding out; in training six heads.

Source: "Unity is strength: unifying convolutional and transformeral features for better person
re-identification" (arXiv 2412.17239) and its published code, whose differences are told in the
card. A branch can be left out, which gives the baselines: ResNet alone, transformer alone, OSNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.domains.reid.fusion_reid import t2t, vit
from zoo.domains.reid.fusion_reid.config import ReidModel
from zoo.domains.reid.fusion_reid.fusion import LocalRefinement, Transmission
from zoo.domains.reid.fusion_reid.heads import GeM, Head
from zoo.domains.reid.fusion_reid.resnet import DEPTHS, ResNet
from zoo.domains.reid.fusion_reid.vit import TokenEncoder, Variant, VisionTransformer

HEADS = (
    "cnn",
    "transformer",
    "refined_cnn",
    "refined_transformer",
    "fused_cnn",
    "fused_transformer",
)
"""Heads in the order of the embedding's parts."""
CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation that images are normalised by; also in front of ImageNet's weights."""


class Heads(NamedTuple):
    """What a training step is given.

    Attributes:
        scores: (B, classes) of each head.
        features: (B, width) of each head, before its neck.
    """

    scores: list[Tensor]
    features: list[Tensor]


class Seen(NamedTuple):
    """An embedding, and where the network looked.

    Attributes:
        embedding: (B, width).
        cnn_map: (B, h, w) share of each cell of the convolutional map, sum 1; None without it.
        transformer_map: (B, h, w) share of each patch, sum 1; None without a transformer.
    """

    embedding: Tensor
    cnn_map: Tensor | None
    transformer_map: Tensor | None


class FusionReID(nn.Module):
    """Two branches, refinement and transmission between them, and a head for each feature.

    Args:
        cnn: Gives a map (B, cnn.channels, h, w) of an image; None: no such branch.
        transformer: Gives class and patch tokens; None: no such branch.
        classes: Number of training identities.
        size: Height and width of images in pixels; other sizes are refused.
        mix: Channels D both branches are brought to.
        depth: Transmission layers; 0 leaves their two heads out.
        sharing: Which units both branches share, see `fusion.TransmissionLayer`.
        mode: Order of encoding and fusion, see there.
        kernel: Depthwise kernel of the refinement units.
        depthwise: Whether they have a depthwise convolution.
        after_neck: Whether the embedding is taken behind the necks.
        feature: 0 joins all heads' features, k takes the k-th head of `HEADS`.
        pool: Pooling of the convolutional map; None: GeM.
        normalise: Mean and deviation by channel.

    Raises:
        ValueError: There is no branch, or no such head.
    """

    def __init__(
        self,
        cnn: nn.Module | None,
        transformer: TokenEncoder | None,
        classes: int,
        size: tuple[int, int],
        *,
        mix: int = 768,
        depth: int = 2,
        sharing: int = 0,
        mode: int = 0,
        kernel: int = 1,
        depthwise: bool = True,
        after_neck: bool = False,
        feature: int = 0,
        pool: nn.Module | None = None,
        normalise: tuple[Sequence[float], Sequence[float]] = CENTRED,
    ) -> None:
        super().__init__()
        self.size, self.after_neck = tuple(size), after_neck
        self.normalise = normalise
        widths: dict[str, int] = {}
        if cnn is not None:
            self.cnn, self.pool_cnn = cnn, GeM() if pool is None else pool
            widths["cnn"] = int(cast(int, cnn.channels))
        if transformer is not None:
            self.transformer = transformer
            widths["transformer"] = transformer.dim
        if len(widths) == 2:
            given = (mix, kernel, depthwise)
            self.refine_cnn = LocalRefinement(widths["cnn"], *given)
            self.refine_transformer = LocalRefinement(widths["transformer"], *given)
            self.pool_refined_cnn, self.pool_refined_transformer = GeM(), GeM()
            self.transmission = Transmission(mix, depth, sharing, mode)
            widths |= dict.fromkeys(HEADS[2 : 6 if depth else 4], mix)
        if not widths:
            msg = "a model needs at least one branch"
            raise ValueError(msg)
        self.heads = nn.ModuleDict({name: Head(w, classes) for name, w in widths.items()})
        self.chosen = self._choose(feature)
        self.width = sum(widths[name] for name in self.chosen)
        """Width of the embedding."""

    def _choose(self, feature: int) -> tuple[str, ...]:
        there = tuple(self.heads)
        if feature == 0:
            return there
        if HEADS[feature - 1] not in there:
            told = ", ".join(f"{HEADS.index(name) + 1} {name}" for name in there)
            msg = f"feature={feature} ({HEADS[feature - 1]}) is none of this model's: 0 all, {told}"
            raise ValueError(msg)
        return (HEADS[feature - 1],)

    def forward(
        self,
        image: Tensor,
        camera: Tensor | None = None,
        view: Tensor | None = None,
        maps: bool = False,
    ) -> Tensor | Heads | Seen:
        """Heads in training mode, the embedding (B, width) in eval mode.

        Args:
            image: (B, 3, H, W) float in [0, 1], RGB, of the size the model was built for.
            camera: (B,) int64 index of the camera; -1 or None where it is unknown, which takes
                the mean of all cameras' embeddings.
            view: (B,) int64 likewise.
            maps: In eval mode, also where it looked: what each branch's query read of the other
                branch's tokens in the last transmission layer (of its own where that only
                encodes). Without transmission, what was pooled of the map, and the last
                block's attention of the class token.

        Returns:
            `Heads`, the embedding (float, not normalised), or `Seen`.

        Raises:
            ValueError: The image has another size, a camera is beyond the embeddings, or there
                is a single image in training mode.
        """
        self._check(image)
        mean, deviation = (image.new_tensor(v).view(1, 3, 1, 1) for v in self.normalise)
        x = (image - mean) / deviation
        features, seen = self.features(x, camera, view, maps and not self.training)
        if self.training:
            scores = [self.heads[name](features[name]) for name in self.heads]
            return Heads(scores, [features[name] for name in self.heads])
        parts = [features[name] for name in self.chosen]
        if self.after_neck:
            parts = [
                cast(Head, self.heads[name]).neck(part)
                for name, part in zip(self.chosen, parts, strict=True)
            ]
        embedding = torch.cat([part.float() for part in parts], dim=1)
        return Seen(embedding, *seen) if maps else embedding

    def features(
        self,
        x: Tensor,
        camera: Tensor | None = None,
        view: Tensor | None = None,
        maps: bool = False,
    ) -> tuple[dict[str, Tensor], tuple[Tensor | None, Tensor | None]]:
        """Features (B, width) by the name of their head, and both maps if asked for.

        Args:
            x: (B, 3, H, W), normalised.
            camera: As in `forward`.
            view: As in `forward`.
            maps: Whether to tell where it looked.
        """
        made: dict[str, Tensor] = {}
        cells, tokens = None, None
        told: list[Tensor | None] = [None, None]
        both = "refined_cnn" in self.heads
        read = maps and "fused_cnn" in self.heads
        if "cnn" in self.heads:
            cells = self.cnn(x)
            made["cnn"] = self.pool_cnn(cells)
            if maps and not read:
                told[0] = cast(GeM, self.pool_cnn).shares(cells)
        if "transformer" in self.heads:
            grid = self.transformer.grid
            if maps and not read:
                tokens, shares = self.transformer.attentive(x, camera, view)
                told[1] = torch.unflatten(shares, 1, grid)
            else:
                tokens = self.transformer(x, camera, view)
            made["transformer"] = tokens[:, 0]
        if both and cells is not None and tokens is not None:
            again = torch.unflatten(tokens[:, 1:].transpose(1, 2), 2, self.transformer.grid)
            refined = self.refine_cnn(cells), self.refine_transformer(again)
            made["refined_cnn"] = self.pool_refined_cnn(refined[0])
            made["refined_transformer"] = self.pool_refined_transformer(refined[1])
            sequences = tuple(x.flatten(2).transpose(1, 2) for x in refined)
            queries = made["refined_cnn"], made["refined_transformer"]
            passed = self.transmission(queries, sequences, read)
            if "fused_cnn" in self.heads:
                made |= {"fused_cnn": passed.cnn, "fused_transformer": passed.transformer}
            if read:
                sizes = [map_.shape[2:] for map_ in refined]
                shares_of = zip(passed[2:], sizes, strict=True)
                told = [torch.unflatten(shares, 1, size) for shares, size in shares_of]
        return made, (told[0], told[1])

    def _check(self, image: Tensor) -> None:
        if image.dim() != 4 or image.shape[1] != 3 or tuple(image.shape[2:]) != self.size:
            msg = (
                f"images (B, 3, {self.size[0]}, {self.size[1]}) expected, got "
                f"{tuple(image.shape)}; resize them, or build the model for their size"
            )
            raise ValueError(msg)
        if self.training and image.shape[0] < 2:
            msg = "training takes at least two images at once: batch norm needs a spread"
            raise ValueError(msg)


def build_model(settings: ReidModel, classes: int, cameras: int, views: int = 1) -> FusionReID:
    """The configured network with random weights.

    Args:
        settings: The configuration's section `model`.
        classes: Number of training identities.
        cameras: Number of cameras to embed.
        views: Number of views to embed.

    Raises:
        ValueError: Sizes contradict each other.
        ConfigError: OSNet is asked for and torchreid is not installed.
    """
    cnn: nn.Module | None = None
    pool: nn.Module | None = None
    normalise = CENTRED
    if settings.cnn.startswith("osnet"):
        from zoo.domains.reid.fusion_reid import osnet  # torchreid is an extra, and slow to import

        cnn, pool = osnet.build(settings.cnn)
        normalise = osnet.IMAGENET
    elif settings.cnn != "none":
        width = settings.width if settings.cnn == "small" else 64
        cnn = ResNet(DEPTHS[settings.cnn], width, settings.last_stride)
    return FusionReID(
        cnn,
        build_transformer(settings, cameras, views),
        classes,
        settings.input_size,
        mix=settings.mix,
        depth=settings.depth,
        sharing=settings.sharing,
        mode=settings.htm_mode,
        kernel=settings.lru_kernel,
        depthwise=settings.lru_depthwise,
        after_neck=settings.neck_feature == "after",
        feature=settings.feature,
        pool=pool,
        normalise=normalise,
    )


def build_transformer(settings: ReidModel, cameras: int, views: int = 1) -> TokenEncoder | None:
    """The transformer branch alone; None where there is none."""
    kind = settings.transformer
    if kind == "none":
        return None
    more: dict[str, Any] = {
        "drop_path": settings.drop_path,
        "cameras": cameras if "camera" in settings.camera else 0,
        "views": views if "view" in settings.camera else 0,
        "side_scale": settings.camera_scale,
    }
    if kind in t2t.VARIANTS:
        return t2t.T2TViT(t2t.VARIANTS[kind], settings.input_size, **more)
    small = Variant(settings.dim, settings.blocks, 6)
    variant = small if kind == "small" else vit.VARIANTS[kind]
    return VisionTransformer(variant, settings.input_size, settings.stride, **more)
