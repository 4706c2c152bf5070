"""Configuration of `her_seg`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section

Layout = Literal[
    "auto",
    "her",
    "isic",
    "polyp",
    "lungs",
    "refuge",
    "busi",
    "dsb2018",
    "folders",
    "nnunet",
    "volumes",
    "dicom",
    "synapse",
    "frames",
    "video",
]


class SegData(DataConfig):
    """Images, volumes or clips with masks; see the card for the layouts."""

    layout: Layout = Field("auto", description="how images and masks are arranged; auto: found")
    images: str | None = Field(
        None,
        description="image folder below data.root (folders layout), or pattern of image files such "
        "as '*/*flair.nii.gz' (volumes layout)",
    )
    masks: str | None = Field(
        None, description="mask folder (folders layout) or pattern of label files (volumes layout)"
    )
    split: Path | None = Field(
        None, description="json or csv of train, valid, test names; none: found, else drawn"
    )
    patient: str | None = Field(
        None,
        description="regular expression whose first group, in a picture's name, is the patient; "
        "none: each picture by itself, or as its layout says",
    )
    target: str | None = Field(
        None, description="which of several mask sets: an organ's code, mask_1024_c1, cup or disc"
    )
    labels: dict[str, int | list[int]] = Field(
        default_factory=dict,
        description="class name -> value or values in mask files; none: any value above 0, or the "
        "data set's own list; 'background' names values that are none",
    )
    mask_threshold: int | None = Field(
        None,
        ge=0,
        le=254,
        description="mask values above it are foreground; none: told by each file, see the card",
    )
    invert: bool = Field(False, description="foreground is where the mask is 0")
    val_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of patients held out for selection, if no list"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of patients held out for test, if no list"
    )
    split_seed: int = Field(1, ge=0, description="seeds drawn splits")
    fit: Literal["squash", "letterbox", "tiles"] = Field(
        "squash",
        description="how an image meets the model's square: stretched as published, padded, or "
        "in overlapping tiles at its own resolution",
    )
    overlap: float = Field(0.25, ge=0, lt=0.9, description="share by which tiles overlap")
    augment: Literal["official", "standard", "none"] = Field(
        "standard", description="official: mirror one image in ten; standard: ours, see the card"
    )
    axis: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="slicing plane of volumes, after orientation to RAS"
    )
    neighbours: bool = Field(
        False, description="channels are slices z-1, z, z+1; otherwise the slice three times"
    )
    channels: list[int] | None = Field(
        None,
        min_length=1,
        max_length=3,
        description="which channels of a volume are shown, from 0; none: the first three",
    )
    fold: int = Field(0, ge=0, description="fold of nnU-Net's splits_final.json, if it is there")
    window: tuple[float, float] | None = Field(
        None,
        description="intensities that become 0 and 1, of volumes and of pictures of more than 8 "
        "bits; none: percentiles of the volume, the picture's bit depth",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="of a volume's intensities that become 0 and 1"
    )
    spacing: tuple[float, float, float] | None = Field(
        None, description="voxel size in mm volumes are resampled to; none: as they are"
    )
    foreground_share: float = Field(
        0.67, ge=0, le=1, description="share of training slices drawn from those with labels"
    )
    in_memory: bool = Field(True, description="keep decoded images in memory if they fit")

    @field_validator("patient", mode="after")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            msg = f"is no regular expression ({error})"
            raise ValueError(msg) from None
        if groups < 1:
            msg = r"should have a group in brackets, such as '(p\d+)_'"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> SegData:
        if self.val_fraction + self.test_fraction >= 1:
            msg = "val_fraction and test_fraction should leave something to train on"
            raise ValueError(msg)
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class SegModel(Section):
    """The network; the paper's variants that the released code lacks are options."""

    dim: int = Field(96, ge=24, multiple_of=24, description="channels of the encoder")
    image_size: int = Field(
        1024, ge=32, multiple_of=16, description="side in pixels of the model's input"
    )
    depths: tuple[int, int, int, int] = Field((2, 2, 6, 2), description="blocks of the stages")
    heads: tuple[int, int, int, int] = Field(
        (3, 6, 12, 24), description="attention heads of the stages; the first is unused"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block")
    decoder_dim: int = Field(256, ge=32, multiple_of=32, description="width of neck and decoder")
    decoder_heads: int = Field(8, ge=1, description="attention heads of the decoder")
    decoder_mlp: int = Field(256, ge=8, description="hidden width of the decoder's MLP")
    meta_pooling: bool = Field(
        False, description="the paper's pooled values in the decoder (experimental)"
    )
    task_queries: bool = Field(
        False,
        description="each mask from a query of its own, as the paper draws; released: all from one",
    )
    checkpointing: bool = Field(
        False, description="recompute token blocks in the backward pass: less memory, slower"
    )
    encoder_weights: Path | None = Field(
        None, description="distilled SAM encoder (SAM_PFD_10K.pth); none: random"
    )
    sam_weights: Path | None = Field(
        None, description="sam_vit_*.pth for prompt encoder and decoder; none: random"
    )
    normalisation: Literal["imagenet", "official_eval"] = Field(
        "imagenet",
        description="imagenet as trained; official_eval: the scaling of the official evaluation "
        "and distillation",
    )

    @model_validator(mode="after")
    def _widths(self) -> SegModel:
        for count in self.heads[1:]:
            if count < 1 or self.dim % count:
                msg = f"heads: {count} does not divide model.dim={self.dim}"
                raise ValueError(msg)
        if (self.decoder_dim // 2) % self.decoder_heads:
            msg = (
                f"decoder_heads: {self.decoder_heads} does not divide half of "
                f"model.decoder_dim={self.decoder_dim}"
            )
            raise ValueError(msg)
        if min(self.depths) < 0 or sum(self.depths) < 1:
            msg = f"depths: a network of at least one block expected, got {list(self.depths)}"
            raise ValueError(msg)
        return self


class SegOptim(Section):
    """Optimiser, schedule, losses."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    optimiser: Literal["adam", "adamw"] = Field("adam", description="adam as published")
    weight_decay: float = Field(0.0, ge=0, description="decay of adamw, L2 of adam")
    schedule: Literal["exponential", "cosine"] = Field(
        "exponential", description="by epoch as published, or by step to 0"
    )
    decay: float = Field(0.98, gt=0, le=1, description="factor an epoch (exponential)")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; published: none")
    dice_weight: float = Field(
        0.8, ge=0, le=1, description="w in w Dice + (1 - w) focal cross-entropy"
    )
    dice: Literal["batch", "image"] = Field(
        "batch", description="Dice over the whole batch as published, or for each image"
    )
    probability_form: bool = Field(
        False, description="cross-entropy from probabilities, as published, not from logits"
    )
    prompts: Literal["none", "points", "boxes", "mixed"] = Field(
        "none", description="prompts drawn from the truth in training; published: none"
    )
    select: Literal["dice", "loss"] = Field(
        "dice", description="validation figure that picks the epoch; published: loss"
    )
    frozen_encoder: int = Field(
        0, ge=0, description="epochs in which encoder and neck rest, for pretrained ones"
    )


class SegPredict(PredictConfig):
    """Prompts, what is written, how frames are joined."""

    points: list[tuple[float, float, int]] | None = Field(
        None, description="points [[x,y,1],[x,y,0]] in pixels of the image; 1: inside, 0: outside"
    )
    boxes: list[tuple[float, float, float, float]] | None = Field(
        None, description="boxes [[left,top,right,bottom]] in pixels of the image"
    )
    mask_prompt: Path | None = Field(None, description="rough mask to start from, an image file")
    prompts: Path | None = Field(
        None, description="json: file stem -> points, boxes, mask; for several inputs"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a pixel counts")
    native: bool = Field(
        True, description="score at the image's own resolution; off: on the model's square"
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="distance within which an outline is hit (boundary_f), mm or pixels; none: "
        "0.8 % of an image's diagonal, 2 mm in volumes",
    )
    mirrors: bool = Field(
        False, description="average over a picture and its mirror images: four times as long"
    )
    instances: bool = Field(False, description="write an image of numbered objects as well")
    smallest: int = Field(0, ge=0, description="objects of fewer pixels are removed")
    frames: bool = Field(True, description="video: write a mask for each frame")
    overlay: bool = Field(True, description="write outlines over the image (and as a video)")


class SegVideo(Section):
    """Smoothing over the frames of a clip."""

    momentum: float = Field(
        0.0, ge=0, lt=1, description="weight of earlier frames' logits; 0: each frame for itself"
    )


class Config(BaseConfig):
    """All settings of `her_seg`."""

    data: SegData = Field(default_factory=SegData, description="images, volumes, clips")
    model: SegModel = Field(default_factory=SegModel, description="network")
    optim: SegOptim = Field(default_factory=SegOptim, description="optimiser and losses")
    predict: SegPredict = Field(default_factory=SegPredict, description="outputs")
    video: SegVideo = Field(default_factory=SegVideo, description="clips")

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        if self.optim.prompts != "none" and self.data.labels and len(self.data.labels) > 1:
            msg = "optim.prompts: prompts say where one class is; train them on one class at a time"
            raise ValueError(msg)
        return self
