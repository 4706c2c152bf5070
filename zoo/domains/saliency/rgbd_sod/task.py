"""`rgbd_sod` as the engine sees it: pairs of image and depth, GL-DMNet, salience maps, scores."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.saliency.rgbd_sod import compare, data, figures, foreign, sample, serving
from zoo.domains.saliency.rgbd_sod.config import Config
from zoo.domains.saliency.rgbd_sod.convert import adopt, convert_any, load_backbones
from zoo.domains.saliency.rgbd_sod.inputs import reading_of
from zoo.domains.saliency.rgbd_sod.losses import deep_supervision
from zoo.domains.saliency.rgbd_sod.maps import pictures, resized, to_bytes, write_map
from zoo.domains.saliency.rgbd_sod.metrics import (
    dataset_scores,
    image_scores,
    stacked,
    stacked_scores,
)
from zoo.domains.saliency.rgbd_sod.model import GLDMNet, build_model
from zoo.errors import ConfigError
from zoo.intervals import bootstrap_intervals
from zoo.surveying import SurveyedTask
from zoo.task import (
    Adoption,
    Batch,
    Comparison,
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

_ENCODERS = ("encoder_rgb", "encoder_depth")
# PVTv2's own parts; the new patch embeddings train throughout.
_BLOCKS = tuple(f"transformer.{i}.{part}" for i in range(4) for part in ("blocks", "norm"))
_WITH_INTERVAL = ("mae", "sm", "max_fm", "max_em", "wfm", "iou")
_RESAMPLES = 500
# Small pictures are kept for this many images of a split; of all they would fill the memory.
_PICTURED = 300


class RgbdSod(SurveyedTask[Config, data.Survey]):
    """Salient object detection from a colour image and an aligned depth map."""

    monitor = ("mae", "min")
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._pictured: set[str] = set()

    def selection(self) -> tuple[str, Literal["max", "min"]]:
        """What `optim.select` names."""
        chosen = self.config.optim.select
        return (chosen, "min" if chosen == "mae" else "max")

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data set: NJU2K's layout, depth and colour both needed."""
        sample.write(out, defects=defects)

    def survey(self, deep: bool) -> data.Survey:
        """Pairs of every set, with their masks."""
        return data.survey(self.settled(), deep=deep)

    def findings(self, found: data.Survey, deep: bool) -> list[Finding]:
        """On every pair; with `deep` every file was read whole."""
        return data.check(self.settled(), found)

    def splits(self) -> dict[str, Split]:
        """`train`, `val` unless `data.val_fraction` is 0, and `test_<set>` for each test set."""
        found = data.open_splits(self.settled(), self.surveyed())
        for name, split in found.items():
            if name != "train":
                self._picture(split)
        return dict(found)

    def _picture(self, split: Split) -> None:
        """Choose the images of which small pictures are kept, evenly over the split."""
        every = -(-len(split.ids) // _PICTURED)
        self._pictured |= set(split.ids[::every])

    def fit(self, train: Split) -> Facts:
        """Polarity of the depth files and how they are scaled."""
        return data.facts_of(cast("data.RgbdSplit", train))

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The configured network.

        Raises:
            ConfigError: The sizes do not go together.
        """
        try:
            return build_model(self.config.model)
        except ValueError as error:
            msg = f"model: {error}"
            raise ConfigError(msg) from error

    def pretrained(self, model: nn.Module) -> Sequence[str]:
        """ImageNet weights of `model.resnet_weights` and `model.pvt_weights`."""
        found = load_backbones(cast("GLDMNet", model), self.config.model)
        told = [
            f"{len(f.state)} tensors loaded, {len(f.dropped)} have no place here" for f in found
        ]
        if not told and self.config.model.backbone.startswith("resnet"):
            told = [
                "encoders and transformer start from random numbers; ImageNet files: "
                "model.resnet_weights, model.pvt_weights"
            ]
        return told

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """One Adam over all parameters; the learning rate decays by epoch."""
        optim = self.config.optim
        adam = torch.optim.Adam(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)

        def factor(epoch: int, step: int, steps: int) -> float:
            done = epoch * steps + step + 1
            warm = min(1.0, done / optim.warmup_steps) if optim.warmup_steps else 1.0
            return warm * optim.decay**epoch

        return {"adam": Optim(adam, factor)}

    def phase(self, epoch: int, step: int) -> Phase | None:
        """Encoders rest first, then the transformer blocks, then all train (paper, section IV).

        What rests takes no gradient and keeps its batch statistics.
        """
        optim, model = self.config.optim, self.config.model
        still: tuple[str, ...] = ()
        if epoch < optim.frozen_encoders:
            still = _ENCODERS[:1] if model.share_encoders else _ENCODERS
        elif epoch < optim.frozen_encoders + optim.frozen_transformer:
            still = _BLOCKS if model.transformer != "none" else ()
        return Phase(step=("adam",), frozen=still, still=still)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """The four maps' losses, weighted (equations 31 to 33)."""
        optim = self.config.optim
        maps = model(batch["rgb"], batch["depth"])
        return deep_supervision(maps, batch["mask"], kind=optim.loss, lambdas=optim.lambdas)

    # -- evaluation -----------------------------------------------------------------------------

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record an image: scores at the truth's size, small pictures, the map on demand."""
        started = _now(batch["rgb"].device)
        sides = model(batch["rgb"], batch["depth"], return_side=True)
        probabilities = [side.float().sigmoid()[:, 0].cpu() for side in sides]
        spent = (_now(batch["rgb"].device) - started) * 1000
        made = [
            self._record(name, [p[i] for p in probabilities], batch, i)
            for i, name in enumerate(batch["id"])
        ]
        if len(made) == 1:
            # A batch of one is what a camera gives; a share of a larger one would flatter.
            one = made[0]
            values = {**one.values, "milliseconds": np.array(spent)}
            made = [Record(one.id, one.group, values, one.write)]
        return made

    def _record(self, name: str, maps: Sequence[Tensor], batch: Batch, i: int) -> Record:
        values: dict[str, np.ndarray] = {"depth_valid": np.array(bool(batch["depth_valid"][i]))}
        truth = batch["truth"][i] if "truth" in batch else None
        if truth is not None:
            values |= image_scores(to_bytes(resized(maps[0], truth.shape)), truth)
        if name in self._pictured:
            values |= pictures(batch["preview_rgb"][i], batch["preview_depth"][i], truth, maps)
        height, width = batch["size"][i]
        minmax = self.config.predict.minmax

        def write(out: Path) -> list[Path]:
            return write_map(out, name, to_bytes(resized(maps[0], (height, width)), minmax))

        return Record(name, name, values, write)

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """MAE, S, E, F, weighted F and IoU of a data set (see the card for the protocol)."""
        return dataset_scores([r.values for r in records])

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Bootstrap over images."""
        arrays = stacked([r.values for r in records])

        def score(rows: np.ndarray) -> dict[str, float]:
            found = stacked_scores(arrays, rows)
            return {k: found[k] for k in _WITH_INTERVAL}

        return bootstrap_intervals(
            score, [r.group for r in records], resamples=_RESAMPLES, seed=self.config.seed
        )

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """Best, median and worst images with all four maps; PR and F-threshold curves."""
        return figures.all_figures(records)

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """How it was scored, and the images with the largest error."""
        return figures.all_tables(records, self.config)

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Pairs in any layout the adapter reads, one image a batch as a camera gives them."""
        split = data.inputs(paths, facts, self.config)
        self._picture(split)
        return split

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """Scores where there is a truth, else how much was found and how long it took."""
        return figures.rows(records)

    def remarks(self, records: Sequence[Record], facts: Facts) -> Sequence[str]:
        """How long one image took, and how many had no usable depth."""
        spent = [float(r.values["milliseconds"]) for r in records if "milliseconds" in r.values]
        size = self.config.model.input_size
        told = []
        if spent:
            middle = float(np.median(spent))
            told.append(
                f"latency at batch 1: median {middle:.1f} ms an image at {size} x {size}, "
                f"{1000 / middle:.1f} images/s, network alone"
            )
        blind = sum(not bool(r.values["depth_valid"]) for r in records)
        if blind and self.config.data.depth == "files":
            told.append(f"{blind} of {len(records)} depth maps say nothing (constant or empty)")
        return told

    def _tests(self) -> dict[str, data.RgbdSplit]:
        splits = self.splits()
        return {n: cast("data.RgbdSplit", s) for n, s in splits.items() if n.startswith("test")}

    def methods(self, predictions: Path) -> Mapping[str, Path]:
        """A folder of one method's maps, or of one folder a method."""
        return foreign.method_folders(predictions, self._tests())

    def foreign(self, predictions: Path) -> Mapping[str, Sequence[Record]]:
        """A folder of another method's maps, scored against every test set it has maps for."""
        return foreign.foreign_splits(predictions, self._tests(), self.config)

    def compared(self, found: Mapping[str, Mapping[str, Sequence[Record]]]) -> Comparison:
        """Methods by data sets: rows, Markdown, LaTeX, curves with their data."""
        return compare.compared(found, self.config)

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """One pair at the input size, any number of them at once."""
        size = self.config.model.input_size
        return Export(
            inputs={"rgb": torch.zeros(2, 3, size, size), "depth": torch.zeros(2, 1, size, size)},
            outputs=("logits",),
            dynamic={"rgb": {0: "batch"}, "depth": {0: "batch"}},
            about={
                "rgb": "(B, 3, S, S), normalised by ImageNet's mean and deviation",
                "depth": "(B, 1, S, S) in [0, 1], near dark",
                "logits": "(B, 1, S, S) of salience, for a sigmoid",
            },
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """Image and depth of any size in, the map at the image's size out."""
        reading = reading_of(facts, self.config, ())
        return serving.served(model, facts, reading, self.config.predict.minmax)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """ImageNet ResNet-50 or PVTv2-B2 weights under our names; GL-DMNet itself has none."""
        return convert_any(state, self.config.model)

    def preparation(self, facts: Facts) -> str:
        """Size of the pair, scaling of the image, which end of depth is near."""
        side = facts["input_size"]
        return f"{side} x {side} pixels, ImageNet's mean and scale, {facts['default_polarity']}"

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Sizes of a network without settings; depth is read as the settings say."""
        return adopt(state, self.config)


def _now(device: torch.device) -> float:
    """Seconds, after what the device was asked to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
