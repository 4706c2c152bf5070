"""What people who load the model by name call: grey radiographs in, probabilities and map out.

Cropping, OpenCV's resize of 8-bit images and standardisation are written out in PyTorch, bit by
bit what the adapter does, so that a radiograph of any size may come.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.domains.medical.medusa.images import Preprocessing
from zoo.domains.medical.medusa.lungs import LungSegmenter
from zoo.task import Export, Facts

_ONE = 2048
"""Weights of OpenCV's 8-bit resize are multiples of 1 / 2048."""
_LEAST = 32
"""Grey levels that the brightest pixel has to reach: an eighth of the range."""
_SIZES = ((2, 120, 100), (1, 301, 257), (3, 64, 80))


def _axis(out: int, start: Tensor, extent: Tensor, rows: bool) -> tuple[Tensor, ...]:
    """Where the cells of a resized axis lie on the axis they come from.

    Source: OpenCV, `resize` with INTER_LINEAR of 8 bit: half-pixel grid in float64, fractions in
    float32, weights rounded to multiples of 1 / 2048. Beyond the ends the nearest cell counts; of
    columns the whole, of rows with both of its weights, whose products are truncated one by one.

    Args:
        out: Size of the resized axis.
        start: Scalar float64, first cell of the part that is resized.
        extent: Scalar float64, its number of cells.
        rows: Whether the axis is that of the rows.

    Returns:
        (out,) lower neighbour, (out,) upper neighbour, (out,) int32 weight of each.
    """
    cells = torch.arange(out, dtype=torch.float64, device=extent.device)
    place = ((cells + 0.5) * (1.0 / (out / extent)) - 0.5).float()
    low = place.floor()
    share = place - low
    last = (extent - 1).float()
    if not rows:
        share = torch.where((low < 0) | (low >= last), torch.zeros_like(share), share)
    below = low.clamp(min=0).minimum(last)
    above = (low + 1).clamp(min=0).minimum(last)
    weights = [(w * _ONE).round().to(torch.int32) for w in (1 - share, share)]
    first = start.long()
    return below.long() + first, above.long() + first, *weights


def _box(height: int, width: int, how: Preprocessing, device: torch.device) -> tuple[Tensor, ...]:
    """Top, left, rows and columns of what is resized, scalars float64; see `images.prepare`."""
    # Sizes go on as tensors: a traced graph takes any.
    high, wide = (torch.full((), n, dtype=torch.float64, device=device) for n in (height, width))
    top, left = (high * how.crop_top).floor(), torch.zeros_like(wide)
    rows, columns = high - top, wide
    if how.square:
        side = torch.minimum(rows, columns)
        top = top + ((rows - side) / 2).floor()
        left = ((columns - side) / 2).floor()
        rows = columns = side
    return top, left, rows, columns


def resize_bytes(levels: Tensor, size: int, how: Preprocessing) -> Tensor:
    """Crop and resize 8-bit images exactly as `images.prepare`.

    Args:
        levels: (B, H, W) int32, 0 to 255.
        size: Side of the result.
        how: Its crops.

    Returns:
        (B, size, size) int32, 0 to 255.
    """
    top, left, rows, columns = _box(levels.shape[1], levels.shape[2], how, levels.device)
    below, above, one, other = _axis(size, left, columns, rows=False)
    across = levels.index_select(2, below) * one + levels.index_select(2, above) * other
    across = across // 16
    below, above, one, other = _axis(size, top, rows, rows=True)
    upper = across.index_select(1, below) * one[:, None] // 65536
    lower = across.index_select(1, above) * other[:, None] // 65536
    return (upper + lower + 2) // 4


class _Served(nn.Module):
    """What both served models share: a radiograph as the network's inputs.

    Args:
        how: Sizes and crops of the training.
    """

    def __init__(self, how: Preprocessing) -> None:
        super().__init__()
        self.how = how

    def levels(self, radiograph: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W) int32 grey levels of a radiograph in [0, 1], and (B,) whether it is one."""
        found = (radiograph * 255).round()
        # Comparisons with NaN are false. Rounding forgives a value half a level too large.
        inside = ((found >= 0) & (found <= 255)).flatten(1).all(1)
        levels = torch.where((found >= 0) & (found <= 255), found, 0).to(torch.int32)
        return levels, inside & (levels.flatten(1).amax(1) >= _LEAST)

    def semantic(self, levels: Tensor) -> Tensor:
        """(B, 1, T, T) float32 of zero mean and unit deviation; see `images.standardised`."""
        values = resize_bytes(levels, self.how.body_size, self.how).double().unsqueeze(1)
        centred = values - values.mean((2, 3), keepdim=True)
        deviation = centred.square().mean((2, 3), keepdim=True).sqrt()
        return (centred / torch.where(deviation > 0, deviation, 1e-6)).float()

    def image(self, levels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1]; see `images.as_input`."""
        small = resize_bytes(levels, self.how.image_size, self.how).unsqueeze(1)
        return small.float().expand(-1, 3, -1, -1) / 255


