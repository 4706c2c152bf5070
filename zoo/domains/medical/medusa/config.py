"""Configuration of `medusa`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section

_CLASSIFY = ("sensitivity+accuracy", "auc", "accuracy", "loss")


SMALLEST_IMAGE = 197
"""Side in pixels below which the released top has nothing to average."""


class MedusaData(DataConfig):
    """Radiographs, labels, splits; see the card for the layouts."""

    layout: Literal["auto", "covidx", "rsna", "ricord", "csv", "masks"] = Field(
        "auto", description="how images and labels are arranged; auto: found"
    )
    labels: Path | None = Field(
        None,
        description="training list, csv or annotations below data.root; none: in the usual place",
    )
    version: str | None = Field(
        None, description="COVIDx list version such as 9B or CXR-3B, where several are there"
    )
    classes: list[str] | None = Field(
        None, description="class names in index order; none: those of the layout, as published"
    )
    merge: dict[str, str] = Field(
        default_factory=dict,
        description="label -> class it counts as, before data.classes; '' leaves it out",
    )
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of training patients held out for selection"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of patients held out for test when no list is given"
    )
    split_seed: int = Field(1, ge=0, description="seeds drawn splits")
    folds: int = Field(0, ge=0, description="folds by patient of zoo cv; 0: as the lists say")
    fold: int | None = Field(None, ge=0, description="which of data.folds")
    missing: Literal["skip", "error"] = Field(
        "error", description="files a list names that are not there: left out and counted, or told"
    )
    balance: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of each training batch drawn from the positive class; 0: as they come",
    )
    augment: Literal["aligned", "legacy", "none"] = Field(
        "aligned",
        description="aligned: both inputs from one augmented image; legacy: only the backbone's",
    )
    crop_top: float = Field(
        0.0, ge=0, lt=0.5, description="share of rows cut from the top; 0.08 in other COVID-Nets"
    )
    square: bool = Field(False, description="cut the centre square before resizing")
    in_memory: bool = Field(True, description="keep decoded images in memory if they fit")

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


class MedusaModel(Section):
    """The network; see the card for the official graph and what is ours."""

    variant: Literal["resnet1", "resnet2", "resnet0_R", "resnet0_M", "backbone_only"] = Field(
        "resnet1",
        description="where the body's map acts: four heads as released (resnet1), the last scale "
        "(resnet2), the image (resnet0_R: added, resnet0_M: alone), nowhere",
    )
    backbone: str = Field(
        "keras_resnet50",
        description="keras_resnet50 as released, small: the same of other width and depth, or a "
        "timm name (ours, always pools globally)",
    )
    image_size: int = Field(480, ge=32, description="side in pixels of the backbone's input")
    body_size: int = Field(
        256, ge=16, multiple_of=16, description="side in pixels of the body's input"
    )
    width: int = Field(64, ge=4, description="channels of stem and first stage (small only)")
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = Field(
        (3, 4, 6, 3), description="residual blocks of stages 2 to 5 (small only)"
    )
    body_width: int = Field(32, ge=2, description="channels of the body's first layers")
    head_activation: Literal["none", "sigmoid", "tanh"] = Field(
        "none", description="of the scale heads; none as released"
    )
    head_init: Literal["he", "zero"] = Field(
        "he", description="zero: every head begins as identity"
    )
    resize: Literal["legacy", "half_pixel"] = Field(
        "legacy", description="grid of the map's bilinear resize; legacy as TensorFlow 1"
    )
    global_pool: bool = Field(
        False, description="pool all positions: any image size, but not the released top"
    )
    body_init: Path | None = Field(
        None, description="run of preset=body or weight file of the body; none: random"
    )
    backbone_init: Path | None = Field(
        None, description="weight file of a timm backbone; none: random"
    )

    @model_validator(mode="after")
    def _agrees(self) -> MedusaModel:
        ours = self.backbone in ("keras_resnet50", "small")
        msg = ""
        if self.backbone == "keras_resnet50" and (self.width, self.blocks) != (64, (3, 4, 6, 3)):
            msg = "width and blocks belong to backbone=small; keras_resnet50 has 64 and [3,4,6,3]"
        elif ours and not self.global_pool and self.image_size < SMALLEST_IMAGE:
            msg = (
                f"image_size={self.image_size} leaves nothing for the released top, which "
                f"averages 7 x 7 places; use {SMALLEST_IMAGE} or more, or global_pool=true"
            )
        elif ours and self.backbone_init is not None:
            msg = "backbone_init is for timm networks; weights of this one: zoo weights convert"
        elif self.variant == "backbone_only" and self.body_init is not None:
            msg = "body_init: variant=backbone_only has no body"
        if msg:
            raise ValueError(msg)
        return self


class MedusaOptim(Section):
    """Adam, alternating phases, loss."""

    objective: Literal["classify", "body"] = Field(
        "classify", description="body: train the attention body alone on lung masks"
    )
    lr: float = Field(8e-5, gt=0, description="learning rate of Adam")
    attention_lr: float | None = Field(
        None, gt=0, description="learning rate of body and heads; none: optim.lr, as published"
    )
    schedule: Literal["constant", "cosine"] = Field("constant", description="over all epochs")
    weight_decay: float = Field(0.0, ge=0, description="L2 on every parameter; official: 0")
    alternate: int = Field(
        3,
        ge=0,
        description="every n-th epoch trains body and heads, the others the backbone; 0: all",
    )
    class_weights: list[float] | None = Field(
        None, description="loss weight of each class, in index order; none: 1"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread over all classes; official: 0"
    )
    cache_body: bool = Field(
        True, description="reuse the body's maps in epochs where it rests, where that is exact"
    )
    sensitivity: float = Field(
        0.95, gt=0, lt=1, description="sensitivity of the operating point chosen on validation"
    )
    select: Literal["sensitivity+accuracy", "auc", "accuracy", "loss", "dice"] = Field(
        "sensitivity+accuracy", description="validation figure that picks the epoch; dice: of body"
    )

    @model_validator(mode="after")
    def _together(self) -> MedusaOptim:
        if self.alternate == 1:
            msg = "alternate=1 would train body and heads in every epoch, never the backbone"
            raise ValueError(msg)
        mine = ("dice", "loss") if self.objective == "body" else _CLASSIFY
        if self.select not in mine:
            msg = f"objective={self.objective} is selected by one of {', '.join(mine)} (select)"
            raise ValueError(msg)
        return self


class MedusaPredict(PredictConfig):
    """What is written for each radiograph."""

    maps: bool = Field(True, description="body map and the four scale maps over the radiograph")
    gradcam: bool = Field(True, description="Grad-CAM of the predicted class beside them (captum)")
    alpha: float = Field(0.2, ge=0, le=1, description="strength of an overlay")


class Config(BaseConfig):
    """All settings of `medusa`."""

    data: MedusaData = Field(default_factory=MedusaData, description="radiographs, labels, splits")
    model: MedusaModel = Field(default_factory=MedusaModel, description="network")
    optim: MedusaOptim = Field(default_factory=MedusaOptim, description="optimiser and losses")
    predict: MedusaPredict = Field(default_factory=MedusaPredict, description="outputs")
