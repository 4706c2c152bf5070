"""What a registered or exported `rgbd_sod` does: image and depth of any size in, salience out.

The adapter reads depth in whatever form its files have it. Here there are no files to ask, so one
form is taken, the one the network learnt with: near is small. What training files looked like does
not show, and a better model can take the place of this one without its users noticing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.saliency.rgbd_sod.depth import DepthRules
from zoo.domains.saliency.rgbd_sod.filling import filled_by_nearest
from zoo.domains.saliency.rgbd_sod.split import DEVIATION, MEAN, Reading
from zoo.kernels.pictures import nan_unless_unit, patchy, resized, resized_bytes
from zoo.task import Export, Facts

_SEED = 1
# Batch, height and width of image and depth on which a written file is compared.
_FIRST = ((2, 3, 120, 160), (2, 1, 118, 157))
_OTHERS = (((1, 3, 301, 203), (1, 1, 301, 203)), ((3, 3, 33, 47), (3, 1, 66, 94)))


class ServedSalience(nn.Module):
    """Prepares image and depth as the adapter does, and gives a map at the image's size.

    Args:
        network: `network(rgb, depth)` gives logits (B, 1, S, S); in eval mode.
        size: S.
        rules: How depth is scaled and its holes are filled; `hole_value` does not count.
        minmax: Stretch each map to [0, 1], as published map folders are.
        mean: Of the image by channel, taken out of it.
        deviation: Likewise, what is then divided by.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        network: nn.Module,
        size: int,
        rules: DepthRules,
        *,
        minmax: bool = False,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        super().__init__()
        self.network, self.size, self.rules, self.minmax = network, size, rules, minmax
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1))

    def forward(self, rgb: Tensor, depth: Tensor | None = None) -> Tensor:
        """Salience of every pixel.

        Args:
            rgb: (B, 3, H, W) float in [0, 1].
            depth: (B, 1, h, w) float of the same view, near is small, in any unit; negative or not
                finite where nothing was measured. None: there is none, for a network that was
                trained so.

        Returns:
            (B, 1, H, W) in [0, 1]; NaN for an image that is none in [0, 1].
        """
        side = (self.size, self.size)
        small = (resized_bytes(rgb, side) - self.mean) / self.deviation
        flat = small.new_zeros(small.shape[0], 1, *side)
        near = flat if depth is None else resized(self.canonical(depth), side)
        salience = self.network(small, near).sigmoid()
        height, width = rgb.shape[2], rgb.shape[3]
        salience = functional.interpolate(
            salience, (height, width), mode="bilinear", align_corners=False
        )
        if self.minmax:
            low, high = salience.amin((2, 3), keepdim=True), salience.amax((2, 3), keepdim=True)
            whole = torch.where(high > low, high - low, 1.0)
            salience = torch.where(high > low, (salience - low) / whole, salience)
        return salience + nan_unless_unit(rgb)

    def canonical(self, depth: Tensor) -> Tensor:
        """Depth scaled to [0, 1] over its measured pixels, holes filled; see `depth.canonical`.

        A map that is constant or has no measured pixel says nothing and becomes 0.

        Args:
            depth: (B, 1, h, w).
        """
        holes = ~((depth >= 0) & (depth < float("inf")))  # true for NaN as well
        low, high = self._range(depth, holes)
        known = high > low
        span = torch.where(known, high - low, 1.0)
        unit = torch.where(holes, 0.0, ((depth - low) / span).clamp(0, 1))
        if self.rules.holes == "far":
            unit = torch.where(holes, 1.0, unit)
        elif self.rules.holes == "nearest":
            unit = filled_by_nearest(unit, holes)
        return torch.where(known, unit, 0.0)

    def _range(self, depth: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 1, 1) each: the depths that become 0 and 1."""
        inf = float("inf")
        low = torch.where(holes, inf, depth).amin((2, 3), keepdim=True)
        high = torch.where(holes, -inf, depth).amax((2, 3), keepdim=True)
        if self.rules.percentile is None:
            return low, high
        rising = torch.where(holes, inf, depth).flatten(1).sort(dim=1).values
        last = ((~holes).flatten(1).sum(1, keepdim=True) - 1).clamp(min=0)
        first, second = (_percentile(rising, last, p) for p in self.rules.percentile)
        # A map nearly all of one value still has its extremes.
        spread = second > first
        return torch.where(spread, first, low), torch.where(spread, second, high)


def _percentile(rising: Tensor, last: Tensor, share: float) -> Tensor:
    """Linear between neighbours, as NumPy's: (B, 1, 1, 1) of (B, N) sorted, N - 1 being `last`."""
    place = last * (share / 100)
    below = place.floor()
    first = rising.gather(1, below.long())
    second = rising.gather(1, (below.long() + 1).clamp(max=last))
    made = first + (second - first) * (place - below)
    return made[:, :, None, None]


def served(network: nn.Module, facts: Facts, reading: Reading, minmax: bool) -> Export:
    """The map maker with examples of what it takes.

    Args:
        network: Trained.
        facts: Of the trained model: `mean` and `deviation`.
        reading: How it reads depth, see `inputs.reading_of`.
        minmax: `predict.minmax`.
    """
    module = ServedSalience(
        network,
        reading.size,
        reading.rules,
        minmax=minmax,
        mean=facts.get("mean", MEAN),
        deviation=facts.get("deviation", DEVIATION),
    )
    blind = reading.depth == "zeros"
    generator = torch.Generator().manual_seed(_SEED)

    def example(rgb: Sequence[int], depth: Sequence[int]) -> dict[str, Tensor]:
        inputs = {"rgb": patchy(rgb, generator)}
        if not blind:
            values = patchy(depth, generator)
            inputs["depth"] = torch.where(values < 0.1, -1.0, values)
        return inputs

    inputs = example(*_FIRST)
    dynamic = {
        "rgb": {0: "batch", 2: "height", 3: "width"},
        "depth": {0: "batch", 2: "depth_height", 3: "depth_width"},
    }
    about = _about(reading, minmax)
    return Export(
        inputs=inputs,
        outputs=("salience",),
        dynamic={name: dynamic[name] for name in inputs},
        module=module,
        others=[example(*shapes) for shapes in _OTHERS],
        about={name: about[name] for name in (*inputs, "salience")},
    )


def _about(reading: Reading, minmax: bool) -> dict[str, str]:
    holes = {
        "nearest": "filled from the nearest measured pixel",
        "far": "taken as far",
        "keep": "taken as 0",
    }[reading.rules.holes]
    ends = "smallest and largest measured value"
    if reading.rules.percentile is not None:
        ends = "percentiles {:g} and {:g}".format(*reading.rules.percentile)
    return {
        "rgb": "image, axes batch, red green blue, height, width; values 0 to 1 (a file's bytes "
        f"over 255), any size: it is stretched to {reading.size} x {reading.size} here; NaN "
        "comes back for other ranges",
        "depth": "depth of the same view, axes batch, 1, height, width, its size may differ from "
        "the image's; 0 near to 1 far (turn disparity and other maps in which near is bright "
        f"round: 1 - x); {ends} are brought to 0 and 1 here, so metres do as well; negative or "
        f"NaN where nothing was measured ({holes}): a sensor's zeros have to be marked so",
        "salience": "how much each pixel stands out, axes batch, 1, height, width of the image; "
        + ("stretched to 0 to 1 in each map" if minmax else "0 to 1"),
    }
