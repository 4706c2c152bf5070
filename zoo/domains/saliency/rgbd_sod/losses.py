"""Losses of salience maps, summed over the decoder's four maps.

Sources: arXiv 2501.01648, equation 31 and table V (terms and weights); the forms of the terms are
those of the loss file that the same authors released with ADENet (kingkung2016/ADENet,
pytorch_losses). All maps are treated at once, and what depends on the mask alone is computed once.
Letters: L maps (levels), B images, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["bce+iou", "bce", "bce+ssim", "bce+dice", "structure"]
LAMBDAS = (0.8, 0.6, 0.4, 0.2)
"""The paper's weights, finest map first."""
EPS = 1e-6  # the released IoU is 0 / 0 where both maps are empty
WINDOW, SIGMA = 11, 1.5  # of SSIM
AROUND = 31  # pixels to whose mean the structure loss compares a pixel


def deep_supervision(
    logits: Sequence[Tensor],
    mask: Tensor,
    kind: Loss = "bce+iou",
    lambdas: Sequence[float] = LAMBDAS,
) -> dict[str, Tensor]:
    """The weighted sum over the maps of a step's loss, and its parts.

    Args:
        logits: L maps (B, 1, H, W), finest first.
        mask: (B, 1, H, W), 0 or 1 (values between are taken as they are).
        kind: Terms of the loss.
        lambdas: Weight of each map.

    Returns:
        `loss`, and each term summed with the same weights: `bce`, `iou` and so on; they add up
        to `loss`. float32 scalars, or float64 for float64 logits.

    Raises:
        ValueError: Shapes, the number of weights or the kind do not fit.
    """
    names = _terms(kind)
    alike = all(x.shape == mask.shape for x in logits)
    if not alike or mask.dim() != 4 or mask.shape[1] != 1 or len(logits) != len(lambdas):
        got = ", ".join(str(tuple(x.shape)) for x in logits)
        msg = (
            f"maps of logits and a mask of one shape (B, 1, H, W) and {len(lambdas)} weights "
            f"expected, got logits {got} and mask {tuple(mask.shape)}"
        )
        raise ValueError(msg)
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    # Half precision is left first: sums over 65,536 pixels do not fit into it.
    with torch.autocast(mask.device.type, enabled=False):
        levels = torch.stack([x.squeeze(1).to(dtype) for x in logits])
        weights = torch.tensor(list(lambdas), dtype=dtype, device=levels.device)
        found = level_terms(levels, mask.squeeze(1).to(dtype), names)
    parts = {name: (weights * value).sum() for name, value in found.items()}
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def level_terms(levels: Tensor, mask: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Terms of every map.

    Args:
        levels: (L, B, H, W) logits.
        mask: (B, H, W).
        names: Of `bce`, `iou`, `ssim`, `dice`, `structure`.

    Returns:
        (L,) a term.
    """
    probability = levels.sigmoid() if set(names) - {"bce"} else levels
    terms: dict[str, Callable[[], Tensor]] = {
        "bce": lambda: bce(levels, mask),
        "iou": lambda: iou(probability, mask),
        "ssim": lambda: ssim(probability, mask),
        "dice": lambda: dice(probability, mask),
        "structure": lambda: bce(levels, mask) + weighted_iou(probability, mask),
    }
    return {name: terms[name]() for name in names}


def bce(levels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of logits (L, B, H, W), mean over pixels and images, (L,)."""
    target = mask.expand_as(levels)
    each = functional.binary_cross_entropy_with_logits(levels, target, reduction="none")
    return each.mean(dim=(1, 2, 3))


def iou(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - intersection / union of each image, mean over images, (L,).

    An empty mask with an empty prediction has a loss of 0.
    """
    shared, either = _overlap(probability, mask)
    return (1 - (shared + EPS) / (either - shared + EPS)).mean(dim=1)


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum p g + 1) / (sum p^2 + sum g^2 + 1) with sums over the whole batch, (L,)."""
    shared = torch.einsum("lbhw,bhw->l", probability, mask)
    squares = probability.square().sum(dim=(1, 2, 3)) + mask.square().sum()
    return 1 - (2 * shared + 1) / (squares + 1)


def ssim(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - structural similarity (Wang et al. 2004) with an 11 x 11 window, sigma 1.5, (L,).

    Pixels outside of the image are 0, variances are those of the window, constants 0.01^2 and
    0.03^2. The window is a product of two lines, and is applied as such.
    """
    line = torch.arange(WINDOW, dtype=mask.dtype, device=mask.device) - WINDOW // 2
    line = (-line.square() / (2 * SIGMA**2)).exp()
    line = line / line.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, *x.shape[-2:])
        flat = functional.conv2d(flat, line.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
        flat = functional.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
        return flat.view(x.shape)

    mean_p, mean_g = blur(probability), blur(mask)
    squares, crossed = mean_p.square() + mean_g.square(), mean_p * mean_g
    spread = blur(probability.square()) + blur(mask.square()) - squares
    together = blur(probability * mask) - crossed
    alike = (2 * crossed + 0.01**2) * (2 * together + 0.03**2)
    alike = alike / ((squares + 0.01**2) * (spread + 0.03**2))
    return 1 - alike.mean(dim=(1, 2, 3))


def weighted_iou(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - IoU with pixels near the mask's edge counted up to six times, (L,).

    Wei et al., "F3Net" (AAAI 2020), equation 6. The structure loss of that lineage meant to weight
    its cross entropy too, but averages it before; it is kept as its systems were trained.
    """
    near = functional.avg_pool2d(mask.unsqueeze(1), AROUND, 1, AROUND // 2).squeeze(1)
    weight = 1 + 5 * (near - mask).abs()
    shared, either = _overlap(probability, mask, weight)
    return (1 - (shared + 1) / (either - shared + 1)).mean(dim=1)


def _overlap(p: Tensor, mask: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(L, B) sums of p g and of p + g over pixels, as products so that no map is made."""
    if weight is None:
        return torch.einsum("lbhw,bhw->lb", p, mask), p.sum(dim=(2, 3)) + mask.sum(dim=(1, 2))
    shared = torch.einsum("lbhw,bhw->lb", p, mask * weight)
    either = torch.einsum("lbhw,bhw->lb", p, weight) + (mask * weight).sum(dim=(1, 2))
    return shared, either


def _terms(kind: str) -> list[str]:
    names = kind.split("+")
    known = {"bce", "iou", "ssim", "dice", "structure"}
    if not set(names) <= known:
        msg = f"terms of a loss are {', '.join(sorted(known))}, joined by +, got '{kind}'"
        raise ValueError(msg)
    return names
