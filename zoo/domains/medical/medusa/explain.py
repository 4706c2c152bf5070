"""Where the model looked: overlays, attention at the four scales, Grad-CAM.

Maps say where, not why, and a plausible picture is no proof that a decision is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CAPTUM = "Grad-CAM needs the package 'captum': pip install '.[explain]'"


def have_captum() -> bool:
    """Whether Grad-CAM can be computed here."""
    return find_spec("captum") is not None


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values stretched to [0, 1]; zeros where all are equal."""
    low, high = float(np.min(values)), float(np.max(values))
    if high <= low:
        return np.zeros(np.shape(values), np.float32)
    return ((np.asarray(values, np.float32) - low) / (high - low)).astype(np.float32)


def overlay(
    image: NDArray[Any], heat: NDArray[Any], alpha: float = 0.2, masked: bool = False
) -> NDArray[np.uint8]:
    """A heat map in colour over a radiograph, as the official script draws it.

    The colour of a pixel is entry round(255 x heat) of matplotlib's `jet`; it is mixed as
    alpha x colour + (1 - alpha) x image, and value x 255 is cut to a byte.

    Args:
        image: (h, w) or (h, w, 3) in [0, 1].
        heat: (h, w) in [0, 1].
        alpha: Strength of the colour.
        masked: Let the strength fade with the heat: alpha x heat per pixel.

    Returns:
        (h, w, 3) colours.
    """
    from matplotlib import colormaps

    heat = np.clip(np.asarray(heat, np.float64), 0, 1)
    colour = colormaps["jet"](np.rint(255 * heat).astype(np.uint8))[..., :3]
    base = np.asarray(image, np.float64)
    base = np.repeat(base[..., None], 3, axis=-1) if base.ndim == 2 else base
    strength = alpha * heat[..., None] if masked else alpha
    mixed = strength * colour + (1 - strength) * base
    made: NDArray[np.uint8] = (255 * np.clip(mixed, 0, 1)).astype(np.uint8)
    return made


def resized(heat: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map (h, w) at another size (h', w'), bilinear on the half-pixel grid."""
    values = torch.from_numpy(np.ascontiguousarray(heat, np.float32))[None, None]
    made = functional.interpolate(values, size, mode="bilinear", align_corners=False)
    return made[0, 0].numpy()


def scale_heat(scale_maps: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Strength of attention at each scale.

    Args:
        scale_maps: What each head added to the gate's one, (B, C, h, w).

    Returns:
        For each scale (B, h, w): the mean over channels of the magnitude, not yet stretched.
    """
    return [a.detach().float().abs().mean(dim=1).cpu().numpy() for a in scale_maps]


def gradcam(
    net: nn.Module, layer: nn.Module, inputs: Sequence[Tensor], target: Sequence[int]
) -> NDArray[np.float32]:
    """Grad-CAM (Selvaraju et al. 2017) of classes at a layer, by captum.

    Args:
        net: Gives logits (B, K) of `inputs`; must be in eval mode.
        layer: Module whose output (B, C, h, w) is explained.
        inputs: Tensors with B items each.
        target: (B,) the class to explain for each item.

    Returns:
        (B, h, w), 0 or more; each map is of its own scale.
    """
    method = import_module("captum.attr").LayerGradCam
    given = tuple(t.detach().clone().requires_grad_(True) for t in inputs)
    wanted = torch.as_tensor(list(target), device=given[0].device)
    with torch.enable_grad():
        found = method(net, layer).attribute(given, target=wanted, relu_attributions=True)
    made: NDArray[np.float32] = found.detach().float()[:, 0].cpu().numpy()
    return made
