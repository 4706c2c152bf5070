"""`fusion_reid` as the engine sees it: crops of people, embeddings, a gallery that is ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.domains.reid.fusion_reid import data, figures, ranklists, sample, scoring, serving
from zoo.domains.reid.fusion_reid.backbones import load_backbones
from zoo.domains.reid.fusion_reid.baseline import colour_histogram
from zoo.domains.reid.fusion_reid.config import Config
from zoo.domains.reid.fusion_reid.convert import adopt, convert_official
from zoo.domains.reid.fusion_reid.embedding import Embedder, plain
from zoo.domains.reid.fusion_reid.features import Embeddings, write_embeddings
from zoo.domains.reid.fusion_reid.heads import Head
from zoo.domains.reid.fusion_reid.images import load
from zoo.domains.reid.fusion_reid.look import Look
from zoo.domains.reid.fusion_reid.losses import CentreLoss, identity_loss, joined, triplet_loss
from zoo.domains.reid.fusion_reid.model import Heads, build_model
from zoo.domains.reid.fusion_reid.schedule import WarmupCosine
from zoo.domains.reid.fusion_reid.scoring import Scored
from zoo.errors import ConfigError, DataError
from zoo.surveying import SurveyedTask, errors_first
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

_CENTRES = "centres"
# Queries of a test split whose attention is drawn; each costs another pass.
_PICTURED = 12


class FusionReid(SurveyedTask[Config, data.Survey]):
    """Person re-identification with FusionReID, one of its branches, or OSNet."""

    monitor = None
    sample_version: ClassVar[int] = sample.VERSION

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._look = Look()
        self._facts: Facts = {}
        self._embedder: Embedder | None = None
        self._last: Scored | None = None

    def selection(self) -> tuple[str, Literal["max", "min"]] | None:
        """What `optim.select` names; the last epoch is the result by default, as published."""
        chosen = self.config.optim.select
        return None if chosen == "last" else (chosen, "max")

    # -- data -----------------------------------------------------------------------------------

    @classmethod
    def write_sample(cls, out: Path, defects: bool = False) -> None:
        """Write the sample data set: drawn pedestrians in Market-1501's layout."""
        sample.write(out, defects=defects)

    def survey(self, deep: bool) -> data.Survey:
        """Names, identities, cameras and files of every data set that is named."""
        return data.survey(self.settled(), deep)

    def findings(self, found: data.Survey, deep: bool) -> list[Finding]:
        """On names, identities, cameras and files; with `deep` every image was decoded."""
        findings = data.check(self.settled(), deep, found)
        return errors_first([*findings, *self._beyond(found), *self._schedule()])

    def _schedule(self) -> list[Finding]:
        warmup, epochs = self.config.optim.warmup, self.config.trainer.epochs
        if warmup < epochs:
            return []
        what = f"optim.warmup={warmup} epochs of trainer.epochs={epochs}: the warm-up never ends"
        return [Finding("warning", what, remedy="lower optim.warmup")]

    def _beyond(self, found: data.Survey) -> list[Finding]:
        """Test cameras of the data set the weights were trained on that they have no embedding of.

        Other data sets have other cameras, which is no error: they take the mean embedding.
        """
        if not self._facts or "camera" not in self.config.model.camera:
            return []
        known, domain = set(self._facts["cameras"]), self._facts["domain"]
        findings = []
        for name, part in found.parts.items():
            if name == "train":
                continue
            strange = sorted({e.camera for e in part.entries} - known)
            if part.domain == domain and strange:
                what = (
                    f"{name}: cameras {', '.join(strange)} are beyond the {len(known)} of the "
                    f"model's embeddings ({', '.join(sorted(known))})"
                )
                remedy = (
                    "train with these cameras or with model.camera=none; if it is another place, "
                    "name it in data.test"
                )
                findings.append(Finding("error", what, str(part.root), remedy))
            elif part.domain != domain:
                what = f"{name}: cameras of another data set take the mean camera embedding"
                findings.append(Finding("warning", what, str(part.root)))
        return findings

    def splits(self) -> dict[str, Split]:
        """`train`, `val` with `data.val_fraction`, `test`, and `test_<name>` for `data.test`."""
        made = data.open_splits(self.settled(), self.surveyed())
        for name, split in made.items():
            if name != "train":
                self._look.watch(split)
            if name.startswith("test"):
                self._look.colours |= set(split.ids)
                self._look.picture(split, _PICTURED)
        return dict(made)

    def fit(self, train: Split) -> Facts:
        """Identities in class order, cameras in the order of their embeddings, input size.

        Raises:
            ConfigError: P x K batches cannot be made of these identities.
        """
        # Here, before anything is written: evaluation may have any batch size.
        train.batches(0, np.random.default_rng(0))
        return data.facts_of(cast("data.ReidSplit", train))

    # -- training -------------------------------------------------------------------------------

    def model(self, facts: Facts) -> nn.Module:
        """The configured network for the identities and cameras in `facts`.

        Raises:
            ConfigError: Settings contradict each other.
        """
        self._facts = facts
        settings, classes = self.config.model, len(facts["identities"])
        try:
            model = build_model(settings, classes, len(facts["cameras"]))
        except ValueError as error:
            msg = f"model: {error}"
            raise ConfigError(msg) from error
        if self.config.optim.centre_weight:
            first = cast(Head, next(iter(model.heads.values())))
            model.add_module(_CENTRES, CentreLoss(classes, first.neck.num_features))
        return model

    def pretrained(self, model: nn.Module) -> Sequence[str]:
        """ImageNet weights of `model.cnn_weights` and `model.transformer_weights`."""
        return load_backbones(plain(model), self.config.model)

    def optimisers(self, model: nn.Module) -> dict[str, Optim]:
        """Weights and biases apart, since their rates are no multiple of one another; centres.

        The official recipe is one SGD of two groups, which is the same arithmetic.
        """
        optim = self.config.optim
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        centres = [p for n, p in named if n.startswith(f"{_CENTRES}.")]
        rest = [(n, p) for n, p in named if not n.startswith(f"{_CENTRES}.")]
        # As published: whatever has "bias" in its name, those of norms included.
        biases = [p for n, p in rest if "bias" in n]
        weights = [p for n, p in rest if "bias" not in n]
        made = {"weights": self._optim(weights, optim.lr)}
        if biases:
            made["biases"] = self._optim(biases, optim.lr * optim.bias_lr)
        if centres:
            # The weight of the loss is taken back for the centres, as published.
            own = torch.optim.SGD(centres, lr=optim.centre_lr)
            made[_CENTRES] = Optim(own, grad_scale=1 / optim.centre_weight)
        return made

    def _optim(self, parameters: Sequence[nn.Parameter], rate: float) -> Optim:
        optim = self.config.optim
        made: torch.optim.Optimizer
        if optim.optimiser == "sgd":
            made = torch.optim.SGD(
                parameters, lr=rate, momentum=optim.momentum, weight_decay=optim.weight_decay
            )
        else:
            made = torch.optim.AdamW(parameters, lr=rate, weight_decay=optim.weight_decay)
        schedule = WarmupCosine(optim.lr, rate, self.config.trainer.epochs, optim.warmup)
        return Optim(made, partial(schedule.factor, by_step=optim.schedule == "steps"))

    def loss(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Identity and triplet losses of all heads, and the centre loss of the first."""
        optim, labels = self.config.optim, batch["label"]
        heads = cast(Heads, model(batch["image"], batch["camera"]))
        identity = joined(
            [identity_loss(s, labels, optim.label_smoothing) for s in heads.scores],
            optim.head_weights,
        )
        triplets = [
            triplet_loss(
                feature,
                labels,
                margin=optim.margin,
                hard_factor=optim.hard_factor,
                normalise=optim.unit_triplet,
            ).loss
            for feature in heads.features
        ]
        triplet = joined(triplets, optim.head_weights)
        parts = {"id": identity, "triplet": triplet}
        total = optim.id_weight * identity + optim.triplet_weight * triplet
        if optim.centre_weight:
            parts["centre"] = plain(model).get_submodule(_CENTRES)(heads.features[0], labels)
            total = total + optim.centre_weight * parts["centre"]
        right = (heads.scores[-1].detach().argmax(dim=1) == labels).float().mean()
        return {"loss": total, **parts, "accuracy": right}

    # -- evaluation -----------------------------------------------------------------------------

    def _cameras(self, batch: Batch) -> Tensor:
        """Camera embeddings by the facts the model was built with."""
        if not self._facts:
            return cast(Tensor, batch["camera"])
        return data.embedding_index(batch, self._facts)

    def records(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record a crop; those of test splits with the baseline's histogram, a few with maps.

        Features are taken from the cache and kept there where the weights rest.
        """
        if self._embedder is None or self._embedder.resting != self.serving:
            self._embedder = Embedder(self.config, resting=self.serving)
        cameras = self._cameras(batch)
        features = self._embedder(model, batch, cameras).numpy()
        known = cameras.tolist()
        values = [self._values(batch, i, f, known[i]) for i, f in enumerate(features)]
        self._add_colours(values, batch)
        self._add_maps(values, model, batch, cameras)
        return [
            Record(name, batch["group"][i], values[i], self._writer(name, values[i]))
            for i, name in enumerate(batch["id"])
        ]

    def _values(
        self, batch: Batch, i: int, feature: np.ndarray, camera: int
    ) -> dict[str, np.ndarray]:
        texts = {
            "person": batch["person"][i],
            "camera": batch["camera_name"][i],
            "role": batch["role"][i],
            "path": batch["path"][i],
        }
        # One width a column: texts of unlike length would be stored one by one.
        return {
            "feature": feature,
            "embedded": np.array(camera),
            **{k: np.array(v, f"<U{self._look.widths.get(k, len(v))}") for k, v in texts.items()},
        }

    def _add_colours(self, values: Sequence[dict[str, np.ndarray]], batch: Batch) -> None:
        wanted = [i for i, name in enumerate(batch["id"]) if name in self._look.colours]
        if wanted:
            found = colour_histogram(batch["image"][wanted]).to("cpu", torch.float16).numpy()
            for i, histogram in zip(wanted, found, strict=True):
                values[i]["colours"] = histogram

    def _add_maps(
        self,
        values: Sequence[dict[str, np.ndarray]],
        model: nn.Module,
        batch: Batch,
        cameras: Tensor,
    ) -> None:
        wanted = [i for i, name in enumerate(batch["id"]) if name in self._look.pictured]
        if not wanted or self._embedder is None:
            return
        images = batch["image"][wanted]
        maps = self._embedder.maps(model, images, cameras[wanted])
        shown = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for place, i in enumerate(wanted):
            values[i]["preview"] = shown[place]
            for name, found in (("cnn_map", maps.cnn), ("transformer_map", maps.transformer)):
                if found is not None:
                    values[i][name] = found[place].float().cpu().numpy()

    def _writer(self, name: str, values: Mapping[str, np.ndarray]) -> Any:
        """Writes the attention of a crop that `zoo predict` pictures."""
        if name not in self._look.written:
            return None

        def write(out: Path) -> list[Path]:
            path = out / "attention" / f"{figures.file_stem(name)}.png"
            return [figures.write_attention(path, values, name)]

        return write

    def _scored(self, records: Sequence[Record]) -> Scored:
        """What follows from records; kept for as long as the same records are asked about."""
        if self._last is None or self._last.records is not records:
            self._last = Scored(records, self.config)
        return self._last

    def score(self, records: Sequence[Record], facts: Facts) -> Metrics:
        """CMC, mAP and mINP of the queries with a match, those of the baseline beside.

        Raises:
            DataError: There is nothing to score: no query has a match.
        """
        return scoring.metrics(self._scored(records))

    def intervals(self, records: Sequence[Record], facts: Facts) -> dict[str, tuple[float, float]]:
        """Bootstrap over the identities of the queries."""
        return scoring.all_intervals(self._scored(records))

    def figures(self, records: Sequence[Record], facts: Facts) -> Iterable[tuple[str, Figure]]:
        """CMC, distances, rank lists of the worst, median and best queries, attention."""
        scored = self._scored(records)
        return figures.all_figures(scored, self._load)

    def _load(self, crop: ranklists.Crop) -> np.ndarray:
        """A crop's pixels, (h, w, 3) uint8.

        Raises:
            DataError: It is not among the files this task has opened, or is broken.
        """
        path = self._look.files.get(crop.id)
        if path is None:
            msg = f"{crop.id}: its file is not known"
            raise DataError(msg)
        return load(path)

    def tables(
        self, records: Sequence[Record], facts: Facts
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """Model beside baseline, rank-1 by pair of cameras, protocol, worst queries."""
        return scoring.all_tables(self._scored(records), facts)

    # -- use ------------------------------------------------------------------------------------

    def inputs(self, paths: Sequence[Path], facts: Facts) -> Split:
        """Query images and folders of them, and the gallery of `predict.gallery`."""
        predict = self.config.predict
        split = data.inputs(paths, predict.gallery, facts, self.config)
        self._facts = facts
        self._look.watch(split)
        if predict.dense:
            first = self._look.picture(split, predict.pictures, evenly=False)
            self._look.written |= set(first)
        return split

    def rows(self, records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
        """One row a query: its nearest gallery image, its ranks where people are known."""
        return scoring.rows(self._scored(records))

    def finish(self, records: Sequence[Record], facts: Facts, out: Path) -> Sequence[Path]:
        """Rank lists as csv, JSON and pictures; with `predict.features` the embeddings."""
        scored, predict = self._scored(records), self.config.predict
        written: list[Path] = []
        if scored.has_gallery:
            pictures = predict.pictures if predict.dense else 0
            written += ranklists.write(
                out, scored.lists, self._load, pictures=pictures, about=self._about(scored)
            )
        if predict.features:
            path = out / "embeddings.safetensors"
            info = {k: str(v) for k, v in self._about(scored).items()}
            write_embeddings(path, Embeddings(scored.features, **scored.columns, info=info))
            written.append(path)
        return written

    def _about(self, scored: Scored) -> dict[str, Any]:
        """What the rank lists and embeddings came from."""
        predict, roles = self.config.predict, np.asarray(scored.crops.roles)
        told: dict[str, Any] = {
            "task": self.config.task,
            "weights": str(self.config.weights or ""),
            "queries": int((roles == "query").sum()),
            "gallery": int((roles == "gallery").sum()),
            "width": int(scored.features.shape[1]),
            "distance": predict.distance,
            "flip_average": predict.flip_average,
            "same_camera": predict.same_camera,
        }
        if predict.rerank:
            told |= {"rerank": {"k1": predict.k1, "k2": predict.k2, "lam": predict.lam}}
        return told

    def remarks(self, records: Sequence[Record], facts: Facts) -> Sequence[str]:
        """What was ranked, how well where that is known, and what the cache holds."""
        scored = self._scored(records)
        queries = int((np.asarray(scored.crops.roles) == "query").sum())
        told = []
        if scored.has_gallery:
            gallery = len(records) - queries
            told.append(f"{queries} queries ranked against {gallery} gallery images")
        else:
            told.append(
                f"{queries} images embedded; predict.gallery=DIR ranks a gallery for them, "
                "predict.features=true writes the embeddings"
            )
        if scored.known:
            found = scored.ranking
            told.append(
                f"{int(found.valid.sum())} of them have a match by name: "
                f"rank-1 {found.cmc(1)[0]:.3f}, mAP {found.map:.3f}"
            )
        if self._embedder is not None and self._embedder.cache is not None:
            told.append(self._embedder.cache.note())
        return told

    def export(self, model: nn.Module, facts: Facts) -> Export:
        """Images, and their cameras where the network is told them; any number at once."""
        height, width = self.config.model.input_size
        inputs = {"image": torch.zeros(2, 3, height, width)}
        if serving.told_cameras(plain(model)):
            inputs["camera"] = torch.zeros(2, dtype=torch.int64)
        return Export(
            inputs=inputs,
            outputs=("embedding",),
            dynamic={name: {0: "batch"} for name in inputs},
            about={
                "image": f"(B, 3, {height}, {width}) in [0, 1], RGB",
                "camera": f"(B,) index below {len(facts['cameras'])}, -1 where unknown",
                "embedding": "(B, D), not normalised",
            },
        )

    def served(self, model: nn.Module, facts: Facts) -> Export:
        """Crops of any size, and their cameras where the network is told them."""
        return serving.served(plain(model), facts, self.config)

    def convert(self, state: Mapping[str, Tensor]) -> Conversion:
        """A checkpoint of the official code under our names."""
        return convert_official(state)

    def preparation(self, facts: Facts) -> str:
        """Size and scaling of images."""
        height, width = facts["input_size"]
        mean = "ImageNet's mean" if self.config.model.cnn.startswith("osnet") else "0.5"
        return f"images of {height} x {width} pixels around {mean}"

    def adopt(self, state: Mapping[str, Tensor]) -> Adoption:
        """Branches, sizes and cameras of a model without settings."""
        return adopt(state, self.config.model)
