"""Pictures as served models take them: in [0, 1], of any size, resized as Pillow does it.

PyTorch's own operators alone, and no size that would be fixed when a graph is traced, so that what
is exported loads without the zoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

_LEVELS = 255
# Pillow's weights of 8-bit pictures are whole multiples of 2 ** -22. They are taken apart into
# parts of 11 bits, whose products with levels add up without rounding in float32.
_BITS, _HALF = 22, 11
# Interpolation by others overshoots [0, 1] a little; pictures of 0 to 255 go far beyond it.
_LOWEST, _HIGHEST = -0.5, 1.5


def resized_bytes(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's antialiased bilinear resize of 8-bit pictures, to the bit.

    Rows are resized first, then columns, and levels are whole after each, as Pillow has it
    (`libImaging/Resample.c`). Since all sums are of whole numbers, every runtime gives the same.
    From 13 on Pillow takes the columns first where the height shrinks much more than the width;
    there a level may be one off.

    Args:
        image: (B, C, h, w) float in [0, 1]; it is rounded to the 256 levels of a file first.
        size: H and W wanted.

    Returns:
        (B, C, H, W) float in [0, 1], whole levels over 255.
    """
    levels = torch.floor(image.clamp(0, 1) * _LEVELS + 0.5)
    return _along(_along(levels, 3, size[1]), 2, size[0]) / _LEVELS


def _along(levels: Tensor, axis: int, size: int) -> Tensor:
    """Whole levels (B, C, h, w) at another size along one axis."""
    places, weights = _taps(levels.shape[axis], size, levels.device)
    taps = torch.unflatten(levels.index_select(axis, places.flatten()), axis, (size, -1))
    coarse = (weights + 2 ** (_HALF - 1)) >> _HALF
    fine = weights - (coarse << _HALF)
    shape = (size, -1, *[1] * (3 - axis))
    high, low = ((taps * w.view(shape).to(taps)).sum(axis + 1) for w in (coarse, fine))
    # The sum is high * 2 ** 11 + low; half a level is added and the 22 bits are cut off.
    whole = high + torch.floor(low / 2**_HALF) + 2 ** (_HALF - 1)
    return torch.floor(whole / 2**_HALF).clamp(0, _LEVELS)


def _taps(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which pixels make a new one, and their weights: a triangle, wider where it shrinks.

    In whole numbers throughout, sizes being the numerators of all fractions.

    Returns:
        (size, T) int64 places, and weights in multiples of 2 ** -22; their sum is about 1.
    """
    reach = (length + size - 1) // size
    middle = ((2 * torch.arange(size, device=device) + 1) * length)[:, None]  # over 2 size
    near = torch.arange(2 * reach + 1, device=device) - reach
    # `//` and no `torch.div`, which becomes a division of floats in ONNX.
    places = middle // (2 * size) + near
    apart = ((2 * places + 1) * size - middle).abs()
    wider = cast(int, torch.sym_max(length, size))
    share = (2 * wider - apart).clamp(min=0)
    share = torch.where((places >= 0) & (places < length), share, 0)
    total = share.sum(dim=1, keepdim=True)
    return places.clamp(0, length - 1), ((share << (_BITS + 1)) + total) // (2 * total)


def resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's antialiased bilinear resize of float pictures, to rounding.

    Args:
        values: (B, C, h, w) float.
        size: H and W wanted.
    """
    return functional.interpolate(values, size, mode="bilinear", antialias=True)


def patchy(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random pictures of patches and a little noise, to compare two forms of a network on.

    In noise alone, once resized, a trained network finds nothing, and what both forms say of
    nothing tells little.

    Args:
        shape: (B, C, H, W) wanted.
        generator: Source of all chance.

    Returns:
        float32 in [0, 1].
    """
    batch, channels, *size = shape
    patches = torch.rand(batch, channels, 6, 7, generator=generator)
    wide = functional.interpolate(patches, tuple(size), mode="bicubic", align_corners=False)
    noise = torch.rand(batch, channels, *size, generator=generator)
    return (0.1 * noise + 0.9 * wide).clamp(0, 1)


def nan_unless_unit(image: Tensor) -> Tensor:
    """What to add to a picture's answer: 0, or NaN where the picture is none in [0, 1].

    Whoever gives 0 to 255 would else get an answer that looks like one.

    Args:
        image: (B, C, h, w) float.

    Returns:
        (B, 1, 1, 1).
    """
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    fits = (low >= _LOWEST) & (high <= _HIGHEST)  # false for NaN as well
    return torch.where(fits, 0.0, float("nan"))
