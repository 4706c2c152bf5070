"""`medusa` as the engine sees it: splits of radiographs, phases, metrics, maps over the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.medical.medusa import breakdown, data, figures, lungs, sample, serving
from zoo.domains.medical.medusa.config import Config
from zoo.domains.medical.medusa.convert import adopt, convert_official
from zoo.domains.medical.medusa.explain import CAPTUM, have_captum
from zoo.domains.medical.medusa.look import Look
from zoo.domains.medical.medusa.losses import weighted_cross_entropy
from zoo.domains.medical.medusa.metrics import (
    at_point,
    operating_point,
    radiograph_metrics,
    rank_metrics,
    wilson,
)
from zoo.domains.medical.medusa.model import (
    Medusa,
    build_body,
    build_model,
    load_body,
    load_initial,
)
from zoo.domains.medical.medusa.overlays import write_dense
from zoo.domains.medical.medusa.records import plain, radiograph_records
from zoo.domains.medical.medusa.resting import RestingMaps
from zoo.domains.medical.medusa.weight_files import read_weights
from zoo.drawing import short_name
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
# Pictures of a test split; each costs a pass for Grad-CAM and some 50 kB in the run folder.
_MOST_PICTURES = 32


class MedusaTask(SurveyedTask[Config, data.Survey]):
    """Chest radiograph classification with MEDUSA, or its body alone on lung masks."""

    monitor = ("sensitivity_plus_accuracy", "max")
    medical: ClassVar[bool] = True
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._look = Look()
        self._facts: Facts = {}
        self._key: dict[str, Path] = {}
        self._resting = RestingMaps(config.trainer.precision)

    @property
    def _body_only(self) -> bool:
        return self.config.optim.objective == "body"

    def selection(self) -> tuple[str, Literal["max", "min"]]:
        """What `optim.select` names."""
        chosen = self.config.optim.select
        return (chosen.replace("+", "_plus_"), "min" if chosen == "loss" else "max")

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data set: synthetic radiographs in COVIDx layout."""
        sample.write(out, defects=defects)

    def survey(self, deep: bool) -> data.Survey:
        """Lists and files, and how they are parted."""
        return data.survey(self.settled(), deep)

    def findings(self, found: data.Survey, deep: bool) -> list[Finding]:
        """On lists and files; with `deep` every radiograph was decoded."""
        return data.check(self.settled(), deep, found)

    def folds(self) -> list[dict[str, str]]:
        """One training a fold by patient (`data.folds`)."""
        return [{"data.fold": str(n)} for n in data.available_folds(self.config)] or [{}]

    def splits(self) -> dict[str, Split]:
        """`train`, `val` unless `data.val_fraction` is 0, and `test`."""
        made = data.open_splits(self.settled(), self.surveyed())
        tests = [s for name, s in made.items() if name.startswith("test")]
        pictured = {i for s in tests for i in sorted(s.ids, key=alias)[:_MOST_PICTURES]}
        every = frozenset(i for s in tests for i in s.ids)
        self._look = Look(frozenset(pictured), every, gradcam=have_captum())
        return made

    def fit(self, train: Split) -> Facts:
        """Classes, which of them is the positive one, and preprocessing."""
        return data.facts_of(train)

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The configured network for the classes in `facts`, or its body alone.

        Raises:
            ConfigError: Settings contradict each other, or the classes.
        """
        settings = self.config.model
        if self._body_only:
            return lungs.LungSegmenter(build_body(settings))
        weights = self.config.optim.class_weights
        classes = facts["classes"]
        if weights is not None and len(weights) != len(classes):
            msg = (
                f"optim.class_weights has {len(weights)} numbers for {len(classes)} classes "
                f"({', '.join(classes)})"
            )
            raise ConfigError(msg)
        return build_model(settings, len(classes))

    def pretrained(self, model: nn.Module) -> Sequence[str]:
        """What `model.body_init` and `model.backbone_init` name.

        Raises:
            WeightsError: A file is missing or does not fit.
        """
        settings = self.config.model
        if not isinstance(model, lungs.LungSegmenter):
            return load_initial(cast("Medusa", model), settings)
        if settings.body_init is None:
            return ()
        load_body(model.body, settings.body_init.expanduser())
        return [f"body starts from {settings.body_init.name}"]

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """One Adam over all parameters, as published; those at rest have no gradient."""
        optim, epochs = self.config.optim, self.config.trainer.epochs
        named = list(model.named_parameters())
        own = optim.attention_lr is not None and not self._body_only
        attention = [p for n, p in named if own and n.startswith(("body.", "heads."))]
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in named if not (own and n.startswith(("body.", "heads.")))]}
        ]
        if attention:
            groups.append({"params": attention, "lr": optim.attention_lr})
        adam = torch.optim.Adam(groups, lr=optim.lr, eps=1e-8, weight_decay=optim.weight_decay)

        def factor(epoch: int, step: int, steps: int) -> float:
            if optim.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch + step / steps) / epochs)))

        return {"adam": Optim(adam, factor)}

    def phase(self, epoch: int, step: int) -> Phase | None:
        """Body and heads in epochs 0, n, 2n … of `optim.alternate=n`, the backbone in the others.

        Batch statistics of the backbone go on in every epoch, as in the official code.
        """
        every = self.config.optim.alternate
        if self._body_only or not every or self.config.model.variant == "backbone_only":
            return None
        resting = ("backbone",) if epoch % every == 0 else ("body", "heads")
        return Phase(("adam",), frozen=resting)

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Weighted cross-entropy, or cross-entropy and Dice of the body's lungs."""
        if self._body_only:
            found = lungs.lung_loss(model, batch)
            return {"loss": found.total, "bce": found.bce, "dice_loss": found.dice}
        labels = batch["label"]
        logits = model(batch["image"], batch["semantic"], body_map=self._resting_map(model, batch))
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": self._cross_entropy(logits, batch), "accuracy": right}

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        return weighted_cross_entropy(
            logits,
            batch["label"],
            class_weights=self._class_weights(),
            sample_weights=batch["weight"],
            smoothing=self.config.optim.label_smoothing,
        )

    def _class_weights(self) -> Tensor | None:
        given = self.config.optim.class_weights
        return None if given is None else torch.tensor(given)

    def _resting_map(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """The body's maps where they need not be computed again: it rests, its input too."""
        if not self.config.optim.cache_body or self.config.data.augment == "aligned":
            return None
        body = getattr(plain(model), "body", None)
        if body is None or any(p.requires_grad for p in body.parameters()):
            return None
        return self._resting(body, batch["semantic"])

    # -- evaluation -----------------------------------------------------------------------------

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record a radiograph; a few of a test split keep their maps for the pictures."""
        if self._body_only:
            made = lungs.lung_records(model, batch, self._look)
        else:
            made = radiograph_records(
                model,
                batch,
                self._look,
                class_weights=self._class_weights(),
                smoothing=self.config.optim.label_smoothing,
            )
        return [self._writing(r) for r in made] if self._key else made

    def _writing(self, record: Record) -> Record:
        """The record with what `zoo predict` writes for it."""
        said = ""
        if self._body_only:
            said = f"lung area {float(record.values['lung_area']):.1%} of the picture"
        elif "preview" in record.values:
            (row,) = self.rows([record], self._facts)
            chances = [f"{k.replace('p_', 'p(', 1)}) {v:.3f}" for k, v in row.items() if "p_" in k]
            said = f"{row['predicted']}, " + ", ".join(chances)
            said += f"; at the operating point: {row['decision']}" if row["decision"] else ""
        write = partial(
            write_dense,
            name=record.id,
            values=record.values,
            said=short_name(said, 200),
            alpha=self.config.predict.alpha,
            key=self._key if record.id == next(iter(self._key)) else {},
        )
        return Record(record.id, record.group, record.values, write)

    def settle(self, records: Sequence[Record], facts: Facts) -> Facts:
        """The operating point: the threshold that keeps `optim.sensitivity` on validation.

        Args:
            records: Of the validation split, with the weights that were chosen.
            facts: Those of the training so far.

        Returns:
            `operating_point` with the threshold and the sensitivity and specificity it had there;
            nothing where validation has no positive radiograph.
        """
        known = [r for r in records if int(r.values.get("label", -1)) >= 0]
        if self._body_only or not known:
            return {}
        positive = positive_of(known, facts)
        true = breakdown.labels_of(known) == positive
        scores = breakdown.probabilities_of(known)[:, positive]
        point = operating_point(true, scores, self.config.optim.sensitivity)
        if point is None:
            return {}
        name = classes_of(known, facts)[positive]
        counts = {
            "positive_patients": breakdown.patients(
                [r for r, t in zip(known, true, strict=True) if t]
            ),
            "negative_patients": breakdown.patients(
                [r for r, t in zip(known, true, strict=True) if not t]
            ),
        }
        return {"operating_point": point.facts() | counts | {"class": name, "split": "val"}}

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """Accuracy, sensitivity, specificity, areas, calibration, and those at the point.

        Raises:
            DataError: No radiograph has a label.
        """
        if self._body_only:
            return lungs.lung_metrics(records)
        known = labelled(records)
        labels, probabilities = breakdown.labels_of(known), breakdown.probabilities_of(known)
        positive = positive_of(known, facts)
        metrics = radiograph_metrics(labels, probabilities, classes_of(known, facts), positive)
        point = facts.get("operating_point")
        if point:
            kept = at_point(labels == positive, probabilities[:, positive], point["threshold"])
            metrics["sensitivity_at_point"], metrics["specificity_at_point"] = kept
        losses = [float(r.values["loss"]) for r in known if "loss" in r.values]
        if losses:
            metrics["loss"] = float(np.mean(losses))
        metrics["sensitivity_plus_accuracy"] = metrics["sensitivity"] + metrics["accuracy"]
        for key in ("cam_in_lungs", "map_in_lungs"):
            found = [float(r.values[key]) for r in known if key in r.values]
            if found and not np.all(np.isnan(found)):
                metrics[key] = float(np.nanmean(found))
        return metrics

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Areas and calibration resampled by patient; Wilson's interval for every proportion.

        A proportion counts each patient once, whatever the number of his radiographs.
        """
        if self._body_only:
            return self._lung_intervals(records)
        known = labelled(records)
        labels, probabilities = breakdown.labels_of(known), breakdown.probabilities_of(known)
        classes, positive = classes_of(known, facts), positive_of(known, facts)

        def score(rows: np.ndarray) -> dict[str, float]:
            return rank_metrics(labels[rows], probabilities[rows], positive)

        found = bootstrap_intervals(
            score, [r.group for r in known], resamples=_RESAMPLES, seed=self.config.seed
        )
        values = self.score(known, facts)
        for name, trials in breakdown.trials(known, classes, positive).items():
            if name in values and trials:
                found[name] = wilson(values[name], trials)
        return found

    def _lung_intervals(self, records: Sequence[Record]) -> dict[str, tuple[float, float]]:
        known = [r for r in records if "dice" in r.values]

        def score(rows: np.ndarray) -> dict[str, float]:
            return {k: float(np.mean([known[i].values[k] for i in rows])) for k in ("dice", "iou")}

        return bootstrap_intervals(
            score, [r.group for r in known], resamples=_RESAMPLES, seed=self.config.seed
        )

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """ROC with the operating point, confusion, reliability, maps over radiographs."""
        alpha = self.config.predict.alpha
        if self._body_only:
            return figures.mask_figures(records, alpha)
        classes, positive = classes_of(records, facts), positive_of(records, facts)
        return figures.all_figures(records, classes, positive, facts.get("operating_point"), alpha)

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """Classes, operating point, sources with a warning, subgroups, lungs."""
        if self._body_only:
            return ()
        classes, positive = classes_of(records, facts), positive_of(records, facts)
        return breakdown.all_tables(records, classes, positive, facts.get("operating_point"))

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Image files, DICOM files and folders of them."""
        split = cast("data.MedusaSplit", data.inputs(paths, facts, self.config))
        wanted = self.config.predict
        cams = wanted.gradcam and not self._body_only and wanted.dense
        self._facts = facts
        self._key = dict(zip(split.ids, split.paths, strict=True))
        self._look = Look(
            None if wanted.dense and (wanted.maps or cams) else frozenset(),
            frozenset(),
            maps=wanted.maps,
            gradcam=cams and have_captum(),
        )
        if cams and not have_captum():
            split.notes.append(f"no Grad-CAM is drawn: {CAPTUM}")
        return split

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """Prediction, decision at the operating point, probabilities; no patient."""
        if self._body_only:
            return lungs.lung_rows(records)
        classes, positive = classes_of(records, facts), positive_of(records, facts)
        point = facts.get("operating_point")
        rows = []
        for record in records:
            values = record.values
            chances = values["probabilities"]
            label = int(values["label"])
            decision = ""
            if point:
                above = float(chances[positive]) >= point["threshold"]
                decision = classes[positive] if above else f"not {classes[positive]}"
            rows.append(
                {
                    "id": record.id,
                    "alias": alias(record.id),
                    "predicted": classes[int(chances.argmax())],
                    "decision": decision,
                    "label": classes[label] if label >= 0 else "",
                    **{f"p_{c}": float(p) for c, p in zip(classes, chances, strict=True)},
                }
            )
        return rows

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """Both inputs by name, any number of radiographs."""
        sizes = self.config.model
        image = torch.zeros(2, 3, sizes.image_size, sizes.image_size)
        semantic = torch.zeros(2, 1, sizes.body_size, sizes.body_size)
        batch = {0: "batch"}
        about = {
            "image": "(B, 3, S, S) in [0, 1], blue before red, prepared as for training",
            "semantic": "(B, 1, T, T), zero mean and unit deviation each",
            "logits": "(B, K) " + ", ".join(map(str, facts.get("classes", ()))),
            "body_map": "(B, 1, T, T) in (0, 1): where the lungs are",
        }
        if self._body_only:
            inputs = {"semantic": semantic}
            return Export(inputs, ("body_map",), {"semantic": batch}, about=about)
        return Export(
            inputs={"image": image, "semantic": semantic},
            outputs=("logits",),
            dynamic={"image": batch, "semantic": batch},
            about=about,
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """Grey radiographs of any size to probabilities, decision and map; see `serving`."""
        return serving.served(model, facts)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """A checkpoint of the official TensorFlow code, or the lung segmenter's Keras weights."""
        return convert_official(state)

    def read(self, path: Path) -> dict[str, Tensor]:
        """Tensors of TensorFlow's and Keras' files, of arrays, and of torch's."""
        torchs = path.is_file() and path.suffix in (".pth", ".pt", ".ckpt")
        return super().read(path) if torchs else read_weights(path)

    def preparation(self, facts: Facts) -> str:
        """Sizes and crops of both inputs."""
        return ", ".join(f"{k}={v}" for k, v in facts["preprocessing"].items())

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Sizes, variant and number of classes of a model without settings."""
        return adopt(state, self.config)


# -- what follows from facts --------------------------------------------------------------------


def classes_of(records: Sequence[Record], facts: Facts) -> list[str]:
    """Class names; numbers where someone else's predictions come without facts."""
    count = len(records[0].values["probabilities"])
    return [str(c) for c in facts.get("classes", range(count))]


def positive_of(records: Sequence[Record], facts: Facts) -> int:
    """Index of the class that sensitivity is about: as the facts say, else the last."""
    return int(facts.get("positive", len(classes_of(records, facts)) - 1))


def labelled(records: Sequence[Record]) -> list[Record]:
    """The records with a label.

    Raises:
        DataError: There is none.
    """
    known = [r for r in records if int(r.values["label"]) >= 0]
    if not known:
        msg = "no radiograph of the split has a label, so nothing can be scored; use zoo predict"
        raise DataError(msg)
    return known
