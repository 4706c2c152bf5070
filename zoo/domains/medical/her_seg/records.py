"""One record an image, volume or clip: masks, scores, small pictures, and what is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.geometry import mask_to_square, place
from zoo.domains.medical.her_seg.inference import (
    Answer,
    LabelSpool,
    Segmenter,
    labels_of,
    smoothed,
)
from zoo.domains.medical.her_seg.losses import mask_loss
from zoo.domains.medical.her_seg.metrics import (
    averaged,
    confusion,
    empty_cases,
    object_scores,
    overlap,
    steadiness,
    unit_scores,
)
from zoo.domains.medical.her_seg.objects import numbered, without_small
from zoo.domains.medical.her_seg.overlays import write_extras
from zoo.domains.medical.her_seg.previews import Previewer, as_values
from zoo.domains.medical.her_seg.prompting import PromptSource, from_truth
from zoo.domains.medical.her_seg.stacks import Prompts, Stack
from zoo.errors import ConfigError, DataError
from zoo.task import Record


@dataclass(frozen=True)
class Looking:
    """What is wanted of a stack besides its masks.

    Attributes:
        classes: Names of the K classes.
        config: All settings.
        source: Prompts of the command line.
        distances: Measure outlines as well; it takes longer than counting pixels.
        pictured: Keep small pictures.
    """

    classes: Sequence[str]
    config: Config
    source: PromptSource
    distances: bool = True
    pictured: bool = True


@dataclass
class Unit:
    """Segments one stack and keeps what its record needs.

    Attributes:
        stack: The image, volume or clip.
        segmenter: The network and its way.
        looking: What is wanted.
    """

    stack: Stack
    segmenter: Segmenter
    looking: Looking
    spool: LabelSpool = field(default_factory=LabelSpool)
    scored: LabelSpool = field(default_factory=LabelSpool)
    single: LabelSpool = field(default_factory=LabelSpool)
    truths: dict[int, np.ndarray] = field(default_factory=dict)
    _losses: list[float] = field(default_factory=list)
    _frames: dict[str, list[dict[str, np.ndarray]]] = field(default_factory=dict)
    _prompted: set[str] = field(default_factory=set)

    def record(self) -> Record:
        """Run the network over the stack.

        Raises:
            ConfigError: Prompts do not fit.
            DataError: A file is broken.
        """
        stack = self.stack
        reading = self.looking.config.data
        preview = Previewer(stack, reading.axis, reading.neighbours)
        before: Answer | None = None
        shape: tuple[int, ...] = ()
        spent = self.segmenter.seconds, self.segmenter.pictures
        for index, picture, answer in self.segmenter.answers(stack, self._prompts):
            now = smoothed(answer, before, self._momentum)
            before, shape = now, picture.shape
            labels = self._take(index, now, answer)
            if self.looking.pictured:
                preview.add(index, picture, labels, self._truth(index))
            self._forget(index)
        values = self._described(shape) | self._scores()
        taken = self.segmenter.pictures - spent[1]
        if taken:
            seconds = self.segmenter.seconds - spent[0]
            values["milliseconds"] = np.array(1000 * seconds / taken)
        if self.looking.pictured:
            values |= as_values(preview.panels())
        return Record(stack.id, stack.group, values, self.write)

    def write(self, out: Path) -> list[Path]:
        """Masks in the form of what was read, and what `predict` asks for besides."""
        written = self.stack.write(out, self.spool)
        return written + write_extras(out, self.stack, self.spool, self.looking)

    # -- one picture ----------------------------------------------------------------------------

    @property
    def _momentum(self) -> float:
        return self.segmenter.way.momentum if self.stack.kind == "clip" else 0.0

    @cached_property
    def _is_square(self) -> bool:
        """Whether scores are taken on the model's square; tiles have none."""
        return not self.looking.config.predict.native and self.segmenter.way.fit != "tiles"

    def _prompts(self, index: int) -> Prompts | None:
        given = self.looking.source.of(self.stack, index)
        kind = self.looking.config.optim.prompts
        if given is None and kind != "none":
            truth = self._truth(index)
            given = None if truth is None else from_truth(truth, kind)
            self._prompted |= {"truth"} if given is not None else set()
        elif given is not None:
            self._prompted.add("given")
            if len(self.looking.classes) > 1:
                msg = (
                    f"'{self.stack.id}' has prompts, but the model has {len(self.looking.classes)} "
                    "classes and a prompt says where one is; leave the prompts out"
                )
                raise ConfigError(msg)
        return given

    def _truth(self, index: int) -> np.ndarray | None:
        if index not in self.truths:
            found = self.stack.truth(index)
            if found is None:
                return None
            self.truths[index] = found
        return self.truths[index]

    def _take(self, index: int, answer: Answer, plain: Answer) -> np.ndarray:
        """Keep the masks of a picture, and its loss and scores where there is a truth."""
        labels = self._labels(answer)
        self.spool.append(labels)
        if self._momentum:
            self.single.append(self._labels(plain))
        if self._is_square:
            self.scored.append(self._on_square(answer))
        truth = self._truth(index)
        if truth is None:
            return labels
        if truth.shape != labels.shape:
            msg = (
                f"'{self.stack.id}': the mask is {truth.shape[1]} x {truth.shape[0]} and the "
                f"picture {labels.shape[1]} x {labels.shape[0]}"
            )
            raise DataError(msg)
        self._losses.append(self._loss(plain, truth))
        if self.stack.kind == "clip":
            self._score_frame("scores", self._compared(index, answer), self._at_scale(index))
            if self._momentum:
                self._score_frame("single", self.single(index), truth)
        return labels

    def _labels(self, answer: Answer) -> np.ndarray:
        labels = labels_of(answer.native(), self.segmenter.way.threshold)
        if self.stack.kind == "volume":  # there objects reach through slices: at the end
            return labels
        return without_small(labels, self.looking.config.predict.smallest)

    def _on_square(self, answer: Answer) -> np.ndarray:
        return answer.within(labels_of(answer.logits, self.segmenter.way.threshold))

    def _compared(self, index: int, answer: Answer) -> np.ndarray:
        return self._on_square(answer) if self._is_square else self.spool(index)

    def _forget(self, index: int) -> None:
        """Clips may be long: their truths are let go once they were compared."""
        if self.stack.kind == "clip":
            self.truths.pop(index, None)

    def _loss(self, answer: Answer, truth: np.ndarray) -> float:
        """The training's loss of this picture alone, as the official validation has it."""
        optim = self.looking.config.optim
        square, valid = answer.on_square(truth)
        found = mask_loss(
            answer.logits[None],
            torch.from_numpy(square.astype(np.int64))[None],
            weight=optim.dice_weight,
            probability_form=optim.probability_form,
            valid=None if valid is None else torch.from_numpy(valid)[None],
        )
        return float(found.total)

    # -- the whole ------------------------------------------------------------------------------

    def _described(self, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        stack = self.stack
        if stack.kind == "volume":
            smallest = self.looking.config.predict.smallest
            if smallest > 1:
                self.spool.replace(without_small(self.spool.volume(), smallest))
        pixels = np.zeros(len(self.looking.classes) + 1)
        for labels in self.spool:
            pixels += np.bincount(labels.ravel(), minlength=len(pixels))
        values: dict[str, np.ndarray] = {
            "kind": np.array(stack.kind),
            "pictures": np.array(len(stack)),
            "height": np.array(shape[0]),
            "width": np.array(shape[1]),
            "share": pixels[1:] / max(1.0, pixels.sum()),
            "prompts": np.array(", ".join(sorted(self._prompted)) or "none"),
        }
        if stack.spacing and not self._is_square:
            values["spacing"] = np.array(stack.spacing, np.float64)
        if stack.kind == "clip":
            values["steadiness"] = np.array(steadiness(self.spool, len(self.looking.classes)))
            if self._momentum:
                plain = steadiness(self.single, len(self.looking.classes))
                values["steadiness_single"] = np.array(plain)
        return values

    def _scores(self) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        if self._losses:
            values["loss"] = np.array(float(np.mean(self._losses)))
        if self.stack.kind == "clip":
            for name, frames in self._frames.items():
                clip = averaged(frames)
                if name == "scores":
                    values |= clip | {"frames": np.array(len(frames))}
                else:
                    values["dice_single"] = clip["dice"]
            return values
        if len(self.truths) < len(self.stack):
            return values
        return values | self._compared_whole()

    def _compared_whole(self) -> dict[str, np.ndarray]:
        spool = self.scored if self._is_square else self.spool
        if self.stack.kind == "volume":
            labels = spool.volume()
            truth = np.stack([self._at_scale(i) for i in range(len(self.stack))])
        else:
            labels, truth = spool(0), self._at_scale(0)
        spacing = None if self._is_square else self.stack.spacing
        values = self._measured(labels, truth, spacing)
        return values | self._objects(spool)

    def _at_scale(self, index: int) -> np.ndarray:
        """The truth of a picture as it is compared."""
        truth = self.truths[index]
        if not self._is_square:
            return truth
        way = self.segmenter.way
        placement = place((truth.shape[0], truth.shape[1]), way.side, way.fit)
        height, width = placement.inner
        return mask_to_square(truth, placement)[:height, :width]

    def _objects(self, spool: LabelSpool) -> dict[str, np.ndarray]:
        """Objects found, where the data set numbers them and scores are at its own size."""
        if self.stack.kind != "image" or self._is_square or not self.looking.distances:
            return {}
        known = self.stack.instances(0)
        if known is None:
            return {}
        found = object_scores(numbered(spool(0)), known)
        return {name: np.array(value) for name, value in found.items()}

    def _score_frame(self, name: str, labels: np.ndarray, truth: np.ndarray) -> None:
        spacing = None if self._is_square else self.stack.spacing
        self._frames.setdefault(name, []).append(self._measured(labels, truth, spacing))

    def _measured(
        self, labels: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None
    ) -> dict[str, np.ndarray]:
        classes = len(self.looking.classes)
        if not self.looking.distances:
            found = overlap(confusion(labels, truth, classes))
            return {**found, **empty_cases(found)}
        tolerance = self.looking.config.predict.tolerance
        return dict(unit_scores(labels, truth, classes, spacing=spacing, tolerance=tolerance))
