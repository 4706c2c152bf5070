"""From a stack of pictures of any size to class indices at their own size.

A picture is stretched or padded to the model's square and the answer brought back, or it is cut
into overlapping tiles (MONAI's sliding window). The frames of a clip may be smoothed over time.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.geometry import (
    PADDING,
    Fit,
    Placement,
    mask_to_square,
    to_square,
)
from zoo.domains.medical.her_seg.prompting import inside, to_batch
from zoo.domains.medical.her_seg.stacks import Prompts, Stack
from zoo.errors import ConfigError

# Pixels of a batch: about what one published input has, so that memory stays at its level.
_BATCH_PIXELS = 1024 * 1024
_MOST_AT_ONCE = 16
_TILES_AT_ONCE = 4
_MIRRORS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Way:
    """How pictures meet the network and become masks.

    Attributes:
        side: S of the model's square.
        fit: `squash`, `letterbox` or `tiles`.
        overlap: Share by which tiles overlap.
        threshold: Probability from which a pixel of a single class counts, inclusive.
        momentum: Weight of earlier frames' logits in a clip.
        mirrors: Average over the picture and its mirror images.
    """

    side: int
    fit: Fit = "squash"
    overlap: float = 0.25
    threshold: float = 0.5
    momentum: float = 0.0
    mirrors: bool = False

    @classmethod
    def of(cls, config: Config) -> Way:
        """From the settings."""
        return cls(
            side=config.model.image_size,
            fit=config.data.fit,
            overlap=config.data.overlap,
            threshold=config.predict.threshold,
            momentum=config.video.momentum,
            mirrors=config.predict.mirrors,
        )

    @property
    def at_once(self) -> int:
        """Pictures a batch."""
        return max(1, min(_MOST_AT_ONCE, _BATCH_PIXELS // self.side**2))

    def told(self) -> str:
        """One line on what happens to a picture."""
        how = {
            "squash": f"stretched to {self.side} x {self.side} and the answer back",
            "letterbox": f"fitted into {self.side} x {self.side} with its shape kept, and back",
            "tiles": f"cut into tiles of {self.side} x {self.side} that overlap by "
            f"{self.overlap:.0%}, at its own resolution",
        }[self.fit]
        return how + (", averaged over its mirror images" if self.mirrors else "")


@dataclass(frozen=True)
class Answer:
    """What the network says of one picture.

    Attributes:
        logits: (C, S, S) on the model's square, or (C, H, W) after tiles; float32.
        placement: Where the picture lies in the square; None after tiles.
    """

    logits: Tensor
    placement: Placement | None

    def native(self) -> Tensor:
        """(C, H, W) logits at the picture's size."""
        return self.logits if self.placement is None else self.placement.back(self.logits)

    def on_square(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """A mask (H, W) in the frame of `logits`, and which of its pixels are the picture's."""
        if self.placement is None:
            return mask, None
        full = self.placement.inner == (self.placement.side,) * 2
        return mask_to_square(mask, self.placement), None if full else self.placement.valid()

    def within(self, values: np.ndarray) -> np.ndarray:
        """The part of (…, S, S) that is the picture's, without padding."""
        if self.placement is None:
            return values
        height, width = self.placement.inner
        return values[..., :height, :width]


@dataclass
class Segmenter:
    """A network with a way to use it.

    Attributes:
        model: `model(images, prompts)` gives logits, see `build_model`.
        way: How.
        seconds: Time the network took, and for how many pictures.
    """

    model: nn.Module
    way: Way
    seconds: float = field(default=0.0, compare=False)
    pictures: int = field(default=0, compare=False)

    def answers(
        self, stack: Stack, prompts_of: Callable[[int], Prompts | None]
    ) -> Iterator[tuple[int, np.ndarray, Answer]]:
        """Index, picture and answer for every picture of a stack, in order.

        Only one batch of pictures is held at a time.

        Args:
            stack: What is segmented.
            prompts_of: Prompts of a picture by its index, or None.

        Raises:
            ConfigError: Prompts lie outside of a picture, or are given with tiles.
        """
        waiting: list[tuple[int, np.ndarray]] = []
        for index in range(len(stack)):
            picture = stack.picture(index)
            prompts = prompts_of(index)
            if prompts is not None:
                # Alone, since empty places beside others' prompts would be tokens too.
                yield from self._plain(waiting)
                waiting = []
                size = (picture.shape[0], picture.shape[1])
                name = stack.id if len(stack) == 1 else f"{stack.id}/{index}"
                yield index, picture, self._prompted(picture, inside(prompts, size, name))
                continue
            waiting.append((index, picture))
            if len(waiting) == self.way.at_once:
                yield from self._plain(waiting)
                waiting = []
        yield from self._plain(waiting)

    def _plain(
        self, waiting: Sequence[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[int, np.ndarray, Answer]]:
        if not waiting:
            return
        if self.way.fit == "tiles":
            for index, picture in waiting:
                yield index, picture, Answer(self._tiled(picture), None)
            return
        placed = [to_square(picture, self.way.side, self.way.fit) for _, picture in waiting]
        logits = self._run(np.stack([square for square, _ in placed]))
        for (index, picture), (_, placement), found in zip(waiting, placed, logits, strict=True):
            yield index, picture, Answer(found, placement)

    def _prompted(self, picture: np.ndarray, prompts: Prompts) -> Answer:
        if self.way.fit == "tiles":
            msg = "prompts belong to a whole picture; use data.fit=squash or letterbox with them"
            raise ConfigError(msg)
        square, placement = to_square(picture, self.way.side, self.way.fit)
        batch = to_batch(prompts, placement).to(self._device)
        return Answer(self._run(square[None], batch)[0], placement)

    def _tiled(self, picture: np.ndarray) -> Tensor:
        """(C, H, W) logits of a picture of any size."""
        from monai.inferers import SlidingWindowInferer  # type: ignore[attr-defined]

        height, width = picture.shape[:2]
        side = self.way.side
        if height < side or width < side:
            # Below and at the right, in the colour that training pads with.
            wide = np.empty((max(height, side), max(width, side), 3), picture.dtype)
            wide[:] = np.array(PADDING) / 255
            wide[:height, :width] = picture
            picture = wide
        slide = SlidingWindowInferer(
            (side, side), _TILES_AT_ONCE, overlap=self.way.overlap, mode="gaussian"
        )
        image = torch.from_numpy(picture.transpose(2, 0, 1)).contiguous()[None]
        logits = slide(image.to(self._device), self._mirrored)
        return cast("Tensor", logits)[0, :, :height, :width].float().cpu()

    def _run(self, squares: np.ndarray, prompts: Any = None) -> Tensor:
        """(B, S, S, 3) to (B, C, S, S) logits in float32 on the processor."""
        images = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
        begun = time.perf_counter()
        logits = self._mirrored(images.to(self._device), prompts).float().cpu()
        self.seconds += time.perf_counter() - begun
        self.pictures += len(squares)
        return logits

    def _mirrored(self, images: Tensor, prompts: Any = None) -> Tensor:
        def plain(x: Tensor) -> Tensor:
            return cast("Tensor", self.model(x) if prompts is None else self.model(x, prompts))

        # Prompts would have to be mirrored as well; a picture that has some is taken as it is.
        if not self.way.mirrors or prompts is not None:
            return plain(images)
        found = [
            plain(images.flip(axes)).flip(axes) if axes else plain(images) for axes in _MIRRORS
        ]
        return torch.stack(found).mean(dim=0)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def smoothed(answer: Answer, before: Answer | None, momentum: float) -> Answer:
    """M times the smoothed logits of the frame before plus 1 - m times these.

    Bringing logits back to the frame's size is linear, so it makes no difference that they are
    smoothed on the model's square.
    """
    if before is None or not momentum or before.logits.shape != answer.logits.shape:
        return answer
    mixed = momentum * before.logits + (1 - momentum) * answer.logits
    return Answer(mixed, answer.placement)


def labels_of(logits: Tensor, threshold: float = 0.5) -> np.ndarray:
    """Class indices of logits.

    Args:
        logits: (1, H, W): foreground from `threshold` on, inclusive; or (C, H, W): the largest.
        threshold: A probability.

    Returns:
        (H, W) uint8.
    """
    if logits.shape[0] == 1:
        cut = float(np.log(threshold / (1 - threshold)))
        return (logits[0] >= cut).numpy().astype(np.uint8)
    return logits.argmax(dim=0).numpy().astype(np.uint8)


class LabelSpool:
    """Class indices of many pictures, compressed: a long clip's masks take little memory."""

    def __init__(self) -> None:
        self._packed: list[tuple[tuple[int, int], bytes]] = []

    def __len__(self) -> int:
        return len(self._packed)

    def append(self, labels: np.ndarray) -> None:
        """Add the (H, W) uint8 indices of the next picture."""
        shape = (labels.shape[0], labels.shape[1])
        self._packed.append((shape, zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)))

    def __call__(self, index: int) -> np.ndarray:
        """(H, W) uint8 indices of a picture."""
        shape, packed = self._packed[index]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self(i) for i in range(len(self)))

    def volume(self) -> np.ndarray:
        """(Z, H, W) of all pictures, which have one size."""
        return np.stack(list(self))

    def replace(self, volume: np.ndarray) -> None:
        """Put other indices in place of all."""
        self._packed = []
        for labels in volume:
            self.append(labels)
