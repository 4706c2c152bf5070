"""Tile encoders: CLAM's ResNet-50, any timm model, and hand-made statistics.

Weights come from a file or are fetched once into the zoo's cache; only safetensors and files that
torch reads with `weights_only=True` are taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import torch
from torch import Tensor, nn

from zoo import files
from zoo.data import cache_dir
from zoo.domains.medical.wsi_mil.settings import EncoderSettings
from zoo.domains.medical.wsi_mil.stats import WIDTH, tile_statistics
from zoo.errors import ConfigError, WeightsError, first_line
from zoo.states import read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RESNET50 = "resnet50"
_OWN = (_RESNET50, "stats")
# Wrappers in which authors publish the weights of a tile encoder.
_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "student.", "teacher.", "trunk.")
_HUB_FILES = ("pytorch_model.bin", "model.safetensors")
_CONNECT_S = 10
_HEADS = ("head.", "fc.", "classifier.", "head_dist.", "last_linear.")


class Encoder(ABC):
    """Turns tiles into vectors.

    Attributes:
        settings: With the size, mean and deviation in force filled in.
        width: Features of a tile.
        plain: Needs neither torch nor a device, so that the reading processes can run it.
    """

    plain = False

    def __init__(self, settings: EncoderSettings, width: int) -> None:
        self.settings = settings
        self.width = width

    @abstractmethod
    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """(B, h, w, 3) uint8 RGB -> (B, width) float32."""


class StatsEncoder(Encoder):
    """Hand-made statistics, see `stats`; tiles are taken at the size they are read."""

    plain = True

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings, WIDTH)

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Statistics of each tile; see `Encoder`."""
        return tile_statistics(tiles)


class NetEncoder(Encoder):
    """A network on tiles that are resized (bilinear, antialiased) and normalised.

    Args:
        net: (B, 3, size, size) float32 -> (B, width).
        settings: With size, mean and deviation.
        device: Where it runs.
        precision: `32-true`, or `bf16-mixed` and `16-mixed` on CUDA.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: EncoderSettings,
        device: torch.device,
        precision: str = "32-true",
    ) -> None:
        if settings.size is None or settings.mean is None or settings.std is None:
            msg = "an encoder needs size, mean and deviation"
            raise ConfigError(msg)
        self._net = net.to(device).eval()
        self._device = device
        self._size = settings.size
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        self._kind = kinds.get(precision) if device.type == "cuda" else None
        self._mean = torch.tensor(settings.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(settings.std, device=device).view(1, 3, 1, 1)
        with torch.inference_mode():
            probe = self._net(torch.zeros(1, 3, settings.size, settings.size, device=device))
        if probe.ndim != 2:
            msg = f"encoder '{settings.name}': gives {tuple(probe.shape)} a tile, not one vector"
            raise ConfigError(msg)
        super().__init__(settings, int(probe.shape[1]))

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Features of each tile; see `Encoder`."""
        with torch.inference_mode():
            images = torch.from_numpy(tiles).to(self._device).permute(0, 3, 1, 2)
            features = self._run(self.prepared(images))
        return features.float().cpu().numpy()

    def prepared(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) uint8 -> (B, 3, size, size) float32, what the network is given."""
        scaled = images.float() / 255
        if scaled.shape[-2:] != (self._size, self._size):
            scaled = nn.functional.interpolate(
                scaled, (self._size, self._size), mode="bilinear", antialias=True
            )
        return (scaled - self._mean) / self._std

    def _run(self, images: Tensor) -> Tensor:
        if self._kind is None:
            found: Tensor = self._net(images)
            return found
        with torch.autocast("cuda", self._kind):
            found = self._net(images)
        return found


class TruncatedResNet50(nn.Module):
    """torchvision's ResNet-50 up to its third stage, averaged: 1024 features, as in CLAM."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        whole = resnet50()
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool)
        self.stages = nn.Sequential(whole.layer1, whole.layer2, whole.layer3)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 1024)."""
        found: Tensor = self.stages(self.stem(images)).mean((2, 3))
        return found

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's keys (timm's are the same) under this module's; stage 4 and head go."""
        heads = {"conv1": "stem.0", "bn1": "stem.1"}
        heads |= {f"layer{i + 1}": f"stages.{i}" for i in range(3)}
        pairs = ((k.partition("."), v) for k, v in state.items())
        return {f"{heads[head]}.{rest}": v for (head, _, rest), v in pairs if head in heads}


