"""Embeddings of a batch: mirrored as well if asked for, from the cache where weights rest."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.features import FeatureCache, digest_of, key_of
from zoo.domains.reid.fusion_reid.model import FusionReID, Seen
from zoo.task import Batch


class Maps(NamedTuple):
    """Where the network looked at some images of a batch.

    Attributes:
        cnn: (B, h, w) or None without that branch.
        transformer: (B, h', w') or None.
    """

    cnn: Tensor | None
    transformer: Tensor | None


class Embedder:
    """Gives embeddings of batches as configured.

    Args:
        config: `model`, `predict` and `trainer.precision` are used.
        resting: Whether the weights rest, so that features may be kept and taken from the cache.
    """

    def __init__(self, config: Config, *, resting: bool) -> None:
        self.config, self.resting = config, resting
        self.cache: FeatureCache | None = None
        self._model: nn.Module | None = None

    def __call__(self, model: nn.Module, batch: Batch, cameras: Tensor) -> Tensor:
        """(B, D) embeddings on the CPU, float32 or float16.

        Args:
            model: In eval mode.
            batch: From `ReidSplit.collate`.
            cameras: (B,) index of each image's camera embedding, -1 for the mean.
        """
        if not self.resting or not self.config.predict.cache:
            return self._computed(model, batch["image"], cameras)
        cache = self._opened(model)
        keys = [key_of(c, n) for c, n in zip(batch["content"], cameras.tolist(), strict=True)]
        found = cache.get(keys)
        missing = [i for i, feature in enumerate(found) if feature is None]
        if missing:
            fresh = self._computed(model, batch["image"][missing], cameras[missing])
            cache.put([keys[i] for i in missing], fresh)
            for i, feature in zip(missing, fresh, strict=True):
                found[i] = feature
        return torch.stack(cast("list[Tensor]", found))

    def _computed(self, model: nn.Module, images: Tensor, cameras: Tensor) -> Tensor:
        made = model(images, cameras)
        if self.config.predict.flip_average:
            made = (made + model(images.flip(-1), cameras)) / 2
        kind = torch.float16 if self.config.predict.half else torch.float32
        return cast(Tensor, made).to("cpu", kind)

    def _opened(self, model: nn.Module) -> FeatureCache:
        """The cache of this model's weights; they are read once."""
        if self.cache is None or self._model is not model:
            settings: dict[str, Any] = self.config.model.model_dump(
                mode="json", exclude={"cnn_weights", "transformer_weights"}
            )
            settings |= {
                "flip_average": self.config.predict.flip_average,
                "half": self.config.predict.half,
                "precision": self.config.trainer.precision,
            }
            self.cache, self._model = FeatureCache(digest_of(plain(model)), settings), model
        return self.cache

    def maps(self, model: nn.Module, images: Tensor, cameras: Tensor) -> Maps:
        """Where the network looks at images (B, 3, H, W)."""
        seen = cast(Seen, model(images, cameras, maps=True))
        return Maps(seen.cnn_map, seen.transformer_map)


def plain(model: nn.Module) -> FusionReID:
    """The network inside of what the engine wraps it in."""
    inner: Any = model
    while not isinstance(inner, FusionReID):
        inner = inner.module
    return inner
