"""ACMIL and its baselines: bags of patch features in, slide logits and attention out.

Source: "Attention-challenging multiple instance learning for whole slide image
classification", arXiv 2311.07125; details follow the official code where it is more exact.

All models take packed bags, `features: (N, F)` with `cu_seqlens: (B + 1,)`, and give for several
slides at once what they give one by one. Letters: B slides, N instances of all slides, F feature
width, L inner width, A width of the gated scorer, K branches, H heads, C classes, M attention
maps (1 for gated attention, H for multi-head).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.domains.medical.wsi_mil.parts import (
    HEADS,
    BagAttention,
    BranchAttention,
    Classifier,
    DimReduction,
    bag_mass,
    stkim_mask,
)
from zoo.kernels import GatedAttentionPool, mask_logits, query_logits, softmax_pool

PUBLISHED_INNER = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768}
"""Inner width the authors use for each feature width."""


class MilOutput(NamedTuple):
    """What every model returns.

    Attributes:
        logits: (B, C) the prediction for each slide.
        branch_logits: (B, K, C) predictions of the branches; of a baseline without branch
            classifiers the slide's own, K = 1.
        attention: (M, K, N) attention logits before the softmax, float32, masked entries at
            -1e9. Split the last axis by `cu_seqlens` for one slide.
    """

    logits: Tensor
    branch_logits: Tensor
    attention: Tensor


class SlideVectors(NamedTuple):
    """What the classifiers of a model see.

    Attributes:
        slide: (B, L).
        branches: (B, K, L).
        attention: (M, K, N) attention logits after masking.
    """

    slide: Tensor
    branches: Tensor
    attention: Tensor


class Stkim(NamedTuple):
    """How instances are masked in one forward call.

    Attributes:
        active: Whether they are.
        draws: One (M, K, min(masked, n)) tensor of uniform numbers a slide; None: drawn.
        generator: Where they are drawn from; None: the global generator.
    """

    active: bool
    draws: Sequence[Tensor] | None
    generator: torch.Generator | None


def default_inner(feature_dim: int) -> int:
    """The published inner width L for features of width F, else about half of F.

    The result is a multiple of 8, so that every architecture can be built with it.
    """
    return PUBLISHED_INNER.get(feature_dim, max(HEADS, feature_dim // 2 // HEADS * HEADS))


class MilModel(nn.Module):
    """What the four models share: reduced instances, classifiers and the calling convention.

    Args:
        feature_dim: Feature width F.
        inner: Inner width L.
        classes: Number of classes C, at least 2.
        branch_classifiers: How many branches have a classifier of their own; 0 for baselines.
        masked: STKIM candidates, the most attended instances of each row; 0 turns it off.
        mask_drop: Share of them that is masked in a training step.
        classifier_dropout: Rate before each classifier.

    Raises:
        ValueError: A size or share is out of range.
    """

    def __init__(
        self,
        feature_dim: int,
        inner: int,
        classes: int,
        *,
        branch_classifiers: int = 0,
        masked: int = 0,
        mask_drop: float = 0.0,
        classifier_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(feature_dim, inner) < 1 or classes < 2:
            msg = (
                f"widths must be positive, classes 2 or more: {feature_dim=}, {inner=}, {classes=}"
            )
            raise ValueError(msg)
        if masked < 0 or not 0 <= mask_drop <= 1:
            msg = f"masked must be 0 or more and mask_drop in [0, 1]: {masked=}, {mask_drop=}"
            raise ValueError(msg)
        self.masked, self.mask_drop = masked, mask_drop
        self.reduce = DimReduction(feature_dim, inner)
        self.branch_classifiers = nn.ModuleList(
            Classifier(inner, classes, classifier_dropout) for _ in range(branch_classifiers)
        )
        self.slide_classifier = Classifier(inner, classes, classifier_dropout)

    def forward(
        self,
        features: Tensor,
        cu_seqlens: Tensor | None = None,
        *,
        draws: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> MilOutput:
        """Predicts every slide; masks by STKIM in training mode.

        Args:
            features: (N, F) packed patch features, any floating dtype.
            cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.
            draws: Uniform numbers of STKIM, one (M, K, min(masked, n)) tensor a slide.
            generator: Where they are drawn from if not given; None: the global generator.

        Raises:
            ValueError: Shapes or bounds are wrong.
        """
        stkim = Stkim(self.training and self.masked > 0, draws, generator)
        slide, branches, attention = self.vectors(self._instances(features), cu_seqlens, stkim)
        logits: Tensor = self.slide_classifier(slide)
        if not self.branch_classifiers:
            return MilOutput(logits, logits.unsqueeze(1), attention)
        each = [classify(branches[:, k]) for k, classify in enumerate(self.branch_classifiers)]
        return MilOutput(logits, torch.stack(each, dim=1), attention)

    def bag_feature(
        self,
        features: Tensor,
        cu_seqlens: Tensor | None = None,
        masked: bool = False,
        *,
        draws: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The slide vectors (B, L) that the slide classifier sees.

        Args:
            features: (N, F) packed patch features.
            cu_seqlens: (B + 1,) integer bounds of the slides; None: one slide.
            masked: Apply STKIM, whatever the mode of the module.
            draws: As in `forward`.
            generator: As in `forward`.

        Raises:
            ValueError: Shapes or bounds are wrong.
        """
        stkim = Stkim(masked and self.masked > 0, draws, generator)
        return self.vectors(self._instances(features), cu_seqlens, stkim).slide

    @abstractmethod
    def vectors(self, instances: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> SlideVectors:
        """Pools reduced instances (N, L) of packed slides into what is classified."""

    def _instances(self, features: Tensor) -> Tensor:
        width = self.reduce.linear.in_features
        if features.dim() != 2 or features.shape[1] != width:
            msg = (
                f"features must be (instances, {width}), got {tuple(features.shape)}; pack several "
                "slides one after the other and give their bounds as cu_seqlens"
            )
            raise ValueError(msg)
        reduced: Tensor = self.reduce(features)
        return reduced

    def _mask(self, attention: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> Tensor:
        """The STKIM mask (M, K, N) of attention logits of the same shape."""
        return stkim_mask(
            attention,
            cu_seqlens,
            self.masked,
            self.mask_drop,
            draws=stkim.draws,
            generator=stkim.generator,
        )


class AcmilGA(MilModel):
    """ACMIL with gated attention: K branches, each with its classifier, and their mean.

    The slide vector is the mean of the branch vectors, which equals pooling by the mean of the
    branches' attention.

    Args:
        feature_dim: Feature width F.
        inner: Inner width L.
        classes: Number of classes C.
        branches: Number of branches K; 1 without masking is ABMIL with an idle classifier.
        attention: Width A of the gated scorer.
        masked: STKIM candidates, the most attended instances of each branch; 0 turns it off.
        mask_drop: Share of them that is masked in a training step.
        classifier_dropout: Rate before each classifier.

    Raises:
        ValueError: A size or share is out of range.
    """

    def __init__(
        self,
        feature_dim: int,
        inner: int,
        classes: int,
        *,
        branches: int = 5,
        attention: int = 128,
        masked: int = 10,
        mask_drop: float = 0.6,
        classifier_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            feature_dim,
            inner,
            classes,
            branch_classifiers=branches,
            masked=masked,
            mask_drop=mask_drop,
            classifier_dropout=classifier_dropout,
        )
        self.pool = GatedAttentionPool(inner, attention, branches)

    def vectors(self, instances: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> SlideVectors:
        """Pools reduced instances (N, L) of packed slides into what is classified."""
        if stkim.active:  # the mask depends on the logits, so these come first
            logits = self.pool.gated_logits(instances)
            mask = self._mask(logits.mT.unsqueeze(0), cu_seqlens, stkim)
            logits = mask_logits(logits, mask.squeeze(0).mT)
            pooled, _ = softmax_pool(logits, instances, cu_seqlens)
        else:
            pooled, logits, _ = self.pool(instances, cu_seqlens)
        return SlideVectors(pooled.mean(dim=1), pooled, logits.mT.unsqueeze(0))


class AcmilMHA(MilModel):
    """ACMIL with multi-head attention: one learned query and one attention a branch.

    A bag branch of its own pools by the mean of the branches' attention weights. Weighted sums
    are linear in the weights, so it takes the mean of the branches' pooled instances.

    Args:
        feature_dim: Feature width F.
        inner: Inner width L, a multiple of 8.
        classes: Number of classes C.
        branches: Number of branches K.
        masked: STKIM candidates of each head and branch; 0 turns it off.
        mask_drop: Share of them that is masked in a training step.
        dropout: Rate after the output projection of each attention.
        classifier_dropout: Rate before each classifier.

    Raises:
        ValueError: A size or share is out of range.
    """

    def __init__(
        self,
        feature_dim: int,
        inner: int,
        classes: int,
        *,
        branches: int = 5,
        masked: int = 10,
        mask_drop: float = 0.6,
        dropout: float = 0.1,
        classifier_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            feature_dim,
            inner,
            classes,
            branch_classifiers=branches,
            masked=masked,
            mask_drop=mask_drop,
            classifier_dropout=classifier_dropout,
        )
        self.queries = _new_queries(branches, inner)
        self.branches = nn.ModuleList(
            BranchAttention(inner, dropout=dropout) for _ in range(branches)
        )
        self.bag = BagAttention(inner, dropout=dropout)

    def vectors(self, instances: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> SlideVectors:
        """Pools reduced instances (N, L) of packed slides into what is classified."""
        branches = cast("list[BranchAttention]", list(self.branches))
        absorbed = [b.pool.absorb(self.queries[k : k + 1]) for k, b in enumerate(branches)]
        # All heads of all branches are scored in one product and pooled in another.
        to_score, offsets = (torch.cat(parts) for parts in zip(*absorbed, strict=True))
        logits = query_logits(to_score, offsets, instances)
        if stkim.active:
            mask = self._mask(_maps(logits), cu_seqlens, stkim)
            logits = mask_logits(logits, mask.transpose(0, 1).flatten(0, 1).mT)
        pooled, lse = softmax_pool(logits, instances, cu_seqlens)
        pooled = torch.unflatten(pooled, 1, (-1, HEADS))  # (B, K, H, L)
        mass = torch.unflatten(bag_mass(lse), 1, (-1, HEADS))
        each = [b.finish(pooled[:, k], mass[:, k]).squeeze(1) for k, b in enumerate(branches)]
        slide = self.bag(pooled.mean(dim=1), mass.mean(dim=1))
        return SlideVectors(slide, torch.stack(each, dim=1), _maps(logits))


class Abmil(MilModel):
    """The baseline with one gated attention: instances, pooling, classifier.

    Args:
        feature_dim: Feature width F.
        inner: Inner width L.
        classes: Number of classes C.
        attention: Width A of the gated scorer.
        classifier_dropout: Rate before the classifier.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        feature_dim: int,
        inner: int,
        classes: int,
        *,
        attention: int = 128,
        classifier_dropout: float = 0.0,
    ) -> None:
        super().__init__(feature_dim, inner, classes, classifier_dropout=classifier_dropout)
        self.pool = GatedAttentionPool(inner, attention)

    def vectors(self, instances: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> SlideVectors:
        """Pools reduced instances (N, L) of packed slides; STKIM does not belong to this model."""
        pooled, logits, _ = self.pool(instances, cu_seqlens)
        return SlideVectors(pooled.squeeze(1), pooled, logits.mT.unsqueeze(0))


class MhaMil(MilModel):
    """The baseline with one learned query and multi-head attention.

    Args:
        feature_dim: Feature width F.
        inner: Inner width L, a multiple of 8.
        classes: Number of classes C.
        dropout: Rate after the output projection.
        classifier_dropout: Rate before the classifier.

    Raises:
        ValueError: A size is out of range.
    """

    def __init__(
        self,
        feature_dim: int,
        inner: int,
        classes: int,
        *,
        dropout: float = 0.1,
        classifier_dropout: float = 0.0,
    ) -> None:
        super().__init__(feature_dim, inner, classes, classifier_dropout=classifier_dropout)
        self.queries = _new_queries(1, inner)
        self.attention = BranchAttention(inner, dropout=dropout)

    def vectors(self, instances: Tensor, cu_seqlens: Tensor | None, stkim: Stkim) -> SlideVectors:
        """Pools reduced instances (N, L) of packed slides; STKIM does not belong to this model."""
        pooled, attention = self.attention(self.queries, instances, cu_seqlens)
        return SlideVectors(pooled.squeeze(1), pooled, attention)


def build_model(
    arch: str,
    feature_dim: int,
    inner: int,
    classes: int,
    *,
    branches: int = 5,
    attention: int = 128,
    masked: int = 10,
    mask_drop: float = 0.6,
    dropout: float = 0.1,
    classifier_dropout: float = 0.0,
) -> MilModel:
    """The model of that name; settings an architecture has no use for are left aside.

    Args:
        arch: `acmil_ga`, `acmil_mha`, or the baselines `abmil` and `mha`.
        feature_dim: Feature width F.
        inner: Inner width L.
        classes: Number of classes C.
        branches: Branches K of the ACMIL models.
        attention: Width A of the gated scorer (`acmil_ga`, `abmil`).
        masked: STKIM candidates of the ACMIL models.
        mask_drop: Share of them that is masked in a training step.
        dropout: Rate after each attention (`acmil_mha`, `mha`).
        classifier_dropout: Rate before each classifier.

    Raises:
        ValueError: The name is unknown or a size is out of range.
    """
    sizes = (feature_dim, inner, classes)
    if arch == "acmil_ga":
        return AcmilGA(
            *sizes,
            branches=branches,
            attention=attention,
            masked=masked,
            mask_drop=mask_drop,
            classifier_dropout=classifier_dropout,
        )
    if arch == "acmil_mha":
        return AcmilMHA(
            *sizes,
            branches=branches,
            masked=masked,
            mask_drop=mask_drop,
            dropout=dropout,
            classifier_dropout=classifier_dropout,
        )
    if arch == "abmil":
        return Abmil(*sizes, attention=attention, classifier_dropout=classifier_dropout)
    if arch == "mha":
        return MhaMil(*sizes, dropout=dropout, classifier_dropout=classifier_dropout)
    msg = f"unknown architecture '{arch}'; there are acmil_ga, acmil_mha, abmil and mha"
    raise ValueError(msg)


def _new_queries(count: int, inner: int) -> nn.Parameter:
    """Queries (count, L), nearly zero at the start as in the official code."""
    if count < 1:
        msg = f"a model needs at least one branch, got {count}"
        raise ValueError(msg)
    return nn.Parameter(torch.randn(count, inner) * 1e-6)


def _maps(logits: Tensor) -> Tensor:
    """Logits (N, K * H) of all branches as maps (H, K, N)."""
    return torch.unflatten(logits.mT, 0, (-1, HEADS)).transpose(0, 1)