def build_encoder(
    settings: EncoderSettings,
    *,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    random_weights: bool = False,
) -> Encoder:
    """The encoder that settings name, with its weights.

    Args:
        settings: Name, weights and preprocessing.
        device: Where a network runs.
        precision: As `trainer.precision`.
        random_weights: Leave the initial weights as they are, for tests and timing only.

    Raises:
        ConfigError: There is no such encoder, or its options do not fit.
        WeightsError: The weights cannot be had, do not fit, or are not those that the hash tells.
    """
    if settings.weights is not None:
        found = files.sha256(settings.weights)
        if settings.sha256 not in (None, found):
            msg = (
                f"{settings.weights}: is another file than the one the features were made with "
                f"(sha256 {found[:12]}…, expected {settings.sha256[:12]}…); give that one with "
                "data.encoder_weights"
            )
            raise WeightsError(msg)
        settings = replace(settings, sha256=found)
    if settings.name == "stats":
        if settings.weights is not None:
            msg = "data.encoder=stats has no weights; drop data.encoder_weights"
            raise ConfigError(msg)
        return StatsEncoder(settings)
    if settings.weights is None and settings.sha256 is not None and not random_weights:
        msg = (
            f"encoder '{settings.name}' had weights of its own (sha256 {settings.sha256[:12]}…); "
            "give that file with data.encoder_weights"
        )
        raise WeightsError(msg)
    net, settings = _net(settings, random_weights)
    return NetEncoder(net, settings, torch.device(device), precision)


def _net(settings: EncoderSettings, random_weights: bool) -> tuple[nn.Module, EncoderSettings]:
    net: nn.Module
    if settings.name == _RESNET50:
        if settings.options:
            msg = "data.encoder_options are for timm models; data.encoder=resnet50 takes none"
            raise ConfigError(msg)
        net, size, mean, std = TruncatedResNet50(), 224, IMAGENET_MEAN, IMAGENET_STD
        if not random_weights:
            state = read_state(settings.weights) if settings.weights else _torchvision_state()
            _fill(net, TruncatedResNet50.renamed(state), settings)
    else:
        net, size, mean, std = _timm(settings, random_weights)
    filled = replace(
        settings,
        size=settings.size or size,
        mean=settings.mean or mean,
        std=settings.std or std,
    )
    return net, filled


def _timm(settings: EncoderSettings, random_weights: bool) -> tuple[nn.Module, int, Any, Any]:
    """The model without its head, and the size, mean and deviation of its own configuration."""
    import timm

    name = settings.name.removeprefix("timm:")
    hosted = name.startswith(("hf-hub:", "hf_hub:"))
    if not hosted and not timm.is_model(name):
        near = timm.list_models(f"*{re.split(r'[._]', name)[0]}*")[:3]
        hint = f"; near it: {', '.join(near)}" if near else ""
        msg = (
            f"data.encoder={settings.name}: no such encoder; there are {', '.join(_OWN)} and the "
            f"models of timm{hint}"
        )
        raise ConfigError(msg)
    fetch = settings.weights is None and not random_weights
    if hosted and not fetch:
        msg = (
            f"data.encoder={settings.name}: a hosted model brings its own weights; name the timm "
            "architecture to use data.encoder_weights"
        )
        raise ConfigError(msg)
    folder = cache_dir() / "encoders"
    options: dict[str, Any] = dict(settings.options) | {"num_classes": 0}
    kept = None if hosted or not fetch else _kept_by_hub(name, folder)
    if kept is not None:
        options["pretrained_cfg_overlay"] = {"file": str(kept)}
    with _fetching(settings.name) if fetch else contextlib.nullcontext():
        if fetch and kept is None:
            _need_network(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        try:
            net = timm.create_model(name, pretrained=fetch, cache_dir=folder, **options)
        except (TypeError, AttributeError, AssertionError) as error:
            msg = f"data.encoder={settings.name}: data.encoder_options do not fit ({error})"
            raise ConfigError(msg) from None
    resolve: Any = timm.data.resolve_model_data_config  # type: ignore[attr-defined]
    own = resolve(net)
    if settings.weights is not None and not random_weights:
        _fill(net, read_state(settings.weights), settings)
    return net, int(own["input_size"][-1]), tuple(own["mean"]), tuple(own["std"])


def _torchvision_state() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    url = ResNet50_Weights.IMAGENET1K_V1.url
    folder = cache_dir() / "encoders"
    with _fetching(_RESNET50):
        if not (folder / Path(url).name).is_file():
            _need_network(url)
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url,
            model_dir=str(folder),
            map_location="cpu",
            check_hash=True,
            weights_only=True,
            progress=False,
        )
    return state


