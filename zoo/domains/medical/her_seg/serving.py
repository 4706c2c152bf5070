"""What a registered or exported `her_seg` does: images of any size in, class probabilities out."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.geometry import PADDING
from zoo.domains.medical.her_seg.inference import Way
from zoo.kernels.pictures import nan_unless_unit, patchy, resized
from zoo.task import Export, Facts

_SEED = 1
# Sides of pictures on which a written file is compared, over the side of the model's square.
_FIRST = (2, 0.75, 1.25)
_OTHERS = ((1, 1.5, 0.6), (1, 0.5, 0.4))
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


class ServedSegmenter(nn.Module):
    """Brings images to the model's square as configured, and its answer back to their size.

    Args:
        network: `network(image)` gives logits (B, K, S, S) of (B, 3, S, S); in eval mode.
        way: How pictures meet it; smoothing over frames and the threshold do not count.
    """

    weight: Tensor
    colour: Tensor

    def __init__(self, network: nn.Module, way: Way) -> None:
        super().__init__()
        self.network, self.way = network, way
        self.register_buffer("colour", torch.tensor(PADDING).view(3, 1, 1) / 255)
        self.register_buffer("weight", tile_weight(way.side))

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities of every pixel.

        Args:
            image: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, K, H, W): K = 1, of the one class; or of the background and each class, sum 1.
            NaN for an image that is none in [0, 1].
        """
        logits = self._tiled(image) if self.way.fit == "tiles" else self._whole(image)
        made = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        return made + nan_unless_unit(image)

    def _whole(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) by way of one square."""
        side, size = self.way.side, (image.shape[2], image.shape[3])
        if self.way.fit == "squash":
            logits = self._mirrored(resized(image, (side, side)))
        else:
            inner = inner_size(size, side)
            beside = (0, side - inner[1], 0, side - inner[0])
            padding = functional.pad(image.new_zeros(1, 1, *inner), beside, value=1.0)
            square = functional.pad(resized(image, inner), beside) + padding * self.colour
            logits = self._mirrored(square)[:, :, : inner[0], : inner[1]]
        return functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _tiled(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) as the weighted mean of overlapping tiles, all of them one batch."""
        side, overlap = self.way.side, self.way.overlap
        height, width = image.shape[2], image.shape[3]
        rows, row_counts = tile_places(height, side, overlap, image.device)
        columns, column_counts = tile_places(width, side, overlap, image.device)
        tiles = image.index_select(2, rows.flatten()).index_select(3, columns.flatten())
        inside = row_counts.flatten()[:, None] & column_counts.flatten()
        tiles = torch.where(inside, tiles, self.colour)
        # (B, 3, n, S, m, S)
        tiles = torch.unflatten(torch.unflatten(tiles, 3, (-1, side)), 2, (-1, side))
        squares = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        logits = self._mirrored(squares) * self.weight
        logits = logits.view(
            image.shape[0], rows.shape[0], columns.shape[0], logits.shape[1], side, side
        )
        joined = logits.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        weights = self.weight.repeat(rows.shape[0], columns.shape[0])
        sums = self._added(torch.where(inside, joined, 0.0), rows, columns, (height, width))
        whole = torch.where(inside, weights, 0.0)[None, None]
        return sums / self._added(whole, rows, columns, (height, width))

    def _added(
        self, values: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Sums over tiles (B, C, n S, m S) at their places in a picture (B, C, H, W)."""
        wide = values.new_zeros(*values.shape[:3], size[1])
        wide = wide.index_add(3, columns.flatten(), values)
        high = values.new_zeros(*values.shape[:2], *size)
        return high.index_add(2, rows.flatten(), wide)

    def _mirrored(self, squares: Tensor) -> Tensor:
        """The network's logits, or their mean over mirror images."""
        if not self.way.mirrors:
            made: Tensor = self.network(squares)
            return made
        found = [
            self.network(squares.flip(axes)).flip(axes) if axes else self.network(squares)
            for axes in _MIRRORS
        ]
        return torch.stack(found).mean(dim=0)


def inner_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h, w) a picture has inside of a letterbox; `geometry.place`, also for sizes left open.

    In whole numbers, halves to even, since Python's rounding can be traced but not be written to
    a file. Where a side is a half but for the last bit of a float, `place` may take the other one.
    """
    longest = cast(int, torch.sym_max(*size))
    height, width = (_rounded(n * side, longest) for n in size)
    return height, width


def _rounded(share: int, whole: int) -> int:
    """`share / whole`, at least 1."""
    doubled = 2 * share + whole
    nearest = doubled // (2 * whole)
    half = (2 * whole - doubled % (2 * whole)) // (2 * whole)  # 1 halfway between two, else 0
    return cast(int, torch.sym_max(1, nearest - half * (nearest % 2)))


def tile_places(
    length: int, side: int, overlap: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where tiles lie along one axis, as MONAI's `SlidingWindowInferer` puts them.

    Args:
        length: Of the picture in pixels, at least 1.
        side: Of a tile.
        overlap: Share by which tiles overlap.
        device: Where it is wanted.

    Returns:
        (n, S) int64 places in the picture, n at least 2, as a traced graph would not serve both
        one tile and several; and which of them count: those of a second tile that is not needed
        do not, nor do those beyond a picture that is shorter than a tile.
    """
    step = max(1, int(side * (1 - overlap)))
    beyond = torch.sym_max(length - side, 0)
    needed = (beyond + step - 1) // step + 1
    number = torch.arange(torch.sym_max(needed, 2), device=device)[:, None]
    places = (number * step).clamp(max=beyond) + torch.arange(side, device=device)
    return places.clamp(max=length - 1), (places < length) & (number < needed)


