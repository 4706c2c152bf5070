"""Configuration of `rgbd_sod`; pydantic only, so that a wrong key is told before torch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zoo.config import BaseConfig, DataConfig, PredictConfig, Section

LAYOUTS = ("bbs", "vst", "caver", "author", "come", "nlpr_raw", "plain")


class RgbdData(DataConfig):
    """RGB, depth and mask folders of the field; see the card for the layouts."""

    layout: Literal["auto", "bbs", "vst", "caver", "author", "come", "nlpr_raw", "plain"] = Field(
        "auto", description="how the folders are arranged; auto: found"
    )
    depth_from: Literal["smoothed", "raw"] = Field(
        "smoothed", description="raw NLPR folders: depth with holes filled, or as measured"
    )
    train: list[str] = Field(
        default_factory=list,
        description="data sets to train on, NAME or NAME:LIST.lst; none: every training folder",
    )
    test: list[str] = Field(
        default_factory=list,
        description="data sets to test on, NAME or NAME:LIST.lst; none: every test folder",
    )
    val_fraction: float = Field(
        0.05, ge=0, lt=1, description="share of the training images held out for selection"
    )
    split_seed: int = Field(1, ge=0, description="seeds the held-out share")
    polarity: Literal["auto", "near_dark", "near_bright"] = Field(
        "auto", description="which end of the depth files is near; auto: measured on masks"
    )
    polarity_of: dict[str, Literal["near_dark", "near_bright"]] = Field(
        default_factory=dict, description="data set -> polarity, where one differs from the rest"
    )
    depth: Literal["files", "zeros"] = Field(
        "files", description="zeros: no depth at all, every pixel at 0; must be asked for"
    )
    holes: Literal["nearest", "far", "keep"] = Field(
        "nearest", description="what a missing depth value (0 in raw sensor maps) is filled with"
    )
    hole_value: int | None = Field(
        None, ge=0, description="depth value that means missing; none: 0 in 16-bit and .mat files"
    )
    percentile: tuple[float, float] | None = Field(
        None, description="depth percentiles that scale to 0 and 1; none: minimum and maximum"
    )
    mismatch: Literal["resize", "error"] = Field(
        "resize", description="sizes of image, depth and mask that differ: resize to the image"
    )
    augment: bool = Field(True, description="flip, crop, rotation, colour of training images")
    depth_drop: float = Field(
        0.0, ge=0, le=1, description="chance that a training image's depth is blanked"
    )
    eval_size: Literal["native", "256"] = Field(
        "native", description="size at which maps are scored; 256 as most published numbers"
    )

    @field_validator("eval_size", mode="before")
    @classmethod
    def _size_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _rising(self) -> RgbdData:
        if self.percentile is not None:
            low, high = self.percentile
            if not 0 <= low < high <= 100:
                msg = "percentile should be two numbers, 0 <= low < high <= 100"
                raise ValueError(msg)
        return self


class RgbdModel(Section):
    """The network; the spec's open choices are options with our reading as default."""

    backbone: Literal["resnet50", "resnet18", "small"] = Field(
        "resnet50", description="both encoders; small: four plain stages, for people without a GPU"
    )
    width: int = Field(
        64, ge=8, description="channels of the small backbone's first stage (small only)"
    )
    share_encoders: bool = Field(False, description="one encoder for colour and depth")
    input_size: int = Field(
        256, ge=64, multiple_of=32, description="side in pixels the pair is resized to"
    )
    fusion_channels: tuple[int, int, int, int] = Field(
        (64, 128, 320, 512), description="channels of the four fusion stages"
    )
    embed_dims: tuple[int, int, int, int] | None = Field(
        None, description="token widths E of the transformer stages; none: as the fusion channels"
    )
    depths: tuple[int, int, int, int] = Field(
        (3, 4, 6, 3), description="transformer blocks a stage"
    )
    heads: tuple[int, int, int, int] = Field((1, 2, 5, 8), description="attention heads a stage")
    decoder_channels: int = Field(64, ge=8, description="channels of every decoder map")
    reduction: int = Field(16, ge=1, description="bottleneck of the channel gate")
    spatial_gate: Literal["linear", "sigmoid", "bn_relu"] = Field(
        "linear", description="activation of the position fusion's gate"
    )
    l2_axis: Literal["map", "position"] = Field(
        "map", description="unit norm of each channel over positions, or over channels"
    )
    l2_scale: bool = Field(True, description="multiply by sqrt(positions) after that norm")
    sqrt_eps: float = Field(1e-6, ge=0, description="inside the signed square root")
    fusion: Literal["parallel", "position", "channel", "series", "concat"] = Field(
        "parallel", description="PMF + CMF, or one of the paper's ablations"
    )
    transformer: Literal["pvt_v2_b2", "none"] = Field(
        "pvt_v2_b2", description="PVTv2 stages after the fusion; none: the paper's ablation"
    )
    patch_embed: bool = Field(
        True, description="3x3 embedding that keeps the resolution before each stage"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the transformer")
    align_corners: bool = Field(False, description="of the decoder's bilinear upsampling")
    resnet_weights: Path | None = Field(
        None, description="torchvision file of the ResNet for both encoders; none: random"
    )
    pvt_weights: Path | None = Field(
        None, description="PVTv2-B2 file, official or timm names; none: random"
    )

    @model_validator(mode="after")
    def _fits(self) -> RgbdModel:
        if self.transformer == "none":
            return self
        widths = self.embed_dims or self.fusion_channels
        for width, heads in zip(widths, self.heads, strict=True):
            if heads < 1 or width % heads:
                msg = f"token width {width} should be a multiple of its {heads} heads (heads)"
                raise ValueError(msg)
        if not self.patch_embed and widths != self.fusion_channels:
            msg = f"embed_dims should be {self.fusion_channels} or unset where patch_embed is off"
            raise ValueError(msg)
        return self


class RgbdOptim(Section):
    """Adam, decay by epoch, frozen parts, losses."""

    lr: float = Field(1e-4, gt=0, description="learning rate of the first epoch")
    decay: float = Field(0.97, gt=0, le=1, description="factor on the learning rate each epoch")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up; the paper has none")
    weight_decay: float = Field(0.0, ge=0, description="L2 on every parameter")
    frozen_encoders: int = Field(
        30, ge=0, description="epochs at the start in which the encoders rest"
    )
    frozen_transformer: int = Field(
        30, ge=0, description="epochs after those in which the transformer blocks rest"
    )
    lambdas: tuple[float, float, float, float] = Field(
        (0.8, 0.6, 0.4, 0.2), description="weights of the four maps' losses, finest first"
    )
    loss: Literal["bce+iou", "bce", "bce+ssim", "bce+dice", "structure"] = Field(
        "bce+iou", description="loss of each map"
    )
    select: Literal["mae", "max_fm", "sm"] = Field(
        "mae", description="validation figure that picks the epoch"
    )


class RgbdPredict(PredictConfig):
    """What is written for each image."""

    minmax: bool = Field(
        False, description="stretch each written map to 0..255, as published map folders are"
    )
    tables: list[Literal["csv", "md", "tex"]] = Field(
        ["csv", "md", "tex"],
        description="formats of the table over methods and data sets",
    )

    @field_validator("tables", mode="before")
    @classmethod
    def _one_table(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Config(BaseConfig):
    """All settings of `rgbd_sod`."""

    data: RgbdData = Field(default_factory=RgbdData, description="images, depth, masks")
    model: RgbdModel = Field(default_factory=RgbdModel, description="network")
    optim: RgbdOptim = Field(default_factory=RgbdOptim, description="optimiser and losses")
    predict: RgbdPredict = Field(default_factory=RgbdPredict, description="outputs")