class ServedMedusa(_Served):
    """The classifier on radiographs as they are.

    Args:
        net: The classifier.
        how: Sizes and crops of the training.
        positive: Index of the class that the operating point is about.
        threshold: Its probability at the operating point; None: there is none.
    """

    threshold: Tensor | None

    def __init__(
        self, net: nn.Module, how: Preprocessing, positive: int, threshold: float | None
    ) -> None:
        super().__init__(how)
        self.net, self.positive = net, positive
        given = None if threshold is None else torch.tensor(threshold, dtype=torch.float64)
        self.register_buffer("threshold", given)

    def forward(self, radiograph: Tensor) -> tuple[Tensor, ...]:
        """Classify.

        Args:
            radiograph: (B, H, W) grey in [0, 1], the same crop of the scanner's picture as the
                files of the training show.

        Returns:
            Probabilities (B, K); decisions (B,) int64, 1 at or above the operating point, if there
            is one; the body's map (B, 1, T, T), if there is a body. A radiograph with a value
            outside of [0, 1] or none above an eighth has NaN and the decision -1.
        """
        levels, sound = self.levels(radiograph)
        net = cast("Any", self.net)
        body_map = None if net.body is None else net.body(self.semantic(levels))
        logits = net(self.image(levels), body_map=body_map)
        chances = logits.float().double().softmax(-1)
        nan = torch.full((), float("nan"), device=logits.device)
        found = [torch.where(sound[:, None], chances.float(), nan)]
        if self.threshold is not None:
            above = (chances[:, self.positive] >= self.threshold).long()
            found.append(torch.where(sound, above, -1))
        if body_map is not None:
            found.append(torch.where(sound[:, None, None, None], body_map, nan))
        return tuple(found)


class ServedLungs(_Served):
    """The body alone on radiographs as they are.

    Args:
        net: The lung segmenter.
        how: Sizes and crops of the training.
    """

    def __init__(self, net: nn.Module, how: Preprocessing) -> None:
        super().__init__(how)
        self.net = net

    def forward(self, radiograph: Tensor) -> Tensor:
        """Probability of lung (B, 1, T, T) of radiographs (B, H, W) in [0, 1]."""
        levels, sound = self.levels(radiograph)
        made: Tensor = self.net(self.semantic(levels))
        nan = torch.full((), float("nan"), device=made.device)
        return torch.where(sound[:, None, None, None], made, nan)


def served(model: nn.Module, facts: Facts) -> Export:
    """The model as it is served.

    Args:
        model: Of `MedusaTask.model`: the classifier, or the lung segmenter.
        facts: Of its training: `preprocessing`, `classes`, `positive`, `operating_point`.
    """
    how = Preprocessing(**facts["preprocessing"])
    point = facts.get("operating_point")
    lungs = isinstance(model, LungSegmenter)
    outputs = ["body_map"]
    module: nn.Module
    if lungs:
        module = ServedLungs(model, how)
    else:
        threshold = None if point is None else float(point["threshold"])
        module = ServedMedusa(model, how, int(facts["positive"]), threshold)
        mapped = outputs if cast("Any", model).body is not None else []
        outputs = ["probabilities", *(["positive"] if point else []), *mapped]
    draw = torch.Generator().manual_seed(0)
    first, *others = ({"radiograph": torch.rand(*s, generator=draw)} for s in _SIZES)
    return Export(
        inputs=first,
        outputs=outputs,
        dynamic={"radiograph": {0: "batch", 1: "height", 2: "width"}},
        module=module,
        others=others,
        about=_about(outputs, how, facts, lungs),
    )


def _about(outputs: list[str], how: Preprocessing, facts: Facts, lungs: bool) -> dict[str, str]:
    side, classes = how.body_size, [str(c) for c in facts.get("classes", ())]
    told = {
        "radiograph": "(B, H, W) float32 grey in [0, 1], any size, all of a batch alike: 8-bit "
        "levels / 255, a frontal view with bright bones; resized without keeping the aspect; a "
        "value outside of [0, 1], or none above 1 / 8, makes that radiograph's outputs NaN",
        "probabilities": f"(B, {len(classes)}) in [0, 1], summing to 1: {', '.join(classes)}; "
        "research software, not for diagnosis",
        "body_map": f"(B, 1, {side}, {side}) in (0, 1): "
        + ("probability of lung" if lungs else "what the attention body drew"),
    }
    point = facts.get("operating_point")
    if point:
        name = classes[int(facts["positive"])]
        told["positive"] = (
            f"(B,) int64: 1 where the probability of {name} is at least {point['threshold']:.4g}, "
            f"the operating point chosen on validation; else 0, or -1 for NaN"
        )
    return {name: text for name, text in told.items() if name in ("radiograph", *outputs)}
