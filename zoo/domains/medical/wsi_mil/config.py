"""Configuration of `wsi_mil`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section


class WsiData(DataConfig):
    """Where bags, labels and splits are, and how they are divided when no split is given."""

    layout: Literal["auto", "acmil", "clam", "trident", "tensors", "table"] = Field(
        "auto", description="file layout; auto: recognised from what is in data.root"
    )
    features: Path | None = Field(
        None, description="feature folder or file below data.root; none: found, if there is one"
    )
    width: int | None = Field(
        None, ge=1, description="features an instance must have; none: what the files have"
    )
    labels: Path | None = Field(
        None, description="csv of slide_id, label and optionally case_id; none: found"
    )
    splits: Path | None = Field(
        None, description="split file or folder of split files; none: found, else drawn by seed"
    )
    fold: int | None = Field(
        None, ge=0, description="which split file of a folder, or which of data.folds"
    )
    folds: int = Field(0, ge=0, description="folds by patient of zoo cv; 0: as the splits say")
    val_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of patients held out for selection; 0: none"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of patients held out for test when no split is given"
    )
    split_seed: int = Field(1, ge=0, description="seeds drawn splits and folds")
    classes: list[str] | None = Field(
        None, description="class names in index order; none: sorted names found in the labels"
    )
    merge: dict[str, str] = Field(
        default_factory=dict, description="label -> class it counts as, before data.classes"
    )
    id_column: str | None = Field(
        None, description="column of slide names; none: slide_id, slide, bag_id …"
    )
    label_column: str | None = Field(
        None, description="column of labels; none: label, class or target"
    )
    patient_column: str | None = Field(
        None, description="column of patients; none: case_id or patient, else the slide itself"
    )
    standardise: bool = Field(
        False, description="subtract mean and divide by deviation of the training instances"
    )
    shots: int | None = Field(None, ge=1, description="training slides a class; none: all")
    in_memory: bool = Field(True, description="keep bags in memory after the first reading")

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [_text(v) for v in value] if isinstance(value, list) else value

    @field_validator("merge", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return {_text(k): _text(v) for k, v in value.items()} if isinstance(value, dict) else value


def _text(value: Any) -> Any:
    """A label that YAML read as a whole number, as the text that tables hold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class WsiModel(Section):
    """The network; see the card for what differs from the paper."""

    arch: Literal["acmil_ga", "acmil_mha", "abmil", "mha"] = Field(
        "acmil_ga", description="gated or multi-head attention, with branches or the plain baseline"
    )
    inner: int | None = Field(
        None,
        ge=8,
        description="width after the dimension reduction; none: the published one for the "
        "feature width, else half of it",
    )
    attention: int = Field(128, ge=1, description="width of the gated scorer")
    branches: int = Field(5, ge=1, description="attention branches K")
    masked: int = Field(10, ge=0, description="STKIM: instances with the largest attention")
    mask_drop: float = Field(0.6, ge=0, le=1, description="STKIM: share of them masked a step")
    dropout: float = Field(0.1, ge=0, lt=1, description="after attention heads (mha archs only)")
    classifier_dropout: float = Field(0.0, ge=0, lt=1, description="before the classifiers")


class WsiOptim(Section):
    """AdamW with a half-cosine schedule."""

    lr: float = Field(1e-4, gt=0, description="learning rate at the start of the cosine")
    lr_min: float = Field(0.0, ge=0, description="learning rate at its end")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    weight_decay: float = Field(1e-5, ge=0, description="decoupled, on every parameter")
    diversity: float = Field(1.0, ge=0, description="weight of the diversity loss")
    branch: float = Field(1.0, ge=0, description="weight of the branch loss")
    select: Literal["f1_micro+auc", "f1_macro+auc", "auc", "loss"] = Field(
        "f1_micro+auc",
        description="validation figure that picks the epoch; f1_micro+auc as the official script",
    )


class WsiPredict(PredictConfig):
    """What is written for each slide."""

    format: Literal["h5", "csv", "both"] = Field(
        "both", description="format of the per-instance attention files"
    )


class Config(BaseConfig):
    """All settings of `wsi_mil`."""

    data: WsiData = Field(default_factory=WsiData, description="bags, labels, splits")
    model: WsiModel = Field(default_factory=WsiModel, description="network")
    optim: WsiOptim = Field(default_factory=WsiOptim, description="optimiser and losses")
    predict: WsiPredict = Field(default_factory=WsiPredict, description="outputs")
