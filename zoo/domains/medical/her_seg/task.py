"""`her_seg` as the engine sees it: pictures to train on, images, volumes and clips to score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.medical.her_seg import data, figures, sample, serving, tables
from zoo.domains.medical.her_seg.config import Config
from zoo.domains.medical.her_seg.convert import adopt, convert_official, load_pretrained
from zoo.domains.medical.her_seg.enlarged import low_resolution_loss
from zoo.domains.medical.her_seg.inference import Segmenter, Way
from zoo.domains.medical.her_seg.metrics import MEASURES, nan_mean, split_scores, stacked
from zoo.domains.medical.her_seg.model import HerSegModel, build_model
from zoo.domains.medical.her_seg.previews import spread
from zoo.domains.medical.her_seg.prompting import PromptSource
from zoo.domains.medical.her_seg.prompts import PromptBatch
from zoo.domains.medical.her_seg.records import Looking, Unit
from zoo.errors import ConfigError, DataError
from zoo.intervals import bootstrap_intervals
from zoo.privacy import alias
from zoo.surveying import SurveyedTask
from zoo.task import (
    Adoption,
    Batch,
    Conversion,
    Export,
    Facts,
    Finding,
    Metrics,
    Optim,
    Phase,
    Record,
    Split,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLES = 1000
# Small pictures are kept for this many units of a split; each takes some 100 kB.
_MOST_PICTURED = 150


class HerSeg(SurveyedTask[Config, data.Survey]):
    """Segmentation of medical images, volumes and video with HER-Seg."""

    monitor = ("dice", "max")
    medical: ClassVar[bool] = True
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._classes: list[str] | None = None
        self._pictured: set[str] = set()
        self._hasty: set[str] = set()
        self._source = PromptSource(config.predict)
        self._left_out: dict[str, str] = {}

    def selection(self) -> tuple[str, Literal["max", "min"]]:
        """What `optim.select` names."""
        chosen = self.config.optim.select
        return (chosen, "min" if chosen == "loss" else "max")

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data sets: pictures, nuclei, volumes and clips in real layouts."""
        sample.write(out, defects=defects)

    def survey(self, deep: bool) -> data.Survey:
        """Lists, images, masks, volumes and clips, and how they are parted."""
        return data.survey(self.settled(), deep)

    def findings(self, found: data.Survey, deep: bool) -> list[Finding]:
        """On lists, images, masks, volumes and clips; with `deep` all were read whole."""
        return data.check(self.settled(), deep, found)

    def splits(self) -> dict[str, Split]:
        """`train`, `val` unless there is none, and `test`."""
        made = data.open_splits(self.settled(), self.surveyed())
        for name, split in made.items():
            if name.startswith("test") or (self.serving and name != "train"):
                self._picture(split)
            elif name == "val":
                # Validation after every epoch counts pixels; outlines are measured once, at last.
                self._hasty |= set(split.ids)
        return made

    def _picture(self, split: Split) -> None:
        """Choose the units of which small pictures are kept."""
        places = spread(len(split.ids), _MOST_PICTURED)
        self._pictured |= {split.ids[i] for i in places}

    def fit(self, train: Split) -> Facts:
        """Classes, the values they have in files, and how pictures meet the model."""
        return data.facts_of(train)

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The network for the classes in `facts`.

        Raises:
            ConfigError: Settings contradict each other, or the classes.
        """
        classes = [str(c) for c in facts["classes"]]
        self._classes = classes
        if self.config.optim.prompts != "none" and len(classes) > 1:
            msg = (
                f"optim.prompts={self.config.optim.prompts}: a prompt says where one class is, and "
                f"there are {len(classes)} ({', '.join(classes)}); choose one with data.target or "
                "data.labels"
            )
            raise ConfigError(msg)
        try:
            return build_model(self.config.model, len(classes))
        except ValueError as error:
            msg = f"model: {error}"
            raise ConfigError(msg) from error

    def pretrained(self, model: nn.Module) -> Sequence[str]:
        """What `model.encoder_weights` and `model.sam_weights` name.

        Raises:
            WeightsError: A file is missing or does not fit.
        """
        return load_pretrained(cast("HerSegModel", model), self.config.model)

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """Adam as published, or AdamW that spares biases and norms; see `optim.schedule`."""
        optim, epochs = self.config.optim, self.config.trainer.epochs
        made: torch.optim.Optimizer
        if optim.optimiser == "adam":
            made = torch.optim.Adam(
                model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay
            )
        else:
            every = list(model.parameters())
            groups = [
                {"params": [p for p in every if p.ndim > 1], "weight_decay": optim.weight_decay},
                {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
            ]
            made = torch.optim.AdamW(groups, lr=optim.lr)

        def factor(epoch: int, step: int, steps: int) -> float:
            done = epoch * steps + step
            warm = min(1.0, (done + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
            if optim.schedule == "exponential":
                return warm * optim.decay**epoch
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done / (epochs * steps))))

        return {optim.optimiser: Optim(made, factor)}

    def phase(self, epoch: int, step: int) -> Phase | None:
        """Encoder and neck rest in the first `optim.frozen_encoder` epochs."""
        if epoch >= self.config.optim.frozen_encoder:
            return None
        resting = ("image_encoder", "neck")
        return Phase((self.config.optim.optimiser,), frozen=resting, still=resting)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Dice and focal cross-entropy, and the soft overlap that official training watches."""
        optim = self.config.optim
        # From the small logits: nothing of the images' size is kept for the backward pass.
        found = low_resolution_loss(
            model(batch["image"], _prompts_of(batch), small=True),
            batch["mask"],
            weight=optim.dice_weight,
            per_image=optim.dice == "image",
            probability_form=optim.probability_form,
            # A stretched picture fills the square, so there is nothing to leave out.
            valid=None if self.config.data.fit == "squash" else batch.get("valid"),
        )
        return {
            "loss": found.total,
            "dice_loss": found.dice,
            "focal_loss": found.focal,
            "soft_iou": found.iou,
        }

    # -- evaluation -----------------------------------------------------------------------------

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record an image, volume or clip."""
        segmenter = Segmenter(model, Way.of(self.config))
        made = []
        for stack in batch["stacks"]:
            looking = Looking(
                classes=self._classes or ["foreground"],
                config=self.config,
                source=self._source,
                distances=stack.id not in self._hasty,
                pictured=stack.id in self._pictured,
            )
            try:
                made.append(Unit(stack, segmenter, looking).record())
            except DataError as error:
                # Stacks are read here and not when they are listed, so here a broken one shows.
                if self.config.data.on_error != "skip":
                    raise
                self._left_out[stack.id] = str(error)
        return made

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """Means over units, class by class and then over classes (see the card).

        Raises:
            DataError: No unit has a mask.
        """
        return split_scores(stacked([r.values for r in _scored(records)]), _names(records, facts))

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Bootstrap over patients, volumes or clips; none where there is only one."""
        known = _scored(records)
        if len({r.group for r in known}) < 2:
            return {}
        arrays = stacked([r.values for r in known])
        names = [n for n in MEASURES if n in arrays]

        def score(rows: np.ndarray) -> dict[str, float]:
            return {n: float(nan_mean(nan_mean(arrays[n][rows]))) for n in names}

        return bootstrap_intervals(
            score, [r.group for r in known], resamples=_RESAMPLES, seed=self.config.seed
        )

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """Worst, middle and best with outlines and errors; Dice of every unit."""
        return figures.all_figures(records, _names(records, facts))

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """How it was scored, classes, empty masks, smoothing, the smallest Dice, what is broken."""
        yield from tables.all_tables(records, _names(records, facts), self.config)
        if self._left_out:
            rows = [{"id": alias(name)} for name in sorted(self._left_out)]
            yield "Left out, since a file cannot be read", rows

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Images, volumes, DICOM series, frame folders, video files and folders of them."""
        self._classes = [str(c) for c in facts["classes"]]
        return data.inputs(paths, facts, self.config)

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """Sizes, share of each class, scores where there is a truth."""
        return tables.prediction_rows(records, _names(records, facts))

    def remarks(self, records: Sequence[Record], facts: Facts) -> Sequence[str]:
        """How pictures met the model, what prompts and smoothing did, how long it took."""
        told = [f"skipped {line}" for line in self._left_out.values()]
        told.append(f"each picture was {Way.of(self.config).told()}")
        told += self._about_prompts(records)
        told += _about_smoothing(records, self.config.video.momentum)
        spent = [float(r.values["milliseconds"]) for r in records if "milliseconds" in r.values]
        if spent:
            middle = float(np.median(spent))
            told.append(f"the network took {middle:.0f} ms a picture (median)")
        return told

    def _about_prompts(self, records: Sequence[Record]) -> list[str]:
        if not self._source.any:
            return []
        told = [f"predict.prompts: '{name}' is none of the inputs" for name in self._source.unused]
        taught = self.config.optim.prompts != "none" or self.config.model.sam_weights is not None
        if not taught:
            told.append(
                "this model was trained without prompts (optim.prompts=none) and never learnt "
                "what they mean: do not trust what they changed"
            )
        return told

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """Any number of pictures on the model's square, without prompts."""
        side = self.config.model.image_size
        return Export(
            inputs={"image": torch.zeros(2, 3, side, side)},
            outputs=("logits",),
            dynamic={"image": {0: "batch"}},
            about={
                "image": "(B, 3, S, S) in [0, 1], RGB, brought to the square as for training",
                "logits": "(B, K, S, S): " + _maps(facts),
            },
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """Images of any size in, probabilities at their size out, by way of `data.fit`."""
        return serving.served(model, facts, self.config)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """An official checkpoint: a task's, or the distilled encoder."""
        return convert_official(state)

    def preparation(self, facts: Facts) -> str:
        """How images meet the network; their scaling is in the weights."""
        return f"data.fit={self.config.data.fit}, model.normalisation as in the file"

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Sizes, scaling of images and number of classes of a model without settings."""
        return adopt(state, self.config)


def _prompts_of(batch: Batch) -> PromptBatch | None:
    """The prompts a training batch came with; places that no picture uses are left out."""
    points, box = batch.get("points"), batch.get("box")
    used = 0 if points is None else int((points[..., 2] >= 0).sum(dim=1).max())
    boxes = None
    if box is not None and bool((box >= 0).all(dim=1).any()):
        missing = (box < 0).all(dim=1, keepdim=True)
        boxes = box.masked_fill(missing, float("nan")).unsqueeze(1)
    if not used and boxes is None:
        return None
    if points is None or not used:
        return PromptBatch(boxes=boxes)
    return PromptBatch(points[:, :used, :2], points[:, :used, 2].long(), boxes)


def _maps(facts: Facts) -> str:
    """What the maps of logits are of, in words."""
    names = [str(c) for c in facts["classes"]]
    return f"{names[0]}, for a sigmoid" if len(names) == 1 else f"background, {', '.join(names)}"


def _names(records: Sequence[Record], facts: Facts) -> list[str]:
    """Class names; numbers where someone else's masks come without facts."""
    if "classes" in facts:
        return [str(c) for c in facts["classes"]]
    count = max((len(r.values.get("share", ())) for r in records), default=1)
    return ["foreground"] if count == 1 else [f"class {i + 1}" for i in range(count)]


def _scored(records: Sequence[Record]) -> list[Record]:
    """The records with a truth.

    Raises:
        DataError: There is none.
    """
    known = [r for r in records if "dice" in r.values]
    if not known:
        msg = "nothing of the split has a mask, so nothing can be scored; use zoo predict"
        raise DataError(msg)
    return known


def _about_smoothing(records: Sequence[Record], momentum: float) -> list[str]:
    told = []
    for record in records:
        values = record.values
        if "steadiness_single" not in values:
            continue
        line = (
            f"{record.id}: frames in a row share (IoU) {float(values['steadiness_single']):.3f} "
            f"each for itself, {float(values['steadiness']):.3f} smoothed with momentum "
            f"{momentum:g}"
        )
        if "dice_single" in values:
            before, after = (float(nan_mean(values[n])) for n in ("dice_single", "dice"))
            line += f"; Dice {before:.3f} and {after:.3f}"
        told.append(line)
    return told