def tile_weight(side: int) -> Tensor:
    """(S, S) weight of a tile's pixels: a Gaussian about its middle, as MONAI's (deviation S / 8).

    Args:
        side: S.
    """
    away = torch.arange(side) - (side - 1) / 2
    bell = torch.exp(-0.5 * (away / (0.125 * side)) ** 2)
    weight = bell[:, None] * bell
    return weight.clamp(min=max(float(weight.min()), 1e-3))


def served(network: nn.Module, facts: Facts, config: Config) -> Export:
    """The segmenter with examples of what it takes.

    Args:
        network: Trained.
        facts: `classes` and `kind` of the trained model.
        config: Of it; `data.fit`, `data.overlap` and `predict.mirrors` count.
    """
    way = Way.of(config)
    generator = torch.Generator().manual_seed(_SEED)

    def example(batch: int, high: float, wide: float) -> dict[str, Tensor]:
        shape = (batch, 3, round(high * way.side), round(wide * way.side))
        return {"image": patchy(shape, generator)}

    return Export(
        inputs=example(*_FIRST),
        outputs=("probabilities",),
        dynamic={"image": {0: "batch", 2: "height", 3: "width"}},
        module=ServedSegmenter(network, way),
        others=[example(*shape) for shape in _OTHERS],
        about=_about(facts, config, way),
    )


def _about(facts: Facts, config: Config, way: Way) -> dict[str, str]:
    names = [str(name) for name in facts["classes"]]
    if len(names) == 1:
        maps = f"1 map, of {names[0]}; it counts from {way.threshold:g} on, inclusive"
    else:
        numbered = ", ".join(f"{i} {name}" for i, name in enumerate(["background", *names]))
        maps = f"maps in order: {numbered}; they sum to 1, and the largest one counts"
    return {
        "image": "axes batch, red green blue (grey three times), height, width; values 0 to 1 (a "
        f"file's bytes over 255), any size: each is {way.told()}{_slices(facts, config)}; NaN "
        "comes back for other ranges",
        "probabilities": f"0 to 1, axes batch, map, height, width of the image; {maps}",
    }


def _slices(facts: Facts, config: Config) -> str:
    """What a picture is of a volume or clip, where the model learnt on those."""
    kind, data = facts.get("kind", "image"), config.data
    if kind == "clip":
        return "; a frame of a clip, each for itself"
    if kind != "volume":
        return ""
    channels = "the slice before, this one, the next" if data.neighbours else "the slice"
    if data.window is not None:
        low, high = data.window
        shown = f"intensities {low:g} to {high:g} become 0 to 1"
    else:
        shown = "percentiles {:g} and {:g} of the volume become 0 and 1".format(*data.percentiles)
    return f"; {data.axis} slices of volumes turned to RAS, channels: {channels}; {shown}"
