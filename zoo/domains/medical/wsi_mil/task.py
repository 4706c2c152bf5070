"""`wsi_mil` as the engine sees it: splits of bags, a MIL model, slide metrics, attention files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.medical.wsi_mil import data, figures, sample, serving
from zoo.domains.medical.wsi_mil.config import Config
from zoo.domains.medical.wsi_mil.convert import adopt, convert_official, load_official
from zoo.domains.medical.wsi_mil.localisation import (
    froc_figure,
    froc_metrics,
    froc_table,
    lesion_froc,
)
from zoo.domains.medical.wsi_mil.losses import mil_losses
from zoo.domains.medical.wsi_mil.marks import patch_side
from zoo.domains.medical.wsi_mil.metrics import (
    instance_auc,
    instances_for_share,
    slide_metrics,
)
from zoo.domains.medical.wsi_mil.model import MilOutput, build_model, default_inner
from zoo.domains.medical.wsi_mil.outputs import write_outputs
from zoo.domains.medical.wsi_mil.parts import HEADS
from zoo.domains.medical.wsi_mil.schedule import lr_factor
from zoo.domains.medical.wsi_mil.survey import Survey, survey
from zoo.errors import ConfigError
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
    Record,
    Split,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WITH_INTERVAL = ("auc", "accuracy", "balanced_accuracy", "f1_macro")
_RESAMPLES = 1000


class Standardised(nn.Module):
    """A model on features from which the training mean was taken and deviation divided out.

    Args:
        net: The model.
        mean: (F,) training mean.
        deviation: (F,) training standard deviation, all positive.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def forward(self, features: Tensor, *args: Any, **options: Any) -> MilOutput:
        """As the model inside, on `features: (N, F)` as stored."""
        output: MilOutput = self.net((features - self.mean) / self.deviation, *args, **options)
        return output


