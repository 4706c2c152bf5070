"""The modules' parameters: MEDUSA's scale head and the squeeze-and-excitation gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.kernels.broadcast_gate.op import legacy_resize
from zoo.kernels.broadcast_gate.reference import broadcast_gate, squeeze
from zoo.kernels.official import Names, OfficialModule, read

FORMS = ("map", "channel")


class BroadcastGate(OfficialModule):
    """Scales features by a gate made of a one-channel map, or of the features' own means.

    `map`: MEDUSA's scale head, x * (1 + conv(resize(level))), with `conv` (1 -> C) and the
    resize on TensorFlow 1's grid. `channel`: squeeze-and-excitation, x * sigmoid(up(relu(down(
    mean(x))))), with the Linear layers `down` (C -> hidden) and `up` (hidden -> C). DFYP's channel
    attention of Sentinel-2 is this one without biases; that of MODIS has the same names but takes
    maxima instead of means, and is not.

    Args:
        channels: C.
        form: Which of the two.
        kernel: Odd size of the convolution of the map form.
        hidden: Width of the channel form; None: C / 16, at least 1.
        bias: Whether the layers have biases.

    Raises:
        ValueError: A setting is none of its values.
    """

    OFFICIAL: ClassVar[Mapping[str, Names]] = {
        "medusa": Names(
            {"kernel": "conv.weight", "bias": "conv.bias"},
            beside=r"(kernel|bias)/(Adam|Adam_1|Momentum)",  # of the optimiser
            tensorflow=True,
        ),
        "dfyp_sentinel2": Names({"fc.0.weight": "down.weight", "fc.2.weight": "up.weight"}),
    }

    def __init__(
        self,
        channels: int,
        form: Literal["map", "channel"] = "map",
        *,
        kernel: int = 7,
        hidden: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = max(1, channels // 16) if hidden is None else hidden
        if form not in FORMS or min(channels, kernel, hidden) < 1 or kernel % 2 == 0:
            msg = (
                f"form is one of {', '.join(FORMS)}, sizes are positive and the kernel is odd; "
                f"got {form=}, {channels=}, {kernel=}, {hidden=}"
            )
            raise ValueError(msg)
        self.form = form
        if form == "map":
            self.conv = nn.Conv2d(1, channels, kernel, padding=kernel // 2, bias=bias)
        else:
            self.down = nn.Linear(channels, hidden, bias=bias)
            self.up = nn.Linear(hidden, channels, bias=bias)

    @staticmethod
    def from_official(
        state: Mapping[str, Tensor], prefix: str = "", system: str | None = None
    ) -> BroadcastGate:
        """The block of an official checkpoint, of the size that its tensors have.

        Args:
            state: Official keys; those of MEDUSA are TensorFlow's, with kernels (H, W, 1, C).
            prefix: What stands before the block's keys, such as `sem/600/` or `se.`.
            system: `medusa` or `dfyp_sentinel2`; None: whichever names are there.

        Raises:
            ValueError: A key below the prefix is missing or unknown, or a shape does not fit.
        """
        part = read(BroadcastGate, state, prefix, system)
        if "conv.weight" in part.tensors:
            channels, _, kernel, _ = part.shape("conv.weight", 4)
            return part.fill(lambda: BroadcastGate(channels, kernel=kernel))
        hidden, channels = part.shape("down.weight", 2)
        return part.fill(lambda: BroadcastGate(channels, "channel", hidden=hidden, bias=False))

    def attention(self, level: Tensor, size: tuple[int, int]) -> Tensor:
        """What the map form multiplies by, less one: (B, C, *size) of a map (B, 1, H, W)."""
        made: Tensor = self.conv(legacy_resize(level, size))
        return made

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """Gates features.

        Args:
            x: (B, C, H, W).
            level: (B, 1, H', W') map; only in the map form.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: A map is missing, superfluous or of the wrong shape.
        """
        if self.form == "channel":
            if level is not None:
                msg = "the channel gate is made of the features alone; it takes no map"
                raise ValueError(msg)
            down, up = self.down, self.up
            level = squeeze(x, (down.weight, down.bias), (up.weight, up.bias))
            return broadcast_gate(x, level)
        if level is None or level.dim() != 4 or level.shape[:2] != (x.shape[0], 1):
            got = None if level is None else tuple(level.shape)
            msg = f"the map gate needs a map ({x.shape[0]}, 1, H, W), got {got}"
            raise ValueError(msg)
        conv = self.conv
        # The one is added to the bias, not to a map of all channels: a pass less each way.
        one = torch.ones_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias + 1
        resized = legacy_resize(level, (x.shape[2], x.shape[3]))
        return x * functional.conv2d(resized, conv.weight, one, padding=conv.padding)