def _kept_by_hub(name: str, folder: Path) -> Path | None:
    """The file of a timm model's published weights in the hub's cache, if it was fetched before."""
    import timm

    own = timm.get_pretrained_cfg(name)
    repository = getattr(own, "hf_hub_id", None) if own is not None else None
    if not repository:
        return None
    place = folder / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = [p for n in _HUB_FILES for p in sorted(place.glob(f"*/{n}"))]
    return found[-1] if found else None


def _need_network(url: str) -> None:
    """Fail at once where there is no network, instead of after minutes of retries.

    Raises:
        OSError: The host cannot be reached, or `ZOO_OFFLINE` forbids it.
    """
    if os.environ.get("ZOO_OFFLINE", "") not in ("", "0"):
        msg = "ZOO_OFFLINE is set"
        raise OSError(msg)
    if getproxies():
        return  # the proxy knows hosts that this machine does not
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()


@contextlib.contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Tell in one line that weights could not be fetched."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        msg = (
            f"the weights of encoder '{name}' cannot be fetched ({first_line(error)}); give a file "
            "with data.encoder_weights=FILE, or use data.encoder=stats, which has none"
        )
        raise WeightsError(msg) from None


def _fill(net: nn.Module, state: Mapping[str, Tensor], settings: EncoderSettings) -> None:
    """Load weights; what the network does not have may only be heads.

    Raises:
        WeightsError: Weights are missing or have another shape; the message names the first.
    """
    where = settings.weights or "the published weights"
    wanted = net.state_dict()
    plain = _unprefixed(state, wanted.keys())
    missing = [k for k in wanted if k not in plain]
    other = [k for k in wanted if k in plain and plain[k].shape != wanted[k].shape]
    extra = [k for k in plain if k not in wanted and not k.startswith(_HEADS)]
    for kind, keys in (("no", missing), ("another shape of", other)):
        if keys:
            msg = (
                f"{where}: do not fit encoder '{settings.name}': {kind} '{keys[0]}' "
                f"({len(keys)} such keys); check data.encoder and data.encoder_options"
            )
            raise WeightsError(msg)
    if len(extra) > len(wanted) // 2:
        msg = (
            f"{where}: hold {len(extra)} weights that encoder '{settings.name}' does not have, "
            f"such as '{extra[0]}'; check data.encoder"
        )
        raise WeightsError(msg)
    net.load_state_dict({k: plain[k] for k in wanted})


def _unprefixed(state: Mapping[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """The state without a prefix that all of its useful keys carry."""
    best = dict(state)
    hits = sum(k in best for k in wanted)
    for first in _PREFIXES:
        for prefix in (first, *(first + second for second in _PREFIXES)):
            cut = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            found = sum(k in cut for k in wanted)
            if found > hits:
                best, hits = cut, found
    return best