class WsiMil(SurveyedTask[Config, Survey]):
    """Slide classification from bags of tile features."""

    monitor = ("f1_micro_plus_auc", "max")
    medical: ClassVar[bool] = True
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def selection(self) -> tuple[str, Literal["max", "min"]]:
        """What `optim.select` names."""
        chosen = self.config.optim.select
        return (chosen.replace("+", "_plus_"), "min" if chosen == "loss" else "max")

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data set: CLAM's layout with planted instances."""
        sample.write(out, defects=defects)

    def survey(self, deep: bool) -> Survey:
        """Slides, labels and features.

        With `deep` every feature value is read; without, those of a data set small enough to be
        kept in memory, so that a value that is not finite is told before a training starts.
        """
        return survey(self.settled().data, deep=deep, keep=True)

    def findings(self, found: Survey, deep: bool) -> list[Finding]:
        """On every slide, the splits and the annotations."""
        return data.check(self.settled(), found=found)

    def prepare(self, out: Path, shard: int, shards: int) -> None:
        """Features of `data.slides`, or of the sample slides; see `prepare`."""
        from zoo.domains.medical.wsi_mil import prepare, sample_slides

        config = self.config
        if config.data.slides is None and config.data.root is None:
            place = sample_slides.folder_in(self.root())
            slides = config.data.model_copy(update={"slides": place})
            config = config.model_copy(update={"data": slides})
        prepare.prepare(out, config, shard, shards)

    def folds(self) -> list[dict[str, str]]:
        """One training a patient (`data.leave_one_group_out`), a fold, or a split file."""
        settled = self.settled().data
        if settled.leave_one_group_out:
            return [{"data.fold": str(n)} for n in range(len(set(self.surveyed().groups.values())))]
        numbers: Iterable[int] = (
            range(settled.folds) if settled.folds else data.available_folds(settled)
        )
        return [{"data.fold": str(n)} for n in numbers] or [{}]

    def splits(self) -> dict[str, Split]:
        """`train`, `val` unless `data.val_fraction` is 0, and `test`."""
        return cast("dict[str, Split]", data.open_splits(self.settled(), self.surveyed()))

    def fit(self, train: Split) -> Facts:
        """Feature width, classes, extraction settings and, if asked for, mean and deviation."""
        split = cast("data.WsiSplit", train)
        facts = data.facts_of(split)
        if self.config.data.standardise:
            mean, deviation = data.instance_statistics(split)
            facts |= {"mean": mean.tolist(), "deviation": deviation.tolist()}
        return facts

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The configured architecture for the width and classes in `facts`.

        Raises:
            ConfigError: The sizes do not go together.
        """
        settings = self.config.model
        width = int(facts["width"])
        inner = settings.inner or default_inner(width)
        if settings.arch.endswith("mha") and inner % HEADS:
            msg = f"model.inner={inner}: the {HEADS} heads of {settings.arch} need a multiple of it"
            raise ConfigError(msg)
        options = settings.model_dump(exclude={"arch", "inner"})
        try:
            net = build_model(settings.arch, width, inner, len(facts["classes"]), **options)
        except ValueError as error:
            msg = f"model: {error}"
            raise ConfigError(msg) from error
        if "mean" in facts:
            return Standardised(net, facts["mean"], facts["deviation"])
        return net

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """AdamW over all parameters in one group, with the official half-cosine."""
        optim = self.config.optim
        adamw = torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)

        def factor(epoch: int, step: int, steps: int) -> float:
            return lr_factor(
                epoch + step / steps,
                epochs=self.config.trainer.epochs,
                warmup_epochs=optim.warmup_epochs,
                minimum=optim.lr_min / optim.lr,
            )

        return {"adamw": Optim(adamw, factor)}

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Slide, branch and diversity loss; STKIM draws from `rng`."""
        bounds = batch["cu_seqlens"]
        losses = self._losses(model(batch["features"], bounds, generator=rng), batch)
        return {
            "loss": losses.total,
            "slide": losses.slide,
            "branch": losses.branch,
            "diversity": losses.diversity,
        }

    def _losses(self, output: MilOutput, batch: Batch) -> Any:
        return mil_losses(
            output,
            batch["labels"],
            batch["cu_seqlens"],
            diversity_weight=self.config.optim.diversity,
            branch_weight=self.config.optim.branch,
        )

    # -- evaluation -----------------------------------------------------------------------------

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record a slide; attention goes to a file on demand."""
        bounds = batch["cu_seqlens"]
        output: MilOutput = model(batch["features"], bounds)
        probabilities = output.logits.float().softmax(-1).cpu().numpy()
        ends = bounds.tolist()
        made = []
        for i, name in enumerate(batch["ids"]):
            start, end = ends[i], ends[i + 1]
            one = MilOutput(
                output.logits[i : i + 1],
                output.branch_logits[i : i + 1],
                output.attention[..., start:end],
            )
            made.append(self._record(name, one, probabilities[i], batch, i))
        return made

    def _record(
        self, name: str, output: MilOutput, probabilities: np.ndarray, batch: Batch, i: int
    ) -> Record:
        # Heads are averaged, branches kept: (K, N), each row sums to 1.
        branches = output.attention.float().softmax(-1).mean(0).cpu().numpy()
        weights = branches.mean(0)
        label = int(batch["labels"][i])
        coords, planted = batch["coords"][i], batch["instances"][i]
        marks, settings = batch["marks"][i], batch["settings"][i]
        values: dict[str, np.ndarray] = {
            "probabilities": probabilities.astype(np.float64),
            "label": np.array(label),
            "instances": np.array(len(weights)),
            "hold_90": np.array(instances_for_share(weights)),
            "attention": weights.astype(np.float32),
        }
        if label >= 0:
            target = torch.tensor([label], device=output.logits.device)
            one = {"labels": target, "cu_seqlens": None}
            values["loss"] = np.array(float(self._losses(output, one).total))
        if coords is not None:
            coords = coords.cpu().numpy()
            values["coords"] = coords.astype(np.int32)
            side = patch_side(coords, settings, self.config.data.patch_size_level0)
            values["side"] = np.array(side)
        if marks is not None:
            values["lesion"] = marks.lesion.astype(np.int16)
            values["lesions"] = np.array(marks.lesions)
        if planted is not None:
            annotated = planted.cpu().numpy()
            values["annotated"] = annotated.astype(np.int8)
            values["instance_auc"] = np.array(instance_auc(weights, annotated))
        write = partial(
            write_outputs,
            name=name,
            branches=branches,
            coords=coords,
            settings=settings,
            prediction=_in_words(probabilities, batch["classes"]),
            slide=batch["slides"][i],
            marks=marks,
            config=self.config,
        )
        return Record(name, batch["groups"][i], values, write)

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """AUC, accuracy, F1 macro and micro, balanced accuracy, kappa, calibration, attention."""
        labels = np.array([r.values["label"] for r in records])
        probabilities = np.stack([r.values["probabilities"] for r in records])
        metrics = slide_metrics(labels, probabilities)
        metrics["loss"] = float(np.mean([r.values["loss"] for r in records]))
        shares = [r.values["hold_90"] / r.values["instances"] for r in records]
        metrics["attention_share_90"] = float(np.median(shares))
        found = [float(r.values["instance_auc"]) for r in records if "instance_auc" in r.values]
        if not np.all(np.isnan(found)):
            metrics["instance_auc"] = float(np.nanmean(found))
        curve = lesion_froc(records, self.config.predict.detection_radius)
        if curve is not None:
            metrics |= froc_metrics(curve)
        chosen = self.config.optim.select
        if "+" in chosen:
            metrics[chosen.replace("+", "_plus_")] = sum(metrics[k] for k in chosen.split("+"))
        return metrics

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Bootstrap over patients."""
        labels = np.array([r.values["label"] for r in records])
        probabilities = np.stack([r.values["probabilities"] for r in records])

        def score(rows: np.ndarray) -> dict[str, float]:
            figures = slide_metrics(labels[rows], probabilities[rows])
            return {k: figures[k] for k in _WITH_INTERVAL}

        return bootstrap_intervals(
            score, [r.group for r in records], resamples=_RESAMPLES, seed=self.config.seed
        )

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """ROC, confusion matrix, attention concentration, attention over coords, FROC."""
        yield from figures.all_figures(records, _classes(records, facts))
        curve = lesion_froc(records, self.config.predict.detection_radius)
        if curve is not None:
            yield "froc", froc_figure(curve)

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """Slides and recall a class; lesions found, where there are annotations."""
        labels = np.array([r.values["label"] for r in records])
        guesses = np.array([r.values["probabilities"].argmax() for r in records])
        rows = []
        for c, name in enumerate(_classes(records, facts)):
            mine = labels == c
            recall = float((guesses[mine] == c).mean()) if mine.any() else None
            rows.append(
                {
                    "class": name,
                    "slides": int(mine.sum()),
                    "predicted": int((guesses == c).sum()),
                    "recall": recall,
                }
            )
        yield "Classes", rows
        curve = lesion_froc(records, self.config.predict.detection_radius)
        if curve is not None:
            yield froc_table(curve)

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Bags in any layout the adapter reads, and slides, whose features are made here."""
        skip = self.config.data.on_error == "skip"
        return cast("Split", data.inputs(paths, facts, skip=skip, config=self.config))

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """Label, probabilities and how many instances hold 90 % of the attention."""
        classes = _classes(records, facts)
        rows = []
        for record in records:
            values = record.values
            label = int(values["label"])
            rows.append(
                {
                    "id": record.id,
                    "alias": alias(record.id),
                    "predicted": classes[int(values["probabilities"].argmax())],
                    "label": classes[label] if label >= 0 else "",
                    **{
                        f"p_{name}": float(p)
                        for name, p in zip(classes, values["probabilities"], strict=True)
                    },
                    "instances": int(values["instances"]),
                    "instances_holding_90": int(values["hold_90"]),
                }
            )
        return rows

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """One bag with a dynamic number of instances."""
        return Export(
            inputs={"features": torch.zeros(16, int(facts["width"]))},
            outputs=("logits", "branch_logits", "attention"),
            dynamic={"features": {0: "instances"}},
            about={
                "features": f"(N, {int(facts['width'])}) one slide's features as stored",
                "logits": "(1, C) " + ", ".join(map(str, facts["classes"])),
                "branch_logits": "(1, K, C) of the branches",
                "attention": "(M, K, N) of heads, branches and instances, before the softmax",
            },
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """One bag to probabilities and attention; see `serving`."""
        return serving.served(model, facts)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """An ACMIL or ABMIL checkpoint of the official code."""
        return convert_official(state)[1]

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of a file; the official one also holds a pickled object, which is not made."""
        return super().read(path) if path.suffix == ".safetensors" else load_official(path).state

    def preparation(self, facts: Facts) -> str:
        """Whether features are standardised."""
        if "mean" in facts:
            return "features standardised by the training instances (data.standardise=true)"
        return "features as stored (data.standardise=false)"

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Architecture, sizes and number of classes of a model without settings."""
        return adopt(state, self.config.data.classes)


def _in_words(probabilities: np.ndarray, classes: Sequence[str]) -> str:
    """The class with the largest probability, as pictures tell it."""
    best = int(probabilities.argmax())
    name = str(classes[best])[:40] if classes else f"class {best}"
    return f"predicted {name} {probabilities[best]:.2f}"


def _classes(records: Sequence[Record], facts: Facts) -> list[str]:
    """Class names; numbers where someone else's predictions come without facts."""
    count = len(records[0].values["probabilities"])
    return [str(c) for c in facts.get("classes", range(count))]
